"""What reasoning is worth on Latin squares: two agents that know the rules of the puzzle and doubt nothing.

Both go through the cells, the surest first, and write what the dLLM would write there unless it breaks
something: ``pairs`` a row or column that has the digit already, ``squares`` the square, which must still be
completable. The first is what can be said by pairs of positions, the second what there is to know.

Run: ``python benchmarks/latin_logic.py``
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dllm_gym
from dllm_gym.evaluation import EvaluationResult
from dllm_gym.suite import SUITE

SIZE = 4
CLUE = 0.99  # surer than that of a masked cell is the dLLM where the prompt has its digit


def latin_squares() -> NDArray[np.int64]:
    """All squares of the numbers 0 to 3, ``(576, 16)``."""
    lines = list(permutations(range(SIZE)))
    squares: list[tuple[tuple[int, ...], ...]] = [()]
    for _ in range(SIZE):
        squares = [
            (*rows, line) for rows in squares for line in lines
            if all(a != b for row in rows for a, b in zip(row, line, strict=True))
        ]  # fmt: skip
    return np.array(squares).reshape(-1, SIZE * SIZE)


class Logic:
    """Reveals whatever, by its rule, is in nobody's way; the surest cell where nothing is sure enough."""

    requires = ("predicted",)

    def __init__(self, rule: str, threshold: float, first_digit: int) -> None:
        self.label = f"{rule} (threshold {threshold:g})"
        self.rule, self.threshold, self.first_digit = rule, threshold, first_digit
        self.squares = latin_squares()
        cells = np.arange(SIZE * SIZE)
        row, column = cells // SIZE, cells % SIZE
        self.sees = (row[:, None] == row) | (column[:, None] == column)
        np.fill_diagonal(self.sees, False)

    def act(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.int8]:
        """The cells to reveal, ``(B, 16)``."""
        rows = zip(*(observation[key] for key in ("predicted", "confidence", "action_mask")), strict=True)
        return np.stack([self._of_row(tokens - self.first_digit, *rest) for tokens, *rest in rows])

    def _of_row(
        self, digits: NDArray[np.int64], confidence: NDArray[np.float32], masked: NDArray[np.int8]
    ) -> NDArray[np.int8]:
        known = (masked == 0) | (confidence >= CLUE)
        left = self.squares[(self.squares[:, known] == digits[known]).all(-1)]
        bits = (known & (masked == 1)).astype(np.int8)
        for cell in sorted(np.flatnonzero(~known), key=lambda cell: -confidence[cell]):
            if confidence[cell] < self.threshold:
                break
            after = left[left[:, cell] == digits[cell]]
            fits = len(after) > 0 if self.rule == "squares" else self._fits(cell, digits, known)
            if fits:
                left, known[cell], bits[cell] = after, True, 1
        if masked.any() and not bits.any():
            bits[max(np.flatnonzero(masked), key=lambda cell: confidence[cell])] = 1
        return bits

    def _fits(self, cell: int, digits: NDArray[np.int64], known: NDArray[np.bool_]) -> bool:
        return not (digits[known & self.sees[cell]] == digits[cell]).any()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=300, help="test problems")
    parser.add_argument("--thresholds", type=float, nargs="*", default=[0.0, 0.5, 0.7])
    given = parser.parse_args(arguments)
    member = next(one for one in SUITE if one.name == "LatinSquare4")
    tokenizer = dllm_gym.load_backend(member.backend).tokenizer
    (first,) = tokenizer.encode("1")
    print("agent, reward, accuracy @ steps")
    for rule in ("squares", "pairs"):
        for threshold in given.thresholds:
            agent = Logic(rule, threshold, first)
            result: EvaluationResult = dllm_gym.evaluate(agent, given.episodes, **member.env)
            print(f"{agent.label}, {result.reward_mean:.3f}, {result.accuracy:.3f} @ {result.nfe_mean:.1f}")


if __name__ == "__main__":
    main()
