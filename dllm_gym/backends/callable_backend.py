"""Any function from tokens to logits as a backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from dllm_gym.backends.base import Message, Prediction, predict_from_logits


class Tokenizer(Protocol):
    """What ``CallableBackend`` asks of a tokenizer; those of transformers have it."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids."""
        ...


class CallableBackend:
    """A frozen dLLM given by a function that returns logits.

    Args:
        logits: Called under ``torch.inference_mode`` with tokens ``(B, T)`` int64 and attention mask
            ``(B, T)`` int64, on ``device``. Rows are left-padded prompts followed by completions; where
            the attention mask is 0, it must not matter which token stands there. Returns ``(B, T, V)``,
            any float dtype, where row i is about token i.
        tokenizer: Has ``encode(text)`` and ``decode(ids)``.
        mask_token_id: The token that stands where nothing is revealed yet.
        eos_token_id: The token that ends a completion.
        vocab_size: V.
        pad_token_id: Fills up short prompts; ``None`` takes ``eos_token_id``.
        device: Where the function expects its input.

    Raises:
        ValueError: For a token id outside the vocabulary, or a mask that is also end or padding.
    """

    def __init__(
        self,
        logits: Callable[[Tensor, Tensor], Tensor],
        tokenizer: Tokenizer,
        *,
        mask_token_id: int,
        eos_token_id: int,
        vocab_size: int,
        pad_token_id: int | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self._logits = logits
        self.tokenizer: Any = tokenizer
        self.mask_token_id, self.eos_token_id, self.vocab_size = mask_token_id, eos_token_id, vocab_size
        self.pad_token_id = eos_token_id if pad_token_id is None else pad_token_id
        self.device = torch.device(device)
        for name in ("mask_token_id", "eos_token_id", "pad_token_id"):
            if not 0 <= getattr(self, name) < vocab_size:
                raise ValueError(f"{name} must be 0 to {vocab_size - 1}, got {getattr(self, name)}")
        if mask_token_id in (self.eos_token_id, self.pad_token_id):
            raise ValueError(f"mask_token_id {mask_token_id} is also the end or padding token")

    def __deepcopy__(self, memo: dict[int, Any]) -> CallableBackend:
        """Itself: the model is frozen, and Gymnasium deep-copies the keywords of an environment."""
        return self

    def encode_prompt(self, prompt: str | Sequence[Message]) -> list[int]:
        """Token ids of a text, or of the contents of chat messages, one per line.

        Raises:
            ValueError: If the mask token is among them.
        """
        text = prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
        ids = [int(token) for token in self.tokenizer.encode(text)]
        if self.mask_token_id in ids:
            raise ValueError(f"the prompt {prompt!r:.200} contains the dLLM's mask token")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a completion, cut at its first end token."""
        kept = [int(token) for token in ids]
        if self.eos_token_id in kept:
            kept = kept[: kept.index(self.eos_token_id)]
        return str(self.tokenizer.decode(kept))

    @torch.inference_mode()
    def predict(
        self, tokens: Tensor, attention_mask: Tensor, positions: slice | Tensor, **options: Any
    ) -> Prediction:
        """See ``Backend.predict``, whose further arguments ``options`` are.

        Raises:
            ValueError: If the function returns another shape, or for what ``predict_from_logits`` refuses.
        """
        tokens = tokens.to(self.device)
        logits = self._logits(tokens, attention_mask.to(self.device))
        expected = (*tokens.shape, self.vocab_size)
        if tuple(logits.shape) != expected:
            raise ValueError(f"logits must be of shape {expected}, got {tuple(logits.shape)}")
        return predict_from_logits(
            logits[:, positions], self.mask_token_id, standing=tokens[:, positions], **options
        )
