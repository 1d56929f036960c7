"""What makes a small dLLM fast on a CPU: memory that stays, and attention with fewer passes over it."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

import torch
from torch import Tensor

ATTENTION = "dllm_gym_cpu"

# mallopt's parameters (malloc.h of glibc) and what each is set to, in bytes
_MALLOPT = {
    "M_MMAP_THRESHOLD": (-3, 32 << 20),
    "M_TRIM_THRESHOLD": (-1, 1 << 30),
    "M_TOP_PAD": (-2, 64 << 20),
}


def keep_freed_memory() -> bool:
    """Tells glibc to keep up to 1 GiB of freed memory in the process instead of handing it back.

    PyTorch allocates every intermediate result anew. glibc by default returns blocks of that size to the
    kernel at once, and the next forward pays for having the same pages mapped and zeroed again: a third of
    its time for the embedded dLLMs.

    Returns:
        Whether anything was set: not on other C libraries, nor if the user tunes malloc by environment
        variables (``MALLOC_...``, ``GLIBC_TUNABLES``) or has another allocator preloaded.
    """
    tuned = any(name.startswith("MALLOC_") for name in os.environ)
    if tuned or os.environ.get("GLIBC_TUNABLES") or os.environ.get("LD_PRELOAD") or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and all([mallopt(*setting) == 1 for setting in _MALLOPT.values()])


def register_attention() -> None:
    """Makes ``attn_implementation=ATTENTION`` known to transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, _padding_mask)


def _padding_mask(
    *, kv_length: int, attention_mask: Tensor | None = None, dtype: torch.dtype = torch.float32, **_: Any
) -> Tensor | None:
    """What hides padding from all queries alike, ``(B, 1, 1, T)``, to be added; ``None`` if there is none.

    It is all that a bidirectional model needs of transformers' ``eager_mask``, which writes it out T times.
    """
    if attention_mask is None or attention_mask.all():
        return None
    return torch.where(attention_mask[:, None, None, :kv_length].bool(), 0.0, torch.finfo(dtype).min).to(
        dtype
    )


def attention(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """softmax(query key^T scaling + mask) value, with the scale on the smaller operand, one softmax kernel.

    Below some hundred positions it is faster on a CPU than torch's ``scaled_dot_product_attention``.

    Args:
        query: ``(B, H, T, d)``.
        key: ``(B, H, S, d)``.
        value: ``(B, H, S, d)``.
        scaling: What scores are multiplied by.
        mask: Broadcast to ``(B, H, T, S)`` and added to the scores.

    Returns:
        That, ``(B, H, T, d)``, and the softmax, ``(B, H, T, S)``.
    """
    scores = torch.matmul(query * scaling, key.transpose(2, 3))  # (B, H, T, S)
    if mask is not None:
        scores = scores + mask
    weights = torch.softmax(scores, dim=-1)  # computed in float32 inside, whatever the dtype
    return torch.matmul(weights, value), weights


def _attention(
    module: Any,
    query: Tensor,  # (B, H, T, d)
    key: Tensor,  # (B, H / groups, T, d)
    value: Tensor,
    attention_mask: Tensor | None,  # (B, 1, 1 or T, T), added
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """``attention`` with the signature of transformers' ``eager_attention_forward``."""
    from transformers.models.llama.modeling_llama import repeat_kv

    key, value = (repeat_kv(x, module.num_key_value_groups) for x in (key, value))
    attended, weights = attention(query, key, value, scaling, attention_mask)
    return attended.transpose(1, 2).contiguous(), weights
