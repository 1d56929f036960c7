"""What an agent sees: the keys of an observation and their spaces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dllm_gym.backends import Backend
from dllm_gym.envs.checks import one_of
from dllm_gym.envs.statistics import STATISTICS, Sizes

Observation = dict[str, NDArray[Any]]

REVEALED_CONFIDENCE = ("one", "model")
VIEWS = ("completion", "block")
ALWAYS_OBSERVED = ("confidence", "mask", "action_mask", "progress")
SETTINGS = ("alpha", "target_steps", "block_length")  # what is decided of an episode before it begins
OBSERVE = (
    *(name for name in STATISTICS if name not in ALWAYS_OBSERVED),
    *("ends", "tokens", "remasks", *SETTINGS),
)


def observation_keys(observe: Sequence[str]) -> tuple[str, ...]:
    """The keys asked for besides those that are always there; naming one of the latter does no harm."""
    keys = (observe,) if isinstance(observe, str) else tuple(observe)
    for key in keys:
        one_of("observation", key, (*ALWAYS_OBSERVED, *OBSERVE))
    return tuple(key for key in dict.fromkeys(keys) if key not in ALWAYS_OBSERVED)


class NotShown(ValueError):
    """An observation that this dLLM does not have."""


def check_shown(keys: Sequence[str], backend: Backend) -> None:
    """Refuses what a dLLM cannot show.

    Raises:
        NotShown: If one of the keys is ``hidden``, ``attention`` or ``quality``, and the dLLM has none.
    """
    for key, attribute, what in (
        ("hidden", "hidden_width", "hidden states"),
        ("attention", "attention_layers", "attention"),
        ("quality", "quality_head", "judgement of tokens"),
    ):
        if key in keys:
            try:
                getattr(backend, attribute)
            except AttributeError as error:  # some say how it can be had
                raise NotShown(f"observation {key!r} needs a dLLM that shows its {what}: {error}") from None


def observation_space(keys: Sequence[str], sizes: Sizes) -> spaces.Dict:
    """The space of one row's observations.

    Args:
        keys: Those of ``OBSERVE`` that were asked for.
        sizes: What shapes and bounds depend on.
    """
    largest = np.finfo(np.float32).max  # any finite number; Gymnasium's checker warns of infinite bounds
    length = sizes.length
    optional: dict[str, spaces.Space[Any]] = {
        "ends": spaces.MultiBinary(length),
        "tokens": spaces.Box(0, sizes.vocabulary - 1, (length,), np.int64),
        "remasks": spaces.Box(0.0, sizes.max_steps, (length,), np.float32),
        "alpha": spaces.Box(0.0, largest, (1,), np.float32),
        "target_steps": spaces.Box(1.0, largest, (1,), np.float32),
        "block_length": spaces.Box(1.0, length, (1,), np.float32),
    }
    return spaces.Dict(
        {
            "confidence": STATISTICS["confidence"].space(sizes),
            "mask": spaces.MultiBinary(length),
            "action_mask": spaces.MultiBinary(length),
            "progress": spaces.Box(0.0, max(1.0, sizes.max_steps / length), (1,), np.float32),
            **{key: optional[key] if key in optional else STATISTICS[key].space(sizes) for key in keys},
        }
    )
