"""What the environments accept, and what they say to everything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import index
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from dllm_gym.envs.rows import BoolArray, IntArray

RENDER_MODES = ("ansi", "rgb_array")
LEAST_ALPHA, LEAST_TARGET = 0.0, 1.0
OPTIONS = ("problem", "alpha", "target_steps", "block_length")  # of resets, about episodes


# Actions --------------------------------------------------------------------------------------------------


def as_bits(action: Any, shape: tuple[int, ...] | None = None) -> BoolArray:
    """What an agent returned as bool: the one check of actions there is, on every path.

    Args:
        action: Numbers that are 0 or 1, of any dtype: an array, nested sequences, or a tensor, which may be
            on any device and may have a gradient.
        shape: What it must have, if that is known.

    Raises:
        ValueError: For another shape or anything that is no bit, such as logits or probabilities.
    """
    if hasattr(action, "detach"):
        action = action.detach().cpu()
        action = (action.double() if action.is_floating_point() else action).numpy()  # numpy has no bfloat16
    of_shape = "" if shape is None else f" of shape {shape}"
    try:
        array = np.asarray(action)
    except (TypeError, ValueError, RuntimeError):  # such as rows of unequal length
        raise ValueError(f"an action must be 0/1 numbers{of_shape}, got {action!r}") from None
    if (shape is not None and array.shape != shape) or array.dtype.kind not in "biuf":
        raise ValueError(f"an action must be 0/1 numbers{of_shape}, got {array.dtype} of {array.shape}")
    bits: BoolArray = array == 1
    if not (bits | (array == 0)).all():
        raise ValueError(f"an action must hold only 0 and 1, got values from {array.min()} to {array.max()}")
    return bits


# Arguments ------------------------------------------------------------------------------------------------


def positive(name: str, value: Any) -> int:
    """``value`` as an int, if it is a whole number of at least 1."""
    if not _is_number(value) or not float(value).is_integer() or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)


def not_negative(name: str, value: Any) -> float:
    """``value`` as a float, if it is a finite number of at least 0."""
    if not (_is_number(value) and math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")
    return float(value)


def number_or_range(name: str, value: Any, minimum: float) -> tuple[float, float]:
    """A number as a range of one point; a pair (low, high) as it is."""
    pair = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value, value)
    numbers = all(_is_number(v) and math.isfinite(v) and v >= minimum for v in pair)
    if not numbers or len(pair) != 2 or pair[0] > pair[1] or (pair[0] < pair[1] and pair[0] <= 0):
        raise ValueError(
            f"{name} must be a finite number of at least {minimum:g}, or a range (low, high) of such numbers "
            f"with 0 < low <= high, got {value!r}"
        )
    return float(pair[0]), float(pair[1])


def one_of(name: str, value: str, choices: Sequence[str] | Mapping[str, Any]) -> str:
    """``value``, if it is one of the choices."""
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(choices)}")
    return value


def render_mode(mode: str | None) -> str | None:
    """``mode``, if there is such a way to render."""
    return None if mode is None else one_of("render_mode", mode, RENDER_MODES)


def autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    """The mode that a text or member names."""
    try:
        return AutoresetMode(mode)
    except ValueError:
        known = ", ".join(member.value for member in AutoresetMode)
        raise ValueError(f"unknown autoreset_mode {mode!r}; choose one of {known}") from None


class UnknownArgument(TypeError, ValueError):
    """A keyword an environment does not take: a TypeError as in Python, reported like any wrong value."""


def refuse_unknown(keywords: Iterable[str], accepted: Sequence[str]) -> None:
    """Refuses keywords that are not among the accepted ones, naming these.

    Raises:
        UnknownArgument: If there are any.
    """
    unknown = [name for name in keywords if name not in accepted]
    if unknown:
        raise UnknownArgument(
            f"an environment takes no {', '.join(map(repr, unknown))}; it takes {', '.join(accepted)}"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


# Resets ---------------------------------------------------------------------------------------------------


def reset_options(options: Any, known: Sequence[str]) -> Mapping[str, Any]:
    """The options of a reset, none if ``None``.

    Raises:
        ValueError: For what is no dict of known names.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise ValueError(f"reset options must be a dict with any of {', '.join(known)}; got {options!r}")
    unknown = set(options) - set(known)
    if unknown:
        raise ValueError(f"unknown reset options {sorted(map(str, unknown))}; known: {', '.join(known)}")
    return options


