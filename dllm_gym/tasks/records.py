"""Orders told in a sentence, to be written as JSON: forced tokens, free ones, and free ones that must agree.

``Mia wants 3 pens and 2 cups.`` is answered by a record of always the same fields. Braces, keys and quotes
are forced, names and counts are copied, the total is the counts' sum. The rest is free. Most words of the
note may be chosen one by one, but the order's number stands in two places, and greeting and thanks are of
one language: those tokens are as uncertain, and must not be written at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from dllm_gym.tasks.base import Problem, check_index, check_split, problem_rng, split_of

_NAMES = ("Ana", "Ben", "Eva", "Leo", "Mia", "Sam", "Tom", "Zoe")
_VERBS = ("wants", "needs", "orders", "buys")
_ITEMS = ("pens", "cups", "hats", "books", "lamps", "bowls", "cards", "shoes")
_FEWEST, _MOST = 2, 3  # kinds of items in an order
_NUMBERS = range(10, 100)
_GREETINGS = {"hello": "thanks", "ciao": "grazie", "hola": "gracias", "salut": "merci", "hallo": "danke"}
# the words between greeting and thanks, each chosen for itself; the order's number stands where None does
_NOTE = (
    ("red", "blue", "green", "white", "black"),
    ("box", "bag", "crate", "parcel", "case"),
    None,
    ("leaves", "goes", "comes", "starts", "lands"),
    ("monday", "tuesday", "wednesday", "thursday", "friday"),
    ("early", "late", "soon", "again", "first"),
    ("by",),
    ("fast", "slow", "old", "new", "big"),
    ("truck", "train", "plane", "boat", "bike"),
)


class RecordsTask:
    """Orders of two or three kinds of items, as records of ``to``, ``id``, ``items``, ``total`` and ``note``.

    Every record that fits the sentence and itself is right, whatever the order of fields and items.

    Args:
        split: ``train``, ``validation`` or ``test``. A problem's split is a hash of name and items, so no
            two splits share an order even in other words.
        seed: Another seed is another sequence of problems.

    Raises:
        ValueError: For an unknown split.
    """

    name = "records"
    num_problems = None
    completion_length = 68  # the longest record has 66 tokens
    shortest_completion = 59
    vocabulary = (
        *"0123456789",
        *'{}":,.',
        *("to", "id", "items", "total", "note", "and"),
        *_NAMES,
        *_VERBS,
        *_ITEMS,
        *(word for pair in _GREETINGS.items() for word in pair),
        *(word for slot in _NOTE for word in slot or ()),
    )

    def __init__(self, split: str = "train", seed: int = 0) -> None:
        self.split = check_split(split)
        self.seed = seed

    def problem(self, index: int) -> Problem:
        """Problem ``index`` of the split. ``metadata``: ``to``, and ``items`` with how many of each."""
        return _problem(self.seed, self.split, check_index(index, None))

    def write(self, problem: Problem, rng: np.random.Generator) -> str:
        """A right record, items as in the sentence, number and words drawn uniformly."""
        return _write(problem.metadata, rng)

    def score(self, completion: str, problem: Problem) -> float:
        """1.0 for JSON with the right fields and nothing else, in agreement with itself, else 0.0."""
        return float(all(_fields(completion, problem.metadata).values()))

    def metrics(self, completion: str, problem: Problem) -> dict[str, float]:
        """``valid_json``, and ``fields_correct``: the share of the five fields that are right."""
        right = list(_fields(completion, problem.metadata).values())
        return {
            "valid_json": float(_parsed(completion) is not None),
            "fields_correct": sum(right) / len(right),
        }


# comparing many agents on the same problems draws each only once
@lru_cache(maxsize=4096)
def _problem(seed: int, split: str, index: int) -> Problem:
    rng = problem_rng(seed, index)
    while True:
        name, verb = (words[int(rng.integers(len(words)))] for words in (_NAMES, _VERBS))
        kinds = rng.permutation(len(_ITEMS))[: int(rng.integers(_FEWEST, _MOST + 1))]
        items = {_ITEMS[kind]: int(rng.integers(2, 10)) for kind in kinds}
        if split_of(f"{name} {sorted(items.items())}") == split:
            break
    *first, last = (f"{count} {item}" for item, count in items.items())
    order = {"to": name, "items": items}
    return Problem(f"{name} {verb} {', '.join(first)} and {last}.", _write(order, rng), order)


def _write(order: Mapping[str, Any], rng: np.random.Generator) -> str:
    number = int(rng.choice(_NUMBERS))
    greeting = list(_GREETINGS)[int(rng.integers(len(_GREETINGS)))]
    words = [str(number) if slot is None else slot[int(rng.integers(len(slot)))] for slot in _NOTE]
    record = {
        "to": order["to"],
        "id": number,
        "items": order["items"],
        "total": sum(order["items"].values()),
        "note": " ".join([greeting, *words, _GREETINGS[greeting]]),
    }
    return json.dumps(record)


def _fields(completion: str, order: Mapping[str, Any]) -> dict[str, bool]:
    """Which fields are right; none where the record has others."""
    record = _parsed(completion)
    right = dict.fromkeys(("to", "id", "items", "total", "note"), False)
    if record is None or record.keys() != right.keys():
        return right
    items, number = record["items"], record["id"]
    right["to"] = record["to"] == order["to"]
    right["items"] = items == order["items"] and all(map(_is_whole, items.values()))
    right["total"] = _is_whole(record["total"]) and record["total"] == sum(order["items"].values())
    right["id"] = _is_whole(number) and number in _NUMBERS
    right["note"] = isinstance(record["note"], str) and _is_note(record["note"].split(), str(number))
    return right


def _is_note(words: list[str], number: str) -> bool:
    if len(words) != len(_NOTE) + 2 or _GREETINGS.get(words[0]) != words[-1]:
        return False
    return all(word in (slot or (number,)) for word, slot in zip(words[1:-1], _NOTE, strict=True))


def _is_whole(value: Any) -> bool:
    """Whether it is 1 and not 1.0 or true, which Python takes for the same."""
    return type(value) is int


def _parsed(completion: str) -> dict[str, Any] | None:
    """The record, without white space around its texts, which tokens do not tell; None if there is none."""
    try:
        record = json.loads(completion, object_pairs_hook=_stripped)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _stripped(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = {key.strip(): value.strip() if isinstance(value, str) else value for key, value in pairs}
    if len(values) < len(pairs):
        raise ValueError("a key stands twice")
    return values
