"""Rows of different lengths, as a backend gets them: prompts padded on the left, then completions."""

from __future__ import annotations

import numpy as np
import torch

LENGTH = 12  # of the completions


def canvases(backend, count, seed=0, *, prompts):
    """Token lists of different lengths: a prompt, taken in turns, then a completion with masks left in it."""
    rng = np.random.default_rng(seed)
    rows = []
    for at in range(count):
        completion = rng.integers(4, backend.vocab_size - 1, LENGTH)
        completion[rng.random(LENGTH) < 0.6] = backend.mask_token_id
        rows.append(backend.encode_prompt(prompts[at % len(prompts)]) + completion.tolist())
    return rows


def left_padded(backend, rows, extra=0):
    """Tokens and attention mask, with ``extra`` columns of padding besides."""
    width = max(map(len, rows)) + extra
    tokens = [[backend.pad_token_id] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(tokens), torch.tensor(mask)
