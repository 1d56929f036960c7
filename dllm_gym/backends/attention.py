"""Who sees whom: attention in blocks, as an additive mask that every attention implementation takes."""

from __future__ import annotations

import torch
from torch import Tensor


def block_numbers(first: Tensor, length: int, block_length: int) -> Tensor:
    """The number of the block that each column belongs to.

    Args:
        first: ``(B,)`` int64, the column at which block 0 of a row starts; those before it are negative.
        length: T, number of columns.
        block_length: Columns per block.

    Returns:
        ``(B, T)`` int64, never decreasing along a row.
    """
    columns = torch.arange(length, device=first.device)
    return torch.div(columns[None] - first[:, None], block_length, rounding_mode="floor")


def block_causal_mask(
    blocks: Tensor, attention_mask: Tensor, dtype: torch.dtype, queries: Tensor | None = None
) -> Tensor:
    """Attention where a token sees its own block and all before it, and no token sees padding.

    Additive, because a boolean mask is right with ``sdpa`` only: ``eager`` would add it to the scores.
    Padding itself sees everything: what it computes is never used, but a row of nothing but the smallest
    number may overflow to NaN, which spreads.

    Args:
        blocks: ``(B, T)``, see ``block_numbers``.
        attention_mask: ``(B, T)``, 0 at padding.
        dtype: Of the model; the smallest number it has hides.
        queries: ``(B, Q)`` int64, the columns that ask; ``None`` stands for all. All are asked.

    Returns:
        ``(B, 1, Q, T)``: 0 where seen, else the smallest number of ``dtype``.
    """
    real = attention_mask.bool()  # (B, T)
    asking, asking_real = blocks, real
    if queries is not None:
        asking, asking_real = blocks.gather(1, queries), real.gather(1, queries)
    seen = (blocks[:, None] <= asking[:, :, None]) & real[:, None]  # (B, Q, T)
    seen |= ~asking_real[:, :, None]
    return torch.where(seen, 0.0, torch.finfo(dtype).min).to(dtype)[:, None]
