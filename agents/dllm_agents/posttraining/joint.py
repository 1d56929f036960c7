"""``joint``: the policy that decodes for the dLLM learns from the same episodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dllm_agents.agent import LearnedPolicy
from dllm_agents.checkpoint import save_policy
from dllm_agents.config import check_not_negative, check_whole
from dllm_agents.networks import UnmaskTransformer
from dllm_agents.sb3.groups import BASELINES, SCALES, GroupRolloutBuffer, GroupSamples
from dllm_agents.sb3.policy import SAMPLERS
from dllm_agents.sb3.updates import LOSS_AVERAGES, clipped_loss, gradient_step, minibatches, step_weights
from dllm_gym.envs.checks import one_of
from dllm_gym.envs.engine import Engine
from dllm_gym.evaluation.agents import Agent, Observation
from dllm_gym.evaluation.decode import Episode
from dllm_gym.states import check_keys, check_like, check_optimizer

POLICY = "policy"  # the folder beside the dLLM


@dataclass(frozen=True, kw_only=True)
class Joint:
    """How the policy learns: by group relative policy gradient, with arguments and defaults of ``GRPO``.

    Attributes:
        learning_rate: Of Adam, at its highest; it rises and falls as the dLLM's does. 0: the policy stays.
        n_epochs: Passes over the steps of a round.
        batch_size: Steps per minibatch; ``None``: all of a round.
        clip_range: Epsilon of the ratios.
        baseline: ``mean`` or ``leave-one-out``, see ``group_advantages``.
        scale: What advantages are divided by: ``none``, the standard deviation of rewards in the ``group``,
            or that of advantages in the ``batch``.
        loss_average: ``sequence``: every episode weighs the same; ``step``: every step does.
        max_grad_norm: Gradients are clipped to this norm.
        sampler: ``bernoulli``, or ``bits``: a ratio for every bit instead of one for the action.
    """

    learning_rate: float = 1e-3
    n_epochs: int = 2
    batch_size: int | None = 512
    clip_range: float = 0.2
    baseline: str = "mean"
    scale: str = "none"
    loss_average: str = "sequence"
    max_grad_norm: float = 0.5
    sampler: str = "bernoulli"

    def __post_init__(self) -> None:
        check_whole("n_epochs", self.n_epochs, 1)
        if self.batch_size is not None:
            check_whole("batch_size", self.batch_size, 1)
        for name in ("learning_rate", "clip_range", "max_grad_norm"):
            check_not_negative(name, getattr(self, name))
        one_of("baseline", self.baseline, BASELINES)
        one_of("scale", self.scale, SCALES)
        one_of("loss_average", self.loss_average, LOSS_AVERAGES)
        # agents act in bits, and the likelihood of dpls is of an order
        one_of("sampler", self.sampler, [name for name in SAMPLERS if name != "dpls"])


def network_of(agent: Agent, text: str) -> UnmaskTransformer:
    """The network of an agent that can learn from what it decodes.

    Args:
        agent: Who decodes.
        text: As it was asked for, for the message.

    Raises:
        ValueError: If it is no policy, one that draws an order, or one with options.
    """
    if not isinstance(agent, LearnedPolicy):
        raise ValueError(
            f"joint trains the policy that decodes: agent must be one, such as policy:arithmetic-full or "
            f"the folder of a training run, got {text!r}"
        )
    if agent.parameters == {"decoding": "dpls"}:
        raise ValueError(
            f"{text!r} was trained with sampler 'dpls', whose draws have an order that decoding does not "
            "keep; joint needs a policy of sampler 'bernoulli' or 'bits'"
        )
    if agent.parameters != {"decoding": "sample"}:
        raise ValueError(
            f"joint trains a policy as it draws, without options (alpha and target_steps are said in env); "
            f"got {text!r}, which is {agent.parameters}"
        )
    return agent.network


class Player(LearnedPolicy):
    """A policy as it decodes in training: it draws without a fallback, and writes down what it saw and did.

    A draw that reveals nothing is the environment's affair (``on_empty``), as in ``train``: whatever the
    agent put in its place would not have the likelihood of the draw.

    Args:
        network: The policy's; it is used as it is.
        sampler: Whether likelihoods are of actions or of bits.
        steps: Gets every step of all rows.
    """

    def __init__(self, network: UnmaskTransformer, sampler: str, steps: GroupRolloutBuffer) -> None:
        super().__init__(network, decoding="bernoulli")
        self._sampler, self._steps = sampler, steps
        self._log_probs = np.zeros(0, dtype=np.float32)  # of the step under way

    def act(self, observation: Observation) -> NDArray[np.int8]:
        """Actions ``(B, L)``; they and their likelihoods are kept."""
        shape = observation["action_mask"].shape
        self._log_probs = np.zeros(shape if self._sampler == "bits" else shape[:1], dtype=np.float32)
        actions = super().act(observation)
        seen = {key: observation[key] for key in self.requires}
        values = np.zeros(len(actions), dtype=np.float32)  # there is no critic
        self._steps.add({**seen, "actions": actions, "values": values, "log_probs": self._log_probs})
        return actions

    def _choose(self, logits: Tensor, action_mask: Tensor, mask: Tensor, rows: NDArray[np.int64]) -> Tensor:
        actions = super()._choose(logits, action_mask, mask, rows)
        self._log_probs[rows] = _log_prob(self._sampler, logits, action_mask, actions).cpu().numpy()
        return actions


class PolicyLearner:
    """Updates a policy, in place, on the episodes that it decoded for the dLLM.

    Args:
        network: The policy's; it goes to the dLLM's device.
        constants: How it learns.
        engine: In which it decodes, with the dLLM that learns, too.
        group_size: Episodes per problem.

    Attributes:
        player: Who decodes the rollouts.
        agent: The same policy as it decodes in a test.
    """

    def __init__(self, network: UnmaskTransformer, constants: Joint, engine: Engine, group_size: int) -> None:
        self.constants = constants
        device = engine.backend.device
        self._network = network.to(device)
        self._optimizer = torch.optim.Adam(network.parameters(), lr=constants.learning_rate)
        self._steps = GroupRolloutBuffer(
            1,
            engine.observation_space,
            engine.action_space,
            device,
            n_envs=engine.num_rows,
            group_size=group_size,
            baseline=constants.baseline,
            scale=constants.scale,
            drop_flat=True,
        )
        self.player = Player(network, constants.sampler, self._steps)
        self.agent = LearnedPolicy(network)

    def finish(self, row: int, episode: Episode) -> None:
        """Notes that the episode of a row ended with the last step; those of a group stand together."""
        self._steps.finish(row, episode.position, episode.reward, episode.info["score"])

    def learn(self, rng: np.random.Generator, rate: float) -> dict[str, float]:
        """All updates on the episodes of a round, which are then forgotten; means of what to log.

        Args:
            rng: Shuffles.
            rate: The learning rate.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._steps.complete()
        logs: dict[str, list[float]] = {}
        with torch.random.fork_rng(devices=[]):  # minibatches are drawn from the global generator
            torch.manual_seed(int(rng.integers(2**32)))
            for batch in minibatches(self._steps, self.constants.n_epochs, self.constants.batch_size):
                facts = gradient_step(self._optimizer, batch, self._loss, self.constants.max_grad_norm)
                for name, value in facts.items():
                    logs.setdefault(name, []).append(value)
        found = {"learning_rate": rate, "zero_variance_groups": self._steps.zero_variance}
        self._steps.restart()
        return {**found, **{name: float(np.mean(values)) for name, values in logs.items()}}

    def _loss(self, batch: GroupSamples) -> tuple[Tensor, dict[str, Tensor]]:
        constants, action_mask = self.constants, batch.observations["action_mask"]
        logits = self._network.candidate_logits(batch.observations)
        log_prob = _log_prob(constants.sampler, logits, action_mask, batch.actions)
        weights = step_weights(batch, constants.loss_average)
        return clipped_loss(log_prob, batch.old_log_prob, batch.advantages, weights, constants.clip_range)

    def save(self, directory: Path, metadata: Mapping[str, Any]) -> None:
        """Writes the policy as it is."""
        save_policy(directory, self._network, metadata)

    def state(self) -> dict[str, Any]:
        """What a run goes on from, between two rounds: tensors and plain values."""
        return {"network": self._network.state_dict(), "optimizer": self._optimizer.state_dict()}

    def restore(self, state: Any, place: str) -> None:
        """Goes on where ``state`` was taken.

        Raises:
            ValueError: For the state of another policy; ``place`` is for the message.
        """
        own = self.state()
        check_keys(state, own.keys(), place)
        check_like(state["network"], own["network"], f"{place}, network")
        check_optimizer(state["optimizer"], self._optimizer, f"{place}, optimizer")
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])


def _log_prob(sampler: str, logits: Tensor, action_mask: Tensor, actions: Tensor) -> Tensor:
    """Log-likelihoods ``(B,)`` of actions, or ``(B, L)`` of their bits."""
    distribution = SAMPLERS[sampler](logits.shape[-1])
    return distribution.proba_distribution(logits, action_mask).log_prob(actions)
