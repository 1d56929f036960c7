"""reasoning-gym: problems by index, and no scorer that evaluates what a model wrote."""

import ast
import inspect
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_gym.tasks import Task, load_task
from dllm_gym.tasks.base import split_of
from dllm_gym.tasks.reasoning import DENIED

factory = pytest.importorskip(
    "reasoning_gym.factory", reason="needs pip install 'dllm-gym[reasoning-gym]'", exc_type=ImportError
)


def test_problems_are_a_function_of_seed_split_and_index():
    seen = {}
    for split in ("train", "validation", "test"):
        task = load_task("reasoning-gym:chain_sum", split)
        assert isinstance(task, Task)
        assert (task.name, task.split, task.num_problems) == ("reasoning-gym:chain_sum", split, None)
        again = load_task("reasoning-gym:chain_sum", split)
        problems = [task.problem(index) for index in range(30)]
        assert [again.problem(index).prompt for index in reversed(range(30))] == [p.prompt for p in problems][
            ::-1
        ]
        for problem in problems:
            question = problem.metadata["entry"]["question"]
            assert split_of(question) == split
            assert problem.prompt.startswith(question)
            assert task.score(f"So <answer>{problem.reference}</answer>", problem) == 1.0
            assert task.score(f"<answer>{problem.reference}<|eot_id|>5", problem) == 1.0
            assert task.score("<answer>x</answer>", problem) < 1.0
            assert task.score(problem.reference, problem) == 0.0
            assert task.metrics("", problem) == {"answered": 0.0}
        seen[split] = {problem.prompt for problem in problems}
    assert not seen["train"] & seen["test"]
    other = load_task("reasoning-gym:chain_sum", "train", seed=1)
    assert other.problem(0).prompt not in seen["train"]
    with pytest.raises(IndexError, match="-1 is out of range"):
        other.problem(-1)


def test_parameters_and_names():
    task = load_task("reasoning-gym:chain_sum", config={"min_terms": 5, "max_terms": 5})
    assert len(task.problem(0).metadata["entry"]["metadata"]["expression"].replace("-", "+").split("+")) == 5
    assert load_task("reasoning-gym", dataset="gcd").name == "reasoning-gym:gcd"
    with pytest.raises(
        ValueError, match=r"unknown data set 'nothing' of reasoning-gym; known: ab, .*zebra_puzzles"
    ):
        load_task("reasoning-gym:nothing")
    for config in ({"no_such": 1}, {"min_terms": -1}):
        with pytest.raises(ValueError, match=r"reasoning-gym:chain_sum: "):
            load_task("reasoning-gym:chain_sum", config=config)


def test_without_the_package_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("reasoning_gym")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'dllm-gym\[reasoning-gym\]'"):
        load_task("reasoning-gym:gcd")


@pytest.mark.parametrize("dataset", DENIED)
def test_denied_data_sets_are_refused_with_the_reason(dataset):
    assert dataset in factory.DATASETS
    with pytest.raises(ValueError, match=rf"reasoning-gym's '{dataset}' is refused: it"):
        load_task(f"reasoning-gym:{dataset}")


EVALUATORS = {"eval", "exec", "parse_expr", "sympify", "S", "lambdify", "literal_eval", "system", "Popen"}
# These evaluate what reasoning-gym itself wrote: the reference answer, the problem, its own arithmetic.
OWN_TEXT = {"number_sorting", "bitwise_arithmetic", "basic_arithmetic", "gsm_symbolic", "propositional_logic"}


def evaluators(module):
    """Names of evaluating functions that a module's code calls, ``json.loads`` and the like aside."""
    calls = [
        node.func for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Call)
    ]
    return {getattr(call, "id", getattr(call, "attr", None)) for call in calls} & EVALUATORS


def test_no_data_set_that_is_left_evaluates_text_in_its_module():
    """Looks at the installed version: a new one may bring new scorers."""
    found = {
        name
        for name, (dataset, _) in factory.DATASETS.items()
        if evaluators(sys.modules[dataset.__module__]) or dataset.score_answer is None
    }
    assert found - set(DENIED) <= OWN_TEXT
    assert len(found & set(DENIED)) >= 10  # the search does find something


def test_what_own_text_means():
    """The exceptions hand the evaluator nothing of the answer."""
    from reasoning_gym.algorithmic import number_sorting
    from reasoning_gym.arithmetic import bitwise_arithmetic

    def evaluated(module):
        tree = ast.parse(inspect.getsource(module))
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "eval"]
        return {ast.unparse(call.args[0]) for call in calls}

    assert evaluated(number_sorting) == {"entry['answer']"}
    assert evaluated(bitwise_arithmetic) == {"problem_str", "problem"}


ATTACKS = [
    *[
        "__import__('os').mkdir('{}')",
        "9**9**9",
        "1e999999999",
        "nan",
        "inf",
        "[" * 500,
        "9" * 3000,
        "U99999999",
        "²",
    ],
    *["A+99999999", "\x00", "(P" * 900, "1," * 1500, "\ud800"],
]
CHECKED = [
    "chain_sum",
    "gcd",
    "base_conversion",
    "mini_sudoku",
    "propositional_logic",
    "letter_jumble",
    "fraction_simplification",
]


@pytest.fixture(scope="module")
def checked():
    return [
        (task, task.problem(0)) for task in (load_task(f"reasoning-gym:{name}", "train") for name in CHECKED)
    ]


@settings(max_examples=60)
@given(st.text(max_size=40) | st.lists(st.sampled_from(ATTACKS), max_size=3).map("".join))
def test_scorers_take_any_string(checked, text):
    for task, problem in checked:
        for completion in (text, f"<answer>{text}</answer>"):
            assert 0.0 <= task.score(completion, problem) <= 1.0


def test_attacks_score_nothing_much_and_run_nothing(checked, tmp_path):
    mark = tmp_path / "run"
    for task, problem in checked:
        for attack in ATTACKS:
            assert task.score(f"<answer>{attack.replace('{}', str(mark))}</answer>", problem) < 1.0
    assert not Path(mark).exists()
