"""Benchmarks by name: what is asked, which problems a split holds, what scores."""

import itertools
import json
import subprocess
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dllm_gym
from dllm_gym.backends.base import Prediction
from dllm_gym.tasks import Problem, Task, load_task, task_names
from dllm_gym.tasks.base import split_of
from dllm_gym.tasks.sudoku import is_valid_grid

DATA = Path(__file__).parents[2] / "shared" / "data"


def shared_file(name):
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{path} is not there: the public data lies beside the project, not in it")
    return path


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def gsm8k(tmp_path_factory):
    """A folder as openai/grade-school-math has it, with 300 problems to train on and 20 to test on."""
    tmp_path = tmp_path_factory.mktemp("gsm8k")
    for name, count in (("train", 300), ("test", 20)):
        rows = [
            {"question": f"{name} {n}: how many is {n} and 1,000?", "answer": f"Add.\n#### {n + 1000:,}"}
            for n in range(count)
        ]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    return tmp_path


@pytest.fixture
def math500(tmp_path_factory):
    """A folder in the layout of MATH, a problem per file, and MATH-500's single file."""
    tmp_path = tmp_path_factory.mktemp("math500")
    for number in range(60):
        folder = tmp_path / "train" / ("algebra" if number % 2 else "geometry")
        folder.mkdir(parents=True, exist_ok=True)
        solution = f"First \\boxed{{0}}, then $\\boxed{{\\frac{{{number}}}{{7}}}}$."
        row = {"problem": f"What is {number}/7?", "solution": solution, "level": "Level 1", "type": "Algebra"}
        (folder / f"{number}.json").write_text(json.dumps(row))
    test = [{"problem": "A half?", "answer": "\\frac{1}{2}", "solution": "It is \\boxed{\\frac{1}{2}}."}]
    write_jsonl(tmp_path / "math500_test.jsonl", test)
    return tmp_path


# By name ---------------------------------------------------------------------------------------------------


