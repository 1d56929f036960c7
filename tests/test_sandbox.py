"""Attacks on the sandbox, with each layer of protection that the machine can do without."""

import errno
import json
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import time
import tracemalloc
import uuid
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import dllm_gym.sandbox
from dllm_gym.sandbox import GUARANTEES, Job, Limits, Sandbox, SandboxError

# What is left out, so that no attack is stopped by one layer alone on a machine that has several
MODES = {
    "everything": (),
    "namespaces alone": ("landlock", "seccomp"),
    "no namespaces": ("namespaces",),
    "seccomp alone": ("namespaces", "landlock"),
}
WITH_NAMESPACES = ("everything", "namespaces alone")
SMALL = Limits(wall_seconds=20, cpu_seconds=5, memory_mib=256, file_mib=1, disk_mib=2)
HASTY = Limits(wall_seconds=0.7)  # for what would go on for ever


@pytest.fixture(params=list(MODES))
def mode(request):
    return request.param


@pytest.fixture
def box(mode):
    return sandbox(mode)


def sandbox(mode, limits=SMALL, require=("network", "processes")):
    """The sandbox of a mode; skips where a guarantee that the test is about does not hold."""
    made = Sandbox(limits, without=MODES[mode], require=require)
    try:
        made.check()
    except SandboxError as error:
        pytest.skip(f"{mode}: {error}")
    return made


def run(box, program, *tests, **names):
    """Runs a program in which %name% stands for a value of ``names``."""
    text = textwrap.dedent(program)
    for name, value in names.items():
        text = text.replace(f"%{name}%", repr(value))
    return box.run(text, tests or ("assert True",))


def processes_named(name):
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and (entry / "comm").read_text().strip() == name:
                found.append(int(entry.name))
    return found


