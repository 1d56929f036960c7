"""What a prediction can say besides which token: a table of statistics, and the memory that some need.

A statistic is one row of ``STATISTICS``. It is computed only if it is observed, and of what a dLLM says only
what the observed ones need is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dllm_gym.backends.base import Prediction
from dllm_gym.envs.rows import BoolArray, IntArray, PerRow

Tensors = Mapping[str, Tensor]

# What the logarithms of a divergence see of an impossible token; that of KLASS's released code.
_IMPOSSIBLE = 1e-12
_LARGEST = float(np.finfo(np.float32).max)  # Gymnasium's checker warns of infinite bounds


class Sizes(NamedTuple):
    """What the shapes and bounds of statistics depend on.

    Attributes:
        length: L, number of positions.
        vocabulary: V.
        mask_token_id: The token that a dLLM never writes.
        top_k: k of ``top_k``.
        hidden_width: H of ``hidden``.
        max_steps: The budget of steps, where it may be more than L.
    """

    length: int
    vocabulary: int
    mask_token_id: int
    top_k: int = 8
    hidden_width: int = 0
    max_steps: int = 0


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """One thing that an observation can show of predictions.

    Attributes:
        name: Its key in the observation.
        space: Shape, dtype and bounds for one row; the first axis is of positions.
        looks: What is shown where a position is hidden: as if it were revealed and certain.
        measure: From what there is now and what was remembered of the step before, by name and
            ``(R, L, ...)`` each, to its values. Now there are ``tokens`` and ``confidence`` besides what it
            ``needs``.
        needs: What is asked of the dLLM; names out of ``dllm_gym.backends.base.STATISTICS``.
        remembers: What it has to know of the step before, by name: ``(L, ...)``, what one row begins with.
        of_revealed: Whether it is shown at revealed positions, whatever ``revealed_confidence`` says.
        of_pairs: Whether its second axis is of positions, too; then both must be shown.
    """

    name: str
    space: Callable[[Sizes], spaces.Box]
    looks: Callable[[Sizes], ArrayLike]
    measure: Callable[[Tensors, Tensors], Tensor]
    needs: tuple[str, ...] = ()
    remembers: Mapping[str, Callable[[Sizes], Tensor]] = field(default_factory=dict)
    of_revealed: bool = False
    of_pairs: bool = False


def _box(low: float, high: float, *shape: int, dtype: Any = np.float32) -> spaces.Box:
    return spaces.Box(low, high, shape, dtype)


def _asked(name: str) -> dict[str, Any]:
    """A statistic that is the dLLM's own."""
    return {"name": name, "needs": (name,), "measure": lambda now, before: now[name]}


def _divergence(now: Tensors, before: Tensors) -> Tensor:
    p, q = now["probabilities"], before["probabilities"]
    return (p * ((p + _IMPOSSIBLE).log() - (q + _IMPOSSIBLE).log())).sum(-1).clamp(min=0.0)


def _persistence(now: Tensors, before: Tensors) -> Tensor:
    return torch.where(now["best"] == before["best"], before["persistence"] + 1, 0.0)


_TABLE = (
    Statistic(
        name="confidence",
        space=lambda sizes: _box(0.0, 1.0, sizes.length),
        looks=lambda sizes: 1.0,
        measure=lambda now, before: now["confidence"],
    ),
    Statistic(
        **_asked("entropy"),
        space=lambda sizes: _box(0.0, math.log(sizes.vocabulary) + 1e-3, sizes.length),
        looks=lambda sizes: 0.0,
    ),
    Statistic(
        **_asked("margin"),
        space=lambda sizes: _box(0.0, 1.0, sizes.length),
        looks=lambda sizes: 1.0,
    ),
    Statistic(
        **_asked("top_k"),
        space=lambda sizes: _box(0.0, 1.0, sizes.length, sizes.top_k),
        looks=lambda sizes: np.eye(1, sizes.top_k)[0],
    ),
    Statistic(
        **_asked("hidden"),
        space=lambda sizes: _box(-_LARGEST, _LARGEST, sizes.length, sizes.hidden_width),
        looks=lambda sizes: 0.0,
    ),
    Statistic(
        name="predicted",
        space=lambda sizes: _box(0, sizes.vocabulary - 1, sizes.length, dtype=np.int64),
        looks=lambda sizes: sizes.mask_token_id,
        measure=lambda now, before: now["tokens"],
        of_revealed=True,
    ),
    Statistic(
        name="predicted_confidence",
        space=lambda sizes: _box(0.0, 1.0, sizes.length),
        looks=lambda sizes: 1.0,
        measure=lambda now, before: now["confidence"],
        of_revealed=True,
    ),
    Statistic(
        **_asked("written"),
        space=lambda sizes: _box(0.0, 1.0, sizes.length),
        looks=lambda sizes: 1.0,
        of_revealed=True,
    ),
    Statistic(
        **_asked("quality"),
        space=lambda sizes: _box(0.0, 1.0, sizes.length),
        looks=lambda sizes: 1.0,
        of_revealed=True,
    ),
    Statistic(
        name="divergence",
        space=lambda sizes: _box(0.0, 0.1 - math.log(_IMPOSSIBLE), sizes.length),
        looks=lambda sizes: 0.0,
        measure=_divergence,
        needs=("probabilities",),
        remembers={"probabilities": lambda sizes: torch.zeros(sizes.length, sizes.vocabulary)},
    ),
    Statistic(
        name="persistence",
        space=lambda sizes: _box(0.0, max(sizes.length, sizes.max_steps), sizes.length),
        looks=lambda sizes: sizes.length,
        measure=_persistence,
        needs=("best",),
        remembers={
            "best": lambda sizes: torch.full((sizes.length,), -1),
            "persistence": lambda sizes: torch.zeros(sizes.length),
        },
    ),
    Statistic(
        **_asked("attention"),
        space=lambda sizes: _box(0.0, 1.0, sizes.length, sizes.length),
        looks=lambda sizes: 0.0,
        of_revealed=True,
        of_pairs=True,
    ),
)  # fmt: skip
STATISTICS = {statistic.name: statistic for statistic in _TABLE}


