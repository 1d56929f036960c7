"""The sandbox itself: what a machine can guarantee, and programs run where that is enough."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from dllm_gym.sandbox.base import GUARANTEES, LAYERS, LAYERS_FOR, Job, Limits, Outcome, SandboxError
from dllm_gym.sandbox.process import LayerMissing, Run

_Result = TypeVar("_Result")


class Sandbox:
    """Runs Python programs nobody has read, on Linux.

    Every program gets a fresh interpreter with an empty environment and closed standard input, in a temporary
    folder that is removed afterwards. ``docs/sandbox.md`` says how each limit is enforced and what it does
    **not** protect against; ``guarantees()`` says what holds on this machine.

    Args:
        limits: What a program may use.
        require: The guarantees without which nothing is run: ``network`` (no connection to anywhere, not even
            to this machine), ``processes`` (it cannot see, signal or outlive others, nothing it started
            stays) and ``files`` (it reads Python and the system's libraries only). Dropping one is the way
            to run on a machine that cannot give it; the program then has that right.
        packages: Folders whose Python packages programs may import, such as a ``site-packages``; readable.
        without: Layers to leave out (``namespaces``, ``landlock``, ``seccomp``), so that you can see here
            what a machine without them would do.

    Raises:
        ValueError: For an unknown guarantee or layer, or a folder that does not exist.
    """

    # What this machine turned out not to grant, and why; found out once per process
    _missing: dict[str, str] = {}  # noqa: RUF012

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        require: Collection[str] = GUARANTEES,
        packages: Sequence[str | Path] = (),
        without: Collection[str] = (),
    ) -> None:
        for what, names, known in (("guarantee", require, GUARANTEES), ("layer", without, LAYERS)):
            if unknown := set(names) - set(known):
                raise ValueError(f"unknown {what} {sorted(unknown)!r}; known are {', '.join(known)}")
        self.limits = limits if limits is not None else Limits()
        self.require = tuple(name for name in GUARANTEES if name in require)
        self.without = tuple(name for name in LAYERS if name in without)
        self.packages = tuple(Path(folder).resolve() for folder in packages)
        for folder in self.packages:
            if not folder.is_dir():
                raise ValueError(f"packages: {folder} is not a folder")

    def run(self, program: str | Sequence[str], tests: Sequence[str]) -> Outcome:
        """Loads a program and runs tests on it.

        Args:
            program: Python source, any string, or several; see ``Job``.
            tests: Python sources; see ``Job``.

        Returns:
            How it did. Whatever the program does ends up in here; nothing of it is raised.

        Raises:
            SandboxError: If a required guarantee cannot be had here.
        """

        def judged(run: Run) -> Outcome:
            self._require(run)
            return run.outcome()

        return self._with_what_there_is(program, tests, judged)

    def run_many(self, jobs: Iterable[Job], workers: int | None = None) -> list[Outcome]:
        """Runs many programs side by side, one process each.

        Args:
            jobs: Programs with their tests.
            workers: How many at a time; as many as there are processors by default.

        Returns:
            Their outcomes, in the order of ``jobs``.

        Raises:
            SandboxError: If a required guarantee cannot be had here.
        """
        workers = workers if workers is not None else len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(lambda job: self.run(job.program, job.tests), jobs))

    def guarantees(self) -> dict[str, tuple[str, ...]]:
        """What holds on this machine, found out by starting a sandbox.

        Returns:
            For ``network``, ``processes`` and ``files`` the layers that see to it; none means that it does
            not hold.

        Raises:
            SandboxError: If no sandbox can be started at all.
        """
        layers = self._with_what_there_is("", (), lambda run: run.layers())
        return {name: tuple(sorted(layers & set(any_of))) for name, any_of in LAYERS_FOR.items()}

    def check(self) -> None:
        """Raises ``SandboxError`` if a required guarantee cannot be had here."""
        self._with_what_there_is("", (), self._require)

    def _with_what_there_is(
        self, program: str | Sequence[str], tests: Sequence[str], use: Callable[[Run], _Result]
    ) -> _Result:
        """``use`` of a run, which is started anew without a layer that turns out not to be granted."""
        while True:
            without = (*self.without, *self._missing)
            with Run(self.limits, self.packages, without, program, tests) as run:
                try:
                    return use(run)
                except LayerMissing as missing:
                    self._missing[missing.layer] = missing.why

    def _require(self, run: Run) -> None:
        """Raises ``SandboxError`` if a required guarantee does not hold in a run."""
        layers = run.layers()
        for guarantee in self.require:
            if not layers & set(LAYERS_FOR[guarantee]):
                raise SandboxError(self._refusal(guarantee, {**self._missing, **run.notes}))

    def _refusal(self, guarantee: str, notes: Mapping[str, str]) -> str:
        wanted = " or ".join(LAYERS_FOR[guarantee])
        why = "; ".join(f"{layer}: {reason}" for layer, reason in notes.items()) or "they were left out"
        return (
            f"programs of a model are not run: {guarantee!r} cannot be guaranteed here, which takes {wanted} "
            f"({why}). See docs/sandbox.md, or give up the guarantee: "
            f"Sandbox(require={tuple(name for name in self.require if name != guarantee)!r})"
        )
