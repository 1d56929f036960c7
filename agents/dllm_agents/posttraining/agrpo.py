"""AGRPO: the likelihood of the true steps, of which some are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from dllm_agents.config import check_whole
from dllm_agents.posttraining.method import Method
from dllm_agents.posttraining.rollouts import Rollouts
from dllm_agents.posttraining.scoring import Scoring

_LEAST = 1e-8  # entropy that every step has, so that none is impossible


@dataclass(frozen=True, kw_only=True)
class AGRPO(Method):
    """AGRPO (ICML 2026; probablyabot/agrpo, read; the constants are those of its ``train.yaml``).

    An episode's objective is the mean over its steps of PPO's clipped term, summed over the tokens that
    the step revealed, given the canvas as it was before. Of these steps ``samples`` are drawn with
    replacement, each with a probability proportional to the entropy of what it revealed, and weighted by
    the inverse. Steps behind the last one that revealed anything but an end token are left out. The
    authors' entropies are of the distribution at the sampling temperature, ours at temperature 1; that
    changes which steps are drawn, not what is estimated. Their rollouts also cut the distribution (top-p
    0.99, top-k 150), ours do not.

    Attributes:
        samples: Steps drawn per episode.
    """

    name: ClassVar[str] = "agrpo"

    samples: int = 24
    group_size: int = 8
    temperature: float = 0.6
    iterations: int = 1
    baseline: str = "mean"
    clip_range: float = 0.2
    kl_coef: float = 0.0
    reference_sync: int | None = None
    learning_rate: float = 5e-6
    final_rate: float = 0.0
    warmup: float = 0.01
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("samples", self.samples, 1)

    def scoring(self, rollouts: Rollouts, rng: np.random.Generator) -> Scoring:
        """A line for each drawn step, with one canvas."""
        count, length = rollouts.reveal_step.shape
        steps, importance = draw_steps(rollouts, low_discrepancy(count, self.samples, rng))
        episodes = np.repeat(np.arange(count), self.samples)
        at = steps.reshape(-1, 1)  # (N S, 1)
        order = rollouts.reveal_step[episodes]  # (N S, L)
        scored = (order == at).astype(np.float32)
        prompt = np.zeros((len(episodes), rollouts.sequences.shape[1] - length), dtype=bool)
        hidden = np.concatenate([prompt, (order >= at) | (order == 0)], axis=1)
        weights = scored * (importance.reshape(-1, 1) / len(episodes))
        return Scoring(
            episodes, hidden[:, None], scored[:, None], weights.astype(np.float32), self.temperature
        )


def low_discrepancy(count: int, samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Numbers ``(count, samples)`` in [0, 1), one in each of as many equal intervals, in random order.

    Source: arXiv 2409.02908, appendix G.2.
    """
    size = count * samples
    drawn: NDArray[np.float64] = (rng.permutation(size) + rng.random(size)) / size
    return drawn.reshape(count, samples)


def draw_steps(
    rollouts: Rollouts, uniforms: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Steps of episodes, more often those that revealed what was uncertain, and their importance weights.

    Args:
        rollouts: N episodes.
        uniforms: ``(N, S)`` in [0, 1).

    Returns:
        Steps ``(N, S)``, from 1, and weights ``(N, S)``: 1 / (number of steps) divided by the probability.
    """
    order = rollouts.reveal_step
    most = max(int(order.max()), 1)
    last = np.where(rollouts.is_end, 0, order).max(axis=1)  # (N,), 0 if nothing but end tokens was written
    last = np.where(last == 0, order.max(axis=1), last)
    entropies = np.zeros((len(order), most))
    for step in range(1, most + 1):
        of_step = order == step
        entropies[:, step - 1] = np.where(of_step, rollouts.entropy, 0.0).sum(axis=1) + _LEAST
        entropies[~of_step.any(axis=1), step - 1] = 0.0  # it revealed nothing
    nothing = last == 0  # in no step: it is drawn from one that has nothing to score
    last[nothing], entropies[nothing, 0] = 1, _LEAST
    counted = (np.arange(1, most + 1) <= last[:, None]) & (entropies > 0)
    shares = np.where(counted, entropies, 0.0)
    shares /= shares.sum(axis=1, keepdims=True)
    cumulative = shares.cumsum(axis=1)
    cumulative /= cumulative[:, -1:]  # rounding must not leave anything above it
    drawn = (uniforms[:, :, None] >= cumulative[:, None]).sum(axis=2)  # (N, S)
    importance = 1 / (counted.sum(axis=1, keepdims=True) * np.take_along_axis(shares, drawn, axis=1))
    return drawn + 1, importance
