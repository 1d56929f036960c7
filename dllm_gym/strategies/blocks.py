"""Rules with windows of their own: where a step may reveal is theirs to say, besides how much.

They are for environments without blocks (``block_length=None``): where there are any, a rule sees no
candidate outside the active one. What is common to all rules and the letters are explained in ``topk``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from dllm_gym.strategies.base import BoolArray, Strategy, best, check_integer, check_number, first_block
from dllm_gym.strategies.memory import Kept, Remembering


class MultiBlock(Strategy):
    """Reveals what has a low entropy in several blocks, which open one after the other as they fill up.

    The multi-block decoding of d3LLM (arXiv 2601.07568) without a cache. The first block is open; the next
    one opens when the share ``opening`` of the last is revealed. All candidates of open blocks with
    H <= ``entropy`` are revealed, and always the lowest of all and the lowest of the first block with masks.

    In the released loop a block must be activated before anything is forced in it, when the share
    ``decoded_token_threshold`` of the one before it is revealed: the first with masks always is, so that this
    makes no difference. It can also end at an end token (``early_stop``), as the environment with
    ``stop_at_eos``.

    Args:
        entropy: A number >= 0, in nats; the paper takes 0.5 for LLaDA and 0.4 for Dream.
        opening: A number in (0, 1] (``block_add_threshold``); the released scripts take 0.1.
        block_length: An integer >= 1.

    Raises:
        ValueError: For parameters out of range.
    """

    name = "multi-block"
    paper = "d3LLM, arXiv 2601.07568"
    requires = ("entropy",)

    def __init__(self, entropy: float = 0.5, opening: float = 0.5, block_length: int = 32) -> None:
        super().__init__(
            entropy=check_number("entropy", entropy, 0),
            opening=check_number("opening", opening, 0, 1, exclusive=True),
            block_length=check_integer("block_length", block_length, minimum=1),
        )

    def select(self, observation: Mapping[str, ArrayLike], candidates: BoolArray) -> BoolArray:
        """What is sure enough in the open blocks."""
        entropy = self.read(observation, "entropy")  # (B, L)
        masked = self.read(observation, "mask") != 0
        block_length, length = self.parameters["block_length"], candidates.shape[-1]
        starts = np.arange(0, length, block_length)
        block = np.arange(length) // block_length
        revealed = np.add.reduceat(~masked, starts, axis=-1, dtype=np.int64)  # (B, blocks)
        filled = revealed / np.minimum(length - starts, block_length) >= self.parameters["opening"]
        opened = np.logical_and.accumulate(np.insert(filled[:, :-1], 0, True, axis=-1), axis=-1)
        inside = candidates & opened[:, block]
        first = candidates & first_block(candidates, block_length)
        selected: BoolArray = inside & (entropy <= np.float32(self.parameters["entropy"]))
        return selected | best(-entropy, inside) & inside | best(-entropy, first) & first


class AdaBlock(Remembering):
    """The threshold rule in blocks that end at a delimiter, where the dLLM is sure of one.

    AdaBlock (arXiv 2509.26432). When a block begins at position i, the ``delimiter`` token of highest
    confidence among the next ``share`` of all positions ends it, if that confidence is >= ``sureness``; else
    the block has ``block_length`` positions. Inside, all candidates with c >= ``threshold`` are revealed, and
    the most confident one always. It costs no further forward: the step that sets the end reveals as well.

    Args:
        threshold: A number in [0, 1].
        sureness: A number in [0, 1] (``delimiter_threshold``).
        delimiter: A token id, an integer >= 0; 198 is LLaDA's newline. A dLLM that has no such token is
            decoded in blocks of ``block_length``.
        block_length: An integer >= 1.
        share: A number in [0, 1].

    Raises:
        ValueError: For parameters out of range.
    """

    name = "adablock"
    paper = "AdaBlock, arXiv 2509.26432"
    requires = ("predicted",)

    def __init__(
        self,
        threshold: float = 0.9,
        sureness: float = 0.3,
        delimiter: int = 198,
        block_length: int = 32,
        share: float = 0.25,
    ) -> None:
        super().__init__(
            threshold=check_number("threshold", threshold, 0, 1),
            sureness=check_number("sureness", sureness, 0, 1),
            delimiter=check_integer("delimiter", delimiter, minimum=0),
            block_length=check_integer("block_length", block_length, minimum=1),
            share=check_number("share", share, 0, 1),
        )

    def fresh(self, rows: int, length: int) -> Kept:
        """``end`` ``(B,)``: where the block ends, the first position behind it."""
        return {"end": np.zeros(rows, dtype=np.int64)}

    def choose(self, observation: Mapping[str, ArrayLike], candidates: BoolArray, kept: Kept) -> BoolArray:
        """What reaches the threshold in the block."""
        confidence = self.read(observation, "confidence")  # (B, L)
        tokens = self.read_tokens(observation, "predicted")
        position, length = np.arange(candidates.shape[-1]), candidates.shape[-1]
        over = ~(candidates & (position < kept["end"][:, None])).any(axis=-1)
        begin = candidates.argmax(axis=-1)[:, None]  # (B, 1)
        window = (position >= begin) & (position < begin + int(self.parameters["share"] * length))
        delimiters = window & (tokens == self.parameters["delimiter"])
        sure = delimiters & (confidence >= np.float32(self.parameters["sureness"]))
        surest = np.where(delimiters, confidence, -1).argmax(axis=-1)
        usual = begin[:, 0] + self.parameters["block_length"]
        end = np.where(sure.any(axis=-1), surest + 1, usual)
        kept["end"] = np.where(over, end, kept["end"])
        inside = candidates & (position < kept["end"][:, None])
        selected: BoolArray = inside & (confidence >= np.float32(self.parameters["threshold"]))
        return selected | best(confidence, inside) & inside


class SlowFast(Remembering):
    """Explores until it is stable how far the dLLM has something to say, then decodes that far in parallel.

    SlowFast sampling (arXiv 2506.10848). A cycle begins where the one before ended. *Slow*: its end is
    estimated behind the last candidate with c >= ``sureness``, or behind the first position of the cycle if
    there is none. It is fixed when two estimates in a row differ by less than 2 (a standard deviation below
    1), and after ``explore`` steps at the mean of the last two, rounded down. *Fast*: the steps after that
    reveal in the cycle only; when nothing in it is masked, the next one begins. In both phases all candidates
    with c >= ``threshold`` are revealed, slow ones anywhere behind the beginning of the cycle, and the most
    confident one always.

    The released loop takes all ``explore`` slow steps even if the end was fixed before, keeps all rows of a
    batch in the same phase, and does not compute anew what lies behind the cycle.

    Args:
        threshold: A number in [0, 1] (``high_confidence_threshold``; 0.85 in the paper).
        sureness: A number in [0, 1] (``cycle_len_confidence_threshold``; 0.1 in the paper).
        explore: An integer >= 1 (``k_exploration_steps``; 8 in the paper).

    Raises:
        ValueError: For parameters out of range.
    """

    name = "slow-fast"
    paper = "SlowFast, arXiv 2506.10848"

    def __init__(self, threshold: float = 0.9, sureness: float = 0.3, explore: int = 6) -> None:
        super().__init__(
            threshold=check_number("threshold", threshold, 0, 1),
            sureness=check_number("sureness", sureness, 0, 1),
            explore=check_integer("explore", explore, minimum=1),
        )

    def fresh(self, rows: int, length: int) -> Kept:
        """Of the cycle, each ``(B,)``: where it begins, ends (0: not fixed), slow steps, last estimate."""
        return {name: np.zeros(rows, dtype=np.int64) for name in ("begin", "end", "slow", "estimate")}

    def choose(self, observation: Mapping[str, ArrayLike], candidates: BoolArray, kept: Kept) -> BoolArray:
        """What is sure, in the cycle or behind its beginning."""
        confidence = self.read(observation, "confidence")  # (B, L)
        position, length = np.arange(candidates.shape[-1]), candidates.shape[-1]
        in_cycle = candidates & (position < kept["end"][:, None])
        anew = (kept["block_steps"] == 0) | (kept["end"] > 0) & ~in_cycle.any(axis=-1)
        begin = np.where(anew, kept["end"], kept["begin"])
        begin = np.where(kept["block_steps"] == 0, candidates.argmax(axis=-1), begin)
        end = np.where(anew, 0, kept["end"])
        slow = end == 0  # (B,)
        taken = np.where(anew, 0, kept["slow"]) + slow
        likely = candidates & (confidence >= np.float32(self.parameters["sureness"]))
        farthest = length - likely[:, ::-1].argmax(axis=-1)
        estimate = np.where(likely.any(axis=-1), farthest, begin + 1)
        before = np.where(taken > 1, kept["estimate"], estimate)
        stable = slow & (taken > 1) & (abs(estimate - before) < 2)
        end = np.where(stable, estimate, end)
        tired = slow & ~stable & (taken == self.parameters["explore"])
        end = np.where(tired, (before + estimate) // 2, end)
        kept |= {"begin": begin, "end": end, "slow": taken, "estimate": np.where(slow, estimate, before)}
        window = np.where(slow[:, None], candidates, in_cycle)
        selected: BoolArray = window & (confidence >= np.float32(self.parameters["threshold"]))
        return selected | best(confidence, window) & window
