"""What a dLLM thinks of answers that are given: LLaDA's estimate of their log-likelihood."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dllm_gym.backends.base import Backend
from dllm_gym.envs.canvas import left_padded
from dllm_gym.envs.engine import Engine
from dllm_gym.evaluation.agents import as_agent
from dllm_gym.evaluation.decode import decode
from dllm_gym.prompts import PromptTask

Pair = tuple[Sequence[int], Sequence[int]]  # token ids of a prompt and of an answer to it


def log_likelihoods(
    backend: Backend, pairs: Sequence[Pair], samples: int = 128, seed: int = 0, batch_size: int = 32
) -> NDArray[np.float64]:
    """Estimates of lower bounds of log p(answer | prompt).

    LLaDA's ``eval_llada.py`` (arXiv 2502.09992): of an answer of K tokens l are masked, l spread evenly over
    1 to K from a random begin, which ones drawn uniformly; K / l times the log-probability of what was
    masked, averaged over the samples. That is the original with all samples in one batch; here the batch size
    changes nothing, and equal samples are computed once: an answer of one token takes one row. As there the
    mask is among the tokens that have a probability, which is computed in float32.

    Args:
        backend: One that shows its logits (``TransformersBackend``) and attends in all directions.
        pairs: Token ids of prompts and of answers. Answers of one length to the same prompt are masked alike,
            so that comparing them has less noise.
        samples: Masks per pair.
        seed: Seeds the masks, with the prompt.
        batch_size: Rows of a forward.

    Returns:
        ``(N,)``, in nats.

    Raises:
        ValueError: For a dLLM that this is no estimate for, an empty prompt or answer, one without room, or
            arguments out of range.
    """
    forward = _forward_of(backend)
    for name, value in (("samples", samples), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    rows: dict[int, list[tuple[int, NDArray[np.bool_], float]]] = defaultdict(list)
    for at, (prompt, answer) in enumerate(pairs):
        _check_pair(backend, prompt, answer)
        masks = draw_masks(len(answer), samples, np.random.default_rng([seed, *prompt]))
        distinct, counts = np.unique(masks, axis=0, return_counts=True)
        for mask, count in zip(distinct, counts.tolist(), strict=True):
            rows[len(answer)].append((at, mask, count * len(answer) / mask.sum() / samples))
    found = np.zeros(len(pairs))
    for same in rows.values():  # of answers of one length: their columns are the same
        same.sort(key=lambda row: len(pairs[row[0]][0]))  # prompts of similar length save padding
        for begin in range(0, len(same), batch_size):
            batch = same[begin : begin + batch_size]
            log_p = _log_probabilities(backend, forward, [(*pairs[at], mask) for at, mask, _ in batch])
            for (at, mask, weight), one in zip(batch, log_p, strict=True):
                found[at] += weight * one[mask].sum()
    return found


def draw_masks(length: int, samples: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which tokens of an answer are masked, ``(samples, length)``: ``_forward_process`` of LLaDA's."""
    spread = rng.integers(1, length + 1) + np.arange(samples) * (length / samples)
    counts = (np.rint(spread).astype(np.int64) - 1) % length + 1
    return rng.permuted(np.arange(length) < counts[:, None], axis=1)


def are_greedy(backend: Backend, pairs: Sequence[Pair], batch_size: int = 32) -> NDArray[np.bool_]:
    """Whether the dLLM itself writes just these answers in canvases of their length, ``(N,)``.

    ``suffix_greedy_prediction`` of LLaDA's ``eval_llada.py``: the most confident position in every step.

    Raises:
        ValueError: For prompts that the dLLM cannot read.
    """
    found = np.zeros(len(pairs), dtype=bool)
    one_by_one = as_agent("confidence:k=1")
    for length in sorted({len(answer) for _, answer in pairs}):
        places = [at for at, (_, answer) in enumerate(pairs) if len(answer) == length]
        task = PromptTask([list(pairs[at][0]) for at in places], length)
        engine = Engine(min(batch_size, len(places)), backend=backend, task=task)
        for episode in decode(one_by_one, engine, range(len(places))):
            at = places[episode.position]
            found[at] = np.array_equal(episode.tokens, pairs[at][1])
    return found


def _forward_of(backend: Backend) -> Callable[..., tuple[Tensor, Tensor]]:
    forward: Any = getattr(backend, "forward", None)
    if forward is None:
        raise ValueError(
            f"log-likelihoods need a dLLM that shows its logits, {type(backend).__name__} does not"
        )
    if (block := getattr(backend, "attention_block", None)) is not None:
        raise ValueError(
            f"this dLLM attends in blocks of {block}: LLaDA's estimate of log-likelihoods masks answers "
            "anywhere, which it was not trained on"
        )
    return forward  # type: ignore[no-any-return]


def _check_pair(backend: Any, prompt: Sequence[int], answer: Sequence[int]) -> None:
    if not prompt or not answer:
        raise ValueError(f"prompt and answer must have a token each, got {list(prompt)} and {list(answer)}")
    taken = len(prompt) + len(answer)
    if taken > backend.max_length:
        raise ValueError(f"prompt and answer take {taken} tokens; this dLLM has {backend.max_length}")


@torch.inference_mode()
def _log_probabilities(
    backend: Backend,
    forward: Callable[..., tuple[Tensor, Tensor]],
    rows: Sequence[tuple[Sequence[int], Sequence[int], NDArray[np.bool_]]],
) -> NDArray[np.float64]:
    """Log-probabilities ``(B, K)`` of the tokens of answers, of which those under the masks are not shown."""
    shown = np.stack([np.where(mask, backend.mask_token_id, answer) for _, answer, mask in rows])  # (B, K)
    padded = left_padded([prompt for prompt, _, _ in rows], shown, backend.pad_token_id)
    on_device = [torch.from_numpy(part).to(backend.device) for part in padded]
    width = padded[0].shape[1]
    columns = torch.arange(width - shown.shape[1], width, device=backend.device)
    logits, _ = forward(*on_device, columns)
    answers = torch.tensor([list(answer) for _, answer, _ in rows], device=backend.device)
    # one row after the other: all of them in float32 would be large
    log_p = [
        one.float().log_softmax(-1).gather(-1, own[:, None])[:, 0]
        for one, own in zip(logits, answers, strict=True)
    ]
    return torch.stack(log_p).double().cpu().numpy()
