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
        done = pace.of_main(1.0 - remaining)
        if done < config.warmup:
            return first * done / config.warmup
        at = (done - config.warmup) / (1.0 - config.warmup)
        fall = at if config.decay == "linear" else (1.0 - math.cos(math.pi * at)) / 2
        return first + (last - first) * fall

    return rate
