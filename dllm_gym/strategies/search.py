"""Rules that look ahead: they try several steps with the dLLM and take the one that leaves it surest.

Every path they look at is a forward of its own and counted in ``nfe``; the one they take is not computed
again. What is common to all rules and the letters are explained in ``topk``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from dllm_gym.strategies.base import (
    BoolArray,
    FloatArray,
    IntArray,
    Strategy,
    best,
    check_integer,
    check_number,
    or_else,
    rank,
    top_k,
)
from dllm_gym.strategies.draws import Draws

if TYPE_CHECKING:
    from dllm_gym.envs.engine import Engine


class LookAhead(Strategy):
    """A rule that tries k paths per step; a new one writes ``paths``, and ``choose`` if it is not the surest.

    A path's uncertainty is the mean entropy over all positions that are masked after it, 0 if there is none.
    The rule needs the engine of the environment it plays in: ``evaluate``, ``compare`` and ``generate`` give
    it by ``attach``, and so must a loop of yours: ``rule.attach(env.unwrapped.engine)``.
    """

    requires = ("entropy",)

    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self._engine: Engine | None = None

    def attach(self, engine: Engine) -> None:
        """Where it plays from now on; what it sees must be the observations of this engine.

        Raises:
            ValueError: If its dLLM remembers earlier steps, as ``Engine.check_look_ahead``.
        """
        engine.check_look_ahead()
        self._engine = engine

    @abstractmethod
    def paths(self, observation: Mapping[str, ArrayLike], candidates: BoolArray) -> Sequence[BoolArray]:
        """The steps to try, ``(B, L)`` each, arguments as in ``select``."""

    def choose(self, uncertainty: FloatArray) -> IntArray:
        """The path to take ``(B,)``, of their uncertainties ``(k, B)``: here the first of the surest."""
        surest: IntArray = uncertainty.argmin(axis=0)
        return surest

    def select(self, observation: Mapping[str, ArrayLike], candidates: BoolArray) -> BoolArray:
        """The path taken.

        Raises:
            ValueError: Without an engine, or for observations that are not of all its rows.
        """
        engine = self._engine
        if engine is None:
            raise ValueError(
                f"strategy {self.name!r} looks ahead with the dLLM: use evaluate, compare or generate, "
                "or call its attach(env.unwrapped.engine) first"
            )
        if len(candidates) != engine.num_rows:
            raise ValueError(
                f"strategy {self.name!r} must see all {engine.num_rows} rows of its engine, "
                f"got {len(candidates)}"
            )
        paths = np.stack(self.paths(observation, candidates)) & candidates  # (k, B, L)
        rows = np.flatnonzero(candidates.any(axis=-1) & ~engine.ended)
        standing = engine.canvas.selectable() & ~engine.canvas.masked
        uncertainty = np.zeros(paths.shape[:2])
        for path, own in zip(paths, uncertainty, strict=True):
            seen = engine.look_ahead(rows, (path | standing)[rows])
            masked = seen["mask"] != 0
            own[:] = (seen["entropy"] * masked).sum(axis=-1) / np.maximum(masked.sum(axis=-1), 1)
        taken: BoolArray = paths[self.choose(uncertainty), np.arange(len(candidates))]
        return taken


class LoPA(LookAhead):
    """Tries what is sure alone, and with each of the next k - 1 positions; takes the surest of these k paths.

    LoPA (arXiv 2512.16229). Sure are all candidates with c > ``threshold`` (strictly), or else the most
    confident one; the next are the most confident of the others. Fewer paths are tried where there are
    fewer others.

    Args:
        k: Paths, an integer >= 1; the paper takes 2 to 4.
        threshold: A number in [0, 1].

    Raises:
        ValueError: For parameters out of range.
    """

    name = "lopa"
    paper = "LoPA, arXiv 2512.16229"

    def __init__(self, k: int = 3, threshold: float = 0.9) -> None:
        super().__init__(
            k=check_integer("k", k, minimum=1), threshold=check_number("threshold", threshold, 0, 1)
        )

    def paths(self, observation: Mapping[str, ArrayLike], candidates: BoolArray) -> Sequence[BoolArray]:
        """What is sure, and that with one further position each."""
        confidence = self.read(observation, "confidence")  # (B, L)
        sure = confidence > np.float32(self.parameters["threshold"])
        anchor = or_else(sure, candidates, best(confidence, candidates))
        others = candidates & ~anchor
        order = rank(-confidence, others)[:, : self.parameters["k"] - 1]
        further = np.arange(candidates.shape[-1])[None, :] == order.T[..., None]  # (k - 1, B, L)
        return [anchor, *(anchor | (further & others))]


class LookUM(LookAhead):
    """Draws k sets of positions, looks where each leads, and draws one of them, the surer the likelier.

    Lookahead unmasking (arXiv 2511.05563), by its abstract: paths are drawn from pools of sets of positions,
    a verifier measures their uncertainty, and importance sampling selects, with two or three paths. Constants
    and what follows are ours: a set are ``size`` of the ``pool`` most confident candidates, drawn one after
    another in proportion to c; a path with uncertainty u is taken in proportion to exp(-u / ``temperature``),
    sets that were drawn twice counting twice; ``temperature=0`` takes the surest.

    Args:
        k: Paths, an integer >= 1.
        size: Positions per step, an integer >= 1.
        pool: An integer >= ``size``; ``None`` is twice ``size``.
        temperature: A number >= 0.
        seed: As in ``Random``; it is no part of the rule.

    Raises:
        ValueError: For parameters out of range.
    """

    name = "lookum"
    paper = "LookUM, arXiv 2511.05563"

    def __init__(
        self, k: int = 3, size: int = 2, pool: int | None = None, temperature: float = 0.1, *, seed: int = 0
    ) -> None:
        size = check_integer("size", size, minimum=1)
        super().__init__(
            k=check_integer("k", k, minimum=1),
            size=size,
            pool=check_integer("pool", 2 * size if pool is None else pool, minimum=size),
            temperature=check_number("temperature", temperature, 0),
        )
        self._draws = Draws(seed)
        self._rows: IntArray = np.zeros(0, dtype=np.int64)

    def seed(self, rows: Sequence[int] | IntArray, seeds: Sequence[int] | IntArray) -> None:
        """Starts new random generators, as ``Draws.seed``."""
        self._draws.seed(rows, seeds)

    def paths(self, observation: Mapping[str, ArrayLike], candidates: BoolArray) -> Sequence[BoolArray]:
        """Sets, drawn by the smallest of exponential variables with c as their rates."""
        confidence = self.read(observation, "confidence", dtype=np.float64)  # (B, L)
        pool = top_k(-confidence, candidates, self.parameters["pool"])
        self._rows = np.flatnonzero(candidates.any(axis=-1))
        drawn = self._draws.uniform(self._rows, len(candidates), self.parameters["k"], candidates.shape[-1])
        cost = -np.log1p(-drawn) / np.maximum(confidence, 1e-12)[:, None]  # (B, k, L)
        return [
            top_k(cost[:, path], pool & candidates, self.parameters["size"])
            for path in range(self.parameters["k"])
        ]

    def choose(self, uncertainty: FloatArray) -> IntArray:
        """Drawn: the path whose Gumbel variable is the largest."""
        temperature = self.parameters["temperature"]
        if not temperature:
            return super().choose(uncertainty)
        drawn = self._draws.uniform(self._rows, uncertainty.shape[1], len(uncertainty))  # (B, k)
        gumbel = -np.log(-np.log(np.maximum(drawn, 1e-300)))
        drawn_path: IntArray = (gumbel - uncertainty.T / temperature).argmax(axis=-1)
        return drawn_path
