"""What runs inside the sandbox: gives up its rights, loads a program, runs its tests, reports.

A script for a fresh interpreter, never imported by the package: this file, those beside it and little of the
standard library, because every program waits for them. ``dllm_gym.sandbox.process`` talks to it over a
socket, one line per message, and sends the program only when it has heard which layers of protection hold.
"""

from __future__ import annotations

import errno
import json
import os
import sys

from judge import judge
from landlock import LANDLOCK_NEEDED, landlock_version, restrict_files
from libc import checked
from namespaces import SCRATCH, enter_namespaces, fork_and_wait
from rights import NOBODY, become_nobody, die_with_parent, drop_capabilities, open_to_all, set_limits
from seccomp import refuse_calls

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing would take longer to import than all of the above
    from typing import Any

NOT_GRANTED = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EINVAL, errno.ENOSPC, errno.EUSERS)
PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h


def main(control: int) -> None:
    """Confines this process as the first message says and runs the program that follows."""
    order = receive(control)
    die_with_parent()
    forget_own_modules()
    layers: list[str] = []
    notes: dict[str, str] = {}
    confine(order, layers, notes, control)
    send(control, {"layers": layers, "notes": notes})
    sys.path += order["packages"]
    judge(control, receive(control)["programs"])


def forget_own_modules() -> None:
    """Takes the files beside this one off the path and out of the loaded modules: a program has its own."""
    here = sys.path.pop(0)
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(f"{here}/") and name != "__main__":
            del sys.modules[name]


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
                    restrict_files(order["readable"], folder)
                else:
                    refuse_calls(files_are_its_own="namespaces" in layers)
                layers.append(name)
            except OSError as error:
                notes[name] = str(error)


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
