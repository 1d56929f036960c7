"""Rules that remember the steps before: what they keep of each row, and when it begins anew."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dllm_gym.strategies.base import BoolArray, IntArray, Strategy

Kept = dict[str, NDArray[Any]]


class Remembering(Strategy):
    """A rule that remembers earlier steps of a row, and where its block began.

    A row's memory begins anew with its episode: when ``reset`` says so, and whenever its ``progress`` is 0,
    so that a loop that knows nothing of ``reset`` does no harm. A new rule writes ``choose``, and ``fresh``
    if it remembers more than what is always there:

    - ``steps`` ``(B,)``, how often the row acted before in this episode;
    - ``block_steps`` ``(B,)``, the same since its block began;
    - ``block_size`` ``(B,)``, candidates the block began with.

    A block begins where there is a candidate that was none the step before.
    """

    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self._kept: Kept = {}
        self._candidates: BoolArray = np.zeros((0, 0), dtype=np.bool_)
        self._starting: set[int] = set()

    def reset(self, rows: Sequence[int] | IntArray) -> None:
        """Forgets ``rows``, which start an episode."""
        self._starting.update(int(row) for row in rows)

    def select(self, observation: Mapping[str, ArrayLike], candidates: BoolArray) -> BoolArray:
        """What ``choose`` says, with the memory of every row."""
        started = self._recall(observation, candidates)
        kept = self._kept
        kept["steps"] = np.where(started, 0, kept["steps"] + 1)
        begun = (candidates & ~self._candidates).any(axis=-1)
        kept["block_steps"] = np.where(begun, 0, kept["block_steps"] + 1)
        kept["block_size"] = np.where(begun, candidates.sum(axis=-1), kept["block_size"])
        self._candidates = candidates.copy()
        return self.choose(observation, candidates, kept)

    @abstractmethod
    def choose(self, observation: Mapping[str, ArrayLike], candidates: BoolArray, kept: Kept) -> BoolArray:
        """The rule itself, as ``Strategy.select``.

        Args:
            observation: As given to ``act``.
            candidates: ``(B, L)`` bool.
            kept: What is remembered; what is put there is found at the next step.
        """

    def fresh(self, rows: int, length: int) -> Kept:
        """What is remembered of B = ``rows`` rows before their first step: arrays ``(B, ...)``."""
        return {}

    def _recall(self, observation: Mapping[str, ArrayLike], candidates: BoolArray) -> BoolArray:
        """Makes the memory fit the rows that act; says which of them start an episode, ``(B,)``."""
        progress = np.asarray(self._lookup(observation, "progress")).reshape(-1)
        started: BoolArray = progress == 0
        if self._candidates.shape != candidates.shape:  # another batch
            started = np.ones(len(candidates), dtype=np.bool_)
        started[[row for row in self._starting if row < len(started)]] = True
        self._starting.clear()
        rows, length = candidates.shape
        counts = {name: np.zeros(rows, dtype=np.int64) for name in ("steps", "block_steps", "block_size")}
        fresh = counts | self.fresh(rows, length)
        if started.all():
            self._kept, self._candidates = fresh, np.zeros_like(candidates)
        else:
            for name, values in fresh.items():
                self._kept[name][started] = values[started]
            self._candidates[started] = False
        return started
