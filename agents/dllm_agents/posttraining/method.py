"""What the methods have in common: constants with the published values as defaults, and one function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np

from dllm_agents.config import check_not_negative, check_whole
from dllm_agents.posttraining.rollouts import Rollouts
from dllm_agents.posttraining.scoring import Scoring
from dllm_agents.sb3.groups import BASELINES


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A way to estimate how likely the dLLM finds what it wrote, and the constants published with it.

    Attributes:
        group_size: Episodes per problem.
        temperature: Of the tokens in the rollouts.
        iterations: Updates per rollout, each on canvases of its own.
        baseline: See ``group_advantages``.
        clip_range: Epsilon of the ratios, token by token.
        kl_coef: Weight of the distance from the reference, the weights that training began with.
        reference_sync: After so many updates the reference moves towards the weights; ``None``: never.
        learning_rate: Of AdamW, at its highest.
        final_rate: The share of it that is left at the end; in between it falls like a cosine.
        warmup: Share of the training in which it rises.
        weight_decay: Of AdamW.
        max_grad_norm: Gradients are clipped to this norm.
    """

    name: ClassVar[str]

    group_size: int
    temperature: float
    iterations: int
    baseline: str
    clip_range: float
    kl_coef: float
    reference_sync: int | None
    learning_rate: float
    final_rate: float
    warmup: float
    weight_decay: float
    max_grad_norm: float

    def __post_init__(self) -> None:
        check_whole("group_size", self.group_size, 2)
        check_whole("iterations", self.iterations, 1)
        if self.reference_sync is not None:
            check_whole("reference_sync", self.reference_sync, 1)
        if self.baseline not in BASELINES:
            raise ValueError(f"unknown baseline {self.baseline!r}; choose one of {', '.join(BASELINES)}")
        for field in fields(self):
            if field.type == "float":
                check_not_negative(field.name, getattr(self, field.name))
        if self.temperature == 0:
            raise ValueError(
                "temperature must be above 0: without noise all of a group write the same, got 0"
            )
        for name in ("final_rate", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)!r}")

    @abstractmethod
    def scoring(self, rollouts: Rollouts, rng: np.random.Generator) -> Scoring:
        """What to ask the dLLM in one update."""
