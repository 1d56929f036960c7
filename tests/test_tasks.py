"""Tasks: problems anyone can look up, scorers that cannot be talked into a point."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_gym import tasks
from dllm_gym.tasks import SPLITS, Problem, Task, arithmetic, load_task, register_task, task_names
from dllm_gym.tasks.arithmetic import ArithmeticTask
from dllm_gym.tasks.base import split_of
from dllm_gym.tasks.sudoku import SudokuTask, is_valid_grid

DATA = Path(__file__).parents[2] / "shared" / "data"

KINDS = {
    "arithmetic": ("arithmetic", {}),
    "longer": ("arithmetic", {"max_steps": 8}),
    "sudoku4": ("sudoku", {}),
    "sudoku6": ("sudoku", {"size": 6}),
    "latin4": ("latin-square", {}),
    "latin5": ("latin-square", {"size": 5}),
    "lists": ("lists", {}),
    "shuffle": ("lists", {"operations": ["shuffle"]}),
    "records": ("records", {}),
}
LENGTHS = {
    "longer": 80,
    "sudoku4": 16,
    "sudoku6": 36,
    "latin4": 16,
    "latin5": 25,
    "lists": 10,
    "shuffle": 10,
    "records": 68,
    "arithmetic": 48,
}
CHAINS = {5: 48, 6: 64, 7: 72, 8: 80}  # steps at most -> length
every_kind = pytest.mark.parametrize(("name", "kwargs"), KINDS.values(), ids=KINDS)
quick = settings(max_examples=60, deadline=None)

CONNECTIVES = {"So", "Then", "Next", "Now"}
EQUALS = {"=", "is", "makes", "gives", "equals"}


# Problems --------------------------------------------------------------------------------------------------


@every_kind
def test_a_problem_depends_on_nothing_but_seed_split_and_index(name, kwargs):
    forwards, backwards = load_task(name, "train", **kwargs), load_task(name, "train", **kwargs)
    indices = [0, 1, 2, 7, 1000, 2**31 - 2]
    first = [forwards.problem(i) for i in indices]
    assert first == [backwards.problem(i) for i in reversed(indices)][::-1]
    assert first == [forwards.problem(np.int64(i)) for i in indices]
    assert len({problem.prompt for problem in first}) == len(indices)


@every_kind
def test_another_seed_and_another_split_are_other_problems(name, kwargs):
    def prompts(split, seed):
        task = load_task(name, split, seed=seed, **kwargs)
        return [task.problem(i).prompt for i in range(20)]

    drawn = [prompts("train", 0), prompts("train", 1), prompts("test", 0), prompts("test", 1)]
    for one, other in itertools.combinations(drawn, 2):
        assert sum(a == b for a, b in zip(one, other, strict=True)) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_is_what_the_protocol_says(kind):
    name, kwargs = KINDS[kind]
    task = load_task(name, **kwargs)
    assert isinstance(task, Task)
    assert (task.name, task.split, task.num_problems) == (name, "test", None)
    assert task.completion_length == LENGTHS[kind]
    problem = task.problem(3)
    assert isinstance(problem, Problem)
    assert isinstance(problem.prompt, str)
    assert isinstance(problem.reference, str)


def content(name, problem):
    """What makes a problem the problem it is, read off the prompt: names and objects don't count."""
    if name in ("sudoku", "latin-square", "lists"):
        return problem.prompt
    if name == "records":
        items = sorted((item, int(count)) for count, item in re.findall(r"(\d+) (\w+)", problem.prompt))
        return f"{problem.prompt.split()[0]} {items}"
    operations = {"doubles": "*2", "triples": "*3", "halves": "/2"}
    signs = dict.fromkeys(("finds", "buys", "gets", "wins"), "+")
    signs |= dict.fromkeys(("loses", "sells", "spends", "eats"), "-")
    start, *clauses = problem.prompt.removesuffix(". Total?").split(", ")
    words = [re.search(r"\d+", start)[0]]
    for clause in clauses:
        verb, rest = clause.split()
        words.append(operations[verb] if rest == "them" else signs[verb] + rest)
    return " ".join(words)


