"""A separate program: reads pairs of LaTeX answers, says whether math-verify finds them equal.

Run by ``math_equality`` as a script of its own, so that whatever a model wrote can be given up on by
ending the process. It imports nothing of dllm_gym.
"""

import json
import re
import sys
from contextlib import suppress
from typing import Any, NoReturn

_MEMORY = 4 * 2**30  # bytes of address space

# How far numbers of which one is a decimal may lie apart: 0.333333 is 1/3, and 0.0000001 is not 0.
_CLOSE, _RELATIVELY_CLOSE = 5e-7, 5e-6
_DIGITS, _SAME = (
    40,
    1e-30,
)  # of irrational numbers: computed to, and the relative difference that counts as none


def _limit_memory() -> None:
    with suppress(ImportError, ValueError, OSError):  # not there on Windows, or a lower limit is set
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


def _never_evaluate_text() -> None:
    """Replaces what sympy turns text into Python with; the parser of LaTeX hands it its numbers that way."""
    import sympy.physics.units  # noqa: F401 - simplify imports it, and it reads the names of units that way
    from sympy import Float, Integer
    from sympy.parsing import sympy_parser

    def read_number(text: str, *_: Any, **__: Any) -> Any:
        if re.fullmatch(r"\s*[-+]?\d+\s*", text, re.ASCII):
            return Integer(int(text))
        if re.fullmatch(r"\s*[-+]?(?:\d+\.\d*|\.\d+)\s*", text, re.ASCII):
            return Float(text.strip())
        raise ValueError(f"{text!r} is no number, and text is never evaluated as Python here")

    def refuse(*_: Any) -> NoReturn:
        raise ValueError("text is never evaluated as Python here")

    sympy_parser.parse_expr = read_number
    sympy_parser.eval_expr = refuse


def _compare_numbers_exactly() -> None:
    """Replaces math-verify's comparison of two numbers, to which everything below 1e-16 is the same.

    What consists of numbers (sets, tuples, intervals, matrices, equations) is compared through it.
    """
    from math_verify import grader
    from sympy import Expr, Float, Rational

    element_by_element = grader.sympy_numeric_eq  # of matrices; it calls what stands under its name

    def exact(value: Any) -> Any:
        return value.xreplace({decimal: Rational(str(decimal)) for decimal in value.atoms(Float)}).doit()

    def same(gold: Any, answer: Any, *settings: Any) -> bool:
        if not (isinstance(gold, Expr) and isinstance(answer, Expr)):
            return bool(element_by_element(gold, answer, *settings))
        decimal = gold.has(Float) or answer.has(Float)
        gold, answer = exact(gold), exact(answer)
        if gold == answer:
            return True
        if not (gold.is_number and answer.is_number):
            return False  # math-verify goes on to compare them as expressions
        if gold.is_Rational and answer.is_Rational and not decimal:
            return False
        size = max(abs(gold.evalf(_DIGITS)), abs(answer.evalf(_DIGITS)))
        apart = abs((gold - answer).evalf(_DIGITS))
        return bool(apart <= (min(_CLOSE, _RELATIVELY_CLOSE * size) if decimal else _SAME * size))

    grader.sympy_numeric_eq = same


def _equal(gold: str, answer: str) -> bool:
    from math_verify import LatexExtractionConfig, parse, verify
    from sympy import Expr, Set

    # LaTeX alone: math-verify's other extractor, for plain expressions, goes through Python's eval
    config = [LatexExtractionConfig(boxed_match_priority=0)]
    parsed = [parse(f"\\boxed{{{text}}}", config, parsing_timeout=None) for text in (gold, answer)]
    if not all(parsed):
        return False
    expected, given = parsed[0][0], parsed[1][0]
    if isinstance(expected, Expr) and isinstance(given, Set) and len(given.args) != 1:
        return False  # "6 or 7" is not 6
    return bool(verify(*parsed, timeout_seconds=None))


def main() -> None:
    """Answers every line of JSON ``[gold, answer]`` with a line, ``true`` or ``false``."""
    _limit_memory()
    _never_evaluate_text()
    _compare_numbers_exactly()
    _equal("x^2 - 1", "(x-1)(x+1)")  # imports what is slow to import, before the first answer's clock starts
    print("ready", flush=True)
    for line in sys.stdin:
        gold, answer = json.loads(line)
        try:
            equal = _equal(gold, answer)
        except (Exception, RecursionError, MemoryError):
            equal = False
        print(json.dumps(equal), flush=True)


if __name__ == "__main__":
    main()