def gone(name, seconds=3.0):
    """Whether all processes of that name end within some seconds (the kernel takes a moment to bury them)."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not processes_named(name):
            return True
        time.sleep(0.02)
    return False


def token():
    return uuid.uuid4().hex[:12]  # Linux keeps 15 characters of a process's name


NAME_IT = "import ctypes; ctypes.CDLL(None).prctl(15, %name%.encode())\n"


# It works ---------------------------------------------------------------------------------------------------


def test_tests_pass_and_fail_one_by_one(box):
    outcome = run(
        box,
        "import math\ndef half(x):\n    print('asked', x)\n    return x / 2\n",
        "assert half(4) == 2",
        "assert half(4) == 3",
        "raise RuntimeError('no')",
        "from solution import half as h\nassert h(math.tau) == math.pi",
        "import solution\nassert solution.half is half",
    )
    assert outcome.status == "finished"
    assert outcome.passed == (True, False, False, True, True)
    assert not outcome.correct
    assert "asked 4" in outcome.output
    assert "AssertionError" in outcome.output
    assert "RuntimeError: no" in outcome.output


def test_a_program_is_correct_if_there_were_tests_and_all_passed():
    box = Sandbox(SMALL)
    assert box.run("x = 1", ("assert x == 1",)).correct
    assert not box.run("x = 1", ()).correct
    assert not box.run("x = 1", ("assert x == 2",)).correct


def test_the_standard_library_works(box):
    program = """
        import asyncio, collections, dataclasses, datetime, decimal, fractions, functools, hashlib, heapq, io
        import itertools, json, math, os, random, re, sqlite3, statistics, string, tempfile, threading, typing
        from concurrent.futures import ThreadPoolExecutor
        with tempfile.TemporaryDirectory() as folder, open(folder + '/x', 'w') as file:
            file.write('x')
        assert os.getcwd() and os.listdir() is not None
        open('note', 'w').write('mine')
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(abs, [-1, -2])) == [1, 2]
        async def three():
            await asyncio.sleep(0)
            return 3
        assert asyncio.run(three()) == 3
        open(os.devnull, 'w').write('x')
        random.random(), os.urandom(3)
        @dataclasses.dataclass
        class Point:
            x: int = 0
        print('all of it')
    """
    outcome = run(box, program, "assert Point().x == 0")
    assert outcome.correct, outcome.output


def test_a_program_finds_nothing_of_the_sandbox_among_its_modules(box):
    inside = sorted(path.stem for path in (Path(dllm_gym.sandbox.__file__).parent / "inside").glob("*.py"))
    assert len(inside) > 5
    program = """
        import sys
        for name in %names%:
            assert name not in sys.modules
            try:
                __import__(name)
            except ModuleNotFoundError:
                print('no', name)
        assert not [path for path in sys.path if 'sandbox' in path]
    """
    assert run(box, program, names=inside).output.splitlines() == [f"no {name}" for name in inside]


def test_sets_are_walked_in_the_same_order_every_time():
    box = Sandbox(SMALL)
    assert len({run(box, "print({'a', 'b', 'c', 'd', 'e', 'f'})").output for _ in range(3)}) == 1


def test_packages_can_be_made_importable_and_stay_as_they_are(mode, tmp_path):
    sandbox(mode, require=GUARANTEES)
    (tmp_path / "helpful.py").write_text("answer = 42\n")
    tmp_path.chmod(0o755)
    box = Sandbox(SMALL, without=MODES[mode], packages=[tmp_path])
    program = """
        import helpful, pathlib
        try:
            pathlib.Path(helpful.__file__).write_text('answer = 43')
        except OSError:
            print('refused')
    """
    outcome = run(box, program, "assert helpful.answer == 42")
    assert outcome.correct, outcome.output
    assert "refused" in outcome.output
    assert (tmp_path / "helpful.py").read_text() == "answer = 42\n"


def test_many_run_side_by_side_and_come_back_in_order():
    program = "import time\nprint(time.monotonic())\ntime.sleep(0.5)\nprint(time.monotonic())\n"
    jobs = [Job(program + f"n = {n}", (f"assert n == {n}", "assert n == 1")) for n in range(3)]
    outcomes = Sandbox(SMALL).run_many(jobs, workers=3)
    assert [outcome.passed for outcome in outcomes] == [(True, False), (True, True), (True, False)]
    spans = [[float(word) for word in outcome.output.split()[:2]] for outcome in outcomes]
    assert max(start for start, _ in spans) < min(end for _, end in spans)  # all ran at one moment


@given(st.text() | st.text(alphabet="def f():\n\t 01#'\"\\(x=", max_size=60))
@example("\x00")
@example("x = '\ud800'")
@example("(" * 10_000)
@example("x = " + "-" * 100_000 + "1")
@settings(max_examples=6, deadline=None)
def test_any_string_is_a_program_with_an_outcome(program):
    outcome = Sandbox(SMALL).run(program, ("assert False", program))
    assert outcome.status in ("finished", "broken", "died", "timeout")
    assert len(outcome.passed) == 2
    assert not outcome.passed[0]


# Limits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "sum(range(10 ** 14))",  # in C, where Python looks at no signal
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        "import time\ntime.sleep(60)",
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: signal.pause()",
    ],
    ids=["loop", "loop in C", "ignores the limit", "sleep", "blocks signals"],
)
def test_endless_programs_end(mode, program):
    box = sandbox(mode, HASTY)
    name = token()
    outcome = run(box, NAME_IT + program, name=name)
    assert outcome.status == "timeout"
    assert outcome.passed == (False,)
    assert outcome.seconds < 10
    assert gone(name)


def test_processor_time_is_limited():
    outcome = run(Sandbox(Limits(wall_seconds=30, cpu_seconds=1)), "while True: pass")
    assert outcome.status == "timeout"
    assert outcome.seconds < 25


def test_an_endless_test_is_a_timeout():
    outcome = run(Sandbox(HASTY), "def f():\n    while True: pass", "assert True", "f()")
    assert outcome.status == "timeout"
    assert outcome.passed == (False, False)


def test_memory_is_limited(box):
    program = """
        held, got = [], 0
        try:
            while True:
                held.append(bytearray(1 << 20))
                got += 1
        except MemoryError:
            held.clear()
            print('got', got)
    """
    outcome = run(box, program)
    assert 0 < int(outcome.output.split()[1]) < SMALL.memory_mib
    assert not run(box, "x = bytearray(10 ** 11)").correct


def test_memory_outside_the_address_space_is_refused(box, mode):
    if mode == "namespaces alone":
        pytest.skip("what seccomp is for")
    program = """
        import ctypes, os
        try:
            os.memfd_create('x')
        except OSError:
            print('no memfd')
        print(ctypes.CDLL(None).shmget(0, 1 << 30, 0o1600))
    """
    assert run(box, program).output.split("\n")[:2] == ["no memfd", "-1"]


def test_endless_output_is_cut_and_never_piles_up():
    limits = replace(HASTY, output_bytes=5000)
    tracemalloc.start()
    outcome = Sandbox(limits).run("while True: print('x' * 100_000)", ("assert True",))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert outcome.status == "timeout"
    assert len(outcome.output) == 5000
    assert peak < 2_000_000


def test_endless_messages_end_the_run():
    """A program that floods whatever files it finds open, the harness's socket among them."""
    program = """
        import os
        while True:
            for fd in range(64):
                try:
                    os.write(fd, b'x' * 10_000)
                except OSError:
                    pass
    """
    outcome = run(Sandbox(HASTY), program)
    assert outcome.status == "died"