@pytest.mark.parametrize(
    ("name", "kwargs", "count"),
    [
        ("arithmetic", {}, 1400),
        ("arithmetic", {"two_digit_share": 1.0}, 200),
        ("arithmetic", {"max_steps": 8}, 300),
        ("sudoku", {}, 300),
        ("sudoku", {"size": 6}, 100),
        ("latin-square", {}, 300),
        ("latin-square", {"size": 5}, 100),
        ("lists", {}, 600),
        ("records", {}, 600),
    ],
    ids=["arithmetic", "harder", "longer", "sudoku4", "sudoku6", "latin4", "latin5", "lists", "records"],
)
def test_splits_share_no_problem(name, kwargs, count):
    seen = {}
    for split in SPLITS:
        seen[split] = set()
        for seed in (0, 5):
            task = load_task(name, split, seed=seed, **kwargs)
            problems = (task.problem(i) for i in range(count * (4 if split == "train" else 1) // 2))
            seen[split] |= {content(name, problem) for problem in problems}
        # not only these samples: every problem's content says by itself which split it may appear in
        assert {split_of(text) for text in seen[split]} == {split}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not seen[one] & seen[other]


def test_the_split_is_a_fixed_function_of_the_content():
    texts = [f"{i} +{i % 7} *2" for i in range(20_000)]
    splits = [split_of(text) for text in texts]
    assert splits == [split_of(text) for text in texts]
    shares = {split: splits.count(split) / len(splits) for split in SPLITS}
    assert shares == pytest.approx({"train": 0.9, "validation": 0.05, "test": 0.05}, abs=0.01)
    # another process with other hash seeds agrees: a problem must never change sides between releases
    code = f"from dllm_gym.tasks.base import split_of; print([split_of(t) for t in {texts[:50]!r}])"
    for hash_seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": hash_seed}
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
        )
        assert result.stdout.strip() == repr(splits[:50])


@every_kind
@pytest.mark.parametrize("index", [-1, -(10**9)])
def test_negative_indices_are_refused(name, kwargs, index):
    with pytest.raises(IndexError, match=f"{index} is out of range; indices go from 0"):
        load_task(name, **kwargs).problem(index)


def test_unknown_names_say_what_there_is():
    with pytest.raises(ValueError, match=r"unknown task 'chess'; known tasks: arithmetic, .*sudoku"):
        load_task("chess")
    with pytest.raises(ValueError, match="unknown split 'dev'; choose one of train, validation, test"):
        load_task("arithmetic", "dev")
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        load_task("sudoku", "dev")
    for size in (5, 9, 0, "4"):
        with pytest.raises(ValueError, match=rf"size {size!r} is not supported; choose one of \[4, 6\]"):
            load_task("sudoku", size=size)


def test_a_registered_task_loads_by_name(monkeypatch):
    monkeypatch.setattr(tasks, "_TASKS", dict(tasks._TASKS))
    made = []
    register_task("mine", lambda **kwargs: made.append(kwargs) or "the task")
    assert load_task("mine", "train", level=3) == "the task"
    assert made == [{"split": "train", "level": 3}]
    assert "mine" in task_names()
    assert task_names() == sorted(task_names())


# Arithmetic ------------------------------------------------------------------------------------------------

ARITHMETIC = ArithmeticTask("train")
CHECKSUMS = {"train": 4239428274, "validation": 1016868401, "test": 1452796557}
SAM = Problem(
    prompt="Sam has 20 coins, finds 4, loses 9, triples them. Total?",
    reference="45",
    metadata={"start": 20, "steps": (("+", 4, 24), ("-", 9, 15), ("*", 3, 45))},
)
CHAIN = "So 20 + 4 makes 24. 24 - 9 = 15. Next 15 * 3 is 45. #### 45"


def words_of(text):
    return re.findall(r"\d+|[A-Za-z]+|####|[^\s\w]", text)


@settings(max_examples=200, deadline=None)
@given(
    index=st.integers(0, 2**31 - 2),
    seed=st.integers(0, 2**32 - 1),
    split=st.sampled_from(["train", "train", "test", "validation"]),
    max_steps=st.sampled_from([2, 5, 5, 6, 7, 8]),
    two_digit_share=st.sampled_from([0.15, 1.0]),
)
def test_what_arithmetic_writes_is_right_and_fits(index, seed, split, max_steps, two_digit_share):
    task = ArithmeticTask(split, max_steps=max_steps, two_digit_share=two_digit_share)
    problem = task.problem(index)
    text = task.write(problem, np.random.default_rng(seed))
    assert task.score(text, problem) == 1.0
    assert task.metrics(text, problem) == {"answer_correct": 1.0}
    # a token per digit, and the longest wording has a connective in every step
    steps, words = len(problem.metadata["steps"]), words_of(text)
    tokens = sum(len(word) if word.isdigit() else 1 for word in words)
    longest = tokens + steps - sum(word in CONNECTIVES for word in words)
    assert 2 <= steps <= max_steps
    assert longest + 1 <= task.completion_length == CHAINS[max(max_steps, 5)]
    assert set(words_of(problem.prompt + text)) <= set(task.vocabulary) | set(map(str, range(100)))


def test_the_default_problems_are_those_that_published_results_are_about():
    """Three of them in full, and a checksum of many; models were trained on these and compared on these."""
    task = ArithmeticTask("test")
    assert task.problem(0) == Problem(
        prompt="Eva has 22 books, gets 4, sells 9, buys 2, sells 9, halves them. Total?",
        reference="5",
        metadata={
            "start": 22,
            "steps": (("+", 4, 26), ("-", 9, 17), ("+", 2, 19), ("-", 9, 10), ("/", 2, 5)),
        },
    )
    assert task.problem(1).prompt == "Max has 2 coins, spends 1, triples them, loses 1, spends 1. Total?"
    assert task.problem(7).prompt == (
        "Zoe has 24 cards, halves them, eats 9, wins 8, buys 8, spends 5. Total?"
    )
    prompts = {
        split: "\n".join(ArithmeticTask(split).problem(index).prompt for index in range(500))
        for split in SPLITS
    }
    assert {split: zlib.crc32(text.encode()) for split, text in prompts.items()} == CHECKSUMS
    assert task.problem(0) == ArithmeticTask("test", max_steps=5).problem(0)


def test_every_number_of_steps_up_to_the_most_is_drawn():
    for max_steps in range(2, 9):
        task = ArithmeticTask("train", max_steps=max_steps)
        counts = [len(task.problem(index).metadata["steps"]) for index in range(200)]
        assert set(counts) == set(range(2, max_steps + 1))
        assert max(counts.count(steps) for steps in set(counts)) < 2 * 200 / (max_steps - 1) + 20


@pytest.mark.parametrize("max_steps", [6, 7, 8])
@pytest.mark.parametrize("two_digit_share", [0.15, 1.0])
def test_hardly_a_long_chain_is_too_long_for_its_canvas(monkeypatch, max_steps, two_digit_share):
    """So that longer problems are drawn from the same distribution, and drawing them cannot take forever."""
    task = ArithmeticTask("train", max_steps=max_steps, two_digit_share=two_digit_share)
    lengths = []

    def counted(start, steps):
        lengths.append(longest_wording(start, steps))
        return lengths[-1]

    longest_wording = arithmetic._longest_wording
    monkeypatch.setattr(arithmetic, "_longest_wording", counted)
    for index in range(400):
        task.problem(index)
    refused = sum(length >= task.completion_length for length in lengths) / len(lengths)
    assert refused < (0.01 if two_digit_share < 1 else 0.1)


def test_answers_alone_are_written_and_right_where_they_are_asked_for():
    usual = ArithmeticTask("train")
    task = ArithmeticTask("train", direct_share=0.25, length=128)
    assert task.completion_length == 128
    problems = [task.problem(index) for index in range(400)]
    assert problems == [usual.problem(index) for index in range(400)]
    rng = np.random.default_rng(0)
    written = [task.write(problem, rng) for problem in problems]
    direct = [text == f"#### {problem.reference}" for text, problem in zip(written, problems, strict=True)]
    assert sum(direct) == pytest.approx(100, abs=30)
    for text, problem, alone in zip(written, problems, direct, strict=True):
        assert task.score(text, problem) == 1.0
        assert usual.score(text, problem) == float(not alone)
        wrong = str(int(problem.reference) + 1)
        for other in (
            f"#### {wrong}",
            "####",
            f"#### {problem.reference} {wrong}",
            f"#### #### {problem.reference}",
        ):
            assert task.score(other, problem) == 0.0
        if not alone:  # a derivation is checked as ever
            assert task.score(text.replace(".", "", 1), problem) == 0.0


@pytest.mark.parametrize("length", [47, "128", 128.0])
def test_fewer_positions_than_a_derivation_may_take_are_refused(length):
    with pytest.raises(ValueError, match=f"length must be a whole number of at least 48, got {length!r}"):
        ArithmeticTask(length=length)


@pytest.mark.parametrize("max_steps", [1, 0, -3, 9, 100, 2.5, "5", None, float("inf"), float("nan")])
def test_another_number_of_steps_is_refused(max_steps):
    with pytest.raises(ValueError, match="max_steps must be a whole number from 2 to 8, got"):
        ArithmeticTask(max_steps=max_steps)


@quick
@given(index=st.integers(0, 2**31 - 2))
def test_arithmetic_problems_say_what_their_metadata_says(index):
    problem = ARITHMETIC.problem(index)
    start, *operations = content("arithmetic", problem).split()
    steps, value = problem.metadata["steps"], int(start)
    assert problem.metadata["start"] == value
    assert 2 <= len(steps) == len(operations) <= 5
    assert 1 <= value <= 99
    for (op, operand, result), operation in zip(steps, operations, strict=True):
        assert operation == f"{op}{operand}"
        assert op in "+-" or (op, operand) in {("*", 2), ("*", 3), ("/", 2)}
        exact = {"+": value + operand, "-": value - operand, "*": value * operand, "/": value / operand}[op]
        assert result == exact
        assert 1 <= result <= 99
        value = result
    assert problem.reference == str(value)


def test_the_share_of_two_digit_operands_is_what_was_asked_for():
    def long_operands(share):
        task = ArithmeticTask("train", two_digit_share=share)
        steps = [step for index in range(300) for step in task.problem(index).metadata["steps"]]
        operands = [operand for op, operand, _ in steps if op in "+-"]
        return sum(operand > 9 for operand in operands) / len(operands)

    shares = [long_operands(share) for share in (0.0, 0.25, 0.5, 1.0)]
    assert shares[0] == 0.0
    assert shares == sorted(shares)  # less than asked for: a "may" that leaves room for short ones
    assert 0.5 < shares[3] < 1.0
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"two_digit_share must lie in \[0, 1\], got"):
            ArithmeticTask(two_digit_share=share)


