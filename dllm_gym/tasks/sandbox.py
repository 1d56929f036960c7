"""Runs programs that a model wrote, in processes with as few rights as the kernel can leave them."""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

_Result = TypeVar("_Result")
_CHILD = Path(__file__).with_name("sandbox_child.py")
_LONGEST_MESSAGE = 65536  # bytes; what the child reports is far shorter
# no site-packages, no folder of a script, no files of bytecode; output is written at once
_FLAGS = ("-S", "-P", "-s", "-B", "-u", "-X", "utf8")
_START = 60.0  # seconds until the layers are in place; a busy machine is no reason to fail
_GRACE = 2.0  # seconds for a process that has closed its socket to end

# What a program must not be able to do, and the layers of which any one suffices.
_LAYERS_FOR = {
    "network": ("namespaces", "seccomp"),
    "processes": ("namespaces", "seccomp"),
    "files": ("namespaces", "landlock"),
}
GUARANTEES = tuple(_LAYERS_FOR)
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
        return self._with_what_there_is(program, tests, lambda run: run.outcome())

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
        return {name: tuple(sorted(layers & set(any_of))) for name, any_of in _LAYERS_FOR.items()}

    def check(self) -> None:
        """Raises ``SandboxError`` if a required guarantee cannot be had here."""
        self._with_what_there_is("", (), lambda run: run.confine())

    def _with_what_there_is(
        self, program: str | Sequence[str], tests: Sequence[str], use: Callable[[_Run], _Result]
    ) -> _Result:
        """``use`` of a run, which is started anew without a layer that turns out not to be granted."""
        while True:
            with _Run(self, program, tests) as run:
                try:
                    return use(run)
                except _LayerMissing as missing:
                    self._missing[missing.layer] = missing.why


class _LayerMissing(Exception):
    def __init__(self, layer: str, why: str) -> None:
        super().__init__(f"{layer}: {why}")
        self.layer = layer
        self.why = why