def test_files_are_limited_and_removed(mode, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    box = sandbox(mode)
    program = """
        for number in range(10):
            try:
                with open(f'{number}', 'wb') as file:
                    for _ in range(20):
                        file.write(b'x' * 100_000)
            except OSError as error:
                print(error.errno)
        import os
        print(sum(os.path.getsize(name) for name in os.listdir()))
    """
    outcome = run(box, program)
    total = int(outcome.output.split()[-1])
    assert 0 < total <= 10 * 2**20
    if mode in WITH_NAMESPACES:
        assert total <= 2 * 2**20
    assert list(tmp_path.iterdir()) == []


def test_folders_are_removed_however_deep_and_locked(mode, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    kept = tmp_path.parent / f"{tmp_path.name} kept"
    kept.mkdir()
    (kept / "file").touch()
    program = """
        import os
        os.mkdir('outer')
        os.close(os.open('outer/file', os.O_CREAT))
        os.mkdir('outer/locked', 0)
        os.symlink(%kept%, 'outer/link')
        os.symlink(%kept%, 'link')
        place, depth = os.open('outer', os.O_RDONLY), 0
        try:
            for depth in range(1, 2501):
                os.mkdir('d' * 200, dir_fd=place)
                inner = os.open('d' * 200, os.O_RDONLY, dir_fd=place)
                os.close(place)
                place = inner
        except OSError:  # where all files together are limited
            pass
        print(depth)
    """
    outcome = run(sandbox(mode), program, kept=str(kept))
    assert int(outcome.output) > 2000
    assert list(tmp_path.iterdir()) == []
    assert [entry.name for entry in kept.iterdir()] == ["file"]


def test_open_files_are_limited(box):
    program = """
        import os
        held = []
        try:
            while True:
                held.append(os.open('/dev/null', os.O_RDONLY))
        except OSError:
            print(len(held))
    """
    assert int(run(box, program).output) < SMALL.open_files


def test_threads_are_limited(mode):
    if mode not in WITH_NAMESPACES:
        pytest.skip("documented: only the address space bounds threads there")
    box = sandbox(mode, replace(SMALL, threads=8))
    program = """
        import threading
        threading.stack_size(65536)
        stop = threading.Event()
        count = 0
        try:
            while count < 200:
                threading.Thread(target=stop.wait, daemon=True).start()
                count += 1
        except RuntimeError:
            pass
        stop.set()
        print(count)
    """
    assert 1 <= int(run(box, program).output.split()[0]) <= 8


def test_standard_input_is_empty():
    reading, writing = os.pipe()
    os.write(writing, b"what the user types\n")
    ours = os.dup(0)
    try:
        os.dup2(reading, 0)
        assert "EOFError" in run(Sandbox(SMALL), "print(input())").output
    finally:
        os.dup2(ours, 0)
        for handle in (ours, reading, writing):
            os.close(handle)


# Other processes --------------------------------------------------------------------------------------------


def test_a_fork_bomb_leaves_nothing(mode):
    box, name = sandbox(mode, HASTY), token()
    bomb = (
        NAME_IT + "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
    )
    outcome = run(box, bomb, name=name)
    assert outcome.status in ("timeout", "died")
    assert gone(name)


def test_processes_are_limited(mode):
    box = sandbox(mode, replace(SMALL, threads=8))
    program = """
        import os, time
        count = 0
        for _ in range(100):
            try:
                if os.fork() == 0:
                    time.sleep(30)
                    os._exit(0)
                count += 1
            except OSError:
                break
        print('children', count)
    """
    count = int(run(box, program).output.split()[-1])
    assert count <= 8 if mode == "namespaces alone" else count == 0


def test_a_daemon_does_not_outlive_the_run(box, mode):
    name = token()
    program = (
        NAME_IT
        + """
import os, signal, time
def daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in range(1, 65):
                try:
                    signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError):
                    pass
            time.sleep(60)
        os._exit(0)
try:
    daemon()
    time.sleep(0.2)
    print('started')
except OSError:
    print('refused')
"""
    )
    outcome = run(box, program, name=name)
    assert outcome.correct
    assert outcome.output.strip() == ("started" if mode == "namespaces alone" else "refused")
    assert gone(name)


def test_it_dies_with_its_caller(mode):
    sandbox(mode)
    name = token()
    caller = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import json, sys\nfrom dllm_gym.sandbox import Sandbox, Limits\n"
            "box = Sandbox(Limits(wall_seconds=60), without=json.loads(sys.argv[1]), require=())\n"
            "box.run(sys.argv[2], ())",
            json.dumps(MODES[mode]),
            (NAME_IT + "ctypes.CDLL(None).prctl(1, 0)\nimport time\ntime.sleep(60)").replace(
                "%name%", repr(name)
            ),
        ]
    )
    end = time.monotonic() + 20
    while not processes_named(name) and time.monotonic() < end:
        time.sleep(0.05)
    assert processes_named(name)
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    assert gone(name)


