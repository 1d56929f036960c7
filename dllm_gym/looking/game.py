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
        selectable: (L,) bool, positions that may be revealed now, or taken back.
        masked: (L,) bool, positions that are masked.
        confidence: (L,) float32, the dLLM's confidence in each.
        columns: Positions per line of the board.
        cursor: A position.
        marked: (L,) bool, what will be revealed where it is masked, and taken back where it is not.
        over: ``"reveal"`` once the player has decided, ``"quit"`` once there is nobody to decide.
    """

    selectable: BoolArray
    masked: BoolArray
    confidence: NDArray[np.float32]
    columns: int
    cursor: int
    marked: BoolArray
    over: str = ""

    @classmethod
    def begin(
        cls,
        selectable: BoolArray,
        confidence: NDArray[np.float32],
        columns: int,
        cursor: int = 0,
        masked: BoolArray | None = None,
    ) -> Turn:
        """A turn without marks, the cursor on the selectable position nearest to where it was.

        ``masked`` is needed where tokens may be taken back; else what is selectable is masked.
        """
        choices = np.flatnonzero(selectable)
        if len(choices):
            cursor = int(choices[np.abs(choices - cursor).argmin()])
        masked = selectable if masked is None else masked
        return cls(selectable, masked, confidence, columns, cursor, np.zeros_like(selectable))

    @property
    def action(self) -> BoolArray:
        """(L,) bool, what of the selectable positions shall be revealed after the step."""
        action: BoolArray = self.selectable & (self.marked == self.masked)
        return action

    def press(self, key: str) -> Turn:
        """The turn after a key; one that means nothing here changes nothing."""
        if key in _MOVES:
            return self._move(*_MOVES[key])
        if key == " ":
            here = np.arange(len(self.marked)) == self.cursor
            return replace(self, marked=(self.marked ^ here) & self.selectable)
        if key == "a":
            as_sure = self.confidence >= self.confidence[self.cursor]
            return replace(self, marked=self.marked | (as_sure & self.selectable & self.masked))
        if key in ("enter", "q"):
            return replace(self, over="reveal" if key == "enter" else "quit")
        return self

    def _move(self, down: int, right: int) -> Turn:
        row, column = divmod(self.cursor, self.columns)
        column += right
        target = (row + down) * self.columns + column
        inside = 0 <= column < self.columns and 0 <= target < len(self.marked)
        return replace(self, cursor=target) if inside else self
