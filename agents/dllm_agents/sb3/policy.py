"""The unmasking transformer as a Stable-Baselines3 policy for PPO, A2C and their relatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import BernoulliDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor

from dllm_agents.distributions import (
    bernoulli_bit_log_probs,
    bernoulli_entropy,
    bernoulli_log_prob,
    bernoulli_mode,
    dpls_log_prob,
    masked_logits,
    sample_bernoulli,
    sample_dpls,
)
from dllm_agents.networks import DEFAULT_FEATURES, UnmaskTransformer
from dllm_agents.spaces import network_for


class MaskedBernoulliDistribution(BernoulliDistribution):
    """Independent bits over the positions that may be revealed now; all others are 0 with certainty.

    ``sample`` may come out empty: a fallback there would make its log-probability wrong, and the
    environment has a rule for empty actions. ``mode`` has the argmax fallback, so that deterministic
    evaluation never stalls.
    """

    logits: Tensor
    action_mask: Tensor
    mask: Tensor | None

    def proba_distribution(  # type: ignore[override]  # the mask is part of this distribution
        self, action_logits: Tensor, action_mask: Tensor, mask: Tensor | None = None
    ) -> MaskedBernoulliDistribution:
        """Sets the parameters, all ``(B, L)``: logits, action mask, and which positions are masked."""
        self.logits, self.action_mask, self.mask = action_logits, action_mask, mask
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
        return bernoulli_mode(self.logits, self.action_mask, self.mask)


class BitsDistribution(MaskedBernoulliDistribution):
    """The same, with a likelihood for every bit instead of one for all.

    Algorithms with a likelihood ratio then clip every bit for itself, as multi-agent ones do whose agents
    share a reward (IPPO, arXiv 2011.09533). The ratio of a whole action, a product over as many as L bits,
    leaves the clip range although no single decision changed much, and takes all out of the update.
    """

    def log_prob(self, actions: Tensor) -> Tensor:
        """Exact log-probability of every bit, ``(B, L)``; 0 where none may be revealed."""
        return bernoulli_bit_log_probs(self.logits, self.action_mask, actions)


class DPLSDistribution(MaskedBernoulliDistribution):
    """Dynamic Plackett-Luce: an ordered draw without replacement that always reveals at least one position.

    An action is ``(B, L)``: 0 where nothing is revealed, j at the j-th pick. The order belongs to the
    likelihood; whoever steps an environment with it passes ``actions != 0``, as ``predict`` does. Of the
    algorithms only those that learn from groups do.
    """

    def log_prob(self, actions: Tensor) -> Tensor:
        """Exact log-probability of the ordered draw, ``(B,)``."""
        return dpls_log_prob(self.logits, self.action_mask, actions)

    def entropy(self) -> Tensor:
        """An unbiased one-sample estimate, ``(B,)``, as is its gradient; there is no closed form."""
        log_prob = self.log_prob(self.sample())
        value = log_prob.detach()
        # the gradient of log_prob alone is 0 on average: that of the entropy is -E[log pi grad log pi]
        return -value * (1 + log_prob - value)

    def sample(self) -> Tensor:
        """A draw, ``(B, L)`` int16."""
        return sample_dpls(self.logits, self.action_mask)

    def mode(self) -> Tensor:
        """Everything that STOP is less probable than, in descending order; at least one; ``(B, L)`` int16."""
        chosen = bernoulli_mode(self.logits, self.action_mask, self.mask) != 0  # STOP's logit is 0
        ranks = (-masked_logits(self.logits, self.action_mask)).argsort(-1).argsort(-1) + 1
        return (ranks * chosen).short()


SAMPLERS: dict[str, type[MaskedBernoulliDistribution]] = {
    "bernoulli": MaskedBernoulliDistribution,
    "bits": BitsDistribution,
    "dpls": DPLSDistribution,
}


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
        initial_bias: See there. The sizes of the features ``top_k`` and ``hidden`` follow from the space.
        keep_prior: See there; for ``actions="set-state"`` or ``"edit"``.
        pair_width: See there; positions that give way to each other.
        sampler: ``bernoulli``; ``bits``, the same with a likelihood per bit, for algorithms that learn from
            groups; or ``dpls`` for Dynamic Plackett-Luce.
        critic: Whether there is a value head; without one all values are 0.
        optimizer_class: Of torch; a configuration gives its name.
        optimizer_kwargs: Its arguments but for the learning rate.
        use_sde: SB3's algorithms say it; must be ``False``.
        **unsupported: SB3's other arguments of policies, such as ``net_arch``, are about networks this policy
            does not have.

    Raises:
        ValueError: For spaces this policy is not made for, and for arguments that would change nothing.
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
        keep_prior: float | None = None,
        pair_width: int | None = None,
        sampler: str = "bernoulli",
        critic: bool = True,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        use_sde: bool = False,
        **unsupported: Any,
    ) -> None:
        unsupported |= {"use_sde": True} if use_sde else {}
        if unsupported:
            raise ValueError(
                f"{', '.join(unsupported)} would change nothing: UnmaskPolicy is one UnmaskTransformer; "
                "it accepts features, width, heads, mlp_width, layers, initial_bias, keep_prior, pair_width, "
                "sampler, critic, optimizer_class and optimizer_kwargs"
            )
        if sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {sampler!r}; choose one of {', '.join(SAMPLERS)}")
        self.sampler = sampler
        self.network_config = network_for(
            observation_space,
            action_space,
            features=features,
            width=width,
            heads=heads,
            mlp_width=mlp_width,
            layers=layers,
            initial_bias=initial_bias,
            keep_prior=keep_prior,
            pair_width=pair_width,
            critic=critic,
        )
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )

    @property
    def decoding(self) -> str:
        """What ``LearnedPolicy`` calls drawing as this policy was trained to."""
        return "dpls" if self.sampler == "dpls" else "sample"

    def _build(self, lr_schedule: Schedule) -> None:
        self.action_dist = SAMPLERS[self.sampler](self.action_space.shape[0])  # type: ignore[index]
        self.network = UnmaskTransformer(self.network_config)
        self.optimizer = self.optimizer_class(
            self.parameters(),
            lr=lr_schedule(1),  # type: ignore[call-arg]  # torch's base class does not declare it
            **self.optimizer_kwargs,
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        config = self.network_config
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
            "features": config.features,
            "width": config.width,
            "heads": config.heads,
            "mlp_width": config.mlp_width,
            "layers": config.layers,
            "initial_bias": config.initial_bias,
            "keep_prior": config.keep_prior,
            "pair_width": config.pair_width,
            "sampler": self.sampler,
            "critic": config.value_head,
        }

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions ``(B, L)``, values ``(B, 1)`` and log-probabilities ``(B,)``, or ``(B, L)`` per bit."""
        distribution, values = self._actor_critic(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, values, distribution.log_prob(actions)

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values ``(B, 1)``, log-probabilities ``(B,)``, or ``(B, L)`` per bit, and entropies ``(B,)``."""
        distribution, values = self._actor_critic(obs)
        return values, distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: PyTorchObs) -> MaskedBernoulliDistribution:
        """The action distribution at ``obs``."""
        observation = cast("dict[str, Tensor]", obs)
        return self._distribution(self.network.candidate_logits(observation), observation)

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """Values ``(B, 1)``; finite at the end of an episode, too."""
        return self._actor_critic(obs)[1]

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        # what acts in an environment needs bits, no draw order
        return (super()._predict(observation, deterministic) != 0).to(torch.int8)

    def _actor_critic(self, obs: PyTorchObs) -> tuple[MaskedBernoulliDistribution, Tensor]:
        # SB3's preprocessing is left out: it would one-hot encode keys that nobody reads, and the network
        # converts the ones it does read to float itself.
        observation = cast("dict[str, Tensor]", obs)
        if self.network.value_head is None:
            logits = self.network.candidate_logits(observation)
            values = logits.new_zeros(len(logits))
        else:
            logits, values = self.network.forward_actor_critic(observation)
        return self._distribution(logits, observation), values[:, None]

    def _distribution(self, logits: Tensor, observation: dict[str, Tensor]) -> MaskedBernoulliDistribution:
        distribution = SAMPLERS[self.sampler](logits.shape[-1])
        return distribution.proba_distribution(logits, observation["action_mask"], observation.get("mask"))