def test_wording_is_drawn_from_the_generator():
    texts = {ARITHMETIC.write(SAM, np.random.default_rng(seed)) for seed in range(200)}
    assert len(texts) > 100
    used = set().union(*map(words_of, texts))
    assert used >= CONNECTIVES | EQUALS
    assert ARITHMETIC.write(SAM, np.random.default_rng(3)) == ARITHMETIC.write(SAM, np.random.default_rng(3))


ACCEPTED = [
    CHAIN,
    "20 + 4 = 24. 24 - 9 = 15. 15 * 3 = 45. #### 45",
    "Then 20 + 4 gives 24. Now 24 - 9 equals 15. So 15 * 3 makes 45. #### 45",
    "20+4=24.24-9=15.15*3=45.####45",
    "  So  20 +\n4 makes 24 .\n\n24 - 9 = 15 . \tNext 15 * 3 is 45 .\n####   45 \n",
]

REFUSED = {
    "empty": "",
    "answer alone": "#### 45",
    "missing answer": "20 + 4 = 24. 24 - 9 = 15. 15 * 3 = 45.",
    "answer without number": "20 + 4 = 24. 24 - 9 = 15. 15 * 3 = 45. ####",
    "wrong answer": "20 + 4 = 24. 24 - 9 = 15. 15 * 3 = 45. #### 46",
    "two answers": "20 + 4 = 24. 24 - 9 = 15. 15 * 3 = 45. #### 45 #### 45",
    "wrong first operand": "21 + 4 = 24. 24 - 9 = 15. 15 * 3 = 45. #### 45",
    "wrong operand": "20 + 5 = 24. 24 - 9 = 15. 15 * 3 = 45. #### 45",
    "true equation of another problem": "20 + 5 = 25. 25 - 10 = 15. 15 * 3 = 45. #### 45",
    "swapped operands": "4 + 20 = 24. 24 - 9 = 15. 15 * 3 = 45. #### 45",
    "left side not the previous result": "20 + 4 = 24. 25 - 9 = 15. 15 * 3 = 45. #### 45",
    "skipped step": "20 + 4 = 24. 15 * 3 = 45. #### 45",
    "skipped first step": "24 - 9 = 15. 15 * 3 = 45. #### 45",
    "skipped last step": "20 + 4 = 24. 24 - 9 = 15. #### 45",
    "merged steps": "20 + 4 - 9 = 15. 15 * 3 = 45. #### 45",
    "repeated step": "20 + 4 = 24. 20 + 4 = 24. 24 - 9 = 15. 15 * 3 = 45. #### 45",
    "extra step": "20 + 4 = 24. 24 - 9 = 15. 15 * 3 = 45. 45 + 0 = 45. #### 45",
    "steps in another order": "20 - 9 = 11. 11 + 4 = 15. 15 * 3 = 45. #### 45",
    "wrong operator": "20 - 4 = 24. 24 - 9 = 15. 15 * 3 = 45. #### 45",
    "unknown operator": "20 + 4 = 24. 24 - 9 = 15. 15 x 3 = 45. #### 45",
    "repeated addition": "20 + 4 = 24. 24 - 9 = 15. 15 + 30 = 45. #### 45",
    "wrong result in between": "20 + 4 = 25. 25 - 9 = 15. 15 * 3 = 45. #### 45",
    "consistent but wrong in between": "20 + 4 = 25. 25 - 9 = 16. 16 * 3 = 45. #### 45",
    "text before": "Well, 20 + 4 = 24. 24 - 9 = 15. 15 * 3 = 45. #### 45",
    "text between": "20 + 4 = 24. Wow 24 - 9 = 15. 15 * 3 = 45. #### 45",
    "text after": "20 + 4 = 24. 24 - 9 = 15. 15 * 3 = 45. #### 45 coins",
    "number after": "20 + 4 = 24. 24 - 9 = 15. 15 * 3 = 45. #### 45 45",
    "full stop after": "20 + 4 = 24. 24 - 9 = 15. 15 * 3 = 45. #### 45.",
    "leading zero in the answer": "20 + 4 = 24. 24 - 9 = 15. 15 * 3 = 45. #### 045",
    "leading zero in the chain": "020 + 4 = 24. 24 - 9 = 15. 15 * 3 = 45. #### 45",
    "leading zero in an operand": "20 + 04 = 24. 24 - 9 = 15. 15 * 3 = 45. #### 45",
    "decimals": "20 + 4 = 24. 24 - 9 = 15. 15 * 3 = 45. #### 45.0",
    "sign": "20 + 4 = 24. 24 - 9 = 15. 15 * 3 = 45. #### +45",
    "other digits": "20 + 4 = 24. 24 - 9 = 15. 15 * 3 = 45. #### ٤٥",
    "split number": "2 0 + 4 = 24. 24 - 9 = 15. 15 * 3 = 45. #### 45",
    "missing full stop": "20 + 4 = 24 24 - 9 = 15. 15 * 3 = 45. #### 45",
    "missing word for equals": "20 + 4 24. 24 - 9 = 15. 15 * 3 = 45. #### 45",
    "two words for equals": "20 + 4 is = 24. 24 - 9 = 15. 15 * 3 = 45. #### 45",
    "two connectives": "So Then 20 + 4 = 24. 24 - 9 = 15. 15 * 3 = 45. #### 45",
    "connective before the answer": "20 + 4 = 24. 24 - 9 = 15. 15 * 3 = 45. So #### 45",
    "connective glued to the number": "So20 + 4 = 24. 24 - 9 = 15. 15 * 3 = 45. #### 45",
    "lower case": "so 20 + 4 = 24. 24 - 9 = 15. 15 * 3 = 45. #### 45",
    "three hashes": "20 + 4 = 24. 24 - 9 = 15. 15 * 3 = 45. ### 45",
    "a mask left": "20 + 4 = 24. 24 - 9 = 15. 15 * 3 <|mdm_mask|> 45. #### 45",
}


