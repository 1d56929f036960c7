"""The policies that come with the package do what their files say."""

import math

import pytest

import dllm_gym
from dllm_agents.checkpoint import read_description, shipped_policies
from dllm_agents.plugin import agent_names

EPISODES = 100


@pytest.mark.parametrize("name", shipped_policies())
def test_recorded_results_hold(name):
    metadata = read_description(shipped_policies()[name])["metadata"]
    assert metadata["config"]["algorithm"] in ("grpo", "ppo")
    assert metadata["seed"] in (0, 1, 2)
    trained_in = metadata["config"]["env"]
    where = {key: trained_in[key] for key in ("task", "task_kwargs", "block_length") if key in trained_in}
    for options, recorded in metadata["test"].items():
        result = dllm_gym.evaluate(f"policy:{name}:{options}", EPISODES, "test", **where)
        spread = 4 * math.sqrt(max(recorded["accuracy"] * (1 - recorded["accuracy"]), 0.01) / EPISODES)
        assert result.accuracy == pytest.approx(recorded["accuracy"], abs=spread)
        assert result.nfe_mean == pytest.approx(recorded["nfe_mean"], rel=0.15)


def test_they_are_listed():
    assert agent_names() == [f"policy:{name}" for name in shipped_policies()]
    assert shipped_policies(), "no policy is shipped"


def test_the_knob_orders_the_speeds():
    steps = [
        dllm_gym.evaluate(f"policy:arithmetic-any:target_steps={target}", 50, "test").nfe_mean
        for target in (4, 8, 16)
    ]
    assert steps == sorted(steps)
    assert steps[-1] > 1.5 * steps[0]
