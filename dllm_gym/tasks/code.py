"""What the code tasks share: a program found in a completion, run on a problem's tests in the sandbox."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dllm_gym.sandbox import Job, Limits, Outcome, Sandbox
from dllm_gym.tasks.base import Problem
from dllm_gym.tasks.scoring.answers import before_end

_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*(?:\n|\Z)", re.MULTILINE)
_PYTHON = ("", "python", "python3", "py")
_MOST_TRIMMED = 100  # lines
_REMEMBERED = 256  # outcomes; score, metrics and the renderer ask for the same one


class CodeTask:
    """A task whose completions are Python programs with tests.

    A problem's ``metadata`` holds ``before`` (source the completion goes on from, such as a signature),
    ``setup`` (source that comes first), ``entry_point`` (the name that the tests use, or ``""``), ``tests``
    (sources, see ``sandbox.Job``) and perhaps ``stops`` (strings that end the completion). The score is
    pass@1: 1.0 if every test passes.

    Args:
        sandbox: Keyword arguments of ``Sandbox``; ``limits`` may be a mapping, ``{"wall_seconds": 5}``.

    Raises:
        ValueError: For wrong arguments of the sandbox.
        SandboxError: If the machine cannot give what the sandbox requires.
    """

    completion_length = 256

    def __init__(self, sandbox: Mapping[str, Any] | None = None) -> None:
        keywords = dict(sandbox or {})
        if isinstance(keywords.get("limits"), Mapping):
            keywords["limits"] = Limits(**keywords["limits"])
        self.sandbox = Sandbox(**keywords)
        self.sandbox.check()
        self._outcomes: dict[Job, Outcome] = {}

    def score(self, completion: str, problem: Problem) -> float:
        """1.0 if every test passes, else 0.0. Runs the program, unless that was done before."""
        outcome = self.run(completion, problem)
        return float(outcome is not None and outcome.correct)

    def metrics(self, completion: str, problem: Problem) -> dict[str, float]:
        """``tests_passed``: share of the tests; ``has_code``: whether there was anything to run."""
        outcome = self.run(completion, problem)
        if outcome is None:
            return {"tests_passed": 0.0, "has_code": 0.0}
        return {"tests_passed": sum(outcome.passed) / len(outcome.passed), "has_code": 1.0}

    def run(self, completion: str, problem: Problem) -> Outcome | None:
        """How the program in a completion did; None if there is none. Says why it failed, too."""
        job = _job(completion, problem)
        if job is None:
            return None
        if job not in self._outcomes:
            self.prepare([completion], [problem])
        return self._outcomes[job]

    def prepare(self, completions: Sequence[str], problems: Sequence[Problem]) -> None:
        """Runs several completions side by side, so that asking for their scores takes no time after that."""
        jobs = [_job(*pair) for pair in zip(completions, problems, strict=True)]
        wanted = dict.fromkeys(job for job in jobs if job is not None)
        new = [job for job in wanted if job not in self._outcomes]
        kept = [job for job in self._outcomes if job not in wanted][-_REMEMBERED:]
        self._outcomes = {job: self._outcomes[job] for job in (*kept, *wanted) if job in self._outcomes}
        self._outcomes |= zip(new, self.sandbox.run_many(new) if new else (), strict=True)


def programs(
    completion: str,
    before: str = "",
    setup: str = "",
    entry_point: str = "",
    begun: bool = False,
    stops: Sequence[str] = (),
) -> tuple[str, ...]:
    """The programs that a completion may stand for, the likeliest first; which of them compile is not known.

    Fenced blocks count, or the whole text if there is none; those that define ``entry_point`` before others
    unless the prompt began the first. A block may go on from ``before`` or repeat it. The last programs end
    earlier, line by line, for answers that go on with prose or were cut short.

    Args:
        completion: What the model wrote; text after an end token is not looked at.
        before: Source that the completion goes on from, such as a signature.
        setup: Source that comes before everything.
        entry_point: The function or class that is wanted.
        begun: Whether the completion begins inside a fence that the prompt opened.
        stops: What ends the completion, too.

    Returns:
        Sources; none if there is no code.
    """
    text = before_end(completion, stops)
    blocks = _blocks(f"```python\n{text}" if begun else text)
    if entry_point and not begun:
        defines = re.compile(rf"^\s*(?:async\s+def|def|class)\s+{re.escape(entry_point)}\b", re.MULTILINE)
        blocks.sort(key=lambda block: defines.search(block) is None)  # stable
    blocks = [block for block in blocks if block.strip()]
    lines = blocks[0].rstrip().split("\n") if blocks else []
    least = max(len(lines) - _MOST_TRIMMED, 0)
    shorter = ["\n".join(lines[:end]) for end in range(len(lines) - 1, least, -1)]
    found: list[str] = []
    for block in (*blocks, *(lines for lines in shorter if lines.strip())):
        found += [f"{setup}{before.rstrip()}\n{block}"] if before else []
        found.append(setup + block)
    return tuple(dict.fromkeys(found))


def _blocks(text: str) -> list[str]:
    """The Python blocks of a text, the last one perhaps never closed; the whole text if nothing is fenced."""
    fences = list(_FENCE.finditer(text))
    if not fences:
        return [text]
    blocks: list[str] = []
    start, language = -1, ""  # of the block that is open, if one is
    for fence in (*fences, None):
        end = len(text) if fence is None else fence.start()
        if start >= 0 and language in _PYTHON:
            blocks.append(text[start:end])
        # a fence that names a language always opens, one that does not closes what is open
        opens = fence is not None and (bool(fence[1]) or start < 0)
        start, language = (fence.end(), fence[1].lower()) if fence is not None and opens else (-1, "")
    return blocks


def _job(completion: str, problem: Problem) -> Job | None:
    known, begun = problem.metadata, problem.prefix.count("```") % 2 == 1
    sources = programs(
        completion, known["before"], known["setup"], known["entry_point"], begun, known.get("stops", ())
    )
    return Job(sources, tuple(known["tests"])) if sources else None
