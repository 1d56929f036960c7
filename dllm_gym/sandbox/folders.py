"""Removes what a program left behind, however it is nested."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress

_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW


def remove_folder(path: str) -> None:
    """Removes a folder with everything in it; links are removed and never followed.

    Folders inside are lifted to its top before they are looked into. So neither the recursion limit nor the
    longest path nor the number of open files says how deep they may be, which ``shutil.rmtree`` depends on.

    Raises:
        OSError: If something cannot be removed, such as another user's file; as much as can be is gone then.
    """
    _unlock(path)
    top = os.open(path, _FOLDER)
    try:
        waiting = ["."]
        while waiting:
            name = waiting.pop()
            with suppress(OSError):
                waiting += _empty(name, top)
                if name != ".":
                    os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(path)  # noqa: PTH106 - as above


def _empty(name: str, top: int) -> list[str]:
    """Removes the files in a folder of ``top`` and lifts its folders to there; returns their new names."""
    lifted = []
    folder = os.open(name, _FOLDER, dir_fd=top)
    try:
        for entry in os.listdir(folder):  # noqa: PTH208 - by what is open, for the path may be too long
            try:
                os.unlink(entry, dir_fd=folder)
            except OSError:  # a folder, or what nobody can remove
                with suppress(OSError):
                    _unlock(entry, folder)
                    lifted.append(secrets.token_hex(16))
                    os.rename(entry, lifted[-1], src_dir_fd=folder, dst_dir_fd=top)
    finally:
        os.close(folder)
    return lifted


def _unlock(name: str, within: int | None = None) -> None:
    """Takes back what a program did to the mode of a folder, be it a folder and no link to somewhere else."""
    place = os.open(name, _FOLDER | os.O_PATH, dir_fd=within)
    try:
        os.chmod(f"/proc/self/fd/{place}", 0o700)  # noqa: PTH101 - only so does Linux change what is open
    finally:
        os.close(place)
