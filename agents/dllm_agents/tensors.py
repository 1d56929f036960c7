"""Reading weights that must fit: what is missing, left over, misshapen or not finite is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or of another kind.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    return tensors


def check_tensors(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]]) -> None:
    """Compares tensors with the shapes they must have; ``path`` is for the message.

    Raises:
        ValueError: If names or shapes differ, or values are NaN or infinite.
    """
    missing, unexpected = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or unexpected:
        raise ValueError(f"{path} does not fit the network: missing {missing}, unexpected {unexpected}")
    for name, tensor in tensors.items():
        if tensor.shape != tuple(expected[name]):
            shapes = f"{tuple(tensor.shape)}, expected {tuple(expected[name])}"
            raise ValueError(f"{path}: tensor {name!r} has shape {shapes}")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: tensor {name!r} holds NaN or infinite values")
