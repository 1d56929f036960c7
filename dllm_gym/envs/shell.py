"""What the single and the batched environment have in common around the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dllm_gym.envs.blocks import BlockLength
from dllm_gym.envs.engine import Engine
from dllm_gym.envs.rendering import render_ansi, render_rgb
from dllm_gym.envs.rows import BoolArray

METADATA = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}
_MAY_CHANGE = ("alpha", "target_steps", "block_length")


class Shell:
    """Around an engine, what may be set from outside and how it is shown.

    Attributes:
        engine: Does all the work.
    """

    engine: Engine

    @property
    def alpha(self) -> float | tuple[float, float]:
        """The step price of the episodes that start from now on: a number, or the range it is drawn from.

        Raises:
            ValueError: If set to anything that the constructor would refuse.
        """
        return self.engine.prices.alpha

    @alpha.setter
    def alpha(self, value: float | Sequence[float]) -> None:
        self.engine.prices.alpha = value

    @property
    def target_steps(self) -> float | tuple[float, float]:
        """Likewise, the number of steps to aim at."""
        return self.engine.prices.target_steps

    @target_steps.setter
    def target_steps(self, value: float | Sequence[float]) -> None:
        self.engine.prices.target_steps = value

    @property
    def block_length(self) -> int | tuple[int, ...]:
        """Likewise, the block length: a number, or those each episode draws its own from."""
        lengths: int | tuple[int, ...] = self.engine.blocks.lengths
        return lengths

    @block_length.setter
    def block_length(self, value: BlockLength) -> None:
        self.engine.blocks.lengths = value

    def _set(self, name: str, value: Any) -> None:
        if name not in _MAY_CHANGE:
            raise AttributeError(
                f"{name!r} cannot be set: but for {', '.join(_MAY_CHANGE[:-1])} and {_MAY_CHANGE[-1]}, "
                "everything is decided when an environment is made"
            )
        setattr(self, name, value)

    def _render(self, row: int, mode: str) -> Any:
        frame = self.engine.frame(row)
        return render_ansi(frame) if mode == "ansi" else render_rgb(frame)


def two_sided(selectable: BoolArray) -> BoolArray:
    """``(..., 2L)``: for each position whether 0 is allowed, which it is, and whether 1 is, ``(..., L)``."""
    pairs = np.stack([np.ones_like(selectable), selectable], axis=-1)  # (..., L, 2)
    return pairs.reshape(*selectable.shape[:-1], -1)


def noise_rng(seed: int) -> np.random.Generator:
    """What token noise is seeded from, in an episode with this seed."""
    # a stream of its own, so that token noise never shifts the sequence of problems
    return np.random.default_rng([seed, 1])
