"""Warm start: maximum likelihood of what others do, before reinforcement learning begins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import obs_as_tensor

from dllm_agents.sb3.policy import DPLSDistribution
from dllm_gym.offline import Episodes, best_episodes

Steps = dict[str, NDArray[Any]]  # ``(B, ...)`` by observation, and ``actions`` ``(B, L)``

_STEPS_PER_UPDATE = 4  # steps of all rows between two gradient steps


def imitate(
    model: OnPolicyAlgorithm, expert: Any, total_timesteps: int, learning_rate: float | None = None
) -> float:
    """Trains ``model.policy`` to act like ``expert`` on the states the expert visits.

    The steps count into ``model.num_timesteps``. The environment is reset before and, by ``learn``, after.

    Args:
        model: Any algorithm with an ``UnmaskPolicy`` whose sampler is ``bernoulli``.
        expert: A strategy, or anything with ``act``.
        total_timesteps: Environment steps, summed over rows.
        learning_rate: Of every update; ``None`` is what the model begins with, which is 0 where a schedule
            rises first.

    Returns:
        The mean negative log-likelihood per step, in nats, over the last tenth of the updates.

    Raises:
        ValueError: If the policy draws ordered selections: a rule's bits have no order.
    """
    return _follow(model, _acting(model.get_env(), expert, total_timesteps), learning_rate)


def clone(
    model: OnPolicyAlgorithm, episodes: Episodes, total_timesteps: int, learning_rate: float | None = None
) -> float:
    """Behaviour cloning: trains ``model.policy`` to act like the best recorded episode of every problem.

    That is the right answer of the highest reward; a problem that nobody solved teaches nothing. The steps
    come in a new order in every pass, from torch's global generator, until so many were seen.

    Args:
        model: As for ``imitate``; its environment is not stepped.
        episodes: From ``read_dataset``.
        total_timesteps: Recorded steps, those seen again counted again.
        learning_rate: As for ``imitate``.

    Returns:
        As ``imitate``.

    Raises:
        ValueError: See ``imitate``; and if no recorded episode is right.
    """
    chosen = episodes.steps_of(best_episodes(episodes))
    if not len(chosen):
        raise ValueError(f"there is nothing to imitate in {episodes.id}: none of its answers is right")
    recorded = {**episodes.observations, "actions": episodes.actions}
    size = _STEPS_PER_UPDATE * model.n_envs
    steps = _drawing({key: array[chosen] for key, array in recorded.items()}, size, total_timesteps)
    return _follow(model, steps, learning_rate)


def _acting(env: Any, expert: Any, total: int) -> Iterator[Steps]:
    """What an expert sees and does in the environment."""
    observation: dict[str, NDArray[Any]] = env.reset()
    steps: list[Steps] = []
    done = 0
    while done < total:
        actions = expert.act(observation)
        steps.append({**observation, "actions": actions})
        observation, *_ = env.step(actions)
        done += env.num_envs
        if len(steps) == _STEPS_PER_UPDATE or done >= total:
            yield {key: np.concatenate([step[key] for step in steps]) for key in steps[0]}
            steps.clear()


def _drawing(steps: Steps, size: int, total: int) -> Iterator[Steps]:
    """Batches of at most ``size`` of the steps, pass after pass, ``total`` in all."""
    left = total
    while left > 0:
        order = torch.randperm(len(steps["actions"])).numpy()[:left]
        for at in range(0, len(order), size):
            yield {key: array[order[at : at + size]] for key, array in steps.items()}
        left -= len(order)


def _follow(model: OnPolicyAlgorithm, batches: Iterable[Steps], learning_rate: float | None) -> float:
    """A gradient step for every batch; see ``imitate`` for what is returned and raised."""
    if isinstance(model.policy.action_dist, DPLSDistribution):
        raise ValueError("imitation needs sampler 'bernoulli': a rule's bits have no draw order")
    optimizer = model.policy.optimizer
    for group in optimizer.param_groups:
        group["lr"] = model.lr_schedule(1.0) if learning_rate is None else learning_rate
    model.policy.set_training_mode(True)
    losses: list[float] = []
    for batch in batches:
        tensors: Any = obs_as_tensor(batch, model.device)
        log_prob = model.policy.get_distribution(tensors).log_prob(tensors["actions"])
        loss = -log_prob.view(len(log_prob), -1).sum(-1).mean()  # of whole actions
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.policy.parameters(), 0.5)
        optimizer.step()
        losses.append(float(loss.detach()))
        model.num_timesteps += len(batch["actions"])
    model._last_obs = None  # learning must not go on from what it saw before
    return float(np.mean(losses[-max(1, len(losses) // 10) :]))
