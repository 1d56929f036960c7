"""Groups of episodes on the same problem: their advantages, and the buffer that waits for whole groups."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import astuple
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import BaseBuffer

from dllm_agents import parallel
from dllm_agents.config import check_whole
from dllm_agents.sb3.history import Episode, History

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

    ``old_log_prob`` is ``(B,)`` and ``advantages`` too; with a likelihood per bit ``(B, L)`` and ``(B, 1)``.
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
        batch_size: Steps per batch where ``get`` is not told; ``None``: all.

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
        batch_size: int | None = None,
    ) -> None:
        super().__init__(buffer_size, observation_space, action_space, device, n_envs=n_envs)
        for name, value, choices in (("baseline", baseline, BASELINES), ("scale", scale, SCALES)):
            if value not in choices:
                raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(choices)}")
        if learn_from is not None:
            check_whole("learn_from", learn_from, 1)
        self.group_size, self.baseline, self.scale, self.drop_flat = group_size, baseline, scale, drop_flat
        self.learn_from, self.batch_size = learn_from, batch_size
        self._history = History(n_envs)
        self._groups: dict[int, list[Episode]] = {}
        self._samples: dict[str, NDArray[Any]] = {}
        self.values = self.returns = np.zeros(0, dtype=np.float32)
        self.zero_variance = float("nan")  # share of groups whose episodes all earned the same

    def reset(self) -> None:
        """Forgets the samples of the last rollout; unfinished groups stay."""
        self._samples = {}
        super().reset()

    def restart(self) -> None:
        """Forgets everything, for when the environment was reset."""
        self._history.clear()
        self._groups = {}
        self.reset()

    def state(self) -> dict[str, Any]:
        """The steps of unfinished groups, as arrays and plain values."""
        groups = [[key, [astuple(episode) for episode in group]] for key, group in self._groups.items()]
        return {"history": self._history.state(), "groups": groups}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where ``state`` was taken."""
        self._history.restore(state["history"])
        self._groups = {key: [Episode(*episode) for episode in group] for key, group in state["groups"]}

    def add(self, step: dict[str, NDArray[Any]]) -> None:
        """Appends one step of all rows: observations by key, ``actions``, ``values``, ``log_probs``."""
        self._history.add(step)

    def finish(self, row: int, ticket: int, reward: float, score: float = 0.0, expert: bool = False) -> None:
        """Notes that a row's episode ended with the last step added."""
        group = self._groups.setdefault(ticket // self.group_size, [])
        group.append(self._history.finish(row, reward, score, expert))

    @property
    def num_complete(self) -> int:
        """How many groups ``complete`` would find."""
        return sum(len(group) == self.group_size for group in self._groups.values())

    def complete(self) -> int:
        """Turns all complete groups into samples; returns how many steps they had, flat ones included."""
        done = [key for key, group in self._groups.items() if len(group) == self.group_size]
        if not done:
            return 0
        episodes: list[Episode] = []
        advantages: list[NDArray[np.float64]] = [np.zeros(0)]
        flat = total = 0
        for key in done:
            group = self._groups.pop(key)
            rewards = np.array([episode.reward for episode in group])
            is_flat = bool(np.ptp(rewards) < 1e-9)
            flat += is_flat
            total += sum(map(len, group))
            if not (is_flat and self.drop_flat):
                of_group = group_advantages(rewards, self.baseline, self.scale)
                if self.learn_from is not None:
                    chosen = largest(of_group, self.learn_from, seed=key)
                    group, of_group = [group[at] for at in chosen], of_group[chosen]
                episodes += group
                advantages.append(of_group)
        self.zero_variance = flat / len(done)
        lengths = np.array([len(episode) for episode in episodes], dtype=np.int64)
        self._samples = self._history.gather(episodes)
        spread = np.repeat(np.concatenate(advantages), lengths)
        num_steps, num_episodes, summed = parallel.total(lengths.sum(), len(episodes), spread.sum())
        if self.scale == "batch":
            mean = summed / max(num_steps, 1)
            (squares,) = parallel.total(np.square(spread - mean).sum())
            spread = spread / (math.sqrt(squares / max(num_steps, 1)) + 1e-8)
        if self._samples["log_probs"].ndim == 2:
            # losses are means over bits then, and so have the size of those that are sums over them
            spread = spread[:, None] * self._samples["log_probs"].shape[1]
        self._samples["advantages"] = spread.astype(np.float32)
        mean_length = num_steps / max(num_episodes, 1)
        self._samples["weights"] = np.repeat(mean_length / lengths, lengths).astype(np.float32)
        self._samples["expert"] = np.repeat(np.array([e.expert for e in episodes], dtype=bool), lengths)
        self.values = self._samples["values"]
        self.returns = np.repeat([episode.reward for episode in episodes], lengths).astype(np.float32)
        self._samples["returns"] = self.returns
        self._history.forget(episode for group in self._groups.values() for episode in group)
        return total

    def get(self, batch_size: int | None = None) -> Generator[GroupSamples, None, None]:
        """Yields the samples once, shuffled, in batches of ``batch_size`` (``None``: the buffer's own)."""
        size = len(self.returns) if self._samples else 0
        order = torch.randperm(size).numpy()
        of_batch = batch_size or self.batch_size or max(size, 1)
        for first in range(0, size, of_batch):
            yield self._get_samples(order[first : first + of_batch])

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
