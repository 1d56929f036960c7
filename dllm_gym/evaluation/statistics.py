"""Confidence intervals and the frontier of accuracy against steps; pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]  # (NaN, NaN) where there is too little to tell
FloatArray = NDArray[np.float64]

_Z95 = 1.959963984540054


def wilson_interval(successes: float, trials: int) -> Interval:
    """95 % interval of a proportion (Wilson 1927); sensible near 0 and 1 too."""
    p, z2 = successes / trials, _Z95**2 / trials
    center = (p + z2 / 2) / (1 + z2)
    half = _Z95 * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials)) / (1 + z2)
    # at 0 and 1 rounding could leave p just outside
    return max(0.0, min(center - half, p)), min(1.0, max(center + half, p))


def mean_interval(values: Sequence[float] | FloatArray) -> Interval:
    """95 % normal interval of a mean; NaN for a single value, which says nothing of how values vary."""
    array = np.asarray(values, dtype=float)
    if len(array) < 2:
        return math.nan, math.nan
    half = _Z95 * array.std(ddof=1) / math.sqrt(len(array))
    return float(array.mean() - half), float(array.mean() + half)


def paired_share_interval(first: FloatArray, second: FloatArray) -> Interval:
    """95 % interval of the difference of two shares, first - second, in the same cases.

    Agresti and Min's (2005, Statistics in Medicine 24:729): half a case is added to each of the four kinds of
    pairs, so that two that agree everywhere are not taken to agree for certain.

    Args:
        first: ``(N,)`` 0/1 per case.
        second: ``(N,)`` the same cases.
    """
    n = len(first) + 2
    difference = float(np.sum(first - second)) / n
    discordant = (float(np.sum(first != second)) + 1) / n
    half = _Z95 * math.sqrt((discordant - difference**2) / n)
    return max(-1.0, difference - half), min(1.0, difference + half)


def envelope(nfe: FloatArray, accuracy: FloatArray, at: float) -> float:
    """The best accuracy a mixture of some decoders reaches with ``at`` steps on average.

    This is the upper concave hull of the points: between two of its corners one can decode some
    problems with the one and the rest with the other. Left of all points it is the leftmost corner's
    accuracy, which favours the decoders; it never falls to the right.

    Args:
        nfe: ``(M,)`` mean steps.
        accuracy: ``(M,)`` accuracies.
        at: Mean steps to read it at.
    """
    corners = _hull(nfe, accuracy)
    return float(np.interp(at, [n for n, _ in corners], [a for _, a in corners]))


def envelope_steps(nfe: FloatArray, accuracy: FloatArray, at: float) -> float:
    """The fewest steps on average with which a mixture of some decoders reaches an accuracy.

    This reads ``envelope`` the other way round. Below all of it there are the leftmost corner's steps, which
    does not favour the decoders; above it, infinitely many.

    Args:
        nfe: ``(M,)`` mean steps.
        accuracy: ``(M,)`` accuracies.
        at: The accuracy to reach.
    """
    corners = _hull(nfe, accuracy)
    return float(np.interp(at, [a for _, a in corners], [n for n, _ in corners], right=math.inf))


def _hull(nfe: FloatArray, accuracy: FloatArray) -> list[tuple[float, float]]:
    """Corners of the upper concave hull, from left to right and upwards."""
    corners: list[tuple[float, float]] = []
    for point in sorted(zip(nfe.tolist(), accuracy.tolist(), strict=True)):
        if corners and point[1] <= corners[-1][1]:
            continue
        if corners and point[0] == corners[-1][0]:
            corners.pop()
        while len(corners) > 1 and _slope(corners[-2], point) >= _slope(corners[-2], corners[-1]):
            corners.pop()
        corners.append(point)
    return corners


def _slope(left: tuple[float, float], right: tuple[float, float]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])


def envelope_gap(
    correct: FloatArray,
    nfe: FloatArray,
    others_correct: FloatArray,
    others_nfe: FloatArray,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, Interval]:
    """How far a decoder's accuracy lies above the envelope of others at its own mean steps.

    The 95 % interval is a paired percentile bootstrap over problems: every resample recomputes all
    accuracies, all mean steps and the envelope. With a single problem every resample is that problem: then
    the interval is NaN.

    Args:
        correct: ``(N,)`` 0/1 per problem.
        nfe: ``(N,)`` steps per problem.
        others_correct: ``(M, N)`` the same problems decoded by M others.
        others_nfe: ``(M, N)``.
        resamples: Bootstrap resamples.
        seed: Of the bootstrap.

    Returns:
        The gap and its interval, as fractions.
    """
    n = len(correct)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=resamples) / n  # (R, N)
    weights = np.concatenate([np.full((1, n), 1 / n), weights])
    accuracies, steps = weights @ others_correct.T, weights @ others_nfe.T  # (R + 1, M)
    own_accuracy, own_steps = weights @ correct, weights @ nfe
    gaps = [
        a - envelope(s, o, at) for a, at, o, s in zip(own_accuracy, own_steps, accuracies, steps, strict=True)
    ]
    if n < 2:
        return float(gaps[0]), (math.nan, math.nan)
    low, high = np.quantile(gaps[1:], [0.025, 0.975])
    return float(gaps[0]), (float(low), float(high))


@dataclass(frozen=True)
class Reliability:
    """How often something is true in groups of cases, by a value that should tell it.

    Attributes:
        value: Mean value of each group.
        share: How often it was true there.
        interval: 95 % Wilson interval of the share, as if the cases were independent.
        count: Number of cases.
    """

    value: tuple[float, ...]
    share: tuple[float, ...]
    interval: tuple[Interval, ...]
    count: tuple[int, ...]

    @property
    def calibration_error(self) -> float:
        """If the value is a probability: its mean distance to the share (ECE, arXiv 1706.04599)."""
        distance = np.abs(np.subtract(self.value, self.share))
        return float(np.average(distance, weights=self.count))


def reliability(values: FloatArray, true: NDArray[np.bool_], group: NDArray[np.int64]) -> Reliability:
    """Summarises M > 0 cases group by group, in the order of the groups' numbers.

    Args:
        values: ``(M,)``.
        true: ``(M,)``.
        group: ``(M,)``, the group each case belongs to.
    """
    members = [group == number for number in np.unique(group)]
    return Reliability(
        value=tuple(float(values[inside].mean()) for inside in members),
        share=tuple(float(true[inside].mean()) for inside in members),
        interval=tuple(wilson_interval(float(true[inside].sum()), int(inside.sum())) for inside in members),
        count=tuple(int(inside.sum()) for inside in members),
    )


def separation(values: FloatArray, true: NDArray[np.bool_]) -> float:
    """Probability that a true case has a larger value than a false one, ties counted half.

    The area under the ROC curve: 0.5 says nothing, 1 tells them apart; NaN if all cases are alike.
    """
    high, low = values[true], values[~true]
    if not len(high) or not len(low):
        return math.nan
    return float((np.greater.outer(high, low) + 0.5 * np.equal.outer(high, low)).mean())
