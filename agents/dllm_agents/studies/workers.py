"""Runs jobs in processes of their own, on this machine or as Ray tasks; one that dies is run again.

``python -m dllm_agents.studies.workers PARENT MODULE ARGUMENTS...`` is such a process: it runs the module,
and ends with the process that started it.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

TRIES = 3
_POLL = 0.1  # seconds
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_TAIL = 4096  # bytes of a log that are looked at


@dataclass(frozen=True)
class Job:
    """A module to be run with arguments, like ``python -m``.

    Attributes:
        name: For messages.
        module: The module.
        arguments: Its arguments.
        log: The file that gets what it prints, after what is there.
        folder: Its working directory.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    log: Path
    folder: Path


class Workers(Protocol):
    """Where jobs are run; a handle is whatever ``start`` returns."""

    count: int
    """How many jobs may have been started and not ended."""

    def start(self, job: Job) -> Any:
        """Starts a job, or has it wait for its place."""

    def ending(self, handle: Any) -> str | None:
        """How a job ended: empty if all went well; ``None`` while it is running."""

    def stop(self, handle: Any) -> None:
        """Ends a job."""


class Processes:
    """Processes on this machine.

    Args:
        count: How many at a time.
        threads: Of each.
    """

    def __init__(self, count: int, threads: int = 1) -> None:
        self.count, self._threads = count, threads

    def start(self, job: Job) -> subprocess.Popen[bytes]:
        """Starts a job."""
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", __name__, str(os.getpid()), job.module, *job.arguments],
                cwd=job.folder,
                env={**os.environ, "OMP_NUM_THREADS": str(self._threads)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def ending(self, handle: subprocess.Popen[bytes]) -> str | None:
        """See ``Workers``."""
        return None if handle.poll() is None else _told(handle.returncode)

    def stop(self, handle: subprocess.Popen[bytes]) -> None:
        """Ends a job."""
        handle.kill()
        handle.wait()


class RayTasks:
    """Tasks of the Ray cluster this program is connected to, each of which attends to a process.

    The cluster's machines share the file system and have the same environment.

    Args:
        threads: Of each process; as many CPUs a task takes.
        gpus: What a task takes of the GPUs. Ray tells the process which ones it may use.
    """

    count = sys.maxsize  # Ray has them wait

    def __init__(self, threads: int = 1, gpus: float = 0) -> None:
        import ray

        self._ray, self._threads = ray, threads
        # no process is run for a second task: the next one may be given another GPU
        options = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0, max_calls=1)
        self._attend = options(_attend)

    def start(self, job: Job) -> Any:
        """Hands a job to Ray."""
        return self._attend.remote(job, self._threads)

    def ending(self, handle: Any) -> str | None:
        """See ``Workers``."""
        if not self._ray.wait([handle], timeout=0)[0]:
            return None
        try:
            ending: str = self._ray.get(handle)
        except self._ray.exceptions.RayError as error:
            return str(error).partition("\n")[0] or type(error).__name__
        return ending

    def stop(self, handle: Any) -> None:
        """Ends a job."""
        self._ray.cancel(handle, force=True)


def run(
    jobs: Sequence[Job],
    workers: Workers,
    tries: int = TRIES,
    on_ending: Callable[[Job, str, float, bool], None] | None = None,
) -> dict[str, str]:
    """Runs jobs to their end. One that dies, or fails, is run again; the rest goes on meanwhile.

    Args:
        jobs: What to run, in this order as far as there are workers.
        workers: Where.
        tries: How often a job is run at most.
        on_ending: Called with a job, how it ended (see ``Workers``), its seconds and whether it is run again.

    Returns:
        Those that failed, by name: how they ended the last time, and the last line they printed.
    """
    waiting, left = deque(jobs), dict.fromkeys(jobs, tries)
    running: dict[Job, tuple[Any, float]] = {}
    failed: dict[str, str] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers.count:
                job = waiting.popleft()
                running[job] = workers.start(job), time.monotonic()
            time.sleep(_POLL)
            for job, (handle, started) in list(running.items()):
                ending = workers.ending(handle)
                if ending is None:
                    continue
                del running[job]
                left[job] -= 1
                again = bool(ending) and left[job] > 0
                if again:
                    waiting.append(job)
                elif ending:
                    failed[job.name] = f"{ending}; {job.log} ends with: {_last_line(job.log)}"
                if on_ending is not None:
                    on_ending(job, ending, time.monotonic() - started, again)
    finally:
        for handle, _ in running.values():
            workers.stop(handle)
    return failed


def _attend(job: Job, threads: int) -> str:
    """Runs a job in a process, from a task of Ray's, and tells how it ended."""
    return _told(Processes(1, threads).start(job).wait())


def _told(status: int) -> str:
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"ended with status {status}" if status else ""


def _last_line(path: Path) -> str:
    if not path.is_file():
        return "nothing"
    lines = path.read_bytes()[-_TAIL:].decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "nothing"


def _main() -> None:
    """See the module's text."""
    parent, module, *arguments = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):  # it was faster
            sys.exit("the process that started this one has ended")
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
