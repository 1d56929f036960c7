"""The folder of a training run: what is in it, and what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dllm_agents.checkpoint import DESCRIPTION, read_description
from dllm_agents.config import load_config
from dllm_gym.files import read_json, read_state

CONFIG, STATE, METRICS = "config.yaml", "training_state.pt", "metrics.json"
RLLIB_STATE = "checkpoint.json"  # of rllib-ppo, which names a checkpoint of Ray's beside it


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
    if (directory / METRICS).is_file():  # written at the end
        try:
            metrics = read_json(directory / METRICS)
            return {**told, "command": metrics["command"], "evaluations": metrics["evaluations"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{directory / METRICS} holds no metrics of a training run: {error}") from error
    command, evaluations = "", []
    if (directory / "last" / DESCRIPTION).is_file():
        command = read_description(directory / "last").get("metadata", {}).get("command", "")
    if (directory / STATE).is_file():
        evaluations = read_state(directory / STATE, ["history"])["history"]
    elif (directory / RLLIB_STATE).is_file():
        evaluations = read_json(directory / RLLIB_STATE)["history"]
    return {**told, "command": command, "evaluations": evaluations}
