"""Statistics over the runs of a study; pure functions.

Definitions are those of "Deep reinforcement learning at the edge of the statistical precipice" (arXiv
2108.13264) and its package rliable, which is archived: runs of all tasks are pooled, and resampled task by
task. Resampling and trimming are scipy's. AUP is that of d3LLM (arXiv 2601.07568).

Runs are given task by task: ``(..., N)`` arrays, a run along the last axis; the number of runs may differ
between tasks. The axes before it are kept: points of a curve, thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

try:
    from scipy.stats import bootstrap, trim_mean
except ImportError as error:
    raise ImportError("a study's statistics need scipy: pip install 'dllm-gym[study]'") from error

RESAMPLES = 2000
FloatArray = NDArray[np.float64]
Statistic = Callable[[Sequence[FloatArray]], FloatArray]

_AUP_DROP = 5.0  # points of accuracy below the slowest setting; what is worse does not count
_AUP_PENALTY = 3.0


@dataclass(frozen=True)
class Estimate:
    """A statistic and its 95 % interval, ``(...)`` each; no interval where a task has a single run."""

    value: FloatArray
    low: FloatArray | None
    high: FloatArray | None


def estimate(tasks: Sequence[FloatArray], statistic: Statistic) -> Estimate:
    """A statistic with the interval of a stratified percentile bootstrap: every task's runs are drawn anew.

    Args:
        tasks: ``(..., N)`` for each task.
        statistic: Takes arrays like these, with further axes before the last, and removes that one.
    """
    value = np.asarray(statistic(tasks))
    if min(runs.shape[-1] for runs in tasks) < 2:
        return Estimate(value, None, None)
    interval = bootstrap(
        tuple(tasks),
        lambda *drawn, axis: statistic(drawn),  # the axis is the last one
        n_resamples=RESAMPLES,
        vectorized=True,
        paired=False,
        axis=-1,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(value, np.asarray(interval.low), np.asarray(interval.high))


def interquartile_mean(tasks: Sequence[FloatArray]) -> FloatArray:
    """Mean of the middle half of all runs of all tasks: less noisy than the median, deaf to outliers."""
    together = np.concatenate(tasks, axis=-1)
    mean: FloatArray = trim_mean(together, 0.25, axis=-1)
    return mean


def share(tasks: Sequence[FloatArray]) -> FloatArray:
    """Mean over tasks of the mean over their runs; of 0 and 1 a share of runs."""
    mean: FloatArray = np.mean([np.mean(runs, axis=-1) for runs in tasks], axis=0)
    return mean


def performance_profile(tasks: Sequence[FloatArray], thresholds: FloatArray) -> Estimate:
    """Share of runs that score above each threshold, ``(T,)``: the whole distribution of scores in one curve.

    Args:
        tasks: ``(N,)`` scores for each task.
        thresholds: ``(T,)``.
    """
    above = [(runs > thresholds[:, None]).astype(float) for runs in tasks]
    return estimate(above, share)


def probability_of_improvement(ours: Sequence[FloatArray], theirs: Sequence[FloatArray]) -> Estimate:
    """How probable it is that a run of ours scores higher than one of theirs on a task drawn at random.

    Ties count half (Mann and Whitney's U, mean over tasks); the interval resamples both sides.

    Args:
        ours: ``(N,)`` scores for each task.
        theirs: ``(M,)`` scores for each of the same tasks.
    """

    def statistic(both: Sequence[FloatArray]) -> FloatArray:
        pairs = zip(both[: len(ours)], both[len(ours) :], strict=True)
        mean: FloatArray = np.mean([_wins(a, b) for a, b in pairs], axis=0)
        return mean

    return estimate([*ours, *theirs], statistic)


def _wins(ours: FloatArray, theirs: FloatArray) -> FloatArray:
    difference = np.sign(ours[..., :, None] - theirs[..., None, :])
    wins: FloatArray = ((difference + 1) / 2).mean(axis=(-2, -1))
    return wins


def aup(points: Sequence[tuple[float, float]], best: float) -> float:
    """Accuracy under parallelism: the area under accuracy over tokens per forward, of one decoder's settings.

    The slowest setting counts with all the area left of it. A setting whose accuracy falls more than 5 points
    short of the slowest one's is dropped; others weigh less, exponentially, the further they stay behind the
    best of all.

    Args:
        points: Tokens per forward and accuracy in [0, 1] of every setting, at least one.
        best: The highest accuracy of any decoder in the comparison, in [0, 1].

    Returns:
        The area, with accuracies in percent as in d3LLM's tables.
    """
    ordered = sorted((speed, 100 * accuracy) for speed, accuracy in points)
    kept = [(speed, y) for speed, y in ordered if y >= ordered[0][1] - _AUP_DROP]
    weighted = [(speed, y * _weight(y, 100 * best)) for speed, y in kept]
    area = kept[0][0] * kept[0][1]
    for (left, low), (right, high) in pairwise(weighted):
        area += (right - left) * (low + high) / 2
    return area


def _weight(accuracy: float, best: float) -> float:
    return min(math.exp(-_AUP_PENALTY * (1 - accuracy / best)), 1.0) if best else 1.0
