"""Word problems whose answer is a written-out chain of equations.

A problem reads ``Sam has 20 coins, finds 4, loses 9, triples them. Total?`` and is answered by a
chain such as ``So 20 + 4 makes 24. 24 - 9 = 15. Next 15 * 3 is 45. #### 45``. Connectives and the
word for "equals" are free, everything else is forced: some tokens cannot be predicted before they
are written and do not matter, others follow from what is already on the canvas.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from dllm_gym.tasks.base import Problem, check_index, check_split, problem_rng, split_of

_NAMES = ("Sam", "Mia", "Leo", "Ana", "Tom", "Zoe", "Max", "Eva")
_OBJECTS = ("coins", "apples", "books", "cards", "shells", "pens")
_VERBS = {
    "+": ("finds", "buys", "gets", "wins"),
    "-": ("loses", "sells", "spends", "eats"),
    "*2": ("doubles",),
    "*3": ("triples",),
    "/2": ("halves",),
}
_CONNECTIVES = ("So", "Then", "Next", "Now")
_EQUALS = ("=", "is", "makes", "gives", "equals")
_NO_CONNECTIVE = 0.3  # share of steps written without a connective

_NUMBER = r"(0|[1-9]\d*)"
_STEP = re.compile(
    rf"(?:(?:{'|'.join(_CONNECTIVES)})\s+)?{_NUMBER}\s*([-+*/])\s*{_NUMBER}\s*"
    rf"(?:{'|'.join(_EQUALS)})\s*{_NUMBER}\s*\.\s*"
)
_ANSWER = re.compile(rf"####\s*{_NUMBER}\s*")

Step = tuple[str, int, int]  # operator, right operand, result


class ArithmeticTask:
    """Chains of additions, subtractions, doublings, triplings and halvings within 1 to 99.

    The scorer checks the **whole derivation**: every equation true, every left side the previous
    result, operators and operands those of the problem in order, the final answer the last result.
    A right number after a wrong chain scores 0; it shows in the metric ``answer_correct``.

    Args:
        split: ``train``, ``validation`` or ``test``. A problem's split is a hash of its numbers, so
            no two splits share a problem even under other names.
        seed: Another seed is another sequence of problems.
        two_digit_share: Share of additions and subtractions whose operand may have two digits; more of
            them make harder problems.
        max_steps: A problem has 2 to this many operations; at most 8. More than 5 get a longer canvas.
        direct_share: Share of the completions to learn from that give the answer alone, ``#### 45``. Above 0
            the answer alone is right, too; without a derivation it is hard to find.
        length: Positions to answer in, where not those of ``max_steps``; more of them.

    Raises:
        ValueError: For an unknown split, a share outside [0, 1], another number of steps, or fewer positions.
    """

    name = "arithmetic"
    num_problems = None
    vocabulary = (
        *"0123456789",
        *("+", "-", "*", "/", "=", ".", ",", "?", "####"),
        *_EQUALS[1:],
        *_CONNECTIVES,
        *("has", "them", "Total"),
        *_NAMES,
        *_OBJECTS,
        *(verb for verbs in _VERBS.values() for verb in verbs),
    )

    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        two_digit_share: float = 0.15,
        max_steps: int = 5,
        direct_share: float = 0.0,
        length: int | None = None,
    ) -> None:
        for name, share in (("two_digit_share", two_digit_share), ("direct_share", direct_share)):
            if not 0.0 <= share <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {share!r}")
        if max_steps not in range(2, 9):
            raise ValueError(f"max_steps must be a whole number from 2 to 8, got {max_steps!r}")
        self.split = check_split(split)
        self.seed = seed
        self.two_digit_share = two_digit_share
        self.max_steps = int(max_steps)
        self.direct_share = direct_share
        # 8 and more keep nearly every chain that is drawn; 48 refuses most of those with 5 operations
        self._longest = 48 if max_steps <= 5 else 8 * (self.max_steps + 2)
        self.completion_length = self._longest if length is None else length
        if not (isinstance(self.completion_length, int) and self.completion_length >= self._longest):
            raise ValueError(f"length must be a whole number of at least {self._longest}, got {length!r}")

    def problem(self, index: int) -> Problem:
        """Problem ``index`` of the split. ``metadata``: ``start`` and ``steps`` (op, operand, result)."""
        settings = (self.seed, self.split, self.two_digit_share, self.max_steps, self._longest)
        return _problem(*settings, check_index(index, None))

    def write(self, problem: Problem, rng: np.random.Generator) -> str:
        """A correct chain, connectives and equality words drawn uniformly; or the answer alone."""
        if self.direct_share and rng.random() < self.direct_share:
            return f"#### {problem.reference}"
        value, words = problem.metadata["start"], []
        for op, operand, result in problem.metadata["steps"]:
            if rng.random() >= _NO_CONNECTIVE:
                words.append(_pick(_CONNECTIVES, rng))
            words.append(f"{value} {op} {operand} {_pick(_EQUALS, rng)} {result}.")
            value = result
        return " ".join(words) + f" #### {value}"

    def score(self, completion: str, problem: Problem) -> float:
        """1.0 if the whole derivation is right, or the answer alone where there are such, else 0.0."""
        text, position, value = completion.strip(), 0, problem.metadata["start"]
        if self.direct_share and (direct := _ANSWER.fullmatch(text)):
            return float(direct[1] == problem.reference)
        for op, operand, result in problem.metadata["steps"]:
            match = _STEP.match(text, position)
            if match is None or match.groups() != (str(value), op, str(operand), str(result)):
                return 0.0
            value, position = result, match.end()
        answer = _ANSWER.fullmatch(text, position)
        return float(answer is not None and answer[1] == problem.reference)

    def metrics(self, completion: str, problem: Problem) -> dict[str, float]:
        """``answer_correct``: 1.0 if the first number after ``####`` is right, whatever the chain."""
        answer = _ANSWER.search(completion)
        return {"answer_correct": float(answer is not None and answer[1] == problem.reference)}


