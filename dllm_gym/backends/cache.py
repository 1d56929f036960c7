"""Caches of a dLLM's keys and values between the steps of an episode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dllm_gym.backends.attention import block_causal_mask

CACHES = ("blocks",)


class FinishedBlocks:
    """What a dLLM that attends in blocks need not compute again; exact.

    A token's keys, values and output depend on its own block and those before it, nothing else. So of the
    last batch everything holds up to the first block in which a row has changed, and it is found by
    comparing tokens: it does not matter which row of the batch an episode is now, who else is there, or
    what happened to the padding. The rows of one forward share the columns that are left out, those of the
    row that has changed furthest to the left; rows that have changed from the beginning are computed apart.
    """

    def __init__(self) -> None:
        self._last: _Batch | None = None

    def hidden(
        self, model: Any, tokens: Tensor, attention_mask: Tensor, first: Tensor, blocks: Tensor
    ) -> Tensor:
        """The last hidden states ``(B, T, H)`` of all columns.

        Args:
            model: A transformers base model, which gives ``last_hidden_state`` and keeps keys and values.
            tokens: ``(B, T)`` int64, left-padded.
            attention_mask: ``(B, T)``, 0 at padding.
            first: ``(B,)`` the first column of each row that is no padding.
            blocks: ``(B, T)`` the number of each column's block, see ``block_numbers``.
        """
        reusable, source = self._compare(tokens, first, blocks)  # (B,) each
        fresh = reusable <= first
        order, parts = [], []
        for group in (fresh.nonzero().flatten(), (~fresh).nonzero().flatten()):
            if len(group):
                skipped = 0 if fresh[group[0]] else int(reusable[group].min())
                past, before = self._recall(source[group], skipped, tokens.shape[1])
                order.append(group)
                parts.append(
                    _forward(
                        model, tokens[group], attention_mask[group], blocks[group], skipped, past, before
                    )
                )
        chosen = torch.cat(order)
        merged = [torch.cat(column) for column in zip(*parts, strict=True)]
        back = chosen.argsort()
        self._last = _Batch(tokens[chosen], first[chosen], blocks[chosen], merged[0], merged[1:])
        hidden: Tensor = merged[0][back.to(merged[0].device)]
        return hidden

    def _compare(self, tokens: Tensor, first: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """How many columns each row can take over, and from which row of the last batch."""
        none = torch.zeros_like(first)
        last = self._last
        if last is None:
            return none, none
        length, shared = tokens.shape[1], min(tokens.shape[1], last.tokens.shape[1])
        # from the right, where all rows are aligned; positions are counted from there, too
        same_length = (length - first)[:, None] == (last.tokens.shape[1] - last.first)[None]  # (B, N)
        now, then = tokens[:, None, -shared:], last.tokens[None, :, -shared:]
        differs = (now != then) | (blocks[:, None, -shared:] != last.blocks[None, :, -shared:])  # (B, N, S)
        differs &= (torch.arange(length - shared, length, device=first.device) >= first[:, None])[:, None]
        changed = torch.where(differs.any(-1), differs.int().argmax(-1) + length - shared, length)  # (B, N)
        changed = torch.where(same_length, changed, 0)
        best, source = changed.max(1)  # (B,)
        # whole blocks only; blocks never decrease along a row
        block = blocks.gather(1, best.clamp(max=length - 1)[:, None])
        return torch.where(best == length, length, (blocks < block).sum(1)), source

    def _recall(self, source: Tensor, skipped: int, length: int) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values ``(G, heads, skipped, d)`` in turns by layer, and hidden ``(G, skipped, H)``."""
        if skipped == 0 or self._last is None:
            return [], []
        last = self._last
        # under new padding stands whatever stood there first; it is never seen
        columns = torch.arange(skipped, device=source.device) - length + last.tokens.shape[1]
        rows, columns = source[:, None], columns.clamp(min=0)[None]
        states = [
            part.transpose(1, 2)[rows.to(part.device), columns.to(part.device)].transpose(1, 2)
            for part in last.states
        ]
        hidden = last.hidden[rows.to(last.hidden.device), columns.to(last.hidden.device)]
        return states, [hidden]


class _Batch:
    """One forward: its tokens and all that was computed of them."""

    def __init__(
        self, tokens: Tensor, first: Tensor, blocks: Tensor, hidden: Tensor, states: list[Tensor]
    ) -> None:
        self.tokens, self.first, self.blocks = tokens, first, blocks
        self.hidden, self.states = hidden, states


def _forward(
    model: Any,
    tokens: Tensor,
    attention_mask: Tensor,
    blocks: Tensor,
    skipped: int,
    past: list[Tensor],
    before: list[Tensor],
) -> list[Tensor]:
    """Hidden states of all columns, then keys and values of all columns in turns by layer."""
    from transformers import DynamicCache

    length = tokens.shape[1]
    if skipped == length:
        return [*before, *past]
    cache = DynamicCache(list(zip(past[::2], past[1::2], strict=True)) or None)
    hidden = model(
        input_ids=tokens[:, skipped:],
        attention_mask=block_causal_mask(blocks, attention_mask, model.dtype, skipped),
        position_ids=torch.arange(skipped - length, 0, device=tokens.device)[None],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    states = [state for layer in cache.layers for state in (layer.keys, layer.values)]
    return [torch.cat([*before, hidden], dim=1), *states]
