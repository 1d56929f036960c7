"""The canvas: token buffers of a batch of episodes. No model, no Gymnasium, only which token stands where."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from dllm_gym.envs.rows import BoolArray, IntArray, PerRow


class Canvas(PerRow):
    """Episodes in flight, one per row; any row can be started afresh while the others go on.

    A row is a prompt followed by ``completion_length`` positions that start as mask tokens. What is revealed
    stays so, unless there are ``remasks``: then the tokens of the active block may be taken back, and perhaps
    replaced, until the block is finished.

    Attributes:
        masked: ``(N, L)`` bool, positions not revealed.
        open: ``(N, L)`` bool, positions that may still change.
        just_revealed: ``(N, L)`` bool, positions written by the row's last step.
        just_remasked: ``(N, L)`` bool, positions it took back; those written, too, were replaced.
        remasked: ``(N, L)`` int64, how often each position was taken back.
        steps: ``(N,)`` int64, steps used.
        block_lengths: ``(N,)`` int64, positions per block.

    Args:
        num_rows: N.
        completion_length: L.
        block_length: Width of the semi-autoregressive window; L means full diffusion. ``start`` may say
            another one.
        mask_token_id: Fills the completion at the start.
        pad_token_id: Fills up short prompts.
        end_token_ids: If given, a row is also finished once one of these and everything before it
            are revealed.
        blocks_from_prompt: Whether blocks are counted from the first token of the prompt, so that the
            first one of the completion may be shorter.
        max_steps: The budget of steps; ``None`` is L.
        remasks: How often each position may be taken back.
        confirm: Whether a full block is finished only by a step that changes nothing in it, and a text up to
            its end token only by one that changes nothing in that.
    """

    per_row = (
        *("_block_of", "_prompts", "_completions"),
        *("masked", "open", "just_revealed", "just_remasked", "remasked", "steps", "block_lengths"),
    )

    def __init__(
        self,
        num_rows: int,
        completion_length: int,
        block_length: int,
        mask_token_id: int,
        pad_token_id: int,
        end_token_ids: Collection[int] | None = None,
        blocks_from_prompt: bool = False,
        *,
        max_steps: int | None = None,
        remasks: int = 0,
        confirm: bool = False,
    ) -> None:
        self.completion_length = completion_length
        self.max_steps = completion_length if max_steps is None else max_steps
        self._remasks, self._confirm = remasks, confirm
        self._blocks_from_prompt = blocks_from_prompt
        self._mask_token_id = mask_token_id
        self._pad_token_id = pad_token_id
        self._rows = np.arange(num_rows)
        self._end_token_ids = None if end_token_ids is None else np.array(sorted(end_token_ids))
        self.block_lengths: IntArray = np.full(num_rows, block_length)
        self._block_of = block_numbers(completion_length, block_length, np.zeros(num_rows, dtype=np.int64))
        self._prompts: list[IntArray] = [np.zeros(0, dtype=np.int64)] * num_rows  # of their own lengths
        self._completions = np.full((num_rows, completion_length), mask_token_id, dtype=np.int64)  # (N, L)
        self.masked: BoolArray = np.ones((num_rows, completion_length), dtype=bool)
        self.open: BoolArray = np.ones((num_rows, completion_length), dtype=bool)
        self.just_revealed: BoolArray = np.zeros((num_rows, completion_length), dtype=bool)
        self.just_remasked: BoolArray = np.zeros((num_rows, completion_length), dtype=bool)
        self.remasked: IntArray = np.zeros((num_rows, completion_length), dtype=np.int64)
        self.steps: IntArray = np.zeros(num_rows, dtype=np.int64)

    def start(
        self,
        rows: IntArray,
        prompts: Sequence[Sequence[int]],
        block_lengths: Sequence[int] | IntArray | None = None,
    ) -> None:
        """Gives some rows ``(R,)`` a prompt each and an empty completion.

        Args:
            rows: ``(R,)``.
            prompts: R of them.
            block_lengths: ``(R,)``; ``None`` is what they had.
        """
        if block_lengths is not None:
            self.block_lengths[rows] = block_lengths
        for row, prompt in zip(rows.tolist(), prompts, strict=True):
            self._prompts[row] = np.array(prompt, dtype=np.int64)
        offsets = self.block_offsets(rows)
        self._block_of[rows] = block_numbers(self.completion_length, self.block_lengths[rows], offsets)
        self._completions[rows] = self._mask_token_id
        self.masked[rows] = self.open[rows] = True
        self.just_revealed[rows] = self.just_remasked[rows] = False
        self.remasked[rows] = 0
        self.steps[rows] = 0

    def block_offsets(self, rows: IntArray) -> IntArray:
        """``(R,)``: how many tokens of the prompt are in the first block of the completion, for some rows."""
        lengths = self._lengths(rows)
        return lengths % self.block_lengths[rows] if self._blocks_from_prompt else np.zeros_like(lengths)

    def in_active_block(self) -> BoolArray:
        """``(N, L)``: inside the first block that is not finished; the very first if all are."""
        first_open = self.open.argmax(axis=1)  # (N,)
        inside: BoolArray = self._block_of == self._block_of[self._rows, first_open][:, None]
        return inside

    def active_window(self, rows: IntArray) -> IntArray:
        """``(R, 2)``: begin and end of the active blocks of some rows."""
        inside = self.in_active_block()[rows]
        return np.stack([inside.argmax(axis=1), inside.shape[1] - inside[:, ::-1].argmax(axis=1)], axis=1)

    def selectable(self) -> BoolArray:
        """``(N, L)``: inside the active block, and masked or to be taken back."""
        return self.changeable() & self.in_active_block()

    def changeable(self) -> BoolArray:
        """``(N, L)``: masked, or to be taken back by a later step; the rest is final."""
        may_change: BoolArray = (self.masked | (self.remasked < self._remasks)) & self.open
        return may_change

    def apply(
        self, rows: IntArray, writing: BoolArray, tokens: IntArray, taking_back: BoolArray | None = None
    ) -> None:
        """Writes at positions, takes tokens back and counts a step.

        Args:
            rows: ``(R,)`` rows to step.
            writing: ``(R, L)`` positions to write at, all of them masked or taken back.
            tokens: ``(R, L)`` what to write there.
            taking_back: ``(R, L)`` positions whose token goes, all of them revealed. They are masked again
                unless they are written at. ``None`` is none.
        """
        if taking_back is None:
            taking_back = np.zeros_like(writing)
        emptied = taking_back & ~writing
        written = np.where(writing, tokens, self._completions[rows])
        self._completions[rows] = np.where(emptied, self._mask_token_id, written)
        self.masked[rows] = (self.masked[rows] & ~writing) | emptied
        self.just_revealed[rows], self.just_remasked[rows] = writing, taking_back
        self.remasked[rows] += taking_back
        self.steps[rows] += 1
        self._close(rows)

    def _close(self, rows: IntArray) -> None:
        """Closes the active blocks of some rows where they are finished."""
        inside, standing = self.in_active_block()[rows], self._standing()[rows]
        finished = (standing | ~inside).all(axis=1, keepdims=True)  # (R, 1)
        self.open[rows] &= ~(inside & finished)

    def _standing(self) -> BoolArray:
        """``(N, L)``: revealed and, where that needs to be confirmed, not only by the last step."""
        return ~(self.masked | self.just_revealed) if self._confirm else ~self.masked

    def finished(self) -> BoolArray:
        """``(N,)``: every block finished, the budget of steps used, or the end token reached."""
        done = ~self.open.any(axis=1) | (self.steps >= self.max_steps)
        if self._end_token_ids is not None:
            # everything up to the first mask is revealed; is an end token among it?
            revealed_prefix = np.logical_and.accumulate(self._standing(), axis=1)  # (N, L)
            done |= (revealed_prefix & np.isin(self._completions, self._end_token_ids)).any(axis=1)
        return done

    def completions(self, rows: IntArray | None = None) -> IntArray:
        """``(N, L)`` completion tokens (of ``rows`` only, if given), a fresh array."""
        return self._completions.copy() if rows is None else self._completions[rows]

    def model_input(self, rows: IntArray) -> tuple[IntArray, IntArray]:
        """Tokens and attention mask ``(R, P + L)`` of some rows, P their longest prompt."""
        prompts = [self._prompts[row] for row in rows.tolist()]
        return left_padded(prompts, self._completions[rows], self._pad_token_id)

    def _lengths(self, rows: IntArray) -> IntArray:
        """``(R,)``: how long the prompts of some rows are."""
        return np.array([len(self._prompts[row]) for row in rows.tolist()], dtype=np.int64)


def left_padded(
    prompts: Sequence[Sequence[int] | IntArray], completions: IntArray, pad_token_id: int
) -> tuple[IntArray, IntArray]:
    """Prompts and completions as a dLLM reads them, and their attention mask, ``(B, P + L)`` int64 each.

    Args:
        prompts: B of them, of their own lengths; P is the longest one's.
        completions: ``(B, L)``.
        pad_token_id: Fills up the others on the left.
    """
    lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)  # (B,)
    longest = int(lengths.max(initial=0))
    tokens = np.full((len(prompts), longest + completions.shape[1]), pad_token_id)
    for line, prompt in zip(tokens, prompts, strict=True):
        line[longest - len(prompt) : longest] = prompt
    tokens[:, longest:] = completions
    real = np.arange(tokens.shape[1]) >= (longest - lengths)[:, None]
    return tokens, real.astype(np.int64)


def block_numbers(length: int, block_length: int | IntArray, offset: IntArray) -> IntArray:
    """The block each position is in, from 0.

    Args:
        length: L.
        block_length: Positions per block; or ``(N,)`` such numbers.
        offset: ``(N,)``, by how many positions the first block is shorter than the others.

    Returns:
        ``(N, L)``.
    """
    numbers: IntArray = (np.arange(length) + offset[:, None]) // np.asarray(block_length)[..., None]
    return numbers
