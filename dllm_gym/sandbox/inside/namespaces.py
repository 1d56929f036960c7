"""A file system, a network and processes of its own."""

from __future__ import annotations

import errno
import os
import platform
import struct

from libc import LIBC, MACHINES, checked
from rights import DEVICES, NOBODY, become_nobody, die_with_parent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SCRATCH = "/sandbox"  # the program's folder

# linux/sched.h, linux/mount.h
NEW_MOUNTS, NEW_UTS, NEW_IPC = 0x00020000, 0x04000000, 0x08000000
NEW_USER, NEW_PIDS, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MNT_DETACH, AT_FDCWD, AT_RECURSIVE = 2, -100, 0x8000
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
MOUNT_SETATTR = 442
PIVOT_ROOT = (155, 41)


def enter_namespaces(order: dict[str, Any]) -> bool:
    """Leaves the machine's processes, network and files behind; the next child is the first of its kind.

    Returns:
        Whether users are counted apart from the machine's, so that a limit on processes means this sandbox.
    """
    if platform.machine() not in MACHINES:
        raise OSError(errno.ENOSYS, f"no table of system calls for {platform.machine()}")
    others = NEW_MOUNTS | NEW_PIDS | NEW_NETWORK | NEW_IPC | NEW_UTS
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        checked("unshare", others)
        make_root(order, NOBODY, NOBODY)
        become_nobody()
        return bool(LIBC.unshare(NEW_USER) == 0)
    checked("unshare", others | NEW_USER)
    for file, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        with open(f"/proc/self/{file}", "w") as handle:
            handle.write(text)
    make_root(order, user, group)
    return True


def make_root(order: dict[str, Any], user: int, group: int) -> None:
    """A file system with Python, its libraries (read-only), four devices and an empty folder; no /proc."""
    root = order["folder"]
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("sandbox", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in order["readable"]:
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), root + path)
            continue
        bind(path, root + path)
    os.mkdir(root + SCRATCH)
    os.mkdir(f"{root}/dev")
    for device in DEVICES:
        touch(f"{root}/dev/{device}")
    attributes = struct.pack("4Q", ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV, 0, 0, 0)
    checked("syscall", MOUNT_SETATTR, AT_FDCWD, root.encode(), AT_RECURSIVE, attributes, len(attributes))
    for device in DEVICES:
        mount(f"/dev/{device}", f"{root}/dev/{device}", None, MS_BIND)
    size = f"size={order['limits']['disk_mib']}m,nr_inodes=4k,mode=700,uid={user},gid={group}"
    mount("sandbox", root + SCRATCH, "tmpfs", MS_NOSUID | MS_NODEV, size)
    os.chdir(root)
    checked(
        "syscall", PIVOT_ROOT[MACHINES[platform.machine()][0]], b".", b"."
    )  # the old root now covers the new
    checked("umount2", b".", MNT_DETACH)
    os.chdir("/")


def bind(source: str, target: str) -> None:
    """Shows a file or folder at a second place."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        touch(target)
    mount(source, target, None, MS_BIND | MS_REC)


def touch(path: str) -> None:
    """Makes an empty file."""
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """Shows a file system, or part of one, at ``target``."""
    encoded = [None if text is None else text.encode() for text in (source, target, kind, options)]
    checked("mount", *encoded[:3], flags, encoded[3])


def fork_and_wait(control: int) -> None:
    """Goes on in a child that dies with this process, which ends when the child does and as it did."""
    die_with_parent()
    child = os.fork()
    if child == 0:
        die_with_parent()
        return
    os.close(control)
    while True:
        pid, status = os.wait()  # the first process of a namespace also buries the others
        if pid == child:
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
