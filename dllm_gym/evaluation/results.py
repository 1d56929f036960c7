"""What an evaluation of one agent found, in memory, as JSON and in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dllm_gym.evaluation.recording import Recording
from dllm_gym.evaluation.statistics import Interval, mean_interval, wilson_interval
from dllm_gym.files import read_json, write_json

_FORMAT_VERSION = 1
_OWN_COLUMNS = ("problem", "score", "success", "nfe", "reward")
_KINDS = {
    "agent": str,
    "parameters": dict,
    "label": str,
    "environment": dict,
    "episodes": int,
    "seed": int,
    "columns": dict,
}


@dataclass(frozen=True)
class EpisodeRecords:
    """Per-episode results, in the order of the problems.

    Attributes:
        problem: ``(N,)`` int64 problem index.
        score: ``(N,)`` float64 in [0, 1].
        success: ``(N,)`` float64, 1.0 where the score is 1.
        nfe: ``(N,)`` float64 steps.
        reward: ``(N,)`` float64.
        metrics: The task's own metrics, each ``(N,)`` float64.
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
        columns = {name: getattr(records, name) for name in _OWN_COLUMNS} | dict(records.metrics)
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
        try:
            fields = {name: _of_kind(kind, name, content) for name, kind in _KINDS.items()}
            columns = {name: _column(name, values) for name, values in fields.pop("columns").items()}
            own = {name: columns.pop(name) for name in _OWN_COLUMNS}
            completion = content.get("completion", [])
            sizes = {name: len(values) for name, values in {**own, **columns}.items()}
            if completion:
                sizes["completion"] = len(completion)
            wrong = {name: size for name, size in sizes.items() if size != fields["episodes"] or not size}
            if wrong:
                raise ValueError(f"{fields['episodes']} episodes, but columns of {wrong}")
            if not isinstance(completion, list) or not all(isinstance(text, str) for text in completion):
                raise ValueError("completion must be a list of texts")
            problem = own.pop("problem").astype(np.int64)
            records = EpisodeRecords(problem, **own, metrics=columns, completion=completion)
            return cls(**fields, records=records)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path} holds no evaluation: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """The result as a flat JSON object."""
        return {
            "agent": self.agent,
            "parameters": dict(self.parameters),
            "label": self.label,
            **self.environment,
            "episodes": self.episodes,
            "seed": self.seed,
            "accuracy": self.accuracy,
            "accuracy_ci95": list(self.accuracy_ci95),
            "nfe_mean": self.nfe_mean,
            "nfe_ci95": list(self.nfe_ci95),
            "reward_mean": self.reward_mean,
            "reward_ci95": list(mean_interval(self.records.reward)),
            **{name: float(values.mean()) for name, values in self.records.metrics.items()},
        }


def _of_kind(kind: type, name: str, content: Mapping[str, Any]) -> Any:
    value = content[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{name} must be {kind.__name__}, got {value!r:.80}")
    return value


def _column(name: str, values: Any) -> NDArray[np.float64]:
    if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
        raise ValueError(f"column {name!r} must be a list of numbers")
    column = np.array(values, dtype=np.float64)
    if not np.isfinite(column).all():
        raise ValueError(f"column {name!r} holds NaN or infinite values")
    return column
