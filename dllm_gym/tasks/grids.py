"""Square grids in which no row, column or box holds a digit twice; row-major, as text or as an array."""

from __future__ import annotations

import numpy as np

Box = tuple[
    int, int
]  # rows and columns; a grid is as wide as a box has cells. One row: boxes ask for nothing


def is_valid(digits: str, box: Box) -> bool:
    """Whether every row, column and box of a row-major grid holds every digit once."""
    height, width = box
    size = height * width
    if len(digits) != size * size or not set(digits) <= set("123456789"[:size]):
        return False
    grid = np.array([int(digit) for digit in digits]).reshape(size, size)
    boxes = (
        grid.reshape(size // height, height, size // width, width).transpose(0, 2, 1, 3).reshape(size, size)
    )
    return all(len(set(line)) == size for lines in (grid, grid.T, boxes) for line in lines.tolist())


def keeps(digits: str, clues: str) -> bool:
    """Whether a grid has every clue where it stands; 0 is no clue."""
    return len(digits) == len(clues) and all(c in ("0", d) for d, c in zip(digits, clues, strict=True))


def share_right(digits: str, clues: str, solution: str) -> float:
    """Share of the empty cells that equal the solution's."""
    empty = [i for i, clue in enumerate(clues) if clue == "0"]
    return sum(digits[i : i + 1] == solution[i] for i in empty) / max(len(empty), 1)


def draw(box: Box, hidden: tuple[int, int], rng: np.random.Generator) -> tuple[str, str]:
    """Clues and their solution: a random valid grid of which some cells are hidden.

    Args:
        box: Of the grid.
        hidden: The fewest and the most cells to hide.
        rng: Draws grid, number and cells.
    """
    grid = _draw_grid(box, rng)
    number = int(rng.integers(hidden[0], hidden[1] + 1))
    shown = grid.copy()
    shown[rng.choice(len(grid), size=number, replace=False)] = 0
    return "".join(map(str, shown)), "".join(map(str, grid))


def _draw_grid(box: Box, rng: np.random.Generator) -> np.ndarray:
    """A random valid grid, row-major: fill cell by cell in random digit order, step back when stuck."""
    height, width = box
    size = height * width
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
