"""Policies away from home, and dLLMs on problems that they never saw: not without a word."""

from __future__ import annotations

import json
import warnings

import pytest

import dllm_gym
from dllm_agents import load_policy, save_policy
from dllm_agents.networks import UnmaskTransformer, UnmaskTransformerConfig
from dllm_gym.backends import load_backend
from dllm_gym.envs.engine import Engine
from dllm_gym.evaluation.home import at_home, settle
from dllm_gym.looking import film
from dllm_gym.trained import trained_length, trained_tasks

FULL, SEMI, SUDOKU = "policy:arithmetic-full", "policy:arithmetic-semi", "policy:sudoku-full"
DREAM = {"backend": "tiny-arithmetic-dream"}
CLOSING = ": expect less of it here"


def said(work):
    """The warnings that some work gives, each once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work()
    return list(dict.fromkeys(str(one.message) for one in caught))


def evaluated(agent, **kwargs):
    return said(lambda: dllm_gym.evaluate(agent, 1, **kwargs))


@pytest.mark.parametrize(
    ("agent", "kwargs"),
    [
        (FULL, {}),
        (FULL, {"block_length": 48}),
        (FULL, {"backend": "tiny-arithmetic", "split": "train", "alpha": 3.0}),
        (SEMI, {"block_length": 8}),
        (SUDOKU, {"task": "sudoku"}),
        (SUDOKU, {}),
        (SEMI, {}),
        ("policy:arithmetic-any:target_steps=8", {}),
        ("confidence:k=8", DREAM),  # a rule is at home everywhere
        (lambda observation: observation["action_mask"], {"task": "sudoku"}),
    ],
)
def test_at_home_nothing_is_said(agent, kwargs):
    assert evaluated(agent, **kwargs) == []


@pytest.mark.parametrize(
    ("agent", "kwargs", "words"),
    [
        (
            SUDOKU,
            {"task": "arithmetic"},
            "on sudoku, not on arithmetic; with the dLLM tiny-sudoku, not with tiny-arithmetic",
        ),
        (FULL, DREAM, "with the dLLM tiny-arithmetic, not with tiny-arithmetic-dream"),
        (FULL, {"block_length": 8}, "without blocks, not in blocks of 8"),
        (SEMI, {"block_length": None}, "in blocks of 8, not without blocks"),
        (SEMI, {"block_length": 4}, "in blocks of 8, not in blocks of 4"),
        (SEMI, {"block_length": (8, 16, None)}, "in blocks of 8, not in blocks of 8, 16 and without blocks"),
    ],
)
def test_away_from_home_a_policy_is_named(agent, kwargs, words):
    label = f"{agent.removeprefix('policy:')} (sample)"
    expected = [f"{label} was trained {words}{CLOSING}"]
    assert evaluated(agent, **kwargs) == expected
    assert said(lambda: film([agent], **kwargs)) == expected
    assert said(lambda: dllm_gym.compare([agent], 1, strategies=["confidence:k=8"], **kwargs)) == expected
    assert said(lambda: dllm_gym.analyze([agent], 1, **kwargs)) == expected


def test_prompts_are_no_task_but_dllm_and_blocks_count():
    prompt = "Sam has 20 coins, finds 4, loses 9. Total?"
    assert said(lambda: dllm_gym.generate(prompt, FULL)) == []
    expected = (
        "trained with the dLLM tiny-sudoku, not with tiny-arithmetic; without blocks, not in blocks of 8"
    )
    (words,) = said(lambda: dllm_gym.generate(prompt, SUDOKU, "tiny-arithmetic", block_length=8))
    assert words == f"sudoku-full (sample) was {expected}{CLOSING}"


def test_a_policy_of_unknown_origin_and_a_dllm_without_a_name_are_left_alone(tmp_path):
    save_policy(tmp_path, UnmaskTransformer(UnmaskTransformerConfig(width=16)))
    assert load_policy(tmp_path).trained_in == {}
    assert evaluated(tmp_path, **DREAM) == []
    assert evaluated(FULL, backend=load_backend("tiny-arithmetic-dream")) == []


def saved(path, env):
    return save_policy(path, UnmaskTransformer(UnmaskTransformerConfig(width=16)), {"config": {"env": env}})


def test_the_same_dllm_may_lie_elsewhere(tmp_path):
    saved(tmp_path, {"task": "arithmetic", "backend": "somebody/tiny-arithmetic"})
    assert evaluated(tmp_path) == []
    saved(tmp_path, {"task": ["a"], "backend": 3, "block_length": "x"})
    (words,) = evaluated(tmp_path)  # whatever a stranger wrote there
    assert words.endswith(CLOSING)


HOME = {
    "task": "sudoku",
    "task_kwargs": {"size": 6},
    "completion_length": 36,
    "backend": "tiny-sudoku",
    "block_length": 12,
    "alpha": 3.0,
}


@pytest.mark.parametrize(
    ("told", "changes"),
    [
        ({}, {}),
        ({"block_length": None}, {"block_length": None}),
        ({"task": "sudoku"}, {}),
        ({"alpha": 2.0, "split": "test"}, {"alpha": 2.0, "split": "test"}),
        ({"task_kwargs": {"size": 4}}, {"task_kwargs": {"size": 4}, "completion_length": None}),
        ({"backend": "a/b"}, {"backend": "a/b"}),
        # an embedded dLLM is made for one task
        (
            {"task": "arithmetic"},
            {"task": "arithmetic", "task_kwargs": None, "completion_length": None, "backend": None},
        ),
    ],
)
def test_what_is_not_told_is_as_at_home(told, changes):
    place = {key: value for key, value in HOME.items() if key != "alpha"}
    assert settle(told, HOME) == {**place, **changes}
    assert settle(settle(told, HOME), {"task": "other", "block_length": 3}) == settle(told, HOME)


def test_another_dllm_goes_along_to_another_task():
    home = {"task": "gsm8k", "backend": "GSAI-ML/LLaDA-8B-Instruct", "block_length": 32}
    settled = settle({"task": "math500"}, home)
    assert (settled["task"], settled["backend"], settled["block_length"]) == ("math500", home["backend"], 32)


def test_who_was_trained_in_several_block_lengths_is_at_home_in_each(tmp_path):
    saved(tmp_path, {"task": "arithmetic", "block_length": [4, 8, None]})
    home = dllm_gym.evaluate(tmp_path, 3).environment
    assert home["block_length"] == [4, 8, 48]
    for block_length in (4, 8, 48, None, (4, 48)):
        assert evaluated(tmp_path, block_length=block_length) == []
    (words,) = evaluated(tmp_path, block_length=16)
    assert words.endswith(f"was trained in blocks of 4, 8 and without blocks, not in blocks of 16{CLOSING}")
    with pytest.raises(ValueError, match=r"one for all texts, got \[4, 8, None\]: choose one of them"):
        dllm_gym.generate("Sam has 20 coins", tmp_path)
    assert dllm_gym.generate("Sam has 20 coins, finds 4, loses 9. Total?", tmp_path, block_length=4).steps


def test_whose_home_is_unknown_is_told_everything():
    assert at_home(["no agent"], {"task": "sudoku"}) == {"task": "sudoku"}
    assert settle({}, {}) == {}


def test_a_policy_decodes_where_it_was_trained():
    result = dllm_gym.evaluate(SUDOKU, 20)
    assert (result.environment["task"], result.environment["backend"]) == ("sudoku", "tiny-sudoku")
    assert result.accuracy > 0.5
    assert dllm_gym.evaluate(SEMI, 1).environment["block_length"] == 8
    episode = film([SEMI])
    assert episode.environment["block_length"] == 8


def test_everybody_decodes_at_the_first_policys():
    """So that they are compared on the same problems, in the same blocks."""
    comparison = dllm_gym.compare(["confidence:k=4", SUDOKU], 2, strategies=["confidence:k=8"])
    assert {result.environment["task"] for result in comparison.results} == {"sudoku"}
    words = said(lambda: dllm_gym.analyze([SEMI, FULL], 1))
    assert words == [f"arithmetic-full (sample) was trained without blocks, not in blocks of 8{CLOSING}"]


def test_texts_are_written_by_the_dllm_of_the_policy(tmp_path):
    saved(tmp_path, {"task": "arithmetic", "backend": "tiny-arithmetic-dream", "block_length": 8})
    prompt = "Sam has 20 coins, finds 4, loses 9. Total?"
    expected = dllm_gym.generate(prompt, tmp_path, "tiny-arithmetic-dream", block_length=8)
    assert dllm_gym.generate(prompt, tmp_path) == expected
    (words,) = said(lambda: dllm_gym.generate(prompt, tmp_path, block_length=None))
    assert "in blocks of 8, not without blocks" in words
    with pytest.raises(ValueError, match="block_length must be a whole number, None or 'own', got 'full'"):
        dllm_gym.generate(prompt, block_length="full")


TWO = [{"task": "arithmetic", "weight": 1}, {"task": "sudoku", "weight": 1}]


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        (
            {"task": "sudoku", "task_kwargs": {"size": 6}, "backend": "tiny-sudoku"},
            "tiny-sudoku was trained on sudoku with 16 positions, not on sudoku with 36",
        ),
        (
            {"task_kwargs": {"max_steps": 8}},
            "tiny-arithmetic was trained on arithmetic with 48 positions, not on arithmetic with 80",
        ),
        ({"task_kwargs": {"max_steps": 8}, **DREAM}, None),
        ({"task_kwargs": {"two_digit_share": 1.0}}, None),
        ({"completion_length": 24}, None),  # shorter, but the problems are those it knows
        ({"task": "sudoku"}, None),
        (
            {"task": "mixture", "task_kwargs": {"tasks": TWO}, "backend": "tiny-arithmetic"},
            "tiny-arithmetic was trained on arithmetic with 48 positions, not on sudoku with 16",
        ),
    ],
)
def test_problems_that_a_dllm_never_saw(kwargs, words):
    expected = [] if words is None else [f"the dLLM {words}: expect it to solve next to nothing"]
    assert said(lambda: Engine(1, **kwargs)) == expected


def test_what_is_known_of_a_dllms_training(tmp_path):
    assert [task.completion_length for task in trained_tasks("tiny-arithmetic-dream")] == [48, 80]
    assert trained_length("tiny-sudoku") == 16
    assert trained_tasks(tmp_path) == []
    assert trained_length("somebody/elses") is None
    for record, message in (
        ([], "must be an object"),
        ({"config": 3}, "config must be an object"),
        ({"config": {}}, "config lacks task"),
        ({"config": {"task": 1}}, "config: task must be a text"),
        ({"config": {"task": "sudoku", "task_kwargs": [1]}}, "task_kwargs must be null, an object"),
        ({"config": {"task": "sudoku", "task_kwargs": {"boom": 2}}}, "boom"),
    ):
        (tmp_path / "pretraining.json").write_text(json.dumps(record))
        with pytest.raises(ValueError, match=message):
            trained_tasks(tmp_path)
