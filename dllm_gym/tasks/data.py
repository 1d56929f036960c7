"""Rows of a benchmark: from a local file or folder, from an installed package, or from the hub when asked."""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from dllm_gym.files import check_text, parse_json
from dllm_gym.tasks.base import split_of

Row = dict[str, Any]
Parsed = TypeVar("Parsed")
HUB = "hub"

# A small file may claim, or unpack to, far more than it holds. No benchmark comes near these.
_LONGEST_LINE = 2**24  # characters
_LARGEST_DOCUMENT = 2**30  # characters of a file, unpacked
_MOST_ROWS = 10**6  # or lines, blank ones too
_ROWS_AT_A_TIME = 1024


def read_rows(
    task: str,
    data: str | Path | None,
    parse: Callable[[Row], Parsed],
    *,
    hub: str,
    hub_config: str | None = None,
    hub_split: str,
    package: str | None = None,
    files: Sequence[str] = (),
) -> list[Parsed]:
    """Reads a benchmark's rows and hands each to ``parse``.

    Nothing is downloaded unless ``data`` is ``"hub"``.

    Args:
        task: Name of the task, for messages.
        data: Path of a file (``.jsonl``, ``.json``, ``.csv``, each also ``.gz``, or ``.parquet``) or of a
            folder; ``"hub"`` for the data set hub; ``None`` for the installed package that ships the data.
        parse: Makes of a row (a dict of its columns) what the task keeps. What it raises as ``KeyError``
            or ``ValueError`` is reported with the row's place.
        hub: Data set id, such as ``openai/gsm8k``; read with the library ``datasets``.
        hub_config: Its configuration, if it has several.
        hub_split: Its split.
        package: Distribution on PyPI that ships the data, if there is one; it is not imported.
        files: Glob patterns of the file in a folder and in the package. The first pattern that matches
            counts; where it matches several files they are read in the order of their names.

    Raises:
        FileNotFoundError: If there is no data; the message names the three ways to give it.
        ValueError: For another kind of file, for a file that cannot be read and for a malformed row, by
            file and line.
        ImportError: If ``datasets`` or, for a ``.parquet`` file, ``pyarrow`` is needed and not installed.
    """
    parsed = []
    for place, row in _rows(task, data, hub, hub_config, hub_split, package, files):
        try:
            parsed.append(parse(row))
        except KeyError as error:
            raise ValueError(f"{place}: no column {error}; it has {', '.join(map(str, row))}") from None
        except (ValueError, TypeError, AttributeError, OverflowError) as error:  # of another type or size
            raise ValueError(f"{place}: {error}") from None
    if not parsed:
        raise ValueError(f"task {task!r}: no rows in {data if data is not None else package}")
    return parsed


def _rows(
    task: str,
    data: str | Path | None,
    hub: str,
    hub_config: str | None,
    hub_split: str,
    package: str | None,
    files: Sequence[str],
) -> Iterator[tuple[str, Row]]:
    """Every row with its place, such as ``test.jsonl, line 3``."""
    if data == HUB:
        yield from _hub_rows(hub, hub_config, hub_split)
        return
    if data is not None:
        path = Path(data).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"task {task!r}: {path} does not exist. {_ways(hub, package, files)}")
        paths = _matching(path, files) if path.is_dir() else [path]
        missing = f"task {task!r}: {path} has none of {', '.join(files)}. {_ways(hub, package, files)}"
    else:
        paths = _shipped(package, files) if package is not None else []
        missing = f"task {task!r} needs data. {_ways(hub, package, files)}"
    if not paths:
        raise FileNotFoundError(missing)
    for path in paths:
        yield from file_rows(path)


def _ways(hub: str, package: str | None, files: Sequence[str]) -> str:
    shipped = (
        f"install the package that ships it (pip install {package}) and give no data"
        if package is not None
        else "no package that ships it is known"
    )
    return (
        f"Three ways: data=PATH of a file or of a folder with {' or '.join(files)}; {shipped}; "
        f"or data='{HUB}' to download {hub} (needs network and pip install 'dllm-gym[hub]')"
    )


def _matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return next((found for pattern in patterns if (found := sorted(folder.glob(pattern)))), [])


def _shipped(package: str, patterns: Sequence[str]) -> list[Path]:
    try:
        shipped = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return []
    for pattern in patterns:
        if found := sorted(str(file.locate()) for file in shipped if file.match(pattern)):
            return [Path(path) for path in found]
    return []


