"""What an agent sees: the keys of an observation, their spaces, and what is shown at revealed positions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dllm_gym.backends.base import STATISTICS
from dllm_gym.envs.checks import one_of
from dllm_gym.envs.rows import BoolArray

Observation = dict[str, NDArray[Any]]

REVEALED_CONFIDENCE = ("one", "model")
VIEWS = ("completion", "block")
ALWAYS_OBSERVED = ("confidence", "mask", "action_mask", "progress")
OBSERVE = (*STATISTICS, "tokens", "alpha", "target_steps")
_AT_REVEALED = {"confidence": 1.0, "entropy": 0.0, "margin": 1.0, "top_k": 0.0, "hidden": 0.0}


def observation_keys(observe: Sequence[str]) -> tuple[str, ...]:
    """The keys asked for besides those that are always there; naming one of the latter does no harm."""
    keys = (observe,) if isinstance(observe, str) else tuple(observe)
    for key in keys:
        one_of("observation", key, (*ALWAYS_OBSERVED, *OBSERVE))
    return tuple(key for key in dict.fromkeys(keys) if key not in ALWAYS_OBSERVED)


def observation_space(
    keys: Sequence[str], length: int, vocabulary: int, top_k: int, hidden_width: int
) -> spaces.Dict:
    """The space of one row's observations.

    Args:
        keys: Those of ``OBSERVE`` that were asked for.
        length: L.
        vocabulary: V.
        top_k: k of the key ``top_k``.
        hidden_width: H of the key ``hidden``.
    """
    largest = np.finfo(np.float32).max  # any finite number; Gymnasium's checker warns of infinite bounds
    optional: dict[str, spaces.Space[Any]] = {
        "entropy": spaces.Box(0.0, math.log(vocabulary) + 1e-3, (length,), np.float32),
        "margin": spaces.Box(0.0, 1.0, (length,), np.float32),
        "top_k": spaces.Box(0.0, 1.0, (length, top_k), np.float32),
        "tokens": spaces.Box(0, vocabulary - 1, (length,), np.int64),
        "alpha": spaces.Box(0.0, largest, (1,), np.float32),
        "target_steps": spaces.Box(1.0, largest, (1,), np.float32),
    }
    if "hidden" in keys:
        optional["hidden"] = spaces.Box(-largest, largest, (length, hidden_width), np.float32)
    return spaces.Dict(
        {
            "confidence": spaces.Box(0.0, 1.0, (length,), np.float32),
            "mask": spaces.MultiBinary(length),
            "action_mask": spaces.MultiBinary(length),
            "progress": spaces.Box(0.0, 1.0, (1,), np.float32),
            **{key: optional[key] for key in keys},
        }
    )


def hide_revealed(predicted: Mapping[str, NDArray[Any]], shown: BoolArray) -> Observation:
    """Confidence and further statistics as observed: certain wherever they are not ``shown``.

    Args:
        predicted: By name, ``(N, L)`` or ``(N, L, k)`` float32.
        shown: ``(N, L)``.
    """
    observation = {}
    for name, values in predicted.items():
        where = shown if values.ndim == 2 else shown[..., None]
        observation[name] = np.where(where, values, np.float32(_AT_REVEALED[name]))
    if "top_k" in observation:
        observation["top_k"][~shown, 0] = 1.0
    return observation