@pytest.mark.parametrize("text", ACCEPTED)
def test_connectives_synonyms_and_white_space_are_free(text):
    assert ARITHMETIC.score(text, SAM) == 1.0


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_everything_else_is_forced(text):
    assert ARITHMETIC.score(text, SAM) == 0.0


def right_after_substitution(old, new):
    return old == new or any({old, new} <= synonyms for synonyms in (CONNECTIVES, EQUALS))


@pytest.mark.parametrize("index", [0, 1, 2])
def test_every_single_word_that_matters_matters(index):
    """Every substitution, deletion and insertion of one word, against what each word means."""
    problem = ARITHMETIC.problem(index)
    words = words_of(ARITHMETIC.write(problem, np.random.default_rng(index)))
    vocabulary = sorted({*words_of(" ".join(ARITHMETIC.vocabulary)), *words, "12", "00", "07"})
    starts = [0, *(at + 1 for at, word in enumerate(words) if word == ".")][:-1]  # of the equations

    def score(edited):
        return ARITHMETIC.score(" ".join(edited), problem)

    assert score(words) == 1.0
    for at, old in enumerate(words):
        assert score([*words[:at], *words[at + 1 :]]) == float(old in CONNECTIVES), f"without word {at}"
        for new in vocabulary:
            edited = [*words[:at], new, *words[at + 1 :]]
            assert score(edited) == float(right_after_substitution(old, new)), " ".join(edited)
    for at in range(len(words) + 1):
        for new in vocabulary:
            free = new in CONNECTIVES and at in starts and words[at] not in CONNECTIVES
            edited = [*words[:at], new, *words[at:]]
            assert score(edited) == float(free), " ".join(edited)


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        (CHAIN, 1.0),
        ("nonsense #### 45", 1.0),
        ("20 + 4 = 25. #### 45", 1.0),
        ("####45 and more", 1.0),
        ("#### 45 #### 46", 1.0),
        ("#### 46 #### 45", 0.0),
        ("#### 46", 0.0),
        ("#### 4", 0.0),
        ("#### 450", 0.0),
        ("#### 045", 0.0),
        ("45", 0.0),
        ("#### forty-five", 0.0),
        ("", 0.0),
    ],
)
def test_answer_correct_looks_at_the_final_answer_alone(text, correct):
    assert ARITHMETIC.metrics(text, SAM) == {"answer_correct": correct}


