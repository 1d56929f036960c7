"""What the finished cells of a study say together: numbers for tables and plots, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dllm_agents.studies.grid import Cell, Study
from dllm_agents.studies.statistics import (
    Estimate,
    FloatArray,
    aup,
    estimate,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
)

ALL_TASKS = "all tasks"
AXES = ("timesteps", "seconds")  # of training
MEASURES = {  # of one decoding, and what they are called
    "reward_mean": "reward",
    "accuracy": "accuracy",
    "nfe_mean": "steps (NFE)",
    "tokens_per_forward": "tokens per forward",
}
COMPARED = {**MEASURES, "aup": "AUP"}
_THRESHOLDS = np.linspace(0, 1, 101)
_SHARES = (0.25, 0.5, 0.75, 1.0)  # of the longest training
_MOST_POINTS = 200  # of a curve

Records = Mapping[str, Mapping[str, Any]]  # of finished cells, by their names; see ``read_record``
_Way = tuple[FloatArray, FloatArray]  # of a training: (P,) places on an axis, (P,) validation rewards


def find(study: Study, records: Records) -> dict[str, Any]:
    """Everything that is told of a study, JSON-able. What lacks its cells is ``None``.

    Returns:
        ``cells``: every finished one with its tests and its AUP. ``tasks``: task -> algorithm -> decoding ->
        measure -> interquartile mean with interval. ``all``: the same over all tasks, algorithm -> measure,
        of the first decoding, and ``aup``. ``profiles``: algorithm -> share of runs above each of
        ``thresholds`` of the reward. ``improvement``: algorithm -> other -> how probable it is that the first
        earns more.
        ``timesteps`` and ``seconds``: the validation reward while training, as ``curves`` (task -> algorithm)
        and, over all tasks, as a ``grid`` (algorithm -> value at each of ``points``).
    """
    runs = _Runs(study, records)
    rewards = {name: runs.of(name, "reward_mean") for name in study.algorithms}

    def better(ours: str, theirs: str) -> dict[str, Any] | None:
        both = rewards[ours], rewards[theirs]
        return _plain(probability_of_improvement(*both)) if all(both) else None

    return {
        "cells": {
            name: {"tests": record["tests"], "aup": runs.aup[name]} for name, record in records.items()
        },
        "tasks": {
            task: {
                name: {
                    decoding: {m: _iqm(runs.of(name, m, decoding, [task])) for m in MEASURES}
                    for decoding in study.decodings
                }
                for name in study.algorithms
            }
            for task in study.tasks
        },
        "all": {name: {m: _iqm(runs.of(name, m)) for m in COMPARED} for name in study.algorithms},
        "thresholds": _THRESHOLDS.tolist(),
        "profiles": {
            name: _plain(performance_profile(scores, _THRESHOLDS)) if scores else None
            for name, scores in rewards.items()
        },
        "improvement": {
            ours: {theirs: better(ours, theirs) for theirs in study.algorithms if theirs != ours}
            for ours in study.algorithms
        },
        **{axis: runs.learning(axis) for axis in AXES},
    }


class _Runs:
    """The runs of a study, task by task."""

    def __init__(self, study: Study, records: Records) -> None:
        self.study = study
        self._cells: dict[tuple[str, str], list[tuple[Cell, Mapping[str, Any]]]] = {}
        for cell in study.cells:
            if cell.name in records:
                found = self._cells.setdefault((cell.algorithm, cell.task), [])
                found.append((cell, records[cell.name]))
        points = {
            name: [(test["tokens_per_forward"], test["accuracy"]) for test in record["tests"].values()]
            for name, record in records.items()
        }
        best = dict.fromkeys(study.tasks, 0.0)
        finished = [cell for cell in study.cells if cell.name in records]
        for cell in finished:
            best[cell.task] = max(best[cell.task], *(accuracy for _, accuracy in points[cell.name]))
        self.aup = {cell.name: aup(points[cell.name], best[cell.task]) for cell in finished}

    def of(
        self, algorithm: str, measure: str, decoding: str = "", tasks: Sequence[str] = ()
    ) -> list[FloatArray]:
        """``(N,)`` a measure of each task's runs, by default of all tasks and the first decoding.

        Empty if one of the tasks has no runs.
        """
        decoding = decoding or self.study.decodings[0]
        values = []
        for task in tasks or self.study.tasks:
            found = self._cells.get((algorithm, task), [])
            numbers = [
                self.aup[c.name] if measure == "aup" else r["tests"][decoding][measure] for c, r in found
            ]
            values.append(np.array(numbers, dtype=float))
        return values if all(len(runs) for runs in values) else []

    def learning(self, axis: str) -> dict[str, Any]:
        """The validation reward over an axis: curves, and the same points for all algorithms."""
        names, tasks = list(self.study.algorithms), list(self.study.tasks)
        places = {ALL_TASKS: tasks} if len(tasks) > 1 else {}
        places |= {task: [task] for task in tasks}
        curves = {
            place: {name: _curve(self._ways(axis, name, chosen)) for name in names}
            for place, chosen in places.items()
        }
        ways = {name: self._ways(axis, name, tasks) for name in names}
        points = []
        if all(ways.values()):
            end = max(_reach(of_one)[1] for of_one in ways.values())
            points = [part * end for part in _SHARES]
        grid = {name: [_at(of_one, point) for point in points] for name, of_one in ways.items()}
        return {"curves": curves, "points": points, "grid": grid}

    def _ways(self, axis: str, algorithm: str, tasks: Sequence[str]) -> list[list[_Way]]:
        """Of each task's runs; empty if one of the tasks has none."""
        ways = [
            [
                (
                    np.array([row[axis] for row in record["evaluations"]], dtype=float),
                    np.array([row["sample"]["reward_mean"] for row in record["evaluations"]]),
                )
                for _, record in self._cells.get((algorithm, task), [])
            ]
            for task in tasks
        ]
        return ways if all(ways) else []


