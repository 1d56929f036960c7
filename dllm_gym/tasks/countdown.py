"""Countdown: make the target out of three numbers, each used exactly once."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import permutations
from operator import add, mul, sub
from pathlib import Path

from dllm_gym.tasks.base import Problem, check_index, check_split, problem_rng, split_of
from dllm_gym.tasks.data import HUB, Row, read_rows, refuse_test_file, rows_of_split, text_in, whole_number
from dllm_gym.tasks.forms import COUNTDOWN_D1
from dllm_gym.tasks.scoring.answers import EQUALS, before_end, boxes, tagged, without_markup
from dllm_gym.tasks.scoring.expression import evaluate

_COUNT, _LARGEST = 3, 100
_ORDERS = tuple(permutations(range(_COUNT)))
_OPERATIONS: tuple[tuple[str, Callable[[Fraction, Fraction], Fraction | None]], ...] = (
    ("+", add),
    ("-", sub),
    ("*", mul),
    ("/", lambda a, b: a / b if b else None),
)
# drawn below these: the numbers, their order, two operations, and whether the first pair stands left
_BOUNDS = (*[_LARGEST] * _COUNT, len(_ORDERS), len(_OPERATIONS), len(_OPERATIONS), 2)
_TOLERANCE = Fraction(1, 10**5)
_FILES = {
    "test": ("countdown_cd3_test.jsonl", "*countdown*test*.jsonl"),
    "train": (
        "*countdown*train*.jsonl",
        "*countdown*train*.parquet",
        "train*.parquet",
        "data/train*.parquet",
    ),
}

_Row = tuple[tuple[int, ...], int]


class CountdownTask:
    """Three whole numbers and a target, asked and checked as in dllm-reasoning/d1.

    Every right expression scores, not only the reference.

    Args:
        split: ``train``, ``validation`` or ``test``. A generated problem's split is a hash of its numbers
            (in any order) and target; of a file ``test`` takes all, ``train`` and ``validation`` divide it.
        seed: Another seed is another sequence of generated problems. Without meaning for ``data``.
        data: ``None`` generates problems without end, numbers and targets up to 100. Path of a file with
            the columns ``input`` (``30,100,93``) and ``output`` (d1's test set) or ``nums`` and ``target``;
            rows with more or fewer than three numbers are left out, as d1 does. ``"hub"`` for
            Jiayi-Pan/Countdown-Tasks-3to4, which is training data.

    Raises:
        ValueError: For an unknown split, a malformed file, or the hub's data as a test split.
        FileNotFoundError: If ``data`` does not exist.
    """

    name = "countdown"
    completion_length = 256

    def __init__(self, split: str = "train", seed: int = 0, data: str | Path | None = None) -> None:
        self.split = check_split(split)
        self.seed = seed
        self._rows: list[_Row] | None = None
        if data is not None:
            refuse_test_file(data, split)
            self._rows = rows_of_split(_read(data, split), split, _content)
        self.num_problems = None if self._rows is None else len(self._rows)

    def problem(self, index: int) -> Problem:
        """Problem ``index``. ``metadata``: ``numbers`` and ``target``.

        ``reference`` is an expression if the problem was generated, else the target.
        """
        index = check_index(index, self.num_problems)
        if self._rows is not None:
            numbers, target = self._rows[index]
            reference = str(target)
        else:
            numbers, target, reference = self._draw(index)
        question = f"Numbers: {list(numbers)}\nTarget: {target}"
        metadata = {"numbers": numbers, "target": target}
        return Problem(COUNTDOWN_D1(question), reference, metadata, COUNTDOWN_D1.prefix)

    def _draw(self, index: int) -> tuple[tuple[int, ...], int, str]:
        rng = problem_rng(self.seed, index)
        while True:
            # by the dozen, for most make no whole number within reach, and of those few are of a small split
            for *drawn, order, first, second, left in rng.integers(_BOUNDS, size=(64, len(_BOUNDS))).tolist():
                numbers = tuple(n + 1 for n in drawn)
                a, b, c = (numbers[i] for i in _ORDERS[order])
                inner = _OPERATIONS[first][1](Fraction(a), Fraction(b))
                if inner is None:
                    continue
                sign, operation = _OPERATIONS[second]
                value = operation(inner, Fraction(c)) if left else operation(Fraction(c), inner)
                if value is None or value.denominator != 1 or not 1 <= value <= _LARGEST:
                    continue
                if split_of(_content((numbers, int(value)))) == self.split:
                    inside = f"({a} {_OPERATIONS[first][0]} {b})"
                    return numbers, int(value), f"{inside} {sign} {c}" if left else f"{c} {sign} {inside}"

    def score(self, completion: str, problem: Problem) -> float:
        """1.0 if the expression has the target as value and every number exactly once, else 0.0.

        The last box counts, without one the text in ``<answer>``; what follows an equals sign or an
        arrow is left out, and so are the marks of emphasis, code and formulas.
        """
        computed = evaluate(_expression(completion))
        if computed is None:
            return 0.0
        value, used = computed
        numbers, target = problem.metadata["numbers"], problem.metadata["target"]
        return float(sorted(used) == sorted(numbers) and abs(value - target) < _TOLERANCE)

    def metrics(self, completion: str, problem: Problem) -> dict[str, float]:
        """``answered``: there is an expression; ``numbers_used``: it has every number exactly once."""
        computed = evaluate(_expression(completion))
        used = computed is not None and sorted(computed[1]) == sorted(problem.metadata["numbers"])
        return {"answered": float(computed is not None), "numbers_used": float(used)}


def _expression(completion: str) -> str:
    text = before_end(completion)
    found = boxes(text)
    answer = found[-1] if found else tagged(text) or ""
    return EQUALS.split(without_markup(answer))[0].strip(" .")


def _read(data: str | Path, split: str) -> list[_Row]:
    if data == HUB and split == "test":
        raise ValueError(
            "the hub has no test set of Countdown; give the path of d1's countdown_cd3_test.jsonl"
        )
    rows = read_rows(
        "countdown",
        data,
        _parse,
        hub="Jiayi-Pan/Countdown-Tasks-3to4",
        hub_split="train",
        files=_FILES["test" if split == "test" else "train"],
    )
    three = [row for row in rows if len(row[0]) == _COUNT]
    if not three:
        raise ValueError(f"{data} has no problems with {_COUNT} numbers")
    return three


def _parse(row: Row) -> _Row:
    if "nums" in row:
        return tuple(whole_number(n) for n in row["nums"]), whole_number(row["target"])
    return tuple(int(n) for n in text_in(row, "input").split(",")), whole_number(row["output"])


def _content(row: _Row) -> str:
    return f"{sorted(row[0])} {row[1]}"
