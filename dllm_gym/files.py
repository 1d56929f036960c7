"""Atomic writes (a reader sees the old file or the new one, never half of one); reading with suspicion."""

from __future__ import annotations

import io
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_UNFINISHED = ".unfinished-"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # as JSON spells it; two of them may be one character


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Whatever the system says while a file is written names that file: a full disk does not by itself.

    Raises:
        OSError: If it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise type(error)(error.errno, f"cannot write {path}: {error.strerror or error}") from error


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Calls ``write`` with a temporary path beside ``path``, then renames it into place.

    Raises:
        OSError: If it cannot be written; what was there before is still there.
    """
    path = Path(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f"{_UNFINISHED}{path.stem}-", suffix=path.suffix
        )
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            temporary.chmod(0o666 & ~_umask())  # mkstemp makes files private
            with temporary.open("rb") as written:
                os.fsync(written)  # or a power cut could leave the new name with nothing in it
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def remove_unfinished(directory: str | Path) -> None:
    """Removes what writers that were killed left in a directory; call it where nobody else is writing."""
    for leftover in Path(directory).rglob(f"{_UNFINISHED}*"):
        leftover.unlink(missing_ok=True)


def check_ending(path: str | Path, ending: str) -> None:
    """Refuses a file name that promises another kind of file; one without an ending promises nothing.

    Args:
        path: Of a file that is to be written.
        ending: What its kind of file ends in, such as ``.gif``.

    Raises:
        ValueError: If it has another ending.
    """
    if Path(path).suffix.lower() not in ("", ending):
        raise ValueError(f"{path} must end in {ending}, which is what would be written there")


def write_json(path: str | Path, value: Any) -> Path:
    """Writes ``value`` as indented JSON, atomically."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: str | Path, text: str) -> Path:
    """Writes a text file, atomically."""
    return write_bytes(path, text.encode())


def write_bytes(path: str | Path, content: bytes | memoryview) -> Path:
    """Writes a file, atomically."""
    return write_atomically(path, lambda temporary: temporary.write_bytes(content))


def check_text(text: str, place: str) -> str:
    r"""Returns ``text``; ``place`` is for the message.

    Raises:
        ValueError: If it holds half of a surrogate pair, with which no tokenizer can do anything. Python
            keeps bytes so that are no UTF-8 (``surrogateescape``), and JSON can spell it, ``"\ud800"``.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        what = (
            f"the byte {code - 0xDC00:#04x}" if 0xDC80 <= code <= 0xDCFF else f"half a character, \\u{code:x}"
        )
        raise ValueError(f"{place} is no UTF-8 text: {what}, at position {error.start + 1}") from None
    return text


def parse_json(text: str | bytes, place: str) -> Any:
    """The value of a JSON text that somebody else wrote; ``place`` is for the message.

    Raises:
        ValueError: If it is no JSON, is nested too deeply, names a key twice, or is no text (``check_text``).
    """
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text), "surrogateescape")
        value = json.loads(text, object_pairs_hook=_object)
        spelt_out = json.dumps(value, ensure_ascii=False) if _SURROGATE.search(text) else ""
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON: {error}") from None
    check_text(text, place)
    check_text(spelt_out, place)
    return value


def read_json(path: str | Path) -> Any:
    """The value of a JSON file that somebody else wrote.

    Raises:
        OSError: If it cannot be read.
        ValueError: See ``parse_json``.
    """
    return parse_json(Path(path).read_bytes(), str(path))


def json_values(value: Any) -> Any:
    """What JSON has of numbers and arrays: arrays become lists, NaN becomes null."""
    if hasattr(value, "tolist"):
        return json_values(value.tolist())
    if isinstance(value, Mapping):
        return {key: json_values(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def is_finite(value: Any) -> bool:
    """Whether a value is a number that a float can hold; whole numbers may be too long."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return content


def write_state(path: str | Path, state: dict[str, Any]) -> Path:
    """Writes tensors and plain values for ``read_state``, atomically."""
    import torch

    buffer = io.BytesIO()  # torch reports a full disk as anything but an OSError
    torch.save(state, buffer)
    return write_bytes(path, buffer.getbuffer())


def read_state(path: str | Path, fields: Collection[str]) -> dict[str, Any]:
    """What ``write_state`` wrote. Nothing in the file is executed.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is damaged, or lacks one of ``fields``.
    """
    import torch

    content = Path(path).read_bytes()
    try:
        state = torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:  # of any kind: torch's readers and the unpickler each have their own
        reason = str(error).split("\n", 1)[0]
        raise ValueError(
            f"{path} is damaged or no training state: {reason or type(error).__name__}"
        ) from None
    if not isinstance(state, dict):
        raise ValueError(f"{path} is no training state: it holds {type(state).__name__}")
    missing = [name for name in fields if name not in state]
    if missing:
        raise ValueError(f"{path} is no training state of this version: it lacks {', '.join(missing)}")
    return state


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