class _Run:
    """One program in one sandbox, from the start of the process to the removal of its folder."""

    def __init__(self, sandbox: Sandbox, program: str | Sequence[str], tests: Sequence[str]) -> None:
        if sys.platform != "linux":
            raise SandboxError(f"programs of a model are run on Linux only, not on {sys.platform}")
        self.sandbox = sandbox
        self.programs = [program] if isinstance(program, str) else list(program)
        self.tests = [str(test) for test in tests]
        self.output = bytearray()
        self.pending = bytearray()  # of a message that has not ended yet

    def __enter__(self) -> _Run:
        self.began = time.monotonic()
        self.deadline = self.began + _START
        self.folder = tempfile.TemporaryDirectory(prefix="dllm-gym-sandbox-", ignore_cleanup_errors=True)
        self.control, theirs = socket.socketpair()
        try:
            self.process = subprocess.Popen(
                [_interpreter(), *_FLAGS, str(_CHILD), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=self.folder.name,
                # a fixed seed: sets are walked in the same order every time, so that scores repeat
                env={"LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        finally:
            theirs.close()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.control.close()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.folder.cleanup()

    def outcome(self) -> Outcome:
        status, passed = self._judge()
        self._drain()
        return Outcome(
            status=status,
            passed=passed if passed is not None else (False,) * len(self.tests),
            output=bytes(self.output).decode("utf-8", "replace"),
            seconds=time.monotonic() - self.began,
        )

    def layers(self) -> set[str]:
        """Starts the confinement and returns the layers it consists of."""
        sandbox = self.sandbox
        self._send(
            {
                "folder": self.folder.name,
                "readable": _readable(sandbox.packages),
                "packages": [str(folder) for folder in sandbox.packages],
                "limits": asdict(sandbox.limits),
                "without": [*sandbox.without, *sandbox._missing],
            }
        )
        answer = self._receive()
        report: dict[str, Any] = json.loads(answer) if answer else {}
        if "unavailable" in report:
            raise _LayerMissing(report["unavailable"], report["why"])
        if "layers" not in report:
            raise SandboxError(f"the sandbox did not start: {bytes(self.output).decode('utf-8', 'replace')}")
        self.notes = {**sandbox._missing, **report["notes"]}
        return set(report["layers"])

    def confine(self) -> None:
        """Starts the confinement; raises ``SandboxError`` if a required guarantee does not hold."""
        layers = self.layers()
        for guarantee in self.sandbox.require:
            if not layers & set(_LAYERS_FOR[guarantee]):
                raise SandboxError(self._refusal(guarantee))

    def _judge(self) -> tuple[str, tuple[bool, ...] | None]:
        self.confine()
        # only now, in a process that can do no harm, does the program come in
        self.deadline = time.monotonic() + self.sandbox.limits.wall_seconds
        self._send({"programs": self.programs})
        answer = self._receive()
        if answer == b"broken":
            return "broken", None
        if answer != b"loaded":
            return self._why(), None
        # Neither the tests nor the nonce are in that process any sooner than they have to be.
        # In hexadecimal, which needs nothing that the program could have replaced.
        words = [test.encode("utf-8", "surrogatepass").hex() for test in self.tests]
        self._send_bytes(" ".join(words).encode() + b"\n")
        if self._receive() != b"done":
            return self._why(), None
        nonce = secrets.token_hex(16).encode() + b" "
        self._send_bytes(nonce)
        answer = self._receive()
        verdict = answer[len(nonce) :] if answer is not None and answer.startswith(nonce) else None
        if verdict is None or len(verdict) != len(self.tests) or set(verdict) - set(b"01"):
            return self._why(), None
        return "finished", tuple(bit == ord("1") for bit in verdict)

    def _refusal(self, guarantee: str) -> str:
        wanted = " or ".join(_LAYERS_FOR[guarantee])
        why = "; ".join(f"{layer}: {reason}" for layer, reason in self.notes.items()) or "they were left out"
        return (
            f"programs of a model are not run: {guarantee!r} cannot be guaranteed here, which takes {wanted} "
            f"({why}). See docs/sandbox.md, or give up the guarantee: "
            f"Sandbox(require={tuple(name for name in self.sandbox.require if name != guarantee)!r})"
        )

    def _why(self) -> str:
        """What to call the end of a process that gave no verdict."""
        if time.monotonic() >= self.deadline:
            return "timeout"
        with suppress(subprocess.TimeoutExpired):
            code = self.process.wait(_GRACE)
            # signals: its own where it is the first process, else as passed on by those that waited for it
            if code in (-signal.SIGXCPU, 256 - signal.SIGXCPU):
                return "timeout"
        return "died"

    def _send(self, message: Any) -> None:
        self._send_bytes(json.dumps(message).encode() + b"\n")

    def _send_bytes(self, data: bytes) -> None:
        self.control.settimeout(max(self.deadline - time.monotonic(), 0.001))
        with suppress(OSError):  # it has gone or does not listen; the missing answer says so
            self.control.sendall(data)

    def _receive(self) -> bytes | None:
        """The next line of the child, while its output is read; None if it ends or time runs out first."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.control, selectors.EVENT_READ)
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while (left := self.deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    data = (
                        os.read(key.fd, 65536) if key.fileobj is self.process.stdout else self._read_control()
                    )
                    if not data:
                        selector.unregister(key.fileobj)
                        if key.fileobj is self.control:
                            return None
                    elif key.fileobj is self.control:
                        self.pending += data
                        line, newline, rest = self.pending.partition(b"\n")
                        if newline:
                            self.pending = rest
                            return bytes(line)
                        if len(line) > _LONGEST_MESSAGE:
                            return None
                    else:
                        self.output += data[: self.sandbox.limits.output_bytes - len(self.output)]
        return None

    def _drain(self) -> None:
        """Reads what it had already written when it was judged."""
        assert self.process.stdout is not None
        output, limit = self.process.stdout.fileno(), self.sandbox.limits.output_bytes
        os.set_blocking(output, False)
        with suppress(BlockingIOError):
            while len(self.output) < limit and (data := os.read(output, 65536)):
                self.output += data[: limit - len(self.output)]

    def _read_control(self) -> bytes:
        with suppress(ConnectionResetError):
            return self.control.recv(65536)
        return b""


def _interpreter() -> str:
    """The interpreter itself, not a virtual environment's link to it."""
    return os.path.realpath(sys.executable)


def _readable(packages: Sequence[Path]) -> list[str]:
    """Files and folders a program may read: Python, shared libraries, ``packages``."""
    paths = sysconfig.get_paths()
    wanted = [sys.base_prefix, sys.base_exec_prefix, paths["stdlib"], paths["platstdlib"]]
    wanted += ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo"]
    wanted += [str(folder) for folder in packages]
    kept: list[str] = []
    for path in sorted({os.path.normpath(path) for path in wanted if Path(path).exists()}):
        if not any(path.startswith(f"{folder}/") for folder in kept):
            kept.append(path)
    return kept
