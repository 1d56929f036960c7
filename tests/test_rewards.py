"""The rewards against their formulas, and what a learner relies on."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_gym.envs.rewards import REWARDS, additive, correctness, multiplicative, multiplicative_paper

ALPHAS = [0, 0.5, 1, 2]
every_reward = pytest.mark.parametrize("reward", REWARDS.values(), ids=REWARDS.keys())
every_alpha = pytest.mark.parametrize("alpha", ALPHAS)


def test_names():
    assert list(REWARDS) == ["multiplicative", "multiplicative-paper", "additive", "correctness"]


@every_alpha
@pytest.mark.parametrize("score", [0.0, 0.25, 1.0])
@pytest.mark.parametrize(("steps", "length"), [(1, 1), (1, 8), (5, 8), (8, 8), (1, 256), (256, 256)])
def test_formulas(score, steps, length, alpha):
    assert multiplicative(score, steps, length, alpha) == pytest.approx(
        score * ((length - steps + 1) / length) ** alpha
    )
    assert multiplicative_paper(score, steps, length, alpha) == pytest.approx(
        score * (1 - steps / length) ** alpha
    )
    assert additive(score, steps, length, alpha) == pytest.approx(score - alpha * steps / length)
    assert correctness(score, steps, length, alpha) == score


@every_reward
@given(
    score=st.sampled_from([0, 1, 0.3, np.float32(0.3), np.float64(1), np.bool_(True)]),
    steps=st.one_of(st.integers(1, 600), st.integers(1, 600).map(np.int64), st.floats(1, 600)),
    length=st.integers(1, 300),
    alpha=st.floats(0, 4),
)
def test_a_finite_python_float_even_beyond_the_budget(reward, score, steps, length, alpha):
    value = reward(score, steps, length, alpha)
    assert type(value) is float
    assert math.isfinite(value)


@every_reward
@every_alpha
def test_never_better_for_more_steps(reward, alpha):
    values = [reward(1.0, steps, 32, alpha) for steps in range(1, 33)]
    assert values == sorted(values, reverse=True)
    if alpha > 0 and reward is not correctness:
        assert len(set(values)) == 32


@every_reward
def test_alpha_zero_is_pure_correctness(reward):
    for steps in (1, 7, 16):
        assert reward(0.75, steps, 16, 0) == 0.75
        assert reward(0.0, steps, 16, 0) == 0.0


@every_alpha
@pytest.mark.parametrize("length", [1, 48, 256])
def test_multiplicative_puts_any_correct_answer_above_any_wrong_one(alpha, length):
    assert multiplicative(1.0, 1, length, alpha) == 1.0
    slowest = multiplicative(1.0, length, length, alpha)
    assert slowest == pytest.approx(length**-alpha)
    assert slowest > multiplicative(0.0, 1, length, alpha) == 0.0


@pytest.mark.parametrize("alpha", [0.3, 1, 10])
def test_the_papers_form_pays_nothing_for_the_last_step(alpha):
    assert multiplicative_paper(1.0, 8, 8, alpha) == multiplicative_paper(1.0, 9, 8, alpha) == 0.0
    assert multiplicative_paper(1.0, 1, 8, alpha) == pytest.approx((7 / 8) ** alpha)


def test_additive_may_put_a_wrong_fast_answer_first():
    # why multiplicative is the default
    assert additive(0.0, 1, 32, 1.5) > additive(1.0, 32, 32, 1.5)
