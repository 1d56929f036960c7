"""Where a policy was trained: it may be used elsewhere, but not without a word."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dllm_gym.envs.engine import Engine
from dllm_gym.prompts import PromptTask


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
    if not isinstance(engine.task, PromptTask) and _family(task) != _family(engine.task.name):
        yield f"on {task}, not on {engine.task.name}"
    backend = str(trained_in.get("backend") or f"tiny-{task}")
    named = engine.backend_name != type(engine.backend).__name__  # an object does not say which dLLM it is
    if named and Path(backend).name != Path(engine.backend_name).name:  # wherever the two lie
        yield f"with the dLLM {backend}, not with {engine.backend_name}"
    whole = getattr(engine.backend, "attention_block", None) or engine.length  # without a block_length
    block = trained_in.get("block_length")
    if (block or whole) != engine.block_length:
        yield f"{_shown(block)}, not {_shown(None if engine.block_length == whole else engine.block_length)}"


def _family(task: str) -> str:
    return task.partition(":")[0]


def _shown(block_length: Any) -> str:
    return "without blocks" if block_length is None else f"in blocks of {block_length}"
