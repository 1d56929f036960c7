"""Rules that decide when the answer is known, and then reveal the whole rest at once."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dllm_gym.strategies.base import (
    BoolArray,
    FloatArray,
    Strategy,
    check_integer,
    check_number,
    first_block,
    top_k,
)

_SMALLEST = float(np.finfo(np.float32).tiny)  # a probability of 0 was rounded
_SCHEDULES = ("linear", "cosine", "exponential")


class EarlyCommit(Strategy):
    """Reveals k candidates a step until the dLLM prefers its tokens clearly enough, and then all.

    How clearly is told by the difference of the two largest logits, which is that of the logarithms of the
    two largest probabilities, as the mean over all masked positions. What it must reach depends on the
    progress: of L / k steps, k positions each, as many are over as were needed for what is revealed. Equality
    passes.

    Several windows are the rule's own affair: in an environment with ``block_length`` it reveals the rest of
    one block. For the rest of the text, let the environment have no blocks and give the rule its
    ``block_length``.

    Args:
        k: Positions to reveal per step before, an integer >= 1.
        block_length: In which blocks these are taken from left to right, an integer >= 1; ``None``: none.
        **parameters: Those of the threshold.

    Raises:
        ValueError: For numbers that are none of these.
    """

    requires: tuple[str, ...] = ("top_k",)

    def __init__(self, k: int, block_length: int | None, **parameters: Any) -> None:
        parameters["k"] = check_integer("k", k, minimum=1)
        if block_length is not None:
            parameters["block_length"] = check_integer("block_length", block_length, minimum=1)
        super().__init__(**parameters)

    def select(self, observation: Mapping[str, ArrayLike], candidates: BoolArray) -> BoolArray:
        """Everything, or the k that come first."""
        masked = self.read(observation, "mask") != 0  # (B, L)
        left = masked.sum(axis=-1)
        top = self.read(observation, "top_k", axes=1, dtype=np.float64)  # (B, L, k)
        if top.shape[-1] < 2:
            raise ValueError(
                f"strategy {self.name!r} reads the two largest probabilities; make the environment with a "
                f"top_k of at least 2, got {top.shape[-1]}"
            )
        logs = np.log(np.maximum(top[..., :2], _SMALLEST))
        gap = np.where(masked, logs[..., 0] - logs[..., 1], 0.0).sum(axis=-1) / np.maximum(left, 1)  # (B,)
        length, k = masked.shape[-1], self.parameters["k"]
        known: BoolArray = gap >= self.least_gap((length - left) / k, length / k)
        if "block_length" in self.parameters:
            inside = candidates & first_block(candidates, self.parameters["block_length"])
        else:
            inside = candidates
        few = top_k(self.cost(observation), inside, k) & inside
        return np.where(known[:, None], candidates, few)

    @abstractmethod
    def least_gap(self, step: FloatArray, steps: float) -> FloatArray:
        """What the difference must reach at each row's ``step`` ``(B,)``, 0 to ``steps`` - 1, in nats."""

    @abstractmethod
    def cost(self, observation: Mapping[str, ArrayLike]) -> FloatArray:
        """What revealing each position costs as long as nothing is known, ``(B, L)``."""


class Prophet(EarlyCommit):
    """Takes the k most confident, and all as soon as two logits differ by ``threshold`` on average.

    Prophet (arXiv 2508.19982): once a third of the steps is over, this one included (0.33), two thirds of
    ``threshold`` are enough, after two thirds (0.67) one third; by default 7.5, 5 and 2.5. Prophet looks at a
    few positions of the answer, whose place it fixes by writing "The answer is" there beforehand; here
    nothing is written beforehand, and all masked positions count.

    Args:
        threshold: A number > 0, in nats.
        k: As in ``EarlyCommit``.
        block_length: See there.

    Raises:
        ValueError: As ``EarlyCommit``, and for any other threshold.
    """

    name = "prophet"
    paper = "Prophet, arXiv 2508.19982"

    def __init__(self, threshold: float = 7.5, k: int = 1, block_length: int | None = None) -> None:
        super().__init__(k, block_length, threshold=check_number("threshold", threshold, 0, exclusive=True))

    def least_gap(self, step: FloatArray, steps: float) -> FloatArray:
        """In three stairs."""
        progress = (step + 1) / steps
        thirds = 3 - (progress >= 0.33).astype(np.int64) - (progress >= 0.67)
        threshold: float = self.parameters["threshold"]
        return threshold / 3 * thirds

    def cost(self, observation: Mapping[str, ArrayLike]) -> FloatArray:
        """-c."""
        return -self.read(observation, "confidence")


class SchED(EarlyCommit):
    """Takes the k of lowest entropy, and all as soon as two logits differ by tau(p) on average.

    SchED (arXiv 2512.02892): tau falls from ``high`` to ``low`` with the progress p, which is 0 at the first
    step and 1 at the last. ``linear``:
    ``high + (low - high) p``; ``cosine``: ``low + (high - low) (1 + cos(pi p)) / 2``; ``exponential``:
    ``low + (high - low) exp(-rate p)``. The released code has further conditions: by default it also waits
    for a step in which no best token of a masked position has changed (``max_change_ratio``), which the paper
    does not ask for; a smallest progress, more such steps in a row and quantiles instead of the mean are off.

    Args:
        high: A number >= 0, in nats.
        low: A number in [0, high].
        schedule: One of the three.
        rate: That of ``exponential``, a number > 0; ``None`` is 4. The paper tries 2, 4, 8 and 16.
        k: As in ``EarlyCommit``.
        block_length: See there.

    Raises:
        ValueError: As ``EarlyCommit``, for numbers out of range, an unknown schedule, or a rate for another.
    """

    name = "sched"
    paper = "SchED, arXiv 2512.02892"
    requires = ("top_k", "entropy")

    def __init__(
        self,
        high: float = 7.5,
        low: float = 2.5,
        schedule: str = "cosine",
        rate: float | None = None,
        k: int = 1,
        block_length: int | None = None,
    ) -> None:
        high = check_number("high", high, 0)
        if schedule not in _SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(_SCHEDULES)}, got {schedule!r}")
        own = {"high": high, "low": check_number("low", low, 0, high), "schedule": schedule}
        if schedule == "exponential":
            own["rate"] = check_number("rate", 4.0 if rate is None else rate, 0, exclusive=True)
        elif rate is not None:
            raise ValueError(f"rate {rate!r} is for the schedule exponential, not for {schedule}")
        super().__init__(k, block_length, **own)

    def least_gap(self, step: FloatArray, steps: float) -> FloatArray:
        """By the schedule."""
        progress = np.clip(step / (steps - 1), 0, 1) if steps > 1 else np.ones_like(step)
        high, low, schedule = (self.parameters[name] for name in ("high", "low", "schedule"))
        if schedule == "linear":
            share = 1 - progress
        elif schedule == "cosine":
            share = (1 + np.cos(math.pi * progress)) / 2
        else:
            share = np.exp(-self.parameters["rate"] * progress)
        gap: FloatArray = low + (high - low) * share
        return gap

    def cost(self, observation: Mapping[str, ArrayLike]) -> FloatArray:
        """H."""
        return self.read(observation, "entropy")
