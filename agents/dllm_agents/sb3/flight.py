"""Episodes in flight: what a training run holds between two rollouts besides the policy and its optimiser.

With it a run that was killed goes on to the same bits as one that was not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from dllm_agents.sb3.flight_checks import check_flight
from dllm_agents.sb3.groups import GroupRolloutBuffer
from dllm_agents.sb3.success import EpisodeBuffer
from dllm_gym.states import restoring


def random_state() -> dict[str, Any]:
    """Where the random generators of the process are."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        # with which Stable-Baselines3 shuffles
        "numpy": as_tensors(np.random.get_state(legacy=False)),  # noqa: NPY002
    }


def restore_random_state(state: Any, place: str) -> None:
    """Puts the random generators of the process where they were.

    Raises:
        ValueError: For what is no state of theirs; ``place`` is for the message.
    """
    with restoring(place):
        torch.set_rng_state(state["torch"])
        if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])
        np.random.set_state(as_arrays(state["numpy"]))  # noqa: NPY002


def episodes_in_flight(model: OnPolicyAlgorithm) -> dict[str, Any] | None:
    """The episodes that ``model`` is in the middle of, as tensors and plain values, between two rollouts.

    ``None`` before the first step, and where the dLLM remembers too much to be kept (``Engine.remembers``).
    """
    env: Any = model.env
    vector = env.unwrapped.env.unwrapped
    if model._last_obs is None or vector.engine.remembers:
        return None
    flight = {"env": vector.state(), "episode_starts": np.asarray(model._last_episode_starts)}
    tickets = getattr(env, "tickets", None)
    if tickets is not None:
        flight["current"] = tickets.current
    buffer: Any = model.rollout_buffer
    if isinstance(buffer, GroupRolloutBuffer | EpisodeBuffer):
        flight["steps"] = buffer.state()
    tensors: dict[str, Any] = as_tensors(flight)
    return tensors


def restore_episodes(model: OnPolicyAlgorithm, tensors: Any, place: str) -> None:
    """Puts ``model`` in the middle of the episodes that ``episodes_in_flight`` told of.

    Raises:
        ValueError: For what it cannot be in the middle of; ``place`` is for the message.
    """
    env: Any = model.env
    adapter = env.unwrapped
    vector = adapter.env.unwrapped
    engine = vector.engine
    now = None if engine.remembers else as_tensors(engine.state(np.arange(vector.num_envs)))
    check_flight(model, tensors, now, place)
    flight: dict[str, Any] = as_arrays(tensors)
    with restoring(f"{place}, env"):
        observation = vector.restore(flight["env"])
    if not vector.observation_space.contains(observation):
        raise ValueError(f"{place}, env: no environment shows this, be it a confidence of 2 or the like")
    model._last_obs = adapter.show(observation)
    model._last_episode_starts = flight["episode_starts"]
    env.episode_lengths[:] = vector.engine.canvas.steps  # VecMonitor's; no reward before the end
    buffer: Any = model.rollout_buffer
    if "current" in flight:
        env.tickets.current[:] = flight["current"]
    if isinstance(buffer, GroupRolloutBuffer | EpisodeBuffer):
        buffer.restore(flight["steps"])


def as_tensors(value: Any) -> Any:
    """Arrays as tensors, which can be saved without pickle, wherever they are in lists and dicts."""
    return _mapped(value, np.ndarray, lambda array: torch.from_numpy(array.copy()))


def as_arrays(value: Any) -> Any:
    """The reverse."""
    return _mapped(value, torch.Tensor, lambda tensor: tensor.numpy())


def _mapped(value: Any, kind: type, change: Any) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(inner, kind, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(inner, kind, change) for inner in value]
    return change(value) if isinstance(value, kind) else value
