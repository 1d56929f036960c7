"""Warm start: maximum likelihood of what a strategy does, before reinforcement learning begins."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import obs_as_tensor

from dllm_agents.sb3.policy import DPLSDistribution

_STEPS_PER_UPDATE = 4  # steps of all rows between two gradient steps


def imitate(model: OnPolicyAlgorithm, expert: Any, total_timesteps: int) -> float:
    """Trains ``model.policy`` to act like ``expert`` on the states the expert visits.

    The steps count into ``model.num_timesteps``. The environment is reset before and, by ``learn``, after.

    Args:
        model: Any algorithm with an ``UnmaskPolicy`` whose sampler is ``bernoulli``.
        expert: A strategy, or anything with ``act``.
        total_timesteps: Environment steps, summed over rows.

    Returns:
        The mean negative log-likelihood per step, in nats, over the last tenth of the updates.

    Raises:
        ValueError: If the policy draws ordered selections: a rule's bits have no order.
    """
    if isinstance(model.policy.action_dist, DPLSDistribution):
        raise ValueError("imitation needs sampler 'bernoulli': a rule's bits have no draw order")
    env: Any = model.get_env()
    optimizer = model.policy.optimizer
    for group in optimizer.param_groups:
        group["lr"] = model.lr_schedule(1.0)
    model.policy.set_training_mode(True)
    observation: dict[str, NDArray[Any]] = env.reset()
    losses: list[float] = []
    steps: list[dict[str, NDArray[Any]]] = []
    done = 0
    while done < total_timesteps:
        actions = expert.act(observation)
        steps.append({**observation, "actions": actions})
        observation, *_ = env.step(actions)
        done += env.num_envs
        if len(steps) == _STEPS_PER_UPDATE or done >= total_timesteps:
            batch = {key: np.concatenate([step[key] for step in steps]) for key in steps[0]}
            tensors: Any = obs_as_tensor(batch, model.device)
            log_prob = model.policy.get_distribution(tensors).log_prob(tensors["actions"])
            loss = -log_prob.view(len(log_prob), -1).sum(-1).mean()  # of whole actions
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.policy.parameters(), 0.5)
            optimizer.step()
            losses.append(float(loss.detach()))
            steps.clear()
    model.num_timesteps += done
    model._last_obs = None  # learning must not go on from what it saw before
    return float(np.mean(losses[-max(1, len(losses) // 10) :]))
