"""The answer in what a model wrote, and whether two answers are the same; pure functions of text.

Real completions hold half-open boxes and tags, several boxes, units, thousands separators and text
after the end token. What counts where is the protocol of dllm-reasoning/d1 (``eval/parse_and_get_acc.py``),
which arXiv 2512.09106 uses as well, with its known traps repaired; ``docs/tasks.md`` lists them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from dllm_gym.tasks.scoring.expression import evaluate

# What the tokenizers of the supported families call the end of a text or of a turn, and padding.
_END = re.compile(r"<\|(?:eot_id|endoftext|end_of_text|im_end|role_end|dlm_pad)\|>|</s>")
_BOX = r"(?:\\|\b)boxed\s*\{"  # models forget the backslash
_BRACES = re.compile(rf"{_BOX}|\\[{{}}\\]|[{{}}]")
_TAG = re.compile(r"<[>\s]*answer\b[>.:]?(.*?)(?:<\s*/\s*answer|\Z)", re.DOTALL)
_PLACEHOLDER = re.compile(r"[\s.…]*|\\[cl]?dots")  # "..." as in the prompt's own example
_BLANK_BOX = re.compile(rf"{_BOX}[\s.…]*(?:\}}|\Z)")

# Markdown and the signs around a formula. A star between two factors is no emphasis: it has blanks on both
# sides or on neither.
_EMPHASIS = re.compile(r"(?<![\w*)\]}])(\*{1,3}|_{1,3})(?=[^\s*_])(.{0,100}?[^\s*_])\1(?![\w*(\[{])")
_HALF_OPEN = re.compile(r"(?<!\S)(?:\*\*|__)(?=\S)|(?<=\S)(?:\*\*|__)(?!\S)")
_FORMULA = re.compile(r"```(?:[a-z]+\n)?|\\[()\[\]]|`|(?<!\\)\$")
_BOLD = re.compile(r"\\(?:textbf|mathbf|textit|emph)\s*\{([^{}]*)\}")

_SEPARATED = re.compile(r"(?<=\d)(?:,|(?:\{,\}|\\,|,\\!|\\!)\s*)(?=\d{3}(?!\d))")
_WORDING = r"\\(?:text|mbox|mathrm|textrm)\s*"
_WORDS = re.compile(_WORDING + r"\{[^{}]*\}?(?:\^\{?\d\}?)?")


def before_end(text: str, stops: Sequence[str] = ()) -> str:
    """The text before its first end token, or before the first of ``stops``."""
    found = _END.search(text)
    end = len(text) if found is None else found.start()
    for stop in stops:
        end = text.find(stop, 0, end) if stop in text[:end] else end
    return text[:end]


def boxes(text: str) -> list[str]:
    r"""What stands in every ``\boxed{...}``, in the order in which they open, blank ones left out.

    A box that is never closed ends with its line or at the next tag; the prompts' own ``\boxed{...}``
    counts as blank, ``boxed{4}`` without its backslash as a box.
    """
    spans: list[tuple[int, int]] = []
    open_braces: list[int | None] = []  # where the content starts, None for a brace of something else
    for match in _BRACES.finditer(text):
        if match[0] == "}":
            start = open_braces.pop() if open_braces else None
            if start is not None:
                spans.append((start, match.start()))
        elif match[0] == "{":
            open_braces.append(None)
        elif "boxed" in match[0]:
            open_braces.append(match.end())
    half_open = [start for start in open_braces if start is not None]
    contents = [(start, text[start:end]) for start, end in spans]
    contents += [(start, re.split(r"\n|<", text[start:], maxsplit=1)[0].rstrip("> ")) for start in half_open]
    stripped = [content.split("</answer")[0].strip() for _, content in sorted(contents)]
    return [content for content in stripped if not _is_blank(content)]


def tagged(text: str) -> str | None:
    """What stands between ``<answer>`` and ``</answer>``, or the end; of several the last; blank is none."""
    contents = [match.strip() for match in _TAG.findall(text)]
    return next((content for content in reversed(contents) if not _is_blank(content)), None)


def _is_blank(content: str) -> bool:
    return _PLACEHOLDER.fullmatch(_BLANK_BOX.sub("", content)) is not None


def without_markup(text: str) -> str:
    """A text without emphasis, code marks and the signs that a formula stands between."""
    text = _BOLD.sub(r"\1", text)
    while (plain := _EMPHASIS.sub(r"\2", text)) != text:  # one inside another
        text = plain
    return _FORMULA.sub(" ", _HALF_OPEN.sub("", text))


# Numbers ---------------------------------------------------------------------------------------------------

# What a result stands behind
EQUALS = re.compile(r"=|\\approx|≈|[→⇒⟹]|->|\\(?:[Ll]ong)?[Rr]ightarrow|\\(?:to|implies)\b")
_MARKS = re.compile(r"\\?[%€£]|\\\$|\^?\{?\\circ\}?|°|\\[!,;: ]|~|&|\\\\|\\(?:begin|end)\s*\{[^{}]*\}")
_MINUS_MONEY = re.compile(r"-\s?\\?[$€£]\s?(?=[\d.])")
_BULLET = re.compile(r"^[ \t]*[-*+•][ \t]+", re.MULTILINE)
_SIMPLE_FRACTION = re.compile(
    r"(?:(\d)\s*)?\\[dt]?frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))"
)
_LABEL = re.compile(r"\A[^\d:]*:")
_TIMES = "*\u00d7\u00b7\u22c5"
_SIGNS = rf"-+/\u00f7{_TIMES}"
_OPERATOR = rf"(?:[{_SIGNS})]|\\(?:times|cdot|div)\b)"
_UNITS = re.compile(rf"(?<=[\d)])\s*[A-Za-z]{{2,}}\.?(?:\s+[A-Za-z]{{2,}}\.?)*(?=\s*(?:\Z|{_OPERATOR}\s))")
_SHORT = 100  # characters of an answer that may be arithmetic
_IN_BRACKETS = re.compile(r"\(([^()]*)\)[\s.]*\Z")
_PART_OF_ARITHMETIC = re.compile(rf"\d\s*[+{_TIMES}]|[+{_TIMES}]\s*\d|\\times|\\cdot")
# A power or an index is stepped over, what has one is no number. A sign stands before its number and after
# no other.
_NUMBER = re.compile(
    r"(?:\^|_|\*\*)\s*+\{?+\s*+-?+\d[\d.]*+"
    r"|((?:(?<![\w)\]}.])-)?+(?:(?:\d++\s++)?+\d++/0*+[1-9]\d*+(?![/.]?\d)|\d++(?:\.\d++)?+|(?<!\d)\.\d++))"
    r"(?!\s*(?:[\^_!]|\*\*))"
)
_TOO_LONG = re.compile(r"\d{61}")  # digits; no answer has as many, and they cost time


def number(text: str, last: bool = False) -> Fraction | None:
    r"""The number that an answer states: ``1,234``, ``\$18.5``, ``**20\%**``, ``4 \text{ miles}``, ``3/4``.

    Markup, units, currency and percent signs don't count. Of an equation the right side counts. A short
    answer that is arithmetic and nothing else has its value; other arithmetic is no number. Of words with
    several numbers the first number counts.

    Args:
        text: What stands in a box, or any text.
        last: For text that may be prose: its last number counts, in whatever it stands, a dash that begins a
            line and has a blank behind it is a bullet, and an exclamation mark no factorial.

    Returns:
        The exact number, or ``None`` if there is none.
    """
    text = _MINUS_MONEY.sub("-", _SEPARATED.sub("", text.replace("\u2212", "-")))
    text = without_markup(_BULLET.sub("", text).replace("!", " ") if last else text)
    sides = [side for side in EQUALS.split(text) if re.search(r"\d", side)]
    if not sides or _TOO_LONG.search(sides[-1]):
        return None
    text = _WORDS.sub(" ", sides[-1])
    if not re.search(r"\d", text):  # the number itself stands in \text{...}
        text = re.sub(_WORDING + r"|[{}]", " ", sides[-1])
    text = _MARKS.sub(" ", text).strip()
    for answer in (text, stated := _without_explanation(text)):
        if len(answer) <= _SHORT and (computed := evaluate(_bare(answer))) is not None:
            return computed[0]
    text = _SIMPLE_FRACTION.sub(_as_division, stated)
    if not last and _PART_OF_ARITHMETIC.search(text):
        return None
    found = [match[1] for match in _NUMBER.finditer(text) if match[1]]
    return _value(found[-1 if last else 0]) if found else None


def _without_explanation(text: str) -> str:
    """Of ``8 eggs (5 + 3)`` what stands before the bracket; all of ``2 * (5 + 3)``."""
    found = _IN_BRACKETS.search(text)
    if found is None or not (re.search(r"\d", found[1]) and re.search(rf"[{_SIGNS}]", found[1])):
        return text
    before = text[: found.start()].rstrip()
    return before if re.search(rf"\d(?:.*[^{_SIGNS}(:])?\Z", before, re.DOTALL) else text


def _bare(text: str) -> str:
    """A short answer without what names it and without its units."""
    return _UNITS.sub("", _LABEL.sub("", text).lstrip(" ,;:#/").rstrip(" .,;:/")).strip()


def _as_division(fraction: re.Match[str]) -> str:
    whole, *parts = fraction.groups()
    above, below = (part for part in parts if part)
    return f"{whole} {above}/{below}" if whole else f"{above}/{below}"


def _value(written: str) -> Fraction:
    """Of ``-2.5``, ``3/4`` or ``2 1/2``."""
    *whole, part = written.lstrip("-").split()
    value = Fraction(part) + sum(map(Fraction, whole))
    return -value if written.startswith("-") else value


def same_number(one: Fraction | None, other: Fraction | None) -> bool:
    """Whether two numbers differ by less than 1e-6; no number is the same as none."""
    return one is not None and other is not None and abs(one - other) < Fraction(1, 10**6)


# LaTeX -----------------------------------------------------------------------------------------------------

_NAMED = re.compile(r"[A-Za-z]\w?\s*(?:=|\\in\b)(?!.*(?:=|\\in\b))")  # x = 5, x \in [1, 2], but no chain
_ALL_TEXT = re.compile(r"\\(?:text|mbox|mathrm|textrm|textbf)\s*\{([^{}]*)\}")
_UNIT_WORDS = re.compile(rf"(?:\s*{_WORDS.pattern})+\s*\.?$")
_UNITS_AFTER = re.compile(r"(?<=\d)\s*\b[a-z]{2,}(?:\s+[a-z]+)*\.?")


def plain_latex(answer: str) -> str:
    r"""An answer without what doesn't change it: layout, units, currency, percent, degrees, ``x =``."""
    answer = _SEPARATED.sub("", " ".join(without_markup(answer).split()).rstrip("."))
    for mark in (r"\left", r"\right", r"\displaystyle", r"\$", r"\%", "%", "°", r"\!", r"\,", r"\;"):
        answer = answer.replace(mark, "")
    answer = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|\\degree", "", answer)
    answer = re.sub(r"\\[dt]frac", r"\\frac", answer).strip()
    named = _NAMED.match(answer)
    answer = answer[named.end() :].strip() if named else answer
    unworded = _UNIT_WORDS.sub("", answer).strip()
    answer = unworded if re.search(r"[\d\\]", unworded) else _ALL_TEXT.sub(r"\1", answer).strip()
    return _UNITS_AFTER.sub("", answer) if re.fullmatch(r"[-\d.\s]+[a-z ]+\.?", answer) else answer


def same_text(one: str, other: str) -> bool:
    r"""Whether two LaTeX answers are written the same but for layout.

    Equality of strings in the manner of the MATH data set's authors (hendrycks/math, ``math_equivalence``):
    ``\frac12`` is ``\frac{1}{2}``, ``a/b`` is ``\frac{a}{b}``, ``0.5`` and ``.5`` are ``\frac{1}{2}``.
    Other ways of writing a value count as different; see ``dllm_gym.tasks.scoring.math_equality``.
    """
    return _canonical(one) == _canonical(other)


def _canonical(answer: str) -> str:
    answer = "".join(plain_latex(answer).split())
    answer = re.sub(r"\\frac(?:\{(\w)\}|(\w))(?:\{(\w)\}|(\w))", r"\\frac{\1\2}{\3\4}", answer)
    answer = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", answer)
    answer = re.sub(r"(?<!\d)\.(?=\d)", "0.", answer)
    answer = re.sub(r"^(-?)0\.50*$", r"\1\\frac{1}{2}", answer)
    return re.sub(r"^(-?)(\d+)/(\d+)$", r"\1\\frac{\2}{\3}", answer)
