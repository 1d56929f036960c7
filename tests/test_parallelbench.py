"""ParallelBench: prompts and scores from files in its layout, which are written here by hand."""

import itertools
import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import dllm_gym
from dllm_gym.envs.problems import Problems
from dllm_gym.tasks import Problem, Task, load_task
from dllm_gym.tasks.parallelbench import REFUSED
from dllm_gym.tasks.scoring.parallelbench import SCORERS

LINE = ["Ada Lov", "Bo Ek", "Cy Twom"]
PLACE = "dataset/parallel_bench/data/output/test"


def written(names):
    return json.dumps(list(names))


def case(metric, prompt, asked, answer, shown):
    """A task's settings and its one row, in which one example is shown."""
    example = {"input": shown[0], "answer": shown[1], "metadata": {"length": 2}}
    row = {"input": {**asked, "icl_examples": [example]}, "answer": answer, "metadata": {"length": 3}}
    return {"prompt": prompt, "metric": metric, "icl_example_count": 1, "seed": 7}, row


CASES = {
    "waiting_line/sort": case(
        "list_match_score",
        "Who is who?\n{context}\nSort them.\n",
        {"context": written(LINE[::-1])},
        written(LINE),
        ({"context": written("BA")}, written("AB")),
    ),
    "waiting_line/shuffle": case(
        "list_shuffle_score",
        "Mix {context}.",
        {"context": written(LINE)},
        {"input": LINE, "example": written(LINE[::-1])},
        ({"context": written("BA")}, {"input": ["B", "A"], "example": written("AB")}),
    ),
    "waiting_line/insert_random": case(
        "list_random_insert_score",
        'Put "{word}" into {context}, {{anywhere}}.',
        {"context": written(LINE), "word": "Di Ng"},
        {"input": LINE, "word": "Di Ng", "example": written([*LINE, "Di Ng"])},
        (
            {"context": written("A"), "word": "B"},
            {"input": ["A"], "word": "B", "example": written("BA")},
        ),
    ),
    "waiting_line/remove_random": case(
        "list_random_remove_score",
        "One of {context} has left.",
        {"context": written(LINE)},
        {"input": LINE, "example": written(LINE[1:])},
        ({"context": written("BA")}, {"input": ["B", "A"], "example": written("A")}),
    ),
    "waiting_line/replace_random": case(
        "list_random_replace_score",
        "Put {word} in the place of one of {context}.",
        {"context": written(LINE), "word": "Di Ng"},
        {"input": LINE, "word": "Di Ng", "example": written(["Di Ng", *LINE[1:]])},
        (
            {"context": written("A"), "word": "B"},
            {"input": ["A"], "word": "B", "example": written("B")},
        ),
    ),
    "puzzle/latin_square_n3": case(
        "latin_square_score",
        "A square of {size} with {symbols}.",
        {"size": 3, "symbols": "[7, P, Q]"},
        {"symbols": ["7", "P", "Q"], "example": "7,P,Q\nP,Q,7\nQ,7,P"},
        ({"size": 1, "symbols": "[Z]"}, {"symbols": ["Z"], "example": "Z"}),
    ),
    "puzzle/sudoku_n4_12": case(
        "sudoku_score",
        "Fill in:\\n{sudoku}\\nOutput:\\n",
        {"sudoku": "1204\n3412\n2143\n4321"},
        "1234\n3412\n2143\n4321",
        ({"sudoku": "0234\n3412\n2143\n4321"}, "1234\n3412\n2143\n4321"),
    ),
    "words_to_sentence/easy": case(
        "sentence_to_words_score",
        "Use {words}.",
        {"words": "sun and sea"},
        {"words": ["sun", "sea"], "example": "The sun sets in the sea."},
        ({"words": "a"}, {"words": ["a"], "example": "A."}),
    ),
}


def write(folder, cases):
    """Cases as a checkout of October 2025 has them."""
    groups = {}
    for name, (config, row) in cases.items():
        path = folder / PLACE / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row) + "\n")
        groups.setdefault(path.with_name("task_config.yaml"), {})[name] = config
    for path, configs in groups.items():
        path.write_text(yaml.safe_dump(configs))
    return folder


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return write(tmp_path_factory.mktemp("ParallelBench"), CASES)


def load(name, folder):
    return load_task(f"parallelbench:{name}", data=folder)


# What is asked ---------------------------------------------------------------------------------------------


