"""Sudoku: the prompt is the clues, the completion the grid, both row by row without separators."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dllm_gym.tasks import grids
from dllm_gym.tasks.base import Problem, check_index, check_split, problem_rng, split_of
from dllm_gym.tasks.data import file_rows
from dllm_gym.tasks.forms import SUDOKU_D1
from dllm_gym.tasks.scoring.answers import before_end, tagged

_PROMPTS = ("plain", "d1")
_BOXES = {4: (2, 2), 6: (2, 3)}  # size -> rows and columns of a box
_HIDDEN = {4: (4, 12), 6: (18, 30)}  # size -> the fewest and the most empty cells of a generated problem


class SudokuTask:
    """4x4 or 6x6 Sudoku; every valid grid that keeps the clues is right, unique or not.

    Args:
        split: ``train``, ``validation`` or ``test``. A problem's split is a hash of its clues.
        seed: Another seed is another sequence of problems. Without meaning for ``data``.
        size: 4 or 6.
        prompt: ``plain`` asks with the clues alone and takes the whole completion as the grid, 16 or 36
            tokens, which the embedded dLLM is trained for. ``d1`` asks in the words of dllm-reasoning/d1
            and takes the grid from ``<answer>``; for size 4, with 256 tokens.
        data: Path of a file with columns ``Puzzle`` and ``Solution`` (0 = empty), as in
            dllm-reasoning/d1. Its problems then replace the generated ones, in file order, as a ``test``
            split.

    Raises:
        ValueError: For an unknown split, size or prompt, ``d1`` with size 6, or a malformed file.
        FileNotFoundError: If ``data`` does not exist.
    """

    name = "sudoku"
    vocabulary = tuple("0123456789")

    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        size: int = 4,
        data: str | Path | None = None,
        prompt: str = "plain",
    ) -> None:
        if size not in _BOXES:
            raise ValueError(f"sudoku size {size!r} is not supported; choose one of {sorted(_BOXES)}")
        if prompt not in _PROMPTS:
            raise ValueError(f"unknown prompt {prompt!r}; choose one of {', '.join(_PROMPTS)}")
        if prompt == "d1" and size != 4:
            raise ValueError(f"prompt 'd1' is about 4x4 grids; size is {size}")
        self.split = check_split(split)
        if data is not None and split != "test":
            raise ValueError(f"a data file holds test problems; use split='test' instead of {split!r}")
        self.seed = seed
        self.size = size
        self.prompt = prompt
        self.completion_length = size * size if prompt == "plain" else 256
        self.shortest_completion = size * size if prompt == "plain" else 1
        self._rows = None if data is None else _read(Path(data), size)
        self.num_problems = None if self._rows is None else len(self._rows)

    def problem(self, index: int) -> Problem:
        """Problem ``index`` of the split. ``metadata``: ``clues``, a string of digits with 0 = empty."""
        index = check_index(index, self.num_problems)
        if self._rows is not None:
            return self._ask(*self._rows[index])
        rng = problem_rng(self.seed, index)
        while True:
            clues, solution = grids.draw(_BOXES[self.size], _HIDDEN[self.size], rng)
            if split_of(clues) == self.split:
                return self._ask(clues, solution)

    def _ask(self, clues: str, solution: str) -> Problem:
        if self.prompt == "plain":
            return Problem(prompt=clues, reference=solution, metadata={"clues": clues})
        return Problem(SUDOKU_D1(clues), solution, {"clues": clues}, SUDOKU_D1.prefix)

    def write(self, problem: Problem, rng: np.random.Generator) -> str:
        """The solution the problem was made from."""
        if self.prompt == "plain":
            return problem.reference
        return f"\n</reasoning>\n<answer>\n{problem.reference}\n</answer>"

    def score(self, completion: str, problem: Problem) -> float:
        """1.0 for a valid grid that keeps every clue (white space is ignored), else 0.0."""
        digits = self._grid(completion)
        return float(grids.keeps(digits, problem.metadata["clues"]) and is_valid_grid(digits, self.size))

    def metrics(self, completion: str, problem: Problem) -> dict[str, float]:
        """``cell_accuracy``: share of the empty cells that equal the stored solution's."""
        share = grids.share_right(self._grid(completion), problem.metadata["clues"], problem.reference)
        return {"cell_accuracy": share}

    def _grid(self, completion: str) -> str:
        """The characters that are taken as the grid."""
        answer = completion if self.prompt == "plain" else _d1_answer(before_end(completion))
        return "".join(answer.split())


def _d1_answer(text: str) -> str:
    """What stands in ``<answer>``, else after ``</answer>``, else the last 16 digits in a row.

    d1 tries the same places, and takes the first 16 digits, which may be the question's.
    """
    answer = tagged(text)
    if answer is not None:
        return answer.strip("`\n ")
    after = text.rpartition("</answer>")
    if after[1] and after[2].strip():
        return after[2]
    runs = re.findall(r"(?<!\d)\d{16}(?!\d)", text)
    return runs[-1] if runs else ""


def is_valid_grid(digits: str, size: int) -> bool:
    """Whether every row, column and box of a row-major grid holds every digit once."""
    return grids.is_valid(digits, _BOXES[size])


def _read(path: Path, size: int) -> Sequence[tuple[str, str]]:
    pairs = []
    for place, row in file_rows(path):
        if not {"Puzzle", "Solution"} <= row.keys():
            break
        clues, solution = str(row["Puzzle"]), str(row["Solution"])
        if not (is_valid_grid(solution, size) and grids.keeps(solution, clues)):
            raise ValueError(f"{place}: {clues!r}, {solution!r} is no {size}x{size} Sudoku")
        pairs.append((clues, solution))
    if not pairs:
        raise ValueError(f"{path} has no rows with the columns Puzzle and Solution")
    return pairs
