"""What a study compares: algorithm x task x seed, and what is done in every cell of that grid."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from dllm_agents.config import (
    ALGORITHMS,
    CONFIG_FOLDERS,
    Dumper,
    TrainConfig,
    check_not_negative,
    check_whole,
    find_config,
    find_shipped,
    load_config,
    plain,
    read_yaml,
)
from dllm_gym.files import write_text
from dllm_gym.suite import SUITE

STUDY = "study.yaml"  # in the study's directory: the grid with everything resolved
_NAME = re.compile(r"\w[\w.+-]*")  # of folders, and of cells in Markdown tables
_COMMON = "common"


@dataclass(frozen=True)
class Cell:
    """One training of a study."""

    algorithm: str
    task: str
    seed: int
    config: TrainConfig

    @property
    def name(self) -> str:
        """Also where it lies below the study's directory."""
        return f"{self.algorithm}/{self.task}/{self.seed}"


@dataclass(frozen=True)
class Study:
    """The grid of a study.

    Attributes:
        algorithms: Configurations by the names they have in tables.
        tasks: Arguments of ``UnmaskEnv`` by the names they have in tables; they replace those of the
            algorithms' ``env``.
        seeds: Of the trainings; each cell's is that of its test's draws, too.
        episodes: Test problems every last policy is evaluated on.
        decodings: How: options of a policy as in ``policy:NAME:OPTIONS``. The first one is what algorithms
            are compared by.
        threads: Threads of every cell's process.
        gpus: What a cell takes of the GPUs that Ray counts; without Ray it must be 0.

    Raises:
        ValueError: For values out of range, naming the place.
    """

    algorithms: Mapping[str, TrainConfig]
    tasks: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    episodes: int = 1000
    decodings: tuple[str, ...] = ("sample", "deterministic")
    threads: int = 1
    gpus: float = 0

    def __post_init__(self) -> None:
        for kind, names in (("algorithms", self.algorithms), ("tasks", self.tasks)):
            if not names:
                raise ValueError(f"a study needs at least one of {kind}, got none")
            for name in names:
                if not isinstance(name, str) or not _NAME.fullmatch(name):
                    raise ValueError(f"{kind} are named by letters, digits and _.+-, got {name!r}")
        for kind, values in (("seeds", self.seeds), ("decodings", self.decodings)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{kind} must be different from each other, at least one, got {values!r}")
        check_whole("episodes", self.episodes, 1)
        check_whole("threads", self.threads, 1)
        check_not_negative("gpus", self.gpus)
        assert self.cells  # made now: every configuration is checked

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """All trainings, seed by seed, so that what is finished first is a smaller study."""
        return tuple(
            Cell(algorithm, task, seed, _told(f"{algorithm}/{task}", config, {"env": env}, {"seed": seed}))
            for seed in self.seeds
            for task, env in self.tasks.items()
            for algorithm, config in self.algorithms.items()
        )

    def save(self, directory: Path) -> None:
        """Writes ``study.yaml``, a study file that names no other."""
        content = {
            "algorithms": {
                name: {field: value for field, value in plain(config).items() if field != "seed"}
                for name, config in self.algorithms.items()
            },
            "tasks": {name: dict(env) for name, env in self.tasks.items()},
            "seeds": list(self.seeds),
            "episodes": self.episodes,
            "decodings": list(self.decodings),
            "threads": self.threads,
            "gpus": self.gpus,
        }
        write_text(directory / STUDY, yaml.dump(content, Dumper=Dumper, sort_keys=False))


def load_study(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Study:
    """Reads a study file.

    Args:
        path: The file, or the name of one that comes with the package.
        overrides: See ``make_study``.

    Raises:
        FileNotFoundError: If there is no such file, or none that it names.
        ValueError: For malformed YAML, unknown names and values out of range.
    """
    found = find_shipped(path, "study", [folder / "studies" for folder in CONFIG_FOLDERS])
    try:
        return make_study(read_yaml(found), found.parent, overrides)
    except ValueError as error:
        raise ValueError(f"{found}: {error}") from error


def make_study(
    content: Mapping[str, Any], folder: str | Path = ".", overrides: Mapping[str, Any] | None = None
) -> Study:
    """A study from the content of a study file.

    Args:
        content: The fields of ``Study`` by name, and ``common``: fields of every configuration, as far as the
            algorithms do not say otherwise. ``algorithms`` and ``tasks`` may be lists of names; the name of a
            task may be the id of a member of the suite. An algorithm is the name or path of a configuration,
            or fields of one; among those, ``config`` names the configuration they change. ``seeds`` may be
            their number.
        folder: Where configurations that are named by their paths are looked for first.
        overrides: Fields of every configuration, whatever the algorithms say.

    Raises:
        FileNotFoundError: If there is no such configuration.
        ValueError: For unknown names and values out of range.
    """
    known = [_COMMON, *(field.name for field in fields(Study))]
    unknown = [name for name in content if name not in known]
    if unknown:
        raise ValueError(f"unknown fields of a study {unknown}; known: {', '.join(known)}")
    given = dict(content)
    common = _mapping(_COMMON, given.pop(_COMMON, {}))
    algorithms = _by_name("algorithms", given.pop("algorithms", {}), lambda name: name)
    given["algorithms"] = {
        name: _configuration(name, value, Path(folder), common, overrides or {})
        for name, value in algorithms.items()
    }
    tasks = _by_name("tasks", given.pop("tasks", {}), _place)
    given["tasks"] = {name: _mapping(f"task {name}", value) for name, value in tasks.items()}
    seeds = given.get("seeds", Study.seeds)
    if isinstance(seeds, int):
        check_whole("seeds", seeds, 1)
        seeds = range(seeds)
    given["seeds"] = _several("seeds", seeds)
    given["decodings"] = _several("decodings", given.get("decodings", Study.decodings))
    return Study(**given)


def _place(name: str) -> dict[str, Any]:
    """Arguments of the environment: a member of the suite by its id, or a registered task."""
    members = {member.id: member.env for member in SUITE}
    return members.get(name, {"task": name})


def _configuration(
    name: str, value: Any, folder: Path, common: Mapping[str, Any], overrides: Mapping[str, Any]
) -> TrainConfig:
    changes = {"config": value} if isinstance(value, str | Path) else _mapping(f"algorithm {name}", value)
    source = changes.pop("config", None)
    for place, change in ((name, changes), (_COMMON, common)):
        if "seed" in change:
            raise ValueError(f"{place} must not have a seed: a study has seeds")
    base = TrainConfig()
    if source is not None:
        source = f"{source}-full" if source in ALGORITHMS else source
        beside = folder / source
        base = load_config(beside if beside.is_file() else find_config(source))
    return _told(f"algorithm {name}", base, common, changes, overrides)


def _told(place: str, config: TrainConfig, *changes: Mapping[str, Any]) -> TrainConfig:
    try:
        return config.merged(*changes)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _by_name(kind: str, value: Any, meaning: Any) -> dict[str, Any]:
    """A list of names as a mapping; a configuration that is named by its path is called like the file."""
    if not isinstance(value, list | tuple):
        return _mapping(kind, value)
    if not all(isinstance(name, str | Path) for name in value):
        raise ValueError(f"{kind} must be names, or names and what they stand for, got {value!r}")
    names = {Path(name).stem: meaning(name) for name in value}
    if len(names) < len(value):
        raise ValueError(f"{kind} must be different from each other, got {', '.join(map(str, value))}")
    return names


def _mapping(place: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{place} must hold names and values, got {value!r}")
    return dict(value)


def _several(kind: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"{kind} must be a list, got {value!r}")
    if not all(isinstance(one, str if kind == "decodings" else int) for one in value):
        raise ValueError(
            f"{kind} must be {'texts' if kind == 'decodings' else 'whole numbers'}, got {value!r}"
        )
    return tuple(value)
