"""Damaged and hostile files: what ``benchmarks/fuzz.py`` found is replayed, and a little more is tried."""

from __future__ import annotations

import json
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from benchmarks.fuzz import LOADERS
from dllm_agents import load_policy, save_policy
from dllm_agents.config import Dumper, load_config
from dllm_agents.networks import UnmaskTransformer, UnmaskTransformerConfig
from dllm_gym.evaluation import EvaluationResult, Recording
from dllm_gym.files import parse_json
from dllm_gym.tasks.data import read_rows

ERRORS = (ValueError, OSError)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: tmp_path_factory.mktemp(name) for name in LOADERS}


@pytest.mark.parametrize("name", LOADERS)
def test_what_is_good_is_read(folders, name):
    loader = LOADERS[name]
    for at, content in enumerate(loader.good(folders[name])):
        if name != "policy" or at < 2:  # the third has no weights beyond those its shape is told by
            loader.reads[at](folders[name], content)


# Found by the fuzzer: the loader, and what its first byte chooses the kind of.
FOUND: dict[str, tuple[str, bytes]] = {
    "a zip file that spans several disks": (
        "result",
        b"\x01PK\x03\x04" + b"PK\x06\x07" + struct.pack("<LQL", 1, 0, 9) + b"PK\x05\x06" + b"\0" * 18,
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_stays_mended(folders, name):
    loader, data = FOUND[name]
    LOADERS[loader](folders[loader], data)


def lzma_recording(path: Path) -> Path:
    """A recording packed with LZMA whose filter properties are impossible: found by the fuzzer, too."""
    whole = np.ones((2, 3), dtype=np.int64)
    good = Recording("agent", whole, whole, whole[:, 0], whole[:, 0], whole[:, 0], 3)
    with (
        zipfile.ZipFile(good.save(path.with_name("good.npz"))) as file,
        zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as packed,
    ):
        for name in file.namelist():
            packed.writestr(name, file.read(name))
    content = bytearray(path.read_bytes())
    first = 30 + struct.unpack("<H", content[26:28])[0]
    content[first + 4] = 0xFF  # of the properties: (pb * 5 + lp) * 9 + lc
    path.write_bytes(bytes(content))
    return path


def test_impossible_compression_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match="holds no recording of episodes"):
        Recording.load(lzma_recording(tmp_path / "packed.npz"))


@st.composite
def damaged(draw: Any, seeds: list[bytes]) -> bytes:
    """A good file with some bytes changed, cut out, repeated, or exchanged for ones with a meaning."""
    data = bytearray(draw(st.sampled_from(seeds)))
    special = [
        b"\xff" * 8,
        b"\0" * 8,
        b"9" * 40,
        b"-1",
        b"NaN",
        b"1e999",
        b"null",
        b"{",
        b"[" * 50,
        b"\n",
        b"*a",
    ]
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(1, len(data)))
        size = draw(st.integers(0, 12))
        new = draw(
            st.sampled_from(special) | st.binary(max_size=8) | st.just(bytes(data[at : at + size]) * 3)
        )
        data[at : at + size] = new
    return bytes(data)


@pytest.mark.parametrize("name", LOADERS)
def test_damage_is_a_value_error_or_no_damage(folders, name):
    loader, folder = LOADERS[name], folders[name]

    @settings(max_examples=150, database=None, suppress_health_check=list(HealthCheck))
    @given(damaged(loader.seeds(folder)))
    def try_it(data: bytes) -> None:
        started = time.process_time()
        loader(folder, data)  # lets nothing but ValueError and OSError pass
        assert time.process_time() - started < 10

    try_it()


# Bombs: little to store, much to unfold --------------------------------------------------------------------


def refused(read: Any, match: str, megabytes: float = 30.0) -> None:
    """It is refused, at once, and without taking memory for what it claims."""
    started = time.process_time()
    with pytest.raises(ERRORS, match=match):
        read()
    assert time.process_time() - started < 10
    tracemalloc.start()
    try:
        with pytest.raises(ERRORS):
            read()
        peak = tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()
    assert peak < megabytes


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

