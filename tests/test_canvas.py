"""The canvas against a reading of its definition in plain lists."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_gym.envs.canvas import Canvas

MASK, PAD, END = 98, 99, 7


class SlowRow:
    """One row of a canvas: lists and loops."""

    def __init__(self, length, block_length, ends, blocks_from_prompt):
        self.length, self.block_length, self.ends = length, block_length, ends
        self.blocks_from_prompt = blocks_from_prompt
        self.prompt, self.tokens, self.steps, self.fresh = [], [MASK] * length, 0, set()

    def start(self, prompt, block_length):
        self.block_length = block_length
        self.prompt, self.tokens, self.steps, self.fresh = list(prompt), [MASK] * self.length, 0, set()

    def selectable(self):
        # a block may begin in the prompt, where it has no masks
        before = len(self.prompt) if self.blocks_from_prompt else 0
        for first in range(0, before + self.length, self.block_length):
            block = [i - before for i in range(first, first + self.block_length)]
            masked = [i for i in block if 0 <= i < self.length and self.tokens[i] == MASK]
            if masked:
                return masked
        return []

    def apply(self, positions, tokens):
        for i in positions:
            self.tokens[i] = tokens[i]
        self.fresh = set(positions)
        self.steps += 1

    def finished(self):
        written = self.tokens[: self.tokens.index(MASK)] if MASK in self.tokens else self.tokens
        return MASK not in self.tokens or self.steps >= self.length or any(t in self.ends for t in written)


def bits(positions, length):
    return np.isin(np.arange(length), list(positions))


def check(canvas, rows):
    length = canvas.completion_length
    everyone = np.arange(len(rows))
    np.testing.assert_array_equal(canvas.completions(), [row.tokens for row in rows])
    np.testing.assert_array_equal(canvas.masked, [[t == MASK for t in row.tokens] for row in rows])
    np.testing.assert_array_equal(canvas.selectable(), [bits(row.selectable(), length) for row in rows])
    np.testing.assert_array_equal(canvas.just_revealed, [bits(row.fresh, length) for row in rows])
    np.testing.assert_array_equal(canvas.steps, [row.steps for row in rows])
    np.testing.assert_array_equal(canvas.finished(), [row.finished() for row in rows])
    for some in (everyone, everyone[::2], everyone[-1:]):
        longest = max(len(rows[i].prompt) for i in some)
        pads = [longest - len(rows[i].prompt) for i in some]
        tokens, attention = canvas.model_input(some)
        assert tokens.dtype == attention.dtype == np.int64
        np.testing.assert_array_equal(
            tokens, [[PAD] * pad + rows[i].prompt + rows[i].tokens for i, pad in zip(some, pads, strict=True)]
        )
        np.testing.assert_array_equal(attention, [[0] * pad + [1] * (longest - pad + length) for pad in pads])
        np.testing.assert_array_equal(canvas.completions(some), [rows[i].tokens for i in some])


@settings(max_examples=60)
@given(data=st.data())
def test_equals_plain_lists(data):
    num_rows, length = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    block_length = data.draw(st.integers(1, length))
    ends = data.draw(st.sampled_from([None, (END,), (END, 3)]))
    from_prompt, several = data.draw(st.booleans()), data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    canvas = Canvas(num_rows, length, block_length, MASK, PAD, ends, from_prompt)
    rows = [SlowRow(length, block_length, ends or (), from_prompt) for _ in range(num_rows)]

    def start(chosen, longest):
        prompts = [rng.integers(0, 9, rng.integers(0, longest)).tolist() for _ in chosen]
        own = rng.integers(1, length + 1, len(chosen)) if several else np.full(len(chosen), block_length)
        canvas.start(chosen, prompts, own if several else None)
        for row, prompt, block in zip(chosen, prompts, own.tolist(), strict=True):
            rows[row].start(prompt, block)

    start(np.arange(num_rows), 6)
    check(canvas, rows)
    for _ in range(8):
        moving = np.flatnonzero(rng.random(num_rows) < 0.7)
        tokens = rng.integers(0, 9, (len(moving), length))
        selected = canvas.selectable()[moving] & (rng.random((len(moving), length)) < 0.5)
        canvas.apply(moving, selected, tokens)
        for at, row in enumerate(moving):
            rows[row].apply(np.flatnonzero(selected[at]).tolist(), tokens[at].tolist())
        start(np.flatnonzero(rng.random(num_rows) < 0.3), 12)
        check(canvas, rows)


def test_padding_is_no_wider_than_the_rows_asked_for_need():
    canvas = Canvas(3, 2, 2, MASK, PAD)
    canvas.start(np.arange(3), [[1] * 10, [2], [3, 3]])
    assert canvas.model_input(np.array([0, 1]))[0].shape == (2, 12)
    tokens, attention = canvas.model_input(np.array([2, 1]))
    assert tokens.tolist() == [[3, 3, MASK, MASK], [PAD, 2, MASK, MASK]]
    assert attention.tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]


def test_what_it_hands_out_is_not_its_own_memory():
    canvas = Canvas(2, 4, 2, MASK, PAD)
    canvas.start(np.arange(2), [[1, 2], [1, 2]])
    tokens, attention = canvas.model_input(np.arange(2))
    for array in (
        tokens,
        attention,
        canvas.completions(),
        canvas.completions(np.arange(2)),
        canvas.selectable(),
    ):
        array[:] = 0
    assert canvas.completions().tolist() == [[MASK] * 4] * 2
    assert canvas.model_input(np.arange(2))[0].tolist() == [[1, 2] + [MASK] * 4] * 2
    assert canvas.selectable().tolist() == [[True, True, False, False]] * 2


@pytest.mark.parametrize(
    ("revealed", "over"), [([2], False), ([0, 2], False), ([0, 1], False), ([0, 1, 2], True)]
)
def test_an_end_token_counts_once_everything_before_it_is_revealed(revealed, over):
    canvas = Canvas(1, 4, 4, MASK, PAD, end_token_ids=[END])
    canvas.start(np.array([0]), [[1]])
    canvas.apply(np.array([0]), bits(revealed, 4)[None], np.array([[5, 5, END, 5]]))
    assert canvas.finished().tolist() == [over]
