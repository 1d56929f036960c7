"""The steps of a batch of environments while episodes are under way, and where in them each episode lies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Episode:
    """A finished episode: its row, its first and last step, its reward and score, and whether an expert's."""

    row: int
    first: int
    last: int
    reward: float
    score: float
    expert: bool = False

    def __len__(self) -> int:
        """The number of its steps."""
        return self.last - self.first + 1


class History:
    """Steps ``(N, ...)`` of N rows, from the first that is still wanted on.

    Args:
        num_rows: N.
    """

    def __init__(self, num_rows: int) -> None:
        self._steps: list[dict[str, NDArray[Any]]] = []
        self._forgotten = 0  # steps dropped from the front
        self._started = np.zeros(num_rows, dtype=np.int64)  # step at which each row's episode began

    def clear(self) -> None:
        """Forgets everything, for when the environment was reset."""
        self._steps, self._forgotten = [], 0
        self._started[:] = 0

    def add(self, step: dict[str, NDArray[Any]]) -> None:
        """Appends one step of all rows."""
        self._steps.append(step)

    def finish(self, row: int, reward: float, score: float, expert: bool = False) -> Episode:
        """The episode of a row that ended with the last step added."""
        last = self._forgotten + len(self._steps) - 1
        episode = Episode(row, int(self._started[row]), last, reward, score, expert)
        self._started[row] = last + 1
        return episode

    def gather(self, episodes: Sequence[Episode]) -> dict[str, NDArray[Any]]:
        """The steps of episodes, one episode after another: ``(S, ...)`` by key."""
        if not self._steps:
            return {}
        ranges = [np.arange(episode.first, episode.last + 1) for episode in episodes]
        steps = np.concatenate([np.zeros(0, dtype=np.int64), *ranges]) - self._forgotten  # (S,)
        rows = [np.full(len(episode), episode.row) for episode in episodes]
        which = np.concatenate([np.zeros(0, dtype=np.int64), *rows])  # (S,)
        stacked = {key: np.stack([step[key] for step in self._steps]) for key in self._steps[0]}
        return {key: array[steps, which] for key, array in stacked.items()}

    def forget(self, wanted: Iterable[Episode] = ()) -> None:
        """Drops the steps that belong neither to ``wanted`` episodes nor to unfinished ones."""
        keep_from = min([int(self._started.min()), *(episode.first for episode in wanted)])
        del self._steps[: keep_from - self._forgotten]
        self._forgotten = keep_from

    def state(self) -> dict[str, Any]:
        """The steps that are there, as arrays and plain values."""
        keys = self._steps[0] if self._steps else {}
        stacked = {key: np.stack([step[key] for step in self._steps]) for key in keys}
        return {"steps": stacked, "forgotten": self._forgotten, "started": self._started.copy()}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where ``state`` was taken."""
        stacked = state["steps"]
        count = len(next(iter(stacked.values()), ()))
        self._steps = [{key: array[at] for key, array in stacked.items()} for at in range(count)]
        self._forgotten, self._started = state["forgotten"], state["started"].copy()
