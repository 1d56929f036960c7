"""What a process gives up without leaving the machine: root, capabilities, resources."""

from __future__ import annotations

import os
import resource
import signal
import struct

from libc import checked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NOBODY = 65534
DEVICES = ("null", "zero", "random", "urandom")  # all that a program finds in /dev
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """Asks to be killed when the parent ends; a change of user takes that back."""
    checked("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)


def become_nobody() -> None:
    """Gives up root for good."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def set_limits(limits: dict[str, Any], count_threads: bool) -> None:
    """Resource limits of this process. Soft and hard alike, so that it cannot raise them."""
    mebibyte = 1 << 20
    table = {
        resource.RLIMIT_CPU: (limits["cpu_seconds"], limits["cpu_seconds"] + 1),  # SIGXCPU, then SIGKILL
        resource.RLIMIT_AS: limits["memory_mib"] * mebibyte,
        resource.RLIMIT_FSIZE: limits["file_mib"] * mebibyte,
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if count_threads:
        table[resource.RLIMIT_NPROC] = limits["threads"] + 3  # this process and the two that wait for it
    for which, value in table.items():
        soft, hard = value if isinstance(value, tuple) else (value, value)
        ceiling = resource.getrlimit(which)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(which, (soft, hard))


def drop_capabilities() -> None:
    """Leaves the rights of an ordinary user, or of none."""
    header, none = struct.pack("Ii", 0x20080522, 0), bytes(24)
    checked("capset", header, none)


def open_to_all(folder: str) -> bool:
    """Whether any user can read a folder: it and all above it say so."""
    while True:
        if os.stat(folder).st_mode & 0o005 != 0o005:
            return False
        if folder == "/":
            return True
        folder = os.path.dirname(folder)
