"""What is to be preferred among episodes: right answers, and of these the fast ones."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dllm_gym.files import check_ending, write_text
from dllm_gym.offline.episodes import Episodes


@dataclass(frozen=True)
class Answer:
    """A right answer: where its steps are in the dataset, who wrote it, in how many steps, and its text."""

    episode: int
    agent: str
    steps: int
    completion: str


@dataclass(frozen=True)
class Pair:
    """Two right answers to one problem; the chosen one took fewer steps."""

    problem: int
    chosen: Answer
    rejected: Answer


def best_episodes(episodes: Episodes) -> NDArray[np.int64]:
    """Of every problem that somebody solved, the right answer of the highest reward; the first of equals.

    Returns:
        ``(B,)`` numbers of episodes, in the order of the problems.
    """
    best = [max(right, key=lambda one: (episodes.rewards[one], -one)) for right in _solved(episodes).values()]
    return np.array(best, dtype=np.int64)


def preference_pairs(episodes: Episodes) -> list[Pair]:
    """All pairs of right answers to one problem of which one took fewer steps.

    Both answers are right, so that nothing but the order and the number of reveals is preferred. Pairs are in
    the order of the problems, then of the chosen and the rejected episodes.
    """
    return [
        Pair(problem, _answer(episodes, chosen), _answer(episodes, rejected))
        for problem, right in _solved(episodes).items()
        for chosen, rejected in product(right, right)
        if episodes.lengths[chosen] < episodes.lengths[rejected]
    ]


def write_pairs(pairs: Iterable[Pair], path: str | Path) -> Path:
    """Writes a file of JSON lines, a pair each: ``problem``, ``chosen`` and ``rejected``, atomically.

    Raises:
        OSError: If it cannot be written.
        ValueError: If it has another ending than ``.jsonl``.
    """
    check_ending(path, ".jsonl")
    return write_text(path, "".join(json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs))


def _solved(episodes: Episodes) -> dict[int, list[int]]:
    """The right episodes of every problem that has some, both in order."""
    solved: dict[int, list[int]] = {}
    for one in np.flatnonzero(episodes.scores == 1).tolist():
        solved.setdefault(int(episodes.problems[one]), []).append(one)
    return dict(sorted(solved.items()))


def _answer(episodes: Episodes, one: int) -> Answer:
    return Answer(one, episodes.agents[one], int(episodes.lengths[one]), episodes.completions[one])
