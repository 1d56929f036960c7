"""The folder of a training run: what is in it, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dllm_agents.checkpoint import DESCRIPTION, read_description
from dllm_agents.config import load_config
from dllm_gym.fields import ANYTHING, OBJECT, SHARE, TEXT, check, check_fields, number, whole
from dllm_gym.files import read_json, read_state

# What was trained, as far as it draws, and its deterministic counterpart.
REPORTED = ("sample", "deterministic")
CONFIG, STATE, METRICS = "config.yaml", "training_state.pt", "metrics.json"
RLLIB_STATE = "checkpoint.json"  # of rllib-ppo, which names a checkpoint of Ray's beside it

_RESULT = {"accuracy": SHARE, "nfe_mean": number(0), "reward_mean": number(), "episodes": whole(1)}


def check_folder(
    directory: Path,
    state: str,
    resume: bool,
    given: Mapping[str, Any],
    saved: Callable[[Path], Mapping[str, Any]],
) -> None:
    """Refuses to begin where there is a run already, and to resume what is not there or was another one.

    Args:
        directory: Of the run.
        state: The file in it from which a run goes on.
        resume: Whether one is to.
        given: The configuration's plain values.
        saved: Reads those of the configuration in a file.

    Raises:
        FileExistsError: If there is a run and ``resume`` is not set.
        FileNotFoundError: If there is nothing to resume.
        ValueError: If another configuration is to be resumed.
    """
    path = directory / CONFIG
    if not resume:
        if path.exists():
            raise FileExistsError(
                f"{directory} already holds a training run; resume it (--resume) or choose another"
            )
        return
    if not (directory / state).is_file():
        raise FileNotFoundError(f"nothing to resume in {directory}: no {state} there")
    if saved(path) != given:
        raise ValueError(f"{path} differs from the configuration given; resume with the one that is there")


def read_run(directory: str | Path) -> dict[str, Any] | None:
    """What a training run has to tell, whether it has ended or not; ``None`` for another folder.

    Returns:
        ``directory``; ``environment``, the arguments of ``UnmaskEnv``; ``settings``, the configuration by
        names with dots; ``command``, empty if it is not known; and ``evaluations``, as in ``metrics.json``,
        those made so far.

    Raises:
        ValueError: For damaged files.
    """
    directory = Path(directory)
    if not (directory / CONFIG).is_file():
        return None
    config = load_config(directory / CONFIG)
    told = {"directory": directory, "environment": dict(config.env), "settings": config.settings()}
    path = directory / METRICS
    if path.is_file():  # written at the end
        metrics = check_fields(read_json(path), {"command": TEXT, "evaluations": ANYTHING}, str(path))
        return {**told, **metrics, "evaluations": check_evaluations(metrics["evaluations"], str(path))}
    command, evaluations = "", []
    if (directory / "last" / DESCRIPTION).is_file():
        place = f"{directory / 'last' / DESCRIPTION}, metadata"
        metadata = read_description(directory / "last").get("metadata") or {}
        check(metadata, OBJECT, place)
        command = metadata.get("command", "")
        check(command, TEXT, f"{place}: command")
    if (directory / STATE).is_file():
        state = read_state(directory / STATE, ["history"])
        evaluations = check_evaluations(state["history"], f"{directory / STATE}, history")
    elif (directory / RLLIB_STATE).is_file():
        evaluations = read_rllib_state(directory)["history"]
    return {**told, "command": command, "evaluations": evaluations}


def read_rllib_state(directory: Path) -> dict[str, Any]:
    """Of a run of ``rllib-ppo``: ``checkpoint``, from which it goes on, ``seconds`` and ``history`` so far.

    Raises:
        ValueError: If the file is damaged.
    """
    path = directory / RLLIB_STATE
    fields = {"checkpoint": TEXT, "seconds": number(0), "history": ANYTHING}
    state = check_fields(read_json(path), fields, str(path))
    check_evaluations(state["history"], f"{path}, history")
    return state


def check_evaluations(rows: Any, place: str) -> list[dict[str, Any]]:
    """The evaluations of a run, if that is what they are, in the order of training.

    Raises:
        ValueError: If they are not; ``place`` is for the message.
    """
    if not isinstance(rows, list):
        raise ValueError(f"{place} must hold a list of evaluations, got {rows!r:.80}")
    for at, row in enumerate(rows, start=1):
        of_row = f"{place}, evaluation {at}"
        check_fields(row, {"timesteps": whole(), "seconds": number(0)}, of_row)
        for decoding in REPORTED:
            check_fields(row.get(decoding), _RESULT, f"{of_row}, {decoding}")
    return rows
