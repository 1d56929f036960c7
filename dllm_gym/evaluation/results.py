"""What an evaluation of one agent found, in memory, as JSON and in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dllm_gym.envs.blocks import BLOCK_LENGTH
from dllm_gym.evaluation.recording import Recording
from dllm_gym.evaluation.statistics import Interval, mean_interval, wilson_interval
from dllm_gym.fields import OBJECT, SHARE, TEXT, Field, check, check_fields, list_of, number, whole
from dllm_gym.files import is_finite, json_values, read_json, write_json

_FORMAT_VERSION = 1
_FIELDS = {
    "agent": TEXT,
    "parameters": OBJECT,
    "label": TEXT,
    "environment": OBJECT,
    "episodes": whole(1),
    "seed": whole(),
    "columns": OBJECT,
}
_ENVIRONMENT = {"task": TEXT, "backend": TEXT, "completion_length": whole(1), "block_length": BLOCK_LENGTH}
_INFO = ("completion", "is_success", "empty_actions", "ignored_actions")  # of an episode, besides its columns


@dataclass(frozen=True)
class EpisodeRecords:
    """Per-episode results, in the order of the problems.

    Attributes:
        problem: ``(N,)`` int64 problem index.
        score: ``(N,)`` float64 in [0, 1].
        success: ``(N,)`` float64, 1.0 where the score is 1.
        nfe: ``(N,)`` float64 steps.
        reward: ``(N,)`` float64.
        metrics: The task's own metrics, each ``(N,)`` float64; where tokens could be taken back also
            ``remasks``, and ``commit_drift`` where it was asked for.
        completion: N texts.
    """

    problem: NDArray[np.int64]
    score: NDArray[np.float64]
    success: NDArray[np.float64]
    nfe: NDArray[np.float64]
    reward: NDArray[np.float64]
    metrics: Mapping[str, NDArray[np.float64]]
    completion: Sequence[str]


@dataclass(frozen=True)
class EvaluationResult:
    """An agent's results on a fixed list of problems.

    Attributes:
        agent: The agent's name.
        parameters: The agent's parameters.
        label: Name and parameters, for tables.
        environment: Everything the environment was made with, defaults resolved.
        episodes: Number of problems.
        seed: Of the agent's draws and the token noise.
        records: Per-episode results; not part of the JSON.
        recording: How the episodes were decoded, if that was recorded; not part of the JSON.
    """

    agent: str
    parameters: Mapping[str, Any]
    label: str
    environment: Mapping[str, Any]
    episodes: int
    seed: int
    records: EpisodeRecords = field(repr=False)
    recording: Recording | None = field(default=None, repr=False)

    @property
    def accuracy(self) -> float:
        """Share of problems solved (score 1)."""
        return float(self.records.success.mean())

    @property
    def accuracy_ci95(self) -> Interval:
        """Its 95 % Wilson interval."""
        return wilson_interval(float(self.records.success.sum()), self.episodes)

    @property
    def nfe_mean(self) -> float:
        """Mean number of steps, each one forward of the dLLM for that row."""
        return float(self.records.nfe.mean())

    @property
    def nfe_ci95(self) -> Interval:
        """Its 95 % normal interval."""
        return mean_interval(self.records.nfe)

    @property
    def reward_mean(self) -> float:
        """Mean reward."""
        return float(self.records.reward.mean())

    def save(self, path: str | Path) -> Path:
        """Writes everything but the recording as JSON, per-episode results included, atomically."""
        records = self.records
        columns = {name: getattr(records, name) for name in _COLUMNS} | dict(records.metrics)
        content = {
            "format_version": _FORMAT_VERSION,
            "agent": self.agent,
            "parameters": dict(self.parameters),
            "label": self.label,
            "environment": dict(self.environment),
            "episodes": self.episodes,
            "seed": self.seed,
            "columns": {name: values.tolist() for name, values in columns.items()},
            "completion": list(records.completion),
        }
        return write_json(path, content)

    @classmethod
    def load(cls, path: str | Path) -> EvaluationResult:
        """Reads what ``save`` wrote. Nothing in the file is executed.

        Raises:
            OSError: If the file cannot be read.
            ValueError: If it holds no result, or one of another version.
        """
        content = read_json(path)
        version = content.get("format_version", 1) if isinstance(content, dict) else None
        if version != _FORMAT_VERSION:
            raise ValueError(f"{path} holds no evaluation of format version {_FORMAT_VERSION}")
        fields = check_fields(content, _FIELDS, str(path))
        check_fields(fields["environment"], _ENVIRONMENT, f"{path}, environment")
        columns = fields.pop("columns")
        lists = {name: list_of(kind) for name, kind in _COLUMNS.items()}
        own = check_fields(columns, lists, f"{path}, columns")
        metrics = {name: values for name, values in columns.items() if name not in _COLUMNS}
        check_metric_names(metrics, fields["environment"], str(path))
        for name, values in metrics.items():
            check(values, list_of(number()), f"{path}, columns: {name}")
        completion = content.get("completion", [])
        check(completion, list_of(TEXT), f"{path}: completion")
        sizes = {name: len(values) for name, values in columns.items()}
        if completion:
            sizes["completion"] = len(completion)
        wrong = {name: size for name, size in sizes.items() if size != fields["episodes"]}
        if wrong:
            raise ValueError(f"{path}: {fields['episodes']} episodes, but columns of {wrong}")
        if [score == 1 for score in own["score"]] != [bool(success) for success in own["success"]]:
            raise ValueError(f"{path}, columns: success must be 1 where the score is 1, and 0 elsewhere")
        problem = np.array(own.pop("problem"), dtype=np.int64)
        records = EpisodeRecords(
            problem,
            **{name: np.array(values, dtype=np.float64) for name, values in own.items()},
            metrics={name: np.array(values, dtype=np.float64) for name, values in metrics.items()},
            completion=completion,
        )
        return cls(**fields, records=records)

    def to_json(self) -> dict[str, Any]:
        """The result as a flat JSON object."""
        summary: dict[str, Any] = json_values(
            {
                "agent": self.agent,
                "parameters": dict(self.parameters),
                "label": self.label,
                **self.environment,
                "episodes": self.episodes,
                "seed": self.seed,
                **{name: measure(self) for name, measure in _MEASURES.items()},
                **{name: values.mean() for name, values in self.records.metrics.items()},
            }
        )
        return summary


# What an episode's numbers must be, see ``EpisodeRecords``; whole ones may be written as 3.0.
_COLUMNS = {
    "problem": whole(),
    "score": SHARE,
    "success": Field("0 or 1", lambda value: is_finite(value) and value in (0, 1)),
    "nfe": Field("a whole number of at least 1", lambda n: number(1).fits(n) and n == int(n)),
    "reward": number(),
}
_MEASURES: dict[str, Callable[[EvaluationResult], Any]] = {
    "accuracy": lambda result: result.accuracy,
    "accuracy_ci95": lambda result: result.accuracy_ci95,
    "nfe_mean": lambda result: result.nfe_mean,
    "nfe_ci95": lambda result: result.nfe_ci95,
    "reward_mean": lambda result: result.reward_mean,
    "reward_ci95": lambda result: mean_interval(result.records.reward),
}
_IN_COMPARISON = (
    *("learned", "envelope_accuracy", "envelope_gap", "envelope_gap_ci95", "lead_of", "lead_accuracy"),
    *("lead_accuracy_ci95", "lead_nfe", "lead_nfe_ci95", "lead_reward", "lead_reward_ci95"),
)


def check_metric_names(names: Iterable[str], environment: Mapping[str, Any], place: str) -> None:
    """A task's metrics stand beside other values, in infos, tables and JSON: they must not take their names.

    Args:
        names: Of the metrics.
        environment: What the episodes are decoded in, by name.
        place: Where they were found, for the message.

    Raises:
        ValueError: If one does.
    """
    taken = sorted({*names} & {*_FIELDS, *environment, *_COLUMNS, *_INFO, *_MEASURES, *_IN_COMPARISON})
    if taken:
        raise ValueError(f"{place}: no metric may be named {', '.join(taken)}, every result has that already")
