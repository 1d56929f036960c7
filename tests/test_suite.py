"""The suite: ids, arguments, figures and scores of its members."""

from __future__ import annotations

import json
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

import dllm_gym
from dllm_agents.config import TrainConfig
from dllm_gym.backends import embedded_names
from dllm_gym.cli.options import complete_member
from dllm_gym.envs.unmask import UnmaskEnv
from dllm_gym.envs.vector import UnmaskVectorEnv
from dllm_gym.evaluation import as_agent
from dllm_gym.evaluation.tuning import agent_text, tuned
from dllm_gym.suite import SUITE, Figures, Measured, Member, member, normalized_score, read_figures
from dllm_gym.tasks import task_names

every_member = pytest.mark.parametrize("member", SUITE, ids=lambda one: one.name)


def described(env):
    description = env.unwrapped.engine.description()
    return {name: description[name] for name in ("task", "backend", "completion_length", "block_length")}


@every_member
def test_a_member_is_the_same_environment_with_arguments(member):
    env = gym.make(member.id)
    assert type(env.unwrapped) is UnmaskEnv
    assert env.spec.id == member.id
    assert described(env) == described(gym.make("DLLMUnmask-v0", **member.env))
    check_env(env.unwrapped, skip_render_check=True)
    vector = gym.make_vec(member.id, num_envs=3, autoreset_mode="SameStep", alpha=2.0)
    assert isinstance(vector, UnmaskVectorEnv)
    assert described(vector) == described(env)
    assert vector.unwrapped.alpha == 2.0
    observation, _ = vector.reset(seed=1)
    length = env.unwrapped.engine.length
    _, rewards, terminations, *_ = vector.step(np.ones((3, length)))
    assert observation["mask"].shape == (3, length)
    if member.block_length is None:
        assert terminations.all()
        assert ((rewards >= 0) & (rewards <= 1)).all()


@every_member
def test_a_member_comes_with_the_package(member):
    assert member.task in task_names()
    assert member.backend in embedded_names()
    assert member.id == f"DLLMUnmask/{member.name}-v0"
    # on whatever task a configuration was, it goes there
    elsewhere = {"task": member.task, "completion_length": 7, "block_length": 3, "alpha": 2.0}
    assert UnmaskEnv(**TrainConfig(env=elsewhere).moved(member.env).env).engine.description() == {
        **gym.make(member.id, alpha=2.0).unwrapped.engine.description()
    }
    if member.trained is not None:
        assert as_agent(member.trained).trained_in["task"] == member.task


def test_ids_are_different_and_found():
    assert len({one.id for one in SUITE}) == len(SUITE) >= 2
    assert [member(one.id) for one in SUITE] == list(SUITE) == list(dllm_gym.SUITE)
    with pytest.raises(ValueError, match=r"unknown environment 'Sudoku'; known: DLLMUnmask/Arithmetic-v0, "):
        member("Sudoku")
    with pytest.raises(ValueError, match=r"did you mean 'DLLMUnmask/Sudoku-v0'\?"):
        member("DLLMUnmask/Sudoko-v0")
    assert complete_member("DLLMUnmask/Sud")[0] == "DLLMUnmask/Sudoku-v0"


def test_the_environment_itself_is_as_ever():
    assert gym.spec("DLLMUnmask-v0").kwargs == {}


# Scores ---------------------------------------------------------------------------------------------------


@given(rule=st.floats(-1, 1), gap=st.floats(1e-3, 1), share=st.floats(-2, 2))
def test_the_score_is_the_share_of_the_way_from_rule_to_oracle(rule, gap, share):
    assert normalized_score(rule, rule, rule + gap) == 0
    assert normalized_score(rule + gap, rule, rule + gap) == 1
    assert normalized_score(rule + share * gap, rule, rule + gap) == pytest.approx(share, abs=1e-9)


