"""The oracle: what careful decoding wrote, in as few steps as the dLLM allows."""

from __future__ import annotations

import numpy as np
import pytest

import dllm_gym
from dllm_gym.envs.engine import Engine
from dllm_gym.envs.unmask import UnmaskEnv
from dllm_gym.evaluation.oracle import Oracle

EPISODES = 24


def brute_force(problem: int, block_length: int) -> tuple[bool, int]:
    """The oracle on one problem through the public environment, a step at a time."""
    env = UnmaskEnv(task="arithmetic", split="test", observe=("tokens",))
    engine = env.engine
    observation, _ = env.reset(options={"problem": problem})
    done = False
    while not done:
        masked = np.flatnonzero(observation["action_mask"])
        block = masked[masked // block_length == masked[0] // block_length]
        bits = np.zeros_like(observation["mask"])
        bits[block[observation["confidence"][block].argmax()]] = 1
        observation, _, done, _, _ = env.step(bits)
    final = observation["tokens"].copy()
    observation, _ = env.reset(options={"problem": problem})
    done = False
    while not done:
        bits = ((engine.predicted_tokens[0] == final) & (observation["mask"] == 1)).astype(np.int8)
        observation, _, done, _, info = env.step(bits)
    return bool(info["is_success"]), int(info["nfe"])


def test_it_is_the_brute_force_oracle():
    result = dllm_gym.evaluate("oracle:block_length=8", episodes=6, task="arithmetic")
    expected = [brute_force(problem, 8) for problem in range(6)]
    assert result.records.success.tolist() == [float(right) for right, _ in expected]
    assert result.records.nfe.tolist() == [nfe for _, nfe in expected]


def test_it_is_faster_than_any_rule_and_as_right_as_the_careful_one():
    oracle = dllm_gym.evaluate("oracle", episodes=EPISODES, task="arithmetic")
    careful = dllm_gym.evaluate("confidence:k=1", episodes=EPISODES, task="arithmetic", block_length=8)
    assert oracle.nfe_mean < 6
    assert oracle.accuracy >= careful.accuracy - 0.1
    assert oracle.label == "oracle (after confidence(k=1) in blocks of 8, 48.0 forwards before)"
    assert oracle.parameters == {"block_length": 8}


def test_in_batches_of_any_size_it_does_the_same():
    few, many = (
        dllm_gym.evaluate(Oracle(0), episodes=10, task="sudoku", batch_size=size).records.nfe.tolist()
        for size in (3, 10)
    )
    assert few == many


def test_outside_of_evaluations_it_says_what_it_is_for():
    engine = Engine(2, task="arithmetic")
    with pytest.raises(ValueError, match="the oracle is for evaluate and compare"):
        Oracle().act(engine.observation())
    with pytest.raises(ValueError, match="block_length"):
        Oracle(block_length=-1)
