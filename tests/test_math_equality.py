"""math-verify in a process of its own: equal by value, never evaluated as Python, never hanging."""

import os
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_gym.tasks import load_task
from dllm_gym.tasks.scoring import math_equality
from dllm_gym.tasks.scoring.math_equality import same_value

pytest.importorskip("math_verify", reason="needs pip install 'dllm-gym[math]'")

EQUAL = [
    (r"\frac{1}{8}", r"\frac{3}{24}"),
    (r"10,\!080", r"7! \times 2!"),
    (r"-2 + 7i", "7i - 2"),
    ("1,-2", "-2, 1"),
    (r"137 \frac{1}{2}", r"\frac{275}{2}"),
    (r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}", r"\begin{pmatrix} 0.2 \\ -3.6 \end{pmatrix}"),
    ("x^2 - 1", "(x-1)(x+1)"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    (r"x \in [-2,7]", "[-2, 7]"),
    ("2^{10}", "1024"),
    (r"\text{(E)}", "E"),
    (r"864 \mbox{ inches}^2", "864"),
    (r"\frac14", "0.25"),
    ("x=5", "5"),
    (r"\frac{1}{3}", "0.333333"),
    (r"\sqrt{2}", "1.414214"),
    (r"6.02 \times 10^{23}", "602000000000000000000000"),
    ("0.1x + 0.2x", "0.3x"),
    ("0", r"\sqrt{8} - 2\sqrt{2}"),
    (r"\frac{1}{2^{99}}", "2^{-99}"),
    (r"\frac{\sqrt{3}}{2^{99}}", r"\sqrt{3} \cdot 2^{-99}"),
    (r"\{0.5, 2\}", r"\{\frac12, 2\}"),
    ("0.5 + i", r"\frac12 + i"),
    ("0.0000005", r"5 \times 10^{-7}"),
]
# Small numbers, and small differences, are what they are, alone and wherever numbers stand.
UNEQUAL = [
    (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
    (r"\frac{\sqrt{3}}{2^{99}}", r"\frac{\sqrt{3}}{2^{98}}"),
    ("10^{-17}", "0"),
    (r"\sqrt{2} + 10^{-20}", r"\sqrt{2}"),
    ("10^{30}", "10^{30} + 1"),
    ("1000000.0", "1000001.0"),
    ("0.0000001", "0.0000002"),
    ("0.0000001", "0"),
    ("10^{-20}i", "10^{-21}i"),
    ("10^{-20}x", "10^{-21}x"),
    ("x = 10^{-20}", "x = 10^{-21}"),
    ("x > 10^{-20}", "x > 10^{-21}"),
    ("(10^{-20}, 1)", "(10^{-21}, 1)"),
    ("[0, 10^{-20}]", "[0, 10^{-21}]"),
    (r"\{10^{-20}\}", r"\{10^{-21}\}"),
    (r"\begin{pmatrix} 10^{-20} \\ 1 \end{pmatrix}", r"\begin{pmatrix} 10^{-21} \\ 1 \end{pmatrix}"),
    (r"\frac{1}{3}", "0.33"),
    (r"\frac{1}{8}", r"\frac{3}{25}"),
    ("(1,2)", "(2,1)"),
    ("[1,2]", "(1,2)"),
    ("204_5", "104_5"),
    ("204_5", "204_6"),
    ("6", r"6 \text{ or } 7"),
    ("6", "6, 7"),
    ("1,2,3", "1,2"),
    (r"\text{even}", r"\text{odd}"),
    (r"\sqrt{2}", "1.41"),
    ("x", "y"),
    ("2", ""),
    ("", ""),
]


def test_answers_are_compared_by_value():
    assert [pair for pair in EQUAL if not same_value(*pair)] == []
    assert [pair for pair in EQUAL if not same_value(*reversed(pair))] == []
    for one, other in UNEQUAL:
        assert not same_value(one, other), (one, other)
        assert not same_value(other, one), (one, other)


numbers = st.builds(Fraction, st.integers(-(10**9), 10**9), st.integers(1, 10**9))


@settings(max_examples=25)
@given(numbers, numbers, st.integers(0, 30))
def test_fractions_are_equal_exactly_if_they_are(one, other, scale):
    def latex(value, unreduced=1):
        above, below = value.numerator * unreduced, value.denominator * unreduced
        return rf"\frac{{{above}}}{{{below} \cdot 10^{{{scale}}}}}"

    assert same_value(latex(one), latex(one, unreduced=7))
    assert same_value(latex(one), latex(other)) == (one == other)
    assert not same_value(latex(one), latex(one + Fraction(1, 10**20)))


def test_text_is_never_run(tmp_path):
    mark = tmp_path / "run"
    for text in (
        f"__import__('os').system('touch {mark}')",
        f"\\operatorname{{__import__('os').system('touch {mark}')}}",
        f"open('{mark}', 'w')",
        f"\\text{{open('{mark}', 'w')}}",
        f"x_{{open('{mark}','w')}}",
    ):
        same_value(text, text)
        same_value("5", text)
    assert not mark.exists()


def test_what_the_worker_hands_to_sympy_is_numbers_alone():
    """In a process of its own, as the worker is: the functions that evaluate text are gone from sympy."""
    code = """
import sys, sympy
sys.path.insert(0, "dllm_gym/tasks/scoring")
from math_worker import _equal, _never_evaluate_text
_never_evaluate_text()
assert _equal("12", "12.0") and _equal("x^2-1", "(x-1)(x+1)")
for text in ("x", "1+1", "print()", "1;2", "9**9"):
    for evaluate in (sympy.sympify, sympy.S, sympy.parsing.sympy_parser.parse_expr):
        try:
            evaluate(text)
        except (ValueError, sympy.SympifyError):
            continue
        sys.exit(f"{evaluate} took {text}")
print("refused")
"""
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(math_equality.__file__).parents[3],
    )
    assert done.stdout == "refused\n", done.stderr


@pytest.mark.parametrize("answer", ["9^{9^{9^{9^9}}}", "(10^9)!", "9^{9^{9^{9^8}}} - 9^{9^{9^{9^7}}}"])
def test_what_takes_for_ever_is_given_up_on_and_the_next_answer_is_right(monkeypatch, answer):
    assert same_value("3", "3.0")
    monkeypatch.setattr(math_equality, "_TIMEOUT", 0.5)
    start = time.monotonic()
    assert not same_value("5", answer)
    assert time.monotonic() - start < 30  # on a busy machine; without the limit it never ends
    monkeypatch.setattr(math_equality, "_TIMEOUT", 60.0)
    assert same_value(r"\frac{2}{6}", r"\frac{1}{3}")


def test_a_dead_worker_is_replaced():
    assert same_value(r"\frac{2}{8}", r"\frac{1}{4}")
    math_equality._worker._process.kill()
    math_equality._worker._process.wait()
    same_value("1", "2-1")  # may be lost with the worker, and counts as unequal then
    assert same_value(r"\frac{2}{10}", r"\frac{1}{5}")


def test_it_works_beside_the_main_thread_and_leaves_signals_alone():
    handler = signal.getsignal(signal.SIGALRM)
    results = []
    threads = [
        threading.Thread(target=lambda n=n: results.append(same_value(str(n), f"{2 * n}/2")))
        for n in range(40, 48)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8
    assert signal.getsignal(signal.SIGALRM) is handler


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_has_a_worker_of_its_own():
    assert same_value(r"\frac{2}{12}", r"\frac{1}{6}")
    parent = math_equality._worker._process.pid
    code = """
import os
from dllm_gym.tasks.scoring.math_equality import same_value, _worker
assert same_value("1", "1.0")
mine = _worker._process.pid
child = os.fork()
if child == 0:
    fine = same_value("3", "6/2") and _worker._process.pid != mine
    _worker.stop()
    os._exit(0 if fine else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert same_value("4", "8/2") and _worker._process.pid == mine
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert math_equality._worker._process.pid == parent


def test_a_process_that_ends_leaves_no_worker_behind():
    code = (
        "from dllm_gym.tasks.scoring.math_equality import same_value, _worker; "
        "same_value('1', '1.0'); print(_worker._process.pid)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


def test_without_math_verify_the_extra_is_named(monkeypatch, tmp_path):
    path = tmp_path / "math500.jsonl"
    path.write_text('{"problem": "1/2?", "answer": "0.5"}\n')
    monkeypatch.setattr(math_equality, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'dllm-gym\[math\]'; equality='text' does without"):
        load_task("math500", data=path)
    task = load_task("math500", data=path, equality="text")
    assert task.score(r"\boxed{\frac12}", task.problem(0)) == 1.0
    assert task.score(r"\boxed{\frac24}", task.problem(0)) == 0.0


PIECES = [
    *[
        "{",
        "}",
        "\\",
        "\\frac",
        "\\sqrt",
        "^",
        "_",
        "9",
        "9" * 200,
        "x",
        "+",
        "!",
        "\\left(",
        "\\begin{matrix}",
        "&",
    ],
    *[
        "\\\\",
        "$",
        "\\text{",
        "∞",
        "²",
        "\x00",
        "\n",
        "\\boxed{",
        "\\int",
        "\\sum",
        "\\log",
        "=",
        ",",
        "(",
        ")",
        "\ud800",
    ],
]


@settings(max_examples=40)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.text(max_size=20))
def test_no_string_breaks_it(text, other):
    for gold, answer in ((text, other), ("5", text), (text, "5")):
        assert same_value(gold, answer) in (True, False)
