"""What is kept of work that may be interrupted: results, and episodes and texts as they are finished."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dllm_gym.envs.engine import Engine
from dllm_gym.fields import FLAG, SHARE, TEXT, check_fields, number, whole
from dllm_gym.files import naming, parse_json

_BEGIN = b'{"index": '  # of every line


def digest(value: Any) -> str:
    """Sixteen characters that tell JSON values, and paths in them, from other ones.

    Raises:
        ValueError: If there is anything else in them.
    """
    try:
        text = json.dumps(value, sort_keys=True, default=os.fspath)
    except TypeError as error:
        raise ValueError(f"what is to be kept must be described by plain values: {error}") from None
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def kept_file(
    directory: Path, agent: Any, episodes: int, split: str, kwargs: Mapping[str, Any]
) -> Path | None:
    """Where the result of an agent under these arguments of ``evaluate`` lies; ``None`` if it has no place.

    Raises:
        ValueError: If the arguments ask for a recording, or are more than plain values.
    """
    import dllm_gym

    if kwargs.get("record") or kwargs.get("check_consistency"):
        raise ValueError("results are kept without recordings: give keep or record, not both")
    fingerprint = getattr(agent, "fingerprint", None)
    if fingerprint is None:
        return None
    asked = {key: value for key, value in kwargs.items() if key not in ("on_start", "on_episode")}
    name = "-".join(re.findall(r"[\w.]+", agent.label))
    return directory / f"{name}-{digest([dllm_gym.__version__, fingerprint, episodes, split, asked])}.json"


class Lines:
    """A file of JSON lines that grows as work is done, one object with an ``index`` for each piece of it.

    A line that was being written when the process was killed is removed.

    Args:
        path: The file; created with the first line.
        run: What the work is done with; lines of anything else are refused.

    Attributes:
        path: The file.
        found: The objects that were there, by index.

    Raises:
        OSError: If the file cannot be read or written.
        ValueError: If it holds something else, or the work of another run.
    """

    def __init__(self, path: str | Path, run: str) -> None:
        self.path, self._run = Path(path), run
        self.found: dict[int, dict[str, Any]] = {}
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        begun = content[len(whole) :]
        if begun[: len(_BEGIN)] != _BEGIN[: len(begun)]:
            raise ValueError(f"{path} ends with something else than a line of results; give another file")
        for at, line in enumerate(whole.split(b"\n")[:-1], start=1):
            place = f"{path}, line {at}"
            value = parse_json(line, place)
            index = value.get("index") if isinstance(value, dict) else None
            if not isinstance(index, int) or isinstance(index, bool) or value.get("run") is None:
                raise ValueError(f"{place} is not of a file that is to be continued; give another file")
            if value["run"] != run:
                raise ValueError(
                    f"{place} was written with other settings; give another file or the same ones"
                )
            self.found[index] = value
        with naming(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.truncate(len(whole))

    def add(self, index: int, content: Mapping[str, Any]) -> None:
        """Appends a line, which is there for good when this returns.

        Raises:
            OSError: If it cannot be written.
        """
        line = json.dumps({"index": index, "run": self._run, **content}, ensure_ascii=False)
        with naming(self.path), self.path.open("ab") as file:
            file.write(line.encode() + b"\n")


def lines_of(path: str | Path, engine: Engine, agent: Any, seed: int) -> Lines:
    """The file of what an agent does in an environment."""
    who = getattr(agent, "fingerprint", getattr(agent, "label", type(agent).__name__))
    return Lines(path, digest([engine.description(), who, seed]))


def episodes_found(lines: Lines, metric_names: Sequence[str]) -> dict[int, Mapping[str, Any]]:
    """Reward and info of the episodes that were there, by their problems.

    Args:
        lines: The file.
        metric_names: Of the task, see ``Engine.metric_names``.

    Raises:
        ValueError: If there is anything else.
    """
    fields = {
        "problem": whole(),
        "reward": number(),
        "score": SHARE,
        "nfe": whole(1),
        "is_success": FLAG,
        "completion": TEXT,
        **dict.fromkeys(metric_names, number()),
    }
    for index, content in lines.found.items():
        place = f"{lines.path}, index {index}"
        found = check_fields(content, fields, place)
        if found["problem"] != index or found["is_success"] != (found["score"] == 1):
            raise ValueError(f"{place} is no episode: its problem or its score is another one")
    return dict(lines.found)
