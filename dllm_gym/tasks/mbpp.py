"""MBPP: write a function from one sentence and three tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dllm_gym.tasks.base import Problem, check_index, check_split
from dllm_gym.tasks.code import CodeTask
from dllm_gym.tasks.data import Row, read_rows, text_in, whole_number

# Task ids by purpose, as published (google-research/mbpp, README)
_SPLITS = {"test": range(11, 511), "validation": range(511, 601), "train": range(601, 975)}
_EXAMPLES = {"paper": (1, 2, 3), "lm-eval": (2, 3, 4)}
_FUTURE = "from __future__ import annotations\n"  # so that a missing ``from typing import List`` is no error


class MBPPTask(CodeTask):
    """The 974 problems of google-research/mbpp, in their published splits: 500 of them are ``test``.

    Args:
        split: ``train`` (374), ``validation`` (90) or ``test`` (500).
        data: Path of ``mbpp.jsonl``, ``sanitized-mbpp.json`` or a parquet file, or of the folder of one;
            ``"hub"`` for google-research-datasets/mbpp.
        prompt: ``paper`` (arXiv 2512.09106) or ``lm-eval`` (``mbpp_instruct``); both ask with the same words
            and let the answer begin inside a fence, but show other examples: task ids from 1 or from 2.
        shots: Solved examples before the question, from task ids 1 to 10 of the data.
        sandbox: See ``CodeTask``.

    Raises:
        ValueError: For an unknown split or prompt, too many shots for the data, or a malformed file.
        FileNotFoundError: If there is no data.
        SandboxError: If the machine cannot give what the sandbox requires.
    """

    name = "mbpp"

    def __init__(
        self,
        split: str = "train",
        data: str | Path | None = None,
        prompt: str = "paper",
        shots: int = 3,
        sandbox: Mapping[str, Any] | None = None,
    ) -> None:
        self.split = check_split(split)
        if prompt not in _EXAMPLES:
            raise ValueError(f"unknown prompt {prompt!r}; choose one of {', '.join(_EXAMPLES)}")
        wanted = _EXAMPLES[prompt][:shots]
        if len(wanted) != shots:
            raise ValueError(f"shots must lie between 0 and {len(_EXAMPLES[prompt])}, got {shots!r}")
        super().__init__(sandbox)
        rows = read_rows(
            self.name,
            data,
            _parse,
            hub="google-research-datasets/mbpp",
            hub_config="full",
            hub_split="train+test+validation+prompt",
            files=("mbpp.jsonl*", "sanitized-mbpp.json", "*mbpp*.jsonl*", "full/*.parquet", "*.parquet"),
        )
        examples = {row["task_id"]: row for row in rows if row["task_id"] in wanted}
        if missing := [number for number in wanted if number not in examples]:
            raise ValueError(
                f"shots={shots} shows task ids {wanted}, of which the data lacks {missing}; see shots"
            )
        self.prompt = prompt
        self.shots = shots
        self._shown = "".join(_solved(examples[number]) for number in wanted)
        self._rows = [row for row in rows if row["task_id"] in _SPLITS[split]]
        if not self._rows:
            raise ValueError(f"the data has no problem of split {split!r}, which are task ids {_ids(split)}")
        self.num_problems = len(self._rows)

    def problem(self, index: int) -> Problem:
        """Problem ``index`` of the split, by file order. ``metadata`` also has ``task_id``."""
        row = self._rows[check_index(index, self.num_problems)]
        metadata = {
            "task_id": row["task_id"],
            "before": "",
            "setup": _FUTURE,
            "entry_point": "",
            # the setup code builds on what the program defines
            "tests": tuple(f"{row['setup']}\n{test}" for test in row["tests"]),
        }
        return Problem(self._shown + _asked(row), row["code"], metadata, "\n```python\n")


def _asked(row: Row) -> str:
    tests = "\n".join(row["tests"][:3])
    return (
        f"You are an expert Python programmer, and here is your task:\n{row['text']}\n"
        f"Your code should pass these tests:\n{tests}"
    )


def _solved(row: Row) -> str:
    return f"{_asked(row)}\n```python\n{row['code']}\n```\n\n"


def _ids(split: str) -> str:
    return f"{_SPLITS[split][0]} to {_SPLITS[split][-1]}"


def _parse(row: Row) -> Row:
    """``full`` calls the question text and has setup code, ``sanitized`` prompt and a list of imports."""
    tests = row["test_list"]
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        raise ValueError(f"column 'test_list' must hold a list of tests, got {tests!r:.80}")
    imports = row.get("test_imports")
    return {
        "task_id": whole_number(row["task_id"]),
        "text": text_in(row, "text" if "text" in row else "prompt"),
        "code": text_in(row, "code"),
        "tests": tests,
        "setup": "\n".join(imports if imports is not None else ()) or row.get("test_setup_code") or "",
    }
