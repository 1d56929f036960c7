"""The scores of ParallelBench (arXiv 2510.04767), where they are functions of two texts.

Written anew from what the published ones do: what they let pass passes here, and nothing else does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Scorer = Callable[[str, Any, bool], bool]

_SUDOKU_ROWS = 4
# A quotation mark alone is taken for an empty name
_QUOTED = re.compile(r'"(?:[^"]*")?')


def _of_list(right: Callable[[list[str], Any], bool]) -> Scorer:
    """A scorer of completions from one of lists."""

    def scorer(completion: str, answer: Any, strict: bool) -> bool:
        line = _listed(completion, strict)
        return line is not None and right(line, answer)

    return scorer


def _listed(text: str, strict: bool) -> list[str] | None:
    """The names between the last ``[`` and the ``]`` after it; without either, from or to the text's end.

    Quotation marks and blanks around a name don't count, and neither do blank names. If ``strict``, there
    must be both brackets, a comma and one blank between names, and quotation marks around each; else it is
    ``None``.
    """
    _, opened, rest = text.rpartition("[")
    inner, closed, _ = rest.partition("]")
    if not strict:
        return [name.strip('" ') for name in inner.split(",") if name.strip()]
    names = inner.split(", ")
    if not (opened and closed and all(_QUOTED.fullmatch(name) for name in names)):
        return None
    return [name[1:-1] for name in names]


def _same(line: list[str], answer: str) -> bool:
    return line == _listed(answer, strict=False)


def _shuffled(line: list[str], answer: Mapping[str, Any]) -> bool:
    before: list[str] = answer["input"]
    return sorted(line) == sorted(before) and line != before


def _inserted(line: list[str], answer: Mapping[str, Any]) -> bool:
    before: list[str] = answer["input"]
    return _without(line, answer["word"]) == before


def _removed(line: list[str], answer: Mapping[str, Any]) -> bool:
    gone = set(answer["input"]) - set(line)
    return len(gone) == 1 and line == _without(answer["input"], gone.pop())


def _replaced(line: list[str], answer: Mapping[str, Any]) -> bool:
    before, word = answer["input"], answer["word"]
    if word not in line or len(line) != len(before):
        return False
    at = line.index(word)
    return line == [*before[:at], word, *before[at + 1 :]]


def _without(line: Sequence[str], word: str) -> list[str] | None:
    """A line without a word, where it comes first; ``None`` if it does not."""
    if word not in line:
        return None
    at = line.index(word)
    return [*line[:at], *line[at + 1 :]]


def _latin_square(completion: str, answer: Mapping[str, Any], strict: bool) -> bool:
    """Whether the columns of the first rows that have all symbols, parted by commas, have them all, too.

    Lines between them don't count, and neither does a cell too many, as columns end with the shortest row.
    """
    symbols = set(answer["symbols"])
    lines = ([cell.strip() for cell in line.split(",")] for line in completion.split("\n"))
    rows = [cells for cells in lines if set(cells) == symbols][: len(symbols)]
    return len(rows) == len(symbols) and all(set(column) == symbols for column in zip(*rows, strict=False))


def _sudoku(completion: str, answer: str, strict: bool) -> bool:
    grid = _grid(completion, strict)
    return grid is not None and grid == _grid(answer, strict=True)


def _grid(text: str, strict: bool) -> list[list[int]] | None:
    """The digits of the lines that have four; if there are other than four such lines it is ``None``.

    If ``strict``, also if there is anything else.
    """
    lines = [line.strip() for line in text.split("\n")]
    found = (re.findall(r"\d", line) for line in lines)
    rows = [[int(digit) for digit in digits] for digits in found if len(digits) == _SUDOKU_ROWS]
    clean = all(re.fullmatch(r"\d{4}", line) for line in lines if line)
    return rows if len(rows) == _SUDOKU_ROWS and (clean or not strict) else None


# By the name of the published one: of a completion, an answer and whether to be strict, whether it is right.
SCORERS: dict[str, Scorer] = {
    "list_match_score": _of_list(_same),
    "list_shuffle_score": _of_list(_shuffled),
    "list_random_insert_score": _of_list(_inserted),
    "list_random_remove_score": _of_list(_removed),
    "list_random_replace_score": _of_list(_replaced),
    "latin_square_score": _latin_square,
    "sudoku_score": _sudoku,
}
