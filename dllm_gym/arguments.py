"""Calls what a user named with the keywords the user gave."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def call_named(what: str, factory: Callable[..., Any], keywords: Mapping[str, Any]) -> Any:
    """``factory(**keywords)``; keywords it does not take are refused before it runs.

    Args:
        what: For the message, such as ``strategy 'random'``.
        factory: A class or function.
        keywords: Its arguments.

    Raises:
        ValueError: For unknown or missing keywords, naming the accepted ones.
    """
    signature = inspect.signature(factory)
    try:
        signature.bind(**keywords)
    except TypeError as error:
        accepted = ", ".join(signature.parameters) or "no parameters"
        raise ValueError(f"{what}: {error}; it accepts {accepted}") from error
    return factory(**keywords)
