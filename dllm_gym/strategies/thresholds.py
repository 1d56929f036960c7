"""Rules that let a statistic of this step decide how many positions are revealed.

What is common to all rules and the letters are explained in ``topk``.
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
    check_integer,
    check_number,
    prefix,
    rank,
)


class FastDLLM(Strategy):
    """Reveals every candidate with c >= threshold, and the most confident one always.

    The threshold rule of Fast-dLLM (arXiv 2505.22618). Equality passes, as in the released code. The
    threshold is rounded to float32, the type of the confidences, before comparing: a confidence of
    ``np.float32(0.9)``, which as a real number is a little below 0.9, passes ``threshold=0.9``.

    Args:
        threshold: A number in [0, 1].

    Raises:
        ValueError: For any other threshold.
    """

    name = "fast-dllm"
    paper = "Fast-dLLM, arXiv 2505.22618"

    def __init__(self, threshold: float = 0.9) -> None:
        self.threshold = check_number("threshold", threshold, 0, 1)
        super().__init__(threshold=self.threshold)

    def select(self, observation: Mapping[str, ArrayLike], candidates: BoolArray) -> BoolArray:
        """Top 1 and what reaches the threshold."""
        confidence = self.read(observation, "confidence")  # (B, L)
        selected: BoolArray = confidence >= np.float32(self.threshold)
        return selected | best(confidence, candidates)


class FastDLLMFactor(Strategy):
    """Reveals the most confident candidates while (n + 1)(1 - c_n) < factor, and rank 1 always.

    The factor rule of Fast-dLLM (arXiv 2505.22618, parallel decoding theorem): the more tokens are
    revealed together, the surer each must be. This is the paper's rule; ``fast-dllm-factor-released`` is what
    the released code does.

    The left-hand side is computed in float64, which is exact for float32 confidences (unless they are tiny):
    the numbers as stored decide.

    Args:
        factor: A finite number > 0.

    Raises:
        ValueError: For any other factor.
    """

    name = "fast-dllm-factor"
    paper = "Fast-dLLM, arXiv 2505.22618"

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = check_number("factor", factor, 0, exclusive=True)
        super().__init__(factor=self.factor)

    def select(self, observation: Mapping[str, ArrayLike], candidates: BoolArray) -> BoolArray:
        """The ranks before the first that fails."""
        confidence = self.read(observation, "confidence")  # (B, L)
        order = rank(-confidence, candidates)
        ranked = np.take_along_axis(confidence, order, axis=-1).astype(np.float64)  # (B, L) by rank
        n = np.arange(1, candidates.shape[-1] + 1)
        return prefix(order, self.passes(ranked, n, candidates.sum(axis=-1, keepdims=True)))

    def passes(self, confidence: FloatArray, n: IntArray, candidates: IntArray) -> BoolArray:
        """Which ranks fulfil the bound, ``(B, L)``.

        Args:
            confidence: ``(B, L)`` float64, by rank.
            n: ``(L,)``, the rank.
            candidates: ``(B, 1)``, how many candidates the row has.
        """
        passing: BoolArray = (n + 1) * (1 - confidence) < self.factor
        return passing


class FastDLLMFactorReleased(FastDLLMFactor):
    """The factor rule as Fast-dLLM's released ``generate.py`` has it (``get_transfer_index_dynamic``).

    It differs from the paper's rule in two points. Equality passes: rank n fails iff
    c_n < 1 - factor / (n + 1). And if the first rank that fails is that of the row's last candidate, it is
    revealed as well; so the last two positions of a block are always revealed together.

    Args:
        factor: A finite number > 0.

    Raises:
        ValueError: For any other factor.
    """

    name = "fast-dllm-factor-released"
    paper = "Fast-dLLM, arXiv 2505.22618"

    def passes(self, confidence: FloatArray, n: IntArray, candidates: IntArray) -> BoolArray:
        """See ``FastDLLMFactor.passes``."""
        passing: BoolArray = (confidence >= 1 - self.factor / (n + 1)) | (n == candidates)
        return passing


class EBSampler(Strategy):
    """Reveals the largest set of lowest entropies with sum(H) - max(H) <= gamma.

    EB-Sampler, the entropy-bounded sampler (arXiv 2505.24857) with entropy as its error proxy. Ranked by
    ascending entropy the largest of a set is its last, so rank n passes iff the n - 1 entropies before it
    sum to at most gamma; rank 1 always does.

    Entropies are summed in float64; gamma is rounded to float32, the type of the entropies, so that a
    single entropy of ``np.float32(0.1)`` is within ``gamma=0.1``.

    Args:
        gamma: A finite number >= 0, in nats.

    Raises:
        ValueError: For any other gamma.
    """

    name = "eb-sampler"
    paper = "EB-Sampler, arXiv 2505.24857"
    requires = ("entropy",)

    def __init__(self, gamma: float = 0.1) -> None:
        self.gamma = check_number("gamma", gamma, 0)
        super().__init__(gamma=self.gamma)

    def select(self, observation: Mapping[str, ArrayLike], candidates: BoolArray) -> BoolArray:
        """The ranks before the first that exceeds the bound."""
        entropy = self.read(observation, "entropy")  # (B, L)
        order = rank(entropy, candidates)
        before = np.zeros(entropy.shape)  # (B, L) by rank: sum of the entropies ahead
        np.cumsum(
            np.take_along_axis(entropy, order, axis=-1)[:, :-1], axis=-1, dtype=np.float64, out=before[:, 1:]
        )
        return prefix(order, before <= np.float32(self.gamma))


class LocalLeap(Strategy):
    """Reveals every candidate with c >= threshold and, close to one of these, those with c >= relaxed.

    LocalLeap (arXiv 2510.07081): around anchors, the candidates with c >= ``threshold``, up to ``radius``
    positions away on either side, less is asked for. Positions revealed earlier are no anchors. The most
    confident candidate is always revealed.

    Args:
        threshold: A number in [0, 1].
        relaxed: A number in [0, threshold].
        radius: An integer >= 0.

    Raises:
        ValueError: For parameters out of range.
    """

    name = "local-leap"
    paper = "LocalLeap, arXiv 2510.07081"

    def __init__(self, threshold: float = 0.9, relaxed: float = 0.75, radius: int = 4) -> None:
        threshold = check_number("threshold", threshold, 0, 1)
        super().__init__(
            threshold=threshold,
            relaxed=check_number("relaxed", relaxed, 0, threshold),
            radius=check_integer("radius", radius, minimum=0),
        )

    def select(self, observation: Mapping[str, ArrayLike], candidates: BoolArray) -> BoolArray:
        """Anchors, what is sure enough beside them, and top 1."""
        confidence = self.read(observation, "confidence")  # (B, L)
        anchors = candidates & (confidence >= np.float32(self.parameters["threshold"]))
        position, length = np.arange(candidates.shape[-1]), candidates.shape[-1]
        before = np.pad(anchors.cumsum(axis=-1), [(0, 0), (1, 0)])  # (B, L + 1) anchors left of here
        first = np.maximum(position - self.parameters["radius"], 0)
        last = np.minimum(position + self.parameters["radius"] + 1, length)
        near = before[:, last] > before[:, first]
        leaping = near & (confidence >= np.float32(self.parameters["relaxed"]))
        return anchors | leaping | best(confidence, candidates)