CONFIGS = {
    "aliases that unfold": (LAUGHS, "aliases are not accepted"),
    "an alias to itself": ("env: &a {task: *a}\n", "aliases are not accepted"),
    "nesting": ("env: " + "[" * 1_000, "is not YAML"),
    "nesting by blocks": ("".join(" " * i + "a:\n" for i in range(300)), "is not YAML|unknown"),
    "a large file": ("# " + "x" * 100_000, "is no configuration: it has more than 65536 bytes"),
    "a key twice": ("seed: 1\nseed: 2\n", "key 'seed' is there twice"),
    "a key twice inside": ("env: {alpha: 1, alpha: 2}\n", "key 'alpha' is there twice"),
    "a huge number": ("seed: " + "9" * 5000, "is not YAML"),
    "no date": ("seed: 2026-13-13\n", "is not YAML"),
    "no number": ('seed: !!int ""\n', "is not YAML"),
    "no truth": ("seed: !!bool perhaps\n", "is not YAML"),
    "keys of all kinds": ("1: a\nb: 2\nnull: 3\n", r"unknown configuration fields \[1, 'b', None\]"),
    "a list as a key": ("? [1, 2]\n: 3\n", "is not YAML"),
    "infinity": ("learning_rate: .inf\n", "learning_rate must lie in"),
    "no UTF-8": (b"seed: \xff\xfe\n", "is not YAML"),
    "an expert that is none": ("expert: {a: 1}\n", "expert must be a text"),
}


