"""What an episode is worth, paid at its end: correctness priced by the number of steps used.

r is the task's score in [0, 1], n the steps used (or priced), L the completion length (the budget).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from itertools import product
from numbers import Real

from dllm_gym.envs.checks import LEAST_ALPHA, LEAST_TARGET, number_or_range

Reward = Callable[[float, float, int, float], float]  # (r, n, L, alpha) -> what the episode earns


def multiplicative(score: float, steps: float, length: int, alpha: float) -> float:
    """``r * ((L - n + 1) / L) ** alpha``: 1 for a right answer in one step, never 0 for a right one.

    Source: released code of arXiv 2512.09106.
    """
    return float(score * ((length - min(steps, length) + 1) / length) ** alpha)


def multiplicative_paper(score: float, steps: float, length: int, alpha: float) -> float:
    """``r * (1 - n / L) ** alpha``: for alpha > 0 it is 0 for any answer that takes all L steps.

    Source: text of arXiv 2512.09106.
    """
    return float(score * max(1.0 - steps / length, 0.0) ** alpha)


def additive(score: float, steps: float, length: int, alpha: float) -> float:
    """``r - alpha * n / L`` (ablation of arXiv 2512.09106): pays for speed even if the answer is wrong."""
    return float(score - alpha * steps / length)


def correctness(score: float, steps: float, length: int, alpha: float) -> float:
    """``r``: steps are free."""
    return float(score)


REWARDS: dict[str, Reward] = {
    "multiplicative": multiplicative,
    "multiplicative-paper": multiplicative_paper,
    "additive": additive,
    "correctness": correctness,
}


def find_reward(reward: str | Reward, length: int, alphas: Sequence[float]) -> tuple[str, Reward]:
    """The name of a reward and its function.

    Args:
        reward: A name in ``REWARDS``, or a function ``(score, steps, length, alpha) -> float``.
        length: L of the episodes; a function is tried on the ends of what they can bring.
        alphas: The smallest and the largest alpha of the episodes.

    Raises:
        ValueError: For an unknown name, and for a function that takes other arguments or gives no finite
            number.
    """
    if isinstance(reward, str) and reward in REWARDS:
        return reward, REWARDS[reward]
    if not callable(reward):
        known = ", ".join(REWARDS)
        raise ValueError(
            f"unknown reward {reward!r}; choose one of {known}, "
            "or give a function of score, steps, length and alpha"
        )
    name = getattr(reward, "__name__", type(reward).__name__)
    try:
        inspect.signature(reward).bind(1.0, 1.0, length, alphas[0])
    except TypeError as error:
        raise ValueError(f"reward {name} must take score, steps, length and alpha: {error}") from None
    for score, steps, alpha in product((0.0, 1.0), (1.0, float(length)), alphas):
        pay(name, reward, score, steps, length, alpha)
    return name, reward


def pay(name: str, reward: Reward, score: float, steps: float, length: int, alpha: float) -> float:
    """What an episode earns by a reward function.

    Raises:
        ValueError: If it gives no finite number.
    """
    paid: object = reward(score, steps, length, alpha)
    if not isinstance(paid, Real) or not math.isfinite(paid):
        seen = f"score {score:g}, steps {steps:g}, length {length}, alpha {alpha:g}"
        raise ValueError(f"reward {name} must give a finite number, got {paid!r} for {seen}")
    return float(paid)


class Prices:
    """What the steps of an episode cost; alpha and target_steps may change between episodes.

    Args:
        reward: As in ``UnmaskEnv``, like the arguments that follow.
        length: L.
        alpha: See there.
        target_steps: See there.

    Raises:
        ValueError: For what ``UnmaskEnv`` refuses; also if ``alpha`` or ``target_steps`` is set to it.
    """

    __slots__ = ("_alpha", "_function", "_length", "_reward", "_target_steps")  # and no misspelt ones

    def __init__(
        self,
        reward: str | Reward,
        length: int,
        alpha: float | Sequence[float],
        target_steps: float | Sequence[float],
    ) -> None:
        self._length = length
        self._alpha = number_or_range("alpha", alpha, LEAST_ALPHA)
        self._reward, self._function = find_reward(reward, length, self._alpha)
        self.target_steps = target_steps

    @property
    def reward(self) -> str:
        """The reward's name."""
        return self._reward

    @property
    def alpha(self) -> float | tuple[float, float]:
        """The step price: a number, or the range each episode draws its own from."""
        return _shown(self._alpha)

    @alpha.setter
    def alpha(self, value: float | Sequence[float]) -> None:
        ends = number_or_range("alpha", value, LEAST_ALPHA)
        find_reward(self._function, self._length, ends)  # which tries it on them
        self._alpha = ends

    @property
    def target_steps(self) -> float | tuple[float, float]:
        """The number of steps to aim at, likewise."""
        return _shown(self._target_steps)

    @target_steps.setter
    def target_steps(self, value: float | Sequence[float]) -> None:
        self._target_steps = number_or_range("target_steps", value, LEAST_TARGET)

    @property
    def are_drawn(self) -> bool:
        """Whether there is a range to draw from."""
        return any(low < high for low, high in (self._alpha, self._target_steps))

    def at(self, alpha: float, target: float) -> tuple[float, float]:
        """Alpha and target_steps at two numbers in [0, 1), log-uniformly between the ends of their ranges."""
        return _log_uniform(self._alpha, alpha), _log_uniform(self._target_steps, target)

    def pay(self, score: float, steps: int, alpha: float, target: float) -> float:
        """What an episode earns with alpha and target_steps its own."""
        priced = max(steps / target, target / steps)  # the default target, 1, leaves them as they are
        return pay(self.reward, self._function, score, priced, self._length, alpha)


def _log_uniform(ends: tuple[float, float], at: float) -> float:
    low, high = ends
    return low if low == high else low * (high / low) ** float(at)


def _shown(ends: tuple[float, float]) -> float | tuple[float, float]:
    return ends[0] if ends[0] == ends[1] else ends
