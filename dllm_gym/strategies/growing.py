"""Rules that take tokens back and keep a schedule: how many stand after a step is settled beforehand.

They say which: a step reveals as many tokens more than the schedule asks for as it takes back. See
``remasking`` for what is common to all rules that take back.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from dllm_gym.strategies.base import BoolArray, FloatArray, check_integer, top_k
from dllm_gym.strategies.memory import Kept
from dllm_gym.strategies.remasking import RemaskingRule, lowest


class Growing(RemaskingRule):
    """After n steps in a block exactly k n of its positions are revealed.

    Args:
        k: An integer >= 1. Where it divides the block that is LLaDA's schedule.

    Raises:
        ValueError: For parameters out of range.
    """

    def __init__(self, k: int = 1) -> None:
        super().__init__(k=check_integer("k", k, minimum=1))

    def keep(self, score: FloatArray, candidates: BoolArray, kept: Kept) -> BoolArray:
        """The positions of highest score that may be revealed after this step."""
        fixed = kept["block_size"] - candidates.sum(axis=-1)  # they may not be taken back any more
        number = self.parameters["k"] * (kept["block_steps"] + 1) - fixed
        return top_k(-score, candidates, number[:, None])


class RCR(Growing):
    """Keeps the positions that were surest when they were written.

    Running confidence remasking (MDPO, arXiv 2508.13148). In step n of a block all masks are filled; the
    k n positions of highest confidence stay, each with the confidence it had when it was written, and the
    others are masked again. A token is taken back where a later one is surer.

    Args:
        k: An integer >= 1: how many more positions are revealed after each step. Where it divides the block
            that is the schedule of the released code.

    Raises:
        ValueError: For parameters out of range.
    """

    name = "rcr"
    paper = "MDPO, arXiv 2508.13148"

    def fresh(self, rows: int, length: int) -> Kept:
        """``sure`` ``(B, L)``: the confidence when the token that stands was written."""
        return {"sure": np.zeros((rows, length), dtype=np.float32)}

    def choose(self, observation: Mapping[str, ArrayLike], candidates: BoolArray, kept: Kept) -> BoolArray:
        """What was or is surest."""
        confidence = self.read(observation, "confidence")  # (B, L)
        kept["sure"] = np.where(self.masks(observation), confidence, kept["sure"])
        return self.keep(kept["sure"], candidates, kept)


class RemeDi(Growing):
    """Keeps the positions that are surest now, whether a token stands there or would be written.

    The decoding of RemeDi (arXiv 2509.23653): after step n of a block exactly K_n of all its positions are
    revealed, those of highest score. There the score is the output of a second stream of layers that was
    trained for it, with 32 steps per block of 32. No dLLM here has one: the score is c at masks, w at
    tokens. Its training draws the positions (Plackett-Luce); this takes the highest, as its decoding does.

    Args:
        k: An integer >= 1: K_n is k n.

    Raises:
        ValueError: For parameters out of range.
    """

    name = "remedi"
    paper = "RemeDi, arXiv 2509.23653"
    requires = ("written",)

    def choose(self, observation: Mapping[str, ArrayLike], candidates: BoolArray, kept: Kept) -> BoolArray:
        """What is surest now."""
        return self.keep(self.now(observation), candidates, kept)


class PRISM(Growing):
    """Takes back what a trained head thinks least of.

    PRISM (arXiv 2510.01384). In every step the ``back`` tokens of lowest ``quality`` are masked again, and
    k + ``back`` of what was masked before are written, those of highest c: after step n of a block exactly
    k n of its positions are revealed. Nothing goes back while ``back`` tokens or fewer stand, or while
    ``back`` masks or fewer are left, as in the released code for Sudokus.

    **What differs.** That code writes masks in random order and draws their tokens; here the surest come
    first, as in its code for LLaDA, and what is written is the dLLM's best token.

    Args:
        k: An integer >= 1.
        back: An integer >= 0. The released code takes 4 of the 51 empty cells of a Sudoku in each of 51
            steps, and 12 in the 32 steps of a block of 64 of LLaDA; 1 is the share of the former in texts
            of 13 positions.

    Raises:
        ValueError: For parameters out of range.
    """

    name = "prism"
    paper = "PRISM, arXiv 2510.01384"
    requires = ("quality",)

    def __init__(self, k: int = 1, back: int = 1) -> None:
        super().__init__(k)
        self.parameters["back"] = check_integer("back", back, minimum=0)

    def choose(self, observation: Mapping[str, ArrayLike], candidates: BoolArray, kept: Kept) -> BoolArray:
        """What stands without the worst of it, and what is surest."""
        confidence, quality = self.read(observation, "confidence"), self.read(observation, "quality")
        masked, back = self.masks(observation), self.parameters["back"]  # (B, L)
        standing = candidates & ~masked
        enough = np.minimum(standing.sum(axis=-1), (candidates & masked).sum(axis=-1)) > back
        worst = lowest(quality, standing, np.where(enough, back, 0))
        # what goes back comes behind every mask, and stands again where these are too few
        return self.keep(np.where(masked, confidence, np.where(worst, quality - 2, np.inf)), candidates, kept)
