"""Finds installed packages that bring learned agents and commands, without importing them by name."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any


def plugins() -> list[Any]:
    """The modules behind the entry point group ``dllm_gym.plugins``.

    Each has ``load_agent(text)``, which returns an agent or ``None``, ``agent_names()``, what it knows
    without a path, ``shared_kinds()``, what can be pushed to a hub and pulled (``dllm_gym.sharing``),
    ``read_run(text)``, which returns what the folder of a training run says about it (``directory``,
    ``environment``, ``settings``, ``command``, ``evaluations``) or ``None``, and ``register_commands(app)``,
    which adds to the command line.
    """
    return [entry.load() for entry in entry_points(group="dllm_gym.plugins")]
