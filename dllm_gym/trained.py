"""What a dLLM from ``dllm-gym pretrain`` was trained on, as the record in its directory says."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from dllm_gym.backends import ASSETS, embedded_names
from dllm_gym.fields import OBJECT, TEXT, Field, check, check_fields, list_of
from dllm_gym.files import read_json
from dllm_gym.tasks import GenerativeTask, Task, load_task, task_factory, task_names

RECORD = "pretraining.json"
# What the dLLM for a task and its parameter size is called, where it is not tiny- and the task.
_EMBEDDED = {
    **{("latin-square", size): "tiny-latin" for size in (None, 4, 5)},
    ("sudoku", 6): "tiny-sudoku6",
}
_OURS = f"{Task.__module__.rpartition('.')[0]}."
_VARIANTS = Field(
    "null, an object with texts as keys, or a list of them",
    lambda value: value is None or OBJECT.fits(value) or (list_of(OBJECT).fits(value) and value != []),
)


def variants(task_kwargs: Any) -> list[dict[str, Any]]:
    """A task's parameters in a record or configuration, one per member of the mixture."""
    return task_kwargs if isinstance(task_kwargs, list) else [task_kwargs or {}]


def embedded_for(task: Any, size: Any = None) -> str:
    """What the dLLM that comes with the package for a task is called, if there is one.

    Args:
        task: Its name, or the task itself.
        size: The task's parameter of that name, where it is told and the task is not built yet.
    """
    name, size = getattr(task, "name", task), getattr(task, "size", size)
    return next((dllm for key, dllm in _EMBEDDED.items() if key == (name, size)), f"tiny-{name}")


def record_of(dllm: str | Path) -> Path:
    """Where the record of a dLLM is, by the dLLM's name or directory, if it has any."""
    return (ASSETS / dllm if dllm in embedded_names() else Path(dllm)) / RECORD


def trained_tasks(dllm: str | Path, split: str = "test") -> list[GenerativeTask]:
    """The tasks that a dLLM, by its name or directory, was trained on, several of them if it was a mixture.

    None where there is no record, and where its task is not registered or is none that a dLLM can be trained
    on here.

    Args:
        dllm: The dLLM.
        split: Of the tasks' problems.

    Raises:
        ValueError: For a record that does not tell, or parameters that the task does not take.
    """
    path = record_of(dllm)
    if not path.is_file():
        return []
    record = check_fields(read_json(path), {"config": OBJECT}, str(path))
    (task,) = check_fields(record["config"], {"task": TEXT}, f"{path}, config").values()
    task_kwargs = record["config"].get("task_kwargs")
    check(task_kwargs, _VARIANTS, f"{path}, config: task_kwargs")
    # the record may be a stranger's: it must not get at tasks that look for their data elsewhere
    if task not in task_names() or not hasattr(task_factory(task), "write"):
        return []
    tasks: list[Any] = [load_task(task, split, **variant) for variant in variants(task_kwargs)]
    return tasks


def trained_length(dllm: str | Path) -> int | None:
    """The longest completion that a dLLM was trained on, as far as it is known."""
    return max((task.completion_length for task in trained_tasks(dllm)), default=None)


def warn_if_untrained(dllm: str | Path, task: Task) -> None:
    """Warns of problems that a dLLM never saw, if it is known what it was trained on.

    Those of one task differ in kind where their completions differ in length, as Sudokus of other sizes do. A
    task of the user's own may be made for this dLLM: of those nothing is said.
    """
    trained = {(known.name, known.completion_length) for known in trained_tasks(dllm)}
    parts = [one for one in getattr(task, "members", [task]) if type(one).__module__.startswith(_OURS)]
    for part in parts:
        if trained and (part.name, part.completion_length) not in trained:
            seen = " and ".join(f"{name} with {length} positions" for name, length in sorted(trained))
            warnings.warn(
                f"the dLLM {Path(dllm).name} was trained on {seen}, not on {part.name} with "
                f"{part.completion_length}: expect it to solve next to nothing",
                stacklevel=3,
            )