# Any string ------------------------------------------------------------------------------------------------

soup = st.lists(
    st.sampled_from([*ARITHMETIC.vocabulary, " ", "\n", "<|mdm_mask|>", "45", "²", "٤", "\x00"]), max_size=60
).map("".join)


@every_kind
@quick
@given(text=st.text(max_size=80) | soup | st.text("0123456789 \n", max_size=40), index=st.integers(0, 9))
def test_scorers_take_any_string(name, kwargs, text, index):
    task = load_task(name, "train", **kwargs)
    problem = task.problem(index)
    score = task.score(text, problem)
    assert isinstance(score, float)
    assert 0.0 <= score <= 1.0
    for value in task.metrics(text, problem).values():
        assert isinstance(value, float)
        assert 0.0 <= value <= 1.0


# Sudoku ----------------------------------------------------------------------------------------------------


def peers(size):
    """For every cell the cells that must differ from it, counted out by hand."""
    height, width = {4: (2, 2), 6: (2, 3)}[size]
    cells = range(size * size)

    def conflict(a, b):
        (ra, ca), (rb, cb) = divmod(a, size), divmod(b, size)
        same_box = (ra // height, ca // width) == (rb // height, cb // width)
        return a != b and (ra == rb or ca == cb or same_box)

    return [[b for b in cells if conflict(a, b)] for a in cells]


PEERS = {size: peers(size) for size in (4, 6)}


def slowly_valid(digits, size):
    if len(digits) != size * size or any(digit not in "123456"[:size] for digit in digits):
        return False
    return all(digits[a] != digits[b] for a in range(size * size) for b in PEERS[size][a])


def all_grids(size, grid=""):
    if len(grid) == size * size:
        return [grid]
    earlier = {grid[b] for b in PEERS[size][len(grid)] if b < len(grid)}
    return [g for digit in "123456"[:size] if digit not in earlier for g in all_grids(size, grid + digit)]


def test_exactly_the_288_grids_of_size_4_are_valid():
    grids = all_grids(4)
    assert len(set(grids)) == 288
    assert all(is_valid_grid(grid, 4) for grid in grids)
    grid = grids[100]
    for at, digit in itertools.product(range(16), "01234567a"):
        changed = grid[:at] + digit + grid[at + 1 :]
        assert is_valid_grid(changed, 4) == (changed == grid)


@st.composite
def nearly_grids(draw):
    """A valid grid with lines swapped, digits renamed and a few cells exchanged: often valid, often not."""
    size = draw(st.sampled_from([4, 6]))
    grid = list(SudokuTask("train", size=size).problem(draw(st.integers(0, 30))).reference)
    names = draw(st.permutations("123456"[:size]))
    grid = [names[int(digit) - 1] for digit in grid]
    lines = [grid[i * size : (i + 1) * size] for i in range(size)]
    for _ in range(draw(st.integers(0, 2))):
        a, b = draw(st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)))
        if draw(st.booleans()):
            lines = [list(column) for column in zip(*lines, strict=True)]
        lines[a], lines[b] = lines[b], lines[a]
    grid = list(itertools.chain(*lines))
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        grid[draw(st.integers(0, size * size - 1))] = draw(st.sampled_from("123456"[:size]))
    return "".join(grid), size


