"""One program in one process with as few rights as the kernel can leave it."""

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
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dllm_gym.sandbox.base import Limits, Outcome, SandboxError
from dllm_gym.sandbox.folders import remove_folder

_INSIDE = Path(__file__).with_name("inside") / "main.py"
_LONGEST_MESSAGE = 65536  # bytes; what the child reports is far shorter
# no site-packages, no files of bytecode; output is written at once
_FLAGS = ("-S", "-s", "-B", "-u", "-X", "utf8")
_START = 60.0  # seconds until the layers are in place; a busy machine is no reason to fail
_GRACE = 2.0  # seconds for a process that has closed its socket to end


class LayerMissing(Exception):
    """A layer that this machine does not grant; a new process can do without."""

    def __init__(self, layer: str, why: str) -> None:
        super().__init__(f"{layer}: {why}")
        self.layer = layer
        self.why = why


class Run:
    """One program in one sandbox, from the start of the process to the removal of its folder.

    Args:
        limits: What the program may use.
        packages: Folders whose packages it may import.
        without: Layers to leave out.
        program: Its source, or several; see ``Job``.
        tests: Sources; see ``Job``.

    Attributes:
        notes: By layer, why it could not be had; known after ``layers``.

    Raises:
        SandboxError: Elsewhere than on Linux.
    """

    def __init__(
        self,
        limits: Limits,
        packages: Sequence[Path],
        without: Collection[str],
        program: str | Sequence[str],
        tests: Sequence[str],
    ) -> None:
        if sys.platform != "linux":
            raise SandboxError(f"programs of a model are run on Linux only, not on {sys.platform}")
        self.limits, self.packages, self.without = limits, packages, without
        self.notes: dict[str, str] = {}
        self.programs = [program] if isinstance(program, str) else list(program)
        self.tests = [str(test) for test in tests]
        self.output = bytearray()
        self.pending = bytearray()  # of a message that has not ended yet

    def __enter__(self) -> Run:
        self.began = time.monotonic()
        self.deadline = self.began + _START
        self.folder = tempfile.mkdtemp(prefix="dllm-gym-sandbox-")
        self.control, theirs = socket.socketpair()
        try:
            self.process = subprocess.Popen(
                [_interpreter(), *_FLAGS, str(_INSIDE), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
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
        with suppress(OSError):
            remove_folder(self.folder)

    def outcome(self) -> Outcome:
        """Sends the program into the confined process and judges it; ``layers`` comes first."""
        status, passed = self._judge()
        self._drain()
        return Outcome(
            status=status,
            passed=passed if passed is not None else (False,) * len(self.tests),
            output=bytes(self.output).decode("utf-8", "replace"),
            seconds=time.monotonic() - self.began,
        )

    def layers(self) -> set[str]:
        """Starts the confinement and returns the layers it consists of.

        Raises:
            LayerMissing: If it turns out to want one that the machine does not grant.
            SandboxError: If it cannot be started at all.
        """
        self._send(
            {
                "folder": self.folder,
                "readable": _readable(self.packages),
                "packages": [str(folder) for folder in self.packages],
                "limits": asdict(self.limits),
                "without": list(self.without),
            }
        )
        answer = self._receive()
        report: dict[str, Any] = json.loads(answer) if answer else {}
        if "unavailable" in report:
            raise LayerMissing(report["unavailable"], report["why"])
        if "layers" not in report:
            raise SandboxError(f"the sandbox did not start: {bytes(self.output).decode('utf-8', 'replace')}")
        self.notes = report["notes"]
        return set(report["layers"])

    def _judge(self) -> tuple[str, tuple[bool, ...] | None]:
        # only now, in a process that can do no harm, does the program come in
        self.deadline = time.monotonic() + self.limits.wall_seconds
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
                        self.output += data[: self.limits.output_bytes - len(self.output)]
        return None

    def _drain(self) -> None:
        """Reads what it had already written when it was judged."""
        assert self.process.stdout is not None
        output, limit = self.process.stdout.fileno(), self.limits.output_bytes
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
