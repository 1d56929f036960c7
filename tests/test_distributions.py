"""The masked Bernoulli and DPLS: exact likelihoods, masks that hold, fallbacks that work row by row."""

from __future__ import annotations

import math
from collections import Counter
from itertools import permutations

import hypothesis.extra.numpy as npst
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_agents.distributions import (
    adjust_logits,
    bernoulli_entropy,
    bernoulli_kl,
    bernoulli_log_prob,
    bernoulli_mode,
    dpls_log_prob,
    masked_logits,
    sample_bernoulli,
    sample_dpls,
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
@given(LOGITS, LOGITS, BITS)
def test_kl_equals_torch_summed_over_the_mask(logits, others, action_mask):
    p, q = (torch.distributions.Bernoulli(logits=b.double(), validate_args=False) for b in (logits, others))
    expected = (torch.distributions.kl_divergence(p, q) * action_mask).sum(-1)
    actual = bernoulli_kl(logits, others, action_mask).double()
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


@quick
@given(LOGITS, LOGITS, BITS, BITS)
def test_excluded_logits_change_nothing_and_get_no_gradient(logits, others, action_mask, actions):
    changed = torch.where(action_mask == 1, logits, others).requires_grad_()
    for function in (
        lambda b: bernoulli_log_prob(b, action_mask, actions),
        lambda b: bernoulli_entropy(b, action_mask),
        lambda b: bernoulli_kl(b, others, action_mask),
        lambda b: bernoulli_kl(others, b, action_mask),
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


# Test-time knobs --------------------------------------------------------------------------------------------

TEMPERATURES, BETAS, CAUTIONS = st.floats(0.05, 20), st.floats(0.01, 100), st.floats(-8, 8)


@quick
@given(LOGITS, TEMPERATURES, BETAS, CAUTIONS)
def test_adjusted_logits_have_the_scaled_probability(logits, temperature, beta, caution):
    adjusted = adjust_logits(logits, temperature, beta, caution=caution)
    expected = (beta / (1 + np.exp(caution - logits.double().numpy() / temperature))).clip(max=1)
    np.testing.assert_allclose(torch.sigmoid(adjusted.double()), expected, rtol=1e-4, atol=2e-6)


@quick
@given(TEMPERATURES, BETAS)
def test_adjusting_keeps_the_order_and_stays_finite(temperature, beta):
    magnitudes = torch.logspace(-4, 8, 200)
    adjusted = adjust_logits(torch.cat([-magnitudes.flip(0), magnitudes]), temperature, beta)
    assert torch.isfinite(adjusted).all()
    assert (adjusted.diff() >= -1e-5).all()


@quick
@given(LOGITS, TEMPERATURES)
def test_without_beta_adjusting_is_division(logits, temperature):
    """Not only the probabilities: DPLS reads differences of logits, however large they are."""
    assert torch.equal(adjust_logits(logits, 1.0, 1.0), logits)
    assert torch.equal(adjust_logits(logits, temperature), logits / temperature)


# Dynamic Plackett-Luce --------------------------------------------------------------------------------------


def sequential_probability(logits, candidates, order, stop_logit):
    """Pick by pick, from the definition (paper.md, section 5)."""
    rest, probability = list(candidates), 1.0
    for j, k in enumerate(order):
        weights = [math.exp(logits[i]) for i in rest] + ([math.exp(stop_logit)] if j else [])
        probability *= math.exp(logits[k]) / sum(weights)
        rest.remove(k)
    return (
        probability
        * math.exp(stop_logit)
        / sum(math.exp(b) for b in [stop_logit, *(logits[i] for i in rest)])
    )


def ordered_selections(candidates):
    return [order for m in range(1, len(candidates) + 1) for order in permutations(candidates, m)]


def as_ranks(orders, length):
    ranks = torch.zeros(len(orders), length, dtype=torch.int16)
    for row, order in enumerate(orders):
        for rank, k in enumerate(order, start=1):
            ranks[row, k] = rank
    return ranks


dpls_cases = st.tuples(
    st.lists(st.floats(-6, 6), min_size=4, max_size=4),
    st.lists(st.integers(0, 1), min_size=4, max_size=4).filter(any),
    st.floats(-3, 3),
)


@quick
@given(dpls_cases)
def test_dpls_is_the_sequential_draw_and_sums_to_one(case):
    logits, action_mask, stop_logit = case
    candidates = [k for k in range(4) if action_mask[k]]
    orders = ordered_selections(candidates)
    rows = torch.tensor(logits).expand(len(orders), 4)
    log_prob = dpls_log_prob(rows, torch.tensor(action_mask).expand_as(rows), as_ranks(orders, 4), stop_logit)
    expected = [sequential_probability(logits, candidates, order, stop_logit) for order in orders]
    np.testing.assert_allclose(log_prob.exp(), expected, rtol=1e-4, atol=1e-7)
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("stop_logit", [0.0, 1.5])
def test_dpls_draws_with_the_stated_probabilities(stop_logit):
    logits, candidates, draws = [0.5, 9.0, -1.0, 1.5], [0, 2, 3], 20_000
    torch.manual_seed(0)
    rows = torch.tensor(logits).expand(draws, 4)
    ranks = sample_dpls(rows, torch.tensor([1, 0, 1, 1]).expand_as(rows), stop_logit)
    assert ranks.dtype == torch.int16
    orders = ordered_selections(candidates)
    found = Counter(map(tuple, ranks.tolist()))
    expected = [draws * sequential_probability(logits, candidates, order, stop_logit) for order in orders]
    counts = [found.pop(tuple(row)) for row in as_ranks(orders, 4).tolist()]
    assert not found
    chi_square = sum((count - e) ** 2 / e for count, e in zip(counts, expected, strict=True))
    assert chi_square < 36.1  # the 99.9 % quantile for 15 - 1 degrees of freedom


@quick
@given(
    npst.arrays(np.float32, SHAPE, elements=st.floats(-1e4, 1e4, width=32)).map(torch.from_numpy),
    BITS,
    npst.arrays(np.float32, (3, 6), elements=st.floats(0, 1, exclude_max=True, width=32)).map(
        torch.from_numpy
    ),
)
def test_dpls_picks_candidates_in_a_gapless_order_and_at_least_one(logits, action_mask, uniforms):
    ranks = sample_dpls(logits, action_mask, uniforms=uniforms)
    assert (ranks[action_mask == 0] == 0).all()
    for row, mask in zip(ranks.tolist(), action_mask, strict=True):
        picks = sorted(rank for rank in row if rank)
        assert picks == list(range(1, len(picks) + 1))
        assert bool(picks) == bool(mask.any())
    assert torch.equal(ranks, sample_dpls(logits, action_mask, uniforms=uniforms))
    assert torch.isfinite(dpls_log_prob(logits, action_mask, ranks)).all()


@quick
@given(LOGITS, LOGITS, BITS, st.integers(0, 2**32), st.floats(-3, 3))
def test_dpls_gradients_are_those_of_a_plain_loop(logits, others, action_mask, seed, stop_logit):
    torch.manual_seed(seed)
    ranks = sample_dpls(logits, action_mask, stop_logit)
    changed = torch.where(action_mask == 1, logits, others).requires_grad_()
    log_prob = dpls_log_prob(changed, action_mask, ranks, stop_logit)
    plain = logits.double().requires_grad_()
    stop = torch.tensor([stop_logit], dtype=torch.float64)
    expected = []
    for b, mask, row in zip(plain, action_mask, ranks.tolist(), strict=True):
        rest = [k for k in range(len(row)) if mask[k]]
        order = sorted((k for k in rest if row[k]), key=lambda k: row[k])
        total = b.sum() * 0
        for j, k in enumerate(order):
            total = total + b[k] - torch.cat([b[rest], stop] if j else [b[rest]]).logsumexp(0)
            rest.remove(k)
        expected.append(total + stop[0] - torch.cat([b[rest], stop]).logsumexp(0) if order else total)
    expected = torch.stack(expected)
    torch.testing.assert_close(log_prob.double(), expected, rtol=1e-4, atol=1e-4)
    log_prob.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(changed.grad.double(), plain.grad, rtol=1e-3, atol=1e-4)
    assert (changed.grad[action_mask == 0] == 0).all()


def test_dpls_rows_without_candidates():
    logits = torch.randn(2, 4, requires_grad=True)
    action_mask = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 0]])
    ranks = sample_dpls(logits, action_mask)
    assert ranks[0].tolist() == [0] * 4
    log_prob = dpls_log_prob(logits, action_mask, ranks)
    assert log_prob[0] == 0
    log_prob.sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[0] == 0).all()


def test_dpls_gradient_survives_saturation():
    logits = torch.tensor([[-60.0, 60.0]], requires_grad=True)
    log_prob = dpls_log_prob(logits, torch.ones(1, 2), torch.tensor([[1, 0]]))
    assert log_prob.item() == pytest.approx(-180)
    log_prob.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[1.0, -2.0]]))


def test_a_low_stop_logit_takes_everything_and_a_high_one_a_single_position():
    logits, action_mask = torch.randn(50, 6), torch.ones(50, 6)
    assert ((sample_dpls(logits, action_mask, -50.0) > 0).sum(-1) == 6).all()
    assert ((sample_dpls(logits, action_mask, 50.0) > 0).sum(-1) == 1).all()
