"""Latin squares with many solutions: the prompt is the clues, the completion the square, both row by row."""

from __future__ import annotations

import numpy as np

from dllm_gym.tasks import grids
from dllm_gym.tasks.base import Problem, check_index, check_split, problem_rng, split_of

_SIZES = (4, 5)


class LatinSquareTask:
    """A square to be filled so that no row and no column holds a digit twice; every way to do it is right.

    Five in eight cells or more are empty, up to all but two, so that most problems have many solutions: a
    cell's digit is uncertain until others are written, and those that are written at once must belong to
    the same solution.

    Args:
        split: ``train``, ``validation`` or ``test``. A problem's split is a hash of its clues.
        seed: Another seed is another sequence of problems.
        size: 4 or 5.

    Raises:
        ValueError: For an unknown split or size.
    """

    name = "latin-square"
    num_problems = None
    vocabulary = tuple("012345")

    def __init__(self, split: str = "train", seed: int = 0, size: int = 4) -> None:
        if size not in _SIZES:
            raise ValueError(f"latin-square size {size!r} is not supported; choose one of {list(_SIZES)}")
        self.split = check_split(split)
        self.seed = seed
        self.size = size
        self.completion_length = self.shortest_completion = size * size

    def problem(self, index: int) -> Problem:
        """Problem ``index`` of the split. ``metadata``: ``clues``, a string of digits with 0 = empty."""
        rng = problem_rng(self.seed, check_index(index, None))
        cells = self.size**2
        while True:
            clues, solution = grids.draw((1, self.size), (5 * cells // 8, cells - 2), rng)
            if split_of(clues) == self.split:
                return Problem(prompt=clues, reference=solution, metadata={"clues": clues})

    def write(self, problem: Problem, rng: np.random.Generator) -> str:
        """The solution the problem was made from."""
        return problem.reference

    def score(self, completion: str, problem: Problem) -> float:
        """1.0 for a Latin square that keeps every clue (white space is ignored), else 0.0."""
        digits = "".join(completion.split())
        return float(
            grids.keeps(digits, problem.metadata["clues"]) and grids.is_valid(digits, (1, self.size))
        )

    def metrics(self, completion: str, problem: Problem) -> dict[str, float]:
        """``cell_accuracy``: share of the empty cells that equal the stored solution's."""
        digits = "".join(completion.split())
        return {"cell_accuracy": grids.share_right(digits, problem.metadata["clues"], problem.reference)}
