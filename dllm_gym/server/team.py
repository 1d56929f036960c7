"""Agents that share the rows of one engine: each request has its own options and nobody else's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dllm_gym.envs.checks import as_bits
from dllm_gym.envs.rows import BoolArray, IntArray
from dllm_gym.evaluation.agents import Agent


class Team:
    """An agent for a batch whose rows belong to several agents.

    Every one of them sees a batch of the same size, in which only its own rows have anything to decide.

    Args:
        num_rows: Of the batch.

    Attributes:
        broken: What went wrong in the last ``act``, by row: an agent that raises breaks its own rows only.
    """

    def __init__(self, num_rows: int) -> None:
        self._of: list[Agent | None] = [None] * num_rows
        self.broken: dict[int, Exception] = {}

    def give(self, rows: IntArray, agents: Sequence[Agent | None]) -> None:
        """From now on ``rows`` ``(R,)`` belong to these agents, or to nobody."""
        for row, agent in zip(rows.tolist(), agents, strict=True):
            self._of[row] = agent

    def seed(self, rows: IntArray, seeds: Sequence[int]) -> None:
        """See ``Agent``."""
        for row, seed in zip(rows.tolist(), seeds, strict=True):
            agent: Any = self._of[row]
            if hasattr(agent, "seed"):
                agent.seed([row], [seed])

    def reset(self, rows: IntArray) -> None:
        """See ``Agent``."""
        for row in rows.tolist():
            agent: Any = self._of[row]
            if hasattr(agent, "reset"):
                agent.reset([row])

    def act(self, observation: Mapping[str, NDArray[Any]]) -> BoolArray:
        """Actions ``(B, L)``; nothing is revealed in rows that are nobody's or broken."""
        self.broken = {}
        candidates = observation["action_mask"]
        actions = np.zeros(candidates.shape, dtype=bool)
        for agent in {id(agent): agent for agent in self._of if agent is not None}.values():
            rows = [row for row, own in enumerate(self._of) if own is agent]
            shown = np.zeros_like(candidates)
            shown[rows] = candidates[rows]
            try:
                chosen = as_bits(agent.act({**observation, "action_mask": shown}), candidates.shape)
            except Exception as error:  # an agent may be anybody's
                self.broken |= dict.fromkeys(rows, error)
            else:
                actions[rows] = chosen[rows]
        return actions
