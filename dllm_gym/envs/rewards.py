"""What an episode is worth, paid at its end: correctness priced by the number of steps used.

r is the task's score in [0, 1], n the steps used (or priced), L the completion length (the budget).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from itertools import product
from numbers import Real

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
