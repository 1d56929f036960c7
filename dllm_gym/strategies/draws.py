"""What rules draw: every row of a batch from a generator of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dllm_gym.strategies.base import IntArray, check_integer


class Draws:
    """A random generator for each row of a batch.

    Args:
        seed: Row r draws from a generator seeded with ``[seed, r]`` until ``seed()`` gives it another.

    Raises:
        ValueError: For a seed that is no integer >= 0.
    """

    def __init__(self, seed: int) -> None:
        self._seed = check_integer("seed", seed, minimum=0)
        self._generators: dict[int, np.random.Generator] = {}

    def seed(self, rows: Sequence[int] | IntArray, seeds: Sequence[int] | IntArray) -> None:
        """Starts new random generators.

        Args:
            rows: ``(N,)`` batch rows, integers >= 0; a single environment is row 0.
            seeds: ``(N,)`` integers >= 0, one for each row.

        Raises:
            ValueError: For different lengths or other values.
        """
        if len(rows) != len(seeds):
            raise ValueError(f"seed() needs one seed per row, got {len(rows)} rows and {len(seeds)} seeds")
        for row, seed in zip(rows, seeds, strict=True):
            generator = np.random.default_rng(check_integer("seed", seed, minimum=0))
            self._generators[check_integer("row", row, minimum=0)] = generator

    def uniform(self, rows: IntArray, count: int, *shape: int) -> NDArray[np.float64]:
        """``(count, *shape)`` numbers in [0, 1), drawn for ``rows`` ``(R,)``; 0 for the others."""
        drawn = np.zeros((count, *shape))
        for row in rows.tolist():
            drawn[row] = self._generator(row).random(shape)
        return drawn

    def _generator(self, row: int) -> np.random.Generator:
        if row not in self._generators:
            self._generators[row] = np.random.default_rng([self._seed, row])
        return self._generators[row]
