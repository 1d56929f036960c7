"""The unmasking transformer as a module of RLlib's new API stack."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import torch
from ray.rllib.algorithms import Algorithm
from ray.rllib.core import (
    COMPONENT_LEARNER,
    COMPONENT_LEARNER_GROUP,
    COMPONENT_RL_MODULE,
    DEFAULT_MODULE_ID,
)
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.distribution import Distribution
from ray.rllib.core.distribution.torch.torch_distribution import TorchDeterministic
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor

from dllm_agents.distributions import (
    EXCLUDED_LOGIT,
    bernoulli_entropy,
    bernoulli_kl,
    bernoulli_log_prob,
    bernoulli_mode,
    masked_logits,
    sample_bernoulli,
)
from dllm_agents.networks import UnmaskTransformer
from dllm_agents.spaces import network_for


class MaskedBernoulli(Distribution):  # type: ignore[misc]  # Ray's classes are untyped
    """Independent bits over the positions that may be revealed now; all others are 0 with certainty.

    RLlib hands a distribution one tensor, so the action mask travels in it: a logit of ``EXCLUDED_LOGIT``
    is a position outside the mask.

    Args:
        logits: ``(B, L)``, as ``masked_logits`` makes them.
    """

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits
        self.action_mask = logits != EXCLUDED_LOGIT

    @classmethod
    def from_logits(cls, logits: Tensor, **kwargs: Any) -> MaskedBernoulli:
        """The distribution of what ``UnmaskModule`` returns as ``ACTION_DIST_INPUTS``, ``(B, L)``."""
        return cls(logits)

    @staticmethod
    def required_input_dim(space: gym.spaces.MultiBinary, **kwargs: Any) -> int:
        """L, one number per position."""
        return int(space.shape[0])

    def sample(self, *, sample_shape: Any = None) -> Tensor:
        """A draw, ``(B, L)`` int8; it may reveal nothing, for which the environment has a rule."""
        return sample_bernoulli(self.logits, self.action_mask)

    def rsample(self, *, sample_shape: Any = None) -> Tensor:
        """Bits have no gradient.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("bits cannot be drawn differentiably")

    def logp(self, value: Tensor, **kwargs: Any) -> Tensor:
        """Exact joint log-probability, ``(B,)``."""
        return bernoulli_log_prob(self.logits, self.action_mask, value)

    def entropy(self, **kwargs: Any) -> Tensor:
        """Joint entropy in nats, ``(B,)``."""
        return bernoulli_entropy(self.logits, self.action_mask)

    def kl(self, other: Distribution, **kwargs: Any) -> Tensor:
        """KL divergence to ``other``, a ``MaskedBernoulli`` with the same mask, ``(B,)``."""
        assert isinstance(other, MaskedBernoulli)
        return bernoulli_kl(self.logits, other.logits, self.action_mask)

    def to_deterministic(self) -> TorchDeterministic:
        """Bits with probability > 0.5, or the most probable one."""
        return TorchDeterministic(bernoulli_mode(self.logits, self.action_mask))


class UnmaskModule(TorchRLModule, ValueFunctionAPI):  # type: ignore[misc]  # likewise
    """Actor and critic on one ``UnmaskTransformer``.

    ``model_config["network"]`` holds the arguments of ``network_for`` besides the spaces: features, width,
    heads, ...; RLlib puts entries of its own beside it.
    """

    network: UnmaskTransformer

    def setup(self) -> None:
        """Builds the network for the spaces."""
        self.network = UnmaskTransformer(
            network_for(self.observation_space, self.action_space, **self.model_config["network"])
        )
        self.action_dist_cls = MaskedBernoulli

    def _forward(self, batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        return {Columns.ACTION_DIST_INPUTS: self.network.candidate_logits(batch[Columns.OBS])}

    def _forward_train(self, batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        observation = batch[Columns.OBS]
        logits, values = self.network.forward_actor_critic(observation)
        return {
            Columns.ACTION_DIST_INPUTS: masked_logits(logits, observation["action_mask"]),
            # What stands here comes back to compute_values: the trunk runs once for actor and critic.
            Columns.EMBEDDINGS: values,
        }

    def compute_values(self, batch: Mapping[str, Any], embeddings: Tensor | None = None) -> Tensor:
        """State values, ``(B,)``; ``embeddings`` are those of ``_forward_train``, which are the values."""
        if embeddings is not None:
            return embeddings
        return self.network.forward_actor_critic(batch[Columns.OBS])[1]


def learned_network(algorithm: Algorithm) -> UnmaskTransformer:
    """A copy of the network an algorithm has learned so far, on the CPU.

    ``save_policy(path, learned_network(algorithm))`` makes it a policy for our evaluator, free of pickle.

    Args:
        algorithm: One built from ``ppo_config``.
    """
    state = algorithm.learner_group.get_state(components=f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}")
    module = copy.deepcopy(algorithm.get_module().unwrapped()).cpu()
    weights = state[COMPONENT_LEARNER][COMPONENT_RL_MODULE][DEFAULT_MODULE_ID]
    module.load_state_dict({name: torch.as_tensor(value) for name, value in weights.items()})
    network: UnmaskTransformer = module.network
    return network.eval()


def set_network(algorithm: Algorithm, network: UnmaskTransformer) -> None:
    """Gives an algorithm, and all its processes, the weights of a network of the same configuration."""
    weights = {f"network.{name}": tensor.cpu().numpy() for name, tensor in network.state_dict().items()}
    module = {COMPONENT_LEARNER: {COMPONENT_RL_MODULE: {DEFAULT_MODULE_ID: weights}}}
    algorithm.set_state({COMPONENT_LEARNER_GROUP: module})
