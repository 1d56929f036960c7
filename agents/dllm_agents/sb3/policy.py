"""The unmasking transformer as a Stable-Baselines3 policy for PPO, A2C and their relatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from gymnasium import spaces
from stable_baselines3.common.distributions import BernoulliDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor

from dllm_agents.distributions import (
    bernoulli_entropy,
    bernoulli_log_prob,
    bernoulli_mode,
    masked_logits,
    sample_bernoulli,
)
from dllm_agents.networks import DEFAULT_FEATURES, UnmaskTransformer, UnmaskTransformerConfig


class MaskedBernoulliDistribution(BernoulliDistribution):
    """Independent bits over the positions that may be revealed now; all others are 0 with certainty.

    ``sample`` may come out empty: a fallback there would make its log-probability wrong, and the
    environment has a rule for empty actions. ``mode`` has the argmax fallback, so that deterministic
    evaluation never stalls.
    """

    logits: Tensor
    action_mask: Tensor

    def proba_distribution(  # type: ignore[override]  # the mask is part of this distribution
        self, action_logits: Tensor, action_mask: Tensor
    ) -> MaskedBernoulliDistribution:
        """Sets the parameters: logits and action mask, both ``(B, L)``."""
        self.logits, self.action_mask = action_logits, action_mask
        # For SB3's own tools, such as the KL divergence of TRPO.
        super().proba_distribution(masked_logits(action_logits, action_mask))
        return self

    def log_prob(self, actions: Tensor) -> Tensor:
        """Exact joint log-probability, ``(B,)``."""
        return bernoulli_log_prob(self.logits, self.action_mask, actions)

    def entropy(self) -> Tensor:
        """Joint entropy, ``(B,)``: it grows with the number of candidates."""
        return bernoulli_entropy(self.logits, self.action_mask)

    def sample(self) -> Tensor:
        """A draw, ``(B, L)`` int8."""
        return sample_bernoulli(self.logits, self.action_mask)

    def mode(self) -> Tensor:
        """Bits with probability > 0.5, or the most probable one, ``(B, L)`` int8."""
        return bernoulli_mode(self.logits, self.action_mask)


class UnmaskPolicy(ActorCriticPolicy):
    """Actor and critic on one ``UnmaskTransformer``: ``PPO(UnmaskPolicy, env)`` and nothing else is needed.

    The observation is the environment's Dict; keys the features don't name are ignored. ``predict``
    without ``deterministic=True`` is plain sampling, the distribution that was trained.

    Args:
        observation_space: Dict with ``action_mask`` and what the features read.
        action_space: MultiBinary, one bit per position.
        lr_schedule: Learning rate as a function of the remaining progress.
        features: See ``UnmaskTransformerConfig``, like the arguments that follow.
        width: See there.
        heads: See there.
        mlp_width: See there.
        layers: See there.
        initial_bias: See there.
        **kwargs: SB3's own, such as ``optimizer_class`` and ``optimizer_kwargs``.

    Raises:
        ValueError: For spaces this policy is not made for.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        features: Sequence[str] = DEFAULT_FEATURES,
        width: int = 32,
        heads: int = 2,
        mlp_width: int | None = None,
        layers: int = 1,
        initial_bias: float = -2.0,
        **kwargs: Any,
    ) -> None:
        self.network_config = UnmaskTransformerConfig(
            features=tuple(features),
            width=width,
            heads=heads,
            mlp_width=mlp_width,
            layers=layers,
            initial_bias=initial_bias,
            value_head=True,
        )
        _check_spaces(observation_space, action_space, (*self.network_config.requires, "action_mask"))
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        self.action_dist = MaskedBernoulliDistribution(self.action_space.shape[0])  # type: ignore[index]
        self.network = UnmaskTransformer(self.network_config)
        self.optimizer = self.optimizer_class(
            self.parameters(),
            lr=lr_schedule(1),  # type: ignore[call-arg]  # torch's base class does not declare it
            **self.optimizer_kwargs,
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        config = self.network_config
        return {
            **super()._get_constructor_parameters(),
            "features": config.features,
            "width": config.width,
            "heads": config.heads,
            "mlp_width": config.mlp_width,
            "layers": config.layers,
            "initial_bias": config.initial_bias,
        }

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions ``(B, L)``, values ``(B, 1)`` and log-probabilities ``(B,)``."""
        distribution, values = self._actor_critic(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, values, distribution.log_prob(actions)

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values ``(B, 1)``, log-probabilities ``(B,)`` and entropies ``(B,)``."""
        distribution, values = self._actor_critic(obs)
        return values, distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: PyTorchObs) -> MaskedBernoulliDistribution:
        """The action distribution at ``obs``."""
        observation = cast("dict[str, Tensor]", obs)
        return _distribution(self.network(observation), observation)

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """Values ``(B, 1)``; finite at the end of an episode, too."""
        return self._actor_critic(obs)[1]

    def _actor_critic(self, obs: PyTorchObs) -> tuple[MaskedBernoulliDistribution, Tensor]:
        # SB3's preprocessing is left out: it would one-hot encode keys that nobody reads, and the network
        # converts the ones it does read to float itself.
        observation = cast("dict[str, Tensor]", obs)
        logits, values = self.network.forward_actor_critic(observation)
        return _distribution(logits, observation), values[:, None]


def _distribution(logits: Tensor, observation: dict[str, Tensor]) -> MaskedBernoulliDistribution:
    distribution = MaskedBernoulliDistribution(logits.shape[-1])
    return distribution.proba_distribution(logits, observation["action_mask"])


def _check_spaces(
    observation_space: spaces.Space[Any], action_space: spaces.Space[Any], keys: Sequence[str]
) -> None:
    if not isinstance(observation_space, spaces.Dict):
        raise ValueError(
            f"the observation space must be a Dict with {', '.join(keys)}; got {observation_space}"
        )
    missing = [key for key in dict.fromkeys(keys) if key not in observation_space.spaces]
    if missing:
        raise ValueError(
            f"the observation space lacks {missing}; it has {', '.join(observation_space.spaces)}"
        )
    if not isinstance(action_space, spaces.MultiBinary) or len(action_space.shape) != 1:
        raise ValueError(f"the action space must be MultiBinary(L), one bit per position; got {action_space}")
