"""Coupled- and diffu-GRPO: likelihoods in one or three forwards, from completions that are masked anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from dllm_agents.posttraining.method import Method
from dllm_agents.posttraining.rollouts import Rollouts
from dllm_agents.posttraining.scoring import Scoring


@dataclass(frozen=True, kw_only=True)
class CoupledGRPO(Method):
    """Coupled-GRPO (DiffuCoder, arXiv 2506.20639; apple/ml-diffucoder, read, its recipe's constants).

    Three canvases per episode: all of the completion masked; a share t of it, t uniform between
    ``least_masked`` and ``most_masked``, the same for all episodes; and the complement of that. A token's
    log-likelihood is half the sum of its log-probability on the first and, divided by the share that is
    masked there, on that of the other two which hides it.

    Attributes:
        least_masked: Smallest share t.
        most_masked: Largest share t.
    """

    name: ClassVar[str] = "coupled-grpo"

    least_masked: float = 0.2
    most_masked: float = 0.8
    group_size: int = 10
    temperature: float = 1.0
    iterations: int = 2
    baseline: str = "leave-one-out"
    clip_range: float = 0.5
    kl_coef: float = 0.01
    reference_sync: int | None = 64
    learning_rate: float = 1e-6
    final_rate: float = 0.1
    warmup: float = 0.0001
    weight_decay: float = 0.1
    max_grad_norm: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.least_masked <= self.most_masked < 1:
            raise ValueError(
                f"shares must satisfy 0 < least_masked <= most_masked < 1, "
                f"got {self.least_masked} and {self.most_masked}"
            )

    def scoring(self, rollouts: Rollouts, rng: np.random.Generator) -> Scoring:
        """A line per episode, with three canvases."""
        count, length = rollouts.reveal_step.shape
        share = rng.uniform(self.least_masked, self.most_masked)
        first = rng.random((count, length)) < share  # (N, L)
        masks = np.stack([np.ones_like(first), first, ~first], axis=1)  # (N, 3, L)
        coefficients = masks * np.array([0.5, 0.5 / share, 0.5 / (1 - share)])[:, None]
        prompt = np.zeros((count, 3, rollouts.sequences.shape[1] - length), dtype=bool)
        return _of_text(rollouts, np.concatenate([prompt, masks], axis=2), coefficients)


@dataclass(frozen=True, kw_only=True)
class DiffuGRPO(Method):
    """Diffu-GRPO (d1, arXiv 2504.12216; dllm-reasoning/d1, read, its recipe's constants).

    One canvas per episode, on which all of the completion is masked and every token of the prompt with
    probability ``prompt_masked``, anew in each of the many updates on the same rollouts.

    Attributes:
        prompt_masked: Share of the prompt that is masked.
    """

    name: ClassVar[str] = "diffu-grpo"

    prompt_masked: float = 0.15
    group_size: int = 6
    temperature: float = 0.9
    iterations: int = 12
    baseline: str = "mean"
    clip_range: float = 0.5
    kl_coef: float = 0.04
    # asked for in the recipe, but without effect there: with LoRA the reference is the model without adapter
    reference_sync: int | None = None
    learning_rate: float = 3e-6
    final_rate: float = 1.0
    warmup: float = 0.0001
    weight_decay: float = 0.1
    max_grad_norm: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prompt_masked <= 1:
            raise ValueError(f"prompt_masked must lie in [0, 1], got {self.prompt_masked}")

    def scoring(self, rollouts: Rollouts, rng: np.random.Generator) -> Scoring:
        """A line per episode, with one canvas."""
        count, length = rollouts.reveal_step.shape
        prompt = rng.random((count, rollouts.sequences.shape[1] - length)) < self.prompt_masked
        prompt &= rollouts.attention_mask[:, :-length] != 0
        everything = np.ones((count, length), dtype=bool)
        hidden = np.concatenate([prompt, everything], axis=1)[:, None]
        return _of_text(rollouts, hidden, everything[:, None].astype(np.float64))


def _of_text(rollouts: Rollouts, hidden: NDArray[np.bool_], coefficients: NDArray[np.float64]) -> Scoring:
    """The loss is a mean over all tokens of all texts."""
    text = rollouts.text
    scored = np.where(text[:, None], coefficients, 0.0).astype(np.float32)
    weights = (text / max(text.sum(), 1)).astype(np.float32)
    return Scoring(np.arange(len(text)), hidden, scored, weights)
