"""Reading weights that must fit: what is missing, left over, misshapen or not finite is refused.

Nothing is allocated that a file merely claims: the network is built once the tensors are known to fill it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


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
    except (SafetensorError, ValueError, KeyError, AttributeError, TypeError) as error:  # unknown dtypes
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    return tensors


def shapes_of(path: Path, build: Callable[[], nn.Module]) -> dict[str, tuple[int, ...]]:
    """The shapes that the tensors of a network have; no memory is taken for them.

    Raises:
        ValueError: For sizes beyond what a tensor can have; ``path`` is for the message.
    """
    try:
        with torch.device("meta"):
            return {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}
    except (RuntimeError, OverflowError, TypeError) as error:
        raise ValueError(f"{path} describes a network of impossible size: {error}") from None


def check_tensors(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]]) -> None:
    """Compares tensors with the shapes they must have; ``path`` is for the message.

    Raises:
        ValueError: If names or shapes differ, or values are no floats, NaN or infinite.
    """
    missing, unexpected = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or unexpected:
        raise ValueError(f"{path} does not fit the network: missing {missing}, unexpected {unexpected}")
    for name, tensor in tensors.items():
        if tensor.shape != tuple(expected[name]):
            shapes = f"{tuple(tensor.shape)}, expected {tuple(expected[name])}"
            raise ValueError(f"{path}: tensor {name!r} has shape {shapes}")
        if tensor.dtype not in _DTYPES:
            accepted = ", ".join(str(dtype) for dtype in _DTYPES)
            raise ValueError(f"{path}: tensor {name!r} is of {tensor.dtype}, accepted are {accepted}")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: tensor {name!r} holds NaN or infinite values")
