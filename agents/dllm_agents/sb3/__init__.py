"""Stable-Baselines3 on top of the unmasking environment."""

from dllm_agents.sb3.policy import MaskedBernoulliDistribution, UnmaskPolicy
from dllm_agents.sb3.vec_env import GymVecEnv

__all__ = ["GymVecEnv", "MaskedBernoulliDistribution", "UnmaskPolicy"]
