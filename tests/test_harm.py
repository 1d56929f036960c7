"""The mathematics of the success model against brute force, and the decoding by budget."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_agents import load_policy, save_policy
from dllm_agents.agent import LearnedPolicy
from dllm_agents.harm import HarmScale, harm_logits, logit, risk, success_loss, within_budget
from dllm_agents.networks import UnmaskTransformer, UnmaskTransformerConfig

HARMS = st.floats(0.001, 0.9)


@given(HARMS, st.floats(0.5, 5), st.floats(0.001, 0.5))
def test_a_policy_and_its_harm_are_two_readings(harm, sharpness, threshold):
    b = sharpness * (logit(threshold) - logit(harm))
    read = torch.sigmoid(harm_logits(torch.tensor(b, dtype=torch.float64), HarmScale(sharpness, threshold)))
    assert read.item() == pytest.approx(harm, rel=1e-6)
    assert (b > 0) == (harm < threshold) or math.isclose(harm, threshold)


@given(st.lists(st.lists(HARMS, min_size=1, max_size=5), min_size=1, max_size=4), st.data())
def test_the_loss_is_the_cross_entropy_of_a_noisy_or(episodes, data):
    scores = [data.draw(st.floats(0, 1)) for _ in episodes]
    risks = torch.tensor([float(sum(risk(torch.tensor(logit(h))) for h in harms)) for harms in episodes])
    expected = []
    for harms, y in zip(episodes, scores, strict=True):
        p = math.prod(1 - h for h in harms)
        expected.append(-(y * math.log(p) + (1 - y) * math.log(1 - p)))
    got = success_loss(risks, torch.tensor(scores))
    torch.testing.assert_close(got, torch.tensor(expected), rtol=1e-3, atol=1e-4)


def test_the_loss_is_finite_where_failure_was_impossible():
    risks = torch.zeros(2, requires_grad=True)
    loss = success_loss(risks, torch.tensor([0.0, 1.0])).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(risks.grad).all()


@settings(max_examples=60)
@given(
    st.lists(HARMS, min_size=5, max_size=5),
    st.lists(st.booleans(), min_size=5, max_size=5),
    st.floats(0.01, 2),
)
def test_a_budget_takes_the_largest_set_it_can_pay(harms, candidates, budget):
    z = torch.tensor([[logit(h) for h in harms]])
    bits = within_budget(z, torch.tensor([candidates]), budget)[0].bool().tolist()
    cost = [-math.log1p(-h) for h in harms]
    at = [i for i in range(5) if candidates[i]]
    payable = [
        chosen
        for size in range(len(at) + 1)
        for chosen in itertools.combinations(at, size)
        if sum(cost[i] for i in chosen) <= budget * (1 - 1e-5)
    ]
    chosen = [i for i in range(5) if bits[i]]
    assert set(chosen) <= set(at)
    assert len(chosen) >= max(len(max(payable, key=len)), min(len(at), 1))
    assert len(chosen) <= 1 or sum(cost[i] for i in chosen) <= budget * (1 + 1e-5)


def test_harm_scales_out_of_range_are_refused():
    with pytest.raises(ValueError, match="sharpness must be positive and finite, got 0"):
        HarmScale(0, 0.1)
    with pytest.raises(ValueError, match=r"threshold must lie between 0 and 1, got 1\.0"):
        HarmScale(3.0, 1.0)


def _network() -> UnmaskTransformer:
    torch.manual_seed(0)
    return UnmaskTransformer(UnmaskTransformerConfig(width=8, initial_bias=0.0)).eval()


def _observation(rows: int = 3, length: int = 6) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 2, (rows, length)).astype(np.int8)
    mask[:, 0] = 1
    confidence = np.where(mask, rng.random((rows, length)), 1).astype(np.float32)
    return {
        "confidence": confidence, "mask": mask, "action_mask": mask,
        "progress": np.zeros((rows, 1), dtype=np.float32),
    }  # fmt: skip


def test_a_saved_success_model_takes_a_budget(tmp_path):
    scale = HarmScale(3.0, 0.05)
    save_policy(tmp_path / "p", _network(), harm=scale)
    observation = _observation()
    careful, bold = (load_policy(tmp_path / "p", budget=budget) for budget in (1e-6, 100.0))
    assert (careful.act(observation).sum(axis=1) == 1).all()
    assert (bold.act(observation) == observation["action_mask"]).all()
    assert bold.label == "policy (budget=100)"
    assert bold.parameters == {"decoding": "budget", "budget": 100.0}
    assert load_policy(tmp_path / "p").harm == scale


def test_budgets_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(ValueError, match="policy has no budget: it is no success model"):
        LearnedPolicy(_network(), budget=0.1)
    scale = HarmScale(3.0, 0.05)
    with pytest.raises(ValueError, match=r"budget must be positive and finite, such as 0\.02, got 0"):
        LearnedPolicy(_network(), budget=0, harm=scale)
    with pytest.raises(ValueError, match=r"takes no (temperature|beta|caution), got"):
        LearnedPolicy(_network(), budget=0.1, beta=2, harm=scale)
    save_policy(tmp_path / "p", _network(), harm=scale)
    damaged = (tmp_path / "p" / "policy.json").read_text().replace("0.05", "5")
    (tmp_path / "p" / "policy.json").write_text(damaged)
    with pytest.raises(ValueError, match=r"policy\.json: 'harm' must hold sharpness and threshold"):
        load_policy(tmp_path / "p")
