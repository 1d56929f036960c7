"""Updates of a policy on a rollout in groups: minibatches, the clipped loss, a step of the optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dllm_agents import parallel
from dllm_agents.sb3.groups import GroupRolloutBuffer, GroupSamples

LOSS_AVERAGES = ("sequence", "step")


def minibatches(
    buffer: GroupRolloutBuffer, n_epochs: int, batch_size: int | None
) -> Iterator[GroupSamples | None]:
    """The samples of a rollout ``n_epochs`` times, each time shuffled by torch's global generator.

    Args:
        buffer: After ``complete``.
        n_epochs: Passes.
        batch_size: Steps per minibatch, of all processes together; ``None``: all at once.

    Yields:
        As many in every process: ``None`` where this one has no sample left and others do.
    """
    size = None if batch_size is None else parallel.share(batch_size)
    samples = len(buffer.returns)
    count = parallel.largest(math.ceil(samples / (size or max(samples, 1))))
    for _ in range(n_epochs):
        batches = buffer.get(size)
        for _ in range(count):
            yield next(batches, None)


def pieces(batch: GroupSamples, size: int | None) -> Iterator[GroupSamples]:
    """A batch in pieces of at most ``size`` steps, in order."""
    if size is None:
        yield batch
        return
    for first in range(0, len(batch.actions), size):
        part = slice(first, first + size)
        observations = {key: value[part] for key, value in batch.observations.items()}
        yield GroupSamples(observations, *(tensor[part] for tensor in batch[1:]))


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """``min(ratio A, clip(ratio, 1 - eps, 1 + eps) A)``.

    Ratios are those of whole step actions, ``(B,)``, or of their bits, ``(B, L)`` with A ``(B, 1)``.
    """
    return torch.min(ratio * advantages, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages)


def step_weights(batch: GroupSamples, loss_average: str) -> Tensor:
    """What each step counts, ``(B,)``: every episode the same (``sequence``), or every step (``step``)."""
    return batch.weights if loss_average == "sequence" else torch.ones_like(batch.weights)


def clipped_loss(
    log_prob: Tensor, old: Tensor, advantages: Tensor, weights: Tensor, clip_range: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped loss on a batch of steps, and what to log.

    Args:
        log_prob: ``(B,)`` of the actions, now; or ``(B, L)`` of their bits.
        old: The same, of the policy that drew them.
        advantages: ``(B,)``, or ``(B, 1)`` for bits.
        weights: ``(B,)``.
        clip_range: Epsilon.
    """
    log_ratio = log_prob - old
    ratio = log_ratio.exp()
    surrogate = clipped_surrogate(ratio, advantages, clip_range)
    loss = -(weights * surrogate.view(len(weights), -1).mean(-1)).mean()
    facts = {
        "policy_gradient_loss": loss.detach(),
        "clip_fraction": ((ratio.detach() - 1).abs() > clip_range).float().mean(),
        "approx_kl": (ratio.detach() - 1 - log_ratio.detach()).mean(),
    }
    return loss, facts


def gradient_step(
    optimizer: torch.optim.Optimizer,
    batch: GroupSamples | None,
    loss_of: Callable[[GroupSamples], tuple[Tensor, dict[str, Tensor]]],
    max_grad_norm: float,
    micro_batch_size: int | None = None,
) -> dict[str, float]:
    """One step of the optimiser on a minibatch; what to log.

    Args:
        optimizer: Of the policy.
        batch: The minibatch, of which this process may have no sample.
        loss_of: A mean over the steps of a batch, and what to log of it.
        max_grad_norm: Gradients are clipped to this norm.
        micro_batch_size: Steps that go through the network at a time; ``None``: all.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    own = 0 if batch is None else len(batch.actions)
    (everyones,) = parallel.total(own)
    facts: dict[str, float] = {}
    optimizer.zero_grad()
    if batch is not None:
        for piece in pieces(batch, micro_batch_size):
            loss, found = loss_of(piece)
            (loss * (len(piece.actions) / everyones)).backward()  # type: ignore[no-untyped-call]
            for name, value in found.items():
                facts[name] = facts.get(name, 0.0) + float(value) * len(piece.actions) / own
    parallel.sum_gradients(parameters)
    torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()
    return facts
