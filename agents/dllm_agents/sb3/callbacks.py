"""What a training run reports: TensorBoard scalars, evaluations on validation problems, saved policies."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from rich.text import Text
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure, HParam
from stable_baselines3.common.utils import obs_as_tensor

from dllm_agents.agent import LearnedPolicy
from dllm_agents.run_folder import REPORTED
from dllm_agents.sb3.policy import UnmaskPolicy
from dllm_gym.envs.rendering import render_ansi
from dllm_gym.evaluation import EvaluationResult, compare, evaluate, profile
from dllm_gym.evaluation.analysis_plots import heat_map_figure
from dllm_gym.evaluation.plots import pareto_figure
from dllm_gym.looking import Film, film

_NO_STDOUT = ("stdout", "log", "json", "csv")
_FILMED = 2  # sample episodes
_SHOWN_STEPS = 8  # of each


class RolloutMetrics(BaseCallback):
    """Logs what a rollout says about decoding: accuracy, NFE, tokens per step, empty actions, entropy."""

    def __init__(self) -> None:
        super().__init__()
        self._episodes: list[Mapping[str, Any]] = []

    def _on_step(self) -> bool:
        infos, dones = self.locals["infos"], self.locals["dones"]
        if "expert_rows" in self.locals:  # what experts do says nothing about the policy
            dones = dones & ~self.locals["expert_rows"]
        self._episodes += [infos[row] for row in np.flatnonzero(dones)]
        return True

    def _on_rollout_end(self) -> None:
        if self._episodes:
            nfe = np.array([episode["nfe"] for episode in self._episodes], dtype=float)
            empty = sum(episode["empty_actions"] for episode in self._episodes)
            success = np.mean([episode["is_success"] for episode in self._episodes])
            length = self.training_env.action_space.shape[0]  # type: ignore[index]
            self.logger.record("unmask/accuracy", float(success))
            self.logger.record("unmask/nfe", float(nfe.mean()))
            self.logger.record("unmask/tokens_per_step", float(length * len(nfe) / nfe.sum()))
            self.logger.record("unmask/empty_action_rate", float(empty / nfe.sum()))
            if "remasks" in self._episodes[0]:
                remasks = np.mean([episode["remasks"] for episode in self._episodes])
                self.logger.record("unmask/remasks", float(remasks))
            self._episodes.clear()
        observation: Any = self.model._last_obs
        tickets = getattr(self.training_env, "tickets", None)
        if tickets is not None:
            observation = {key: value[~tickets.is_expert()] for key, value in observation.items()}
        candidates = observation["action_mask"].sum()
        with torch.no_grad():
            tensors: Any = obs_as_tensor(observation, self.model.device)
            entropy = cast(UnmaskPolicy, self.model.policy).get_distribution(tensors).entropy()
        self.logger.record("unmask/entropy_per_masked_token", float(entropy.sum() / max(candidates, 1)))


class Evaluation(BaseCallback):
    """Evaluates the policy on validation problems, sampled and deterministic, and reports what it finds.

    Args:
        env_kwargs: Arguments of ``UnmaskEnv``; the split is always ``validation``.
        every: Environment steps between evaluations, which come when a rollout begins.
        episodes: Problems per evaluation.
        on_evaluation: Called with (decoding -> result) after every evaluation.
        history: The evaluations so far, as in ``metrics.json``; read whenever a picture is drawn.
        settings: What TensorBoard's page on hyper-parameters shall tell runs apart by.
    """

    def __init__(
        self,
        env_kwargs: Mapping[str, Any],
        every: int,
        episodes: int,
        on_evaluation: Callable[[Mapping[str, EvaluationResult]], None],
        history: Sequence[Mapping[str, Any]] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._env_kwargs = {key: value for key, value in env_kwargs.items() if key != "split"}
        self._every, self._episodes = every, episodes
        self._on_evaluation, self._history, self._settings = on_evaluation, history, settings
        self._next = 0
        self._rules: list[EvaluationResult] = []

    def _on_training_start(self) -> None:
        self._next = self._next or (self.num_timesteps // self._every + 1) * self._every
        if self._settings:
            metrics = {f"eval/{name}_{of}": 0.0 for of in REPORTED for name in ("reward", "accuracy", "nfe")}
            plain = {name: _plain(value) for name, value in self._settings.items()}
            self.logger.record("hparams", HParam(plain, metrics), exclude=_NO_STDOUT)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        # here the update that follows a rollout is done; after the last one, whoever trains evaluates
        if self.num_timesteps >= self._next:
            self._next += self._every * math.ceil((self.num_timesteps - self._next + 1) / self._every)
            self.evaluate()

    def evaluate(self) -> Mapping[str, EvaluationResult]:
        """Evaluates now."""
        network = cast(UnmaskPolicy, self.model.policy).network
        network.eval()
        own = cast(UnmaskPolicy, self.model.policy).decoding
        results = {
            name: evaluate(
                LearnedPolicy(network, decoding=decoding),
                self._episodes,
                "validation",
                record=name == "sample",
                **self._env_kwargs,
            )
            for name, decoding in zip(REPORTED, (own, "deterministic"), strict=True)
        }
        earlier = list(self._history)
        self._on_evaluation(results)  # first: whatever goes wrong with the pictures, the policies are saved
        for decoding, result in results.items():
            self.logger.record(f"eval/accuracy_{decoding}", result.accuracy)
            self.logger.record(f"eval/nfe_{decoding}", result.nfe_mean)
            self.logger.record(f"eval/reward_{decoding}", result.reward_mean)
        if not self._rules:
            episodes = min(128, self._episodes)
            rules = compare([], episodes, "validation", strategies="short", **self._env_kwargs)
            self._rules = list(rules.results)
        for tag, figure in evaluation_figures(self._rules, results, earlier).items():
            self.logger.record(tag, Figure(figure, close=False), exclude=_NO_STDOUT)
        agent = LearnedPolicy(network, decoding=own)
        filmed = range(min(_FILMED, results["sample"].episodes))
        films = [film([agent], problem, "validation", **self._env_kwargs) for problem in filmed]
        text = "\n\n".join([_sample(results["sample"]), *map(_decoding, films)])
        self.logger.record("eval/sample", text, exclude=("stdout", "log"))
        self.logger.dump(self.num_timesteps)
        return results


class Saving(BaseCallback):
    """Calls a function between rollouts, when nothing is half done: after evaluations and every so often."""

    def __init__(self, save: Callable[[], None], seconds: float) -> None:
        super().__init__()
        self._save, self._seconds = save, seconds
        self._saved = time.monotonic()
        self.due = False

    def _on_rollout_start(self) -> None:
        if self.due or time.monotonic() - self._saved > self._seconds:
            self._save()
            self._saved, self.due = time.monotonic(), False

    def _on_step(self) -> bool:
        return True


class Deadline(BaseCallback):
    """Stops training after a time."""

    def __init__(self, minutes: float) -> None:
        super().__init__()
        self._seconds = 60 * minutes
        self._started = 0.0

    def _on_training_start(self) -> None:
        self._started = time.monotonic()

    def _on_step(self) -> bool:
        return time.monotonic() - self._started < self._seconds


class Progress(BaseCallback):
    """A tqdm bar over environment steps."""

    def __init__(self, total: int) -> None:
        super().__init__()
        self._total = total

    def _on_training_start(self) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=self._total, initial=self.num_timesteps, unit="step", dynamic_ncols=True)

    def _on_step(self) -> bool:
        self._bar.update(self.num_timesteps - self._bar.n)
        return True

    def _on_training_end(self) -> None:
        self._bar.close()


def evaluation_figures(
    rules: Sequence[EvaluationResult],
    results: Mapping[str, EvaluationResult],
    history: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What TensorBoard shows of an evaluation, by tag: accuracy against steps, and what is revealed when."""
    tracks = [
        [(row[decoding]["nfe_mean"], row[decoding]["accuracy"]) for row in history] for decoding in results
    ]
    recording = results["sample"].recording
    assert recording is not None
    learned = [False] * len(rules) + [True] * len(results)
    return {
        "eval/pareto": pareto_figure([*rules, *results.values()], learned, tracks),
        "eval/reveal_order": heat_map_figure([profile(recording)]),
    }


def _plain(value: Any) -> bool | int | float | str:
    """What TensorBoard takes as the value of a hyper-parameter."""
    return value if isinstance(value, bool | int | float | str) else json.dumps(value, default=str)


def _decoding(made: Film) -> str:
    """A film as text: a few of its frames, from the first to the last."""
    shown = np.unique(np.linspace(0, len(made.frames) - 1, _SHOWN_STEPS).round().astype(int))
    boards = [Text.from_ansi(render_ansi(made.frames[at][0])).plain for at in shown]
    return "```\n" + "\n\n".join(boards) + "\n```"


def _sample(result: EvaluationResult) -> str:
    records = result.records
    lines = [
        f"{'right' if right else 'wrong'} in {int(nfe)} steps: `{text}`"
        for right, nfe, text in zip(records.success[:4], records.nfe[:4], records.completion[:4], strict=True)
    ]
    return "  \n".join(lines)
