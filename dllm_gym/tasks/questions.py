"""What tasks share that ask one question after another out of a test and a training file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dllm_gym.tasks.base import Problem, check_index, check_split
from dllm_gym.tasks.data import refuse_test_file, rows_of_split
from dllm_gym.tasks.forms import PromptForm, form_of_split

QuestionRow = tuple[str, str, str]  # question, solution as the file has it, reference


class QuestionTask:
    """A source of questions with solutions; subclasses score.

    Args:
        split: ``test`` takes the test file; ``train`` and ``validation`` divide the training file.
        data: See ``read_rows``.
        prompt: Name of a form of asking.
        shots: Solved examples before the question, the first ones of the training file; for ``lm-eval``.
        forms: By name, the form in training and that in validation and test.
        read: Rows of the ``test`` or ``train`` part of the data.

    Raises:
        ValueError: For an unknown split or prompt, shots without ``lm-eval``, or a malformed file.
        FileNotFoundError: If there is no data.
    """

    completion_length = 256

    def __init__(
        self,
        split: str,
        data: str | Path | None,
        prompt: str,
        shots: int,
        forms: Mapping[str, tuple[PromptForm, PromptForm]],
        read: Callable[[str | Path | None, str], list[QuestionRow]],
    ) -> None:
        self.split = check_split(split)
        self.form: PromptForm = form_of_split(forms, prompt, split)
        self.prompt = prompt
        _check_shots(shots, prompt, data, split)
        refuse_test_file(data, split)
        self._rows = rows_of_split(read(data, "test" if split == "test" else "train"), split, _question)
        # one more than are shown, in case the problem is among them
        self._examples = read(data, "train")[: shots + 1] if shots else []
        self.shots = shots
        self.num_problems = len(self._rows)

    def problem(self, index: int) -> Problem:
        """Problem ``index`` of the split.

        ``metadata``: ``question`` and ``solution``, the file's own text.
        """
        question, solution, reference = self._rows[check_index(index, self.num_problems)]
        solved = [(asked, text) for asked, text, _ in self._examples if asked != question][: self.shots]
        metadata = {"question": question, "solution": solution}
        return Problem(self.form(question, solved), reference, metadata, self.form.prefix)

    def metrics(self, completion: str, problem: Problem) -> dict[str, float]:
        """``answered``: 1.0 if there is something where an answer is looked for."""
        return {"answered": float(self._answer(completion) is not None)}

    def _answer(self, completion: str) -> Any:
        """The answer a completion gives, ``None`` if there is none."""
        raise NotImplementedError


def _check_shots(shots: int, prompt: str, data: str | Path | None, split: str) -> None:
    """Raises ``ValueError`` for examples that a form of asking cannot have, or that are test problems."""
    if not isinstance(shots, int) or not 0 <= shots <= 32:
        raise ValueError(f"shots must be a whole number from 0 to 32, got {shots!r}")
    if shots and prompt != "lm-eval":
        raise ValueError(f"shots belong to prompt='lm-eval'; prompt {prompt!r} has none")
    if shots and split == "test" and data is not None and Path(data).is_file():
        raise ValueError(
            f"shots are training problems, and {data} has test problems; give a folder with both"
        )


def _question(row: QuestionRow) -> str:
    return row[0]
