"""How good could decoding be? An agent that has seen the result of careful decoding, for comparison only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dllm_gym.envs.engine import Engine
from dllm_gym.strategies import make_strategy
from dllm_gym.strategies.base import InBlocks


class Oracle:
    """Reveals whatever the dLLM already writes as it will in the end.

    Every problem is first decoded carefully, one token per step by confidence; then again, and each step
    reveals all positions whose predicted token is that of the careful completion, or else the surest one. No
    policy that reads observations knows so much: what separates it from the oracle is what could still be
    learned. It is no strict bound: a token may differ and be as good.

    The forwards of the careful decoding are no part of ``nfe``; the label tells how many they were.

    Args:
        block_length: Of the careful decoding, one block after another; 0: none.

    Raises:
        ValueError: For a block length that is no whole number of at least 0.
    """

    name = "oracle"
    requires: tuple[str, ...] = ()

    def __init__(self, block_length: int = 8) -> None:
        careful: Any = make_strategy("confidence", k=1)
        self._careful = InBlocks(careful, block_length) if block_length else careful
        self.parameters: dict[str, Any] = {"block_length": block_length}
        self._engine: Engine | None = None
        self._wanted: dict[int, NDArray[np.int64]] = {}
        self._forwards: list[int] = []

    @property
    def label(self) -> str:
        """Name, and what the careful decoding took once there was one."""
        spent = f", {np.mean(self._forwards):.1f} forwards before" if self._forwards else ""
        return f"oracle (after {self._careful.label}{spent})"

    def prepare(self, engine: Engine, decoded: Callable[[Any], Iterable[Any]]) -> None:
        """Decodes the problems carefully.

        Args:
            engine: On which they will be decoded again.
            decoded: Gives the episodes (``dllm_gym.evaluation.decode.Episode``) of an agent on them.
        """
        self._engine = engine
        for episode in decoded(self._careful):
            self._wanted[episode.info["problem"]] = episode.tokens
            self._forwards.append(int(episode.info["nfe"]))

    def act(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.int8]:
        """Actions ``(B, L)``.

        Raises:
            ValueError: Where nobody called ``prepare``: it decodes for evaluations only.
        """
        if self._engine is None:
            raise ValueError("the oracle is for evaluate and compare: it must see every problem beforehand")
        nothing = np.full(self._engine.length, -1)
        wanted = np.stack([self._wanted.get(index, nothing) for index in self._engine.indices.tolist()])
        allowed, masked = observation["action_mask"] != 0, observation["mask"] != 0
        candidates = allowed & masked
        bits = candidates & (self._engine.predicted_tokens == wanted)
        surest = np.where(candidates, observation["confidence"], -1.0).argmax(axis=1)
        rows = np.arange(len(bits))
        bits[rows, surest] |= candidates[rows, surest] & ~bits.any(axis=1)
        action: NDArray[np.int8] = (bits | (allowed & ~masked)).astype(np.int8)  # what stands shall stand
        return action
