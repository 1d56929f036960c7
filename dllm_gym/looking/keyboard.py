"""Single keys from a terminal, without waiting for a line."""

from __future__ import annotations

import os
import select
import sys
from collections import deque
from types import TracebackType
from typing import Any

_NAMES = {
    "\x1b[A": "up", "\x1b[B": "down", "\x1b[C": "right", "\x1b[D": "left",
    "\x1bOA": "up", "\x1bOB": "down", "\x1bOC": "right", "\x1bOD": "left",
    "\r": "enter", "\n": "enter", "=": "+", "\x04": "q",
}  # fmt: skip


def keys_of(text: str) -> list[str]:
    """The keys that made a terminal send ``text``: arrows and enter by name, others as their letter."""
    keys = []
    while text:
        size = 1
        if text[:2] in ("\x1b[", "\x1bO"):  # up to the letter that ends the sequence
            ends = [at for at, letter in enumerate(text) if at > 1 and (letter.isalpha() or letter == "~")]
            size = ends[0] + 1 if ends else len(text)
        key, text = text[:size], text[size:]
        keys.append(_NAMES.get(key, key.lower()))
    return keys


class Keyboard:
    """Keys of the terminal at standard input, while the context lasts; with none there, it stays silent."""

    def __init__(self) -> None:
        self._keys: deque[str] = deque()
        self._before: list[Any] | None = None

    @staticmethod
    def is_there() -> bool:
        """Whether somebody can press keys, in a way this class can read (not on Windows)."""
        return sys.stdin is not None and sys.stdin.isatty() and os.name == "posix"

    def __enter__(self) -> Keyboard:
        if self.is_there():
            import termios
            import tty

            self._before = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._before is not None:
            import termios

            termios.tcsetattr(sys.stdin, termios.TCSAFLUSH, self._before)

    def read(self, seconds: float | None) -> str | None:
        """The next key, or ``None`` if there is none for some seconds; ``None`` waits for ever.

        A terminal that has gone away counts as the key q.
        """
        if not self._keys and select.select([sys.stdin], [], [], seconds)[0]:
            sent = self._sent()
            if sent.endswith(("\x1b", "\x1b[", "\x1bO")) and select.select([sys.stdin], [], [], 0.1)[0]:
                sent += self._sent()  # a slow line cut an arrow in two
            self._keys.extend(keys_of(sent) or ["q"])
        return self._keys.popleft() if self._keys else None

    @staticmethod
    def _sent() -> str:
        return os.read(sys.stdin.fileno(), 1024).decode(errors="replace")
