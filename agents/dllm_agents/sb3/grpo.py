"""GRPO, group relative policy optimisation (arXiv 2402.03300), as arXiv 2512.09106 uses it for unmasking."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, obs_as_tensor
from torch import Tensor

from dllm_agents.config import check_not_negative, check_whole
from dllm_agents.sb3.grouped import GroupedRollouts
from dllm_agents.sb3.groups import GroupSamples
from dllm_agents.sb3.policy import MaskedBernoulliDistribution, UnmaskPolicy
from dllm_agents.sb3.updates import LOSS_AVERAGES, clipped_loss, gradient_step, minibatches, step_weights
from dllm_gym.evaluation import as_agent
from dllm_gym.strategies import InBlocks


def steered_log_prob(log_prob: Tensor, expert: Tensor, policy_share: float) -> Tensor:
    """Log-probability under the mixture of policy and expert, on the expert's own steps.

    log( G/(G+E) pi(u) + E/(G+E) ) where ``expert`` is set (arXiv 2512.09106, expert steering; all E expert
    episodes of a group are one rule's), the plain log-probability elsewhere. The mixture bounds the ratio
    however improbable the policy finds what the expert did.

    Args:
        log_prob: ``(B,)``.
        expert: ``(B,)`` bool.
        policy_share: G / (G + E).
    """
    other = torch.full_like(log_prob, math.log(1 - policy_share) if policy_share < 1 else -torch.inf)
    mixed = torch.logaddexp(log_prob + math.log(policy_share), other)
    return torch.where(expert, mixed, log_prob)


def expert_agent(expert: str, block_length: int | None) -> Any:
    """The strategy that plays an expert's episodes, one block after another if there is a block length."""
    agent: Any = as_agent(expert)
    return agent if block_length is None else InBlocks(agent, block_length)


class GRPO(GroupedRollouts):
    """Group relative policy optimisation without a critic.

    Every problem is decoded by a group of G rows; an episode's advantage is its reward minus the mean of
    its group, and the clipped surrogate of PPO is maximised with the ratio of the whole step action. A row
    that finishes takes the next free place in a group, so no forward of the dLLM is spent on a finished
    row; what is learned from are the groups that completed during ``n_steps`` steps of all rows. In several
    processes (``dllm_agents.parallel``) batches and groups are those of all together.

    The defaults are the recipe of arXiv 2512.09106 (mean baseline, no scaling, mean over steps within an
    episode and then over episodes, two passes, no KL) but for clip range (0.5 there), learning rate (3e-5
    there) and gradient clipping (0.2 there), which suit small policies on small dLLMs.

    Args:
        policy: ``UnmaskPolicy`` or a subclass; ``policy_kwargs={"critic": False}`` saves the value head.
        env: From ``make_sb3_env(group_size=...)``.
        learning_rate: Number or schedule.
        n_steps: Steps of all rows between updates.
        batch_size: Steps per minibatch; ``None`` takes the whole rollout at once, as the paper does.
        micro_batch_size: So many steps of a minibatch go through the network at a time, and their gradients
            add up: the same update in less memory. ``None``: all at once.
        groups_per_rollout: A rollout goes on until so many groups are complete.
        total_rounds: Training ends after so many rollouts, and schedules follow them instead of the steps.
        n_epochs: Passes over the steps of a rollout (mu).
        clip_range: Epsilon, number or schedule.
        baseline: ``mean`` or ``leave-one-out``, see ``group_advantages``.
        scale: What advantages are divided by: ``none``, the standard deviation of rewards in the ``group``,
            or that of advantages in the ``batch``.
        loss_average: ``sequence``: every episode weighs the same; ``step``: every step does.
        learn_from: So many episodes of every group, those with the largest advantages in size, are learned
            from, which shortens the update; ``None``: all.
        ent_coef: Weight of the entropy bonus.
        kl_coef: Weight of the divergence from the policy training began with (the estimator of arXiv
            2402.03300, equation 4).
        max_grad_norm: Gradients are clipped to this norm.
        expert: A strategy (``"fast-dllm:threshold=0.9"``) that plays the expert episodes of every group;
            needs ``make_sb3_env(num_experts=...)``.
        expert_block_length: Confines the expert to one block after another.
        stats_window_size: See ``stable_baselines3.PPO``, like the arguments that follow.
        tensorboard_log: See there.
        policy_kwargs: See there.
        verbose: See there.
        seed: See there.
        device: See there.

    Raises:
        ValueError: For values out of range, an environment without groups, or an expert where the
            environment plans no episodes for one (and the other way round).
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int = 16,
        batch_size: int | None = 512,
        n_epochs: int = 2,
        clip_range: float | Schedule = 0.2,
        baseline: str = "mean",
        scale: str = "none",
        loss_average: str = "sequence",
        learn_from: int | None = None,
        ent_coef: float = 0.0,
        kl_coef: float = 0.0,
        max_grad_norm: float = 0.5,
        expert: str | None = None,
        expert_block_length: int | None = None,
        micro_batch_size: int | None = None,
        groups_per_rollout: int = 1,
        total_rounds: int | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        if loss_average not in LOSS_AVERAGES:
            raise ValueError(
                f"unknown loss_average {loss_average!r}; choose one of {', '.join(LOSS_AVERAGES)}"
            )
        sizes = {"n_steps": n_steps, "n_epochs": n_epochs, "groups_per_rollout": groups_per_rollout}
        optional = {
            "batch_size": batch_size,
            "micro_batch_size": micro_batch_size,
            "total_rounds": total_rounds,
        }
        sizes |= {name: value for name, value in optional.items() if value is not None}
        for name, value in sizes.items():
            check_whole(name, value, 1)
        check_not_negative("kl_coef", kl_coef)
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=1.0,
            gae_lambda=1.0,
            ent_coef=ent_coef,
            vf_coef=0.0,
            max_grad_norm=max_grad_norm,
            use_sde=False,
            sde_sample_freq=-1,
            baseline=baseline,
            scale=scale,
            learn_from=learn_from,
            # flat groups have something to say to the other two terms
            rollout_buffer_kwargs={"drop_flat": kl_coef == 0 and ent_coef == 0},
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
            supported_action_spaces=(spaces.MultiBinary,),
        )
        self.batch_size, self.n_epochs, self.clip_range = batch_size, n_epochs, clip_range
        self.micro_batch_size = micro_batch_size
        self.groups_per_rollout, self.total_rounds = groups_per_rollout, total_rounds
        self.loss_average, self.kl_coef = loss_average, kl_coef
        self.expert, self.expert_block_length = expert, expert_block_length
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        super()._setup_model()
        self._clip_schedule = FloatSchedule(self.clip_range)
        self._reference: UnmaskPolicy | None = None
        self._expert: Any = None
        if self.expert is not None:
            if type(self.policy.action_dist) is not MaskedBernoulliDistribution:
                raise ValueError(
                    "an expert needs sampler 'bernoulli': a rule's bits have no draw order, "
                    "and steering is of whole actions"
                )
            self._expert = expert_agent(self.expert, self.expert_block_length)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> Any:
        if self.kl_coef > 0 and self._reference is None:
            self._reference = copy.deepcopy(self.policy)  # type: ignore[assignment]
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        if self.total_rounds is None:
            super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        else:  # the round under way counts, as its steps do in the other case
            super()._update_current_progress_remaining(self.rounds + 1, self.total_rounds)

    def _act(
        self, observation: dict[str, NDArray[Any]], expert_rows: NDArray[np.bool_]
    ) -> tuple[Tensor, Tensor, Tensor]:
        actions, values, log_probs = super()._act(observation, expert_rows)
        if expert_rows.any():
            bits = torch.as_tensor(self._expert.act(observation), device=self.device)
            rows = torch.as_tensor(expert_rows, device=self.device)
            actions = torch.where(rows[:, None], bits, actions)
            tensors: Any = obs_as_tensor(observation, self.device)
            log_probs = self.policy.get_distribution(tensors).log_prob(actions)
        return actions, values, log_probs

    def train(self) -> None:
        """Updates the policy on the groups of the last rollout."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        clip_range = self._clip_schedule(self._current_progress_remaining)
        tickets = self._tickets()
        policy_share = 1 - tickets.num_experts / tickets.group_size
        logs: dict[str, list[float]] = {}
        for batch in minibatches(self.rollout_buffer, self.n_epochs, self.batch_size):
            facts = gradient_step(
                self.policy.optimizer,
                batch,
                lambda piece: self._loss(piece, clip_range, policy_share),
                self.max_grad_norm,
                self.micro_batch_size,
            )
            for name, value in facts.items():
                logs.setdefault(name, []).append(value)
        self._n_updates += self.n_epochs
        for name, values in logs.items():
            self.logger.record(f"train/{name}", float(np.mean(values)))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", clip_range)

    def _loss(
        self, batch: GroupSamples, clip_range: float, policy_share: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        observations: Any = batch.observations
        distribution = self.policy.get_distribution(observations)
        log_prob = distribution.log_prob(batch.actions)
        new, old = log_prob, batch.old_log_prob
        if self._expert is not None:
            new, old = (steered_log_prob(each, batch.expert, policy_share) for each in (new, old))
        weights = step_weights(batch, self.loss_average)
        loss, facts = clipped_loss(new, old, batch.advantages, weights, clip_range)
        if self.ent_coef:
            entropy = distribution.entropy()
            assert entropy is not None
            loss = loss - self.ent_coef * (weights * entropy).mean()
            facts["entropy"] = entropy.detach().mean()
        if self._reference is not None:
            with torch.no_grad():
                reference = self._reference.get_distribution(observations).log_prob(batch.actions)
            difference = (reference - log_prob).view(len(weights), -1).sum(-1)  # of whole actions
            divergence = difference.exp() - difference - 1
            loss = loss + self.kl_coef * (weights * divergence).mean()
            facts["reference_kl"] = divergence.detach().mean()
        return loss, {"loss": loss.detach(), **facts}

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_expert", "_reference"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer"], []