class Statistics(PerRow):
    """What agents may see of the predictions of N rows; begins with nothing predicted.

    Args:
        num_rows: N.
        sizes: Of everything.
        names: The statistics that are observed besides ``confidence``.
        device: Where the dLLM computes; what is remembered stays there.

    Attributes:
        shown: By name, ``(N, L, ...)``: the statistics of the last predictions.
        before: By name, ``(N, L, ...)``: what has to be known when the next ones come.
        needs: What has to be asked of the dLLM.
    """

    per_row = ("shown", "before")

    def __init__(
        self, num_rows: int, sizes: Sizes, names: Sequence[str] = (), device: torch.device | str = "cpu"
    ) -> None:
        self._names = ("confidence", *names)
        self.needs = tuple(dict.fromkeys(need for one in self._observed for need in one.needs))
        self._looks: dict[str, NDArray[Any]] = {}
        self._beginning: dict[str, Tensor] = {}
        self.shown: dict[str, NDArray[Any]] = {}
        for one in self._observed:
            space = one.space(sizes)
            self._looks[one.name] = np.asarray(one.looks(sizes), dtype=space.dtype)
            self.shown[one.name] = np.zeros((num_rows, *space.shape), dtype=space.dtype)
            self._beginning |= {name: begin(sizes).to(device) for name, begin in one.remembers.items()}
        self.before = {
            name: begin.repeat(num_rows, *[1] * begin.ndim) for name, begin in self._beginning.items()
        }

    @property
    def _observed(self) -> list[Statistic]:  # by name, so that environments can be pickled
        return [STATISTICS[name] for name in self._names]

    def start(self, rows: IntArray) -> None:
        """Nothing is remembered of these rows ``(R,)`` any more: their episodes begin."""
        for name, begin in self._beginning.items():
            self.before[name][rows] = begin

    def take(self, rows: IntArray, prediction: Prediction) -> None:
        """A step's prediction for some rows.

        Args:
            rows: ``(R,)``.
            prediction: Theirs, with what is needed.

        Raises:
            ValueError: If the dLLM did not give what was asked for.
        """
        given = prediction.statistics
        missing = [name for name in self.needs if name not in given]
        if missing:
            raise ValueError(
                f"the dLLM was asked for the statistics {', '.join(self.needs)}, and gave no {missing[0]!r}"
            )
        own = {"tokens": prediction.tokens, "confidence": prediction.confidence}
        self._show(rows, self._observed, {**own, **given})

    def repeat(self, rows: IntArray) -> None:
        """A step of some rows ``(R,)`` in which nothing changed: the dLLM would say the same once more."""
        remembering = [one for one in self._observed if one.remembers]
        self._show(rows, remembering, {name: values[rows] for name, values in self.before.items()})

    def _show(self, rows: IntArray, statistics: Sequence[Statistic], now: dict[str, Tensor]) -> None:
        before = {name: values[rows] for name, values in self.before.items()}
        measured = {one.name: one.measure(now, before) for one in statistics}
        for name, values in measured.items():
            self.shown[name][rows] = values.cpu().numpy()
        now |= measured
        for name, kept in self.before.items():
            kept[rows] = now[name]

    def observation(self, shown: BoolArray, inside: BoolArray | None = None) -> dict[str, NDArray[Any]]:
        """All of it as an agent sees it, in fresh arrays: certain wherever it is hidden.

        Args:
            shown: ``(N, L)``, positions that do not look revealed.
            inside: ``(N, L)``, positions of which anything is shown at all; ``None`` stands for all.
        """
        everywhere = np.ones_like(shown) if inside is None else inside
        seen = {}
        for one in self._observed:
            values = self.shown[one.name]
            where = everywhere if one.of_revealed else shown
            where = where.reshape(*where.shape, *[1] * (values.ndim - where.ndim))
            if one.of_pairs:
                where = where & where.transpose(0, 2, 1)
            seen[one.name] = np.where(where, values, self._looks[one.name])
        return seen
