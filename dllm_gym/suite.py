"""The suite: environments of known difficulty to loop over, each a task, a dLLM and blocks under an id.

Another member is one entry of ``SUITE``. What is known of them is measured by ``python benchmarks/suite.py``,
which writes the file ``FIGURES``; nobody else does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from dllm_gym.files import read_json
from dllm_gym.suggestions import did_you_mean

FIGURES = Path(__file__).parent / "assets" / "suite.json"
_NAMESPACE, _VERSION = "DLLMUnmask/", "-v0"


@dataclass(frozen=True)
class Measured:
    """What an agent came to on test problems of a member.

    Attributes:
        agent: What ``as_agent`` takes.
        label: For tables.
        reward: Mean reward.
        accuracy: Share of problems solved.
        nfe: Mean steps.
    """

    agent: str
    label: str
    reward: float
    accuracy: float
    nfe: float


@dataclass(frozen=True)
class Figures:
    """What was measured of a member, with alpha 1 and everything else by default.

    Attributes:
        completion_length: L.
        vocabulary: Number of tokens the dLLM knows.
        episodes: Validation problems for tuning, and test problems.
        env: The member's arguments then.
        command: What measured it.
        oracle: Who knows what the dLLM will write in the end (``dllm_gym.evaluation.oracle``).
        best_rule: The rule and setting that earned most on validation problems.
        trained: The trained agent that comes with the package, if there is one.
    """

    completion_length: int
    vocabulary: int
    episodes: int
    env: Mapping[str, Any]
    command: str
    oracle: Measured
    best_rule: Measured
    trained: Measured | None = None


@dataclass(frozen=True)
class Member:
    """One environment of the suite: ``gym.make(member.id)`` is ``DLLMUnmask-v0`` with ``member.env``.

    Attributes:
        name: In the id, in tables and in paths.
        task: A registered task.
        backend: An embedded dLLM.
        task_kwargs: The task's parameters.
        completion_length: L; ``None`` is the task's own.
        block_length: ``None`` is full diffusion.
        trained: The best trained agent that comes with the package, such as ``policy:NAME``.
    """

    name: str
    task: str
    backend: str
    task_kwargs: Mapping[str, Any] = field(default_factory=dict)
    completion_length: int | None = None
    block_length: int | None = None
    trained: str | None = None

    @property
    def id(self) -> str:
        """As Gymnasium knows it."""
        return f"{_NAMESPACE}{self.name}{_VERSION}"

    @property
    def env(self) -> dict[str, Any]:
        """Arguments of ``UnmaskEnv``, and so of ``evaluate`` and ``TrainConfig``: all that say where."""
        return {
            "task": self.task,
            "task_kwargs": dict(self.task_kwargs),
            "completion_length": self.completion_length,
            "backend": self.backend,
            "block_length": self.block_length,
        }

    @property
    def dataset(self) -> str:
        """The id of the small dataset that comes with the package (``dllm_gym.offline.read_dataset``)."""
        return f"dllm-gym/{self.name.lower()}-mixed-v0"

    @property
    def figures(self) -> Figures | None:
        """What was measured; ``None`` if nothing was yet, or with other arguments."""
        found = read_figures().get(self.id)
        return found if found is not None and found.env == self.env else None

    def normalized(self, reward: float) -> float:
        """``normalized_score`` of a mean reward with alpha 1, as the figures have it.

        Raises:
            ValueError: If nothing was measured.
        """
        figures = self.figures
        if figures is None:
            raise ValueError(f"{self.id} was not measured yet: python benchmarks/suite.py")
        return normalized_score(reward, figures.best_rule.reward, figures.oracle.reward)


def normalized_score(reward: float, best_rule: float, oracle: float) -> float:
    """How much of the way from the best rule (0) to the oracle (1) a mean reward is.

    Below 0 it is worse than the rule. It may exceed 1, as the oracle is no strict bound.

    Args:
        reward: Of an agent.
        best_rule: The best rule's, on the same problems.
        oracle: The oracle's.

    Raises:
        ValueError: If the oracle is not above the best rule: then there is nothing to learn.
    """
    if not oracle > best_rule:
        raise ValueError(f"the oracle's reward must be above the best rule's, got {oracle} and {best_rule}")
    return (reward - best_rule) / (oracle - best_rule)


# without those that name a place, which nearly every rule solves in one step
_LISTS = ("copy", "reverse", "sort", "insert-random", "remove-random", "replace-random", "shuffle")
# long, mostly end tokens, and some answers without a derivation: the dLLM believes in short texts
_OVERCONFIDENT = {"two_digit_share": 0.25, "direct_share": 0.2, "length": 128}

SUITE: tuple[Member, ...] = (
    Member(
        "Arithmetic",
        "arithmetic",
        "tiny-arithmetic",
        trained="policy:arithmetic-hidden:deterministic,caution=1",
    ),
    Member("Sudoku", "sudoku", "tiny-sudoku", trained="policy:sudoku-full"),
    Member("Lists", "lists", "tiny-lists", {"operations": [*_LISTS]}, trained="policy:lists-full"),
    Member(
        "LatinSquare4", "latin-square", "tiny-latin", {"size": 4}, trained="policy:latin4-full:deterministic"
    ),
    Member(
        "LatinSquare5", "latin-square", "tiny-latin", {"size": 5}, trained="policy:latin5-full:deterministic"
    ),
    Member("Records", "records", "tiny-records", trained="policy:records-full"),
    Member("Overconfident", "arithmetic", "tiny-overconfident", _OVERCONFIDENT),
)


def member(id: str) -> Member:
    """The member of that id.

    Raises:
        ValueError: If there is none.
    """
    known = {one.id: one for one in SUITE}
    if id not in known:
        raise ValueError(f"unknown environment {id!r}{did_you_mean(id, known)}; known: {', '.join(known)}")
    return known[id]


@cache
def read_figures(path: Path = FIGURES) -> dict[str, Figures]:
    """What the file of figures says, by id; nothing if there is no file."""
    content = read_json(path)["members"] if path.is_file() else {}
    return {id: _figures(**values) for id, values in content.items()}


def _figures(
    oracle: Mapping[str, Any], best_rule: Mapping[str, Any], trained: Mapping[str, Any] | None, **rest: Any
) -> Figures:
    own = None if trained is None else Measured(**trained)
    return Figures(oracle=Measured(**oracle), best_rule=Measured(**best_rule), trained=own, **rest)
