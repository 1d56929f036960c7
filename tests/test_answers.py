"""Answers in what models write: the traps one by one, and any string at all."""

from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dllm_gym.tasks.scoring.answers import (
    before_end,
    boxes,
    number,
    plain_latex,
    same_number,
    same_text,
    tagged,
)
from dllm_gym.tasks.scoring.expression import evaluate

PIECES = [
    *["\\boxed{", "{", "}", "\\{", "\\}", "\\", "<answer>", "</answer>", "<answer", "####", "\n", " ", "..."],
    *[
        "\\frac{",
        "\\frac12",
        "\\text{",
        "\\sqrt",
        "^",
        "_5",
        "\\circ",
        "\\%",
        "$",
        "1,234",
        "0.5",
        ".",
        "-",
        "9",
    ],
    *[
        "9**9**9",
        "9^{9^{9}}",
        "9" * 5000,
        "1e999",
        "!",
        "=",
        "x",
        "∞",
        "²",
        "٤",
        "\x00",
        "<|eot_id|>",
        "(",
        ")",
    ],
    *["\\times", "/", "+", "The final answer is", "I hope it is correct", "Question:", "\\approx", "\ud800"],
]
soup = st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.text(max_size=60)


# Where a text ends -----------------------------------------------------------------------------------------


def test_text_after_an_end_token_or_a_stop_does_not_count():
    for end in ("<|eot_id|>", "<|endoftext|>", "<|im_end|>", "<|dlm_pad|>", "</s>"):
        assert before_end(f"5{end}6<|endoftext|>7") == "5"
    assert before_end("a Q: b P: c<|eot_id|>d", ["P:", "Q:"]) == "a "
    assert before_end("a<|eot_id|>Q:", ["Q:"]) == "a"
    assert before_end("plain <|mdm_mask|> text") == "plain <|mdm_mask|> text"


@given(soup, soup)
def test_what_is_before_the_end_is_a_beginning(text, other):
    kept = before_end(text, ["Question:"])
    assert text.startswith(kept)
    assert before_end(kept, ["Question:"]) == kept
    assert before_end(kept + "<|eot_id|>" + other) == kept


# Boxes and tags --------------------------------------------------------------------------------------------

BOXES = {
    r"\boxed{18}": ["18"],
    r"\boxed{1} then \boxed {2}": ["1", "2"],
    r"\boxed{\frac{1}{2}}": [r"\frac{1}{2}"],
    r"\boxed{\{1, 2\}}": [r"\{1, 2\}"],
    r"\boxed{\boxed{7}}": [r"\boxed{7}", "7"],
    r"\boxed{} \boxed{...} \boxed{243}": ["243"],
    "\\boxed{310\n}": ["310"],
    "\\boxed{78\n</answer>": ["78"],
    "\\boxed{95 - 73 + 7>": ["95 - 73 + 7"],
    "\\boxed{360\\text{ hours} hours.\n</answer>": [r"360\text{ hours} hours."],
    "{ \\frac{1 \\boxed{5} and": ["5"],
    "} } \\boxed{5}": ["5"],
    "boxed{27}": ["27"],
    "\\boxed{\nboxed{428}": ["428"],
    "**boxed{4}**": ["4"],
    "unboxed{27}": [],
    r"\fbox{3} \boxed 4": [],
    "": [],
}


@pytest.mark.parametrize(("text", "contents"), BOXES.items())
def test_boxes(text, contents):
    assert boxes(text) == contents


TAGS = {
    "<answer>5</answer>": "5",
    "<answer>\n5\n</answer>": "5",
    "<answer> 5": "5",
    "<answer>5</answer}": "5",
    "<answer.\n7\n</answer": "7",
    "<>answer>\n8\n</answer>": "8",
    "<answer>1</answer> <answer>2</answer>": "2",
    "<answer>1</answer> <answer></answer>": "1",
    "<answer>\\boxed{...}</answer>": None,
    "</answer> 5": None,
    "the answer> 5": None,
    "<answers>5</answers>": None,
    "": None,
}


