"""MATH: competition problems whose answer is a piece of LaTeX; MATH-500 is its usual test set."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

from dllm_gym.files import is_finite
from dllm_gym.tasks.base import Problem
from dllm_gym.tasks.data import Row, read_rows, text_in
from dllm_gym.tasks.forms import MATH_D1, MATH_LM_EVAL, MATH_TRAINING
from dllm_gym.tasks.questions import QuestionRow, QuestionTask
from dllm_gym.tasks.scoring.answers import before_end, boxes, same_text, tagged
from dllm_gym.tasks.scoring.math_equality import require_math_verify, same_value

_FORMS = {"paper": (MATH_TRAINING, MATH_D1), "d1": (MATH_D1, MATH_D1), "lm-eval": (MATH_LM_EVAL,) * 2}
_EQUALITIES = ("math-verify", "text")
_HUB = {"test": "HuggingFaceH4/MATH-500", "train": "ankner/math-500"}
_FILES = {
    "test": ("math500*.jsonl", "test*.jsonl", "test*.parquet", "data/test*.parquet", "test/*/*.json"),
    "train": ("math_train*.jsonl", "train*.jsonl", "train*.parquet", "data/train*.parquet", "train/*/*.json"),
}
_SAID, _HOPED = "The final answer is", "I hope it is correct"


class Math500Task(QuestionTask):
    """The 500 test problems of MATH-500, or MATH's training problems.

    The ``reference`` of a problem is the answer in LaTeX; a bare number in the file is written out.

    Args:
        split: ``test`` takes the test file; ``train`` and ``validation`` divide the training file.
        data: Path of a file with the columns ``problem`` and ``answer``, or ``problem`` and ``solution``
            whose last box is the answer; or of a folder with such files, ``train.jsonl`` and
            ``test.jsonl``, the hub's parquet files or MATH's own ``train/SUBJECT/NUMBER.json``. ``"hub"``
            for HuggingFaceH4/MATH-500 and, to train on, ankner/math-500.
        prompt: ``paper``, ``d1`` or ``lm-eval``, as in ``gsm8k``.
        shots: Solved examples before the question, the first ones of the training file; for ``lm-eval``.
        equality: ``math-verify`` compares values (needs the extra ``math``); ``text`` compares the answers
            as written, as d1 and arXiv 2512.09106 do, which refuses right answers in other words.

    Raises:
        ValueError: For an unknown split, prompt or equality, shots without ``lm-eval``, or a malformed file.
        FileNotFoundError: If there is no data.
        ImportError: If the extra ``math`` is needed and not installed.
    """

    name = "math500"

    def __init__(
        self,
        split: str = "train",
        data: str | Path | None = None,
        prompt: str = "paper",
        shots: int = 0,
        equality: str = "math-verify",
    ) -> None:
        if equality not in _EQUALITIES:
            raise ValueError(f"unknown equality {equality!r}; choose one of {', '.join(_EQUALITIES)}")
        if equality == "math-verify":
            require_math_verify()
        self.equality = equality
        super().__init__(split, data, prompt, shots, _FORMS, _read)

    def score(self, completion: str, problem: Problem) -> float:
        """1.0 if the answer equals the reference, else 0.0.

        The last box counts, without one the text in ``<answer>``; of ``lm-eval`` first what follows
        "The final answer is". Text after an end token never does.
        """
        answer = self._answer(completion)
        if answer is None:
            return 0.0
        if same_text(problem.reference, answer):
            return 1.0
        return float(self.equality == "math-verify" and same_value(problem.reference, answer))

    def _answer(self, completion: str) -> str | None:
        if self.prompt == "lm-eval":
            text = before_end(completion, ["Problem:"])
            _, said, rest = text.partition(_SAID)
            if said:
                return rest.partition(_HOPED)[0].strip(" .\n") or None
        else:
            text = before_end(completion)
        found = boxes(text)
        return found[-1] if found else tagged(text)


def _read(data: str | Path | None, part: str) -> list[QuestionRow]:
    return read_rows("math500", data, _parse, hub=_HUB[part], hub_split=part, files=_FILES[part])


def _parse(row: Row) -> QuestionRow:
    problem = text_in(row, "problem")
    solution = "" if row.get("solution") is None else text_in(row, "solution")
    answer = _written_out(row.get("answer"))
    if answer:
        return problem, solution, answer
    found = boxes(solution)
    if not found:
        raise ValueError("the row has no answer and its solution no \\boxed{...}")
    return problem, solution, found[-1]


def _written_out(answer: Any) -> str:
    """An answer as text; many files have bare numbers among them. Blank if there is none."""
    if answer is None:
        return ""
    if isinstance(answer, str):
        return answer.strip()
    if not is_finite(answer):
        raise ValueError(f"the answer must be a text or a finite number, got {answer!r:.80}")
    return format(Decimal(str(answer)), "f").removesuffix(".0")