def test_there_is_no_score_where_nothing_can_be_learned():
    for oracle in (0.5, 0.4, float("nan")):
        with pytest.raises(ValueError, match=r"the oracle's reward must be above the best rule's, got"):
            normalized_score(0.45, 0.5, oracle)


def test_without_figures_there_is_none():
    unknown = Member("Unheard", "arithmetic", "tiny-arithmetic")
    assert unknown.figures is None
    with pytest.raises(ValueError, match=r"Unheard-v0 was not measured yet: python benchmarks/suite\.py"):
        unknown.normalized(0.5)


# Figures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("member", [one for one in SUITE if one.figures], ids=lambda one: one.name)
def test_the_file_of_figures_is_about_the_members(member):
    figures = member.figures
    env = gym.make(member.id).unwrapped
    assert figures.completion_length == env.engine.length
    assert figures.vocabulary == env.engine.backend.vocab_size
    assert as_agent(figures.best_rule.agent).label == figures.best_rule.label
    assert figures.oracle.reward > figures.best_rule.reward
    assert member.normalized(figures.best_rule.reward) == 0
    assert (figures.trained is None) == (member.trained is None)
    if figures.trained is not None:
        assert figures.trained.agent == member.trained
    for one in filter(None, (figures.oracle, figures.best_rule, figures.trained)):
        assert 0 <= one.reward <= one.accuracy <= 1 <= one.nfe <= figures.completion_length


def test_the_file_of_figures_has_no_strangers():
    known = [one.id for one in SUITE]
    assert list(read_figures()) == [id for id in known if id in read_figures()]
    for one in SUITE:
        if one.figures is not None:
            assert one.figures.command.startswith(f"python benchmarks/suite.py {one.name} --episodes")


def test_a_file_of_figures_comes_back(tmp_path):
    path = tmp_path / "suite.json"
    assert read_figures(path) == {}
    one = Measured("random:k=2", "random(k=2)", 0.25, 0.5, 3.0)
    values = {"completion_length": 6, "vocabulary": 9, "episodes": 5, "env": {"task": "toy"}, "command": "me"}
    content = {**values, "oracle": vars(one), "best_rule": vars(one), "trained": None}
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"members": {"a": content, "b": {**content, "trained": vars(one)}}}))
    assert read_figures(other) == {
        "a": Figures(6, 9, 5, {"task": "toy"}, "me", one, one, None),
        "b": Figures(6, 9, 5, {"task": "toy"}, "me", one, one, one),
    }


def test_figures_of_other_arguments_do_not_count(monkeypatch):
    one = Measured("random:k=2", "random(k=2)", 0.25, 0.5, 3.0)
    mine = Member("Mine", "lists", "tiny-lists", {"operations": ["copy"]})
    figures = Figures(10, 41, 5, mine.env, "me", one, one)
    monkeypatch.setattr("dllm_gym.suite.read_figures", lambda: {mine.id: figures})
    assert mine.figures is figures
    assert replace(mine, task_kwargs={"operations": ["sort"]}).figures is None
    assert replace(mine, block_length=5).figures is None


# Tuning ---------------------------------------------------------------------------------------------------

TOY = {"task": "toy", "backend": "toy"}


@pytest.mark.usefixtures("toys")
def test_every_rule_is_tuned_by_its_reward(tmp_path):
    settings = ["confidence:k=1", "confidence:k=2", "confidence:k=6", "random:k=1", "random:k=3"]
    best = tuned(settings, 12, keep=tmp_path, **TOY)
    assert list(best) == ["confidence", "random"]
    for name, result in best.items():
        own = [text for text in settings if text.startswith(name)]
        rewards = {text: dllm_gym.evaluate(text, 12, "validation", **TOY).reward_mean for text in own}
        assert agent_text(result) == max(rewards, key=rewards.__getitem__)
        assert result.reward_mean == max(rewards.values())
        assert result.environment["split"] == "validation"
        assert as_agent(agent_text(result)).label == result.label
    assert tuned(settings, 12, keep=tmp_path, **TOY)["random"].to_json() == best["random"].to_json()
