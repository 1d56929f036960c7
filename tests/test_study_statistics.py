"""Statistics of studies, against rliable 1.2.0 (with scipy 1.17.1 and pandas 2) and by their properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_agents.studies.statistics import (
    aup,
    estimate,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
)

# Five runs of three tasks, as rliable takes them: (runs, tasks)
X = np.array(
    [[0.652, 0.475, 0.771], [0.703, 0.614, 0.823], [0.887, 0.848, 0.689], [0.539, 0.374, 0.548],
     [0.818, 0.904, 0.91]]
)  # fmt: skip
Y = np.array(
    [[0.304, 0.412, 0.646], [0.775, 0.557, 0.735], [0.752, 0.609, 0.586], [0.316, 0.435, 0.854],
     [0.511, 0.474, 0.57]]
)  # fmt: skip

scores = st.lists(st.floats(0, 1), min_size=1, max_size=6).map(np.array)
tasks = st.lists(scores, min_size=1, max_size=3)


def test_interquartile_means_are_rliables():
    """``get_interval_estimates`` with ``aggregate_iqm``, 20,000 resamples."""
    for runs, value, low, high in ((X, 0.718444, 0.6192, 0.8158), (Y, 0.569222, 0.4903, 0.6537)):
        found = estimate(list(runs.T), interquartile_mean)
        assert found.value == pytest.approx(value, abs=1e-6)
        assert found.low == pytest.approx(low, abs=0.01)
        assert found.high == pytest.approx(high, abs=0.01)


def test_the_probability_of_improvement_is_rliables():
    found = probability_of_improvement(list(X.T), list(Y.T))
    assert found.value == pytest.approx(0.7066667, abs=1e-6)
    assert found.low == pytest.approx(0.493, abs=0.02)
    assert found.high == pytest.approx(0.907, abs=0.02)


def test_performance_profiles_are_rliables():
    found = performance_profile(list(X.T), np.array([0.2, 0.4, 0.6, 0.8]))
    np.testing.assert_allclose(found.value, [1, 14 / 15, 11 / 15, 0.4])
    np.testing.assert_allclose(found.low, [1, 0.8, 0.53, 0.13], atol=0.08)
    np.testing.assert_allclose(found.high, [1, 1, 0.93, 0.67], atol=0.08)


def test_tasks_are_resampled_on_their_own():
    """Two tasks that differ by far, runs that hardly do: drawn from one bag, the interval would be wide."""
    runs = [np.array([0.10, 0.11, 0.12]), np.array([0.90, 0.91, 0.92])]
    found = estimate(runs, interquartile_mean)
    assert 0.49 < found.low <= found.value <= found.high < 0.53


def test_every_point_of_a_curve_is_estimated_as_if_alone():
    curve = [np.stack([X[:, 0], Y[:, 0]]), np.stack([X[:, 1], Y[:, 1]])]  # (points, runs) per task
    found = estimate(curve, interquartile_mean)
    for at in range(2):
        alone = estimate([runs[at] for runs in curve], interquartile_mean)
        assert (found.value[at], found.low[at], found.high[at]) == (alone.value, alone.low, alone.high)


def test_a_single_run_has_no_interval():
    found = estimate([np.array([0.5]), np.array([0.1, 0.2])], interquartile_mean)
    assert found.value == pytest.approx(0.8 / 3)
    assert (found.low, found.high) == (None, None)


@given(tasks)
def test_interquartile_means_lie_among_the_runs_and_ignore_an_outlier(runs):
    mean = interquartile_mean(runs)
    everything = np.concatenate(runs)
    assert everything.min() - 1e-12 <= mean <= everything.max() + 1e-12
    if len(everything) >= 4:
        spoilt = np.append(everything, -1e9)
        assert interquartile_mean([spoilt]) >= -1


@given(st.lists(st.tuples(scores, scores), min_size=1, max_size=3))
def test_one_side_wins_what_the_other_loses(pairs):
    ours, theirs = zip(*pairs, strict=True)
    ahead, behind = (probability_of_improvement(*p).value for p in ((ours, theirs), (theirs, ours)))
    assert ahead + behind == pytest.approx(1)
    assert probability_of_improvement(ours, ours).value == pytest.approx(0.5)


# Accuracy under parallelism ---------------------------------------------------------------------------------


def test_aup_of_one_setting_is_speed_times_accuracy():
    assert aup([(2.77, 0.747)], best=0.9) == pytest.approx(2.77 * 74.7)


def test_aup_by_hand():
    """W(.70) = exp(-3 (1 - .70 / .80)) = .6873; the third point lies more than 5 points below the first."""
    points = [(4.0, 0.70), (2.0, 0.72), (8.0, 0.66)]
    weight = {0.72: 0.740818, 0.70: 0.687289}
    area = 2.0 * 72 + (4.0 - 2.0) / 2 * (72 * weight[0.72] + 70 * weight[0.70])
    assert aup(points, best=0.80) == pytest.approx(area, rel=1e-5)


@given(st.lists(st.tuples(st.floats(0.5, 48), st.floats(0, 1)), min_size=1, max_size=6), st.floats(0, 1))
def test_aup_is_an_area_under_weighted_accuracy(points, rest):
    best = max(accuracy for _, accuracy in points)
    best += rest * (1 - best)
    ordered = sorted(points)
    kept = [p for p in ordered if 100 * p[1] >= 100 * ordered[0][1] - 5]
    speed = np.array([p[0] for p in kept])
    accuracy = 100 * np.array([p[1] for p in kept])
    weight = np.minimum(np.exp(-3 * (1 - accuracy / (100 * best))), 1) if best else np.ones(len(kept))
    area = speed[0] * accuracy[0] + np.trapezoid(weight * accuracy, speed)
    assert aup(points, best) == pytest.approx(area)
    assert aup(points, best) <= 100 * best * max(speed) + 1e-9
