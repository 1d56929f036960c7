"""The masked Bernoulli: exact likelihoods, masks that hold, fallbacks that work row by row."""

from __future__ import annotations

import math

import hypothesis.extra.numpy as npst
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_agents.distributions import (
    bernoulli_entropy,
    bernoulli_log_prob,
    bernoulli_mode,
    masked_logits,
    sample_bernoulli,
    with_argmax_fallback,
)

SHAPE = (3, 5)
LOGITS = npst.arrays(np.float32, SHAPE, elements=st.floats(-12, 12, width=32)).map(torch.from_numpy)
BITS = npst.arrays(np.int8, SHAPE, elements=st.integers(0, 1)).map(torch.from_numpy)
quick = settings(deadline=None, max_examples=50)


@quick
@given(LOGITS, BITS, BITS)
def test_log_prob_and_entropy_equal_torch_summed_over_the_mask(logits, action_mask, actions):
    reference = torch.distributions.Bernoulli(logits=logits.double(), validate_args=False)
    log_prob = (reference.log_prob(actions.double()) * action_mask).sum(-1)
    entropy = (reference.entropy() * action_mask).sum(-1)
    torch.testing.assert_close(
        bernoulli_log_prob(logits, action_mask, actions).double(), log_prob, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(bernoulli_entropy(logits, action_mask).double(), entropy, rtol=1e-4, atol=1e-5)


@quick
@given(LOGITS, LOGITS, BITS, BITS)
def test_excluded_logits_change_nothing_and_get_no_gradient(logits, others, action_mask, actions):
    changed = torch.where(action_mask == 1, logits, others).requires_grad_()
    for function in (
        lambda b: bernoulli_log_prob(b, action_mask, actions),
        lambda b: bernoulli_entropy(b, action_mask),
    ):
        changed.grad = None
        result = function(changed)
        torch.testing.assert_close(result, function(logits), rtol=0, atol=0)
        result.sum().backward()
        assert (changed.grad[action_mask == 0] == 0).all()
        assert torch.isfinite(changed.grad).all()


@quick
@given(LOGITS, BITS)
def test_mode_and_fallback_reveal_something_in_every_row_with_candidates(logits, action_mask):
    empty = torch.zeros(SHAPE, dtype=torch.int8)
    for actions in (bernoulli_mode(logits, action_mask), with_argmax_fallback(empty, logits, action_mask)):
        assert actions.dtype == torch.int8
        assert ((actions.sum(-1) > 0) == action_mask.any(-1)).all()
        assert (actions <= action_mask).all()


def test_gradient_survives_saturation():
    """A clamped sigmoid would return 0 here (paper.md, traps 11)."""
    logits = torch.tensor([[60.0, -60.0]], requires_grad=True)
    bernoulli_log_prob(logits, torch.ones(1, 2), torch.tensor([[0, 1]])).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[-1.0, 1.0]]))


def test_rows_without_candidates():
    logits = torch.randn(2, 4, requires_grad=True)
    nothing = torch.zeros(2, 4, dtype=torch.int8)
    log_prob, entropy = bernoulli_log_prob(logits, nothing, nothing), bernoulli_entropy(logits, nothing)
    assert log_prob.tolist() == entropy.tolist() == [0.0, 0.0]
    (log_prob + entropy).sum().backward()
    assert (logits.grad == 0).all()
    assert sample_bernoulli(logits, nothing).sum() == 0
    assert bernoulli_mode(logits, nothing).sum() == 0


def test_masked_logits_are_finite():
    logits = masked_logits(torch.zeros(1, 2), torch.tensor([[1, 0]]))
    assert logits.tolist() == [[0.0, -1e8]]


def test_samples_follow_the_probabilities_and_the_mask():
    logits = torch.tensor([[-1.0, 0.0, 2.0, 5.0]]).expand(20_000, 4)
    action_mask = torch.tensor([[1, 1, 1, 0]]).expand(20_000, 4)
    samples = sample_bernoulli(logits, action_mask, generator=torch.Generator().manual_seed(0))
    assert samples.dtype == torch.int8
    expected = torch.sigmoid(logits[0]) * action_mask[0]
    torch.testing.assert_close(samples.float().mean(0), expected, atol=0.015, rtol=0)


def test_samples_repeat_with_a_generator_or_uniforms():
    logits, action_mask = torch.zeros(2, 30), torch.ones(2, 30)
    first, second = (
        sample_bernoulli(logits, action_mask, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(first, second)
    uniforms = torch.tensor([[0.0, 0.49, 0.5, 0.99]])
    assert sample_bernoulli(torch.zeros(1, 4), torch.ones(1, 4), uniforms=uniforms).tolist() == [[1, 1, 0, 0]]


def test_mode_is_a_strict_threshold_at_one_half():
    logits = torch.tensor([[1.0, 0.0, -1.0], [-3.0, -1.0, -2.0], [-3.0, -1.0, -2.0], [1.0, 2.0, 3.0]])
    action_mask = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 0, 1], [0, 0, 0]])
    assert bernoulli_mode(logits, action_mask).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]


def test_fallback_leaves_other_rows_alone():
    logits = torch.tensor([[0.0, 3.0], [0.0, 3.0], [3.0, 0.0]])
    action_mask = torch.tensor([[1, 1], [1, 1], [0, 1]])
    actions = torch.tensor([[1, 0], [0, 0], [1, 0]], dtype=torch.int8)
    # In the last row the only bit is outside the mask and counts for nothing.
    assert with_argmax_fallback(actions, logits, action_mask).tolist() == [[1, 0], [0, 1], [1, 1]]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_actions_and_masks_of_any_dtype(dtype):
    logits, actions = torch.tensor([[0.3, -0.7]]), torch.tensor([[1, 0]])
    expected = math.log(1 / (1 + math.exp(-0.3))) + math.log(1 / (1 + math.exp(-0.7)))
    log_prob = bernoulli_log_prob(logits, torch.ones(1, 2).to(dtype), actions.to(dtype))
    assert log_prob.item() == pytest.approx(expected, rel=1e-5)
