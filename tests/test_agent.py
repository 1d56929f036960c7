"""Learned policies as agents: decodings, test-time knobs, and how they are named on the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dllm_agents.checkpoint
import dllm_gym
from dllm_agents import save_policy
from dllm_agents.agent import DECODINGS, LearnedPolicy
from dllm_agents.distributions import dpls_log_prob
from dllm_agents.networks import DEFAULT_FEATURES, UnmaskTransformer, UnmaskTransformerConfig
from dllm_agents.plugin import agent_names, load_agent

pytestmark = pytest.mark.usefixtures("toys")

TOY = {"task": "toy", "backend": "toy"}
CONDITIONED = (*DEFAULT_FEATURES, "alpha", "target_steps")


def make_network(features: tuple[str, ...] = DEFAULT_FEATURES, **fields: Any) -> UnmaskTransformer:
    """Random in all its parts, so that every input counts, with logits on both sides of 0."""
    torch.manual_seed(0)
    network = UnmaskTransformer(UnmaskTransformerConfig(features=features, **{"width": 16, **fields}))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        network.output_proj.weight *= 4
        network.output_proj.bias -= logits_of(network, make_observation(50, alpha=2, target_steps=6)).mean()
    return network


def make_observation(batch: int = 4, length: int = 6, **knobs: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = (rng.random((batch, length)) < 0.7).astype(np.int8)
    mask[:, 0] = 1
    return {
        "confidence": np.where(mask == 1, rng.random((batch, length)), 1).astype(np.float32),
        "mask": mask,
        "action_mask": mask.copy(),
        "progress": rng.random((batch, 1)).astype(np.float32),
        **{key: np.full((batch, 1), value, dtype=np.float32) for key, value in knobs.items()},
    }


def logits_of(network: UnmaskTransformer, observation: dict[str, np.ndarray]) -> torch.Tensor:
    with torch.no_grad():
        return network({key: torch.as_tensor(value) for key, value in observation.items()})


def repeated(observation: dict[str, np.ndarray], times: int) -> dict[str, np.ndarray]:
    return {key: np.repeat(value[:1], times, axis=0) for key, value in observation.items()}


# Arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoding": "greedy"}, "unknown decoding 'greedy'; known: sample, deterministic, bernoulli, dpls"),
        ({"temperature": 0}, "temperature must be above 0, got 0"),
        ({"temperature": float("nan")}, "temperature must be above 0, got nan"),
        ({"beta": -1.0}, "beta must be above 0, got -1.0"),
        ({"caution": math.nan}, "caution must be a finite number, got nan"),
        ({"decoding": "dpls", "beta": 2.0}, "beta scales reveal probabilities, which dpls has none of"),
        ({"knobs": {"alpha": 1.0}}, "mine has no knob 'alpha'; it has none"),
        ({"knobs": {"progress": 1.0}}, "mine has no knob 'progress'; it has none"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        LearnedPolicy(make_network(), name="mine", **options)


def test_a_knob_the_network_does_not_read():
    network = make_network(("confidence", "target_steps"))
    with pytest.raises(ValueError, match="policy has no knob 'alpha'; it has target_steps"):
        LearnedPolicy(network, knobs={"alpha": 1.0})


def test_options_show_in_label_and_parameters():
    network = make_network(CONDITIONED)
    plain = LearnedPolicy(network, name="mine")
    assert plain.label == "mine (sample)"
    assert plain.parameters == {"decoding": "sample"}
    options = {"temperature": 0.5, "beta": 2.0, "knobs": {"target_steps": 8.0}}
    turned = LearnedPolicy(network, name="mine", decoding="bernoulli", **options)
    assert turned.label == "mine (bernoulli, temperature=0.5, beta=2, target_steps=8)"
    assert turned.parameters == {
        "decoding": "bernoulli",
        "temperature": 0.5,
        "beta": 2.0,
        "target_steps": 8.0,
    }
    assert json.loads(json.dumps(turned.parameters)) == turned.parameters


def test_other_options_for_the_same_network():
    network = make_network(CONDITIONED)
    policy = LearnedPolicy(network, name="mine", beta=2.0, knobs={"target_steps": 8.0}, ranges=RANGES)
    other = policy.with_options(decoding="deterministic", target_steps=4)
    assert other.label == "mine (deterministic, beta=2, target_steps=4)"
    assert other.network is network
    assert policy.label == "mine (sample, beta=2, target_steps=8)"
    assert other.with_options(beta=1, alpha=1.5).label == "mine (deterministic, alpha=1.5, target_steps=4)"
    assert policy.with_options().fingerprint == policy.fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"bta": 2.0},
            "mine has no option 'bta'; it has decoding, budget, temperature, beta, caution, alpha",
        ),
        ({"beta": "2"}, "beta must be a finite number, got '2'"),
        ({"temperature": float("inf")}, "temperature must be a finite number, got inf"),
        ({"beta": True}, "beta must be a finite number, got True"),
        ({"decoding": 3}, "unknown decoding 3"),
        ({"target_steps": 100}, "mine was trained to be told 2 to 16 target_steps, not 100"),
        ({"budget": 0.1}, "mine has no budget"),
    ],
)
def test_wrong_other_options(options, message):
    policy = LearnedPolicy(make_network(CONDITIONED), name="mine", ranges=RANGES)
    with pytest.raises(ValueError, match=message):
        policy.with_options(**options)


RANGES = {"target_steps": (2.0, 16.0)}


# Knobs ------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(told=st.floats(1, 40), shown=st.floats(1, 40))
def test_knobs_override_the_observation(told, shown):
    network = make_network(CONDITIONED)
    turned = LearnedPolicy(network, decoding="bernoulli", knobs={"target_steps": told})
    plain = LearnedPolicy(network, decoding="bernoulli")
    expected = plain.act(make_observation(alpha=2.0, target_steps=told))
    assert np.array_equal(turned.act(make_observation(alpha=2.0, target_steps=shown)), expected)


def test_knobs_make_a_difference():
    network = make_network(CONDITIONED)
    few, many = (logits_of(network, make_observation(alpha=1, target_steps=steps)) for steps in (1, 20))
    assert (few - many).abs().max() > 0.01


def test_what_is_told_need_not_be_observed():
    network = make_network(CONDITIONED)
    assert {"alpha", "target_steps"} <= set(LearnedPolicy(network).requires)
    agent = LearnedPolicy(network, knobs={"alpha": 3, "target_steps": 8})
    assert not {"alpha", "target_steps"} & set(agent.requires)
    assert "action_mask" in agent.requires
    agent.act(make_observation())
    single = {key: value[0] for key, value in make_observation().items()}
    assert agent.act(single).shape == (6,)
    with pytest.raises(ValueError, match=r"the observation lacks \['alpha', 'target_steps'\]"):
        LearnedPolicy(network).act(make_observation())


# Decodings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoding", DECODINGS)
def test_candidates_only_and_something_in_every_row_but_for_bernoulli(decoding):
    network = make_network()
    torch.nn.init.constant_(network.output_proj.bias, -9.0)
    observation = make_observation(50)
    observation["action_mask"][0] = 0
    actions = LearnedPolicy(network, decoding=decoding).act(observation)
    assert actions.dtype == np.int8
    assert set(np.unique(actions)) <= {0, 1}
    assert (actions <= observation["action_mask"]).all()
    revealed = actions.any(axis=1)
    assert not revealed[0]
    assert revealed[1:].all() == (decoding != "bernoulli")


@pytest.mark.parametrize(("temperature", "beta"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.4), (2.0, 1.7)])
def test_bernoulli_draws_with_the_adjusted_probabilities(temperature, beta):
    network, observation = make_network(), repeated(make_observation(), 4000)
    agent = LearnedPolicy(network, decoding="bernoulli", temperature=temperature, beta=beta)
    found = agent.act(observation).mean(axis=0)
    sigmoid = torch.sigmoid(logits_of(network, observation)[0] / temperature).numpy()
    expected = (beta * sigmoid).clip(max=1) * observation["action_mask"][0]
    np.testing.assert_allclose(found, expected, atol=0.035)


@pytest.mark.parametrize("caution", [2.0, -0.5])
def test_caution_divides_the_odds(caution):
    network, observation = make_network(), make_observation(100)
    probability = torch.sigmoid(logits_of(network, observation)).numpy()
    agent = LearnedPolicy(network, decoding="deterministic", caution=caution)
    expected = (probability > 1 / (1 + np.exp(-caution))) & (observation["action_mask"] == 1)
    decided = expected.any(axis=1)
    actions = agent.act(observation)
    assert np.array_equal(actions[decided], expected[decided])
    assert (actions[~decided].sum(axis=1) == 1).all()
    assert agent.label == f"policy (deterministic, caution={caution:g})"


def test_deterministic_follows_beta_and_ignores_temperature():
    network, observation = make_network(), make_observation(100)
    probability = torch.sigmoid(logits_of(network, observation)).numpy()
    for temperature, beta in ((1.0, 1.0), (0.3, 1.0), (1.0, 1.6), (1.0, 0.7)):
        agent = LearnedPolicy(network, decoding="deterministic", temperature=temperature, beta=beta)
        actions = agent.act(observation)
        expected = (beta * probability > 0.5) & (observation["action_mask"] == 1)
        decided = expected.any(axis=1)
        assert decided.sum() > 5
        assert np.array_equal(actions[decided], expected[decided])
        assert (actions[~decided].sum(axis=1) == 1).all()


def test_dpls_draws_the_subsets_of_dpls():
    """Over all draw orders; and the temperature reaches them."""
    network, observation = make_network(), repeated(make_observation(), 6000)
    observation["action_mask"][:] = [1, 1, 0, 0, 0, 0]
    for temperature in (1.0, 0.2):
        logits = logits_of(network, observation)[:1] / temperature
        action_mask = torch.as_tensor(observation["action_mask"][:1])
        log_prob = {
            order: dpls_log_prob(logits, action_mask, torch.tensor([[*order, 0, 0, 0, 0]])).item()
            for order in ((1, 0), (0, 1), (1, 2), (2, 1))
        }
        actions = LearnedPolicy(network, decoding="dpls", temperature=temperature).act(observation)
        first, both = (actions[:, :2] == [1, 0]).all(axis=1), actions[:, :2].all(axis=1)
        assert first.mean() == pytest.approx(np.exp(log_prob[1, 0]), abs=0.03)
        assert both.mean() == pytest.approx(np.exp(log_prob[1, 2]) + np.exp(log_prob[2, 1]), abs=0.03)


@pytest.mark.parametrize("decoding", DECODINGS)
def test_rows_without_a_candidate_cost_nothing(decoding, monkeypatch):
    network = make_network()
    observation = make_observation(batch=5)
    observation["action_mask"][[0, 3]] = 0
    policies = [LearnedPolicy(network, decoding=decoding) for _ in range(2)]
    for policy in policies:
        policy.seed(range(5), range(5))
    seen = []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0]["action_mask"])))
    together, alone = policies
    actions = together.act(observation)
    assert seen == [3]
    assert not actions[[0, 3]].any()
    for row in (1, 2, 4):
        one = {key: np.where(np.arange(5)[:, None] == row, value, 0) for key, value in observation.items()}
        np.testing.assert_array_equal(alone.act(one)[row], actions[row])
    seen.clear()
    assert not together.act({**observation, "action_mask": np.zeros_like(observation["action_mask"])}).any()
    assert seen == []


@pytest.mark.parametrize("decoding", DECODINGS)
def test_batch_size_changes_nothing(decoding):
    network = make_network(CONDITIONED)
    ranges = {"alpha": (0.5, 4.0), "target_steps": (1, 6), "on_empty": "noop"}
    results = [
        dllm_gym.evaluate(
            LearnedPolicy(network, decoding=decoding, temperature=2.0, knobs={"alpha": 3.0}),
            25,
            batch_size=size,
            **TOY,
            **ranges,
        )
        for size in (25, 4)
    ]
    one, other = (result.records for result in results)
    assert one.completion == other.completion
    for name in ("nfe", "reward", "score"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert len(np.unique(one.nfe)) > 1


# By name ----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path) -> Path:
    """A training run with a conditioned policy."""
    save_policy(tmp_path / "run" / "best", make_network(CONDITIONED))
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("options", "label"),
    [
        ("", "run (sample)"),
        (":", "run (sample)"),
        (":dpls", "run (dpls)"),
        (":bernoulli,temperature=0.5", "run (bernoulli, temperature=0.5)"),
        (":beta=2,deterministic", "run (deterministic, beta=2)"),
        (":target_steps=8,alpha=1e1", "run (sample, target_steps=8, alpha=10)"),
    ],
)
def test_options_behind_a_path(run, options, label):
    agent = load_agent(f"{run}{options}")
    assert agent is not None
    assert agent.label == label
    inner = load_agent(f"{run}/best{options}")
    assert inner is not None
    assert inner.label == label.replace("run", "best")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("greedy", "cannot read the option 'greedy' of a policy; write one of sample, deterministic, bernou"),
        (
            "speed=3",
            "cannot read the option 'speed=3' of a policy; .* temperature=, beta=, caution=, budget=, alpha=",
        ),
        ("temperature", "cannot read the option 'temperature'"),
        ("temperature=hot", "cannot read the option 'temperature=hot'"),
        ("beta=nan", "cannot read the option 'beta=nan'"),
        ("sample=1", "cannot read the option 'sample=1'"),
        ("temperature=0", "temperature must be above 0, got 0.0"),
        ("dpls,beta=2", "beta scales reveal probabilities, which dpls has none of; got beta 2.0"),
    ],
)
def test_options_nobody_understands(run, options, message):
    with pytest.raises(ValueError, match=message):
        load_agent(f"{run}:{options}")


def test_a_path_may_hold_a_colon(run):
    place = run.rename(run.with_name("a:b"))
    for text, label in ((f"{place}", "a:b (sample)"), (f"{place}:dpls", "a:b (dpls)")):
        agent = load_agent(text)
        assert agent is not None
        assert agent.label == label


def test_a_name_is_no_option_of_the_policy_in_the_current_directory(run, monkeypatch):
    monkeypatch.chdir(run)
    assert load_agent("nobody") is None
    assert load_agent("deterministic") is None
    assert load_agent("best") is not None


def test_shipped_policies(run, tmp_path, monkeypatch):
    monkeypatch.setattr(dllm_agents.checkpoint, "SHIPPED", tmp_path)
    run.joinpath("best").rename(tmp_path / "quick")
    assert agent_names() == ["policy:quick"]
    result = dllm_gym.evaluate("policy:quick:target_steps=4,deterministic", 5, **TOY)
    assert result.label == "quick (deterministic, target_steps=4)"
    assert result.parameters == {"decoding": "deterministic", "target_steps": 4.0}
    with pytest.raises(ValueError, match="unknown policy 'slow'; shipped are: quick"):
        load_agent("policy:slow")
    with pytest.raises(ValueError, match="cannot read the option 'greedy'"):
        load_agent("policy:quick:greedy")


# What it was trained at -------------------------------------------------------------------------------------


def test_a_conditioned_policy_is_not_asked_to_extrapolate():
    network = make_network(features=("confidence", "mask", "target_steps"))
    ranges = {"target_steps": (2.0, 24.0)}
    message = r"mine was trained to be told 2 to 24 target_steps, not 1: .* target_steps=7"
    with pytest.raises(ValueError, match=message):
        LearnedPolicy(network, knobs={"target_steps": 1.0}, ranges=ranges, name="mine")
    agent = LearnedPolicy(network, ranges=ranges, name="mine")
    with pytest.raises(ValueError, match=message):
        agent.act(make_observation(target_steps=1.0))
    for told in (2.0, 24.0):
        agent.act(make_observation(target_steps=told))
        LearnedPolicy(network, knobs={"target_steps": told}, ranges=ranges).act(make_observation())


def test_a_saved_policy_knows_what_it_was_trained_at(tmp_path):
    network = make_network(features=("confidence", "mask", "target_steps"))
    metadata = {"config": {"env": {"target_steps": [3, 12], "alpha": 80.0}}}
    save_policy(tmp_path / "drawn", network, metadata)
    with pytest.raises(ValueError, match="trained to be told 3 to 12 target_steps, not 20"):
        load_agent(f"{tmp_path / 'drawn'}:target_steps=20")
    for at, other in enumerate(({}, {"config": 3}, {"config": {"env": {"target_steps": ["a", 2]}}})):
        save_policy(tmp_path / str(at), network, other)
        load_agent(f"{tmp_path / str(at)}:target_steps=20")
