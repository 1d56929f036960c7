"""Whether recorded episodes are of the environment that a policy is trained for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gymnasium import spaces

from dllm_gym.evaluation.home import dllm_of
from dllm_gym.offline import Episodes


def check_fits(
    episodes: Episodes, env: Mapping[str, Any], observation_space: spaces.Dict, keys: Sequence[str]
) -> None:
    """Refuses episodes of another task, dLLM or length, and those without what the policy reads.

    Args:
        episodes: The recorded ones.
        env: Arguments of ``UnmaskEnv``, where the policy is trained.
        observation_space: Of one row there.
        keys: What the policy reads.

    Raises:
        ValueError: If they do not fit, with what would.
    """
    here = {"task": env.get("task", "arithmetic"), "backend": Path(str(dllm_of(env))).name}
    there = {name: Path(str(episodes.environment.get(name, value))).name for name, value in here.items()}
    if there != here:
        raise ValueError(f"{episodes.id} was recorded with {there}, and this training is with {here}")
    missing = [key for key in dict.fromkeys(keys) if key not in episodes.observation_space.spaces]
    if missing:
        raise ValueError(
            f"{episodes.id} lacks {', '.join(missing)}, which the policy reads: record with --observe, "
            f"or train with other features; it has {', '.join(episodes.observation_space.spaces)}"
        )
    for key in keys:
        recorded, wanted = episodes.observation_space[key], observation_space[key]
        if recorded.shape != wanted.shape:
            raise ValueError(
                f"{key} has the shape {recorded.shape} in {episodes.id}, {wanted.shape} in this environment"
            )
