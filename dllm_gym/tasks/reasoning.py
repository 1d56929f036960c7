"""Procedural problems of the package reasoning-gym."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from dllm_gym.tasks.base import Problem, check_index, check_split, problem_rng, split_of
from dllm_gym.tasks.scoring.answers import before_end, tagged

# Data sets that are refused, and why (reasoning-gym 0.1.25, module in brackets).
DENIED = {
    "binary_matrix": "its scorer hands the answer to Python's eval (algorithmic/binary_matrix.py)",
    "spiral_matrix": "its scorer hands the answer to Python's eval (algorithmic/spiral_matrix.py)",
    "string_insertion": "its scorer hands the answer to Python's eval (algorithmic/string_insertion.py)",
    "n_queens": "its scorer hands the answer to Python's eval (games/n_queens.py)",
    "puzzle24": "its scorer hands the answer to sympy.parse_expr, which is Python's eval (games/puzzle24.py)",
    "countdown": "its scorer hands the answer to sympy.parse_expr, which is Python's eval "
    "(games/countdown.py); use the task 'countdown'",
    "simple_integration": "its scorer hands the answer to sympy.parse_expr, which is Python's eval "
    "(algebra/simple_integration.py)",
    "intermediate_integration": "its scorer hands the answer to sympy.parse_expr, which is Python's eval "
    "(algebra/intermediate_integration.py)",
    "polynomial_multiplication": "its scorer hands the answer to sympy.parse_expr, which is Python's eval "
    "(algebra/polynomial_multiplication.py)",
    "codeio": "it runs programs out of its data file with Python's exec (code/codeio.py)",
    "composite": "it scores with other data sets, which may be denied ones (composite.py)",
    "coin_flip": "its scorer takes for ever on an answer such as 1e999999999 (probability/coin_flip.py)",
    "rubiks_cube": "its scorer repeats a move as often as the answer says, such as U999999999, until memory "
    "is full (cognition/rubiks_cube.py)",
    "rush_hour": "its scorer moves a car as far as the answer says, such as F+99999999, one step at a time "
    "(games/rush_hour.py)",
    "complex_arithmetic": "its scorer accepts the answer nan (algebra/complex_arithmetic.py)",
    "game_of_life_halting": "its scorer accepts any answer (algorithmic/game_of_life_halting.py)",
}
_ASK = "\n\nGive the final answer between <answer> and </answer>."
_MAX_LENGTH = 4000  # characters of an answer
_MAX_DRAWS = 2000


class ReasoningGymTask:
    """A data set of reasoning-gym, by name: ``reasoning-gym:chain_sum``.

    Args:
        split: ``train``, ``validation`` or ``test``. A problem's split is a hash of its question.
        dataset: Name of the data set, the part after the colon of the task's name.
        seed: Another seed is another sequence of problems.
        config: The data set's own parameters.

    Raises:
        ValueError: For an unknown or denied data set (``DENIED`` says why), or a wrong parameter.
        ImportError: If the extra ``reasoning-gym`` is not installed.
    """

    num_problems = None
    completion_length = 256

    def __init__(
        self,
        split: str = "train",
        dataset: str = "",
        seed: int = 0,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.split = check_split(split)
        self.seed = seed
        self.name = f"reasoning-gym:{dataset}"
        if dataset in DENIED:
            raise ValueError(f"reasoning-gym's {dataset!r} is refused: {DENIED[dataset]}")
        try:
            from reasoning_gym.factory import DATASETS, create_dataset
        except ImportError as error:
            raise ImportError(
                f"task {self.name!r} needs the package reasoning-gym: pip install 'dllm-gym[reasoning-gym]'"
            ) from error
        if dataset not in DATASETS:
            known = ", ".join(sorted(set(DATASETS) - set(DENIED)))
            raise ValueError(f"unknown data set {dataset!r} of reasoning-gym; known: {known}")
        self._make = partial(create_dataset, dataset, size=1, **(config or {}))
        try:
            self._scorer = self._make(seed=0)
        except (TypeError, AssertionError) as error:
            raise ValueError(f"{self.name}: {error}") from error

    def problem(self, index: int) -> Problem:
        """Problem ``index`` of the split. ``metadata``: ``entry``, reasoning-gym's own record.

        Drawn again until the split is right, about 20 times for ``test``: slow for some data sets.
        """
        rng = problem_rng(self.seed, check_index(index, None))
        for _ in range(_MAX_DRAWS):
            entry = self._make(seed=int(rng.integers(2**31)))[0]
            if split_of(entry["question"]) == self.split:
                return Problem(entry["question"] + _ASK, str(entry["answer"]), {"entry": entry})
        raise ValueError(f"{self.name} has no {self.split} problem among {_MAX_DRAWS} that were drawn")

    def score(self, completion: str, problem: Problem) -> float:
        """What reasoning-gym's scorer gives the text in ``<answer>``; many give a wrong answer a little."""
        answer = tagged(before_end(completion))
        if answer is None or len(answer) > _MAX_LENGTH:
            return 0.0
        try:
            score = float(self._scorer.score_answer(answer, problem.metadata["entry"]))
        except Exception:  # whatever a scorer makes of text that nobody thought of
            return 0.0
        return min(max(score, 0.0), 1.0) if math.isfinite(score) else 0.0

    def metrics(self, completion: str, problem: Problem) -> dict[str, float]:
        """``answered``: 1.0 if there is something in ``<answer>``."""
        return {"answered": float(tagged(before_end(completion)) is not None)}
