"""What a sandbox is asked and what it answers: limits, guarantees, jobs, outcomes."""

from __future__ import annotations

from dataclasses import dataclass, fields

# What a program must not be able to do, and the layers of which any one suffices.
LAYERS_FOR = {
    "network": ("namespaces", "seccomp"),
    "processes": ("namespaces", "seccomp"),
    "files": ("namespaces", "landlock"),
}
GUARANTEES = tuple(LAYERS_FOR)
LAYERS = ("namespaces", "landlock", "seccomp")


class SandboxError(RuntimeError):
    """The sandbox cannot be had here as it was asked for; the program was not run."""


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        wall_seconds: From when the program is loaded to its last test; then everything is killed.
        cpu_seconds: Processor time, all threads together; whole seconds.
        memory_mib: Address space; Python itself takes about 30 MiB of it.
        file_mib: Largest single file.
        disk_mib: All files together, where namespaces are had (they lie in memory then).
        open_files: Open files, sockets and pipes, Python's own included.
        threads: Threads at a time, where namespaces are had.
        output_bytes: How much of what it prints is kept; the rest is read and forgotten.
    """

    wall_seconds: float = 10.0
    cpu_seconds: int = 10
    memory_mib: int = 512
    file_mib: int = 16
    disk_mib: int = 64
    open_files: int = 64
    threads: int = 16
    output_bytes: int = 65536

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            whole = field.name != "wall_seconds"
            if (
                isinstance(value, bool)
                or not isinstance(value, int if whole else (int, float))
                or not value > 0
            ):
                kind = "a whole number above 0" if whole else "a number above 0"
                raise ValueError(f"limit {field.name} must be {kind}, got {value!r}")


@dataclass(frozen=True)
class Job:
    """A program and the tests it has to pass.

    Attributes:
        program: Python source, loaded as a module named ``solution``; of several the first that compiles.
            (Only in there is that found out: some texts crash the interpreter that parses them.)
        tests: Python sources. Each is run after the other in one namespace that begins as a copy of the
            program's; a test passes if it raises nothing.
    """

    program: str | tuple[str, ...]
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """How a program did.

    Attributes:
        status: ``finished`` (every test ran), ``broken`` (the program raised while it was loaded),
            ``timeout`` (wall clock or processor time) or ``died`` (it ended early, was killed by a limit or
            answered nonsense).
        passed: Per test; all False unless ``finished``.
        output: What it wrote to standard output and error, cut at the limit.
        seconds: Wall clock time, the start of the sandbox included.
    """

    status: str
    passed: tuple[bool, ...]
    output: str
    seconds: float

    @property
    def correct(self) -> bool:
        """Whether there were tests and all passed."""
        return bool(self.passed) and all(self.passed)