def test_other_processes_cannot_be_touched(box, mode):
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    program = """
        import ctypes, fcntl, os, resource, signal
        libc = ctypes.CDLL(None, use_errno=True)
        def attempt(call):
            try:
                call()
            except (OSError, ValueError):
                pass
        def by_pipe(pid):  # a pipe can send its owner any signal when there is something to read
            reading, writing = os.pipe()
            fcntl.fcntl(reading, fcntl.F_SETOWN, pid)
            fcntl.fcntl(reading, 10, signal.SIGKILL)  # F_SETSIG
            fcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
            os.write(writing, b'x')
        for pid in {%victim%, %parent%, os.getppid()}:
            attempt(lambda: by_pipe(pid))
            attempt(lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, 3)))
            attempt(lambda: os.setpriority(os.PRIO_PROCESS, pid, 19))
            attempt(lambda: libc.ptrace(16, pid, 0, 0))
            attempt(lambda: os.kill(pid, signal.SIGKILL))
        if %all%:
            attempt(lambda: os.kill(-1, signal.SIGKILL))
        print('tried')
    """
    before = resource.prlimit(victim.pid, resource.RLIMIT_NOFILE)
    try:
        # "all" only where a process identifier means another process: if it did not hold, it would be us
        outcome = run(box, program, victim=victim.pid, parent=os.getpid(), all=mode in WITH_NAMESPACES)
        assert "tried" in outcome.output
        assert victim.poll() is None
        assert resource.prlimit(victim.pid, resource.RLIMIT_NOFILE) == before
        assert os.getpriority(os.PRIO_PROCESS, victim.pid) == os.getpriority(os.PRIO_PROCESS, 0)
    finally:
        victim.kill()
        victim.wait()


def test_no_other_program_can_be_started(box, mode):
    if mode == "namespaces alone":
        pytest.skip("what seccomp is for")
    program = """
        import os, subprocess, sys
        for start in (
            lambda: subprocess.run(['/bin/sh', '-c', 'echo out']),
            lambda: os.execv(sys.executable, [sys.executable, '-c', 'print("out")']),
            lambda: os.posix_spawn('/bin/echo', ['echo', 'out'], {}),
        ):
            try:
                start()
            except OSError:
                print('refused')
    """
    assert run(box, program).output.split() == ["refused"] * 3


def test_system_calls_of_another_kind_are_refused_too(box, mode):
    if mode == "namespaces alone" or platform.machine() != "x86_64":
        pytest.skip("what seccomp is for; the numbers are those of x86-64")
    program = """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        for number in (0x40000000 + 41, 435, 464):  # socket of the x32 kind, clone3, one newer than the list
            print(libc.syscall(ctypes.c_long(number), 2, 1, 0), ctypes.get_errno())
    """
    assert run(box, program).output.splitlines() == [f"-1 {errno.ENOSYS}"] * 3


