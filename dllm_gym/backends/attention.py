"""Who sees whom: attention in blocks, as a mask to be added to scores; and who looks at whom, as a mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


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


def layer_numbers(given: Any, count: int) -> tuple[int, ...]:
    """The layers that are meant by ``given``, from 0 on, in ascending order.

    Args:
        given: Numbers of layers, negative ones counted from the last; ``None`` stands for all.
        count: How many there are.

    Raises:
        ValueError: For anything else, and for none.
    """
    if given is None:
        return tuple(range(count))
    numbers = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else []
    if not numbers or not all(type(n) is int and -count <= n < count for n in numbers):
        raise ValueError(
            f"attention_layers must be numbers of layers, {-count} to {count - 1}, or None for all, "
            f"got {given!r}"
        )
    return tuple(sorted({n % count for n in numbers}))


def mean_attention(
    weights: Sequence[Tensor | None], layers: Sequence[int], rows: Tensor, columns: Tensor
) -> Tensor:
    """How much is read where: a mean over heads and layers.

    Args:
        weights: Per layer, the softmax ``(B, H, Q, S)`` of what Q columns read at S.
        layers: The numbers of those that count.
        rows: ``(K,)`` or ``(B, K)`` int64, which of the Q.
        columns: ``(J,)`` or ``(B, J)`` int64, which of the S.

    Returns:
        ``(B, K, J)`` float32.

    Raises:
        ValueError: If there is none of some layer.
    """
    counted = [weights[layer] for layer in layers if layer < len(weights)]
    means = [one.mean(1, dtype=torch.float32) for one in counted if one is not None]
    if len(means) < max(1, len(layers)):
        raise ValueError("this dLLM does not show how much is read where by each of its layers")
    mean = torch.stack([one.to(means[0].device) for one in means]).mean(0)  # (B, Q, S)
    return gathered(gathered(mean, rows).transpose(1, 2), columns).transpose(1, 2)


def without_capturing_hooks(model: nn.Module) -> None:
    """Takes off what transformers put into a model to show its attention; it puts it there again when asked.

    These are functions made inside functions, with which a model cannot be sent to another process.
    """
    for module in model.modules():
        if module.__dict__.pop("_output_capturing_hooks_installed", False):
            for part in module.modules():
                for key, hook in list(part._forward_hooks.items()):
                    if hook.__module__ == "transformers.utils.output_capturing":
                        del part._forward_hooks[key]


def gathered(values: Tensor, rows: Tensor) -> Tensor:
    """The rows ``(K,)`` or ``(B, K)`` of ``(B, T, H)``: ``(B, K, H)``."""
    rows = rows.to(values.device)
    if rows.ndim == 1:
        return values.index_select(1, rows)
    return values[torch.arange(len(rows), device=values.device)[:, None], rows]
