"""Several processes that train one policy, each on its own device with its own problems.

``accelerate launch --num_processes 8 -m dllm_gym train grpo ...`` starts them. Every process collects its
own groups; what an update needs is summed over all, so that they take the step that one process would take
on everything they collected. In a program of one process these functions change nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

_PATIENCE = timedelta(hours=12)  # the first process also evaluates, and the others wait for it


@contextmanager
def launched() -> Iterator[bool]:
    """Joins the processes that a launcher started, if one did; says whether this is the first of them.

    Raises:
        ImportError: If there are several and the extra ``large`` is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield True
        return
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ImportError(
            "training in several processes needs accelerate: pip install 'dllm-gym[agents,large]'"
        ) from error
    PartialState(timeout=_PATIENCE)  # picks this process's GPU, or gloo where there is none
    yield rank() == 0
    dist.destroy_process_group()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _several() else 0


def count() -> int:
    """How many processes train."""
    return dist.get_world_size() if _several() else 1


def share(number: int) -> int:
    """This process's part of a number that is meant for all together, rounded up."""
    return -(-number // count())


def total(*numbers: float) -> list[float]:
    """Sums over all processes."""
    return _reduced(numbers, dist.ReduceOp.SUM)


def largest(number: int) -> int:
    """The maximum over all processes."""
    return int(_reduced((number,), dist.ReduceOp.MAX)[0])


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Makes every gradient its sum over all processes; one that a process lacks counts as zero there."""
    if not _several():
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])
    dist.all_reduce(flat)
    for parameter, piece in zip(trained, torch.split(flat, [p.numel() for p in trained]), strict=True):
        parameter.grad = piece.view_as(parameter).clone()


def same_as_first(tensors: Iterable[Tensor]) -> None:
    """Overwrites tensors with those of the first process; returns when all processes have come here."""
    if _several():
        for tensor in tensors:
            dist.broadcast(tensor, 0)
        dist.barrier()


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()


def _reduced(numbers: Iterable[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
    if not _several():
        return list(numbers)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(list(numbers), dtype=torch.float64, device=device)
    dist.all_reduce(tensor, op=operation)
    reduced: list[float] = tensor.tolist()
    return reduced