def chosen_episodes(
    options: Mapping[str, Any], num_envs: int, rows: IntArray, fitting_block: Callable[[int], int]
) -> dict[str, Any]:
    """What reset options say about the episodes of some rows ``(R,)``, as arguments of ``Engine.start``.

    ``fitting_block`` refuses block lengths there cannot be.
    """
    chosen = {
        "problems": _problems(options.get("problem"), num_envs),
        "alphas": _numbers("alpha", options.get("alpha"), LEAST_ALPHA, num_envs),
        "targets": _numbers("target_steps", options.get("target_steps"), LEAST_TARGET, num_envs),
        "block_lengths": _block_lengths(options.get("block_length"), num_envs, fitting_block),
    }
    return {name: None if values is None else values[rows] for name, values in chosen.items()}


def _problems(problem: Any, num_envs: int) -> IntArray | None:
    if problem is None:
        return None
    array = np.asarray(problem)
    if array.dtype.kind not in "iu" or array.shape not in ((), (num_envs,)):
        raise ValueError(f"problem must be an index or integers of shape ({num_envs},), got {problem!r}")
    return np.broadcast_to(array, num_envs)


def _numbers(name: str, value: Any, minimum: float, num_envs: int) -> NDArray[np.float64] | None:
    if value is None:
        return None
    array = np.asarray(value)
    numbers = array.dtype.kind in "iuf" and array.shape in ((), (num_envs,))
    if not (numbers and np.isfinite(array).all() and (array >= minimum).all()):
        raise ValueError(
            f"{name} must be a finite number of at least {minimum:g}, or such numbers of shape "
            f"({num_envs},), got {value!r}"
        )
    return np.broadcast_to(array.astype(np.float64), num_envs)


def _block_lengths(value: Any, num_envs: int, fitting: Callable[[int], int]) -> IntArray | None:
    if value is None:
        return None
    array = np.asarray(value)
    if array.dtype.kind not in "iu" or array.shape not in ((), (num_envs,)):
        raise ValueError(
            f"block_length must be a whole number, or such numbers of shape ({num_envs},), got {value!r}"
        )
    for one in np.unique(array).tolist():
        fitting(one)
    return np.broadcast_to(array, num_envs)


def reset_mask(mask: Any, num_envs: int) -> BoolArray:
    """``mask``, if it is what Gymnasium wants it to be."""
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        raise TypeError(f"reset_mask must be a numpy array of bool, got {getattr(mask, 'dtype', type(mask))}")
    if mask.shape != (num_envs,) or not mask.any():
        raise ValueError(f"reset_mask must have shape ({num_envs},) and a True in it, got {mask}")
    return mask


def seed_of_each(seed: Any, num_envs: int) -> list[int | None]:
    """``num_envs`` seeds: counted up from one number, or those given, where ``None`` is no seed."""
    if seed is None:
        return [None] * num_envs
    try:
        if hasattr(seed, "__len__") and not isinstance(seed, str):
            seeds = [None if one is None else index(one) for one in seed]
        else:
            seeds = [index(seed) + row for row in range(num_envs)]
    except TypeError:
        raise ValueError(
            f"seed must be a whole number, or one or None for each of {num_envs} environments, got {seed!r}"
        ) from None
    if len(seeds) != num_envs:
        raise ValueError(f"got {len(seeds)} seeds for {num_envs} environments")
    return seeds
