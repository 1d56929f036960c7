"""KodCode: synthetic programming problems with unit tests, to train on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dllm_gym.tasks.base import Problem, check_index, check_split
from dllm_gym.tasks.code import CodeTask
from dllm_gym.tasks.data import Row, read_rows, rows_of_split, text_in

_TEST = re.compile(r"^def[ \t]+(test\w*)[ \t]*\(([^)]*)\)", re.MULTILINE)
_PYTEST = re.compile(r"^\s*(?:import|from)\s+pytest\b", re.MULTILINE)


class KodCodeTask(CodeTask):
    """Problems of KodCode-Light-RL-10K (or another KodCode file), on which arXiv 2512.09106 trains for code.

    Problems whose tests take arguments (fixtures, parametrised tests) are left out: nothing here hands them
    over. Many tests import pytest; programs may then import what is installed beside it.

    Args:
        split: ``train`` or ``validation``, by a hash of the question; there is no ``test``.
        data: Path of a parquet or JSON lines file with the columns ``question``, ``solution``, ``test`` and
            ``test_info``, or of its folder; ``"hub"`` for KodCode/KodCode-Light-RL-10K.
        sandbox: See ``CodeTask``; ``packages`` takes the place of what is installed beside pytest.

    Attributes:
        num_left_out: How many of the data's problems are left out.

    Raises:
        ValueError: For another split or a malformed file.
        FileNotFoundError: If there is no data.
        ImportError: If tests import pytest and it is not installed.
        SandboxError: If the machine cannot give what the sandbox requires.
    """

    name = "kodcode"

    def __init__(
        self,
        split: str = "train",
        data: str | Path | None = None,
        sandbox: Mapping[str, Any] | None = None,
    ) -> None:
        if check_split(split) == "test":
            raise ValueError("KodCode is training data; use split='train' or 'validation' instead of 'test'")
        rows = read_rows(
            self.name,
            data,
            _parse,
            hub="KodCode/KodCode-Light-RL-10K",
            hub_split="train",
            files=("*kodcode*.jsonl*", "*KodCode*.jsonl*", "train*.parquet", "*.parquet", "*/train*.parquet"),
        )
        usable = [row for row in rows if row["names"]]
        self.num_left_out = len(rows) - len(usable)
        self._rows = rows_of_split(usable, split, lambda row: str(row["question"]))
        if not self._rows:
            raise ValueError(f"the data has no usable problem of split {split!r} among {len(rows)} rows")
        keywords = dict(sandbox or {})
        if any(_PYTEST.search(row["test"]) for row in self._rows):
            keywords.setdefault("packages", [_folder_of_pytest()])
        super().__init__(keywords)
        self.split = split
        self.num_problems = len(self._rows)

    def problem(self, index: int) -> Problem:
        """Problem ``index`` of the split, by file order. One test per test function."""
        row = self._rows[check_index(index, self.num_problems)]
        metadata = {
            "before": row["declaration"],
            "setup": "",
            "entry_point": row["entry_point"],
            "tests": tuple(f"{row['test']}\n{name}()\n" for name in row["names"]),
        }
        task = f"You are an expert Python programmer, and here is your task:\n\n{row['question']}\n\n"
        begun = f"{row['declaration']}\n" if row["declaration"] else ""
        return Problem(
            f"{task}Implement the function exactly as specified below.",
            row["solution"],
            metadata,
            f"Here is the completed function:\n```python\n{begun}",
        )


def _parse(row: Row) -> Row:
    info = row.get("test_info")
    function = info[0] if info is not None and len(info) else {}
    texts = {column: text_in(row, column) for column in ("question", "solution", "test")}
    found = _TEST.findall(texts["test"])
    return {
        **texts,
        "declaration": function.get("function_declaration") or "",
        "entry_point": function.get("function_name") or "",
        "names": [name for name, _ in found] if not any(taken.strip() for _, taken in found) else [],
    }


def _folder_of_pytest() -> Path:
    spec = find_spec("pytest")
    if spec is None or spec.origin is None:
        raise ImportError("KodCode's tests import pytest, which is not installed: pip install pytest")
    return Path(spec.origin).parent.parent
