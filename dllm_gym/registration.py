"""Registers the environments with Gymnasium; string entry points, so that this imports nothing heavy."""

from __future__ import annotations

import gymnasium as gym

ENV_ID = "DLLMUnmask-v0"


def register_envs() -> None:
    """Registers ``DLLMUnmask-v0``; calling it again (``"dllm_gym:DLLMUnmask-v0"`` does) is silent."""
    if ENV_ID not in gym.registry:
        gym.register(
            ENV_ID,
            entry_point="dllm_gym.envs.unmask:UnmaskEnv",
            vector_entry_point="dllm_gym.envs.vector:UnmaskVectorEnv",
        )
