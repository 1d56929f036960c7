"""Sudoku: the prompt is the clues, the completion the grid, both row by row without separators."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dllm_gym.tasks.base import Problem, check_index, check_split, problem_rng, split_of

_BOXES = {4: (2, 2), 6: (2, 3)}  # size -> rows and columns of a box


class SudokuTask:
    """4x4 or 6x6 Sudoku; every valid grid that keeps the clues is right, unique or not.

    Args:
        split: ``train``, ``validation`` or ``test``. A problem's split is a hash of its clues.
        seed: Another seed is another sequence of problems. Without meaning for ``data``.
        size: 4 or 6.
        data: Path of a CSV file with columns ``Puzzle`` and ``Solution`` (0 = empty), as in
            dllm-reasoning/d1. Its problems then replace the generated ones, in file order, as a ``test``
            split.

    Raises:
        ValueError: For an unknown split or size, or a malformed file.
        FileNotFoundError: If ``data`` does not exist.
    """

    name = "sudoku"
    vocabulary = tuple("0123456789")

    def __init__(
        self, split: str = "train", seed: int = 0, size: int = 4, data: str | Path | None = None
    ) -> None:
        if size not in _BOXES:
            raise ValueError(f"sudoku size {size!r} is not supported; choose one of {sorted(_BOXES)}")
        self.split = check_split(split)
        if data is not None and split != "test":
            raise ValueError(f"a data file holds test problems; use split='test' instead of {split!r}")
        self.seed = seed
        self.size = size
        self.completion_length = size * size
        self._rows = None if data is None else _read_csv(Path(data), size)
        self.num_problems = None if self._rows is None else len(self._rows)

    def problem(self, index: int) -> Problem:
        """Problem ``index`` of the split. ``metadata``: ``clues``, a string of digits with 0 = empty."""
        index = check_index(index, self.num_problems)
        if self._rows is not None:
            clues, solution = self._rows[index]
            return Problem(prompt=clues, reference=solution, metadata={"clues": clues})
        rng = problem_rng(self.seed, index)
        cells = self.size**2
        while True:
            grid = _draw_grid(self.size, rng)
            hidden = rng.choice(cells, size=int(rng.integers(cells // 4, 3 * cells // 4 + 1)), replace=False)
            shown = grid.copy()
            shown[hidden] = 0
            clues = "".join(map(str, shown))
            if split_of(clues) == self.split:
                return Problem(prompt=clues, reference="".join(map(str, grid)), metadata={"clues": clues})

    def write(self, problem: Problem, rng: np.random.Generator) -> str:
        """The solution the problem was made from."""
        return problem.reference

    def score(self, completion: str, problem: Problem) -> float:
        """1.0 for a valid grid that keeps every clue (white space is ignored), else 0.0."""
        digits = "".join(completion.split())
        return float(_keeps(digits, problem.metadata["clues"]) and is_valid_grid(digits, self.size))

    def metrics(self, completion: str, problem: Problem) -> dict[str, float]:
        """``cell_accuracy``: share of the empty cells that equal the stored solution's."""
        digits = "".join(completion.split())
        empty = [i for i, clue in enumerate(problem.metadata["clues"]) if clue == "0"]
        right = sum(digits[i : i + 1] == problem.reference[i] for i in empty)
        return {"cell_accuracy": right / max(len(empty), 1)}


def is_valid_grid(digits: str, size: int) -> bool:
    """Whether every row, column and box of a row-major grid holds every digit once."""
    if len(digits) != size * size or not set(digits) <= set("123456789"[:size]):
        return False
    grid = np.array([int(digit) for digit in digits]).reshape(size, size)
    height, width = _BOXES[size]
    boxes = (
        grid.reshape(size // height, height, size // width, width).transpose(0, 2, 1, 3).reshape(size, size)
    )
    return all(len(set(line)) == size for lines in (grid, grid.T, boxes) for line in lines.tolist())


def _draw_grid(size: int, rng: np.random.Generator) -> np.ndarray:
    """A random valid grid, row-major: fill cell by cell in random digit order, step back when stuck."""
    height, width = _BOXES[size]
    grid = np.zeros(size * size, dtype=int)

    def fill(cell: int) -> bool:
        if cell == size * size:
            return True
        row, column = divmod(cell, size)
        square = grid.reshape(size, size)
        top, left = row - row % height, column - column % width
        used = {*square[row], *square[:, column], *square[top : top + height, left : left + width].ravel()}
        for digit in rng.permutation(size) + 1:
            if digit not in used:
                grid[cell] = digit
                if fill(cell + 1):
                    return True
        grid[cell] = 0
        return False

    fill(0)
    return grid


def _read_csv(path: Path, size: int) -> Sequence[tuple[str, str]]:
    pairs = []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        for row in reader:
            if not {"Puzzle", "Solution"} <= row.keys():
                break
            clues, solution = row["Puzzle"] or "", row["Solution"] or ""  # None where the row is short
            if not (is_valid_grid(solution, size) and _keeps(solution, clues)):
                raise ValueError(
                    f"{path}, line {reader.line_num}: {clues!r}, {solution!r} is no {size}x{size} Sudoku"
                )
            pairs.append((clues, solution))
    if not pairs:
        raise ValueError(f"{path} has no rows with the columns Puzzle and Solution")
    return pairs


def _keeps(digits: str, clues: str) -> bool:
    return len(digits) == len(clues) and all(c in ("0", d) for d, c in zip(digits, clues, strict=True))
