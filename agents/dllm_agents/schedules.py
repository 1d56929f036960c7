"""How far a training is, and what its learning rate is there."""

from __future__ import annotations

import math
from collections.abc import Callable

from dllm_agents.config import TrainConfig


class Pace:
    """How much of a training is done: by steps or by the clock, whichever is further.

    Args:
        minutes: The deadline; ``None``: there is none, and steps alone count.
        elapsed: Gives the seconds so far.

    Attributes:
        begun: The share of the whole at which the main part began, after a warm start.
    """

    def __init__(self, minutes: float | None, elapsed: Callable[[], float]) -> None:
        self._seconds = math.inf if minutes is None else 60 * minutes
        self._elapsed = elapsed
        self.begun = 0.0

    def of_all(self, by_steps: float) -> float:
        """The share of the whole training, in [0, 1]; ``by_steps`` may exceed 1 after the last rollout."""
        return min(max(by_steps, self._elapsed() / self._seconds), 1.0)

    def of_main(self, by_steps: float) -> float:
        """The share of the main part, in [0, 1]."""
        return max(self.of_all(by_steps) - self.begun, 0.0) / max(1.0 - self.begun, 1e-9)


def learning_rate(config: TrainConfig, pace: Pace) -> Callable[[float], float]:
    """The learning rate as a function of the share of training that remains by steps."""
    first, last = config.learning_rate, config.final_learning_rate

    def rate(remaining: float) -> float:
        return rate_at(pace.of_main(1.0 - remaining), first, last, config.warmup, config.decay)

    return rate


def rate_at(done: float, first: float, last: float, warmup: float, decay: str) -> float:
    """A learning rate that rises to ``first`` and then falls to ``last``.

    Args:
        done: The share of the training that is done, in [0, 1].
        first: At its highest.
        last: At the end.
        warmup: The share in which it rises from 0.
        decay: How it falls, ``linear`` or ``cosine``.
    """
    if done < warmup:
        return first * done / warmup
    at = (done - warmup) / max(1.0 - warmup, 1e-9)
    fall = at if decay == "linear" else (1.0 - math.cos(math.pi * at)) / 2
    return first + (last - first) * fall