# Files and environment --------------------------------------------------------------------------------------

SECRET = "the secret of this machine"


def test_files_of_the_machine_cannot_be_read(mode, tmp_path):
    box = sandbox(mode, require=GUARANTEES)
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o644)
    program = """
        import os
        for path in (%secret%, %test%, '/etc/passwd', '/proc/self/environ', '/proc/%d/environ' % %parent%,
                     '/proc/%d/cmdline' % %parent%, '/proc/1/environ', '/sys/kernel/notes', '/dev/shm/x'):
            for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_CREAT):
                try:
                    handle = os.open(path, flags, 0o600)
                except OSError:
                    continue
                print('opened', path, flags)
                if flags == os.O_RDONLY:
                    print(os.read(handle, 1000))
        for folder in ('/', '/proc', '/home', '/etc', os.path.dirname(%secret%), os.path.dirname(%test%)):
            try:
                print('listed', folder, sorted(os.listdir(folder)))
            except OSError:
                pass
    """
    outcome = run(box, program, secret=str(secret), test=__file__, parent=os.getpid())
    assert outcome.correct, outcome.output
    assert "opened" not in outcome.output
    assert SECRET not in outcome.output
    listed = [line for line in outcome.output.splitlines() if line.startswith("listed")]
    for line in listed:  # in namespaces the roots of Python and of the libraries are there, and empty else
        assert not any(word in line for word in ("passwd", "test_sandbox", "secret")), line
    assert secret.read_text() == SECRET


def test_the_library_of_python_cannot_be_changed(mode):
    box = sandbox(mode, require=GUARANTEES)
    program = """
        import os
        folder = os.path.dirname(os.__file__)
        for attempt in (
            lambda: open(os.__file__, 'a'),
            lambda: open(folder + '/surprise.py', 'w'),
            lambda: os.remove(folder + '/this.py'),
            lambda: os.rename(folder + '/this.py', folder + '/that.py'),
            lambda: os.truncate(folder + '/this.py', 0),
            lambda: os.chmod(folder + '/this.py', 0o666),
            lambda: os.utime(folder + '/this.py'),
        ):
            try:
                attempt()
                print('changed')
            except OSError:
                print('refused')
    """
    outcome = run(box, program)
    refused = outcome.output.split()
    assert refused == ["refused"] * 7


