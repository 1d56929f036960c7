"""Deciding by hand what a step reveals: the cursor, the marks and what the keys do. No terminal, no dLLM."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]

HELP = "arrows move   space mark   a mark all as sure as here   enter reveal   q quit"
_MOVES = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}


@dataclass(frozen=True, eq=False)
class Turn:
    """One step of the game, as far as the player has thought it out.

    Attributes:
        selectable: (L,) bool, positions that may be revealed now.
        confidence: (L,) float32, the dLLM's confidence in each.
        columns: Positions per line of the board.
        cursor: A position.
        marked: (L,) bool, what will be revealed.
        over: ``"reveal"`` once the player has decided, ``"quit"`` once there is nobody to decide.
    """

    selectable: BoolArray
    confidence: NDArray[np.float32]
    columns: int
    cursor: int
    marked: BoolArray
    over: str = ""

    @classmethod
    def begin(
        cls, selectable: BoolArray, confidence: NDArray[np.float32], columns: int, cursor: int = 0
    ) -> Turn:
        """A turn without marks, the cursor on the selectable position nearest to where it was."""
        choices = np.flatnonzero(selectable)
        if len(choices):
            cursor = int(choices[np.abs(choices - cursor).argmin()])
        return cls(selectable, confidence, columns, cursor, np.zeros_like(selectable))

    def press(self, key: str) -> Turn:
        """The turn after a key; one that means nothing here changes nothing."""
        if key in _MOVES:
            return self._move(*_MOVES[key])
        if key == " ":
            here = np.arange(len(self.marked)) == self.cursor
            return replace(self, marked=(self.marked ^ here) & self.selectable)
        if key == "a":
            as_sure = self.confidence >= self.confidence[self.cursor]
            return replace(self, marked=self.marked | (as_sure & self.selectable))
        if key in ("enter", "q"):
            return replace(self, over="reveal" if key == "enter" else "quit")
        return self

    def _move(self, down: int, right: int) -> Turn:
        row, column = divmod(self.cursor, self.columns)
        column += right
        target = (row + down) * self.columns + column
        inside = 0 <= column < self.columns and 0 <= target < len(self.marked)
        return replace(self, cursor=target) if inside else self
