"""Where a policy was trained: there it decodes unless told otherwise, and not elsewhere without a word."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dllm_gym.backends import backend_names, embedded_names
from dllm_gym.envs.blocks import BLOCK_LENGTH, shown
from dllm_gym.envs.engine import Engine
from dllm_gym.fields import OBJECT, TEXT, Field, whole
from dllm_gym.prompts import PromptTask
from dllm_gym.trained import embedded_for

# The arguments of ``UnmaskEnv`` that say where, and what they must be: a policy may be a stranger's.
_PLACE: dict[str, Field] = {
    "task": TEXT,
    "task_kwargs": OBJECT,
    "completion_length": whole(1),
    "backend": TEXT,
    "block_length": BLOCK_LENGTH,
}
# And those that say by which rules it plays.
_PLAY: dict[str, Field] = {
    "actions": TEXT,
    "max_steps": whole(1),
    "max_remasks": whole(1),
    "finish": TEXT,
}
_PROBLEMS = ("task", "task_kwargs", "completion_length")


def at_home(agents: Iterable[Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``UnmaskEnv``: what was told, and for the rest the place where the agents were trained.

    Everybody decodes in one place: that of the first agent of whom it is known.

    Args:
        agents: They may tell where they were trained as ``trained_in``.
        told: Arguments of ``UnmaskEnv``, which win. Whoever names another task, or other parameters of it,
            leaves the policy's own behind, and the embedded dLLM that was made for it.
    """
    homes = (getattr(agent, "trained_in", None) for agent in agents)
    return settle(told, next(filter(None, homes), {}))


def settle(told: Mapping[str, Any], home: Mapping[str, Any]) -> dict[str, Any]:
    """See ``at_home``; every argument that says where is among the result if anything is known of a home."""
    if not home:
        return dict(told)
    known = {key: home[key] for key, field in _PLACE.items() if key in home and field.fits(home[key])}
    if "task" in told and told["task"] != known.get("task", "arithmetic"):
        for key in _PROBLEMS:
            known.pop(key, None)
        if Path(known.get("backend", "")).name in embedded_names():
            del known["backend"]
    elif "task_kwargs" in told:
        known.pop("completion_length", None)
    if "backend" in known:
        known["backend"] = _nearby(known["backend"])
    return {**dict.fromkeys(_PLACE), "task": "arithmetic", **known, **told}


def at_play(agents: Iterable[Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``UnmaskEnv``: what was told, and for the rest the rules by which the agents play.

    Everybody plays by the rules of the first agent that takes tokens back; the others let them stand.

    Args:
        agents: They may tell their rules as ``plays``, or where they were trained as ``trained_in``.
        told: Arguments of ``UnmaskEnv``, which win.
    """
    rules = (getattr(agent, "plays", None) or getattr(agent, "trained_in", None) or {} for agent in agents)
    rules = (own for own in rules if own.get("actions", "reveal") != "reveal")
    known = {key: value for key, value in next(rules, {}).items() if key in _PLAY and _PLAY[key].fits(value)}
    return {**known, **told}


def dllm_of(arguments: Mapping[str, Any]) -> Any:
    """The dLLM that arguments of ``UnmaskEnv`` mean: what is given, or the task's embedded one."""
    parameters = arguments.get("task_kwargs")
    size = parameters.get("size") if isinstance(parameters, Mapping) else None
    return arguments.get("backend") or embedded_for(arguments.get("task", "arithmetic"), size)


def _nearby(backend: str) -> str:
    """A dLLM that is known by name is taken from here, wherever it lay at the training."""
    name = Path(backend).name
    return name if name in backend_names() and not Path(backend).is_dir() else backend


def warn_if_abroad(agent: Any, engine: Engine) -> None:
    """Warns of an agent that was trained on another task, with another dLLM or in other blocks.

    Args:
        agent: Tells the arguments of ``UnmaskEnv`` it was trained with as ``trained_in``, if they are known.
        engine: What it is about to decode in.
    """
    trained_in = getattr(agent, "trained_in", None)
    if not trained_in:
        return
    differences = list(_differences(trained_in, engine))
    if differences:
        label = getattr(agent, "label", type(agent).__name__)
        warnings.warn(f"{label} was trained {'; '.join(differences)}: expect less of it here", stacklevel=2)


def _differences(trained_in: Mapping[str, Any], engine: Engine) -> Iterator[str]:
    task = str(trained_in.get("task", "arithmetic"))
    if not isinstance(engine.task, PromptTask) and _family(task) != _family(engine.task_name):
        yield f"on {task}, not on {engine.task_name}"
    backend = str(dllm_of(trained_in))
    named = engine.backend_name != type(engine.backend).__name__  # an object does not say which dLLM it is
    if named and Path(backend).name != Path(engine.backend_name).name:  # wherever the two lie
        yield f"with the dLLM {backend}, not with {engine.backend_name}"
    full = engine.blocks.full
    trained = trained_in.get("block_length")
    if trained is None or BLOCK_LENGTH.fits(trained):  # or it is a stranger's
        known = {one or full for one in (trained if isinstance(trained, list) else [trained])}
        here = engine.blocks.choices
        if not known.issuperset(here):
            yield f"{_shown(known, full)}, not {_shown(here, full)}"


def _family(task: str) -> str:
    return task.partition(":")[0]


def _shown(block_lengths: Iterable[int], full: int) -> str:
    sizes = [size for size in sorted(block_lengths) if size != full]
    parts = [f"in blocks of {shown(sizes)}"] if sizes else []
    return " and ".join([*parts, *(["without blocks"] if full in block_lengths else [])])
