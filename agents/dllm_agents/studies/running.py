"""``study``: trains and tests every cell of a grid, and writes what they say together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dllm_agents.plugin import policy_options
from dllm_agents.studies.cell import cell_directory, check_directory, read_record
from dllm_agents.studies.grid import Study, load_study, make_study
from dllm_agents.studies.page import write_page
from dllm_agents.studies.workers import Job, Processes, RayTasks, Workers, run
from dllm_agents.training import check_arguments
from dllm_gym.tasks import load_task


def study(
    grid: Study | Mapping[str, Any] | str | Path,
    directory: str | Path,
    *,
    jobs: int | None = None,
    ray: str | None = None,
    on_cell: Callable[[str], None] | None = None,
) -> Path:
    """Trains every algorithm on every task with every seed, tests the last policies, and compares them.

    Each cell of the grid is a training run (``dllm_agents.train``) in a process of its own, with as many
    threads as the study says. What is finished is not done again, what was interrupted goes on: given again
    after a kill at any moment, a study ends with the same tables, but for times. A cell whose process dies or
    fails is run three times in all.

    Args:
        grid: A study, the content of a study file (see ``make_study``), or its path or shipped name.
        directory: Gets ``results.md``, ``results.json`` and pictures, ``study.yaml`` with everything
            resolved, and ``cells/ALGORITHM/TASK/SEED/``, training runs with ``test/`` and ``log.txt``. A
            larger grid may go on in the directory of a smaller one.
        jobs: Processes at a time; ``None`` for as many as there are CPUs for their threads.
        ray: The address of a Ray cluster that shares ``directory``: cells are then its tasks, as many at a
            time as there are CPUs and GPUs for. ``local`` begins a cluster on this machine, for ``jobs``.
        on_cell: Called with a line about every cell that has ended.

    Returns:
        The directory.

    Raises:
        ValueError: For anything in the grid that is unknown or out of range, before anything is trained; for
            a directory with cells of another study.
        ChildProcessError: If cells failed, naming them. The others have been run, and the page is written.
        ImportError: With ``ray``, or for ``rllib-ppo``, without Ray.
    """
    directory = Path(directory).resolve()
    chosen = _study(grid)
    _check(chosen, directory, ray)
    directory.mkdir(parents=True, exist_ok=True)
    chosen.save(directory)

    missing = [cell for cell in chosen.cells if read_record(directory, chosen, cell) is None]
    todo = [
        Job(
            cell.name,
            "dllm_agents.studies.cell",
            (str(directory), cell.name),
            cell_directory(directory, cell) / "log.txt",
            Path.cwd(),
        )
        for cell in missing
    ]
    ended = len(chosen.cells) - len(missing)

    def tell(job: Job, ending: str, seconds: float, again: bool) -> None:
        nonlocal ended
        ended += not again
        how = f"{ending}, {'is run again' if again else 'given up'}" if ending else "done"
        if on_cell is not None:
            on_cell(f"[{ended}/{len(chosen.cells)}] {job.name}: {how} after {seconds:.0f} s")

    with _workers(chosen, jobs, ray) as workers:
        failed = run(todo, workers, on_ending=tell)
    found = {cell.name: read_record(directory, chosen, cell) for cell in chosen.cells}
    records = {name: record for name, record in found.items() if record is not None}
    if records:
        write_page(directory, chosen, records, failed)
    if failed:
        last, why = failed.popitem()
        others = f", as did {', '.join(failed)}" if failed else ""
        raise ChildProcessError(f"{len(failed) + 1} of {len(found)} cells failed: {last} {why}{others}")
    return directory


def _study(grid: Study | Mapping[str, Any] | str | Path) -> Study:
    if isinstance(grid, Study):
        return grid
    return make_study(grid) if isinstance(grid, Mapping) else load_study(grid)


def _check(chosen: Study, directory: Path, ray: str | None) -> None:
    """What the configurations themselves do not know: names that others take, tasks, what was begun."""
    if chosen.gpus and ray is None:
        raise ValueError(f"gpus are what Ray counts, got {chosen.gpus:g} without ray")
    for decoding in chosen.decodings:
        policy_options(decoding)
    for cell in chosen.cells:
        if cell.seed != chosen.seeds[0]:
            continue
        try:
            check_arguments(cell.config)
            env = cell.config.env
            load_task(env.get("task", "arithmetic"), split="test", **env.get("task_kwargs", {}))
        except ValueError as error:
            raise ValueError(f"{cell.algorithm}/{cell.task}: {error}") from error
    check_directory(directory, chosen)


@contextmanager
def _workers(chosen: Study, jobs: int | None, ray: str | None) -> Iterator[Workers]:
    count = max((os.cpu_count() or 1) // chosen.threads, 1) if jobs is None else jobs
    if count < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    if ray is None:
        yield Processes(count, chosen.threads)
        return
    from dllm_agents.ray_cluster import ray_cluster

    threads, gpus = chosen.threads, chosen.gpus
    with ray_cluster(ray, local_cpus=count * threads, cpus=threads, gpus=gpus, who="a study's cells"):
        yield RayTasks(threads, gpus)