def _hub_rows(hub: str, config: str | None, split: str) -> Iterator[tuple[str, Row]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(f"data='{HUB}' needs the library datasets: pip install 'dllm-gym[hub]'") from error
    for number, row in enumerate(load_dataset(hub, config, split=split), 1):
        yield f"{hub} ({split}), row {number}", row


def text_in(row: Row, column: str) -> str:
    """The text in a column.

    Raises:
        KeyError: If there is no such column.
        ValueError: If it holds something else.
    """
    value = row[column]
    if not isinstance(value, str):
        raise ValueError(f"column {column!r} must hold a text, got {value!r:.80}")
    return value


def whole_number(value: Any) -> int:
    """A whole number, or one that is written out.

    Raises:
        ValueError: For anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"expected a whole number, got {value!r:.80}")
    return int(value)


def rows_of_split(rows: Sequence[Parsed], split: str, content: Callable[[Parsed], str]) -> list[Parsed]:
    """The rows of a split: a test file's rows all, a training file's rows by a hash of their content.

    5 % of the training rows are ``validation``, the rest ``train``; rows of the same content are on one side.

    Raises:
        ValueError: If the split is empty.
    """
    if split == "test":
        return list(rows)
    kept = [row for row in rows if (split_of(content(row)) == "validation") == (split == "validation")]
    if not kept:
        raise ValueError(
            f"of {len(rows)} rows none is in the split {split!r}; give more, or take another split"
        )
    return kept


def refuse_test_file(data: str | Path | None, split: str) -> None:
    """Raises ``ValueError`` if a file named as a test set is about to be trained on."""
    if split == "test" or data is None or Path(data).is_dir():  # of a folder the split says which file
        return
    if "test" in re.split(r"[^a-z]+", Path(data).name.lower()):
        raise ValueError(
            f"{data} is named like a test set; use split='test' instead of {split!r}, or give training data"
        )


# Files -----------------------------------------------------------------------------------------------------


def file_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Every row of a file with its place, such as ``test.jsonl, line 3``.

    Raises:
        OSError: If it cannot be opened.
        ValueError: As ``read_rows``.
        ImportError: If it is a ``.parquet`` file and ``pyarrow`` is not installed.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else "".join(suffixes[-1:])
    if kind not in _READERS or (kind == ".parquet" and suffixes[-1] == ".gz"):
        raise ValueError(
            f"{path} is of no known kind; give a .jsonl, .json or .csv file (.gz of these too) or .parquet"
        )
    try:
        for place, row in _READERS[kind](path):
            if not isinstance(row, dict):
                raise ValueError(f"{path}, {place}: a row must be an object with columns, got {row!r:.80}")
            yield f"{path}, {place}", row
    except (gzip.BadGzipFile, EOFError, zlib.error, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    with _open(path) as file:
        for number, line in enumerate(_lines(file, path), 1):
            if line.strip():
                yield f"line {number}", parse_json(line, f"{path}, line {number}")


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    """A list of rows, or a file with a single row as MATH has them."""
    with _open(path) as file:
        text = file.read(_LARGEST_DOCUMENT + 1)
    if len(text) > _LARGEST_DOCUMENT:
        raise ValueError(f"{path} is longer than {_LARGEST_DOCUMENT} characters; no benchmark is")
    value = parse_json(text, str(path))
    rows = value if isinstance(value, list) else [value]
    for number, row in enumerate(rows, 1):
        yield f"row {number}", row


def _csv(path: Path) -> Iterator[tuple[str, Any]]:
    with _open(path) as file:
        reader = csv.DictReader(_lines(file, path))
        for row in reader:
            place = f"line {reader.line_num}"
            if None in row or None in row.values():
                raise ValueError(f"{path}, {place}: not as many fields as the header has")
            yield place, row


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ImportError(f"{path} needs the library pyarrow: pip install 'dllm-gym[hub]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            if file.metadata.num_rows > _MOST_ROWS:
                raise ValueError(f"it claims {file.metadata.num_rows} rows; at most {_MOST_ROWS} are read")
            rows, size = list[Any](), 0
            for batch in file.iter_batches(_ROWS_AT_A_TIME):
                if (size := size + batch.nbytes) > _LARGEST_DOCUMENT:
                    raise ValueError(f"it holds more than {_LARGEST_DOCUMENT} bytes")
                rows += batch.to_pylist()
    except (ArrowException, ValueError, OverflowError, MemoryError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    for number, row in enumerate(rows, 1):
        yield f"row {number}", row


_READERS: dict[str, Callable[[Path], Iterator[tuple[str, Any]]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _open(path: Path) -> Any:
    # utf-8-sig: files saved on Windows may start with a byte order mark
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    newline = "" if ".csv" in path.name.lower() else None
    return opener(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def _lines(file: Any, path: Path) -> Iterator[str]:
    number = size = 0
    while line := file.readline(_LONGEST_LINE + 1):
        number, size = number + 1, size + len(line)
        if len(line) > _LONGEST_LINE:
            raise ValueError(f"{path} has a line of more than {_LONGEST_LINE} characters")
        if number > _MOST_ROWS or size > _LARGEST_DOCUMENT:
            raise ValueError(f"{path} holds more than {_MOST_ROWS} lines or {_LARGEST_DOCUMENT} characters")
        yield check_text(line, f"{path}, line {number}")
