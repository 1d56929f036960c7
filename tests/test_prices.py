"""What steps cost: targets, ranges that every episode draws from, and what is paid for."""

from __future__ import annotations

import json
import math

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_backend import ScriptedBackend, ToyBackend, ToyTask

import dllm_gym
from dllm_gym.envs.rewards import REWARDS
from dllm_gym.envs.unmask import UnmaskEnv
from dllm_gym.envs.vector import UnmaskVectorEnv

pytestmark = pytest.mark.usefixtures("toys")

KNOBS = ("alpha", "target_steps")
quick = settings(deadline=None, max_examples=30)


def toy(**kwargs):
    return UnmaskEnv(**{"backend": ToyBackend(), "task": ToyTask(), "observe": KNOBS, **kwargs})


def toys_(num_envs, **kwargs):
    return UnmaskVectorEnv(
        num_envs,
        autoreset_mode="SameStep",
        **{"backend": ToyBackend(), "task": ToyTask(), "observe": KNOBS, **kwargs},
    )


def drawn(env, episodes, knob, seed=0):
    return np.array([env.reset(seed=seed if at == 0 else None)[0][knob][0] for at in range(episodes)])


# Target steps ---------------------------------------------------------------------------------------------


@quick
@given(
    reward=st.sampled_from(list(REWARDS)),
    alpha=st.floats(0, 4),
    target=st.one_of(st.integers(1, 9), st.floats(1, 9)),
    parts=st.integers(1, 6),
)
def test_the_price_is_on_missing_the_target(reward, alpha, target, parts):
    env = toy(backend=ScriptedBackend([3, 1, 4, 1, 5, 9]), reward=reward, alpha=alpha, target_steps=target)
    env.reset(seed=0)
    for part in np.array_split(np.arange(6), parts):
        _, paid, over, _, info = env.step(np.isin(np.arange(6), part))
    assert over
    assert info["nfe"] == parts
    priced = max(parts / target, target / parts)
    expected = {
        "multiplicative": 0.75 * ((6 - min(priced, 6) + 1) / 6) ** alpha,
        "multiplicative-paper": 0.75 * max(1 - priced / 6, 0) ** alpha,
        "additive": 0.75 - alpha * priced / 6,
        "correctness": 0.75,
    }
    assert paid == pytest.approx(expected[reward])
    assert type(paid) is float


def test_the_target_pays_best():
    rewards = []
    for parts in range(1, 7):
        env = toy(backend=ScriptedBackend([4, 0, 0, 0, 0, 0]), target_steps=2)
        env.reset(seed=0)
        for part in np.array_split(np.arange(6), parts):
            _, paid, *_ = env.step(np.isin(np.arange(6), part))
        rewards.append(paid)
    assert rewards[0] < rewards[1] == 1.0 > rewards[2] > rewards[3] > rewards[4] > rewards[5]
    assert rewards[0] == rewards[3]  # half and twice as many


# Ranges ---------------------------------------------------------------------------------------------------


@quick
@given(
    low=st.floats(1, 20), factor=st.floats(1, 100), knob=st.sampled_from(KNOBS), seed=st.integers(0, 2**31)
)
def test_every_episode_draws_within_the_range(low, factor, knob, seed):
    high = low * factor
    values = drawn(toy(**{knob: (low, high)}), 20, knob, seed)
    assert values.dtype == np.float32
    assert (values >= np.float32(low) * (1 - 1e-6)).all()
    assert (values <= np.float32(high) * (1 + 1e-6)).all()
    assert len(set(values.tolist())) == 20 or factor < 1.001


@pytest.mark.parametrize("knob", KNOBS)
def test_the_draws_are_log_uniform(knob):
    values = np.sort(drawn(toy(**{knob: (2.0, 50.0)}), 1500, knob))
    share = np.log(values / 2) / math.log(25)
    assert np.abs(share - (np.arange(1500) + 0.5) / 1500).max() < 0.042  # Kolmogorov-Smirnov, 1 %


def test_alpha_and_target_are_drawn_independently():
    env = toy(alpha=(0.1, 10), target_steps=(1, 100))
    pairs = [env.reset(seed=0 if at == 0 else None)[0] for at in range(300)]
    logs = [[math.log(observation[knob][0]) for observation in pairs] for knob in KNOBS]
    assert abs(np.corrcoef(logs)[0, 1]) < 0.15


