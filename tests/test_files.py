"""Atomic writes."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_gym.files import remove_unfinished, write_atomically, write_bytes, write_json, write_text

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)


@settings(max_examples=50, deadline=None)
@given(value=json_values)
def test_json_comes_back_as_it_was(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "round-trip.json"
    # lone surrogates have no UTF-8; hypothesis does not generate them in st.text()
    assert json.loads(write_json(path, value).read_text(encoding="utf-8")) == value


def test_json_is_indented_readable_and_ends_with_a_newline(tmp_path):
    text = write_json(tmp_path / "a.json", {"name": "naïve ✓", "n": 1}).read_text(encoding="utf-8")
    assert text == '{\n  "name": "naïve ✓",\n  "n": 1\n}\n'


def test_text_is_written_and_the_path_returned(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    assert write_text(str(path), "line\nÄ") == path
    assert path.read_text(encoding="utf-8") == "line\nÄ"


def test_only_the_file_itself_is_left_behind(tmp_path):
    write_text(tmp_path / "a.txt", "1")
    write_text(tmp_path / "a.txt", "2")
    write_json(tmp_path / "no-suffix", [1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "no-suffix"]
    assert (tmp_path / "a.txt").read_text() == "2"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = write_text(tmp_path / "a.txt", "old")

    def write_half(temporary):
        temporary.write_text("ne")
        raise error("interrupted")

    with pytest.raises(error, match="interrupted"):
        write_atomically(path, write_half)
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"


def test_a_failing_writer_creates_no_file(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"value": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_reader_sees_the_old_file_until_the_new_one_is_complete(tmp_path):
    path = write_text(tmp_path / "a.txt", "old")

    def write(temporary):
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent  # a rename across file systems would not be atomic
        assert temporary.suffix == path.suffix  # writers that choose a format by suffix work

    write_atomically(path, write)
    assert path.read_text() == "new"


def test_a_reader_in_the_middle_of_the_old_file_is_not_disturbed(tmp_path):
    path = write_text(tmp_path / "a.txt", "old and long")
    with path.open("rb", buffering=0) as reader:
        assert reader.read(3) == b"old"
        write_text(path, "new")
        assert reader.read() == b" and long"


def test_files_get_the_permissions_any_new_file_has(tmp_path):
    before = os.umask(0o027)
    try:
        path = write_text(tmp_path / "a.txt", "1")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_what_killed_writers_left_is_removed(tmp_path):
    """And nothing else."""

    def die(temporary):
        temporary.write_text("ha")
        temporary.rename(tmp_path / "seen" / temporary.name)  # out of reach of the one who cleans up
        raise KeyboardInterrupt

    (tmp_path / "seen").mkdir()
    for name in ("a.txt", "no-suffix"):
        with pytest.raises(KeyboardInterrupt):
            write_atomically(tmp_path / name, die)
    write_bytes(tmp_path / "seen" / "mine.txt", b"mine")
    (tmp_path / ".hidden-mine").write_text("mine")
    assert len(list((tmp_path / "seen").iterdir())) == 3
    remove_unfinished(tmp_path)
    assert [path.name for path in (tmp_path / "seen").iterdir()] == ["mine.txt"]
    assert (tmp_path / ".hidden-mine").exists()
    remove_unfinished(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), OSError("something"), PermissionError(13, "no")]
)
def test_errors_of_the_system_name_the_file(tmp_path, error):
    def write(temporary):
        raise error

    with pytest.raises(
        type(error), match=r"cannot write .*a\.txt: (No space left on device|something|no)$"
    ) as raised:
        write_atomically(tmp_path / "a.txt", write)
    assert raised.value.errno == error.errno
