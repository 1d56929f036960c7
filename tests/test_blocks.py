"""Block lengths that every episode draws its own from."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from toy_backend import ToyBackend, ToyTask

import dllm_gym
from dllm_gym.envs.unmask import UnmaskEnv
from dllm_gym.envs.vector import UnmaskVectorEnv

pytestmark = pytest.mark.usefixtures("toys")


class InBlocks(ToyBackend):
    """Attends in blocks of 4, counted from the prompt."""

    attention_block, blocks_from = 4, "sequence"


def toy(**kwargs):
    return UnmaskEnv(**{"backend": ToyBackend(), "task": ToyTask(), "observe": ("block_length",), **kwargs})


def drawn(env, episodes, seed=0):
    resets = [env.reset(seed=seed if at == 0 else None)[0] for at in range(episodes)]
    return np.array([observation["block_length"][0] for observation in resets])


def test_every_episode_is_decoded_in_the_blocks_that_are_observed():
    env = toy(block_length=(1, 2, None))
    for at in range(30):
        observation, _ = env.reset(seed=at)
        assert observation["block_length"].dtype == np.float32
        assert observation["action_mask"].sum() == observation["block_length"][0]
        assert env.observation_space.contains(observation)


def test_all_of_them_are_equally_probable():
    counts = np.unique(drawn(toy(block_length=[1, 2, 4]), 900), return_counts=True)
    assert counts[0].tolist() == [1, 2, 4]
    assert ((counts[1] - 300) ** 2 / 300).sum() < 9.2  # chi-squared, 1 %


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (None, 6),
        (3, 3),
        ([3], 3),
        ((None,), 6),
        ([4, 2, 2], (2, 4)),
        ((6, None), 6),
        (range(1, 4), (1, 2, 3)),
        ([np.int64(2), 3.0], (2, 3)),
    ],
)
def test_what_may_be_given(given, shown):
    env = toy(block_length=given)
    assert env.block_length == shown
    again = toy()
    again.set_wrapper_attr("block_length", given)
    assert again.block_length == shown
    described = env.engine.description()["block_length"]
    assert described == (shown if isinstance(shown, int) else list(shown))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), r"block_length must be a length or several to draw from, got \(\)"),
        ((2, 7), "block_length 7 exceeds completion_length 6"),
        ((0, 2), "block_length must be a whole number of at least 1, got 0"),
        (("2", 4), "block_length must be a whole number of at least 1, got '2'"),
        (np.array([2, 4]), "block_length must be a whole number of at least 1, got array"),
    ],
)
def test_what_may_not(given, message):
    with pytest.raises(ValueError, match=message):
        toy(block_length=given)
    env = toy(block_length=2)
    with pytest.raises(ValueError, match=message):
        env.block_length = given
    assert env.block_length == 2


def test_they_fit_how_the_dllm_attends():
    env = toy(backend=InBlocks(), block_length=(1, 2, None))
    assert env.block_length == (1, 2, 4)
    for seed in range(20):
        observation, info = env.reset(seed=seed)
        width = int(observation["block_length"][0])
        first = width - len(info["prompt"]) % width
        assert observation["action_mask"].sum() == min(first, 6)
    with pytest.raises(ValueError, match=r"block_length 3 does not fit .* choose one of 1, 2, 4"):
        toy(backend=InBlocks(), block_length=(2, 3))
    with pytest.raises(ValueError, match=r"block_length 3 does not fit .* choose one of 1, 2, 4"):
        env.reset(options={"block_length": 3})


def test_one_episode_or_all_from_now_on():
    env = toy(block_length=(1, 2))
    assert env.reset(seed=0, options={"block_length": 3})[0]["block_length"] == 3
    assert set(drawn(env, 20).tolist()) == {1, 2}
    env.block_length = 6
    assert set(drawn(env, 5).tolist()) == {6}
    made = gym.make("DLLMUnmask-v0", completion_length=24, observe=("block_length",))
    made.set_wrapper_attr("block_length", (4, 8))
    assert set(drawn(made, 20).tolist()) == {4, 8}


def test_rows_have_their_own_and_groups_the_same():
    env = UnmaskVectorEnv(
        6, backend=ToyBackend(), task=ToyTask(), observe="block_length", block_length=(1, 2, 3, 6),
        group_size=3, autoreset_mode="SameStep",
    )  # fmt: skip
    observation, _ = env.reset(seed=1)
    seen = set()
    for _ in range(12):
        widths = observation["block_length"].reshape(2, 3)
        assert (widths == widths[:, :1]).all()
        seen.add(tuple(widths[:, 0].tolist()))
        observation, *_ = env.step(np.ones((6, 6)))
        while (observation["mask"].sum(1) < 6).any():
            observation, *_ = env.step(np.ones((6, 6)))
    assert any(one != other for one, other in seen)
    observation, _ = env.reset(options={"block_length": np.array([1, 2, 3, 4, 5, 6])})
    assert observation["action_mask"].sum(1).tolist() == [1, 2, 3, 4, 5, 6]
    env.set_attr("block_length", 2)
    assert set(env.reset()[0]["action_mask"].sum(1).tolist()) == {2}
    with pytest.raises(ValueError, match=r"block_length must be .* of shape \(6,\), got \[1, 2\]"):
        env.reset(options={"block_length": [1, 2]})


def test_evaluation_draws_by_problem_whatever_the_batch_size(tmp_path):
    where = {"task": "toy", "backend": "toy", "block_length": (1, 2, 6)}
    one, other = (dllm_gym.evaluate("random:k=1", 20, batch_size=size, **where) for size in (20, 3))
    assert one.to_json() == other.to_json()
    assert one.records.completion == other.records.completion
    again = type(one).load(one.save(tmp_path / "result.json"))
    assert again.to_json() == one.to_json()
    assert again.environment["block_length"] == [1, 2, 6]


def test_alpha_is_drawn_as_without_them():
    knobs = {"alpha": (0.1, 10.0), "observe": ("alpha",)}
    one, other = (toy(block_length=lengths, **knobs).reset(seed=3)[0] for lengths in (2, (1, 2)))
    assert one["alpha"] == other["alpha"]


def test_description_and_spec_survive_json():
    env = gym.make("DLLMUnmask-v0", block_length=(4, 8, None), completion_length=24)
    description = env.unwrapped.engine.description()
    assert json.loads(json.dumps(description)) == description
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.unwrapped.engine.description() == description
