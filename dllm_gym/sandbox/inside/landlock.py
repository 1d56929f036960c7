"""Which files may be read and used (linux/landlock.h)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct

from libc import LIBC, checked
from rights import DEVICES

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446  # the same on every architecture
LANDLOCK_NEEDED = 3  # before that, files could be cut short


def landlock_version() -> int:
    """The kernel's Landlock ABI; -1 if it has none."""
    return int(LIBC.syscall(ctypes.c_long(LANDLOCK_CREATE), None, ctypes.c_long(0), ctypes.c_long(1)))


def restrict_files(readable: list[str], folder: str) -> None:
    """``readable`` may be read, ``folder`` used; no TCP, no signals to others (linux/landlock.h)."""
    abi = landlock_version()
    if abi < LANDLOCK_NEEDED:
        raise OSError(f"the kernel has Landlock version {max(abi, 0)}; {LANDLOCK_NEEDED} is needed")
    execute, read_file, read_folder, every = 1, 1 << 2, 1 << 3, (1 << 15) - 1
    if abi >= 5:
        every |= 1 << 15  # ioctl on devices
    handled = struct.pack("3Q", every, 0b11, 0b11)[: 24 if abi >= 6 else 16 if abi >= 4 else 8]
    rules = checked("syscall", LANDLOCK_CREATE, handled, len(handled), 0)
    granted = [(path, read_file | read_folder) for path in readable]
    granted += [(f"/dev/{device}", read_file | (1 << 1)) for device in DEVICES]
    granted.append((folder, every & ~execute & ~(1 << 6) & ~(1 << 9) & ~(1 << 11)))  # no devices, no sockets
    for path, rights in granted:
        with contextlib.suppress(FileNotFoundError):
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            if not os.path.isdir(path):
                rights &= ~read_folder
            checked("syscall", LANDLOCK_ADD, rules, 1, struct.pack("=Qi", rights, place), 0)
            os.close(place)
    checked("syscall", LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)