def test_a_number_is_always_that_number():
    env = toy(alpha=(0.1, 10.0), target_steps=3)
    assert set(drawn(env, 5, "target_steps").tolist()) == {3.0}
    env = toy(alpha=[2.0, 2.0], target_steps=(1, 9))
    assert set(drawn(env, 5, "alpha").tolist()) == {2.0}


def test_same_seed_same_draws():
    env = toy(alpha=(0.1, 10.0))
    assert np.array_equal(drawn(env, 6, "alpha", 3), drawn(toy(alpha=(0.1, 10.0)), 6, "alpha", 3))
    assert not np.array_equal(drawn(env, 6, "alpha", 3), drawn(env, 6, "alpha", 4))


@pytest.mark.parametrize("reward", REWARDS)
def test_what_is_observed_is_what_is_paid_by(reward):
    env = toys_(4, alpha=(0.2, 3.0), target_steps=(1, 5), reward=reward)
    observation, _ = env.reset(seed=0)
    rng, ended = np.random.default_rng(0), 0
    for _ in range(40):
        before = observation
        observation, rewards, over, _, infos = env.step(rng.random((4, 6)) < 0.4)
        for row in np.flatnonzero(over):
            final = infos["final_info"]
            alpha, target = (float(before[knob][row, 0]) for knob in KNOBS)
            steps = final["nfe"][row]
            priced = max(steps / target, target / steps)
            expected = REWARDS[reward](final["score"][row], priced, 6, alpha)
            assert rewards[row] == pytest.approx(expected, rel=1e-5, abs=1e-6)
            for knob in KNOBS:
                assert infos["final_obs"][row][knob] == before[knob][row]
                assert observation[knob][row] != before[knob][row]
            ended += 1
    assert ended > 30


def test_rows_of_a_group_draw_the_same():
    env = toys_(6, group_size=3, alpha=(0.1, 10.0), target_steps=(1, 9))
    observation, infos = env.reset(seed=0)
    for _ in range(5):
        for knob in KNOBS:
            values = observation[knob].reshape(2, 3)
            assert (values == values[:, :1]).all()
            assert values[0, 0] != values[1, 0]
        assert (infos["problem"].reshape(2, 3) == infos["problem"].reshape(2, 3)[:, :1]).all()
        observation, *_, infos = env.step(np.ones((6, 6)))


def test_evaluation_draws_by_problem_whatever_the_batch_size():
    where = {"task": "toy", "backend": "toy", "alpha": (0.2, 5.0), "target_steps": (1, 4)}
    one, other = (dllm_gym.evaluate("confidence:k=2", 20, batch_size=size, **where) for size in (20, 3))
    assert np.array_equal(one.records.reward, other.records.reward)
    fixed = dllm_gym.evaluate("confidence:k=2", 20, **{**where, "alpha": 1.0, "target_steps": 1})
    assert not np.array_equal(one.records.reward, fixed.records.reward)
    assert np.array_equal(one.records.score, fixed.records.score)


def test_description_and_spec_survive_json():
    env = gym.make(
        "DLLMUnmask-v0", alpha=(0.5, 4), target_steps=(1, 32), reward_metric="answer_correct", observe=KNOBS
    )
    description = env.unwrapped.engine.description()
    assert json.loads(json.dumps(description)) == description
    expected = {"alpha": [0.5, 4.0], "target_steps": [1.0, 32.0], "reward_metric": "answer_correct"}
    assert {key: description[key] for key in expected} == expected
    assert toy(alpha=2, target_steps=(3, 3)).engine.description()["target_steps"] == 3.0
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.unwrapped.engine.description() == description


# What is paid for -----------------------------------------------------------------------------------------


def test_a_metric_is_paid_and_success_stays_what_it_is():
    for reward_metric in (None, "written"):
        env = toy(backend=ScriptedBackend([3, 1, 4, 1, 5, 9]), reward_metric=reward_metric, alpha=2.0)
        env.reset(seed=0)
        env.step(np.arange(6) < 3)
        _, paid, _, _, info = env.step(np.arange(6) >= 3)
        assert (info["is_success"], info["score"], info["written"]) == (False, 0.75, 6.0)
        assert paid == pytest.approx((0.75 if reward_metric is None else 6.0) * (5 / 6) ** 2)


def test_a_right_answer_after_a_wrong_derivation():
    where = {"task": "arithmetic", "reward": "correctness"}
    result = dllm_gym.evaluate("confidence:k=8", 24, reward_metric="answer_correct", **where)
    metric, score = result.records.metrics["answer_correct"], result.records.score
    assert np.array_equal(result.records.reward, metric)
    assert (metric > score).any()
    assert np.array_equal(result.records.success, score)