@pytest.mark.parametrize(("text", "message"), CONFIGS.values(), ids=CONFIGS)
def test_configurations(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    refused(lambda: load_config(path), message)


def test_what_is_there_twice_is_written_twice():
    import yaml

    same = [1, 2]
    assert "&" not in yaml.dump({"a": same, "b": same}, Dumper=Dumper)


JSON = {
    "nesting": ("[" * 100_000, "maximum recursion"),
    "nesting of objects": ('{"a":' * 100_000, "maximum recursion"),
    "a key twice": ('{"a": 1, "b": {"c": 1, "c": 2}}', "key 'c' is there twice"),
    "a huge number": ("9" * 5000, "digits"),
    "half": ('{"a": [1, 2', "Expecting"),
    "nothing": ("", "Expecting value"),
    "no UTF-8": (b"\xff\xfe\xff", "decode|Expecting"),
}


@pytest.mark.parametrize(("text", "message"), JSON.values(), ids=JSON)
def test_json(text, message):
    refused(lambda: parse_json(text, "file.json"), rf"file\.json is not JSON: .*{message}")


# Policies ---------------------------------------------------------------------------------------------------


@pytest.fixture
def policy(tmp_path):
    return save_policy(tmp_path / "policy", UnmaskTransformer(UnmaskTransformerConfig(width=8, heads=1)))


def with_header(header: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


WEIGHTS = {
    "nothing": b"",
    "a header longer than the file": struct.pack("<Q", 2**63) + b"{}",
    "the longest header": b"\xff" * 8 + b"{}",
    "no header": struct.pack("<Q", 0),
    "a huge size claimed": with_header({"a": tensor("F32", [2**40], 0, 2**42)}),
    "a size beyond all": with_header({"a": tensor("F32", [2**32, 2**32], 0, 4)}, b"\0" * 4),
    "a shape that is not that of the data": with_header({"a": tensor("F32", [3], 0, 4)}, b"\0" * 4),
    "an unknown kind": with_header({"a": tensor("F31", [1], 0, 4)}, b"\0" * 4),
    "a kind torch may lack": with_header({"a": tensor("F8_E8M0", [4], 0, 4)}, b"\0" * 4),
    "data between": with_header({"a": tensor("U8", [1], 2, 3)}, b"\0" * 4),
    "another tensor": with_header({"a": tensor("F32", [1], 0, 4)}, b"\0" * 4),
    "a pickle": pickle.dumps({"a": 1}),
}


@pytest.mark.parametrize("content", WEIGHTS.values(), ids=WEIGHTS)
def test_weights(policy, content):
    (policy / "policy.safetensors").write_bytes(content)
    refused(lambda: load_policy(policy), "safetensors|does not fit the network")


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_weights_that_are_no_floats(policy, dtype):
    path = policy / "policy.safetensors"
    tensors = load_file(path)
    tensors["output_proj.bias"] = tensors["output_proj.bias"].to(dtype)
    path.write_bytes(save(tensors))
    refused(lambda: load_policy(policy), r"'output_proj.bias' is of torch\.\w+, accepted are torch.float32")


SIZES: dict[str, dict[str, Any]] = {
    "wide": {"width": 2**40},
    "wider than numbers go": {"width": 2**80},
    "deep": {"layers": 10**9},
    "many features": {"features": ["top_k"], "top_k": 2**50},
    "a wide MLP": {"mlp_width": 2**62},
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_a_network_is_not_built_because_a_file_claims_it(policy, sizes):
    path = policy / "policy.json"
    description = json.loads(path.read_text())
    description["network"] |= sizes
    path.write_text(json.dumps(description))
    refused(lambda: load_policy(policy), "impossible size|layers, the weights|does not fit|has shape")


FIELDS: dict[str, dict[str, Any]] = {
    "a bias that is no number": {"initial_bias": "x"},
    "a bias that is not finite": {"initial_bias": float("nan")},
    "a period that is not finite": {"time_period": float("inf")},
    "a period that is no number": {"time_period": []},
    "a flag that is none": {"round_time": "no"},
    "a feature that is none": {"features": [["mask"]]},
    "features that are none": {"features": 3},
}


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_descriptions(policy, fields):
    path = policy / "policy.json"
    description = json.loads(path.read_text())
    description["network"] |= fields
    path.write_text(json.dumps(description))
    refused(lambda: load_policy(policy), r"policy\.json: ")


@pytest.mark.parametrize("ends", [[10**400, 1], [float("nan"), 2], ["a", 2], None])
def test_ranges_that_are_none_do_not_count(tmp_path, ends):
    network = UnmaskTransformer(UnmaskTransformerConfig(width=8, heads=1))
    directory = save_policy(tmp_path, network, {"config": {"env": {"alpha": "@"}}})
    path = directory / "policy.json"
    path.write_text(path.read_text().replace('"@"', json.dumps(ends)))
    load_policy(directory)


def test_a_released_policy_of_impossible_width(tmp_path):
    """Its sizes are those of small tensors; the network they describe has terabytes."""
    width = 2**20
    block = "transformer_blocks.0."
    tensors = {
        "confidence_proj.weight": torch.zeros(width, 1),
        f"{block}linear1.weight": torch.zeros(4, 1),
        f"{block}inv_freq": 10000.0 ** (-torch.arange(0, 4, 2) / 4),
    }
    (tmp_path / "model.safetensors").write_bytes(save(tensors))
    refused(lambda: load_policy(tmp_path, format="ml-rl-dllm"), "does not fit the network")


# Task data --------------------------------------------------------------------------------------------------

NOWHERE: Any = {"hub": "owner/name", "hub_split": "test"}


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_line_without_end(tmp_path, monkeypatch, kind):
    """As a few kilobytes of gzip may hold."""
    import gzip

    monkeypatch.setattr("dllm_gym.tasks.data._LONGEST_LINE", 2**16)
    path = tmp_path / f"rows.{kind}.gz"
    path.write_bytes(gzip.compress(b"0" * 2**26, 1))
    refused(lambda: read_rows("t", path, dict, **NOWHERE), "has a line of more than 65536 characters", 5.0)


def test_a_document_without_end(tmp_path, monkeypatch):
    import gzip

    monkeypatch.setattr("dllm_gym.tasks.data._LARGEST_DOCUMENT", 2**16)
    path = tmp_path / "rows.json.gz"
    path.write_bytes(gzip.compress(b"[" + b" " * 2**26, 1))
    refused(lambda: read_rows("t", path, dict, **NOWHERE), "is longer than 65536 characters", 5.0)


def test_more_rows_than_any_benchmark_has(tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    monkeypatch.setattr("dllm_gym.tasks.data._MOST_ROWS", 1000)
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"a": pyarrow.nulls(1001)}), path)
    refused(lambda: read_rows("t", path, dict, **NOWHERE), "it claims 1001 rows; at most 1000 are read")


# Results ----------------------------------------------------------------------------------------------------


class Explosive:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_nothing_in_any_file_is_executed(tmp_path, policy):
    target = tmp_path / "executed"
    bomb = pickle.dumps(Explosive(target))
    array = np.array([Explosive(target)], dtype=object)
    np.savez(tmp_path / "bomb.npz", reveal_step=array, label=array)
    (tmp_path / "bomb").write_bytes(bomb)
    (policy / "policy.json").write_bytes(bomb)
    from dllm_gym.files import read_state

    torch.save({"policy": Explosive(target)}, tmp_path / "bomb.pt")
    reads: list[Any] = [
        lambda: Recording.load(tmp_path / "bomb.npz"),
        lambda: EvaluationResult.load(tmp_path / "bomb"),
        lambda: load_policy(policy),
        lambda: load_config(tmp_path / "bomb"),
        lambda: read_state(tmp_path / "bomb.pt", ()),
        lambda: read_state(tmp_path / "bomb", ()),
    ]
    for read in reads:
        with pytest.raises(ERRORS):
            read()
    assert not target.exists()


def test_a_recording_that_claims_terabytes(tmp_path):
    whole = np.ones((2, 3), dtype=np.int64)
    good = Recording("agent", whole, whole, whole[:, 0], whole[:, 0], whole[:, 0], 3).save(
        tmp_path / "good.npz"
    )
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(good) as file, zipfile.ZipFile(path, "w") as changed:
        for name in file.namelist():
            content = file.read(name)
            if name == "reveal_step.npy":
                content = content.replace(b"(2, 3), }" + b" " * 20, b"(2000000, 3000000), }" + b" " * 8, 1)
                assert len(content) == len(file.read(name))
                assert b"3000000" in content
            changed.writestr(name, content)
    refused(lambda: Recording.load(path), "holds no recording of episodes", 10**9)