@pytest.mark.parametrize(("text", "content"), TAGS.items())
def test_tags(text, content):
    assert tagged(text) == content


@given(st.lists(st.text("0123456789+-x ", min_size=1, max_size=8).filter(str.strip), max_size=5), soup)
def test_every_closed_box_is_found_in_order(contents, between):
    between = "".join(c for c in between if c not in "{}\\")
    text = between.join(f"\\boxed{{{content}}}" for content in contents)
    assert boxes(text) == [content.strip() for content in contents]


def test_deep_and_long_text_takes_no_time():
    for text in (
        "\\boxed{" * 3000,
        "{" * 100_000,
        "\\boxed{1}" * 20_000,
        "<answer>" * 20_000,
        "\\" * 100_000,
        "**a " * 20_000,
        "1" + " " * 100_000 + "2",
        "^" + " " * 100_000 + "1",
        "(1+" * 30_000,
        "- " * 50_000,
        "1/" * 50_000,
        "eggs " * 20_000 + "1",
    ):
        boxes(text)
        tagged(text)
        number(text)
        number(text, last=True)
        plain_latex(text)


# Numbers ---------------------------------------------------------------------------------------------------

NUMBERS = {
    "18": 18,
    "1,234": 1234,
    "1{,}234": 1234,
    r"1\,234,567": 1234567,
    r"10,\!080": 10080,
    r"\$18.50": "18.5",
    "$1,234.56$": "1234.56",
    r"20\%": 20,
    "20 %": 20,
    r"4 \text{ minutes}": 4,
    r"\text{18 dollars}": 18,
    r"25 \text{ m}^2": 25,
    r"246\text{ feet": 246,
    "50 mph": 50,
    "$5/hour": 5,
    "5.0": 5,
    "1.": 1,
    ".5": "1/2",
    "-3": -3,
    "\u22123": -3,
    r"90^\circ": 90,
    "3/4": "3/4",
    r"\dfrac{3}{4}": "3/4",
    r"5 \times 3": 15,
    "3 + 4 = 7": 7,
    "x = 5": 5,
    r"\frac{10}{3} \approx 3.33": "3.33",
    "16.50 dollars": "16.5",
    "5 = x": 5,
    # not the number that is written first
    "10^3": None,
    "5!": None,
    "204_5": None,
    "9**9**9": None,
    "5 + x": None,
    # none at all
    "": None,
    "two": None,
    "-": None,
    "...": None,
    "9" * 61: None,
}


@pytest.mark.parametrize(("text", "value"), NUMBERS.items())
def test_numbers(text, value):
    assert number(text) == (None if value is None else Fraction(value))


# What both a box and prose may hold
MARKED = {
    "**8**": 8,
    "*8*": 8,
    "***8***": 8,
    "__8__": 8,
    "_8_": 8,
    "`8`": 8,
    "**$8**": 8,
    "$**8**$": 8,
    r"\(8\)": 8,
    r"\[ 8 \]": 8,
    "$$8$$": 8,
    r"\textbf{8}": 8,
    r"\mathbf{8}": 8,
    "**8": 8,
    "8 eggs (5 + 3)": 8,
    "8 (since 16 / 2)": 8,
    "5 + 3 → 8": 8,
    "5 + 3 -> 8": 8,
    r"5 + 3 \rightarrow 8": 8,
    "5 + 3 => 8": 8,
    r"\begin{align*} 5 + 3 &= 8 \\ \end{align*}": 8,
    "x = 8 in C++": 8,
    "**5 * 3 = 15**": 15,
    "**5** * **3**": 15,
    "5 * 3 eggs": 15,
    "9 eggs * $2": 18,
    "2 * (5 + 3)": 16,
    "-$8": -8,
    r"\frac{3}{4} \text{ cup}": "3/4",
    r"-\frac12": "-1/2",
    "2 1/2 cups": "5/2",
    r"2\frac{1}{2}": "5/2",
    # a power is no number, nor is its exponent
    "10^{3}": None,
    "10^{-3}": None,
    "9^{9^{9}}": None,
    "9 ** 9": None,
    "x_{2}": None,
}