@settings(max_examples=200, deadline=None)
@given(nearly_grids() | st.tuples(st.text("1234567", min_size=15, max_size=37), st.sampled_from([4, 6])))
def test_validity_agrees_with_counting_conflicts(case):
    digits, size = case
    assert is_valid_grid(digits, size) == slowly_valid(digits, size)


@pytest.mark.parametrize(("size", "fewest", "most"), [(4, 4, 12), (6, 18, 30)])
def test_sudoku_problems_are_clues_of_their_solution(size, fewest, most):
    task = SudokuTask("train", size=size)
    empty = set()
    for index in range(100):
        problem = task.problem(index)
        assert slowly_valid(problem.reference, size)
        assert problem.metadata["clues"] == problem.prompt
        assert all(
            clue in ("0", digit) for clue, digit in zip(problem.prompt, problem.reference, strict=True)
        )
        assert task.score(task.write(problem, np.random.default_rng(0)), problem) == 1.0
        assert task.metrics(problem.reference, problem) == {"cell_accuracy": 1.0}
        empty.add(problem.prompt.count("0"))
    assert empty == set(range(fewest, most + 1))


def test_any_solution_of_a_sudoku_is_right():
    clues = "1000" + "0" * 11 + "4"
    grids = all_grids(4)
    solutions = [grid for grid in grids if grid[0] == "1" and grid[15] == "4"]
    assert len(solutions) > 10
    task = SudokuTask()
    problem = Problem(prompt=clues, reference=solutions[0], metadata={"clues": clues})
    for grid in grids:
        assert task.score(grid, problem) == float(grid in solutions)
    other = next(grid for grid in solutions[1:] if grid != solutions[0])
    assert task.score(other, problem) == 1.0
    assert task.metrics(other, problem)["cell_accuracy"] < 1.0


