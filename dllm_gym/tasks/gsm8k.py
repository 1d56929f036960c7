"""GSM8K: grade-school word problems whose answer is a number."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from dllm_gym.tasks.base import Problem
from dllm_gym.tasks.data import Row, read_rows, text_in
from dllm_gym.tasks.forms import GSM8K_D1, GSM8K_LM_EVAL, GSM8K_TRAINING
from dllm_gym.tasks.questions import QuestionRow, QuestionTask
from dllm_gym.tasks.scoring.answers import before_end, boxes, number, same_number, tagged

_FORMS = {"paper": (GSM8K_TRAINING, GSM8K_D1), "d1": (GSM8K_D1, GSM8K_D1), "lm-eval": (GSM8K_LM_EVAL,) * 2}
_FILES = {
    "test": ("gsm8k_test*.jsonl", "test*.jsonl", "test*.parquet", "main/test*.parquet"),
    "train": ("gsm8k_train*.jsonl", "train*.jsonl", "train*.parquet", "main/train*.parquet"),
}


class GSM8KTask(QuestionTask):
    """The 1,319 test problems of openai/grade-school-math, or its training problems.

    The ``reference`` of a problem is the number after ``####``.

    Args:
        split: ``test`` takes the test file; ``train`` and ``validation`` divide the training file.
        data: Path of a file with the columns ``question`` and ``answer``, or of a folder with
            ``train.jsonl`` and ``test.jsonl`` (or the hub's parquet files); ``"hub"`` for openai/gsm8k.
        prompt: ``paper`` (arXiv 2512.09106: tags in training; a box and a begun ``<reasoning>`` in validation
            and test), ``d1`` (the latter in every split) or ``lm-eval`` (``Question: ... Answer:``).
        shots: Solved examples before the question, the first ones of the training file; for ``lm-eval``.

    Raises:
        ValueError: For an unknown split or prompt, shots without ``lm-eval``, or a malformed file.
        FileNotFoundError: If there is no data.
    """

    name = "gsm8k"

    def __init__(
        self,
        split: str = "train",
        data: str | Path | None = None,
        prompt: str = "paper",
        shots: int = 0,
    ) -> None:
        super().__init__(split, data, prompt, shots, _FORMS, _read)

    def score(self, completion: str, problem: Problem) -> float:
        """1.0 if the answer is the reference to 1e-6, else 0.0.

        Of ``paper`` and ``d1`` the first box with a number counts, else the last number in ``<answer>``; of
        ``lm-eval`` the last number (its filter ``flexible-extract``). Text after an end token never does.
        """
        return float(same_number(self._answer(completion), number(problem.reference)))

    def _answer(self, completion: str) -> Fraction | None:
        if self.prompt == "lm-eval":
            return number(before_end(completion, ["Question:"]), last=True)
        return boxed_number(before_end(completion))


def boxed_number(text: str) -> Fraction | None:
    """The number of the first box that has one, else the last number in ``<answer>``."""
    in_boxes = (number(content) for content in boxes(text))
    found = next((value for value in in_boxes if value is not None), None)
    return number(tagged(text) or "", last=True) if found is None else found


def _read(data: str | Path | None, part: str) -> list[QuestionRow]:
    return read_rows(
        "gsm8k", data, _parse, hub="openai/gsm8k", hub_config="main", hub_split=part, files=_FILES[part]
    )


def _parse(row: Row) -> QuestionRow:
    question, answer = text_in(row, "question"), text_in(row, "answer")
    _, marker, gold = answer.rpartition("####")
    gold = gold.strip().replace(",", "").removeprefix("$")
    if not marker or number(gold) is None:
        raise ValueError(f"the answer must end with '#### NUMBER', got {answer[-40:]!r}")
    return question, answer, gold
