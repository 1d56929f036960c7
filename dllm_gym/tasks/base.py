"""What every task is: a source of problems and a scorer of completions, knowing nothing of models."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

SPLITS = ("train", "validation", "test")
ENDLESS = 2**31 - 1  # indices are drawn below this where a task has no end of problems

# Hash buckets of the problem *content*; a bucket belongs to one split, so splits cannot overlap.
_BUCKETS = 20
_SPLIT_OF_BUCKET = {0: "test", 1: "validation"}


@dataclass(frozen=True)
class Problem:
    """One problem of a task.

    Attributes:
        prompt: What the user would ask the dLLM, as plain text.
        reference: A correct answer in the task's own notation (the final number, the solved grid).
        metadata: Whatever the scorer and curious users need besides; never shown to the model.
        prefix: Text the answer is made to begin with, after the chat template; no part of the completion.
        turns: Messages of the chat before the prompt, such as solved examples, each with ``role`` and
            ``content``. A dLLM without chat template refuses them.
    """

    prompt: str
    reference: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = ""
    turns: tuple[Mapping[str, str], ...] = ()


@runtime_checkable
class Task(Protocol):
    """A source of problems and a scorer of completions.

    A task whose scores take long may also have ``prepare(completions, problems)``, which is called before
    the scores of several completions are asked for, so that it can work on them side by side. A task whose
    answers cannot be shorter may say so in ``shortest_completion``, in tokens; the environment refuses a
    ``completion_length`` below it, in which every score would be 0.

    Attributes:
        name: The task's registered name.
        split: One of ``train``, ``validation``, ``test``.
        completion_length: Default number of positions the dLLM gets to answer in.
        num_problems: How many problems there are, or ``None`` if there is no end of them.
    """

    name: str
    split: str
    completion_length: int
    num_problems: int | None

    def problem(self, index: int) -> Problem:
        """The problem with this index: always the same for the same task, split and seed."""
        ...

    def score(self, completion: str, problem: Problem) -> float:
        """How right a completion is, in [0, 1]; 1.0 means correct. Never raises on any string."""
        ...

    def metrics(self, completion: str, problem: Problem) -> dict[str, float]:
        """Further numbers worth reporting about a completion; may be empty."""
        ...


class GenerativeTask(Task, Protocol):
    """A task that can also write correct completions, so that a dLLM can be trained on it."""

    vocabulary: tuple[str, ...]

    def write(self, problem: Problem, rng: np.random.Generator) -> str:
        """A correct completion of ``problem``, its free wording drawn from ``rng``."""
        ...


def check_split(split: str) -> str:
    """Returns ``split`` or raises ``ValueError`` naming the splits there are."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    return split


def check_index(index: int, num_problems: int | None) -> int:
    """Returns ``index`` as an int or raises ``IndexError`` naming the range there is."""
    if index < 0 or (num_problems is not None and index >= num_problems):
        last = "" if num_problems is None else f" to {num_problems - 1}"
        raise IndexError(f"problem index {index} is out of range; indices go from 0{last}")
    return int(index)


def split_of(content: str) -> str:
    """The split a problem belongs to, a function of what the problem is and of nothing else."""
    return _SPLIT_OF_BUCKET.get(zlib.crc32(content.encode()) % _BUCKETS, "train")


def problem_rng(seed: int, index: int) -> np.random.Generator:
    """The random generator that draws problem ``index``; independent for different indices."""
    return np.random.Generator(np.random.PCG64([seed, index]))