def test_another_solution_of_a_sudoku_of_size_6_is_right():
    task = SudokuTask("train", size=6)
    solution = task.problem(0).reference
    clues = solution[:6] + "0" * 30
    other = solution[:6] + solution[6:12] + solution[24:36] + solution[12:24]  # two bands exchanged
    problem = Problem(prompt=clues, reference=solution, metadata={"clues": clues})
    assert other != solution
    assert task.score(solution, problem) == task.score(other, problem) == 1.0
    assert task.score(solution[6:12] + solution[:6] + solution[12:], problem) == 0.0  # valid, other clues


@pytest.mark.parametrize("size", [4, 6])
def test_wrong_grids_score_nothing(size):
    task = SudokuTask("train", size=size)
    for index in range(5):
        problem = task.problem(index)
        right = problem.reference
        assert task.score(" \n".join(right), problem) == 1.0
        for at in range(size * size):
            for digit in "0123456":
                if digit != right[at]:
                    assert task.score(right[:at] + digit + right[at + 1 :], problem) == 0.0
        for text in (
            "",
            right[:-1],
            right + right[0],
            right + "0",
            problem.prompt,
            "x" + right,
            right[::-1] + ".",
        ):
            assert task.score(text, problem) == 0.0


def test_cell_accuracy_counts_the_empty_cells():
    task = SudokuTask()
    problem = Problem(
        prompt="3102200002100320",
        reference="3142243142131324",
        metadata={"clues": "3102200002100320"},
    )
    assert task.metrics("3102200002100320", problem) == {"cell_accuracy": 0.0}
    assert task.metrics("3142", problem) == {"cell_accuracy": 1 / 8}
    assert task.metrics("3142 2431 4213 1321", problem) == {"cell_accuracy": 7 / 8}
    full = Problem(
        prompt=problem.reference, reference=problem.reference, metadata={"clues": problem.reference}
    )
    assert task.metrics("", full) == {"cell_accuracy": 0.0}


# Sudoku from a file ----------------------------------------------------------------------------------------

GOOD = "3102200002100320,3142243142131324"


def write_csv(tmp_path, *lines):
    path = tmp_path / "puzzles.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_file_replaces_the_generated_problems(tmp_path):
    path = write_csv(tmp_path, "Puzzle,Solution", GOOD, "0140432014020000,2143432114323214")
    task = load_task("sudoku", data=path)
    assert task.num_problems == 2
    assert task.problem(1).prompt == "0140432014020000"
    assert task.problem(0).reference == "3142243142131324"
    assert task.score("3142243142131324", task.problem(0)) == 1.0
    assert task.score("3142243142131324", task.problem(1)) == 0.0
    with pytest.raises(IndexError, match="index 2 is out of range; indices go from 0 to 1"):
        task.problem(2)
    with pytest.raises(IndexError, match="-1"):
        task.problem(-1)
    assert load_task("sudoku", data=str(path)).problem(0) == task.problem(0)


