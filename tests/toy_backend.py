"""A dLLM and a task that cost nothing and agree to the last bit whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dllm_gym.backends.base import Prediction
from dllm_gym.tasks import Problem
from dllm_gym.tasks.base import check_split

MASK, EOS, PAD = 10, 11, 12


class ToyBackend:
    """Writes digits and end tokens: a hash of what stands to the left and right, padding excluded.

    Attributes:
        calls: The tokens of every forward, ``(B, P + L)`` each.
    """

    mask_token_id, eos_token_id, pad_token_id, vocab_size = MASK, EOS, PAD, 13
    hidden_width, attention_layers, quality_head = 3, (0,), None
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.tokenizer = self
        self.calls: list[np.ndarray] = []

    def __deepcopy__(self, memo: Any) -> ToyBackend:
        return self

    @property
    def rows_per_call(self) -> list[int]:
        return [len(tokens) for tokens in self.calls]

    def encode_prompt(self, prompt: Any) -> list[int]:
        return [int(digit) for digit in prompt]

    def decode(self, ids: Sequence[int]) -> str:
        ids = list(ids)
        return "".join("0123456789#.~"[i] for i in ids[: ids.index(EOS) if EOS in ids else None])

    def predict(
        self,
        tokens: Tensor,
        attention_mask: Tensor,
        positions: slice,
        *,
        statistics: Sequence[str] = (),
        top_k: int = 8,
        temperature: float = 0.0,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Prediction:
        self.calls.append(tokens.numpy().copy())
        noise: Any = np.zeros(len(tokens), dtype=np.uint64)
        if temperature > 0:
            assert generators is not None
            assert len(generators) == len(tokens)
            noise = np.array(
                [int(torch.randint(2**40, (), generator=g)) for g in generators], dtype=np.uint64
            )
        place = np.arange(
            tokens.shape[1], 0, -1, dtype=np.uint64
        )  # from the right, so padding shifts nothing
        content = np.where(attention_mask.numpy(), tokens.numpy() + 1, 0).astype(np.uint64)
        row = (content * _mix(place)).sum(1, dtype=np.uint64)  # (B,)
        cells = _mix(row[:, None] + _mix(place[positions]))  # (B, L)
        drawn = _mix(cells + noise[:, None])
        extra = {
            "entropy": _unit(_mix(cells + np.uint64(1))) * np.float32(2.5),
            "margin": _unit(_mix(cells + np.uint64(2))),
            "top_k": np.stack([_unit(cells) / np.float32(k + 1) for k in range(top_k)], axis=-1),
            "best": np.array([*range(10), EOS])[_mix(cells) % np.uint64(11)],
            "probabilities": (every := _distribution(cells)),
            "written": np.take_along_axis(every, tokens[:, positions, None].numpy(), -1)[..., 0],
            "quality": _unit(_mix(cells + np.uint64(7))) * (tokens[:, positions].numpy() != MASK),
            "hidden": np.stack([1 - 2 * _unit(_mix(cells + np.uint64(3 + h))) for h in range(3)], axis=-1),
            "attention": _unit(_mix(cells[:, :, None] + _mix(place[positions]))) / np.float32(cells.shape[1]),
        }
        return Prediction(
            torch.from_numpy(np.array([*range(10), EOS])[drawn % np.uint64(11)]),
            torch.from_numpy(_unit(_mix(drawn))),
            {name: torch.from_numpy(extra[name]) for name in statistics},
        )


class ScriptedBackend(ToyBackend):
    """Always the same tokens and confidences, whatever the canvas."""

    def __init__(self, tokens: Sequence[int], confidence: Sequence[float] | None = None) -> None:
        super().__init__()
        self.tokens = torch.tensor(tokens)
        self.confidence = torch.tensor([0.5] * len(tokens) if confidence is None else confidence)

    def predict(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Prediction:
        self.calls.append(tokens.numpy().copy())
        rows = len(tokens)
        return Prediction(self.tokens.repeat(rows, 1), self.confidence.repeat(rows, 1))


class ToyTask:
    """Problems of 1 to 6 digits; a completion's score is the sum of its digits modulo 5, in quarters."""

    name, completion_length = "toy", 6

    def __init__(self, split: str = "train", num_problems: int | None = 50) -> None:
        self.split, self.num_problems = check_split(split), num_problems

    def problem(self, index: int) -> Problem:
        if not 0 <= index < (self.num_problems or 2**31):
            raise IndexError(f"problem index {index} is out of range")
        return Problem(prompt=str(index) * (1 + index % 3), reference="")

    def score(self, completion: str, problem: Problem) -> float:
        return sum(int(c) for c in completion if c.isdigit()) % 5 / 4

    def metrics(self, completion: str, problem: Problem) -> dict[str, float]:
        return {"written": float(len(completion))}


def _mix(x: Any) -> Any:
    """SplitMix64's finalizer, on arrays."""
    x = np.atleast_1d(np.asarray(x, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _distribution(cells: Any) -> Any:
    """Some probability for every token but the mask, ``(B, L, 13)`` float32, summing to 1."""
    weights = np.stack([_unit(_mix(cells + np.uint64(100 + token))) ** 8 for token in range(13)], axis=-1)
    weights[..., MASK] = 0
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def _unit(x: Any) -> Any:
    """Hashes to float32 in [0, 1)."""
    return ((x >> np.uint64(40)) / np.float64(2**24)).astype(np.float32)
