"""What an episode is worth, paid at its end: correctness priced by the number of steps used.

r is the task's score in [0, 1], n the steps used (or priced), L the completion length (the budget).
"""

from __future__ import annotations

from collections.abc import Callable


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


REWARDS: dict[str, Callable[[float, float, int, float], float]] = {
    "multiplicative": multiplicative,
    "multiplicative-paper": multiplicative_paper,
    "additive": additive,
    "correctness": correctness,
}