def test_an_example_is_asked_and_answered_before_the_question(checkout):
    task = load("waiting_line/sort", checkout)
    assert isinstance(task, Task)
    assert (task.name, task.split, task.num_problems) == ("parallelbench:waiting_line/sort", "test", 1)
    problem = task.problem(0)
    assert problem.turns == (
        {"role": "user", "content": 'Who is who?\n["B", "A"]\nSort them.\n'},
        {"role": "assistant", "content": '["A", "B"]'},
    )
    assert problem.prompt == 'Who is who?\n["Cy Twom", "Bo Ek", "Ada Lov"]\nSort them.\n'
    assert problem.reference == '["Ada Lov", "Bo Ek", "Cy Twom"]'
    assert problem.metadata == {"metric": "list_match_score", "answer": problem.reference}
    with pytest.raises(IndexError, match="indices go from 0 to 0"):
        task.problem(1)


def test_prompts_are_filled_in_as_published(checkout):
    prompt = load("puzzle/sudoku_n4_12", checkout).problem(0).prompt
    assert prompt == "Fill in:\n1204\n3412\n2143\n4321\nOutput:\n"  # written out as \n in the file
    problem = load("waiting_line/insert_random", checkout).problem(0)
    assert problem.prompt == 'Put "Di Ng" into ["Ada Lov", "Bo Ek", "Cy Twom"], {anywhere}.'
    assert problem.turns[1]["content"] == '["B", "A"]'
    assert (
        load("puzzle/latin_square_n3", checkout).problem(0).turns[0]["content"] == "A square of 1 with [Z]."
    )


def test_the_room_for_an_answer_is_that_of_the_papers_runs(checkout, tmp_path):
    assert load("waiting_line/sort", checkout).completion_length == 32
    assert load("puzzle/sudoku_n4_12", checkout).completion_length == 64
    long = {"waiting_line_n15/sort": CASES["waiting_line/sort"]}
    assert load("waiting_line_n15/sort", write(tmp_path, long)).completion_length == 128


def test_a_dllm_reads_the_turns_before_the_question(monkeypatch):
    backend = dllm_gym.load_backend("tiny-sudoku")
    clues, grid, asked = "3102200002100320", "3142243142131324", "0100200002100320"
    turns = ({"role": "user", "content": clues}, {"role": "assistant", "content": grid})
    problems = Problems(load_task("sudoku"), backend)
    with pytest.raises(ValueError, match="this model answers a single user message"):
        problems.encode(Problem(asked, "", turns=turns))
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    monkeypatch.setattr(backend.tokenizer, "chat_template", template)
    ids = backend.tokenizer.encode(f"{clues}{grid}{asked}3", add_special_tokens=False)
    assert problems.encode(Problem(asked, "", turns=turns, prefix="3")) == ids
    assert problems.encode(Problem(asked, "", prefix="3")) == ids[len(clues + grid) :]


# Where the files are ---------------------------------------------------------------------------------------


def test_a_checkout_its_folders_and_its_files_are_the_same(checkout):
    problem = load("waiting_line/sort", checkout).problem(0)
    output = checkout / PLACE
    for data in (output.parent, output, str(output / "waiting_line" / "sort.jsonl")):
        assert load("waiting_line/sort", data).problem(0) == problem


def as_on_the_hub(name):
    config, row = CASES[name]
    answer = row["answer"] if isinstance(row["answer"], str) else json.dumps(row["answer"])
    texts = {"input": json.dumps(row["input"]), "answer": answer, "metadata": json.dumps(row["metadata"])}
    return {**texts, "output_format": None, "task_name": name, **{k: config[k] for k in ("prompt", "metric")}}


@pytest.mark.parametrize("name", ["waiting_line/sort", "waiting_line/shuffle", "puzzle/sudoku_n4_12"])
def test_the_hub_has_prompt_and_metric_in_every_row(checkout, tmp_path, monkeypatch, name):
    asked = []

    def rows(*place):
        asked.append(place)
        yield "row 1", as_on_the_hub(name)

    monkeypatch.setattr("dllm_gym.tasks.data._hub_rows", rows)
    problem = load(name, checkout).problem(0)
    assert load(name, "hub").problem(0) == problem
    config = name.replace("/", "-")
    assert asked == [("furiosa-ai/ParallelBench", config, "test")]
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    (tmp_path / config).mkdir()
    file = tmp_path / config / "test-00000-of-00001.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([as_on_the_hub(name)]), file)
    for data in (tmp_path, file):
        assert load(name, data).problem(0) == problem


