"""Rules that do not reveal together what depends on each other: they read the dLLM's attention.

What is common to all rules and the letters are explained in ``topk``. a(i, j) is the observation
``attention``: how much what predicts position i reads at position j, a mean over heads and layers. The
longer the texts, the smaller it is, for a row sums to 1 at most: the published constants are of texts of some
hundred tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from dllm_gym.strategies.base import (
    BoolArray,
    FloatArray,
    IntArray,
    Strategy,
    best,
    check_number,
    or_else,
    rank,
)
from dllm_gym.strategies.memory import Kept, Remembering


class DAPD(Remembering):
    """Reveals an independent set while the block is mostly masked, and then what is sure.

    DAPD (arXiv 2603.12996). Two candidates depend on each other if s(i, j) = (a(i, j) + a(j, i)) / 2 > tau.
    As long as at least half of the block is masked, candidates are taken by descending c times the sum of
    s(i, j) over all other candidates j, each unless it depends on one that is taken already. tau rises with
    the share p of the block that is no longer masked, from ``low`` to ``high``: low + (high - low) p.
    After that all with c > ``threshold`` are revealed (strictly), or else the most confident one.

    Args:
        low: tau of an empty block, a number >= 0. For LLaDA-8B in blocks of 32: 0.001, and ``high`` 0.004.
        high: tau of a full block, a number >= ``low``.
        threshold: A number in [0, 1].

    Raises:
        ValueError: For parameters out of range.
    """

    name = "dapd"
    paper = "DAPD, arXiv 2603.12996"
    requires = ("attention",)

    def __init__(self, low: float = 0.01, high: float = 0.05, threshold: float = 0.9) -> None:
        low = check_number("low", low, 0)
        super().__init__(
            low=low,
            high=check_number("high", high, low),
            threshold=check_number("threshold", threshold, 0, 1),
        )

    def choose(self, observation: Mapping[str, ArrayLike], candidates: BoolArray, kept: Kept) -> BoolArray:
        """Which of the two it is, row by row."""
        confidence = self.read(observation, "confidence")  # (B, L)
        attention = self.read(observation, "attention", axes=1, dtype=np.float64)  # (B, L, L)
        share = candidates.sum(axis=-1, keepdims=True) / np.maximum(kept["block_size"], 1)[:, None]
        among = candidates[:, None, :] & ~np.eye(candidates.shape[-1], dtype=np.bool_)
        tied = np.where(among, (attention + attention.swapaxes(1, 2)) / 2, 0.0)
        low, high = self.parameters["low"], self.parameters["high"]
        order = rank(-confidence * tied.sum(axis=-1), candidates)
        apart = independent(order, candidates, tied > (low + (high - low) * (1 - share))[..., None])
        sure = or_else(
            confidence > np.float32(self.parameters["threshold"]), candidates, best(confidence, candidates)
        )
        return np.where(share >= 0.5, apart, sure)


class DAWN(Strategy):
    """Reveals what is sure, what leans on something sure, and of the rest what does not lean on each other.

    DAWN (arXiv 2602.06953). Position i leans on j if a(i, j) >= ``edge``; nothing leans on itself, nor on a j
    that all positions read: one with a mean of a(i, j) over i above ``sink``. The union is revealed of

    - candidates with c >= ``threshold``;
    - those with c >= ``anchored`` that lean on a revealed token whose probability is now >= ``threshold``;
    - of the remaining ones with c >= ``apart`` that lean on no candidate of both kinds, by descending c, each
      unless it leans on one taken here, or that on it;

    or else the most confident candidate. Here the mean is over the positions of the completion, and no
    position leans on the prompt.

    Args:
        threshold: A number in [0, 1].
        anchored: A number in [0, 1].
        apart: A number in [0, 1].
        edge: A number >= 0.
        sink: A number >= 0.

    Raises:
        ValueError: For parameters out of range.
    """

    name = "dawn"
    paper = "DAWN, arXiv 2602.06953"
    requires = ("attention", "written")

    def __init__(
        self,
        threshold: float = 0.9,
        anchored: float = 0.7,
        apart: float = 0.75,
        edge: float = 0.07,
        sink: float = 0.01,
    ) -> None:
        super().__init__(
            threshold=check_number("threshold", threshold, 0, 1),
            anchored=check_number("anchored", anchored, 0, 1),
            apart=check_number("apart", apart, 0, 1),
            edge=check_number("edge", edge, 0),
            sink=check_number("sink", sink, 0),
        )

    def select(self, observation: Mapping[str, ArrayLike], candidates: BoolArray) -> BoolArray:
        """The union of the three."""
        threshold, anchored, apart, edge, sink = map(np.float32, self.parameters.values())
        confidence = self.read(observation, "confidence")  # (B, L)
        attention = self.read(observation, "attention", axes=1)  # (B, L, L)
        leans = (attention >= edge) & ~np.eye(candidates.shape[-1], dtype=np.bool_)
        leans &= (attention.mean(axis=1, dtype=np.float64) <= sink)[:, None, :]
        revealed = self.read(observation, "mask") == 0
        anchors = revealed & (self.read(observation, "written") >= threshold)
        sure = candidates & (confidence >= threshold)
        leaning = candidates & (confidence >= anchored) & (leans & anchors[:, None, :]).any(axis=-1)
        selected = sure | leaning
        rest = candidates & ~selected & (confidence >= apart)
        rest &= ~(leans & (sure & leaning)[:, None, :]).any(axis=-1)
        selected |= independent(rank(-confidence, rest), rest, leans | leans.swapaxes(1, 2))
        return or_else(selected, candidates, best(confidence, candidates))


class CLAD(Remembering):
    """Reveals runs of sure candidates, but of two runs that depend on each other only the longer one.

    CLAD (arXiv 2605.29607). The candidates with c >= ``threshold`` and the most confident one fall into
    clusters, runs of neighbours. How much cluster A has to do with B is the largest mean over j in B of
    max(a(i, j), a(j, i)) of any i in A, and their score is the larger one of that from A to B and from B to
    A. Two clusters conflict if each has its best score with the other, and that is at least the mean of each
    one's scores; if there are two clusters only, if it is at least ``pair`` / the length of the block. Of
    clusters in conflict the shorter one waits, of equal ones the right one; of equal scores the leftmost
    cluster is the best.

    Args:
        threshold: A number in [0, 1].
        pair: A number >= 0.

    Raises:
        ValueError: For parameters out of range.
    """

    name = "clad"
    paper = "CLAD, arXiv 2605.29607"
    requires = ("attention",)

    def __init__(self, threshold: float = 0.7, pair: float = 1.2) -> None:
        super().__init__(
            threshold=check_number("threshold", threshold, 0, 1), pair=check_number("pair", pair, 0)
        )

    def choose(self, observation: Mapping[str, ArrayLike], candidates: BoolArray, kept: Kept) -> BoolArray:
        """Sure candidates and top 1, without the clusters that wait."""
        confidence = self.read(observation, "confidence")  # (B, L)
        attention = self.read(observation, "attention", axes=1, dtype=np.float64)  # (B, L, L)
        selected = candidates & (confidence >= np.float32(self.parameters["threshold"]))
        selected |= best(confidence, candidates) & candidates
        mutual = np.maximum(attention, attention.swapaxes(1, 2))
        for row, own, size in zip(selected, mutual, kept["block_size"], strict=True):
            row &= ~self._waiting(np.flatnonzero(row), own, size)
        return selected

    def _waiting(self, chosen: IntArray, mutual: FloatArray, block_size: int) -> BoolArray:
        """Positions of one row ``(L,)`` that must wait, of the ``chosen`` ones in ascending order."""
        waiting = np.zeros(len(mutual), dtype=np.bool_)
        begins = np.flatnonzero(np.diff(chosen, prepend=-2) > 1)
        if len(begins) < 2:
            return waiting
        sizes = np.diff(begins, append=len(chosen))
        means = np.add.reduceat(mutual[np.ix_(chosen, chosen)], begins, axis=1) / sizes
        reached = np.maximum.reduceat(means, begins, axis=0)  # (C, C)
        score = np.maximum(reached, reached.T)
        np.fill_diagonal(score, 0.0)
        if len(begins) == 2:
            least = np.full(2, self.parameters["pair"] / block_size)
        else:
            least = score.sum(axis=1) / (len(begins) - 1)
        np.fill_diagonal(score, -np.inf)
        partner, own = score.argmax(axis=1), np.arange(len(begins))
        conflict = (partner[partner] == own) & (score[own, partner] >= np.maximum(least, least[partner]))
        shorter = (sizes < sizes[partner]) | ((sizes == sizes[partner]) & (own > partner))
        waiting[chosen] = np.repeat(conflict & shorter, sizes)
        return waiting


def independent(order: IntArray, candidates: BoolArray, tied: BoolArray) -> BoolArray:
    """Takes candidates one after another, each unless it is tied to one that is taken already.

    Args:
        order: ``(B, L)`` positions, best first, from ``rank``.
        candidates: ``(B, L)`` bool.
        tied: ``(B, L, L)`` bool, symmetric.

    Returns:
        ``(B, L)`` bool.
    """
    taken, rows = np.zeros_like(candidates), np.arange(len(order))
    for at in order[:, : candidates.sum(axis=-1).max(initial=0)].T:
        taken[rows, at] |= candidates[rows, at] & ~(tied[rows, at] & taken).any(axis=-1)
    return taken
