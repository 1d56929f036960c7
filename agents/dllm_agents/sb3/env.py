"""One call from environment keywords to a Stable-Baselines3 ``VecEnv``."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import VecMonitor

import dllm_gym
from dllm_agents.sb3.tickets import Tickets
from dllm_agents.sb3.vec_env import GymVecEnv
from dllm_gym.envs.checks import positive, refuse_unknown
from dllm_gym.envs.engine import ARGUMENTS

_OWN_ARGUMENTS = ("num_envs", "seed", "num_experts", "render_mode", "max_episode_steps")
MONITORED = ("is_success", "score", "nfe", "empty_actions")


def make_sb3_env(
    num_envs: int = 64,
    *,
    seed: int = 0,
    group_size: int = 1,
    num_experts: int = 0,
    render_mode: str | None = None,
    **env_kwargs: Any,
) -> VecMonitor:
    """``DLLMUnmask-v0`` for Stable-Baselines3: batched, restarting within the step, monitored.

    Args:
        num_envs: Rows decoded at once.
        seed: Row i is seeded with ``seed + i``.
        group_size: Above 1, every problem is decoded by that many rows, as ``GRPO``, ``GroupPPO`` and
            ``GroupA2C`` need it; free rows take the next problem in turn.
        num_experts: So many further rows decode every problem as an expert does, for ``GRPO(expert=...)``.
        render_mode: As in ``UnmaskEnv``.
        **env_kwargs: Arguments of ``UnmaskEnv``, such as ``task``, ``block_length``, ``alpha``, and
            ``max_episode_steps``.

    Raises:
        ValueError: For arguments out of range or unknown, naming what is accepted.
    """
    refuse_unknown(env_kwargs, (*_OWN_ARGUMENTS, *ARGUMENTS))
    num_envs, group_size = positive("num_envs", num_envs), positive("group_size", group_size)
    if group_size > num_envs:
        raise ValueError(f"group_size must be 1 to num_envs, {num_envs}; got {group_size}")
    if num_experts < 0 or (num_experts and group_size == 1):
        raise ValueError(f"num_experts must be at least 0, and above 0 only in groups; got {num_experts}")
    env = gym.make_vec(
        dllm_gym.ENV_ID, num_envs=num_envs, autoreset_mode="SameStep", render_mode=render_mode, **env_kwargs
    )
    adapter = GymVecEnv(env)
    if group_size > 1:
        engine = env.unwrapped.engine  # type: ignore[attr-defined]
        places = group_size + num_experts
        tickets = Tickets(places, num_envs, engine.task.num_problems, seed, num_experts)
        adapter.tickets = tickets  # type: ignore[attr-defined]
        engine.draw_problem, engine.draw_knobs = tickets, tickets.knobs
    adapter.seed(seed)
    return VecMonitor(adapter, info_keywords=MONITORED)
