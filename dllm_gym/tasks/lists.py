"""Operations on a line of names, some with one right answer, some with many of which one must be agreed on.

The prompt is an operation and the names, ``insert Eva at 2: Dan Mia Leo``, the completion the names that
come of it. Where the place is free (``anywhere``) or the order is (``shuffle``), every token may be right by
itself and the line wrong: what one position writes must fit what the others do. After the waiting lines of
ParallelBench (arXiv 2510.04767).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from dllm_gym.suggestions import did_you_mean
from dllm_gym.tasks.base import Problem, check_index, check_split, problem_rng, split_of

_NAMES = (
    *("Ana", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana"),
    *("Ivy", "Jack", "Kim", "Leo", "Mia", "Noah", "Oli", "Pia"),
)
_FEWEST, _MOST = 4, 8  # names in a line

Line = tuple[str, ...]

_WHOLE: dict[str, Callable[[Line], Line]] = {
    "copy": lambda line: line,
    "reverse": lambda line: line[::-1],
    "sort": lambda line: tuple(sorted(line)),
}
_EDITS: dict[str, Callable[[Line, int, str], Line]] = {
    "insert": lambda line, place, name: (*line[:place], name, *line[place:]),
    "remove": lambda line, place, _: (*line[:place], *line[place + 1 :]),
    "replace": lambda line, place, name: (*line[:place], name, *line[place + 1 :]),
}
OPERATIONS = (*_WHOLE, *_EDITS, *(f"{edit}-random" for edit in _EDITS), "shuffle")


class ListsTask:
    """Lines of 4 to 8 different names, and one operation on each.

    ``copy``, ``reverse``, ``sort`` (by the alphabet); ``insert``, ``remove`` and ``replace`` at a place,
    counted from 1; ``insert-random``, ``remove-random`` and ``replace-random``, at any place; ``shuffle``,
    into any other order. Every valid answer is right.

    Args:
        split: ``train``, ``validation`` or ``test``. A problem's split is a hash of its prompt.
        seed: Another seed is another sequence of problems.
        operations: Those that are asked for, each as often as the others; ``None`` are all.

    Raises:
        ValueError: For an unknown split or operation, or none.
    """

    name = "lists"
    num_problems = None
    completion_length = _MOST + 2  # an insertion, and an end token
    vocabulary = (
        *"123456789",
        *(":", "at", "anywhere", "by"),
        *_WHOLE,
        *_EDITS,
        "shuffle",
        *_NAMES,
    )

    def __init__(self, split: str = "train", seed: int = 0, operations: Sequence[str] | None = None) -> None:
        self.split = check_split(split)
        self.seed = seed
        self.operations = _in_order(operations)
        removes = any(operation.startswith("remove") for operation in self.operations)
        inserts = all(operation.startswith("insert") for operation in self.operations)
        self.shortest_completion = _FEWEST - removes + inserts

    def problem(self, index: int) -> Problem:
        """Problem ``index`` of the split.

        ``metadata``: ``operation``, ``line``, ``place``, counted from 0, and ``name``; the last two are
        ``None`` where the operation leaves them open.
        """
        return _problem(self.seed, self.split, self.operations, check_index(index, None))

    def write(self, problem: Problem, rng: np.random.Generator) -> str:
        """One of the right answers, each as likely as the others."""
        return " ".join(_draw_answer(problem.metadata, rng))

    def score(self, completion: str, problem: Problem) -> float:
        """1.0 for a right answer (white space is ignored), else 0.0."""
        words, asked = tuple(completion.split()), problem.metadata
        if asked["operation"] == "shuffle":
            return float(sorted(words) == sorted(asked["line"]) and words != asked["line"])
        return float(words in _answers(asked))

    def metrics(self, completion: str, problem: Problem) -> dict[str, float]:
        """``names_correct``: 1.0 if each name stands there as often as in some right answer, in any order."""
        words, asked = sorted(completion.split()), problem.metadata
        answers = [asked["line"]] if asked["operation"] == "shuffle" else _answers(asked)
        return {"names_correct": float(any(words == sorted(answer) for answer in answers))}


def _in_order(operations: Sequence[str] | None) -> tuple[str, ...]:
    """The operations in the order of ``OPERATIONS``, so that in any order they are the same task."""
    if operations is None:
        return OPERATIONS
    if isinstance(operations, str) or not operations:
        raise ValueError(f"operations must be a list of some of {', '.join(OPERATIONS)}; got {operations!r}")
    for operation in operations:
        if operation not in OPERATIONS:
            hint = did_you_mean(str(operation), OPERATIONS)
            raise ValueError(f"unknown operation {operation!r}{hint}; choose some of {', '.join(OPERATIONS)}")
    return tuple(operation for operation in OPERATIONS if operation in operations)


# comparing many agents on the same problems draws each only once
@lru_cache(maxsize=4096)
def _problem(seed: int, split: str, operations: tuple[str, ...], index: int) -> Problem:
    rng = problem_rng(seed, index)
    operation = operations[int(rng.integers(len(operations)))]
    edit, random = operation.removesuffix("-random"), operation.endswith("-random")
    while True:
        drawn = rng.permutation(len(_NAMES))[: int(rng.integers(_FEWEST, _MOST + 1)) + 1]
        *line, other = (_NAMES[number] for number in drawn)
        place = name = None
        if edit in _EDITS:
            place = None if random else int(rng.integers(len(line) + (edit == "insert")))
            name = None if edit == "remove" else other
        prompt = f"{_request(edit, place, name)}: {' '.join(line)}"
        if split_of(prompt) == split:
            break
    asked = {"operation": operation, "line": tuple(line), "place": place, "name": name}
    return Problem(prompt=prompt, reference=" ".join(_draw_answer(asked, rng)), metadata=asked)


def _request(edit: str, place: int | None, name: str | None) -> str:
    """The operation in words."""
    if edit not in _EDITS:
        return edit
    where = "anywhere" if place is None else f"at {place + 1}"
    return {
        "insert": f"insert {name} {where}",
        "remove": f"remove {where}",
        "replace": f"replace {where} by {name}",
    }[edit]


def _draw_answer(asked: Mapping[str, Any], rng: np.random.Generator) -> Line:
    line = asked["line"]
    if asked["operation"] == "shuffle":
        order = list(range(len(line)))
        while order == sorted(order):
            order = rng.permutation(len(line)).tolist()
        return tuple(line[number] for number in order)
    answers = _answers(asked)
    return answers[int(rng.integers(len(answers)))]


def _answers(asked: Mapping[str, Any]) -> list[Line]:
    """All right answers to anything but ``shuffle``, which has too many to write them down."""
    operation, line = asked["operation"].removesuffix("-random"), asked["line"]
    if operation in _WHOLE:
        return [_WHOLE[operation](line)]
    places = range(len(line) + (operation == "insert")) if asked["place"] is None else [asked["place"]]
    return [_EDITS[operation](line, place, asked["name"]) for place in places]
