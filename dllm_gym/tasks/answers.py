"""The answer in what a model wrote, and whether two answers are the same; pure functions of text.

Real completions hold half-open boxes and tags, several boxes, units, thousands separators and text
after the end token. What counts where is the protocol of dllm-reasoning/d1 (``eval/parse_and_get_acc.py``),
which arXiv 2512.09106 uses as well, with its known traps repaired; ``docs/tasks.md`` lists them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from dllm_gym.tasks.expression import evaluate

# What the tokenizers of the supported families call the end of a text or of a turn, and padding.
_END = re.compile(r"<\|(?:eot_id|endoftext|end_of_text|im_end|role_end|dlm_pad)\|>|</s>")
_BRACES = re.compile(r"\\boxed\s*\{|\\[{}\\]|[{}]")
_TAG = re.compile(r"<[>\s]*answer\b[>.:]?(.*?)(?:<\s*/\s*answer|\Z)", re.DOTALL)
_PLACEHOLDER = re.compile(r"[\s.…]*|\\[cl]?dots")  # "..." as in the prompt's own example
_BLANK_BOX = re.compile(r"\\boxed\s*\{[\s.…]*(?:\}|\Z)")

_SEPARATED = re.compile(r"(?<=\d)(?:,|(?:\{,\}|\\,|,\\!|\\!)\s*)(?=\d{3}(?!\d))")
_WORDING = r"\\(?:text|mbox|mathrm|textrm|textbf)\s*"
_WORDS = re.compile(_WORDING + r"\{[^{}]*\}?(?:\^\{?\d\}?)?")
_MARKS = re.compile(r"\\?[$%€£]|\^?\{?\\circ\}?|°|\\[!,;: ]|~")
# no part of a power, an index or a factorial
_NUMBER = re.compile(r"(?<![\^_*])-?(?:\d++(?:\.\d++)?+|(?<!\d)\.\d++)(?!\s*(?:[\^_!]|\*\*))")
_TOO_LONG = re.compile(r"\d{61}")  # digits; no answer has as many, and they cost time


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
    counts as blank.
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
        elif match[0].startswith(r"\boxed"):
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


# Numbers ---------------------------------------------------------------------------------------------------


def number(text: str, last: bool = False) -> Fraction | None:
    r"""The number that a short answer states: ``1,234``, ``\$18.5``, ``20\%``, ``4 \text{ miles}``, ``3/4``.

    Units, currency and percent signs don't count. Of an equation the right side counts, of arithmetic
    its value; of words with several numbers the first number, or the last.

    Returns:
        The exact number, or ``None`` if there is none.
    """
    text = _SEPARATED.sub("", text.replace("\u2212", "-"))
    unworded = _WORDS.sub(" ", text)
    if not re.search(r"\d", unworded):  # the number itself stands in \text{...}
        unworded = re.sub(_WORDING + r"|[{}]", " ", text)
    text = _MARKS.sub(" ", unworded)
    sides = [side for side in re.split(r"=|\\approx|≈", text) if re.search(r"\d", side)]
    if not sides:
        return None
    text = sides[-1]
    if _TOO_LONG.search(text):
        return None
    computed = evaluate(re.sub(r"(?<!\\)\b[A-Za-z]{2,}\b\.?", " ", text).lstrip(" ,;:/").rstrip(" .,;:/"))
    if computed is not None:
        return computed[0]
    if re.search(r"[+*\u00d7]|\\times|\\cdot", text):  # arithmetic with something in it that is no number
        return None
    found = _NUMBER.findall(text)
    return Fraction(found[-1 if last else 0]) if found else None


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
    answer = _SEPARATED.sub("", answer.strip().rstrip(".").replace("\n", " "))
    for mark in (r"\left", r"\right", r"\displaystyle", r"\$", "$", r"\%", "%", "°", r"\!", r"\,", r"\;"):
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
    Other ways of writing a value count as different; see ``dllm_gym.tasks.math_equality``.
    """
    return _canonical(one) == _canonical(other)


def _canonical(answer: str) -> str:
    answer = "".join(plain_latex(answer).split())
    answer = re.sub(r"\\frac(?:\{(\w)\}|(\w))(?:\{(\w)\}|(\w))", r"\\frac{\1\2}{\3\4}", answer)
    answer = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", answer)
    answer = re.sub(r"(?<!\d)\.(?=\d)", "0.", answer)
    answer = re.sub(r"^(-?)0\.50*$", r"\1\\frac{1}{2}", answer)
    return re.sub(r"^(-?)(\d+)/(\d+)$", r"\1\\frac{\2}{\3}", answer)
