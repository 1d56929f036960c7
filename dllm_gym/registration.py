"""Registers the environments with Gymnasium; string entry points, so that this imports nothing heavy."""

from __future__ import annotations

import gymnasium as gym

from dllm_gym.suite import SUITE

ENV_ID = "DLLMUnmask-v0"


def register_envs() -> None:
    """Registers ``DLLMUnmask-v0`` and the members of the suite, the same with arguments.

    Calling it again (``"dllm_gym:DLLMUnmask-v0"`` does) is silent.
    """
    for id, arguments in {ENV_ID: {}, **{member.id: member.env for member in SUITE}}.items():
        if id not in gym.registry:
            gym.register(
                id,
                entry_point="dllm_gym.envs.unmask:UnmaskEnv",
                vector_entry_point="dllm_gym.envs.vector:UnmaskVectorEnv",
                kwargs=arguments,
            )
