"""What is remembered row by row: saved, restored and handed from row to row in one way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]

_BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")


class PerRow:
    """Something that remembers things about each of its rows.

    Attributes:
        per_row: The table of all it remembers: names of attributes that are arrays or tensors with a leading
            axis of rows, lists with an entry for each row, dicts of such, or ``PerRow`` themselves. New
            memory is saved, restored and fanned out as soon as its name stands here.
    """

    per_row: ClassVar[tuple[str, ...]] = ()

    def state(self, rows: IntArray) -> dict[str, Any]:
        """Copies of what is remembered of ``rows`` ``(R,)``, which may repeat: arrays and plain values."""
        return {_public(name): _taken(getattr(self, name), rows) for name in self.per_row}

    def restore(self, state: Mapping[str, Any], rows: IntArray) -> None:
        """Makes ``rows`` ``(R,)`` what the rows of ``state`` were; all of them alike if it has one row only.

        Raises:
            ValueError: For a state of another number of rows, or of something made with other arguments.
        """
        self.check(state, len(rows))
        for name in self.per_row:
            _put(getattr(self, name), state[_public(name)], rows)

    def check(self, state: Mapping[str, Any], count: int) -> None:
        """Refuses what ``restore`` cannot make of ``count`` rows."""
        for name in self.per_row:
            _check(_public(name), getattr(self, name), _entry(state, _public(name)), count)


def _public(name: str) -> str:
    return name.lstrip("_")


def _taken(kept: Any, rows: IntArray) -> Any:
    if isinstance(kept, PerRow):
        return kept.state(rows)
    if isinstance(kept, dict):
        return {name: _taken(values, rows) for name, values in kept.items()}
    if isinstance(kept, np.ndarray):
        return kept[rows]
    if isinstance(kept, torch.Tensor):
        return kept[rows].cpu().numpy()
    return [_plain(kept[row]) for row in rows]


def _put(kept: Any, taken: Any, rows: IntArray) -> None:
    if isinstance(kept, PerRow):
        kept.restore(taken, rows)
    elif isinstance(kept, dict):
        for name, values in kept.items():
            _put(values, taken[name], rows)
    elif isinstance(kept, np.ndarray):
        kept[rows] = taken
    elif isinstance(kept, torch.Tensor):
        kept[rows] = torch.from_numpy(taken).to(kept.device)
    else:
        for at, row in enumerate(rows.tolist()):
            kept[row] = _revived(kept[row], taken[at % len(taken)])


def _check(name: str, kept: Any, taken: Any, count: int) -> None:
    if isinstance(kept, torch.Tensor):
        kept = kept[:0].cpu().numpy()  # a state has arrays only
    if isinstance(kept, PerRow):
        kept.check(taken, count)
    elif isinstance(kept, dict):
        for inner, values in kept.items():
            _check(inner, values, _entry(taken, inner), count)
    elif isinstance(kept, np.ndarray):
        fitting = [(rows, *kept.shape[1:]) for rows in (count, 1)]
        if not isinstance(taken, np.ndarray) or taken.dtype != kept.dtype or taken.shape not in fitting:
            seen = f"{taken.dtype} of {taken.shape}" if isinstance(taken, np.ndarray) else repr(taken)
            wanted = f"{kept.dtype} of {fitting[0]} or {fitting[1]}"
            raise ValueError(f"the state does not fit: {name} must be {wanted}, got {seen}")
    elif not isinstance(taken, list) or len(taken) not in (1, count):
        raise ValueError(f"the state does not fit: {name} must be a list of {count} or 1, got {taken!r}")
    elif any((old is None) != (new is None) for old, new in zip(kept, taken, strict=False)):
        raise ValueError(f"the state does not fit: {name} is {taken[0]!r} where it is {kept[0]!r} here")


def _entry(taken: Any, name: str) -> Any:
    if not isinstance(taken, Mapping) or name not in taken:
        raise ValueError(f"the state does not fit: there is no {name!r} in it")
    return taken[name]


def _plain(entry: Any) -> Any:
    """A random generator as what it can be made of again; everything else as it is, arrays copied."""
    if isinstance(entry, np.ndarray):
        return entry.copy()
    if isinstance(entry, np.random.Generator):
        return entry.bit_generator.state
    if isinstance(entry, torch.Generator):
        return entry.get_state().numpy()
    return entry


def _revived(old: Any, entry: Any) -> Any:
    """The reverse of ``_plain``: something of the kind of ``old``."""
    if isinstance(old, np.ndarray):
        return np.array(entry, dtype=old.dtype)
    if isinstance(old, np.random.Generator):
        kind = _entry(entry, "bit_generator")
        if kind not in _BIT_GENERATORS:
            raise ValueError(f"unknown bit generator {kind!r}; known: {', '.join(_BIT_GENERATORS)}")
        # a new one: the user may have given the old one, and draw from it elsewhere
        generator = np.random.Generator(getattr(np.random, kind)(0))
        generator.bit_generator.state = entry
        return generator
    if isinstance(old, torch.Generator):
        noise = torch.Generator(device=old.device)
        return noise.set_state(torch.from_numpy(entry))
    return entry
