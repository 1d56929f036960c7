"""What every training run keeps in its directory, whichever library trains."""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import yaml
from torch.nn import functional as F

from dllm_agents.checkpoint import load_policy, save_policy
from dllm_agents.config import Dumper, TrainConfig, load_config, plain
from dllm_agents.harm import HarmScale
from dllm_agents.networks import POSITION_FEATURES, SILENT_FEATURES, UnmaskTransformer
from dllm_agents.run_folder import CONFIG, METRICS, REPORTED, check_folder
from dllm_gym.evaluation import EvaluationResult
from dllm_gym.files import write_json, write_text

_ANY_NUMBER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Run:
    """One training run: its configuration, the policies ``last/`` and ``best/`` and how they evaluated.

    Args:
        config: The configuration.
        directory: Of the run.
        resume: Whether a run in the directory is to go on.
        progress: Whether evaluations are printed.
        command: Noted in the saved policies.

    Attributes:
        STATE: The file from which a run goes on.
        history: One row per evaluation, the content of ``metrics.json``.
        best_reward: The highest of its rewards of sampled decoding.
        seconds: Time spent before this process took over.

    Raises:
        ValueError: If the configuration cannot be written, or another one is to be resumed.
        FileExistsError: If there is a run in the directory and ``resume`` is not set.
        FileNotFoundError: If there is nothing to resume.
    """

    STATE: ClassVar[str]

    def __init__(
        self, config: TrainConfig, directory: Path, resume: bool, progress: bool, command: str
    ) -> None:
        self.config, self.directory = config, directory
        self.progress, self.command = progress, command
        self.best_reward = float("-inf")
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0
        self._started = time.monotonic()
        check_folder(directory, self.STATE, resume, plain(config), lambda path: load_config(path).to_dict())

    def learn(self) -> None:
        """Trains to the end, or to the deadline."""
        raise NotImplementedError

    def _write_config(self) -> None:
        write_text(self.directory / CONFIG, yaml.dump(plain(self.config), Dumper=Dumper, sort_keys=False))

    def _write_metrics(self) -> None:
        write_json(self.directory / METRICS, {"command": self.command, "evaluations": self.history})

    def _elapsed(self) -> float:
        return self.seconds + time.monotonic() - self._started

    def _remember(
        self,
        results: Mapping[str, EvaluationResult],
        timesteps: int,
        network: UnmaskTransformer,
        decoding: str = "sample",
        harm: HarmScale | None = None,
    ) -> None:
        """Notes an evaluation, by decoding, and saves the last policy and the best one."""
        row: dict[str, Any] = {"timesteps": timesteps, "seconds": round(self._elapsed(), 1)}
        for name, result in results.items():
            row[name] = {
                "accuracy": result.accuracy, "nfe_mean": result.nfe_mean, "reward_mean": result.reward_mean,
                "episodes": result.episodes,
            }  # fmt: skip
        self.history.append(row)
        if self.progress:
            _print_evaluation(row)
        metadata = {"command": self.command, "config": self.config.to_dict(), "validation": row}
        reward = results["sample"].reward_mean
        for name in ("last", "best") if reward > self.best_reward else ("last",):
            save_policy(self.directory / name, network, metadata, decoding=decoding, harm=harm)
        self.best_reward = max(reward, self.best_reward)


def begin_with(network: UnmaskTransformer, source: str) -> None:
    """Gives a network the weights of a saved policy.

    Args:
        network: May read more than the policy does, as the last of its features: ``SILENT_FEATURES`` and
            what is a column per position, such as ``written``; they begin without effect. It may also have a
            critic where the policy has none or the other way round, take tokens back, and have positions
            give way to each other.
        source: A saved policy, or the name of a shipped one.

    Raises:
        ValueError: If the policy is of another shape.
    """
    saved = load_policy(source).network
    theirs = asdict(saved.config)
    silent = (*SILENT_FEATURES, *(POSITION_FEATURES if saved.config.columns else ()))
    added = tuple(
        name for name in network.config.features if name in silent and name not in saved.config.features
    )
    theirs["features"] = (*saved.config.features, *added)
    theirs["value_head"] = network.config.value_head  # an algorithm's own affair: PPO has one, GRPO none
    for name in ("keep_prior", "pair_width"):
        if theirs[name] is None:
            theirs[name] = getattr(network.config, name)
    differing = [
        f"{name} {theirs[name]!r} instead of {value!r}"
        for name, value in asdict(network.config).items()
        if name != "initial_bias" and theirs[name] != value
    ]
    if differing:
        raise ValueError(f"cannot go on from the policy {source}: it has {', '.join(differing)}")
    own = network.state_dict()
    tensors = {**own, **{name: tensor for name, tensor in saved.state_dict().items() if name in own}}
    for name in ("input_proj.weight", "pair_weights", "rivalry.read_weight"):  # one more column each
        if name in tensors:
            tensors[name] = F.pad(tensors[name], (0, own[name].shape[-1] - tensors[name].shape[-1]))
    network.load_state_dict(tensors)


def refuse_unknown(
    field: str, given: Mapping[str, Any], takers: Sequence[Callable[..., Any]], own: Sequence[str]
) -> None:
    """Checks the names in a field of the configuration.

    Args:
        field: Its name, for the message.
        given: What it holds.
        takers: The functions whose arguments it may name.
        own: Those of their arguments that it may not.

    Raises:
        ValueError: For a name that is no argument.
    """
    known = {
        name: None
        for taker in takers
        for name, parameter in inspect.signature(taker).parameters.items()
        if parameter.kind not in _ANY_NUMBER and name not in own
    }
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"unknown arguments {unknown} in {field}; known: {', '.join(known)}")


def _print_evaluation(row: Mapping[str, Any]) -> None:
    parts = [
        f"{decoding} {row[decoding]['accuracy']:.3f} @ {row[decoding]['nfe_mean']:.1f} steps"
        for decoding in REPORTED
    ]
    print(f"\n{row['timesteps']:>9,} steps, {row['seconds']:>4.0f} s: {', '.join(parts)}", file=sys.stderr)
