"""Whole episodes in groups on the same problem: what GRPO needs, and PPO and A2C with a baseline per problem.

The reward of an episode depends mostly on how hard its problem is, which a critic that sees only
confidences cannot know. Decoding every problem ``group_size`` times gives the baseline for free: an
episode's advantage is its reward minus the mean of the other episodes on the same problem
(leave-one-out; Kool et al. 2019, and GRPO, arXiv 2402.03300). Everything else is Stable-Baselines3's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from dllm_agents import parallel
from dllm_agents.config import check_whole
from dllm_agents.sb3.groups import GroupRolloutBuffer
from dllm_agents.sb3.tickets import Tickets


class GroupedRollouts(OnPolicyAlgorithm):
    """Mixin that collects whole episodes in groups; put it before the algorithm: ``(GroupedRollouts, PPO)``.

    The environment must come from ``make_sb3_env(group_size=...)``. A rollout is ``n_steps`` steps of all
    rows; what is learned from are the groups that completed in it. In several processes all numbers of
    steps and groups are those of all together.

    Args:
        *args: The algorithm's own.
        baseline: See ``GroupRolloutBuffer``, like the arguments that follow.
        scale: See there.
        learn_from: See there.
        **kwargs: The algorithm's own.
    """

    rollout_buffer: GroupRolloutBuffer  # type: ignore[assignment]
    expert: Any = None  # who plays the expert episodes, if there are any
    groups_per_rollout: int = 1
    total_rounds: int | None = None

    def __init__(
        self,
        *args: Any,
        baseline: str = "leave-one-out",
        scale: str = "batch",
        learn_from: int | None = None,
        **kwargs: Any,
    ) -> None:
        grouping = {"baseline": baseline, "scale": scale, "learn_from": learn_from}
        kwargs["rollout_buffer_kwargs"] = {**grouping, **(kwargs.get("rollout_buffer_kwargs") or {})}
        super().__init__(*args, **kwargs)

    @property
    def rounds(self) -> int:
        """Rollouts learned from so far."""
        return self._n_updates // getattr(self, "n_epochs", 1)

    def _setup_model(self) -> None:
        self.rollout_buffer_class = GroupRolloutBuffer  # type: ignore[assignment]
        if self.env is not None or "group_size" not in self.rollout_buffer_kwargs:  # else loaded to predict
            self.rollout_buffer_kwargs["group_size"] = self._tickets().group_size
        super()._setup_model()

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if reset_num_timesteps or self._last_obs is None:  # all rows are about to restart
            tickets = self._tickets()
            tickets.begin_group()
            self.rollout_buffer.group_size = tickets.group_size
            self.rollout_buffer.restart()
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def _tickets(self) -> Tickets:
        tickets = getattr(self.env, "tickets", None)
        if not isinstance(tickets, Tickets):
            raise ValueError(f"{type(self).__name__} needs an environment made by make_sb3_env(group_size=8)")
        if (tickets.num_experts > 0) != (self.expert is not None):
            raise ValueError(
                f"expert {self.expert!r} and an environment with num_experts={tickets.num_experts} "
                "do not go together: give both or none"
            )
        return tickets

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: Any, n_rollout_steps: int
    ) -> bool:
        """Steps all rows ``n_rollout_steps`` times, and on until ``groups_per_rollout`` are complete.

        Returns:
            Whether training goes on: no callback of any process stopped it, and there are rounds left.
        """
        if self.total_rounds is not None and self.rounds >= self.total_rounds:
            return False
        assert self._last_obs is not None
        tickets = self._tickets()
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        callback.on_rollout_start()
        steps, going_on = 0, True
        begun_at, needed = self.num_timesteps, parallel.share(self.groups_per_rollout)
        while going_on and (steps < n_rollout_steps or rollout_buffer.num_complete < needed):
            observation: Any = self._last_obs
            expert_rows = tickets.is_expert()
            with torch.no_grad():
                actions, values, log_probs = self._act(observation, expert_rows)
            step = {"actions": actions, "values": values.flatten(), "log_probs": log_probs}
            arrays = {key: tensor.cpu().numpy() for key, tensor in step.items()}
            before = tickets.current.copy()
            bits = (arrays["actions"] != 0).astype(np.int8)  # what may be more than bits carries an order
            self._last_obs, rewards, dones, infos = env.step(bits)  # type: ignore[assignment]
            rollout_buffer.add({**observation, **arrays})
            for row in np.flatnonzero(dones):
                ticket, expert = int(before[row]), bool(expert_rows[row])
                rollout_buffer.finish(
                    int(row), ticket, float(rewards[row]), float(infos[row]["score"]), expert
                )
            self.num_timesteps += env.num_envs
            steps += 1
            callback.update_locals(locals())
            going_on = callback.on_step()
            own = np.flatnonzero(~expert_rows)  # experts are in no statistic
            self._update_info_buffer([infos[row] for row in own], dones[own])
        stopped, taken = parallel.total(not going_on, steps * env.num_envs)
        self.num_timesteps = begun_at + round(taken)
        if stopped:
            return False
        rollout_buffer.complete()
        self._last_episode_starts = dones
        self.logger.record("train/samples", len(rollout_buffer.returns))
        self.logger.record("train/zero_variance_groups", rollout_buffer.zero_variance)
        callback.on_rollout_end()
        return True

    def _act(
        self, observation: dict[str, NDArray[Any]], expert_rows: NDArray[np.bool_]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Actions ``(N, L)``, values ``(N, 1)`` and log-probabilities ``(N,)`` of one step."""
        actions, values, log_probs = self.policy(obs_as_tensor(observation, self.device))
        return actions, values, log_probs

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "rollout_buffer"]


class GroupPPO(GroupedRollouts, PPO):
    """PPO (arXiv 1707.06347) with a leave-one-out baseline per problem; takes PPO's arguments."""


class GroupA2C(GroupedRollouts, A2C):
    """A2C (arXiv 1602.01783) with a leave-one-out baseline per problem; takes A2C's arguments.

    Args:
        *args: A2C's.
        batch_size: Steps per update; ``None``: all of a rollout, as A2C does.
        **kwargs: A2C's, and those of ``GroupedRollouts``.
    """

    def __init__(self, *args: Any, batch_size: int | None = None, **kwargs: Any) -> None:
        if batch_size is not None:
            check_whole("batch_size", batch_size, 1)
        kwargs["rollout_buffer_kwargs"] = {
            **(kwargs.get("rollout_buffer_kwargs") or {}), "batch_size": batch_size,
        }  # fmt: skip
        super().__init__(*args, **kwargs)
