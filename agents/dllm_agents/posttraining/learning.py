"""One update after the other on the episodes of a round."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dllm_agents import parallel
from dllm_agents.posttraining.method import Method
from dllm_agents.posttraining.parameters import Reference
from dllm_agents.posttraining.rollouts import Rollouts
from dllm_agents.posttraining.scoring import Scoring, log_likelihood, policy_loss
from dllm_agents.schedules import rate_at


def learning_rate(method: Method, done: float, highest: float | None = None) -> float:
    """The learning rate after a share ``done`` of the training.

    Args:
        method: Says how it rises and falls.
        done: In [0, 1].
        highest: ``None``: the method's own.
    """
    first = method.learning_rate if highest is None else highest
    return rate_at(done, first, first * method.final_rate, method.warmup, "cosine")


class Learner:
    """Updates the dLLM's weights, in place, on rollouts.

    Args:
        backend: A ``TransformersBackend`` that nobody else holds.
        parameters: What of it is trained, by name.
        method: How.
        micro_batch_size: Canvases per forward; ``None``: all of an update.
        autocast: Whether to compute in bfloat16 what can be.

    Attributes:
        optimizer: AdamW, as all three methods have it.
        reference: The weights that the loss keeps near to; ``None`` where it does not.
        updates: Made so far.
    """

    def __init__(
        self,
        backend: Any,
        parameters: Mapping[str, Any],
        method: Method,
        micro_batch_size: int | None = None,
        autocast: bool = False,
    ) -> None:
        self.backend, self.parameters, self.method = backend, parameters, method
        self._micro_batch_size, self._autocast = micro_batch_size, autocast
        self.optimizer = torch.optim.AdamW(
            list(parameters.values()),
            lr=method.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=method.weight_decay,
        )
        self.reference = Reference(parameters) if method.kl_coef > 0 else None
        self.updates = 0

    def precision(self) -> AbstractContextManager[Any]:
        """What the dLLM is computed in."""
        device = self.backend.device.type
        return torch.autocast(device, torch.bfloat16) if self._autocast else nullcontext()

    def learn(self, rollouts: Rollouts, rng: np.random.Generator, rate: float) -> dict[str, float]:
        """All updates on the episodes of a round; means of what to log.

        Args:
            rollouts: The episodes.
            rng: Draws masks and steps.
            rate: The learning rate.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        advantages = rollouts.advantages(self.method.baseline)
        scorings = [self.method.scoring(rollouts, rng) for _ in range(self.method.iterations)]
        if self.reference is None:  # lines without advantage add nothing to the gradient
            scorings = [scoring.lines(advantages[scoring.episodes] != 0) for scoring in scorings]
        # the first update is made at the weights that wrote the episodes
        old = [None, *(self._fixed(rollouts, scoring) for scoring in scorings[1:])]
        anchors: list[Tensor | None] = [None] * len(scorings)
        if self.reference is not None:
            with self.reference.in_place():
                anchors = [self._fixed(rollouts, scoring) for scoring in scorings]
        logs: dict[str, list[float]] = {}
        for scoring, before, anchor in zip(scorings, old, anchors, strict=True):
            for name, value in self._update(rollouts, scoring, advantages, before, anchor).items():
                logs.setdefault(name, []).append(value)
        return {name: float(np.mean(values)) for name, values in logs.items()}

    def _fixed(self, rollouts: Rollouts, scoring: Scoring) -> Tensor:
        """Log-likelihoods ``(R, L)`` of the weights as they are, without gradients."""
        parts = [torch.zeros(0, rollouts.length, device=self.backend.device)]
        with torch.no_grad(), self.precision():
            for _, piece in scoring.pieces(self._micro_batch_size):
                parts.append(log_likelihood(self.backend, rollouts, piece))
        return torch.cat(parts)

    def _update(
        self,
        rollouts: Rollouts,
        scoring: Scoring,
        advantages: np.ndarray[Any, Any],
        old: Tensor | None,
        reference: Tensor | None,
    ) -> dict[str, float]:
        device = self.backend.device
        facts: dict[str, float] = {}
        self.optimizer.zero_grad()
        for part, piece in scoring.pieces(self._micro_batch_size):
            with self.precision():
                log_p = log_likelihood(self.backend, rollouts, piece)
            loss, found = policy_loss(
                log_p,
                log_p.detach() if old is None else old[part],
                torch.from_numpy(advantages[piece.episodes]).float().to(device),
                torch.from_numpy(piece.weights).to(device),
                self.method.clip_range,
                None if reference is None else reference[part],
                self.method.kl_coef,
            )
            (loss / parallel.count()).backward()  # type: ignore[no-untyped-call]
            for name, value in found.items():
                facts[name] = facts.get(name, 0.0) + value
        parallel.sum_gradients(self.parameters.values())
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.method.max_grad_norm)
        self.optimizer.step()
        self.updates += 1
        sync = self.method.reference_sync
        if self.reference is not None and sync is not None and self.updates % sync == 0:
            self.reference.approach()
        return {**facts, "grad_norm": float(norm)}
