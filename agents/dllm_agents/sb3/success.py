"""The success model as a Stable-Baselines3 algorithm: learning which reveals do harm, from any episodes."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from dllm_agents.config import check_whole
from dllm_agents.distributions import with_argmax_fallback
from dllm_agents.harm import HarmScale, harm_logits, logit, risk, success_loss
from dllm_agents.sb3.history import Episode, History
from dllm_gym.offline import Episodes

_NEVER = -1e9  # the threshold, as a logit, of rows that don't ask the model
_NOTHING = (2.0, -1.0, 0.0, _NEVER)  # the fields of a behaviour that picks no position


@dataclass
class Behaviour:
    """How each of N rows chooses what to reveal in its episode: what any of these picks.

    Attributes:
        sure: ``(N,)``, confidences from here on.
        unsure: ``(N,)``, confidences up to here.
        chance: ``(N,)``, every position with this probability.
        threshold: ``(N,)``, what the model finds less harmful, as a logit.
    """

    sure: NDArray[np.float32]
    unsure: NDArray[np.float32]
    chance: NDArray[np.float32]
    threshold: NDArray[np.float32]

    @classmethod
    def none(cls, num_rows: int) -> Behaviour:
        """Rows that pick nothing."""
        columns = np.tile(np.array(_NOTHING, dtype=np.float32), (num_rows, 1))
        return cls(*columns.T.copy())

    def draw(self, row: int, thresholds: tuple[float, float], explore: float) -> None:
        """A new behaviour for a row, from torch's global generator.

        Args:
            row: The row.
            thresholds: Lowest and highest harm at which the model decides.
            explore: Share of episodes that do without the model.
        """
        who, which, *drawn = torch.rand(6).tolist()
        self.sure[row], self.unsure[row], self.chance[row], self.threshold[row] = _NOTHING
        if who >= explore:
            low, high = map(math.log, thresholds)
            self.threshold[row] = logit(math.exp(low + drawn[0] * (high - low)))
            self.chance[row] = 0.1 * max(2 * drawn[1] - 1, 0.0)  # half of the episodes: what it would not do
            return
        if which < 2 / 3:  # what it is sure of, and perhaps what it has no idea of: that may be free
            self.sure[row] = 1 - 10 ** (-0.2 - 2.8 * drawn[0])
        if 1 / 3 <= which < 2 / 3:
            self.unsure[row] = 0.2 + 0.4 * drawn[1]
        self.chance[row] = 0.1 * drawn[2] if which < 2 / 3 else 10 ** (-1.5 + 1.2 * drawn[0])


@dataclass(frozen=True)
class Champion:
    """The network that earned most in a round of its own.

    Attributes:
        reward: What it earned there, at its threshold.
        harm: How its logits read as harm.
        weights: Its parameters by name.
    """

    reward: float
    harm: HarmScale
    weights: dict[str, NDArray[Any]]


class EpisodeBuffer:
    """The episodes of the last rounds, whole, and the network that did best in any round.

    Args:
        buffer_size: Not used; SB3 passes it, like ``gae_lambda`` and ``gamma``.
        observation_space: Dict.
        action_space: MultiBinary.
        device: Where samples go.
        gae_lambda: See there.
        gamma: See there.
        n_envs: Number of rows.
        kept_rounds: So many rounds are learned from.
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
        kept_rounds: int = 3,
    ) -> None:
        self.kept_rounds = kept_rounds
        self.harm = HarmScale(1.0, 0.5)
        self.behaviour = Behaviour.none(n_envs)
        self.history = History(n_envs)
        self.finished: list[Episode] = []  # of this round
        # theirs, as logits; NaN where the model had no say, or not the only one
        self.thresholds: list[float] = []
        self.rounds: list[dict[str, NDArray[Any]]] = []
        self.champion: Champion | None = None

    def restart(self) -> None:
        """Forgets the episodes under way, for when the environment was reset."""
        self.history.clear()
        self.finished, self.thresholds = [], []

    def finish(self, row: int, reward: float, score: float) -> None:
        """Notes that a row's episode ended with the last step added."""
        self.finished.append(self.history.finish(row, reward, score))
        alone = self.behaviour.chance[row] == 0 and self.behaviour.threshold[row] > _NEVER
        self.thresholds.append(float(self.behaviour.threshold[row]) if alone else math.nan)

    def end_round(self) -> None:
        """Makes a round of the episodes that finished since the last one, and drops the oldest."""
        lengths = np.array([len(episode) for episode in self.finished], dtype=np.int64)
        scores = np.array([episode.score for episode in self.finished], dtype=np.float32)
        steps = self.history.gather(self.finished)
        for key in steps.keys() & {"hidden", "attention"}:  # else a state on disk would take gigabytes
            steps[key] = steps[key].astype(np.float16)
        self.rounds.append({**steps, "_length": lengths, "_score": scores})
        self.rounds = self.rounds[-self.kept_rounds :]
        self.finished, self.thresholds = [], []
        self.history.forget()

    def samples(self) -> dict[str, NDArray[Any]]:
        """All rounds in one: steps ``(S, ...)`` by key, ``_length`` and ``_score`` of episodes ``(E,)``."""
        return {key: np.concatenate([part[key] for part in self.rounds]) for key in self.rounds[0]}

    def state(self) -> dict[str, Any]:
        """Everything, as arrays and plain values."""
        return {
            "history": self.history.state(), "rounds": list(self.rounds),
            "behaviour": list(astuple(self.behaviour)), "harm": list(astuple(self.harm)),
            "champion": None if self.champion is None else {
                "reward": self.champion.reward, "harm": list(astuple(self.champion.harm)),
                "weights": self.champion.weights,
            },
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where ``state`` was taken, between two rounds."""
        self.history.restore(state["history"])
        self.behaviour, self.rounds = Behaviour(*state["behaviour"]), list(state["rounds"])
        self.harm = HarmScale(*state["harm"])
        best = state["champion"]
        self.champion = best and Champion(best["reward"], HarmScale(*best["harm"]), best["weights"])


class SuccessModel(OnPolicyAlgorithm):
    """Learns from any episodes which reveals do harm; its policy reveals what does little.

    The network of ``UnmaskPolicy`` predicts whether an episode succeeds, as a noisy-or of harms, one per
    reveal (``dllm_agents.harm``). The same logits are a Bernoulli policy: sharp about the harm ``threshold``.
    Rounds alternate: episodes are collected, the first round's by random rules, later ones mostly by the
    model at random thresholds; then the threshold is set to where the model earned most, and the network is
    fitted to the last rounds. After the last round the network returns that earned most in a round of its
    own: every fit moves the harms, and a threshold that was good before it may be far too bold behind it.
    Episodes need no groups and no baseline. Where tokens could be taken back, all stand: an algorithm that
    begins with this policy learns which should not.

    Args:
        policy: ``UnmaskPolicy`` or a subclass, with sampler ``bernoulli``.
        env: From ``make_sb3_env``.
        learning_rate: Number or schedule: the peak in a fit, to which it rises and from which it falls again.
        first_episodes: Episodes of the first round.
        round_episodes: Episodes of every other one.
        kept_rounds: The last so many rounds are fitted.
        n_epochs: Passes over their episodes.
        batch_size: Episodes per minibatch.
        sharpness: How steeply the reveal probability falls with the logit of the harm.
        threshold: The harm that is revealed with probability 1/2, at first.
        thresholds: Lowest and highest threshold of episodes in collecting.
        explore: Share of later rounds' episodes by random rules.
        max_grad_norm: Gradients are clipped to this norm.
        stats_window_size: See ``stable_baselines3.PPO``, like the arguments that follow.
        tensorboard_log: See there.
        policy_kwargs: See there.
        verbose: See there.
        seed: See there.
        device: See there.

    Raises:
        ValueError: For values out of range.
    """

    rollout_buffer: EpisodeBuffer  # type: ignore[assignment]

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-3,
        first_episodes: int = 1000,
        round_episodes: int = 1000,
        kept_rounds: int = 4,
        n_epochs: int = 3,
        batch_size: int = 48,
        sharpness: float = 3.0,
        threshold: float = 0.03,
        thresholds: tuple[float, float] = (0.002, 0.1),
        explore: float = 0.15,
        max_grad_norm: float = 1.0,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        sizes = {
            "first_episodes": first_episodes, "round_episodes": round_episodes, "kept_rounds": kept_rounds,
            "n_epochs": n_epochs, "batch_size": batch_size,
        }  # fmt: skip
        for name, value in sizes.items():
            check_whole(name, value, 1)
        HarmScale(sharpness, threshold)  # which says what is out of range
        if len(thresholds) != 2 or not 0 < thresholds[0] <= thresholds[1] < 1:
            raise ValueError(f"thresholds must be two numbers, 0 < low <= high < 1, got {thresholds!r}")
        if not 0 <= explore <= 1:
            raise ValueError(f"explore must lie from 0 to 1, got {explore!r}")
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=1,
            gamma=1.0,
            gae_lambda=1.0,
            ent_coef=0.0,
            vf_coef=0.0,
            max_grad_norm=max_grad_norm,
            use_sde=False,
            sde_sample_freq=-1,
            rollout_buffer_class=EpisodeBuffer,  # type: ignore[arg-type]
            rollout_buffer_kwargs={"kept_rounds": kept_rounds},
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
            supported_action_spaces=(spaces.MultiBinary,),
        )
        self.first_episodes, self.round_episodes = first_episodes, round_episodes
        self.n_epochs, self.batch_size = n_epochs, batch_size
        self.sharpness, self.threshold = sharpness, threshold
        self.thresholds, self.explore = (thresholds[0], thresholds[1]), explore
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        super()._setup_model()
        self.rollout_buffer.harm = HarmScale(self.sharpness, self.threshold)

    @property
    def harm(self) -> HarmScale:
        """How the policy's logits read as harm now."""
        return self.rollout_buffer.harm

    @harm.setter
    def harm(self, scale: HarmScale) -> None:
        self.rollout_buffer.harm = scale  # beside the episodes, for a state has both

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if reset_num_timesteps or self._last_obs is None:  # all rows are about to restart
            self.rollout_buffer.restart()
            for row in range(self.n_envs):
                self._draw_behaviour(row)
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def _draw_behaviour(self, row: int) -> None:
        explore = self.explore if self._n_updates else 1.0
        self.rollout_buffer.behaviour.draw(row, self.thresholds, explore)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: Any, n_rollout_steps: int
    ) -> bool:
        """Steps all rows until the episodes of a round have finished, or the training's steps are used up.

        Returns:
            Whether training goes on: no callback stopped it.
        """
        assert self._last_obs is not None
        self.policy.set_training_mode(False)
        callback.on_rollout_start()
        wanted = self.round_episodes if self._n_updates else self.first_episodes
        needed = (*self.policy.network.config.requires, "action_mask")  # type: ignore[union-attr,misc]
        while len(rollout_buffer.finished) < wanted and self.num_timesteps < self._total_timesteps:
            observation: Any = self._last_obs
            with torch.no_grad():
                bits = self._act(observation)
            standing = observation["action_mask"] * (observation["mask"] == 0)  # what could be taken back
            self._last_obs, rewards, dones, infos = env.step(bits | standing)  # type: ignore[assignment]
            rollout_buffer.history.add({**{key: observation[key] for key in needed}, "_bits": bits})
            for row in np.flatnonzero(dones).tolist():
                rollout_buffer.finish(row, float(rewards[row]), float(infos[row]["score"]))
                self._draw_behaviour(row)
            self.num_timesteps += env.num_envs
            self._last_episode_starts = dones
            self._update_info_buffer(infos, dones)
            callback.update_locals(locals())
            if not callback.on_step():
                return False
        self._set_threshold(rollout_buffer)
        rollout_buffer.end_round()
        callback.on_rollout_end()
        return True

    def _act(self, observation: dict[str, NDArray[Any]]) -> NDArray[np.int8]:
        """What each row reveals by its behaviour, ``(N, L)``; where that is nothing, what does least harm."""
        tensors: Any = obs_as_tensor(observation, self.device)
        behaviour = self.rollout_buffer.behaviour
        sure, unsure, chance, threshold = (
            torch.as_tensor(column, device=self.device)[:, None] for column in astuple(behaviour)
        )
        confidence = tensors["confidence"]
        action_mask = tensors["action_mask"] * (tensors["mask"] != 0)
        # the logits of a policy whose threshold is the row's
        bolder = self.harm.sharpness * (threshold - logit(self.harm.threshold))  # (N, 1)
        logits = self.policy.network.candidate_logits(tensors, bolder)  # type: ignore[union-attr,operator]
        uniform = torch.rand(2, *confidence.shape, device=self.device)
        by_model = uniform[0] < torch.sigmoid(logits)
        picked = (confidence >= sure) | (confidence <= unsure) | (uniform[1] < chance) | by_model
        bits = (picked & (action_mask != 0)).to(torch.int8)
        best = torch.where(threshold > _NEVER, logits, confidence)
        return with_argmax_fallback(bits, best, action_mask).cpu().numpy()

    def _set_threshold(self, buffer: EpisodeBuffer) -> None:
        """Moves the policy to the threshold at which the model alone earned most in this round."""
        thresholds = np.array(buffer.thresholds)
        rewards = np.array([episode.reward for episode in buffer.finished])
        alone = ~np.isnan(thresholds)
        if alone.sum() < 100:
            return
        best, earned = best_threshold(thresholds[alone], rewards[alone])
        with torch.no_grad():
            bias: Tensor = self.policy.network.output_proj.bias  # type: ignore[union-attr,assignment]
            bias += self.harm.sharpness * (best - logit(self.harm.threshold))
        self.harm = HarmScale(self.harm.sharpness, 1 / (1 + math.exp(-best)))
        self.logger.record("train/threshold", self.harm.threshold)
        if buffer.champion is None or earned > buffer.champion.reward:
            parameters = self.policy.network.state_dict()  # type: ignore[union-attr]
            weights = {name: tensor.cpu().numpy().copy() for name, tensor in parameters.items()}
            buffer.champion = Champion(earned, self.harm, weights)

    def fit(self, episodes: Episodes) -> None:
        """Fits the network to recorded episodes, by whomever; the environment is not stepped.

        One fit of ``n_epochs`` passes. The threshold stays: where the model would earn most with it can be
        seen only in episodes of its own.

        Args:
            episodes: From ``read_dataset``.
        """
        needed = (*self.policy.network.config.requires, "action_mask")  # type: ignore[union-attr,misc]
        steps = {**{key: episodes.observations[key] for key in needed}, "_bits": episodes.revealed}
        scores = episodes.scores.astype(np.float32)
        self.rollout_buffer.rounds = [{**steps, "_length": episodes.lengths, "_score": scores}]
        self.train()
        self.rollout_buffer.rounds = []  # or every state would have the dataset in it

    def train(self) -> None:
        """Fits the network to the episodes of the last rounds; after the last one the best network returns.

        A fit moves all harms, and the threshold was chosen before it: what a network is worth is known only
        of one that has played a round by itself.
        """
        champion = self.rollout_buffer.champion
        if champion is not None and self.num_timesteps >= self._total_timesteps:
            weights = {name: self._tensor(array) for name, array in champion.weights.items()}
            self.policy.network.load_state_dict(weights)  # type: ignore[union-attr]
            self.harm = champion.harm
            return
        self.policy.set_training_mode(True)
        samples = self.rollout_buffer.samples()
        lengths, scores = samples.pop("_length"), samples.pop("_score")
        ends = np.cumsum(lengths)
        count = len(lengths)
        if not count:
            return
        batches = math.ceil(count / self.batch_size)
        peak = self.lr_schedule(self._current_progress_remaining)
        losses: list[float] = []
        for epoch in range(self.n_epochs):
            order = torch.randperm(count).numpy()
            for at in range(batches):
                done = (epoch * batches + at + 0.5) / (self.n_epochs * batches)
                for group in self.policy.optimizer.param_groups:
                    group["lr"] = peak * one_cycle(done)
                chosen = order[at * self.batch_size : (at + 1) * self.batch_size]
                steps = np.concatenate([np.arange(ends[e] - lengths[e], ends[e]) for e in chosen])
                whose = np.repeat(np.arange(len(chosen)), lengths[chosen])
                batch = {key: self._tensor(array[steps]) for key, array in samples.items()}
                losses.append(self._update(batch, whose, scores[chosen]))
        self._n_updates += 1
        self.logger.record("train/loss", float(np.mean(losses[-batches:])))
        self.logger.record("train/episodes", count)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _update(
        self, batch: dict[str, Tensor], whose: NDArray[np.int64], scores: NDArray[np.float32]
    ) -> float:
        """One step of the optimiser on the steps of episodes; ``whose`` ``(S,)`` says of which each is."""
        bits = batch.pop("_bits")
        at = bits.flatten().nonzero().squeeze(1)  # (M,), reveals
        logits = self.policy.network.logits_of(batch, bits)  # type: ignore[union-attr,operator]
        risks = risk(harm_logits(logits, self.harm))  # (M,)
        episode = self._tensor(whose)[at // bits.shape[1]]  # (M,)
        of_episode = risks.new_zeros(len(scores)).index_add(0, episode, risks)
        loss = success_loss(of_episode, self._tensor(scores)).mean()
        self.policy.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.policy.optimizer.step()
        return float(loss.detach())

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.as_tensor(array, device=self.device)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "rollout_buffer"]


def one_cycle(done: float) -> float:
    """The learning rate as a share of its peak: up in the first 0.3, then down to 0 (arXiv 1803.09820)."""
    return done / 0.3 if done < 0.3 else (1 + math.cos(math.pi * (done - 0.3) / 0.7)) / 2


def best_threshold(
    thresholds: NDArray[np.float64], rewards: NDArray[np.float64], width: float = 0.4
) -> tuple[float, float]:
    """Where rewards ``(E,)`` as a smooth function of thresholds ``(E,)``, as logits, are highest; how high.

    The function is the mean under a Gaussian of that width about every candidate, of which there are 25.
    """
    grid = np.linspace(np.quantile(thresholds, 0.02), np.quantile(thresholds, 0.98), 25)
    weights = np.exp(-np.square((grid[:, None] - thresholds) / width) / 2)  # (25, E)
    smooth = weights @ rewards / weights.sum(axis=1)  # (25,)
    best = int(np.argmax(smooth))
    return float(grid[best]), float(smooth[best])