def test_columns_may_come_in_any_order_and_number(tmp_path):
    path = write_csv(tmp_path, "level,Solution,Puzzle", "1,3142243142131324,3102200002100320")
    assert load_task("sudoku", data=path).problem(0).prompt == "3102200002100320"


@pytest.mark.parametrize(
    "lines",
    [
        ("Puzzle,Answer", GOOD),
        ("Solution", "3142243142131324"),
        ("Puzzle,Solution",),
        (),
    ],
    ids=["wrong column", "missing column", "no rows", "empty"],
)
def test_a_file_without_the_columns_is_refused(tmp_path, lines):
    path = write_csv(tmp_path, *lines)
    with pytest.raises(ValueError, match=r"puzzles\.csv.*Puzzle and Solution"):
        load_task("sudoku", data=path)


BAD_ROWS = {
    "short row": "0140432014020000",
    "short puzzle": "014043201402000,2143432114323214",
    "long puzzle": "01404320140200000,2143432114323214",
    "short solution": "0140432014020000,214343211432321",
    "repeated digit": "0140432014020000,2143432114323211",
    "unsolved": "0140432014020000,0140432014020000",
    "digit too large": "0540432014020000,2143432114323214",
    "letters": "0140432014O20000,2143432114323214",
    "solution of other clues": "0140432014020000,3142243142131324",
}


@pytest.mark.parametrize("row", BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_malformed_row_is_refused_by_its_line(tmp_path, row):
    path = write_csv(tmp_path, "Puzzle,Solution", GOOD, row, GOOD)
    with pytest.raises(ValueError, match=r"puzzles\.csv, line 3\b"):
        load_task("sudoku", data=path)


def test_sudoku_from_a_file_that_is_no_text_names_the_line(tmp_path):
    path = tmp_path / "puzzles.csv"
    path.write_bytes(f"Puzzle,Solution\n{GOOD}\n".encode() + b"\xff,1\n")
    with pytest.raises(ValueError, match=r"puzzles\.csv, line 3 is no UTF-8 text: the byte 0xff"):
        load_task("sudoku", data=path)


def test_the_line_is_the_one_an_editor_shows(tmp_path):
    path = write_csv(tmp_path, "Puzzle,Solution", GOOD, "", "", GOOD[:-1])
    with pytest.raises(ValueError, match=r"puzzles\.csv, line 5\b"):
        load_task("sudoku", data=path)


def test_a_file_of_another_size_or_nowhere_is_refused(tmp_path):
    path = write_csv(tmp_path, "Puzzle,Solution", GOOD)
    with pytest.raises(ValueError, match=r"line 2.*no 6x6"):
        load_task("sudoku", size=6, data=path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_task("sudoku", data=tmp_path / "nowhere.csv")


def shared_file(name):
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{path} is not there: the public data lies beside the project, not in it")
    return path


def test_the_published_puzzles():
    path = shared_file("sudoku_4x4_test.csv")
    task = load_task("sudoku", data=path)
    assert task.num_problems == len(path.read_text().split()) - 1 >= 256
    grids = set(all_grids(4))
    for index in range(100):
        problem = task.problem(index)
        assert problem.reference in grids
        assert task.score(problem.reference, problem) == 1.0
        solutions = [g for g in grids if all(c in ("0", d) for c, d in zip(problem.prompt, g, strict=True))]
        assert [g for g in sorted(grids) if task.score(g, problem) == 1.0] == sorted(solutions)


def test_what_a_real_model_wrote_never_breaks_a_scorer():
    completions = []
    for name in ("sudoku", "gsm8k"):
        with shared_file(f"llada_8b_instruct_{name}_256.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                texts = record.get("generations", [])
                completions += [texts] if isinstance(texts, str) else texts
    assert len(completions) >= 256
    sudoku = load_task("sudoku", data=shared_file("sudoku_4x4_test.csv"))
    for text in completions:
        assert sudoku.score(text, sudoku.problem(0)) in (0.0, 1.0)
        assert ARITHMETIC.score(text, SAM) == 0.0
        assert ARITHMETIC.metrics(text, SAM)["answer_correct"] in (0.0, 1.0)


def test_a_sudoku_file_is_a_test_split_only(tmp_path):
    path = tmp_path / "puzzles.csv"
    path.write_text("Puzzle,Solution\n3102200002100320,3142243142131324\n")
    assert load_task("sudoku", data=path).num_problems == 1
    with pytest.raises(ValueError, match="split='test' instead of 'train'"):
        load_task("sudoku", split="train", data=path)
