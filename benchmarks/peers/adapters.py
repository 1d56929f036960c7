"""What stands between a published loop and the transformers model of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.canvases import LENGTH, Case, Loop

NAMES = {"gen_length": "gen_length", "block_length": "block_length", "mask_id": "mask_id"}

Adapter = Callable[[Any, Tensor, Case, Any], Any]
"""Makes of a model, a prompt ``(1, P)``, case and backend what the loop calls instead of the model."""


class Answering:
    """A dLLM as a loop calls it that asks for more than logits: it gets what ``answer`` says."""

    def __init__(self, model: Any, answer: Callable[..., Any]) -> None:
        self.device, self.dtype, self.config, self._answer = model.device, model.dtype, model.config, answer

    def __call__(self, tokens: Tensor, *_: Any, **asked: Any) -> Any:
        """The answer."""
        return self._answer(tokens, **asked)


def driven(
    generate: Callable[..., Any], adapt: Adapter | None = None, names: Mapping[str, str] = NAMES
) -> Loop:
    """A loop out of a published function that takes model and prompt.

    Args:
        generate: The function. What it returns first are texts ``(1, P + L)`` or completions ``(1, L)``.
        adapt: What it calls instead of the model.
        names: What it calls the length of the completion, that of blocks and the mask token, as far as it
            takes them.
    """

    def loop(model: Any, prompts: list[list[int]], case: Case, backend: Any) -> np.ndarray:
        prompt = torch.tensor(prompts)
        called = model if adapt is None else adapt(model, prompt, case, backend)
        told = {"gen_length": LENGTH, "block_length": case.block_length, "mask_id": backend.mask_token_id}
        output = generate(called, prompt, **{names[name]: told[name] for name in names}, **case.peer)
        output = output[0] if isinstance(output, tuple) else output
        completions: np.ndarray = output[:, -LENGTH:].numpy()
        return completions

    return loop


def believe(output: Any, tokens: Tensor, mask_token_id: int) -> None:
    """Makes a model as sure of every token that stands as it is of that token, whichever it likes best."""
    vocabulary = output.logits.shape[-1]
    written = output.logits.softmax(-1).gather(-1, tokens[..., None])  # (B, T, 1)
    others = (1 - written).clamp(min=0) / (vocabulary - 1)
    certain = torch.where(torch.arange(vocabulary) == tokens[..., None], written, others).log()
    output.logits = torch.where((tokens != mask_token_id)[..., None], certain, output.logits)
