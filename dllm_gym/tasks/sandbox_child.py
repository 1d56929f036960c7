"""What runs inside the sandbox: gives up its rights, loads a program, runs its tests, reports.

A script for a fresh interpreter, never imported by the package: little of the standard library and nothing
else, because every program waits for it. ``sandbox.py`` talks to it over a socket, one line per message, and
does not send the program before it has heard which layers of protection hold.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import errno
import json
import os
import platform
import resource
import signal
import struct
import sys
import types

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing would take longer to import than all of the above
    from typing import Any

NOBODY = 65534
SCRATCH = "/sandbox"  # the program's folder inside namespaces
NOT_GRANTED = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EINVAL, errno.ENOSPC, errno.EUSERS)
DEVICES = ("null", "zero", "random", "urandom")
LIBC = ctypes.CDLL(None, use_errno=True)

# linux/sched.h, linux/mount.h, linux/prctl.h
NEW_MOUNTS, NEW_UTS, NEW_IPC = 0x00020000, 0x04000000, 0x08000000
NEW_USER, NEW_PIDS, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
CLONE_THREAD = 0x00010000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MNT_DETACH, AT_FDCWD, AT_RECURSIVE = 2, -100, 0x8000
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38

# System calls that have the same number on both architectures below
MOUNT_SETATTR, LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 442, 444, 445, 446
LANDLOCK_NEEDED = 3  # before that, files could be cut short
CLONE3 = 435
LAST_KNOWN_CALL = 462  # mseal; what came later is refused because nobody here knows what it does

# asm/unistd.h of x86_64 and asm-generic/unistd.h of aarch64: what a program that computes has no use for
# and what would reach other processes, the network or memory that no limit counts.
CALLS: dict[str, tuple[int | None, int | None]] = {
    # new programs and processes (threads: see below)
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    # sockets; io_uring can open them too
    "socket": (41, 198), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
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
PIVOT_ROOT, CLONE, PRLIMIT, PRCTL = (155, 41), (56, 220), (302, 261), (157, 167)
FCNTL, IOCTL = (72, 25), (16, 29)
F_SETOWN, F_SETOWN_EX, FIOSETOWN, SIOCSPGRP = 8, 15, 0x8901, 0x8902
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH_*


def main(control: int) -> None:
    """Confines this process as the first message says and runs the program that follows."""
    order = receive(control)
    die_with_parent()
    layers: list[str] = []
    notes: dict[str, str] = {}
    confine(order, layers, notes, control)
    send(control, {"layers": layers, "notes": notes})
    sys.path += order["packages"]
    judge(control, receive(control)["programs"])


def confine(order: dict[str, Any], layers: list[str], notes: dict[str, str], control: int) -> None:
    """Puts every layer of protection in place that the kernel grants; fills ``layers`` and ``notes``."""
    leave_out, limits = set(order["without"]), order["limits"]
    folder, own_users = order["folder"], False
    if "namespaces" not in leave_out:
        try:
            own_users = enter_namespaces(order)
        except OSError as error:
            if error.errno not in NOT_GRANTED:
                raise
            # whether the half that succeeded can be undone is not worth knowing: a new process starts without
            send(control, {"unavailable": "namespaces", "why": str(error)})
            os._exit(0)
        layers.append("namespaces")
        folder = SCRATCH
        fork_and_wait(control)  # this process stays outside; the child is the new namespace's first process
        fork_and_wait(control)  # whose end ends all others in there, whatever they did to get away
    elif os.geteuid() == 0:
        if open_to_all(os.path.dirname(json.__file__)):
            os.chown(folder, NOBODY, NOBODY)
            become_nobody()
            die_with_parent()
        elif "landlock" in leave_out or landlock_version() < LANDLOCK_NEEDED:
            # root without capabilities still owns the system's files
            raise SystemExit(f"as root, programs run as nobody, who cannot read Python in {sys.base_prefix}")
    os.chdir(folder)
    os.environ.update(HOME=folder, TMPDIR=folder)
    import traceback  # noqa: F401  (sys.excepthook of newer Pythons wants it)

    set_limits(limits, count_threads=own_users)
    layers.append("limits")
    drop_capabilities()
    checked("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for name in ("landlock", "seccomp"):
        if name not in leave_out:
            try:
                if name == "landlock":
                    landlock(order["readable"], folder)
                else:
                    seccomp(files_are_its_own="namespaces" in layers)
                layers.append(name)
            except OSError as error:
                notes[name] = str(error)


# Namespaces ------------------------------------------------------------------------------------------------


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


def die_with_parent() -> None:
    """Asks to be killed when the parent ends; a change of user takes that back."""
    checked("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)


def become_nobody() -> None:
    """Gives up root for good."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


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


