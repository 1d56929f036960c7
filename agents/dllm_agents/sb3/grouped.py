"""Whole episodes in groups on the same problem: what GRPO needs, and PPO and A2C with a baseline per problem.

The reward of an episode depends mostly on how hard its problem is, which a critic that sees only
confidences cannot know. Decoding every problem ``group_size`` times gives the baseline for free: an
episode's advantage is its reward minus the mean of the other episodes on the same problem
(leave-one-out; Kool et al. 2019, and GRPO, arXiv 2402.03300). Everything else is Stable-Baselines3's.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from dllm_agents import parallel
from dllm_agents.config import check_whole

_ENDLESS = 2**31 - 1


@lru_cache(maxsize=16)  # the rows of a group ask one soon after the other
def _problem_of(group: int, seed: int, num_problems: int) -> int:
    return int(np.random.default_rng([seed, group]).integers(num_problems))


class Tickets:
    """Hands out problems so that each is decoded by ``group_size`` rows, whichever are free.

    Ticket t decodes the problem of group t // group_size. Rows that finish early simply take the next
    ticket, so groups complete soon after they begin and no row ever waits.

    Args:
        group_size: Episodes per problem, those of experts included.
        num_rows: Number of rows that take tickets.
        num_problems: Of the task; ``None`` for a task without end.
        seed: Determines the problem of every group, and alpha and target_steps where they are drawn.
        num_experts: How many episodes of each group, its last ones, are an expert's.

    Attributes:
        current: ``(num_rows,)`` int64, the ticket each row is at.
        next: The next ticket to be handed out.
    """

    def __init__(
        self, group_size: int, num_rows: int, num_problems: int | None, seed: int, num_experts: int = 0
    ) -> None:
        self.group_size, self.num_experts = group_size, num_experts
        self.current = np.full(num_rows, -1)
        self.next = 0
        self._num_problems = num_problems or _ENDLESS
        self._seed = seed

    def __call__(self, row: int) -> int:
        """Gives ``row`` the next ticket and returns its problem."""
        ticket, self.next = self.next, self.next + 1
        self.current[row] = ticket
        return _problem_of(ticket // self.group_size, self._seed, self._num_problems)

    def knobs(self, row: int) -> NDArray[np.float64]:
        """Two numbers in [0, 1), the same for all rows of a group: see ``Engine.draw_knobs``."""
        return np.random.default_rng([self._seed, int(self.current[row]) // self.group_size, 1]).random(2)

    def is_expert(self) -> NDArray[np.bool_]:
        """``(num_rows,)``: which rows are at an expert's episode."""
        expert: NDArray[np.bool_] = self.current % self.group_size >= self.group_size - self.num_experts
        return expert

    def begin_group(self) -> None:
        """Leaves the rest of the last group, as its other episodes were lost when all rows restart."""
        self.next = -(-self.next // self.group_size) * self.group_size


@dataclass
class _Episode:
    """Where a finished episode lies in the history of steps, and its reward."""

    row: int
    first: int
    last: int
    reward: float
    expert: bool


BASELINES = ("mean", "leave-one-out")
SCALES = ("none", "group", "batch")


def group_advantages(rewards: NDArray[np.float64], baseline: str, scale: str) -> NDArray[np.float64]:
    """Advantages of the episodes of one group from their rewards ``(G,)``.

    Args:
        rewards: R.
        baseline: ``mean``: R_i - mean(R), GRPO's. ``leave-one-out``: R_i - mean of the others, which is
            G / (G - 1) times that.
        scale: ``group`` divides by the group's standard deviation; anything else does not.
    """
    size = len(rewards)
    advantages: NDArray[np.float64] = rewards - rewards.mean()
    if baseline == "leave-one-out":
        advantages = advantages * size / (size - 1)
    return advantages / (rewards.std() + 1e-6) if scale == "group" else advantages


def largest(advantages: NDArray[np.float64], count: int, seed: int) -> NDArray[np.int64]:
    """Indices, ascending, of the ``count`` advantages out of ``(G,)`` largest in size; equals are drawn.

    In the order of finishing, the shortest episodes of equals would come first.
    """
    drawn = np.random.default_rng(seed).permutation(len(advantages))
    by_size = drawn[np.argsort(-np.abs(advantages[drawn]), kind="stable")]
    return np.sort(by_size[:count])


class GroupSamples(NamedTuple):
    """A batch of steps for an update; the first six fields are those SB3's algorithms read.

    ``weights`` makes a mean over steps a mean over episodes; ``expert`` marks steps of experts.
    """

    observations: dict[str, torch.Tensor]
    actions: torch.Tensor
    old_values: torch.Tensor
    old_log_prob: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    weights: torch.Tensor
    expert: torch.Tensor


class GroupRolloutBuffer(BaseBuffer):
    """Holds the steps of episodes until the group they belong to is complete, then hands them out.

    A drop-in for SB3's rollout buffer as far as ``train`` is concerned. Every step of an episode gets the
    episode's advantage, since the only reward comes at its end and is not discounted.

    Args:
        buffer_size: Steps per rollout.
        observation_space: Dict.
        action_space: MultiBinary.
        device: Where samples go.
        gae_lambda: Accepted because SB3 passes it; whole episodes need no bootstrapping.
        gamma: Likewise.
        n_envs: Number of rows.
        group_size: Episodes per problem.
        baseline: See ``group_advantages``.
        scale: See there; ``batch`` divides by the standard deviation over all steps of the rollout, those of
            all processes.
        drop_flat: Leave out groups whose episodes all earned the same: without advantage there is nothing
            to learn from them.
        learn_from: So many episodes of a group, those with the largest advantages in size, are handed out
            (compare the down-sampling of PODS, arXiv 2504.13818); equals are drawn; ``None``: all.

    Raises:
        ValueError: For an unknown baseline or scale, or a ``learn_from`` that is no whole number from 1 on.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Dict,
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        gae_lambda: float = 1.0,
        gamma: float = 1.0,
        n_envs: int = 1,
        group_size: int = 8,
        baseline: str = "leave-one-out",
        scale: str = "batch",
        drop_flat: bool = False,
        learn_from: int | None = None,
    ) -> None:
        super().__init__(buffer_size, observation_space, action_space, device, n_envs=n_envs)
        for name, value, choices in (("baseline", baseline, BASELINES), ("scale", scale, SCALES)):
            if value not in choices:
                raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(choices)}")
        if learn_from is not None:
            check_whole("learn_from", learn_from, 1)
        self.group_size, self.baseline, self.scale, self.drop_flat = group_size, baseline, scale, drop_flat
        self.learn_from = learn_from
        self._history: list[dict[str, NDArray[Any]]] = []  # one entry per step, arrays (N, ...)
        self._forgotten = 0  # steps dropped from the front of the history
        self._started = np.zeros(n_envs, dtype=np.int64)  # step at which each row's episode began
        self._groups: dict[int, list[_Episode]] = {}
        self._samples: dict[str, NDArray[Any]] = {}
        self.values = self.returns = np.zeros(0, dtype=np.float32)
        self.zero_variance = float("nan")  # share of groups whose episodes all earned the same

    def reset(self) -> None:
        """Forgets the samples of the last rollout; unfinished groups stay."""
        self._samples = {}
        super().reset()

    def restart(self) -> None:
        """Forgets everything, for when the environment was reset."""
        self._forgotten, self._history, self._groups = 0, [], {}
        self._started[:] = 0
        self.reset()

    def state(self) -> dict[str, Any]:
        """The steps of unfinished groups, as arrays and plain values."""
        stacked = {key: np.stack([step[key] for step in self._history]) for key in (self._history or [{}])[0]}
        groups = [[key, [astuple(episode) for episode in group]] for key, group in self._groups.items()]
        return {
            "steps": stacked, "forgotten": self._forgotten, "started": self._started.copy(), "groups": groups,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where ``state`` was taken."""
        stacked = state["steps"]
        count = len(next(iter(stacked.values()), ()))
        self._history = [{key: array[at] for key, array in stacked.items()} for at in range(count)]
        self._forgotten, self._started = state["forgotten"], state["started"].copy()
        self._groups = {key: [_Episode(*episode) for episode in group] for key, group in state["groups"]}

    def add(self, step: dict[str, NDArray[Any]]) -> None:
        """Appends one step of all rows: observations by key, ``actions``, ``values``, ``log_probs``."""
        self._history.append(step)

    def finish(self, row: int, ticket: int, reward: float, expert: bool = False) -> None:
        """Notes that a row's episode ended with the last step added."""
        last = self._forgotten + len(self._history) - 1
        group = self._groups.setdefault(ticket // self.group_size, [])
        group.append(_Episode(row, int(self._started[row]), last, reward, expert))
        self._started[row] = last + 1

    @property
    def num_complete(self) -> int:
        """How many groups ``complete`` would find."""
        return sum(len(group) == self.group_size for group in self._groups.values())

    def complete(self) -> int:
        """Turns all complete groups into samples; returns how many steps they had, flat ones included."""
        done = [key for key, group in self._groups.items() if len(group) == self.group_size]
        if not done:
            return 0
        episodes: list[_Episode] = []
        advantages: list[NDArray[np.float64]] = [np.zeros(0)]
        flat = total = 0
        for key in done:
            group = self._groups.pop(key)
            rewards = np.array([episode.reward for episode in group])
            is_flat = bool(np.ptp(rewards) < 1e-9)
            flat += is_flat
            total += sum(episode.last - episode.first + 1 for episode in group)
            if not (is_flat and self.drop_flat):
                of_group = group_advantages(rewards, self.baseline, self.scale)
                if self.learn_from is not None:
                    chosen = largest(of_group, self.learn_from, seed=key)
                    group, of_group = [group[at] for at in chosen], of_group[chosen]
                episodes += group
                advantages.append(of_group)
        self.zero_variance = flat / len(done)
        lengths = np.array([episode.last - episode.first + 1 for episode in episodes], dtype=np.int64)
        ranges = [np.arange(episode.first, episode.last + 1) for episode in episodes]
        steps = np.concatenate([np.zeros(0, dtype=np.int64), *ranges]) - self._forgotten  # (S,)
        rows = np.repeat(np.array([episode.row for episode in episodes], dtype=np.int64), lengths)  # (S,)
        stacked = {key: np.stack([step[key] for step in self._history]) for key in self._history[0]}
        self._samples = {key: array[steps, rows] for key, array in stacked.items()}
        spread = np.repeat(np.concatenate(advantages), lengths)
        num_steps, num_episodes, summed = parallel.total(len(steps), len(episodes), spread.sum())
        if self.scale == "batch":
            mean = summed / max(num_steps, 1)
            (squares,) = parallel.total(np.square(spread - mean).sum())
            spread = spread / (math.sqrt(squares / max(num_steps, 1)) + 1e-8)
        self._samples["advantages"] = spread.astype(np.float32)
        mean_length = num_steps / max(num_episodes, 1)
        self._samples["weights"] = np.repeat(mean_length / lengths, lengths).astype(np.float32)
        self._samples["expert"] = np.repeat(np.array([e.expert for e in episodes], dtype=bool), lengths)
        self.values = self._samples["values"]
        self.returns = np.repeat([episode.reward for episode in episodes], lengths).astype(np.float32)
        self._samples["returns"] = self.returns
        self._forget()
        return total

    def _forget(self) -> None:
        pending = [episode.first for group in self._groups.values() for episode in group]
        keep_from = min([int(self._started.min()), *pending])
        del self._history[: keep_from - self._forgotten]
        self._forgotten = keep_from

    def get(self, batch_size: int | None = None) -> Generator[GroupSamples, None, None]:
        """Yields the samples once, shuffled, in batches of ``batch_size`` (``None``: all at once)."""
        size = len(self.returns) if self._samples else 0
        order = torch.randperm(size).numpy()
        for first in range(0, size, batch_size or max(size, 1)):
            yield self._get_samples(order[first : first + (batch_size or size)])

    def _get_samples(  # type: ignore[override]  # SB3 types it for flat observations
        self, batch_inds: NDArray[np.int64], env: Any = None
    ) -> GroupSamples:
        batch = {key: self.to_torch(array[batch_inds]) for key, array in self._samples.items()}
        special = ("actions", "values", "log_probs", "advantages", "returns", "weights", "expert")
        return GroupSamples(
            observations={key: value for key, value in batch.items() if key not in special},
            actions=batch["actions"].float(),
            old_values=batch["values"],
            old_log_prob=batch["log_probs"],
            advantages=batch["advantages"],
            returns=batch["returns"],
            weights=batch["weights"],
            expert=batch["expert"],
        )


class GroupedRollouts(OnPolicyAlgorithm):
    """Mixin that collects whole episodes in groups; put it before the algorithm: ``(GroupedRollouts, PPO)``.

    The environment must come from ``make_sb3_env(group_size=...)``. A rollout is ``n_steps`` steps of all
    rows; what is learned from are the groups that completed in it. In several processes all numbers of
    steps and groups are those of all together.
    """

    rollout_buffer: GroupRolloutBuffer  # type: ignore[assignment]
    expert: Any = None  # who plays the expert episodes, if there are any
    groups_per_rollout: int = 1
    total_rounds: int | None = None

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
                rollout_buffer.finish(int(row), ticket, float(rewards[row]), expert)
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
    """A2C (arXiv 1602.01783) with a leave-one-out baseline per problem; takes A2C's arguments."""
