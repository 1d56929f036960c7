"""YAML files that somebody else wrote, read with suspicion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

# What PyYAML raises, by itself and through what it calls: 2026-13-13 is no date, !!int "" has no first digit.
_MALFORMED = (
    *(yaml.YAMLError, ValueError, OverflowError, RecursionError),
    *(LookupError, AttributeError, TypeError),
)


def read_yaml(path: str | Path, what: str, largest: int) -> dict[str, Any]:
    """The fields and values of a YAML file.

    Args:
        path: Of the file.
        what: What it should be, for the message.
        largest: Bytes it may have.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is longer or malformed, or holds keys that are there twice, or aliases.
    """
    with Path(path).open("rb") as file:
        text = file.read(largest + 1)
    if len(text) > largest:
        raise ValueError(f"{path} is no {what}: it has more than {largest} bytes")
    content = parse_yaml(text, str(path))
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold fields and values, got {type(content).__name__}")
    return content


def parse_yaml(text: str | bytes, place: str) -> Any:
    """The value of a YAML text; ``place`` is for the message.

    Raises:
        ValueError: If it is malformed, or holds keys that are there twice, or aliases.
    """
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except _MALFORMED as error:
        raise ValueError(f"{place} is not YAML: {error}") from error


class _Loader(yaml.SafeLoader):
    """Without what plain values have no use for: aliases, of which a few lines unfold to gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not accepted")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise yaml.YAMLError(f"key {twice!r} is there twice")
        return super().construct_mapping(node, deep)