def test_the_names_are_listed_and_building_one_imports_only_that_one():
    names = ("countdown", "gsm8k", "math500", "mixture", "reasoning-gym", "sudoku")
    assert set(names) <= set(task_names())
    code = """
import sys
from dllm_gym.tasks import load_task, task_names
task_names()
before = {name for name in sys.modules if name.startswith("dllm_gym.tasks.")}
load_task("countdown")
heavy = {"torch", "datasets", "math_verify", "sympy", "reasoning_gym", "pyarrow"} & sys.modules.keys()
print(sorted(before), "dllm_gym.tasks.countdown" in sys.modules, sorted(heavy))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['dllm_gym.tasks.base'] True []\n"


def test_wrong_words_say_what_there_is(gsm8k, math500):
    for name, data in (("gsm8k", gsm8k), ("math500", math500)):
        with pytest.raises(ValueError, match=r"unknown prompt 'chat'; choose one of paper, d1, lm-eval"):
            load_task(name, data=data, prompt="chat")
        with pytest.raises(ValueError, match=r"shots belong to prompt='lm-eval'; prompt 'paper' has none"):
            load_task(name, data=data, shots=5)
        for shots in (-1, 33, 2.5, "5"):
            with pytest.raises(ValueError, match=r"shots must be a whole number from 0 to 32, got"):
                load_task(name, data=data, prompt="lm-eval", shots=shots)
        with pytest.raises(ValueError, match="unknown split 'dev'"):
            load_task(name, "dev", data=data)
    with pytest.raises(ValueError, match=r"unknown equality 'sympy'; choose one of math-verify, text"):
        load_task("math500", data=math500, equality="sympy")
    with pytest.raises(ValueError, match=r"unknown prompt 'chat'; choose one of plain, d1"):
        load_task("sudoku", prompt="chat")
    with pytest.raises(ValueError, match=r"prompt 'd1' is about 4x4 grids; size is 6"):
        load_task("sudoku", prompt="d1", size=6)


# What is asked ---------------------------------------------------------------------------------------------

# Checksums of the prompts for the question Q, taken when they agreed with d1's files to the last character.
PROMPTS = {
    ("gsm8k", "paper", "train"): (377274201, ""),
    ("gsm8k", "paper", "test"): (1825475363, "<reasoning>"),
    ("gsm8k", "d1", "train"): (1825475363, "<reasoning>"),
    ("gsm8k", "d1", "test"): (1825475363, "<reasoning>"),
    ("math500", "paper", "train"): (361918481, ""),
    ("math500", "paper", "test"): (1261649019, "<reasoning>"),
    ("math500", "d1", "train"): (1261649019, "<reasoning>"),
    ("math500", "d1", "test"): (1261649019, "<reasoning>"),
}


@pytest.mark.parametrize(("name", "prompt", "split"), PROMPTS)
def test_the_prompts_are_the_published_ones(tmp_path, name, prompt, split):
    row = {"question": "Q", "answer": "#### 1"} if name == "gsm8k" else {"problem": "Q", "answer": "1"}
    kwargs = {"equality": "text"} if name == "math500" else {}
    task = load_task(name, split, data=write_jsonl(tmp_path / "rows.jsonl", [row]), prompt=prompt, **kwargs)
    problem = task.problem(0)
    assert (zlib.crc32(problem.prompt.encode()), problem.prefix) == PROMPTS[name, prompt, split]
    assert problem.prompt.count("Q") == 1
    assert task.completion_length == 256


def test_the_prompts_of_countdown_and_sudoku_are_the_published_ones():
    countdown = load_task("countdown", data=shared_file("countdown_cd3_test.jsonl")).problem(0)
    assert countdown.prompt.endswith("</answer>\n\nNumbers: [30, 100, 93]\nTarget: 23")
    assert zlib.crc32(countdown.prompt.encode()) == 4223589856
    sudoku = load_task("sudoku", data=shared_file("sudoku_4x4_test.csv"), prompt="d1").problem(0)
    assert sudoku.prompt.endswith("</answer>\n\n\nSolve the following Sudoku puzzle: 3102200002100320\n")
    assert zlib.crc32(sudoku.prompt.encode()) == 2412224980
    assert countdown.prefix == sudoku.prefix == "<reasoning>"


def test_lm_eval_asks_with_solved_examples(gsm8k, math500):
    problem = load_task("gsm8k", data=gsm8k, prompt="lm-eval", shots=2).problem(3)
    first, second, asked = problem.prompt.split("\n\n")
    assert first == "Question: train 0: how many is 0 and 1,000?\nAnswer: Add.\n#### 1,000"
    assert second.startswith("Question: train 1:")
    assert asked == "Question: test 3: how many is 3 and 1,000?\nAnswer:"
    assert problem.prefix == ""
    assert load_task("gsm8k", data=gsm8k, prompt="lm-eval").problem(3).prompt == asked
    problem = load_task("math500", data=math500, prompt="lm-eval", shots=1, equality="text").problem(0)
    solved, asked = problem.prompt.split("\n\nProblem:\n")
    assert solved.startswith("Problem:\nWhat is ")
    assert "\n\nSolution: First" in solved
    assert asked == "A half?\n\nSolution:"


def test_examples_are_never_test_problems(gsm8k):
    with pytest.raises(ValueError, match=r"shots are training problems, and .*test\.jsonl has test problems"):
        load_task("gsm8k", data=gsm8k / "test.jsonl", prompt="lm-eval", shots=2)


def test_a_problem_is_never_its_own_example(gsm8k):
    task = load_task("gsm8k", "train", data=gsm8k, prompt="lm-eval", shots=3)
    for index in range(20):
        *solved, asked = task.problem(index).prompt.split("\n\nQuestion: ")
        assert len(solved) == 3
        assert not any(asked.removesuffix("\nAnswer:") in text for text in solved)


# Which problems --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gsm8k", "math500"])
def test_splits_are_the_test_file_and_parts_of_the_training_file(request, name):
    folder = request.getfixturevalue(name)
    kwargs = {"equality": "text"} if name == "math500" else {}
    asked = {}
    for split in ("train", "validation", "test"):
        task = load_task(name, split, data=folder, prompt="d1", **kwargs)
        assert isinstance(task, Task)
        assert (task.name, task.split) == (name, split)
        problems = [task.problem(index) for index in range(task.num_problems)]
        assert problems == [task.problem(np.int64(index)) for index in range(task.num_problems)]
        asked[split] = {problem.prompt for problem in problems}
        assert len(asked[split]) == task.num_problems
        with pytest.raises(IndexError, match=f"indices go from 0 to {task.num_problems - 1}"):
            task.problem(task.num_problems)
    assert not asked["train"] & asked["validation"]
    assert len(asked["train"]) + len(asked["validation"]) == {"gsm8k": 300, "math500": 60}[name]
    assert 0 < len(asked["validation"]) < len(asked["train"]) / 5
    assert len(asked["test"]) == {"gsm8k": 20, "math500": 1}[name]
    test_file = folder / {"gsm8k": "test.jsonl", "math500": "math500_test.jsonl"}[name]
    with pytest.raises(ValueError, match=r"is named like a test set; use split='test' instead of 'train'"):
        load_task(name, "train", data=test_file, **kwargs)
    assert load_task(name, "test", data=test_file, **kwargs).num_problems == len(asked["test"])


def test_gold_answers(gsm8k, math500):
    assert load_task("gsm8k", data=gsm8k).problem(5).reference == "1005"
    assert load_task("math500", data=math500, equality="text").problem(0).reference == r"\frac{1}{2}"
    train = load_task("math500", "train", data=math500, equality="text")
    assert {train.problem(i).reference for i in range(5)} <= {f"\\frac{{{n}}}{{7}}" for n in range(60)}


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        (
            "gsm8k",
            {"question": "Q", "answer": "18"},
            r"line 2: the answer must end with '#### NUMBER', got '18'",
        ),
        ("gsm8k", {"question": "Q", "answer": "#### ten"}, "line 2: the answer must end with"),
        ("gsm8k", {"question": "Q"}, "line 2: no column 'answer'; it has question"),
        ("math500", {"problem": "Q"}, r"line 2: the row has no answer and its solution no \\boxed"),
        ("math500", {"problem": "Q", "solution": "5"}, "line 2: the row has no answer"),
        ("countdown", {"input": "1,2,x", "output": "3"}, "line 2: invalid literal"),
        ("countdown", {"input": "1,2,3"}, "line 2: no column 'output'; it has input"),
    ],
)
def test_a_malformed_row_is_named(tmp_path, name, row, message):
    good = {"question": "Q", "answer": "#### 1", "problem": "Q", "solution": "\\boxed{1}"}
    path = write_jsonl(tmp_path / "rows.jsonl", [good | {"input": "1,2,3", "output": "6"}, row])
    with pytest.raises(ValueError, match=message):
        load_task(name, data=path, **({"equality": "text"} if name == "math500" else {}))


def test_the_published_gsm8k_test_set():
    task = load_task("gsm8k", data=shared_file("gsm8k_test.jsonl"))
    assert task.num_problems == 1319
    for index in range(1319):
        problem = task.problem(index)
        gold = problem.reference
        assert task.score(f"</reasoning>\n<answer>\n\\boxed{{{int(gold):,}}}\n</answer>", problem) == 1.0
        assert task.score(f"\\boxed{{{int(gold) + 1}}}", problem) == 0.0
        assert task.score(problem.metadata["solution"], problem) == 0.0  # neither box nor tag
    lm_eval = load_task("gsm8k", data=shared_file("gsm8k_test.jsonl"), prompt="lm-eval")
    assert all(
        lm_eval.score(problem.metadata["solution"], problem) == 1.0
        for problem in (lm_eval.problem(index) for index in range(1319))
    )


# What scores -----------------------------------------------------------------------------------------------

ANSWERS = {
    r"<answer>\boxed{1,003}</answer>": 1.0,
    r"\boxed{1003.0}": 1.0,
    r"\boxed{\$1003\text{ dollars}} so \boxed{5}": 1.0,  # the first box
    r"\boxed{5} so \boxed{1003}": 0.0,
    r"\boxed{} \boxed{...} \boxed{1003": 1.0,
    "<answer>5 and then 1003</answer>": 1.0,  # the last number of a tag
    "<answer>1003": 1.0,
    "<answer>boxed{1003}</answer>": 1.0,
    "<answer>1003</answer> \\boxed{7}": 0.0,  # a box goes first
    "\\boxed{}<answer>1003</answer>": 1.0,
    "It is 1003.": 0.0,
    "#### 1003": 0.0,
    "<|eot_id|>\\boxed{1003}": 0.0,
    "\\boxed{1003}<|eot_id|>\\boxed{7}": 1.0,
    "\\boxed{1003^2}": 0.0,
    "": 0.0,
}


@pytest.mark.parametrize(("completion", "score"), ANSWERS.items())
def test_gsm8k_scores(gsm8k, completion, score):
    task = load_task("gsm8k", data=gsm8k)
    assert task.score(completion, task.problem(3)) == score


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        (" Add.\n#### 1,003", 1.0),
        ("The answer is $1003.00.", 1.0),
        ("1003 apples, not 5", 0.0),
        ("It is 1003.\n\nQuestion: what is 5?\nAnswer: 5", 1.0),
        ("", 0.0),
    ],
)
def test_gsm8k_scores_of_lm_eval(gsm8k, completion, score):
    task = load_task("gsm8k", data=gsm8k, prompt="lm-eval")
    assert task.score(completion, task.problem(3)) == score
    assert task.metrics(completion, task.problem(3)) == {"answered": float(completion != "")}


def test_math500_scores(math500):
    for equality in ("text", "math-verify"):
        if equality == "math-verify":
            pytest.importorskip("math_verify", reason="needs pip install 'dllm-gym[math]'")
        task = load_task("math500", data=math500, equality=equality)
        half = task.problem(0)
        for completion, score in {
            r"\boxed{5}, no, \boxed{\frac12}": 1.0,  # the last box
            r"\boxed{\frac12}, no, \boxed{5}": 0.0,
            r"<answer>0.5</answer>": 1.0,
            r"<answer>5</answer> \boxed{1/2}": 1.0,
            r"\frac12": 0.0,
            r"<|endoftext|>\boxed{\frac12}": 0.0,
            r"\boxed{\frac{2}{4}}": float(equality == "math-verify"),
            "": 0.0,
        }.items():
            assert task.score(completion, half) == score, (equality, completion)
    lm_eval = load_task("math500", data=math500, equality="text", prompt="lm-eval")
    said = "Final Answer: The final answer is $\\frac{1}{2}$. I hope it is correct.\n\nProblem:\n\\boxed{9}"
    assert lm_eval.score(said, lm_eval.problem(0)) == 1.0
    assert lm_eval.score(r"It is \boxed{\frac{1}{2}}.", lm_eval.problem(0)) == 1.0
    assert lm_eval.score("The final answer is ", lm_eval.problem(0)) == 0.0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        (0, "0"),
        (5, "5"),
        (-3, "-3"),
        (0.5, "0.5"),
        (5.0, "5"),
        (1e-07, "0.0000001"),
        (10**25, "1" + "0" * 25),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_bare_number_is_an_answer_of_math(tmp_path, answer, reference, kind):
    path = tmp_path / f"rows.{kind}"
    path.write_text(json.dumps({"problem": "Q", "answer": answer, "solution": "\\boxed{77}"}))
    task = load_task("math500", data=path, equality="text")
    problem = task.problem(0)
    assert problem.reference == reference
    assert task.score(f"\\boxed{{{reference}}}", problem) == 1.0
    assert task.score("\\boxed{77}", problem) == 0.0


@pytest.mark.parametrize("answer", [True, float("nan"), float("inf"), [1], {"value": 1}])
def test_what_is_no_answer_of_math_is_refused(tmp_path, answer):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"problem": "Q", "answer": answer}])
    with pytest.raises(
        ValueError, match=r"rows\.jsonl, line 1: the answer must be a text or a finite number"
    ):
        load_task("math500", data=path, equality="text")


@pytest.mark.parametrize("answer", [None, "", "  "])
def test_of_a_row_without_an_answer_the_solution_counts(tmp_path, answer):
    row = {"problem": "Q", "answer": answer, "solution": "\\boxed{77}"}
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    assert load_task("math500", data=path, equality="text").problem(0).reference == "77"


# Countdown -------------------------------------------------------------------------------------------------


def reachable(numbers):
    """Every value that three numbers can make, by brute force, with an expression for it."""
    results = {}
    steps = {
        "+": lambda a, b: a + b,
        "-": lambda a, b: a - b,
        "*": lambda a, b: a * b,
        "/": lambda a, b: a / b,
    }
    for a, b, c in itertools.permutations(numbers):
        for one, other in itertools.product("+-*/", repeat=2):
            for left in (True, False):
                try:
                    if left:
                        value, text = (
                            steps[other](steps[one](Fraction(a), b), c),
                            f"({a} {one} {b}) {other} {c}",
                        )
                    else:
                        value, text = (
                            steps[one](Fraction(a), steps[other](Fraction(b), c)),
                            f"{a} {one} ({b} {other} {c})",
                        )
                except ZeroDivisionError:
                    continue
                results.setdefault(value, text)
    return results


def test_countdown_agrees_with_brute_force():
    task = load_task("countdown")
    for index in range(25):
        numbers = task.problem(index).metadata["numbers"]
        for value, text in reachable(numbers).items():
            for target in {value, value + 1}:
                problem = Problem("", "", {"numbers": numbers, "target": target})
                assert task.score(f"\\boxed{{{text}}}", problem) == float(value == target)


def test_countdown_is_solvable_and_its_splits_share_nothing():
    seen = {}
    for split in ("train", "validation", "test"):
        for seed in (0, 1):
            task = load_task("countdown", split, seed=seed)
            assert task.num_problems is None
            for index in range(120):
                problem = task.problem(index)
                assert problem == task.problem(index)
                numbers, target = problem.metadata["numbers"], problem.metadata["target"]
                assert len(numbers) == 3
                assert all(1 <= n <= 100 for n in (*numbers, target))
                assert task.score(f"<answer>{problem.reference} = {target}</answer>", problem) == 1.0
                assert problem.prompt.endswith(f"Numbers: {list(numbers)}\nTarget: {target}")
                content = f"{sorted(numbers)} {target}"
                assert split_of(content) == split
                seen.setdefault(content, set()).add(split)
    assert all(len(splits) == 1 for splits in seen.values())
    assert len(seen) > 600


CASE = Problem("", "", {"numbers": (95, 73, 7), "target": 29})
COUNTDOWN = {
    r"\boxed{95 - 73 + 7}": 1.0,
    r"\boxed{1} \boxed{95 - 73 + 7 = 29}": 1.0,
    r"\boxed{95 - 73 + 7} \boxed{1}": 0.0,  # the last box
    "\\boxed{95 - 73 + 7><|eot_id|>": 1.0,
    "<answer>7 + (95 - 73)</answer>": 1.0,
    "<answer>7 - -(95 - 73)</answer>": 1.0,
    "<answer>**95 - 73 + 7**</answer>": 1.0,
    "<answer>**95 - 73 + 7** = 29</answer>": 1.0,
    "<answer>`95 - 73 + 7`</answer>": 1.0,
    "<answer>\n```python\n95 - 73 + 7\n```\n</answer>": 1.0,
    "<answer>$95 - 73 + 7$</answer>": 1.0,
    r"\boxed{\(95 - 73 + 7\)}": 1.0,
    r"<answer>\[95 - 73 + 7 = 29\]</answer>": 1.0,
    "<answer>95 - 73 + 7 → 29</answer>": 1.0,
    "<answer>95 - 73 + 7.</answer>": 1.0,
    "boxed{95 - 73 + 7}": 1.0,
    "95 - 73 + 7": 0.0,
    r"\boxed{29}": 0.0,
    r"\boxed{95 - 73 + 7 + 0}": 0.0,
    r"\boxed{95 - 73 + 7 * 1}": 0.0,
    r"\boxed{(95 - 73 + 7) * 7 / 7}": 0.0,
    r"\boxed{36 - 7}": 0.0,
    r"\boxed{95 + 73 - 7}": 0.0,
    r"\boxed{29 = 95 - 73 + 7}": 0.0,
    r"\boxed{95 - 73 + 7; print(1)}": 0.0,
    r"\boxed{9**9**9}": 0.0,
    "<|endoftext|>\\boxed{95 - 73 + 7}": 0.0,
}


@pytest.mark.parametrize(("completion", "score"), COUNTDOWN.items())
def test_countdown_scores(completion, score):
    assert load_task("countdown").score(completion, CASE) == score


def test_countdown_from_a_file(tmp_path):
    task = load_task("countdown", data=shared_file("countdown_cd3_test.jsonl"))
    assert task.num_problems == 256
    assert task.problem(0).metadata == {"numbers": (30, 100, 93), "target": 23}
    for index in range(task.num_problems):
        problem = task.problem(index)
        text = reachable(problem.metadata["numbers"])[problem.metadata["target"]]
        assert task.score(f"\\boxed{{{text}}}", problem) == 1.0
    rows = [{"nums": [n, 2, 3], "target": n} for n in range(100)] + [{"nums": [1, 2, 3, 4], "target": 5}]
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    sizes = [load_task("countdown", split, data=path).num_problems for split in ("train", "validation")]
    assert sum(sizes) == 100
    assert load_task("countdown", data=path).num_problems == 100
    write_jsonl(path, rows[-1:])
    with pytest.raises(ValueError, match="no problems with 3 numbers"):
        load_task("countdown", data=path)
    with pytest.raises(ValueError, match=r"the hub has no test set of Countdown"):
        load_task("countdown", data="hub")


# Sudoku in d1's words --------------------------------------------------------------------------------------


def test_sudoku_in_the_words_of_d1():
    plain, task = load_task("sudoku", "train"), load_task("sudoku", "train", prompt="d1")
    for index in range(20):
        problem = task.problem(index)
        clues, solution = problem.metadata["clues"], problem.reference
        assert plain.problem(index).metadata["clues"] == clues
        assert f"Solve the following Sudoku puzzle: {clues}\n" in problem.prompt
        rows = "\n".join(solution[i : i + 4] for i in range(0, 16, 4))
        for completion in (
            task.write(problem, np.random.default_rng(0)),
            f"{clues} </reasoning><answer>{rows}</answer> 1234",
            f"<answer>\n```\n{rows}\n```\n</answer>",
            f"<answer>{solution}",
            f"<answer>{clues}</answer> <answer>{solution}</answer>",
            f"</answer>\n{solution}<|eot_id|>7",
            f"{clues} makes {solution}",
        ):
            assert task.score(completion, problem) == 1.0, completion
            assert task.metrics(completion, problem) == {"cell_accuracy": 1.0}
        for completion in (
            "",
            clues,
            f"<answer>{clues}</answer>",
            f"<answer>{solution}1</answer>",
            solution[:15],
        ):
            assert task.score(completion, problem) == 0.0, completion
        assert is_valid_grid(solution, 4)


# Mixtures --------------------------------------------------------------------------------------------------


def members(gsm8k, math500):
    return [
        {"task": "gsm8k", "data": str(gsm8k)},
        {"task": "math500", "data": str(math500), "equality": "text"},
    ]


@pytest.fixture
def both(tmp_path_factory, gsm8k):
    folder = tmp_path_factory.mktemp("math")
    rows = [{"problem": f"What is {n}/7?", "answer": f"\\frac{{{n}}}{{7}}"} for n in range(60)]
    write_jsonl(folder / "train.jsonl", rows)
    return members(gsm8k, folder)


def test_without_weights_a_mixture_is_its_members_one_after_the_other(both):
    mixture = load_task("mixture", "train", tasks=both)
    parts = [
        load_task(member["task"], "train", **{k: member[k] for k in member if k != "task"}) for member in both
    ]
    assert mixture.num_problems == sum(part.num_problems for part in parts)
    prompts = [part.problem(index).prompt for part in parts for index in range(part.num_problems)]
    assert [mixture.problem(index).prompt for index in range(mixture.num_problems)] == prompts
    assert mixture.completion_length == 256
    for index in (0, mixture.num_problems - 1):
        problem = mixture.problem(index)
        right = f"\\boxed{{{problem.reference}}}"
        assert mixture.score(right, problem) == 1.0
        assert mixture.score("\\boxed{77}", problem) == 0.0
        assert mixture.metrics(right, problem) == {"answered": 1.0}
    assert {mixture.problem(i).metadata["task"] for i in range(mixture.num_problems)} == {"gsm8k", "math500"}


def test_with_weights_a_mixture_is_drawn_without_end():
    kinds = [{"task": "arithmetic", "weight": 3}, {"task": "sudoku", "size": 4, "weight": 1}]
    mixture = load_task("mixture", "train", tasks=kinds)
    assert mixture.num_problems is None
    assert mixture.completion_length == 48
    problems = [mixture.problem(index) for index in range(600)]
    assert problems == [mixture.problem(index) for index in range(600)]
    share = sum(problem.metadata["task"] == "arithmetic" for problem in problems) / 600
    assert share == pytest.approx(0.75, abs=0.07)
    assert len({problem.prompt for problem in problems}) > 590
    assert load_task("mixture", "train", tasks=kinds, seed=1).problem(0) != problems[0]
    rng = np.random.default_rng(0)
    for problem in problems[:30]:
        member = mixture.members[problem.metadata["member"]]
        assert mixture.score(member.write(problem, rng), problem) == 1.0
        assert mixture.metrics("", problem) == {}  # arithmetic and Sudoku have no metric in common


def test_a_wrong_mixture_says_what_it_wants():
    for tasks in ((), [{}], ["gsm8k"], [{"weight": 1}]):
        with pytest.raises(ValueError, match="tasks must be a list such as"):
            load_task("mixture", tasks=tasks)
    for weights in ([1, None], [1, 0], [1, -1], [1, "2"], [1, float("inf")], [1, float("nan")]):
        kinds = [{"task": "sudoku"} | ({} if weight is None else {"weight": weight}) for weight in weights]
        with pytest.raises(
            ValueError, match="weights must be positive numbers, one for every member or none"
        ):
            load_task("mixture", tasks=kinds)
    with pytest.raises(ValueError, match=r"task 'sudoku' has no end of problems; give every member a weight"):
        load_task("mixture", tasks=[{"task": "sudoku"}])
    with pytest.raises(ValueError, match="unknown task 'chess'"):
        load_task("mixture", tasks=[{"task": "chess"}])
    with pytest.raises(ValueError, match=r"task 'sudoku': .*'boxes'"):
        load_task("mixture", tasks=[{"task": "sudoku", "boxes": 1}])


# Any string ------------------------------------------------------------------------------------------------

PIECES = [
    *[
        "\\boxed{",
        "}",
        "{",
        "<answer>",
        "</answer>",
        "\n",
        "9**9**9",
        "9" * 5000,
        "1,003",
        "/",
        "-",
        "(",
        ")",
        "²",
        "٤",
    ],
    *[
        "\x00",
        "\ud800",
        "<|eot_id|>",
        "= ",
        "\\frac",
        "95 - 73 + 7",
        "1" * 16,
        "The final answer is ",
        "nan",
        "1e999",
    ],
]


@settings(max_examples=120)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | st.text(max_size=50))
def test_scorers_take_any_string(tmp_path_factory, text):
    for task in fuzzed(tmp_path_factory):
        problem = task.problem(0)
        for value in (task.score(text, problem), *task.metrics(text, problem).values()):
            assert isinstance(value, float)
            assert 0.0 <= value <= 1.0


def fuzzed(factory, made=[]):  # noqa: B006 - built once
    if not made:
        path = write_jsonl(
            factory.mktemp("rows") / "rows.jsonl",
            [{"question": "Q", "answer": "#### 1003", "problem": "Q", "solution": r"\boxed{\frac{1}{2}}"}],
        )
        gsm8k = [load_task("gsm8k", data=path, prompt=prompt) for prompt in ("d1", "lm-eval")]
        rows = [{"problem": "Q", "answer": r"\frac{1}{2}"}]
        path = write_jsonl(factory.mktemp("rows") / "rows.jsonl", rows)
        math = [
            load_task("math500", data=path, prompt=prompt, equality="text") for prompt in ("d1", "lm-eval")
        ]
        made += [*gsm8k, *math, load_task("countdown"), load_task("sudoku", prompt="d1")]
    return made


# In the environment ----------------------------------------------------------------------------------------


class Bytes:
    """A dLLM that reads bytes and writes the same text whatever the canvas: its weights are that text."""

    mask_token_id, eos_token_id, pad_token_id, vocab_size = 256, 257, 258, 259
    device = torch.device("cpu")

    def __init__(self, text):
        self.text, self.tokenizer, self.seen = text, self, []

    def __deepcopy__(self, memo):
        return self

    def encode(self, text, add_special_tokens=True):
        assert not add_special_tokens
        return list(text.encode())

    def encode_prompt(self, prompt):
        return list(prompt.encode())

    def decode(self, ids):
        ids = list(ids)
        return bytes(i for i in ids[: ids.index(257) if 257 in ids else None] if i < 256).decode(
            errors="replace"
        )

    def predict(self, tokens, attention_mask, positions, **kwargs):
        self.seen.append(bytes(tokens[0, : positions.start].tolist()).decode())
        length = tokens.shape[1] - positions.start
        ids = torch.tensor([*self.text.encode(), *[257] * length][:length])
        return Prediction(ids.repeat(len(tokens), 1), torch.full((len(tokens), length), 0.9))


def test_gsm8k_through_the_front_door(gsm8k):
    backend = Bytes("3 and 1,000\n</reasoning>\n<answer>\n\\boxed{1,003}\n</answer>")
    env = gym.make(
        "DLLMUnmask-v0",
        task="gsm8k",
        task_kwargs={"data": str(gsm8k)},
        split="test",
        backend=backend,
        block_length=32,
    )
    _, info = env.reset(seed=0, options={"problem": 3})
    assert info["prompt"].endswith("test 3: how many is 3 and 1,000?")
    assert backend.seen[-1] == info["prompt"] + "<reasoning>"  # what the answer is made to begin with
    done, steps = False, 0
    while not done:
        _, _, done, _, info = env.step(np.ones(256, dtype=np.int8))
        steps += 1
    assert steps == 256 // 32
    assert info["is_success"]
    assert info["answered"] == 1.0
    assert info["completion"] == backend.text
    env.close()


@pytest.mark.filterwarnings("ignore:the dLLM tiny-sudoku was trained on")  # which is not what this is about
def test_a_completion_in_which_no_grid_fits_is_refused_at_the_door():
    for kwargs, shortest in (
        ({"task": "sudoku"}, 16),
        ({"task": "sudoku", "task_kwargs": {"size": 6}, "backend": "tiny-sudoku"}, 36),
        (
            {"task": load_task("mixture", tasks=[{"task": "sudoku", "weight": 1}]), "backend": "tiny-sudoku"},
            16,
        ),
    ):
        assert gym.make("DLLMUnmask-v0", **kwargs, completion_length=shortest).action_space.n == shortest
        with pytest.raises(
            ValueError, match=f"completion_length {shortest - 1} is too short .* than {shortest} "
        ):
            gym.make("DLLMUnmask-v0", **kwargs, completion_length=shortest - 1)
        with pytest.raises(ValueError, match="is too short for task"):
            dllm_gym.evaluate("random", 1, **kwargs, completion_length=1)


def test_a_task_without_a_dllm_of_its_own_asks_for_one(gsm8k):
    kwargs = {"task": "gsm8k", "task_kwargs": {"data": str(gsm8k)}}
    with pytest.raises(
        ValueError,
        match=r"no dLLM for task 'gsm8k' comes with the package; give backend=.*GSAI-ML.*tiny-arithmetic",
    ):
        gym.make("DLLMUnmask-v0", **kwargs)
    with pytest.raises(FileNotFoundError, match=r"task 'gsm8k' needs data\. Three ways"):
        gym.make("DLLMUnmask-v0", task="gsm8k")


def test_a_mixture_in_the_vector_environment(both):
    envs = gym.make_vec(
        "DLLMUnmask-v0",
        num_envs=3,
        task="mixture",
        task_kwargs={"tasks": both},
        backend=Bytes("\\boxed{1005}"),
        block_length=64,
    )
    envs.reset(seed=0)
    for _ in range(4):
        _, _, _, _, infos = envs.step(np.ones((3, 256), dtype=np.int8))
    assert infos["answered"].tolist() == [1.0] * 3
    assert json.dumps(envs.unwrapped.engine.description())
    envs.close()
