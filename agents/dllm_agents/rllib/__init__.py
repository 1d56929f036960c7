"""RLlib (Ray) on top of the unmasking environment: PPO on several processes and machines."""

try:
    import ray.rllib  # noqa: F401
except ImportError as error:
    raise ImportError(
        "rllib-ppo needs Ray, which pins a Gymnasium of its own; in a fresh environment: "
        "pip install 'dllm-gym[rllib]'"
    ) from error

from dllm_agents.rllib.config import ppo_config
from dllm_agents.rllib.module import MaskedBernoulli, UnmaskModule, learned_network, set_network
from dllm_agents.rllib.runner import WholeEpisodeRunner

__all__ = [
    "MaskedBernoulli",
    "UnmaskModule",
    "WholeEpisodeRunner",
    "learned_network",
    "ppo_config",
    "set_network",
]
