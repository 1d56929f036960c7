"""Tickets: which row decodes which problem, so that every problem is decoded by a group of rows."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dllm_gym.tasks.base import ENDLESS


@lru_cache(maxsize=16)  # the rows of a group ask one soon after the other
def _problem_of(group: int, seed: int, num_problems: int) -> int:
    return int(np.random.default_rng([seed, group]).integers(num_problems))


class Tickets:
    """Hands out problems so that each is decoded by ``group_size`` rows, whichever are free.

    Ticket t decodes the problem of group t // group_size. Rows that finish early simply take the next
    ticket, so groups complete soon after they begin and no row ever waits.

    Args:
        group_size: Episodes per problem, those of experts included.
        num_rows: Number of rows that take tickets.
        num_problems: Of the task; ``None`` for a task without end.
        seed: Determines the problem of every group, and alpha, target_steps and block_length where drawn.
        num_experts: How many episodes of each group, its last ones, are an expert's.

    Attributes:
        current: ``(num_rows,)`` int64, the ticket each row is at.
        next: The next ticket to be handed out.
    """

    def __init__(
        self, group_size: int, num_rows: int, num_problems: int | None, seed: int, num_experts: int = 0
    ) -> None:
        self.group_size, self.num_experts = group_size, num_experts
        self.current = np.full(num_rows, -1)
        self.next = 0
        self._num_problems = num_problems or ENDLESS
        self._seed = seed

    def __call__(self, row: int) -> int:
        """Gives ``row`` the next ticket and returns its problem."""
        ticket, self.next = self.next, self.next + 1
        self.current[row] = ticket
        return _problem_of(ticket // self.group_size, self._seed, self._num_problems)

    def knobs(self, row: int) -> NDArray[np.float64]:
        """Three numbers in [0, 1), the same for all rows of a group: see ``Engine.draw_knobs``."""
        return np.random.default_rng([self._seed, int(self.current[row]) // self.group_size, 1]).random(3)

    def is_expert(self) -> NDArray[np.bool_]:
        """``(num_rows,)``: which rows are at an expert's episode."""
        expert: NDArray[np.bool_] = self.current % self.group_size >= self.group_size - self.num_experts
        return expert

    def begin_group(self) -> None:
        """Leaves the rest of the last group, as its other episodes were lost when all rows restart."""
        self.next = -(-self.next // self.group_size) * self.group_size
