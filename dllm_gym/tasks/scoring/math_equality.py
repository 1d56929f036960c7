"""Equality of LaTeX answers by value, through the package math-verify in a process of its own.

math-verify (Apache-2.0) parses LaTeX and lets sympy compare. Sympy may take for ever or all memory on what
a model writes (``9^{9^{9^9}}``), inside C code that no signal interrupts; math-verify's own timeout is
such a signal and works in the main thread only. Here a worker process compares, with limited memory, and
is ended when it takes too long.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import re
import subprocess
import sys
import threading
from contextlib import suppress
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from dllm_gym.tasks.scoring.answers import plain_latex

_TIMEOUT = 10.0  # seconds for one comparison, which mostly takes milliseconds
_START_TIMEOUT = 120.0  # seconds; importing sympy takes a few on a busy machine
_MAX_LENGTH = 300  # characters; no answer of MATH is longer

_BASE = re.compile(r"\d_\{?(\d+)")


def require_math_verify() -> None:
    """Raises ``ImportError`` naming the extra if math-verify is not installed."""
    if find_spec("math_verify") is None:
        raise ImportError(
            "equality='math-verify' needs the package math-verify: pip install 'dllm-gym[math]'; "
            "equality='text' does without"
        )


@lru_cache(maxsize=4096)
def same_value(gold: str, answer: str) -> bool:
    """Whether ``answer`` has the value of ``gold``, both LaTeX; the worker starts at the first call.

    What cannot be read, is longer than 300 characters or takes more than 10 seconds is not equal.
    """
    gold, answer = plain_latex(gold), plain_latex(answer)
    if {*_BASE.findall(gold)} != {*_BASE.findall(answer)} and _BASE.search(answer):
        return False  # math-verify reads 204_5 as 204
    if max(len(gold), len(answer)) > _MAX_LENGTH or not gold or not answer:
        return False
    return _worker.ask(gold, answer)


class _Worker:
    """The worker process, started when needed and again after it was given up on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0  # a fork must not talk to its parent's worker
        self._lines: queue.Queue[str] = queue.Queue()

    def ask(self, gold: str, answer: str) -> bool:
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps([gold, answer]) + "\n")
                process.stdin.flush()
                line = self._lines.get(timeout=_TIMEOUT)
            except (queue.Empty, OSError):
                line = ""
            if not line:  # too slow, or dead: out of memory, or of stack in sympy's C code
                self.stop()
            return line.strip() == "true"

    def _running(self) -> subprocess.Popen[str]:
        if self._process is not None and self._owner == os.getpid():
            return self._process
        self._lines = queue.Queue()
        # -P: no module beside the worker's file may shadow a library's
        process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", str(Path(__file__).with_name("math_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        threading.Thread(target=_forward, args=(process.stdout, self._lines), daemon=True).start()
        self._process, self._owner = process, os.getpid()
        try:
            ready = self._lines.get(timeout=_START_TIMEOUT)
        except queue.Empty:
            ready = ""
        if not ready:
            self.stop()
            raise RuntimeError("the worker of math-verify did not start; is the extra 'math' installed?")
        return process

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.wait()
            assert process.stdin is not None
            with suppress(OSError):  # what was not sent to a dead worker
                process.stdin.close()


def _forward(lines: IO[str], to: queue.Queue[str]) -> None:
    with lines:
        for line in lines:
            to.put(line)
    to.put("")


_worker = _Worker()
atexit.register(_worker.stop)