@pytest.mark.parametrize(("text", "value"), MARKED.items())
def test_markup_and_explanations_do_not_count(text, value):
    wanted = None if value is None else Fraction(value)
    assert number(text) == wanted
    assert number(text, last=True) == wanted


PROSE = {
    "So the final answer is **8**.": 8,
    "5 + 3 equals 8. The answer is 8.": 8,
    "She has 13 girls + 3.\n#### 18": 18,
    "9 eggs * $2, which is $18": 18,
    "She pays 5 + 3 = 8 dollars.\nWritten in C++.": 8,
    "Answer:\n- 8": 8,
    "Answer:\n* 8": 8,
    "Answer:\n• **8 eggs**": 8,
    "- 7 red\n- 8 blue": 8,
    "Answer - 8": 8,
    "the answer is 8!": 8,
    "8!": 8,
    "It takes 5-10 people": 10,
    "it is -8.": -8,
    "Answer: 5 * 3": 15,
    "The answer is 3/4.": "3/4",
    r"He has 5. \textbf{The answer is 8}": 8,
    "The answer is **8": 8,
    "The answer is 8 (5 + 3).": 8,
    "Ages 3 and -4": -4,
    "She has (5 + 3) eggs": 3,  # no short answer, so the last number
    "2 * 10^3, so 8": 8,
    "from 1,000 to 2,500 eggs": 2500,
    "18\n---": 18,
    "8\n***": 8,
    "8 * * *": 8,
    "> 8": 8,
    "none": None,
}


@pytest.mark.parametrize(("text", "value"), PROSE.items())
def test_of_prose_the_last_number_counts(text, value):
    assert number(text, last=True) == (None if value is None else Fraction(value))


def test_of_several_numbers_the_first_or_the_last():
    assert number("2 hours 30 minutes") == 2
    assert number("2 hours 30 minutes", last=True) == 30
    assert number("3, 100") == 3  # a list, no thousands


@given(
    st.integers(0, 10**6),
    st.text("abc .,\n", max_size=40),
    st.sampled_from(
        ["{}", "**{}**", "*{}*", "__{}__", "`{}`", "${}$", r"\({}\)", r"\textbf{{{}}}", "- {}", "# {}"]
    ),
    st.sampled_from(["", ".", "!", " eggs.", " (5 + 3)", "\n", " C++", r" \end{align*}"]),
)
def test_a_last_number_is_found_behind_any_prose_and_in_any_markup(value, prose, markup, after):
    assert number(f"7 * 6 {prose}\n{markup.format(f'{value:,}')}{after}", last=True) == value


@given(st.integers(-(10**12), 10**12), st.integers(0, 3))
def test_a_number_is_read_back_however_it_is_written(value, places):
    text = f"{value:,}" + ("." + "0" * places if places else "")
    for written in (text, f"${text}", f"{text}\\%", f"{text} miles", f"\\text{{{text} km}}", f"x = {text}"):
        assert number(written) == value
    assert same_number(number(text), Fraction(value))
    assert not same_number(number(text), Fraction(value) + Fraction(1, 1000))
    assert not same_number(None, None)


# Expressions -----------------------------------------------------------------------------------------------


@st.composite
def expressions(draw, depth=3):
    """An expression as text, and as what Python's own fractions make of it."""
    if depth == 0 or draw(st.booleans()):
        value = draw(st.integers(0, 99))
        return str(value), Fraction(value), [value]
    left, a, used = draw(expressions(depth=depth - 1))
    right, b, more = draw(expressions(depth=depth - 1))
    sign = draw(st.sampled_from("+-*/"))
    if sign == "/" and b == 0:
        sign = "*"
    value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else a}[sign]
    shown = draw(
        st.sampled_from(
            {"*": ["*", "\\times", "\\cdot ", "\u00d7"], "/": ["/", "\\div ", "÷"]}.get(sign, [sign])
        )
    )
    space = draw(st.sampled_from(["", " "]))
    return f"({left}{space}{shown}{space}{right})", value, used + more


