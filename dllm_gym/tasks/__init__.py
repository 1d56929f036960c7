"""Tasks by name: problems and verifiers."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from dllm_gym.arguments import call_named
from dllm_gym.suggestions import did_you_mean
from dllm_gym.tasks.base import SPLITS, GenerativeTask, Problem, Task

__all__ = ["SPLITS", "GenerativeTask", "Problem", "Task", "load_task", "register_task", "task_names"]

# Factories, or where they are: a task is imported when it is first built.
_TASKS: dict[str, Callable[..., Any] | str] = {
    "arithmetic": "dllm_gym.tasks.arithmetic:ArithmeticTask",
    "countdown": "dllm_gym.tasks.countdown:CountdownTask",
    "gsm8k": "dllm_gym.tasks.gsm8k:GSM8KTask",
    "humaneval": "dllm_gym.tasks.humaneval:HumanEvalTask",
    "kodcode": "dllm_gym.tasks.kodcode:KodCodeTask",
    "latin-square": "dllm_gym.tasks.latin_square:LatinSquareTask",
    "lists": "dllm_gym.tasks.lists:ListsTask",
    "math500": "dllm_gym.tasks.math500:Math500Task",
    "mbpp": "dllm_gym.tasks.mbpp:MBPPTask",
    "mixture": "dllm_gym.tasks.mixture:MixtureTask",
    "parallelbench": "dllm_gym.tasks.parallelbench:ParallelBenchTask",
    "reasoning-gym": "dllm_gym.tasks.reasoning:ReasoningGymTask",
    "records": "dllm_gym.tasks.records:RecordsTask",
    "sudoku": "dllm_gym.tasks.sudoku:SudokuTask",
}


def register_task(name: str, factory: Callable[..., Task]) -> None:
    """Makes ``load_task(name, split=..., **kwargs)`` call ``factory(split=..., **kwargs)``."""
    _TASKS[name] = factory


def task_names() -> list[str]:
    """The registered tasks."""
    return sorted(_TASKS)


def task_factory(name: str) -> Callable[..., Any]:
    """What builds the registered task ``name``; in most cases its class.

    Raises:
        ValueError: For an unknown name.
    """
    if name not in _TASKS:
        hint, known = did_you_mean(name, _TASKS), ", ".join(task_names())
        raise ValueError(
            f"unknown task {name!r}{hint}; known tasks: {known}; one of your own is registered first "
            "(register_task; on the command line --import my_tasks.py)"
        )
    factory = _TASKS[name]
    if isinstance(factory, str):
        module, _, attribute = factory.partition(":")
        factory = getattr(import_module(module), attribute)
    return factory


def load_task(name: str, split: str = "test", **kwargs: Any) -> Task:
    """Builds a task by name.

    Args:
        name: A registered task (``task_names()``). ``FAMILY:NAME``, as in ``reasoning-gym:chain_sum`` or
            ``parallelbench:waiting_line/copy``, is short for ``dataset=NAME`` among the parameters of
            ``FAMILY``.
        split: ``train``, ``validation`` or ``test``.
        **kwargs: The task's own parameters.

    Raises:
        ValueError: For an unknown name, split, parameter or parameter value.
        FileNotFoundError: If the task needs data and there is none.
        ImportError: If the task needs a package that is not installed.
    """
    family, colon, member = name.partition(":")
    factory = task_factory(family)
    if colon:
        kwargs = {"dataset": member, **kwargs}
    task: Task = call_named(f"task {name!r}", factory, {"split": split, **kwargs})
    return task
