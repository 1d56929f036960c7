"""Tasks by name: problems and verifiers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dllm_gym.arguments import call_named
from dllm_gym.tasks.arithmetic import ArithmeticTask
from dllm_gym.tasks.base import SPLITS, GenerativeTask, Problem, Task
from dllm_gym.tasks.sudoku import SudokuTask

__all__ = ["SPLITS", "GenerativeTask", "Problem", "Task", "load_task", "register_task", "task_names"]

_TASKS: dict[str, Callable[..., Any]] = {"arithmetic": ArithmeticTask, "sudoku": SudokuTask}


def register_task(name: str, factory: Callable[..., Task]) -> None:
    """Makes ``load_task(name, split=..., **kwargs)`` call ``factory(split=..., **kwargs)``."""
    _TASKS[name] = factory


def task_names() -> list[str]:
    """The registered tasks."""
    return sorted(_TASKS)


def load_task(name: str, split: str = "test", **kwargs: Any) -> Task:
    """Builds a task by name.

    Args:
        name: A registered task (``task_names()``).
        split: ``train``, ``validation`` or ``test``.
        **kwargs: The task's own parameters.

    Raises:
        ValueError: For an unknown name, split, parameter or parameter value.
    """
    if name not in _TASKS:
        raise ValueError(f"unknown task {name!r}; known tasks: {', '.join(task_names())}")
    task: Task = call_named(f"task {name!r}", _TASKS[name], {"split": split, **kwargs})
    return task