def test_the_environment_is_empty(box, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_PARENT", SECRET)
    program = """
        import os
        print(dict(os.environ))
        print(len(os.environ))
    """
    outcome = run(box, program)
    assert SECRET not in outcome.output
    assert int(outcome.output.split()[-1]) <= 6


# Network ----------------------------------------------------------------------------------------------------


def test_there_is_no_network_not_even_to_this_machine(box, tmp_path):
    name = uuid.uuid4().hex
    listeners = {
        "tcp": (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
        "udp": (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
        "abstract": (socket.AF_UNIX, socket.SOCK_STREAM, f"\0{name}"),
        "path": (socket.AF_UNIX, socket.SOCK_STREAM, f"/tmp/{name}"),
    }
    opened = {}
    try:
        for kind, (family, style, address) in listeners.items():
            opened[kind] = listener = socket.socket(family, style)
            listener.bind(address)
            if style == socket.SOCK_STREAM:
                listener.listen()
            listener.setblocking(False)
        program = """
            import socket
            def attempt(what, call):
                try:
                    call()
                    print('reached', what)
                except OSError:
                    print('refused', what)
            tcp, udp, name = %tcp%, %udp%, %name%
            attempt('tcp', lambda: socket.create_connection(('127.0.0.1', tcp), timeout=1))
            datagram = lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            attempt('udp', lambda: datagram().sendto(b'x', ('127.0.0.1', udp)))
            attempt('abstract', lambda: socket.socket(socket.AF_UNIX).connect('\\0' + name))
            attempt('path', lambda: socket.socket(socket.AF_UNIX).connect('/tmp/' + name))
            attempt('outside', lambda: socket.create_connection(('192.0.2.1', 80), timeout=1))
            attempt('resolver', lambda: socket.getaddrinfo('example.org', 80))
        """
        ports = {kind: opened[kind].getsockname()[1] for kind in ("tcp", "udp")}
        outcome = run(box, program, name=name, **ports)
        assert "refused resolver" in outcome.output
        assert "reached" not in outcome.output
        for kind, listener in opened.items():
            with pytest.raises(BlockingIOError):
                listener.recv(1) if kind == "udp" else listener.accept()
    finally:
        for listener in opened.values():
            listener.close()
        Path(f"/tmp/{name}").unlink(missing_ok=True)


def test_a_pair_of_sockets_reaches_nothing_but_itself(box, tmp_path_factory):
    name = uuid.uuid4().hex
    places = {"path": f"/tmp/{name}", "abstract": f"\0{name}"}
    listeners = {}
    try:
        for kind, place in places.items():
            listeners[kind] = listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            listener.bind(place)
            listener.setblocking(False)
        Path(places["path"]).chmod(0o777)
        program = """
            import socket
            kinds = (socket.SOCK_DGRAM, socket.SOCK_STREAM, socket.SOCK_SEQPACKET)
            for kind in kinds:
                mine, yours = socket.socketpair(socket.AF_UNIX, kind)
                mine.send(b'to itself')
                assert yours.recv(9) == b'to itself'
                for where in ('/tmp/' + %name%, '\\0' + %name%):
                    for what in (
                        lambda: mine.sendto(b'x', where),
                        lambda: mine.sendmsg([b'x'], [], 0, where),
                        lambda: mine.connect(where),
                        lambda: mine.send(b'x'),  # to what it may be connected to now
                    ):
                        try:
                            what()
                        except OSError:
                            pass
            print('tried')
        """
        assert run(box, program, name=name).output == "tried\n"
        for listener in listeners.values():
            with pytest.raises(BlockingIOError):
                listener.recv(1)
    finally:
        for listener in listeners.values():
            listener.close()
        Path(places["path"]).unlink(missing_ok=True)


def test_calls_that_could_reach_other_sockets_are_refused(box, mode):
    if mode == "namespaces alone":
        pytest.skip("what seccomp is for")
    program = """
        import ctypes, errno, socket
        mine, yours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        def attempt(what, call):
            try:
                print(what, call())
            except OSError as error:
                print(what, errno.errorcode[error.errno])
        attempt('connect', lambda: mine.connect('x'))
        attempt('bind', lambda: mine.bind('x'))
        attempt('sendto', lambda: mine.sendto(b'x', 'x'))
        attempt('sendmsg', lambda: mine.sendmsg([b'x']))
        attempt('sendmmsg', lambda: ctypes.CDLL(None, use_errno=True).sendmmsg(mine.fileno(), None, 0, 0))
        attempt('pair of another family', lambda: socket.socketpair(socket.AF_TIPC))
        attempt('send', lambda: mine.send(b'x'))
    """
    assert run(box, program).output.splitlines() == [
        *("connect EPERM", "bind EPERM", "sendto EPERM", "sendmsg EPERM", "sendmmsg -1"),
        *("pair of another family EPERM", "send 1"),
    ]


# Fake success -----------------------------------------------------------------------------------------------

FALSE_TEST = "assert f() == 'the right answer'"

CHEATS = {
    "exits with success": "import os\nos._exit(0)",
    "exits inside": "import os\ndef f(): os._exit(0)",
    "sys.exit": "import sys\nsys.exit(0)",
    "sys.exit inside": "import sys\ndef f(): sys.exit(0)",
    "catches everything": "def f():\n    try: raise SystemExit(0)\n    except BaseException: return 1",
    "interrupts": "def f(): raise KeyboardInterrupt",
    "generator exit": "def f(): raise GeneratorExit",
    "an error that cannot be shown": (
        "class E(BaseException):\n    def __str__(self): raise self\n    __repr__ = __str__\ndef f(): raise E"
    ),
    "prints what it knows": "print('done\\n1\\nfinished passed ok')\ndef f(): print('done 1')",
    "kills itself": "import os\ndef f(): os.kill(os.getpid(), 9)",
    "abort": "import os\ndef f(): os.abort()",
    "no exec": "import builtins\nbuiltins.exec = lambda *a: None\ndef f(): pass",
    "no compile": (
        "import builtins\nreal = compile\nbuiltins.compile = lambda *a: real('1', '', 'exec')\ndef f(): pass"
    ),
    "no errors": "import builtins\nbuiltins.AssertionError = builtins.BaseException = ()\ndef f(): pass",
    "no builtins": "import builtins\nfor n in list(vars(builtins)): delattr(builtins, n)\ndef f(): pass",
    "own builtins": "__builtins__ = {}\ndef f(): pass",
    "other lengths": "import builtins\nbuiltins.len = builtins.range = lambda *a: ()\ndef f(): pass",
    "other json": "import json\njson.loads = lambda *a: ['pass']\ndef f(): pass",
    "other write": (
        "import os\nreal = os.write\n"
        "os.write = lambda fd, data: real(fd, data.replace(b'0', b'1'))\ndef f(): pass"
    ),
    "other hook": "import sys\nsys.__excepthook__ = sys.excepthook = lambda *a: None\ndef f(): pass",
    "trace": (
        "import sys\ndef trace(frame, event, arg):\n    return trace\nsys.settrace(trace)\ndef f(): pass"
    ),
    "answers for the harness": (
        "import os\ndef f():\n    for fd in range(3, 64):\n        try:\n"
        "            os.write(fd, b'done\\n' + b'0' * 32 + b' 1\\n')\n"
        "        except OSError:\n            pass\n"
    ),
    "answers at once": (
        "import os\nfor fd in range(3, 64):\n    try:\n"
        "        os.write(fd, b'loaded\\ndone\\n' + b'0' * 32 + b' 1\\n')\n"
        "    except OSError:\n        pass\n"
    ),
    "answers without the number": (
        "import os\ndef f():\n    for fd in range(3, 64):\n        try: os.write(fd, b'done\\n1\\n')\n"
        "        except OSError: pass\n"
    ),
    "closes everything": "import os\ndef f(): os.closerange(0, 64)",
    "recursion": "def f(): return f()",
    "stack": "import sys, re\nsys.setrecursionlimit(10 ** 9)\ndef f(): return f()",
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_wrong_program_never_passes(cheat):
    assert not any(run(Sandbox(replace(SMALL, wall_seconds=2)), CHEATS[cheat], FALSE_TEST).passed)


def test_tests_see_builtins_as_they_were():
    program = """
        import builtins
        builtins.abs = builtins.all = builtins.isinstance = lambda *a: True
        def f(): return 'no'
    """
    outcome = run(
        Sandbox(SMALL), program, "assert abs(-2) == 2", "assert isinstance(f(), int)", "assert all([False])"
    )
    assert outcome.passed == (True, False, False)


def test_tests_are_not_there_while_the_program_is_loaded():
    program = """
        import gc, sys
        wanted = 'stset-eht-ni-eldeen'  # backwards, so that it finds no trace of itself
        frame, seen = sys._getframe(), []
        while frame:
            seen += [frame.f_locals, frame.f_globals, frame.f_code.co_consts]
            frame = frame.f_back
        words = [repr(each) for each in seen + gc.get_objects() if not isinstance(each, type(gc))]
        print(any(wanted in word[::-1] for word in words))
    """
    outcome = run(Sandbox(SMALL), program, "assert 'needle-in-the-tests' and False")
    assert outcome.status == "finished"
    assert outcome.output.startswith("False")


# What it says about itself ----------------------------------------------------------------------------------


def test_nothing_runs_without_what_is_required():
    box = Sandbox(SMALL, without=("namespaces", "seccomp"))
    with pytest.raises(
        SandboxError, match="'network' cannot be guaranteed here, which takes namespaces or seccomp"
    ):
        box.run("print('ran')", ())
    with pytest.raises(SandboxError, match="network"):
        box.run_many([Job("", ())])
    assert Sandbox(SMALL, without=("namespaces", "seccomp"), require=()).run("x = 1", ("assert x",)).correct


def test_guarantees_name_the_layers_that_hold(mode):
    holds = sandbox(mode).guarantees()
    assert set(holds) == set(GUARANTEES)
    for layers in holds.values():
        assert not set(layers) & set(MODES[mode])


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="unknown guarantee \\['disk'\\]; known are network, processes, files"
    ):
        Sandbox(require=("disk",))
    with pytest.raises(ValueError, match="unknown layer"):
        Sandbox(without=("docker",))
    with pytest.raises(ValueError, match="is not a folder"):
        Sandbox(packages=[tmp_path / "absent"])
    for wrong in ({"memory_mib": 0}, {"cpu_seconds": 1.5}, {"wall_seconds": -1}, {"threads": True}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Limits(**wrong)