# comparing many agents on the same problems draws each only once; those of a small split take many trials
@lru_cache(maxsize=4096)
def _problem(
    seed: int, split: str, two_digit_share: float, max_steps: int, longest: int, index: int
) -> Problem:
    rng = problem_rng(seed, index)
    num_steps = int(rng.integers(2, max_steps + 1))
    while True:
        start, steps = _draw_chain(num_steps, two_digit_share, rng)
        content = f"{start} " + " ".join(f"{op}{operand}" for op, operand, _ in steps)
        if _longest_wording(start, steps) < longest and split_of(content) == split:
            break
    clauses = [f"{_pick(_NAMES, rng)} has {start} {_pick(_OBJECTS, rng)}"]
    for op, operand, _ in steps:
        if op in "+-":
            clauses.append(f"{_pick(_VERBS[op], rng)} {operand}")
        else:
            clauses.append(f"{_VERBS[f'{op}{operand}'][0]} them")
    return Problem(
        prompt=", ".join(clauses) + ". Total?",
        reference=str(steps[-1][2]),
        metadata={"start": start, "steps": tuple(steps)},
    )


def _pick(words: Sequence[str], rng: np.random.Generator) -> str:
    """What ``rng.choice`` picks, without making an array first."""
    return words[int(rng.integers(len(words)))]


def _draw_chain(num_steps: int, two_digit_share: float, rng: np.random.Generator) -> tuple[int, list[Step]]:
    start = value = int(rng.integers(1, 100))
    steps: list[Step] = []
    for _ in range(num_steps):
        op, operand = _draw_operation(value, two_digit_share, rng)
        value = {"+": value + operand, "-": value - operand, "*": value * operand, "/": value // operand}[op]
        steps.append((op, operand, value))
    return start, steps


def _draw_operation(value: int, two_digit_share: float, rng: np.random.Generator) -> tuple[str, int]:
    """An operation whose result stays within 1 to 99."""
    possible = ["+"] * 3 * (value < 99) + ["-"] * 3 * (value > 1)
    possible += ["*2"] * (value <= 49) + ["*3"] * (value <= 33) + ["/2"] * (value % 2 == 0)
    choice = _pick(possible, rng)
    if choice not in "+-":
        return choice[0], int(choice[1])
    largest = 99 - value if choice == "+" else value - 1
    if rng.random() >= two_digit_share:
        largest = min(largest, 9)
    return choice, int(rng.integers(1, largest + 1))


def _longest_wording(start: int, steps: list[Step]) -> int:
    """Tokens of the longest correct completion: a connective in every step, a token per digit."""
    tokens, value = 0, start
    for _, operand, result in steps:
        tokens += 4 + len(f"{value}{operand}{result}")
        value = result
    return tokens + 1 + len(str(value))