def test_what_there_is_not_is_said(checkout, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"no task 'waiting_line/srot' \(did you mean 'waiting_line/sort'\?\); it has puzzle/",
    ):
        load("waiting_line/srot", checkout)
    for name in ("", "waiting_line", "../waiting_line/sort", "waiting_line/*"):
        with pytest.raises(ValueError, match=r"name one as in parallelbench:waiting_line/copy"):
            load(name, checkout)
    for split in ("train", "validation"):
        with pytest.raises(ValueError, match=f"use split='test' instead of '{split}'"):
            load_task("parallelbench:waiting_line/sort", split, data=checkout)
    for data in (None, tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            FileNotFoundError, match=r"waiting_line/sort\.jsonl.*data='hub' to download furiosa"
        ):
            load("waiting_line/sort", data)


def test_scores_that_ask_a_server_are_refused(checkout):
    with pytest.raises(
        ValueError, match=r"'sentence_to_words_score' is refused: it asks LanguageTool, a Java"
    ):
        load("words_to_sentence/easy", checkout)
    assert not REFUSED.keys() & SCORERS.keys()


MALFORMED = {
    "another metric": (
        "metric",
        "list_sort_score",
        "'list_sort_score' is refused: it is not known here; scored",
    ),
    "a prompt that is none": ("prompt", 5, "column 'prompt' must hold a text"),
    "a value too many": (
        "prompt",
        "{context} {word}",
        r"asks for \{word\} as a text or number; there is context",
    ),
    "a part of a value": ("prompt", "{context.upper}", r"asks for \{context\.upper\}"),
    "a width": ("prompt", "{context:>99999999}", "the prompt asks for"),
    "an input that is a text": ("input", "Sort them.", "'input' must hold an object, got 'Sort them.'"),
    "no answer": ("answer", None, "'NoneType'"),
    "another answer": ("answer", {"example": "x"}, "by list_match_score the answer .* is not right itself"),
    "no example": ("answer", {"symbols": []}, "no column 'example'; it has"),
}


