"""Rules that replace tokens: where the dLLM would write another one now, it is written in the same step.

They play with ``actions="edit"``. What is common to all rules and the letters are explained in ``topk``, what
is common to those that take tokens back in ``remasking``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from dllm_gym.strategies.base import BoolArray, best, check_integer, check_number, or_else
from dllm_gym.strategies.memory import Kept
from dllm_gym.strategies.remasking import RemaskingRule


class JointThreshold(RemaskingRule):
    """Reveals what is sure, and replaces tokens where another one is.

    The decoding of LLaDA2.1 (arXiv 2602.08676), which has two thresholds. In one step all masked positions
    with c > ``threshold`` are revealed, or else the surest, and every token of the block is replaced by the
    dLLM's best one if that is another, of a probability > ``edit``. A full block is looked at until nothing
    is replaced any more (``finish="confirm"``), which costs one forward at least. At most ``post`` looks at
    it replace anything. Published are 0.7 and 0.5 for quality (Q mode), 0.5 and 0 for speed (S mode).

    **What differs.** Where ``post`` looks did not settle a block, one more lets it stand; the released loop
    spends no forward on that. Blocks that are finished are final: the paper's variant that edits them, too
    (multiple block editing), is not here.

    A block may take more steps than it has positions; an episode without enough of them ends with masks.

    Args:
        threshold: A number in [0, 1] (tau mask).
        edit: A number in [0, 1] (tau edit).
        post: An integer >= 1 (``max_post_steps``, 16 in the released code).

    Raises:
        ValueError: For parameters out of range.
    """

    name = "joint-threshold"
    paper = "LLaDA2.1, arXiv 2602.08676"
    requires = ("tokens", "predicted", "predicted_confidence")
    plays: ClassVar[Mapping[str, Any]] = {"actions": "edit", "finish": "confirm"}

    def __init__(self, threshold: float = 0.7, edit: float = 0.5, post: int = 16) -> None:
        super().__init__(
            threshold=check_number("threshold", threshold, 0, 1),
            edit=check_number("edit", edit, 0, 1),
            post=check_integer("post", post, minimum=1),
        )

    def fresh(self, rows: int, length: int) -> Kept:
        """``looks`` ``(B,)``: how often the block was full when it was looked at."""
        return {"looks": np.zeros(rows, dtype=np.int64)}

    def choose(self, observation: Mapping[str, ArrayLike], candidates: BoolArray, kept: Kept) -> BoolArray:
        """What is sure, without the tokens that go."""
        sure = self.read(observation, "confidence")  # (B, L)
        masked = candidates & self.masks(observation)
        new = or_else(sure > np.float32(self.parameters["threshold"]), masked, best(sure, masked) & masked)
        standing = candidates & ~masked
        kept["looks"] = np.where(kept["block_steps"] == 0, 0, kept["looks"]) + ~masked.any(axis=-1)
        replaced = self.surer_of_another(observation, self.parameters["edit"])
        replaced &= (kept["looks"] <= self.parameters["post"])[:, None]
        return new | (standing & ~replaced)