# Limits and rights -----------------------------------------------------------------------------------------


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


def landlock_version() -> int:
    """The kernel's Landlock ABI; -1 if it has none."""
    return int(LIBC.syscall(ctypes.c_long(LANDLOCK_CREATE), None, ctypes.c_long(0), ctypes.c_long(1)))


def landlock(readable: list[str], folder: str) -> None:
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


def seccomp(files_are_its_own: bool) -> None:
    """Refuses ``CALLS``; threads are the only clones (linux/seccomp.h, linux/filter.h)."""
    if platform.machine() not in MACHINES:
        raise OSError(errno.ENOSYS, f"no table of system calls for {platform.machine()}")
    column, architecture = MACHINES[platform.machine()]
    load, equal, greater, any_bit, ret = 0x20, 0x15, 0x25, 0x45, 0x06
    kill, allow, refuse = 0x80000000, 0x7FFF0000, 0x00050000  # SECCOMP_RET_*; refuse carries an errno
    number_at, architecture_at, first, second = 0, 4, 16, 24  # struct seccomp_data; low halves of arguments
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


def checked(name: str, *arguments: object) -> int:
    """A C function's result; raises ``OSError`` with its name where it returns -1."""
    words = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result = int(getattr(LIBC, name)(*words))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


# The program and its tests ---------------------------------------------------------------------------------


def judge(control: int, programs: list[str]) -> None:
    """Loads the first of ``programs`` that compiles, asks for tests, runs them, asks for the nonce, reports.

    The program may replace builtins or what it finds in modules, so everything needed after it ran is held in
    local names, the tests see builtins as they were, and what fails in here fails the program.
    """
    read, write, execute, translate, end, length = os.read, os.write, exec, compile, os._exit, len
    show, report, shorten, from_hex = sys.__excepthook__, sys.exc_info, shortened, bytes.fromhex
    untouched = dict(vars(builtins))
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    names = module.__dict__
    # what ends a program early (SystemExit, KeyboardInterrupt) fails it like any other error
    failure = BaseException
    code = None
    for program in programs:
        try:
            code = translate(program, "solution.py", "exec")
            break
        except failure:
            pass
    try:
        execute(translate(programs[-1], "solution.py", "exec") if code is None else code, names)
    except failure:
        show(*shorten(report()))
        write(control, b"broken\n")
        end(0)
    write(control, b"loaded\n")
    line = b""
    while not line.endswith(b"\n"):
        part = read(control, 65536)
        if not part:
            end(0)
        line += part
    tests = line.decode().split()
    names = {**names, "__builtins__": untouched, "__name__": "test_solution"}
    passed = b""
    for number in range(length(tests)):
        try:
            source = from_hex(tests[number]).decode("utf-8", "surrogatepass")
            execute(translate(source, f"test {number}", "exec"), names)
            passed += b"1"
        except failure:
            passed += b"0"
            try:  # noqa: SIM105  (contextlib may be the program's by now)
                show(*shorten(report()))
            except failure:
                pass
    write(control, b"done\n")
    write(control, read(control, 64) + passed + b"\n")
    end(0)


def shortened(error: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    """An exception without the frame that belongs to ``judge``."""
    kind, value, trace = error
    return kind, value, trace.tb_next


def receive(control: int) -> dict[str, Any]:
    """One message of the other side; ends this process if there is none."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(control, 65536)
        if not part:
            os._exit(0)
        line += part
    message: dict[str, Any] = json.loads(line)
    return message


def send(control: int, message: dict[str, Any]) -> None:
    """One message to the other side."""
    os.write(control, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