def _reach(tasks: Sequence[Sequence[_Way]]) -> tuple[float, float]:
    """From where every run has been evaluated to where the last one ends."""
    every = [places for ways in tasks for places, _ in ways]
    return max(float(places[0]) for places in every), max(float(places[-1]) for places in every)


def _reward(tasks: Sequence[Sequence[_Way]], at: FloatArray) -> Estimate:
    """``(P,)`` interquartile mean at places: on the line between two evaluations, at the end the last one."""
    values = [np.stack([np.interp(at, places, y) for places, y in ways], axis=-1) for ways in tasks]
    return estimate(values, interquartile_mean)


def _curve(tasks: Sequence[Sequence[_Way]]) -> dict[str, Any] | None:
    if not tasks:
        return None
    first, _ = _reach(tasks)
    at = np.unique(np.concatenate([places for ways in tasks for places, _ in ways]))
    at = at[at >= first]
    at = at[np.unique(np.linspace(0, len(at) - 1, _MOST_POINTS).round().astype(int))]
    return {"at": at.tolist(), **_plain(_reward(tasks, at))}


def _at(tasks: Sequence[Sequence[_Way]], point: float) -> dict[str, Any] | None:
    """At one place; ``None`` before all runs have been evaluated."""
    if point < _reach(tasks)[0]:
        return None
    return {name: value and value[0] for name, value in _plain(_reward(tasks, np.array([point]))).items()}


def _iqm(tasks: Sequence[FloatArray]) -> dict[str, Any] | None:
    return _plain(estimate(tasks, interquartile_mean)) if tasks else None


def _plain(found: Estimate) -> dict[str, Any]:
    numbers = {"value": found.value, "low": found.low, "high": found.high}
    return {name: None if n is None else n.tolist() for name, n in numbers.items()}
