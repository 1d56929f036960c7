"""In which order a completion was revealed: left to right, by neighbours, by blocks; pure functions.

All of them read ``reveal_step``, ``(N, L)`` integers: the step that revealed each of the L positions of N
completions, 1 being the first step and 0 meaning never.

**Several reveals per step.** DiffuCoder (arXiv 2506.20639, appendix A.2) defines autoregressive-ness for one
reveal per step, p_1, ..., p_T. Here a step that reveals several positions is read as so many single reveals
from left to right, and every reveal counts once. So decoding from left to right scores 1 in both measures
whatever the number of tokens per step, and one reveal per step is the original. A step reveals its positions
without seeing the others, however, so this reading favours "left to right": everything revealed in one step
scores 1 too. ``neighbour_order`` tells the two apart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def local_ar_ness(reveal_step: IntArray, max_k: int) -> FloatArray:
    """How often decoding goes on with the next position: local AR-ness@k for k = 1 to ``max_k``.

    A reveal p_t counts if it and the k reveals before it are a run of k + 1 consecutive positions, taken in
    ascending order: p_(t-i) = p_t - i for i = 1, ..., k. k does not count the new token, and k = 1 is
    next-token prediction. The share is taken over the reveals that have k predecessors; the paper divides by
    T, with which even left-to-right decoding would stay below 1. Never rises with k.

    Args:
        reveal_step: ``(N, L)``.
        max_k: The largest k.

    Returns:
        ``(N, max_k)``; NaN where a completion has no more than k reveals.

    References:
        DiffuCoder, arXiv 2506.20639, figure 3 and appendix A.2, where it is "NTP@k". The formula there
        compares sets; the caption ("strictly increasing consecutive sequence") is what is meant, since the
        sets alone would let the value rise with k.
    """
    k = np.arange(1, max_k + 1)
    order, reveals = _as_single_reveals(reveal_step)
    goes_on = (np.diff(order) == 1) & (np.arange(1, order.shape[1]) < reveals[:, None])  # (N, L - 1)
    run = np.zeros(len(order), dtype=np.int64)  # how many predecessors in a row each reveal continues
    hits = np.zeros((len(order), max_k), dtype=np.int64)
    for continues in goes_on.T:
        run = np.where(continues, run + 1, 0)
        hits += run[:, None] >= k
    return _share(hits, reveals[:, None] - k)


def global_ar_ness(reveal_step: IntArray, max_k: int) -> FloatArray:
    """How often one of the leftmost masks is revealed: global AR-ness@k for k = 1 to ``max_k``.

    A reveal counts if it is among the k leftmost positions that are masked just before it, of the whole
    completion and not only of the active block. Never falls with k.

    Args:
        reveal_step: ``(N, L)``.
        max_k: The largest k.

    Returns:
        ``(N, max_k)``; NaN where nothing was revealed.

    References:
        DiffuCoder, arXiv 2506.20639, appendix A.2, where it is "FMS@k".
    """
    revealed, step = reveal_step > 0, _never_is_last(reveal_step)
    # masks to the left of a reveal: what comes in a later step (the same step goes from left to right)
    masks_left = np.stack(
        [(step[:, :at] > step[:, at, None]).sum(axis=1) for at in range(step.shape[1])], axis=1
    )  # (N, L)
    hits = [(revealed & (masks_left < k)).sum(axis=1) for k in range(1, max_k + 1)]
    return _share(np.stack(hits, axis=1), revealed.sum(axis=1)[:, None])


def neighbour_order(reveal_step: IntArray) -> FloatArray:
    """Which of two neighbours comes first: shares of all pairs of positions i and i + 1, both revealed.

    Returns:
        ``(N, 3)``: the left one in an earlier step, both in the same step, the right one in an earlier step;
        NaN without any such pair.
    """
    left, right = reveal_step[:, :-1], reveal_step[:, 1:]
    pair = (left > 0) & (right > 0)
    cases = [pair & (left < right), pair & (left == right), pair & (left > right)]
    return _share(np.stack([case.sum(axis=1) for case in cases], axis=1), pair.sum(axis=1)[:, None])


def adjacent_share(reveal_step: IntArray) -> FloatArray:
    """Share of reveals beside a position revealed in an earlier step; the prompt counts as the first one's.

    1 for one token per step from left to right, small where a policy spreads its reveals
    (arXiv 2512.09106 reports about 0.2 for a learned policy and 0.65 for Fast-dLLM).

    Returns:
        ``(N,)``; NaN where nothing was revealed.
    """
    revealed, step = reveal_step > 0, _never_is_last(reveal_step)
    left = np.pad(step[:, :-1], ((0, 0), (1, 0)), constant_values=0)
    right = np.pad(step[:, 1:], ((0, 0), (0, 1)), constant_values=np.iinfo(np.int64).max)
    beside = revealed & (np.minimum(left, right) < step)
    return _share(beside.sum(axis=1), revealed.sum(axis=1))


def steps_per_block(reveal_step: IntArray, block: IntArray) -> FloatArray:
    """Number of steps that revealed something in each block.

    Args:
        reveal_step: ``(N, L)``.
        block: ``(N, L)``, the block each position is in.

    Returns:
        ``(N, B)``; NaN for blocks that a completion does not have.
    """
    counts = []
    for number in range(int(block.max()) + 1):
        inside = block == number
        steps = np.sort(np.where(inside, reveal_step, 0), axis=1)
        new = np.diff(steps, axis=1, prepend=0) > 0  # never (0) comes first and is not new
        counts.append(np.where(inside.any(axis=1), new.sum(axis=1), np.nan))
    return np.stack(counts, axis=1)


def _as_single_reveals(reveal_step: IntArray) -> tuple[IntArray, IntArray]:
    """Positions ``(N, L)`` in the order of their reveals, and how many of them ``(N,)`` were revealed."""
    order = np.argsort(_never_is_last(reveal_step), axis=1, kind="stable")
    return order, (reveal_step > 0).sum(axis=1)


def _never_is_last(reveal_step: IntArray) -> IntArray:
    return np.where(reveal_step > 0, reveal_step, np.iinfo(np.int64).max)


def _share(part: IntArray, whole: IntArray) -> FloatArray:
    """``part / whole``, NaN where there is nothing to divide by."""
    share: FloatArray = np.where(whole > 0, part / np.maximum(whole, 1), np.nan)
    return share
