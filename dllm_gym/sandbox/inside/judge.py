"""Loads a program, runs its tests, reports."""

from __future__ import annotations

import builtins
import os
import sys
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


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
