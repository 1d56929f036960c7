"""How a policy decodes, in numbers: what recorded episodes tell."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dllm_gym.envs.canvas import block_numbers
from dllm_gym.evaluation import order
from dllm_gym.evaluation.recording import Recording
from dllm_gym.evaluation.statistics import (
    Interval,
    Reliability,
    mean_interval,
    reliability,
    separation,
    wilson_interval,
)
from dllm_gym.files import json_values

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

MAX_K = 8  # of AR-ness@k
_CONFIDENCE_BINS = 10  # of equal width over [0, 1]
_SURPRISE_GROUPS = 5  # of equal size
_TINY = 1e-12  # a confidence that underflowed to 0 surprises no more than this one


@dataclass(frozen=True, eq=False)
class Profile:
    """How one decoder decodes. Means and 95 % intervals are over episodes unless something else is said.

    L positions, S steps in the longest episode, B blocks, K = 8.

    Attributes:
        label: The decoder's name and parameters.
        episodes: Number of them.
        block_length: Width of the semi-autoregressive window; L means full diffusion. Where it differs from
            episode to episode, all that occur.
        accuracy: Share of episodes with full score; NaN where scores are unknown.
        accuracy_ci95: Its Wilson interval.
        steps_mean: Steps per episode.
        reveals_per_step: Positions revealed per step.
        local_ar_ness: ``(K,)``, see ``order.local_ar_ness``, for k = 1 to K.
        local_ar_ness_ci95: ``(K, 2)``.
        global_ar_ness: ``(K,)``, see ``order.global_ar_ness``.
        global_ar_ness_ci95: ``(K, 2)``.
        left_first: Share of neighbouring pairs whose left position was revealed in an earlier step.
        same_step: Share of them revealed in the same step.
        right_first: Share of them whose right position was revealed in an earlier step.
        adjacent_share: Share of reveals beside a position revealed in an earlier step, or the prompt.
        steps_per_block: ``(B,)``, steps that revealed something in each block.
        block_starts: ``(B',)``, where blocks other than the first begin, in all episodes alike.
        running_at_step: ``(S,)`` episodes that took each step.
        reveals_at_step: ``(S,)`` positions revealed per episode that took the step.
        confidence_at_step: ``(S,)`` mean confidence of the reveals of each step; NaN if there were none.
        confidence_at_position: ``(L,)`` the same for each position.
        reveals: ``(S, L)`` number of episodes that revealed the position in that step.
        confidence_mean: Of all reveals.
        success_by_surprise: How often episodes succeed, in five groups of equal size by their surprise: minus
            the sum of the logarithms of the confidences of all reveals, in nats; ``None`` where scores are
            unknown.
        success_separation: Probability that an episode that succeeded was less surprising than one that
            failed; 0.5 means that confidence does not tell right from wrong.
        kept: Share of all reveals whose token the dLLM would write again, see ``self_consistency``; NaN,
            or ``None``, like all of the following, if it was not asked.
        kept_at_step: ``(S,)`` the same for the reveals of each step.
        kept_at_position: ``(L,)`` and for each position.
        kept_by_confidence: How often a token is kept, by the confidence with which it was revealed, in ten
            bins.
        success_by_changes: How often episodes succeed, by the number of tokens the dLLM would change: 0, 1,
            2 to 3, 4 to 7, and so on.
        remasks_mean: Tokens taken back per episode; NaN where none could be.
        rewritten: Share of the positions where one was taken back at which another token stands in the end;
            NaN where there were none.
    """

    label: str
    episodes: int
    block_length: int | tuple[int, ...]
    accuracy: float
    accuracy_ci95: Interval
    steps_mean: float
    reveals_per_step: float
    local_ar_ness: FloatArray
    local_ar_ness_ci95: FloatArray
    global_ar_ness: FloatArray
    global_ar_ness_ci95: FloatArray
    left_first: float
    same_step: float
    right_first: float
    adjacent_share: float
    steps_per_block: FloatArray
    block_starts: IntArray
    running_at_step: IntArray
    reveals_at_step: FloatArray
    confidence_at_step: FloatArray
    confidence_at_position: FloatArray
    reveals: IntArray
    confidence_mean: float
    success_by_surprise: Reliability | None
    success_separation: float
    kept: float
    kept_at_step: FloatArray
    kept_at_position: FloatArray
    kept_by_confidence: Reliability | None
    success_by_changes: Reliability | None
    remasks_mean: float
    rewritten: float

    @property
    def length(self) -> int:
        """L."""
        return int(self.reveals.shape[1])

    def to_json(self) -> dict[str, Any]:
        """Every number as JSON values, NaN as null."""
        content = asdict(self)
        if self.kept_by_confidence is not None:
            content["calibration_error"] = self.kept_by_confidence.calibration_error
        values: dict[str, Any] = json_values(content)
        return values


def profile(recording: Recording) -> Profile:
    """Measures how the decoder of a recording decodes."""
    revealed, at = recording.revealed, recording.reveal_step
    confidence = recording.confidence.astype(np.float64)
    last = int(recording.steps.max())
    reveals = np.zeros((last, recording.length), dtype=np.int64)
    np.add.at(reveals, (at[revealed] - 1, np.nonzero(revealed)[1]), 1)
    running = (recording.steps[:, None] > np.arange(last)).sum(axis=0)  # (S,)
    offset = np.zeros(len(at), dtype=np.int64) if recording.block_offset is None else recording.block_offset
    block = block_numbers(recording.length, recording.block_length, offset)  # (N, L)
    local, global_ = order.local_ar_ness(at, MAX_K), order.global_ar_ness(at, MAX_K)
    neighbours = _mean(order.neighbour_order(at))
    widths = tuple(np.unique(recording.block_length).tolist())
    checked = recording.kept is not None
    kept = recording.kept.astype(np.float64) if recording.kept is not None else np.full(at.shape, np.nan)
    changes = (revealed & (kept == 0)).sum(axis=1)
    remasks = recording.remasks
    rewritten = np.zeros(0)
    if remasks is not None and recording.rewritten is not None:
        rewritten = recording.rewritten[remasks > 0].astype(np.float64)
    known = not np.isnan(recording.score).any()
    success = recording.score >= 1.0
    surprise = -np.log(np.where(revealed, confidence.clip(_TINY), 1.0)).sum(axis=1)  # (N,)
    return Profile(
        label=recording.label,
        episodes=recording.episodes,
        block_length=widths[0] if len(widths) == 1 else widths,
        accuracy=float(success.mean()) if known else math.nan,
        accuracy_ci95=(
            wilson_interval(float(success.sum()), recording.episodes) if known else (math.nan, math.nan)
        ),
        steps_mean=float(recording.steps.mean()),
        reveals_per_step=float(revealed.sum() / recording.steps.sum()),
        local_ar_ness=_mean(local),
        local_ar_ness_ci95=_intervals(local),
        global_ar_ness=_mean(global_),
        global_ar_ness_ci95=_intervals(global_),
        left_first=float(neighbours[0]),
        same_step=float(neighbours[1]),
        right_first=float(neighbours[2]),
        adjacent_share=float(_mean(order.adjacent_share(at)[:, None])[0]),
        steps_per_block=_mean(order.steps_per_block(at, block)),
        block_starts=1 + np.flatnonzero((np.diff(block) > 0).all(axis=0)),
        running_at_step=running,
        reveals_at_step=reveals.sum(axis=1) / running,
        confidence_at_step=_mean_at_step(confidence, at, last),
        confidence_at_position=_mean(np.where(revealed, confidence, np.nan)),
        reveals=reveals,
        confidence_mean=float(_mean(confidence[revealed][:, None])[0]),
        success_by_surprise=(
            reliability(surprise, success, _equal_groups(surprise, _SURPRISE_GROUPS)) if known else None
        ),
        success_separation=separation(-surprise, success) if known else math.nan,
        kept=float(_mean(kept[revealed][:, None])[0]),
        kept_at_step=_mean_at_step(kept, at, last),
        kept_at_position=_mean(np.where(revealed, kept, np.nan)),
        kept_by_confidence=(
            reliability(confidence[revealed], kept[revealed] == 1, _bins(confidence[revealed]))
            if checked and revealed.any()
            else None
        ),
        success_by_changes=(
            reliability(changes.astype(np.float64), success, _doubling_groups(changes))
            if checked and known
            else None
        ),
        remasks_mean=math.nan if remasks is None else float(remasks.sum(axis=1).mean()),
        rewritten=float(_mean(rewritten[:, None])[0]),
    )


def _bins(confidence: FloatArray) -> IntArray:
    """Bins of equal width over [0, 1]; the last one includes 1."""
    return (confidence * _CONFIDENCE_BINS).astype(np.int64).clip(max=_CONFIDENCE_BINS - 1)


def _equal_groups(values: FloatArray, groups: int) -> IntArray:
    """Groups of equal size, as far as that goes, from the smallest to the largest values."""
    rank = np.empty(len(values), dtype=np.int64)
    rank[np.argsort(values, kind="stable")] = np.arange(len(values))
    return rank * groups // len(values)


def _doubling_groups(counts: IntArray) -> IntArray:
    """0, 1, 2 to 3, 4 to 7, and so on."""
    return np.ceil(np.log2(counts + 1)).astype(np.int64)


def _mean(values: FloatArray) -> FloatArray:
    """Mean over the first axis without NaN; NaN where nothing else is there."""
    there = ~np.isnan(values)
    count = there.sum(axis=0)
    mean: FloatArray = np.where(
        count > 0, np.where(there, values, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan
    )
    return mean


def _intervals(values: FloatArray) -> FloatArray:
    """95 % intervals ``(K, 2)`` of the means of ``(N, K)`` values, NaN left out."""
    columns = [column[~np.isnan(column)] for column in values.T]
    return np.array([mean_interval(column) if len(column) else (np.nan, np.nan) for column in columns])


def _mean_at_step(values: FloatArray, reveal_step: IntArray, last: int) -> FloatArray:
    """``(S,)``: mean of ``(N, L)`` values over the positions each step revealed."""
    return np.array([_mean(values[reveal_step == step][:, None])[0] for step in range(1, last + 1)])
