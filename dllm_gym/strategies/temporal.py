"""Rules that reveal what has settled: they compare this step's prediction with those of the steps before.

What is common to all rules and the letters are explained in ``topk``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dllm_gym.strategies.base import BoolArray, FloatArray, best, check_integer, check_number, or_else, top_k
from dllm_gym.strategies.memory import Kept, Remembering


class KLASS(Remembering):
    """Reveals candidates that are sure and whose distribution has stood still, or else the k surest.

    KLASS (arXiv 2511.05664): all candidates with c > ``threshold`` whose Kullback-Leibler divergence from the
    step before was < ``divergence`` in each of the last ``history`` steps; both are strict. Where there is
    none, the k most confident. As in the released code nothing has stood still in the first ``history - 1``
    steps of a block, nor at the first step of an episode, and it is ``unmask_strategy="all"``. The code's k
    follows LLaDA's schedule of a number of steps, which is 1 for one step per position.

    Args:
        threshold: A number in [0, 1]. The paper takes 0.6 for LLaDA on GSM8K and MATH, 0.9 otherwise.
        divergence: A number > 0, in nats. The paper takes 0.015 for LLaDA on GSM8K, 0.001 for Dream.
        history: An integer >= 1.
        k: An integer >= 1.

    Raises:
        ValueError: For parameters out of range.
    """

    name = "klass"
    paper = "KLASS, arXiv 2511.05664"
    requires = ("divergence",)

    def __init__(
        self, threshold: float = 0.9, divergence: float = 0.01, history: int = 2, k: int = 1
    ) -> None:
        super().__init__(
            threshold=check_number("threshold", threshold, 0, 1),
            divergence=check_number("divergence", divergence, 0, exclusive=True),
            history=check_integer("history", history, minimum=1),
            k=check_integer("k", k, minimum=1),
        )

    def fresh(self, rows: int, length: int) -> Kept:
        """``calm`` ``(B, L)``: for how many steps there was little divergence."""
        return {"calm": np.zeros((rows, length), dtype=np.int64)}

    def choose(self, observation: Mapping[str, ArrayLike], candidates: BoolArray, kept: Kept) -> BoolArray:
        """What is sure and settled."""
        confidence = self.read(observation, "confidence")  # (B, L)
        still = self.read(observation, "divergence") < np.float32(self.parameters["divergence"])
        still &= kept["steps"][:, None] > 0
        kept["calm"] = np.where(still, kept["calm"] + 1, 0)
        history = self.parameters["history"]
        settled = (kept["calm"] >= history) & (kept["block_steps"][:, None] >= history - 1)
        ready = settled & (confidence > np.float32(self.parameters["threshold"]))
        return or_else(ready, candidates, top_k(-confidence, candidates, self.parameters["k"]))


class Credit(Remembering):
    """Reveals candidates whose confidence reaches the threshold once lasting predictions are credited.

    CreditDecoding (arXiv 2510.06133). A token has credit C where it was the dLLM's best while its block was
    decoded: every step multiplies all credits by ``decay``, then the best token of each candidate gains
    ``c ** gain``. Its logit is raised by ``weight * log(1 + C)``, so that its probability becomes
    ``q = g c / (1 - c + g c)`` with ``g = (1 + C) ** weight``. All with q >= ``threshold`` are revealed, and
    the largest q always.

    Rules see the probability of the best token only: of others that were the best before, the credit is lost,
    where the released code (dInfer) raises their logits, too, and may even write one of them. That code also
    lets a position pass whose q is less than 1e-5 below the largest.

    Args:
        threshold: A number in [0, 1].
        weight: A number >= 0 (``credit_alpha``).
        gain: A number >= 0 (``boost_gamma``).
        decay: A number in [0, 1] (``decay_beta``).

    Raises:
        ValueError: For parameters out of range.
    """

    name = "credit"
    paper = "CreditDecoding, arXiv 2510.06133"
    requires = ("predicted",)

    def __init__(
        self, threshold: float = 0.9, weight: float = 0.7, gain: float = 0.2, decay: float = 0.8
    ) -> None:
        super().__init__(
            threshold=check_number("threshold", threshold, 0, 1),
            weight=check_number("weight", weight, 0),
            gain=check_number("gain", gain, 0),
            decay=check_number("decay", decay, 0, 1),
        )

    def fresh(self, rows: int, length: int) -> Kept:
        """``credit`` and the ``token`` it is of, ``(B, L)``."""
        return {"credit": np.zeros((rows, length)), "token": np.full((rows, length), -1)}

    def choose(self, observation: Mapping[str, ArrayLike], candidates: BoolArray, kept: Kept) -> BoolArray:
        """What reaches the threshold with its credit."""
        confidence = self.read(observation, "confidence", dtype=np.float64)  # (B, L)
        token = self.read_tokens(observation, "predicted")
        lasting = token == kept["token"]
        credit = np.where(lasting, kept["credit"] * self.parameters["decay"], 0.0)
        kept["credit"] = np.where(candidates, credit + confidence ** self.parameters["gain"], 0.0)
        kept["token"] = token
        raised = (1 + kept["credit"]) ** self.parameters["weight"] * confidence
        fused = (raised / (1 - confidence + raised)).astype(np.float32)
        selected: BoolArray = fused >= np.float32(self.parameters["threshold"])
        return selected | best(fused, candidates)


class LESS(Remembering):
    """Reveals candidates that are sure, of the same token as a step ago and in nearly the same distribution.

    LESS (arXiv 2606.16908), by its abstract: high confidence, the same best token as in the step before, and
    a small Jensen-Shannon divergence of the K largest probabilities. The paper's constants and how it matches
    the K tokens of the two steps are not known to us. Here all candidates with c >= ``threshold``,
    ``persistence`` >= 1 and a divergence <= ``divergence`` are revealed, or else the most confident one; the
    K largest probabilities are compared by rank, with what is left of 1 as one outcome more.

    Args:
        threshold: A number in [0, 1].
        divergence: A number >= 0, in nats; at most log 2 means anything.

    Raises:
        ValueError: For parameters out of range.
    """

    name = "less"
    paper = "LESS, arXiv 2606.16908"
    requires = ("persistence", "top_k")

    def __init__(self, threshold: float = 0.7, divergence: float = 0.01) -> None:
        super().__init__(
            threshold=check_number("threshold", threshold, 0, 1),
            divergence=check_number("divergence", divergence, 0),
        )
        self._before: NDArray[Any] | None = None  # (B, L, K + 1)

    def choose(self, observation: Mapping[str, ArrayLike], candidates: BoolArray, kept: Kept) -> BoolArray:
        """What is sure and the same as before."""
        confidence = self.read(observation, "confidence")  # (B, L)
        top = self.read(observation, "top_k", axes=1, dtype=np.float64)  # (B, L, K)
        now = np.concatenate([top, np.maximum(1 - top.sum(axis=-1, keepdims=True), 0.0)], axis=-1)
        before = now if self._before is None or self._before.shape != now.shape else self._before
        self._before = now
        same = (self.read(observation, "persistence") >= 1) & (kept["steps"][:, None] > 0)
        close = jensen_shannon(now, before) <= self.parameters["divergence"]
        sure = confidence >= np.float32(self.parameters["threshold"])
        return or_else(sure & same & close, candidates, best(confidence, candidates))


def jensen_shannon(one: FloatArray, other: FloatArray) -> FloatArray:
    """The Jensen-Shannon divergence in nats of distributions over the last axis."""
    middle = (one + other) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.where(p > 0, p * np.log(p / middle), 0.0).sum(axis=-1) / 2 for p in (one, other)]
    divergence: FloatArray = terms[0] + terms[1]
    return divergence
