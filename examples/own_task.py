"""A task of your own: problems and a scorer, on a dLLM that comes with the package.

Sudoku again, but with points for every row, column and box that is right: the score is what the reward is
made of, and an episode counts as solved at 1.

Run: ``python examples/own_task.py``
"""

import argparse

import numpy as np

import dllm_gym
from dllm_gym.tasks import Problem
from dllm_gym.tasks.base import check_index, check_split, problem_rng, split_of

GRID = np.array([[1, 2, 3, 4], [3, 4, 1, 2], [2, 1, 4, 3], [4, 3, 2, 1]])
CELLS = np.arange(16).reshape(4, 4)
BOXES = CELLS.reshape(2, 2, 2, 2).transpose(0, 2, 1, 3).reshape(4, 4)
LINES = np.concatenate([CELLS, CELLS.T, BOXES])  # (12, 4): which cells must hold four different digits


class PartialSudoku:
    """Implements ``dllm_gym.tasks.Task``. ``tiny-sudoku`` knows prompts of 16 digits, 0 for an empty cell."""

    name, completion_length, num_problems = "partial-sudoku", 16, None

    def __init__(self, split: str = "train", empty: int = 12) -> None:
        if not 1 <= empty <= 15:
            raise ValueError(f"empty must be 1 to 15, got {empty}")
        self.split, self.empty = check_split(split), empty

    def problem(self, index: int) -> Problem:
        rng = problem_rng(0, check_index(index, self.num_problems))  # the index alone decides
        while True:
            grid = rng.permutation([1, 2, 3, 4])[GRID - 1].flatten()  # other digits, the same pattern
            hidden = rng.choice(16, self.empty, replace=False)
            clues = "".join(map(str, np.where(np.isin(np.arange(16), hidden), 0, grid)))
            if split_of(clues) == self.split:  # a hash of the problem, so that no two splits share one
                return Problem(prompt=clues, reference="".join(map(str, grid)))

    def score(self, completion: str, problem: Problem) -> float:
        """Never raises, whatever the dLLM wrote."""
        if len(completion) != 16 or any(
            c not in ("0", d) for c, d in zip(problem.prompt, completion, strict=True)
        ):
            return 0.0  # no grid, or a clue was changed
        digits = np.array(list(completion))
        return float(np.mean([set(digits[line]) == set("1234") for line in LINES]))

    def metrics(self, completion: str, problem: Problem) -> dict[str, float]:
        return {"as_thought": float(completion == problem.reference)}  # there may be other solutions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=100)
    arguments = parser.parse_args()
    dllm_gym.register_task("partial-sudoku", PartialSudoku)
    for agent in ("random:k=8", "confidence:k=8", "fast-dllm:threshold=0.9"):
        result = dllm_gym.evaluate(
            agent,
            arguments.episodes,
            task="partial-sudoku",
            task_kwargs={"empty": 14},
            backend="tiny-sudoku",
        )
        print(
            f"{result.label:24} {result.nfe_mean:4.1f} steps, {result.accuracy:.2f} solved, "
            f"score {result.records.score.mean():.2f}"
        )


if __name__ == "__main__":
    main()