@given(expressions())
def test_expressions_have_the_value_that_fractions_have(case):
    text, value, used = case
    assert evaluate(text) == (value, used)
    assert evaluate(f"-{text}") == (-value, used)
    assert evaluate(text + "+") is None
    assert evaluate(text + " x") is None
    assert evaluate("(" + text) is None


def test_products_come_before_sums_and_from_the_left():
    for text in (
        "1 + 2 * 3 - 4 / 2",
        "8 / 4 / 2",
        "8 - 4 - 2",
        "2 * -3",
        "1 - -1",
        "-(2 + 3) * 4",
        "7 - 6 / 4 * 2",
    ):
        assert evaluate(text)[0] == Fraction(eval(text))  # our own text
    assert evaluate(r"\frac{1}{2} + [1 + 2]")[0] == Fraction(7, 2)


NO_EXPRESSION = [
    *[
        "",
        " ",
        "()",
        "1 +",
        "* 2",
        "1 2",
        "2(3)",
        "2**3",
        "2^3",
        "7 // 2",
        "5 % 3",
        "1/0",
        "1/(2-2)",
        "1e5",
        "x",
        "0x10",
    ],
    *[
        "__import__('os')",
        "1;2",
        "1,2",
        "a + b * c",
        "(" * 100 + "1" + ")" * 100,
        "-" * 100 + "1",
        "1+" * 300 + "1",
    ],
]


@pytest.mark.parametrize("text", NO_EXPRESSION)
def test_what_is_no_expression(text):
    assert evaluate(text) is None


# LaTeX as text ---------------------------------------------------------------------------------------------

SAME = [
    (r"\frac{1}{2}", r"\frac12"),
    (r"\frac{1}{2}", r"\dfrac{1}{2}"),
    (r"\frac{1}{2}", "1/2"),
    (r"\frac{1}{2}", "0.5"),
    (r"\frac{1}{2}", ".5"),
    (r"\frac65", r"\frac{6}{5}"),
    (r"10,\!080", "10080"),
    (r"\$18.90", "18.90"),
    (r"20\%", "20"),
    (r"55^\circ", "55"),
    (r"90^{\circ}", r"90^\circ"),
    (r"15\mbox{ cm}^2", "15"),
    (r"5.4 \text{ cents}", "5.4 cents"),
    (r"\text{east}", "east"),
    ("x=5", "5"),
    ("2k+2", "2k + 2"),
    (r"\left(5,\infty\right)", r"(5, \infty)"),
    (r"\sqrt3", r"\sqrt{3}"),
    ("12.", "12"),
    (r"\frac{1}{2}", "**1/2**"),
    ("12", "*12*"),
    ("12", "`12`"),
    ("12", r"\(12\)"),
    ("a*b", "a*b"),
    (r"x \in [-2,7]", "[-2, 7]"),
]
DIFFERENT = [
    ("12", "21"),
    ("1,-2", "1,3"),
    ("(1,2)", "(2,1)"),
    ("204_5", "104_5"),
    ("2\\pi", "2"),
    ("67", r"6 \text{ or } 7"),
    ("x^2", "x2"),
    (r"\text{(E)}", "C"),
    ("-3", "3"),
    ("2", ""),
]


def test_the_same_answer_in_other_layout():
    for one, other in SAME:
        assert same_text(one, other), (one, other)
        assert same_text(other, one), (one, other)
    for one, other in DIFFERENT:
        assert not same_text(one, other), (one, other)


# Any string ------------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(soup, soup)
@example("9" * 5000, "\\frac{" * 500)
@example("\\frac{1}{2}" * 40, "1,234" * 1000)
def test_no_string_breaks_anything(text, other):
    for content in [text, *boxes(text), tagged(text) or ""]:
        number(content)
        number(content, last=True)
        evaluate(content)
        plain_latex(content)
    assert same_text(text, text)
    assert same_text(text, other) == same_text(other, text)
