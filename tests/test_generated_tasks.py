"""Lists, Latin squares and records: every valid answer is right, and nothing else is."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_gym.backends.families import family_named
from dllm_gym.backends.word_tokenizer import UNKNOWN, build_tokenizer
from dllm_gym.tasks import Problem, load_task
from dllm_gym.tasks.lists import OPERATIONS, ListsTask

NAMES = (
    "Ana",
    "Ben",
    "Cleo",
    "Dan",
    "Eva",
    "Finn",
    "Gus",
    "Hana",
    "Ivy",
    "Jack",
    "Kim",
    "Leo",
    "Mia",
    "Noah",
)
NAMES = (*NAMES, "Oli", "Pia")
quick = settings(max_examples=60, deadline=None)
KINDS = {  # and how many end tokens follow the longest answer
    "lists": ("lists", {}, 1),
    "latin4": ("latin-square", {}, 0),
    "latin5": ("latin-square", {"size": 5}, 0),
    "records": ("records", {}, 2),
    "sudoku6": ("sudoku", {"size": 6}, 0),
}


# All of them -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kwargs", "end_tokens"), KINDS.values(), ids=KINDS)
def test_what_is_written_is_right_fits_and_survives_the_tokens(name, kwargs, end_tokens):
    task = load_task(name, "train", **kwargs)
    tokenizer = build_tokenizer(task.vocabulary, family_named("llada").special_tokens)
    rng, lengths = np.random.default_rng(0), set()
    for index in range(60):
        problem = task.problem(index)
        assert task.score(problem.reference, problem) == 1.0
        for completion in {task.write(problem, rng) for _ in range(4)}:
            assert task.score(completion, problem) == 1.0
            tokens = tokenizer(completion, add_special_tokens=False)["input_ids"]
            assert task.score(tokenizer.decode(tokens), problem) == 1.0
            lengths.add(len(tokens))
            asked = tokenizer(problem.prompt, add_special_tokens=False)["input_ids"]
            assert tokenizer.convert_tokens_to_ids(UNKNOWN) not in [*asked, *tokens]
    assert min(lengths) == task.shortest_completion
    assert max(lengths) == task.completion_length - end_tokens
    assert len(tokenizer) < 120


# Lists -----------------------------------------------------------------------------------------------------


def solutions(request, line):
    """All right answers to a request, by what its words say."""
    words, order = request.split(), list(line)
    verb, anywhere = words[0], "anywhere" in words
    if verb == "shuffle":
        return {one for one in itertools.permutations(order) if list(one) != order}
    if verb in ("copy", "reverse", "sort"):
        done = {"copy": order, "reverse": order[::-1], "sort": sorted(order)}
        return {tuple(done[verb])}
    names = [word for word in words if word in NAMES]
    at = [] if anywhere else [int(word) - 1 for word in words if word.isdigit()]
    found = set()
    for place in at or range(len(order) + (verb == "insert")):
        changed = list(order)
        if verb == "insert":
            changed.insert(place, *names)
        elif verb == "remove":
            del changed[place]
        else:
            (changed[place],) = names
        found.add(tuple(changed))
    return found


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_valid_line_is_right_and_no_other(operation):
    task = ListsTask("train", operations=[operation])
    rng, written = np.random.default_rng(0), 0
    for index in range(12):
        problem = task.problem(index)
        request, _, line = problem.prompt.partition(": ")
        line = tuple(line.split())
        assert problem.metadata["operation"] == operation
        right = solutions(request, line)
        some = right if len(right) < 50 else {tuple(task.problem(index).reference.split())}
        for answer in some:
            assert task.score(" ".join(answer), problem) == 1.0
            assert task.score("\n".join(answer) + " ", problem) == 1.0
            for at, other in itertools.product(range(len(answer)), NAMES):
                changed = (*answer[:at], other, *answer[at + 1 :])
                assert task.score(" ".join(changed), problem) == float(changed in right)
            for a, b in itertools.combinations(range(len(answer)), 2):
                changed = list(answer)
                changed[a], changed[b] = changed[b], changed[a]
                assert task.score(" ".join(changed), problem) == float(tuple(changed) in right)
            for text in (" ".join(answer[:-1]), " ".join((*answer, "Ana")), ", ".join(answer), ""):
                assert task.score(text, problem) == float(tuple(text.split()) in right)
        drawn = {task.write(problem, rng) for _ in range(200)}
        assert {tuple(answer.split()) for answer in drawn} <= right
        written += len(drawn) >= min(len(right), 60)  # each of them is drawn
    assert written == 12


def test_names_correct_leaves_the_order_alone():
    task = ListsTask()

    def asked(operation, place=None, name=None):
        line = ("Mia", "Leo", "Ana", "Tom")
        facts = {"operation": operation, "line": line, "place": place, "name": name}
        return Problem("", "", facts)

    for problem, text, correct in (
        (asked("copy"), "Leo Mia Tom Ana", True),
        (asked("copy"), "Leo Mia Tom Tom", False),
        (asked("shuffle"), "Mia Leo Ana Tom", True),
        (asked("shuffle"), "Mia Leo Ana Ana", False),
        (asked("insert-random", name="Eva"), "Eva Leo Mia Tom Ana", True),
        (asked("insert", 1, "Eva"), "Leo Mia Tom Ana", False),
        (asked("remove", 0), "Tom Ana Leo", True),
        (asked("remove", 0), "Mia Leo Ana", False),
        (asked("remove-random"), "Ana Leo Mia", True),
    ):
        assert task.metrics(text, problem) == {"names_correct": float(correct)}


def test_operations_are_a_set_of_known_ones():
    some = ListsTask("train", operations=["shuffle", "copy"])
    assert some.operations == ("copy", "shuffle")
    assert {some.problem(i).metadata["operation"] for i in range(30)} == {"copy", "shuffle"}
    assert {ListsTask("train").problem(i).metadata["operation"] for i in range(200)} == set(OPERATIONS)
    lengths = {
        operation: ListsTask(operations=[operation]).shortest_completion
        for operation in ("copy", "insert", "remove-random")
    }
    assert lengths == {"copy": 4, "insert": 5, "remove-random": 3}
    for operations in ([], "copy", {}):
        with pytest.raises(ValueError, match="operations must be a list of some of copy, reverse, sort"):
            ListsTask(operations=operations)
    with pytest.raises(ValueError, match=r"unknown operation 'sufle' \(did you mean 'shuffle'\?\); choose"):
        ListsTask(operations=["sufle"])


# Latin squares ---------------------------------------------------------------------------------------------


def squares(size):
    rows = list(itertools.permutations("12345"[:size]))

    def extended(square):
        if len(square) == size:
            yield "".join(map("".join, square))
            return
        for row in rows:
            if all(a != b for earlier in square for a, b in zip(earlier, row, strict=True)):
                yield from extended([*square, row])

    return extended([])


def test_exactly_the_completions_of_the_clues_are_right():
    task, every = load_task("latin-square", "train"), list(squares(4))
    assert len(every) == 576
    several = 0
    for index in range(25):
        problem = task.problem(index)
        fitting = re.compile(problem.prompt.replace("0", "."))
        right = {square for square in every if fitting.fullmatch(square)}
        assert problem.reference in right
        assert {square for square in every if task.score(square, problem) == 1.0} == right
        several += len(right) > 1
        for at, digit in itertools.product(range(16), "012345"):
            changed = problem.reference[:at] + digit + problem.reference[at + 1 :]
            assert task.score(changed, problem) == float(changed == problem.reference)
    assert several > 15  # for most there is more than one


def test_latin_squares_of_size_5_are_checked_cell_by_cell():
    task = load_task("latin-square", "train", size=5)
    for index in range(10):
        problem = task.problem(index)
        right = problem.reference
        assert 15 <= problem.prompt.count("0") <= 23
        assert task.score(" ".join(right), problem) == 1.0
        assert task.metrics(right, problem) == {"cell_accuracy": 1.0}
        for at, digit in itertools.product(range(25), "0123456"):
            changed = right[:at] + digit + right[at + 1 :]
            assert task.score(changed, problem) == float(changed == right)
        for text in ("", right[:-1], right + "1", problem.prompt, right[5:] + right[:5]):
            assert task.score(text, problem) == 0.0
    free = Problem("", "", {"clues": "0" * 25})
    some = list(itertools.islice(squares(5), 500))
    assert all(task.score(square, free) == 1.0 for square in some)


@pytest.mark.parametrize("size", [3, 6, "4", None])
def test_another_size_of_latin_squares_is_refused(size):
    with pytest.raises(
        ValueError, match=rf"latin-square size {size!r} is not supported; choose one of \[4, 5\]"
    ):
        load_task("latin-square", size=size)


# Records ---------------------------------------------------------------------------------------------------

ORDER = Problem("Mia wants 3 pens and 2 cups.", "", {"to": "Mia", "items": {"pens": 3, "cups": 2}})
RECORD = {
    "to": "Mia",
    "id": 47,
    "items": {"pens": 3, "cups": 2},
    "total": 5,
    "note": "ciao red box 47 leaves monday early by fast truck grazie",
}


def score(**changes):
    task = load_task("records")
    fields = {key: value for key, value in {**RECORD, **changes}.items() if value is not None}
    return task.score(json.dumps(fields), ORDER)


def note(*exchanges):
    text = RECORD["note"]
    for old, new in exchanges:
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"items": {"cups": 2, "pens": 3}},
        {"id": 90, "note": note(("47", "90"))},
        {"note": note(("ciao", "hola"), ("grazie", "gracias"))},
        {"note": note(("monday", "friday"), ("box", "case"), ("truck", "boat"), ("fast", "old"))},
        {"note": " " + note((" ", "  "))},
        {" to": "Mia ", "to": None},
    ],
)
def test_what_is_free_in_a_record_is_free(changes):
    assert score(**changes) == 1.0


@pytest.mark.parametrize(
    "changes",
    [
        {"to": "Ana"},
        {"to": None},
        {"to": ["Mia"]},
        {"id": 48},
        {"id": "47"},
        {"id": 47.0},
        {"id": 7, "note": note(("47", "7"))},
        {"id": 100, "note": note(("47", "100"))},
        {"id": True, "note": note(("47", "True"))},
        {"items": {"pens": 3}},
        {"items": {"pens": 2, "cups": 3}},
        {"items": {"pens": 3, "cups": 2, "hats": 1}},
        {"items": {"pens": 3.0, "cups": 2}},
        {"items": [["pens", 3], ["cups", 2]]},
        {"items": {"pens": [3], "cups": 2}},
        {"total": 6},
        {"total": "5"},
        {"total": 5.0},
        {"note": note(("ciao", "hola"))},
        {"note": note(("47", "48"))},
        {"note": note(("red", "box"))},
        {"note": note(("by ", ""))},
        {"note": note((" grazie", ""))},
        {"note": note()[:0]},
        {"note": note().split()},
        {"more": 1},
    ],
)
def test_what_is_forced_in_a_record_is_forced(changes):
    assert score(**changes) == 0.0


def test_the_order_of_fields_is_free_and_doubles_are_not():
    task = load_task("records")
    backwards = json.dumps(dict(reversed(RECORD.items())))
    assert task.score(backwards, ORDER) == 1.0
    assert task.metrics(backwards, ORDER) == {"valid_json": 1.0, "fields_correct": 1.0}
    doubled = json.dumps(RECORD).replace('"total": 5', '"total": 5, "total": 5')
    assert task.metrics(doubled, ORDER) == {"valid_json": 0.0, "fields_correct": 0.0}
    wrong = json.dumps({**RECORD, "total": 6})
    assert task.metrics(wrong, ORDER) == {"valid_json": 1.0, "fields_correct": 0.8}


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "1" * 10_000, "NaN", "[1]", "3", '"a"', "{}"]
)
def test_no_json_brings_the_scorer_down(text):
    assert load_task("records").score(text, ORDER) == 0.0
    assert load_task("records").score(json.dumps(RECORD).replace("47,", f"{text},"), ORDER) == 0.0


@quick
@given(st.integers(0, 300), st.integers(0, 2**32 - 1), st.data())
def test_any_token_that_is_forced_matters(index, seed, data):
    task = load_task("records", "train")
    problem = task.problem(index)
    record = json.loads(task.write(problem, np.random.default_rng(seed)))
    assert record["total"] == sum(record["items"].values()) == sum(problem.metadata["items"].values())
    words = record["note"].split()
    assert int(words[3]) == record["id"]
    field = data.draw(st.sampled_from(["to", "id", "items", "total", "greeting", "thanks"]))
    if field in ("greeting", "thanks"):
        at = {"greeting": 0, "thanks": -1}[field]
        tongues = ("hello ciao hola salut hallo", "thanks grazie gracias merci danke")[at].split()
        words[at] = data.draw(st.sampled_from([word for word in tongues if word != words[at]]))
        record["note"] = " ".join(words)
    elif field == "items":
        item = data.draw(st.sampled_from(sorted(record["items"])))
        record["items"][item] += data.draw(st.integers(1, 3))
    elif field == "to":
        record["to"] += "x"
    else:
        record[field] += data.draw(st.integers(1, 5))
    assert task.score(json.dumps(record), problem) == 0.0


def test_everything_free_is_drawn_but_the_order_of_the_items_which_the_sentence_has():
    task = load_task("records", "train")
    problem, rng = task.problem(0), np.random.default_rng(0)
    records = [json.loads(task.write(problem, rng)) for _ in range(400)]
    assert {tuple(record["items"]) for record in records} == {tuple(problem.metadata["items"])}
    assert len({record["id"] for record in records}) > 80
    slots = zip(*(record["note"].split() for record in records), strict=True)
    assert [len(set(slot)) for slot in slots][:3] == [5, 5, 5]