@pytest.mark.parametrize(("column", "value", "message"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_row_is_named(tmp_path, column, value, message):
    config, row = CASES["waiting_line/sort"]
    config, row = [{**part, column: value} if column in part else part for part in (config, row)]
    folder = write(tmp_path, {"waiting_line/sort": (config, row)})
    with pytest.raises(ValueError, match=rf"sort\.jsonl, line 1: .*{message}"):
        load("waiting_line/sort", folder)


def test_settings_are_read_with_suspicion(checkout, tmp_path):
    path = write(tmp_path, {"waiting_line/sort": CASES["waiting_line/sort"]}) / PLACE / "waiting_line"
    for text, message in {
        "waiting_line/copy: {prompt: P}": "no prompt and metric for 'waiting_line/sort'; it is about waiting",
        "waiting_line/sort: {prompt: P}": "no prompt and metric for 'waiting_line/sort'",
        "- 1": "must hold fields and values, got list",
        "waiting_line/sort: !!python/name:os.system": "is not YAML",
        "a: &a [1]\nwaiting_line/sort: *a": "aliases are not accepted",
    }.items():
        (path / "task_config.yaml").write_text(text)
        with pytest.raises(ValueError, match=rf"task_config\.yaml .*{message}"):
            load("waiting_line/sort", tmp_path)


# What is right ---------------------------------------------------------------------------------------------

A, B, C = LINE
SCORES = {
    "waiting_line/sort": {
        f'["{A}", "{B}", "{C}"]': (1, 1),
        f'Sure: ["{A}", "{B}", "{C}"] is it.\nBye': (1, 1),
        f'[1] and then ["{A}", "{B}", "{C}"]': (1, 1),  # the last list
        f'["{A}", "{B}", "{C}"] or [1]': (0, 0),
        f'["{A}","{B}","{C}"]': (1, 0),
        f'["{A}", "{B}",  "{C}"]': (1, 0),
        f"[{A}, {B}, {C}]": (1, 0),
        f"{A}, {B}, {C}": (1, 0),
        f'["{A}", "{B}", "{C}"': (1, 0),
        f'"{A}", "{B}", "{C}"]': (1, 0),
        f'["{A}", "{B}", "{C}", ]': (1, 0),
        f'["{A}", "{B}", "{C}", ""]': (0, 0),
        f'["{A}", "{B}",\n"{C}"]': (0, 0),
        f"['{A}', '{B}', '{C}']": (0, 0),
        f'["{A}", "{C}", "{B}"]': (0, 0),
        f'["{A}", "{B}"]': (0, 0),
        f'["{A}", "{B}", "{C}"]<|eot_id|>[]': (1, 1),
        "": (0, 0),
    },
    "puzzle/latin_square_n3": {
        "7,P,Q\nP,Q,7\nQ,7,P": (1, 1),
        "Here:\n```csv\n 7, P, Q\n\nP,Q,7 \nQ,7,P\n```": (1, 1),
        "7,P,Q\nP,Q,7\nQ,7,P\nQ,7,P": (1, 1),  # the first rows
        "7,P,Q\n7,P,Q\nP,Q,7\nQ,7,P": (0, 0),
        "7,P,Q\nP,Q,7\nQ,7,P,7": (1, 1),
        "7,P,Q\nP,Q,7\nQ,7,": (0, 0),
        "7,P,Q\nP,Q,7": (0, 0),
        "7PQ\nPQ7\nQ7P": (0, 0),
        "7,p,Q\nP,Q,7\nQ,7,P": (0, 0),
        "": (0, 0),
    },
    "puzzle/sudoku_n4_12": {
        "1234\n3412\n2143\n4321": (1, 1),
        " 1234\n\n3412 \n2143\n4321\n": (1, 1),
        "1 2 3 4\n3 4 1 2\n2 1 4 3\n4 3 2 1": (1, 0),
        "1,2,3,4\n|3|4|1|2|\n2143\n4321": (1, 0),
        "Output:\n1234\n3412\n2143\n4321": (1, 0),
        "4x4 of 12\n1234\n3412\n2143\n4321": (0, 0),  # that line has four digits
        "1234\n3412\n2143\n4321\n1234": (0, 0),
        "1234341221434321": (0, 0),
        "2143\n4321\n1234\n3412": (0, 0),
        "": (0, 0),
    },
}


@pytest.mark.parametrize(
    ("name", "completion", "scores"),
    [(name, completion, scores) for name, of in SCORES.items() for completion, scores in of.items()],
)
def test_scores(checkout, name, completion, scores):
    task = load(name, checkout)
    problem = task.problem(0)
    assert (task.score(completion, problem), task.metrics(completion, problem)["score_strict"]) == scores


def every_answer(name):
    """All right answers to a random operation on ``LINE``."""
    new, places = "Di Ng", range(len(LINE))
    return {
        "waiting_line/shuffle": [list(one) for one in itertools.permutations(LINE) if list(one) != LINE],
        "waiting_line/insert_random": [[*LINE[:i], new, *LINE[i:]] for i in range(len(LINE) + 1)],
        "waiting_line/remove_random": [[*LINE[:i], *LINE[i + 1 :]] for i in places],
        "waiting_line/replace_random": [[*LINE[:i], new, *LINE[i + 1 :]] for i in places],
    }[name]


@pytest.mark.parametrize("name", [name for name in CASES if "random" in name or "shuffle" in name])
def test_every_right_line_scores_and_no_other(checkout, name):
    task = load(name, checkout)
    problem, right = task.problem(0), every_answer(name)
    for length in range(5):
        for line in itertools.product([*LINE, "Di Ng"], repeat=length):
            expected = float(list(line) in right)
            assert task.score(written(line), problem) == expected, line
            assert task.metrics(written(line), problem) == {"score_strict": expected}, line
            assert task.score(", ".join(line), problem) == expected, line


def test_every_latin_square_scores_and_no_other_grid(checkout):
    task, symbols = load("puzzle/latin_square_n3", checkout), "7PQ"
    problem, right = task.problem(0), 0
    for cells in itertools.product(symbols, repeat=9):
        rows = [cells[at : at + 3] for at in (0, 3, 6)]
        expected = all(sorted(line) == sorted(symbols) for line in (*rows, *zip(*rows, strict=True)))
        assert task.score("\n".join(map(",".join, rows)), problem) == expected
        right += expected
    assert right == 12


PIECES = [
    *'[]",\n\r\t ',
    ", ",
    '["',
    "\x00",
    "\u2028",
    "٤",
    "²",
    "1234",
    "7,P,Q",
    *LINE,
    "<|eot_id|>",
    "\ud800",
]


@pytest.fixture(scope="module")
def tasks(checkout):
    return [load(name, checkout) for name in CASES if not name.startswith("words")]


@settings(max_examples=150)
@given(st.lists(st.sampled_from(PIECES), max_size=16).map("".join) | st.text(max_size=40))
def test_scorers_take_any_string(tasks, text):
    for task in tasks:
        strict = task.metrics(text, task.problem(0))["score_strict"]
        assert 0.0 <= strict <= task.score(text, task.problem(0)) <= 1.0
