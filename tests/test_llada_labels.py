"""Our scorers against labels made by hand: what LLaDA-8B-Instruct really wrote, read one by one.

``data/llada_labels.json`` holds, in the order of the shared files, a hash of each completion, whether its
final answer is right, and if not why (``docs/tasks.md``); for Sudoku also the right cells of the empty ones.
"""

import collections
import hashlib
import json
import re
from fractions import Fraction
from pathlib import Path

import pytest

from dllm_gym.tasks import Problem, load_task
from dllm_gym.tasks.scoring.answers import before_end, number

LABELS = json.loads((Path(__file__).parent / "data" / "llada_labels.json").read_text())
DATA = Path(__file__).parents[2] / "shared" / "data"
RIGHT = {"gsm8k": 152, "math500": 58, "countdown": 22, "sudoku": 0}


def shared_file(name):
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{path} is not there: the public data lies beside the project, not in it")
    return path


def labelled(task):
    """Pairs of a record and its label; a completion that is not the one that was read fails."""
    with shared_file(f"llada_8b_instruct_{task}_256.jsonl").open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    for record, label in zip(records, LABELS[task], strict=True):
        assert hashlib.sha256(record["generations"].encode()).hexdigest()[:16] == label["sha256"]
    return list(zip(records, LABELS[task], strict=True))


def disagreements(task, problem_of, scorer):
    found = []
    for index, (record, label) in enumerate(labelled(task)):
        score = scorer.score(record["generations"], problem_of(record))
        assert score in (0.0, 1.0)
        if bool(score) != label["right"]:
            found.append((index, label.get("cause", "right"), score))
    return found


def test_the_labels_are_complete_and_say_why():
    assert {task: sum(label["right"] for label in labels) for task, labels in LABELS.items()} == RIGHT
    for labels in LABELS.values():
        for label in labels:
            assert ("cause" in label) != label["right"]


def test_gsm8k():
    scorer = load_task("gsm8k", data=shared_file("gsm8k_test.jsonl"))
    golds = {scorer.problem(i).metadata["question"]: scorer.problem(i) for i in range(scorer.num_problems)}
    assert disagreements("gsm8k", lambda record: golds[record["question"]], scorer) == []
    for record, label in labelled("gsm8k"):
        problem = golds[record["question"]]
        assert float(problem.reference) == record["ground_truth"]
        answered = scorer.metrics(record["generations"], problem)["answered"]
        assert answered == (label.get("cause") != "no-answer")


def flexible_extract(text):
    """The filter of that name in lm-evaluation-harness, task gsm8k, with what its metric ignores."""
    groups = re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", text)[-1]
    return re.sub(r",|\$|\.$", "", next(group for group in groups if group))


def test_the_last_number_is_that_of_lm_evals_filter_on_text_for_gsm8k():
    solutions = [
        json.loads(line)["answer"] for line in shared_file("gsm8k_test.jsonl").read_text().splitlines()
    ]
    written = [before_end(record["generations"]) for record, _ in labelled("gsm8k")]
    assert len(solutions + written) == 1519
    for text in solutions + written:
        assert number(text, last=True) == Fraction(flexible_extract(text)), text


def test_math500(tmp_path):
    pytest.importorskip("math_verify", reason="needs pip install 'dllm-gym[math]'")
    pairs = labelled("math500")
    path = tmp_path / "math500.jsonl"
    rows = [{"problem": record["question"], "answer": record["ground_truth"]} for record, _ in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scorer = load_task("math500", data=path)
    problems = iter([scorer.problem(index) for index in range(len(pairs))])
    assert disagreements("math500", lambda record: next(problems), scorer) == []
    for index, (record, label) in enumerate(pairs):
        answered = scorer.metrics(record["generations"], scorer.problem(index))["answered"]
        assert answered == (label.get("cause") != "no-answer")
    # written the same is right, so the published equality errs in one direction only
    published = load_task("math500", data=path, equality="text")
    missed = [
        index
        for index, (record, label) in enumerate(pairs)
        if published.score(record["generations"], published.problem(index)) != float(label["right"])
    ]
    assert all(pairs[index][1]["right"] for index in missed)
    assert 0 < len(missed) <= 5


def test_countdown():
    scorer = load_task("countdown")

    def problem_of(record):
        numbers, target = record["ground_truth"]
        return Problem("", str(target), {"numbers": tuple(numbers), "target": target})

    assert disagreements("countdown", problem_of, scorer) == []
    for record, label in labelled("countdown"):
        metrics = scorer.metrics(record["generations"], problem_of(record))
        cause = label.get("cause", "right")
        if cause != "box-contradicts-text":
            assert metrics["numbers_used"] == (cause in ("right", "wrong-value"))
        if cause == "no-answer":
            assert metrics["answered"] == 0.0


def test_sudoku():
    scorer = load_task("sudoku", prompt="d1")

    def problem_of(record):
        clues = record["question"].split(": ")[1].strip()
        return Problem("", record["ground_truth"], {"clues": clues})

    assert disagreements("sudoku", problem_of, scorer) == []
    for record, label in labelled("sudoku"):
        right, empty = label["cells"]
        assert scorer.metrics(record["generations"], problem_of(record)) == {"cell_accuracy": right / empty}


def test_the_page_about_tasks_counts_the_same_causes():
    page = (Path(__file__).parents[1] / "docs" / "tasks.md").read_text()
    for task, labels in LABELS.items():
        for cause, count in collections.Counter(label.get("cause", "right") for label in labels).items():
            assert f"| `{task}` | {cause} | {count} |" in page
