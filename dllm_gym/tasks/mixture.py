"""Several tasks as one, such as GSM8K and MATH to train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dllm_gym.tasks.base import ENDLESS, Problem, Task, check_index, check_split, problem_rng


class MixtureTask:
    """Problems of several tasks, each scored by its own.

    arXiv 2512.09106 trains on GSM8K and MATH one after the other in one shuffled list: two members without
    weights.

    Args:
        split: Passed on to the members.
        seed: Another seed is another sequence where problems are drawn; the members have their own.
        tasks: One mapping per member: ``task`` is its name, ``weight``, if given, its share, everything else
            its parameters, as in ``[{"task": "gsm8k", "data": "gsm8k/"}, {"task": "math500", ...}]``.
            Without weights the members' problems are concatenated, in that order; with weights they are
            drawn without end.

    Attributes:
        members: The tasks.

    Raises:
        ValueError: For no members, some weights missing or not positive, or an endless task without weights;
            and as the members do.
    """

    name = "mixture"

    def __init__(self, split: str = "train", seed: int = 0, tasks: Sequence[Mapping[str, Any]] = ()) -> None:
        from dllm_gym.tasks import load_task  # a member may be any task

        self.split = check_split(split)
        self.seed = seed
        if not tasks or not all(isinstance(member, Mapping) and "task" in member for member in tasks):
            raise ValueError(
                f'tasks must be a list such as [{{"task": "gsm8k"}}, {{"task": "math500"}}], got {tasks!r}'
            )
        self.members: list[Task] = [
            load_task(
                member["task"], split, **{key: member[key] for key in member if key not in ("task", "weight")}
            )
            for member in tasks
        ]
        self._shares = _shares([member.get("weight") for member in tasks])
        sizes = [member.num_problems for member in self.members]
        if self._shares is None and None in sizes:
            endless = self.members[sizes.index(None)].name
            raise ValueError(f"task {endless!r} has no end of problems; give every member a weight")
        self._ends = np.cumsum([size or 0 for size in sizes])
        self.num_problems: int | None = None if self._shares is not None else int(self._ends[-1])
        self.completion_length = max(member.completion_length for member in self.members)
        self.shortest_completion = max(getattr(member, "shortest_completion", 1) for member in self.members)
        self._metric_names = sorted(
            set.intersection(*(set(member.metrics("", member.problem(0))) for member in self.members))
        )

    def problem(self, index: int) -> Problem:
        """Problem ``index``; ``metadata`` also has the member's name, ``task``, and number, ``member``."""
        index = check_index(index, self.num_problems)
        if self._shares is None:
            member = int(np.searchsorted(self._ends, index, side="right"))
            inner = index - int(self._ends[member - 1]) if member else index
        else:
            rng = problem_rng(self.seed, index)
            member = int(rng.choice(len(self.members), p=self._shares))
            inner = int(rng.integers(self.members[member].num_problems or ENDLESS))
        problem = self.members[member].problem(inner)
        metadata = {**problem.metadata, "task": self.members[member].name, "member": member}
        return replace(problem, metadata=metadata)

    def score(self, completion: str, problem: Problem) -> float:
        """The score that the problem's own task gives."""
        return self._member(problem).score(completion, problem)

    def prepare(self, completions: Sequence[str], problems: Sequence[Problem]) -> None:
        """See ``Task``; passed on to the members that have it."""
        for number, member in enumerate(self.members):
            mine = [at for at, problem in enumerate(problems) if problem.metadata["member"] == number]
            if mine and hasattr(member, "prepare"):
                member.prepare([completions[at] for at in mine], [problems[at] for at in mine])

    def metrics(self, completion: str, problem: Problem) -> dict[str, float]:
        """The metrics that all members have."""
        metrics = self._member(problem).metrics(completion, problem)
        return {name: metrics[name] for name in self._metric_names}

    def _member(self, problem: Problem) -> Task:
        return self.members[int(problem.metadata["member"])]


def _shares(weights: Sequence[Any]) -> list[float] | None:
    """Weights divided by their sum, or ``None`` if there are none."""
    if all(weight is None for weight in weights):
        return None
    numbers = [isinstance(weight, int | float) and 0 < weight < float("inf") for weight in weights]
    if not all(numbers):
        raise ValueError(f"weights must be positive numbers, one for every member or none, got {weights!r}")
    return [float(weight / sum(weights)) for weight in weights]
