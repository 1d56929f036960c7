"""What the fields of a file must be that somebody else wrote, or a disk damaged: checked and told by name."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dllm_gym.files import is_finite

_INT64 = 2**63


@dataclass(frozen=True)
class Field:
    """What a value must be.

    Attributes:
        words: How a message says it: "... must be a text".
        fits: Whether a value is so.
    """

    words: str
    fits: Callable[[Any], bool]


def of_type(kind: type | tuple[type, ...], words: str) -> Field:
    """Values of a type; a ``bool`` is no number here."""
    return Field(words, lambda value: isinstance(value, kind) and not isinstance(value, bool))


def whole(least: int = 0, below: int = _INT64) -> Field:
    """Whole numbers from ``least`` on, below ``below``."""
    end = "" if below == _INT64 else f", below {below}"
    return Field(
        f"a whole number of at least {least}{end}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value < below,
    )


def number(least: float = -math.inf, most: float = math.inf) -> Field:
    """Finite numbers from ``least`` to ``most``."""
    if least == -math.inf:
        words = "a finite number"
    elif most == math.inf:
        words = f"a finite number of at least {least:g}"
    else:
        words = f"a number from {least:g} to {most:g}"
    return Field(words, lambda value: is_finite(value) and least <= value <= most)


def list_of(field: Field) -> Field:
    """Lists of such values."""
    return Field(
        f"a list, each of it {field.words}",
        lambda value: isinstance(value, list) and all(map(field.fits, value)),
    )


ANYTHING = Field("anything", lambda value: True)  # checked elsewhere
TEXT = of_type(str, "a text")
OBJECT = Field("an object with texts as keys", lambda value: isinstance(value, dict) and all(
    isinstance(key, str) for key in value
))  # fmt: skip
FLAG = Field("true or false", lambda value: isinstance(value, bool))
SHARE = number(0, 1)


def _is_interval(value: Any) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    return all(map(is_finite, value)) or list(value) == [None, None]


INTERVAL = Field("a list of two finite numbers, or of two nulls", _is_interval)


def check_fields(content: Any, fields: Mapping[str, Field], place: str) -> dict[str, Any]:
    """The values of ``fields`` in an object that may hold others.

    Args:
        content: The object.
        fields: What must be in it.
        place: Where it was found, for the message.

    Raises:
        ValueError: If it is no object, lacks one of them, or holds another value there.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{place} must be an object, got {reprlib.repr(content)}")
    missing = [name for name in fields if name not in content]
    if missing:
        raise ValueError(f"{place} lacks {', '.join(missing)}")
    for name, field in fields.items():
        check(content[name], field, f"{place}: {name}")
    return {name: content[name] for name in fields}


def check(value: Any, field: Field, name: str) -> None:
    """Raises a ValueError that names the value unless it is what it must be."""
    if not field.fits(value):
        raise ValueError(f"{name} must be {field.words}, got {reprlib.repr(value)}")
