"""Warm start: maximum likelihood of what others do, before reinforcement learning begins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import obs_as_tensor

from dllm_agents.distributions import bernoulli_mode
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
        learning_rate: Of every update; ``None`` is what the model begins with.

    Returns:
        The mean negative log-likelihood per step, in nats, over the last tenth of the updates.

    Raises:
        ValueError: If the policy draws ordered selections: a rule's bits have no order. If the learning rate
            is not above 0, such as that of a schedule which rises first.
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


def hindsight(
    model: OnPolicyAlgorithm,
    total_timesteps: int,
    learning_rate: float = 1e-3,
    least_caution: float = -4.0,
    most_caution: float = 7.0,
    n_epochs: int = 4,
) -> float:
    """Teaches a policy to take as many steps as it is told by what it does already, more or less carefully.

    The policy decodes deterministically with a number of nats taken off all its logits, its caution, drawn
    uniformly for every episode. It then learns from its right episodes as if ``target_steps`` had been what
    they took (hindsight, arXiv 1707.01495). So a policy that knows one speed begins at all of them.

    Args:
        model: As for ``imitate``; its policy reads ``target_steps``.
        total_timesteps: Environment steps, summed over rows; they count into ``model.num_timesteps``.
        learning_rate: Of every update. What comes after may want a lower one, not to forget it.
        least_caution: Lower end of that range, in nats; negative ones are bold.
        most_caution: Upper end.
        n_epochs: How often every step is learned from.

    Returns:
        As ``imitate``.

    Raises:
        ValueError: See ``imitate``; if the range is empty; and if no answer was right in a number of steps
            that the environment tells.
    """
    if not least_caution < most_caution:
        raise ValueError(f"least_caution {least_caution} must be below most_caution {most_caution}")
    episodes = _right_episodes(model, total_timesteps, least_caution, most_caution)
    done = model.num_timesteps
    if not episodes:
        raise ValueError(
            f"hindsight has nothing to teach: no answer was right within {total_timesteps} steps"
        )
    steps = {key: np.concatenate([episode[key] for episode in episodes]) for key in episodes[0]}
    size = _STEPS_PER_UPDATE * model.n_envs
    loss = _follow(model, _drawing(steps, size, n_epochs * len(steps["actions"])), learning_rate)
    model.num_timesteps = done  # what is learned from again is no step
    return loss


def _right_episodes(model: OnPolicyAlgorithm, total: int, least: float, most: float) -> list[Steps]:
    """Right episodes of ``model.policy`` at several cautions, told how many steps they took."""
    env: Any = model.get_env()
    network: Any = model.policy.network
    low, high = env.get_attr("target_steps", 0)[0]
    cautions = torch.empty(env.num_envs, 1).uniform_(least, most)
    under_way: list[list[Steps]] = [[] for _ in range(env.num_envs)]
    right: list[Steps] = []
    observation: dict[str, NDArray[Any]] = env.reset()
    for _ in range(0, total, env.num_envs):
        tensors: Any = obs_as_tensor(observation, model.device)
        with torch.inference_mode():
            logits = network(tensors) - cautions.to(model.device)  # (B, L)
            actions = bernoulli_mode(logits, tensors["action_mask"], tensors["mask"]).cpu().numpy()
        seen = {**observation, "actions": actions}
        for row, steps in enumerate(under_way):
            steps.append({key: array[row] for key, array in seen.items()})
        observation, _, dones, infos = env.step(actions)
        model.num_timesteps += env.num_envs
        for row in np.flatnonzero(dones).tolist():
            episode = {key: np.stack([step[key] for step in under_way[row]]) for key in seen}
            taken = len(under_way[row])
            if infos[row]["is_success"] and low <= taken <= high:
                right.append({**episode, "target_steps": np.full((taken, 1), taken, dtype=np.float32)})
            under_way[row] = []
            cautions[row].uniform_(least, most)
    return right


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
    rate = model.lr_schedule(1.0) if learning_rate is None else learning_rate
    if not rate > 0:
        raise ValueError(f"nothing is learned at a learning rate of {rate!r}: give one, such as 1e-3")
    optimizer = model.policy.optimizer
    for group in optimizer.param_groups:
        group["lr"] = rate
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
