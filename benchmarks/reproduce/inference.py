"""Estimates with 95 % intervals over problems and training seeds; pure functions.

All intervals are percentile bootstraps on two levels: test problems are drawn with replacement, the same ones
for everything that is compared (paired), and training seeds are drawn with replacement, for each side on
its own. With three seeds that is a rough picture of the spread between trainings, and better than none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dllm_gym.evaluation import EvaluationResult
from dllm_gym.evaluation.statistics import envelope

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval and the two-sided bootstrap p-value against 0."""

    value: float
    low: float
    high: float
    p: float

    def points(self) -> str:
        """In percentage points, for tables."""
        return f"{100 * self.value:+.1f} ({100 * self.low:+.1f} to {100 * self.high:+.1f}, p {self._p()})"

    def plain(self) -> str:
        """As it is, for tables."""
        return f"{self.value:+.3f} ({self.low:+.3f} to {self.high:+.3f}, p {self._p()})"

    def _p(self) -> str:
        return f"{self.p:.3f}" if self.p >= 0.001 else "< 0.001"


def estimate(resampled: FloatArray) -> Estimate:
    """From the statistic on the data, first, and on the resamples, after it."""
    value, draws = float(resampled[0]), resampled[1:]
    low, high = np.quantile(draws, [0.025, 0.975])
    tail = min((draws <= 0).mean(), (draws >= 0).mean())
    return Estimate(value, float(low), float(high), float(min(1.0, 2 * max(tail, 1 / len(draws)))))


class Resampling:
    """The resamples of a set of problems, shared by everything that is compared on them."""

    def __init__(self, problems: int, resamples: int = 2000, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        drawn = self._rng.multinomial(problems, np.full(problems, 1 / problems), size=resamples) / problems
        self.weights = np.concatenate([np.full((1, problems), 1 / problems), drawn])  # (R + 1, N), data first

    def means(self, results: Sequence[EvaluationResult], column: Column) -> FloatArray:
        """``(R + 1,)`` means of a per-problem column, over problems and over seeds."""
        per_seed = self.weights @ np.stack([column(result) for result in results]).T  # (R + 1, S)
        return self._over_seeds(per_seed)

    def gaps(self, results: Sequence[EvaluationResult], others: Sequence[EvaluationResult]) -> FloatArray:
        """``(R + 1,)`` mean heights of ``results`` (seeds) over the hull of ``others`` at equal NFE."""
        correct, steps = self._curves(others)
        own_correct, own_steps = self._curves(results)
        hulls = [
            [a - envelope(s, c, at) for a, at in zip(own_a, own_s, strict=True)]
            for own_a, own_s, c, s in zip(own_correct, own_steps, correct, steps, strict=True)
        ]
        return self._over_seeds(np.array(hulls))

    def hull_at(self, others: Sequence[EvaluationResult], nfe: float) -> FloatArray:
        """``(R + 1,)`` heights of the concave hull at some NFE."""
        correct, steps = self._curves(others)
        return np.array([envelope(s, c, nfe) for c, s in zip(correct, steps, strict=True)])

    def _curves(self, results: Sequence[EvaluationResult]) -> tuple[FloatArray, FloatArray]:
        success = np.stack([r.records.success for r in results])
        nfe = np.stack([r.records.nfe for r in results])
        return self.weights @ success.T, self.weights @ nfe.T  # (R + 1, M) each

    def _over_seeds(self, per_seed: FloatArray) -> FloatArray:
        """Means over the seeds, which are drawn with replacement in every resample but the data itself."""
        rows, seeds = per_seed.shape
        chosen = self._rng.integers(seeds, size=(rows, seeds))
        chosen[0] = np.arange(seeds)
        means: FloatArray = np.take_along_axis(per_seed, chosen, axis=1).mean(axis=1)
        return means


Column = Callable[[EvaluationResult], FloatArray]


def success(result: EvaluationResult) -> FloatArray:
    """Whether the answer was right, per problem."""
    return result.records.success


def nfe(result: EvaluationResult) -> FloatArray:
    """Steps, per problem."""
    return result.records.nfe


def reward(result: EvaluationResult) -> FloatArray:
    """The multiplicative reward at alpha 1, per problem, whatever the agent was trained on."""
    return result.records.reward
