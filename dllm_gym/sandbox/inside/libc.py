"""C functions that raise what went wrong."""

from __future__ import annotations

import ctypes
import os

LIBC = ctypes.CDLL(None, use_errno=True)
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of a table of calls, AUDIT_ARCH_*


def checked(name: str, *arguments: object) -> int:
    """A C function's result; raises ``OSError`` with its name where it returns -1."""
    words = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result = int(getattr(LIBC, name)(*words))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result
