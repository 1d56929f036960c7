"""Arithmetic that a model wrote, computed without ever handing it to Python."""

from __future__ import annotations

import re
from fractions import Fraction

_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d+)?|\.\d+)|([-+*/()]))")
_MAX_LENGTH = 400  # characters; what a task asks for has a few dozen
_MAX_DEPTH = 40

_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_SIGNS = {
    r"\times": "*",
    r"\cdot": "*",
    r"\div": "/",
    r"\left": "",
    r"\right": "",
    "\u00d7": "*",  # multiplication sign
    "\u00b7": "*",  # middle dot
    "\u22c5": "*",  # dot operator
    "\u00f7": "/",  # division sign
    "\u2212": "-",  # minus sign
    "\u2013": "-",  # en dash
    "[": "(",
    "]": ")",
}


def evaluate(text: str) -> tuple[Fraction, list[Fraction]] | None:
    r"""Value of an arithmetic expression and the numbers written in it, in order.

    Numbers, ``+ - * /``, unary signs and brackets, with LaTeX's and typographic signs for the operators
    (``\times``, ``\div``, ``\frac{a}{b}``). Nothing else: no powers, names or calls.

    Returns:
        Exact value and numbers, or ``None`` for anything that is not such an expression, for a division
        by zero, and for one that is longer or deeper than a person would write.
    """
    tokens = _tokens(text)
    if tokens is None:
        return None
    parser = _Parser(tokens)
    try:
        value = parser.sum(0)
    except (_NoExpression, ZeroDivisionError):
        return None
    return (value, parser.numbers) if parser.at == len(tokens) else None


def _tokens(text: str) -> list[str] | None:
    if len(text) > _MAX_LENGTH:
        return None
    for sign, plain in _SIGNS.items():
        text = text.replace(sign, plain)
    while (unfolded := _FRACTION.sub(r"((\1)/(\2))", text)) != text:
        text = unfolded
    tokens, at = [], 0
    text = text.strip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            return None
        tokens.append(match[1] or match[2])
        at = match.end()
    return tokens


class _NoExpression(Exception):
    pass


class _Parser:
    """Recursive descent over sums, products and factors."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at, self.numbers = tokens, 0, list[Fraction]()

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while (sign := self._take("+", "-")) is not None:
            term = self.product(depth)
            value = value + term if sign == "+" else value - term
        return value

    def product(self, depth: int) -> Fraction:
        value = self.factor(depth)
        while (sign := self._take("*", "/")) is not None:
            factor = self.factor(depth)
            value = value * factor if sign == "*" else value / factor
        return value

    def factor(self, depth: int) -> Fraction:
        if depth > _MAX_DEPTH or self.at == len(self.tokens):
            raise _NoExpression
        if (sign := self._take("+", "-")) is not None:
            value = self.factor(depth + 1)
            return value if sign == "+" else -value
        if self._take("(") is not None:
            value = self.sum(depth + 1)
            if self._take(")") is None:
                raise _NoExpression
            return value
        token = self.tokens[self.at]
        if token in "*/)":
            raise _NoExpression
        self.at += 1
        self.numbers.append(Fraction(token))
        return self.numbers[-1]

    def _take(self, *signs: str) -> str | None:
        if self.at < len(self.tokens) and self.tokens[self.at] in signs:
            self.at += 1
            return self.tokens[self.at - 1]
        return None
