"""What a saved state of a training must be to go on from: like the state of a run that was just built."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dllm_gym.fields import check, number
from dllm_gym.files import is_finite


def check_like(value: Any, pattern: Any, place: str) -> None:
    """Compares what was read with a pattern: kinds, keys, lengths, shapes and dtypes, not values.

    Args:
        value: Tensors and plain values, in dicts and lists.
        pattern: The same.
        place: Where it was found, for the message.

    Raises:
        ValueError: For the first difference, and for tensors and numbers that are NaN or infinite.
    """
    if isinstance(pattern, Tensor):
        _check_tensor(value, pattern, place)
    elif isinstance(pattern, Mapping):
        check_keys(value, pattern.keys(), place)
        for key, own in pattern.items():
            check_like(value[key], own, f"{place}, {key}")
    elif isinstance(pattern, list | tuple):
        if not isinstance(value, list | tuple) or len(value) != len(pattern):
            raise ValueError(f"{place} must hold {len(pattern)} values, got {reprlib.repr(value)}")
        for at, own in enumerate(pattern):
            check_like(value[at], own, f"{place}, {at}")
    elif is_finite(pattern):  # whole or not: a learning rate may have been given either way
        check(value, number(), place)
    elif type(value) is not type(pattern):
        raise ValueError(f"{place} must be {type(pattern).__name__}, got {reprlib.repr(value)}")


def check_keys(value: Any, keys: Collection[Any], place: str) -> None:
    """Raises a ValueError unless the value is an object of these keys and no others."""
    if not isinstance(value, dict) or value.keys() != set(keys):
        got = reprlib.repr(list(value) if isinstance(value, dict) else value)
        raise ValueError(f"{place} must hold {', '.join(map(str, keys)) or 'nothing'}, got {got}")


def check_range(tensor: Tensor, least: int, below: int, place: str) -> None:
    """Raises a ValueError unless all whole numbers lie from ``least`` on and ``below``."""
    if tensor.numel() and not (least <= int(tensor.min()) and int(tensor.max()) < below):
        raise ValueError(
            f"{place} must lie from {least} to {below - 1}, got {int(tensor.min())} to {int(tensor.max())}"
        )


def check_optimizer(saved: Any, optimizer: torch.optim.Optimizer, place: str) -> None:
    """Compares the saved state of an optimiser with the optimiser that is to take it over.

    Raises:
        ValueError: If it is of other parameters or another kind.
    """
    own = optimizer.state_dict()
    check_keys(saved, own.keys(), place)
    if not isinstance(saved["state"], dict):
        raise ValueError(f"{place}, state must be an object, got {reprlib.repr(saved['state'])}")
    check_like(saved["param_groups"], own["param_groups"], f"{place}, param_groups")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [at for group in own["param_groups"] for at in group["params"]]
    known = dict(zip(numbers, parameters, strict=True))
    for at, memory in saved["state"].items():
        if at not in known or not isinstance(memory, dict):
            raise ValueError(f"{place}, state must be of the parameters 0 to {len(known) - 1}, got {at!r}")
        for name, value in memory.items():
            whole = isinstance(value, Tensor) and value.ndim
            check_like(value, known[at].detach() if whole else _plain(value), f"{place}, state, {at}, {name}")
    if [group["params"] for group in saved["param_groups"]] != [g["params"] for g in own["param_groups"]]:
        raise ValueError(f"{place}, param_groups are of other parameters")


@contextmanager
def restoring(place: str) -> Iterator[None]:
    """Names what a random generator does not take as its state, which every kind of them says in its own way.

    Raises:
        ValueError: If it is refused.
    """
    try:
        yield
    except (AttributeError, LookupError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{place} is no state of a random generator: {error}") from None


def _check_tensor(value: Any, pattern: Tensor, place: str) -> None:
    def shown(tensor: Tensor) -> str:
        return f"{tensor.dtype} of shape {tuple(tensor.shape)}"

    if not isinstance(value, Tensor):
        raise ValueError(f"{place} must be {shown(pattern)}, got {reprlib.repr(value)}")
    if value.dtype != pattern.dtype or value.shape != pattern.shape:
        raise ValueError(f"{place} must be {shown(pattern)}, got {shown(value)}")
    if value.is_floating_point() and not torch.isfinite(value).all():
        raise ValueError(f"{place} holds NaN or infinite values")


def _plain(value: Any) -> Any:
    """A pattern for what counts steps, which optimisers have as a number or as a tensor of one."""
    return torch.zeros((), dtype=torch.float32) if isinstance(value, Tensor) else 0
