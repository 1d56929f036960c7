"""Which system calls are refused (linux/seccomp.h, linux/filter.h)."""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

from libc import MACHINES, checked
from rights import PR_SET_PDEATHSIG

PR_SET_SECCOMP = 22  # linux/prctl.h
CLONE_THREAD = 0x00010000  # linux/sched.h
CLONE3 = 435
LAST_KNOWN_CALL = 462  # mseal; what came later is refused because nobody here knows what it does

# asm/unistd.h of x86_64 and asm-generic/unistd.h of aarch64: what a program that computes has no use for
# and what would reach other processes, the network or memory that no limit counts.
CALLS: dict[str, tuple[int | None, int | None]] = {
    # new programs and processes (threads: see below)
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    # sockets; io_uring can open them too, and a pair of them could turn to others by these calls
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "sendmsg": (46, 211),
    "sendmmsg": (307, 269), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # other processes
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "sched_setattr": (314, 274), "sched_setaffinity": (203, 122),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "inotify_add_watch": (254, 27),
    "fanotify_init": (300, 262),
    # other namespaces and file systems
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    # memory and objects outside the address space limit
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219),
    # the kernel itself
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "syslog": (103, 116),
    "modify_ldt": (154, None),
}  # fmt: skip
# Owner, mode, times and attributes of files: Landlock has no say in them, so they are refused where the files
# that the program finds are the machine's.
CALLS_ON_FILES: dict[str, tuple[int | None, int | None]] = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "lchown": (94, None), "fchown": (93, 55), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
}  # fmt: skip
CLONE, PRLIMIT, PRCTL = (56, 220), (302, 261), (157, 167)
FCNTL, IOCTL = (72, 25), (16, 29)
SENDTO, SOCKETPAIR, AF_UNIX = (44, 206), (53, 199), 1
F_SETOWN, F_SETOWN_EX, FIOSETOWN, SIOCSPGRP = 8, 15, 0x8901, 0x8902


def refuse_calls(files_are_its_own: bool) -> None:
    """Refuses ``CALLS``; threads are the only clones (linux/seccomp.h, linux/filter.h)."""
    if platform.machine() not in MACHINES:
        raise OSError(errno.ENOSYS, f"no table of system calls for {platform.machine()}")
    column, architecture = MACHINES[platform.machine()]
    load, equal, greater, any_bit, ret = 0x20, 0x15, 0x25, 0x45, 0x06
    kill, allow, refuse = 0x80000000, 0x7FFF0000, 0x00050000  # SECCOMP_RET_*; refuse carries an errno
    # struct seccomp_data: low halves of arguments, and the high one of an address
    number_at, architecture_at, first, second, fifth, fifth_high = 0, 4, 16, 24, 48, 52
    no_right, no_such_call = refuse | errno.EPERM, refuse | errno.ENOSYS
    program = [
        (load, 0, 0, architecture_at),
        (equal, 1, 0, architecture),
        (ret, 0, 0, kill),
        (load, 0, 0, number_at),
        (greater, 0, 1, LAST_KNOWN_CALL),  # also the x32 calls, whose numbers begin at 2^30
        (ret, 0, 0, no_such_call),
        (equal, 0, 1, CLONE3),  # its flags lie in memory where a filter cannot look; libc then uses clone
        (ret, 0, 0, no_such_call),
    ]
    for numbers, argument, test, value, refused_if in (
        (CLONE, first, any_bit, CLONE_THREAD, False),
        (PRLIMIT, first, equal, 0, False),  # its own limits only
        (PRCTL, first, equal, PR_SET_PDEATHSIG, True),
        (FCNTL, second, equal, F_SETOWN, True),  # who gets the signal that a file can send, of any number
        (FCNTL, second, equal, F_SETOWN_EX, True),
        (IOCTL, second, equal, FIOSETOWN, True),
        (IOCTL, second, equal, SIOCSPGRP, True),
        (SOCKETPAIR, first, equal, AF_UNIX, False),
        (SENDTO, fifth, equal, 0, False),  # without an address: to the other half of a pair, as send does
        (SENDTO, fifth_high, equal, 0, False),
    ):
        program += [
            (equal, 0, 3, numbers[column]),
            (load, 0, 0, argument),
            (test, 0 if refused_if else 1, 1 if refused_if else 0, value),
            (ret, 0, 0, no_right),
            (load, 0, 0, number_at),
        ]
    refused = CALLS if files_are_its_own else CALLS | CALLS_ON_FILES
    for number in (numbers[column] for numbers in refused.values()):
        if number is not None:
            program += [(equal, 0, 1, number), (ret, 0, 0, no_right)]
    program.append((ret, 0, 0, allow))
    code = b"".join(struct.pack("HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    checked("prctl", PR_SET_SECCOMP, 2, header, 0, 0)
