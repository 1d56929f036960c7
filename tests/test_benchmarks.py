"""The benchmark commands: that they tell right from wrong, and write down what they measured."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WRONG_ORDER = '''
import torch
from model.modeling_llada import LLaDAModelLM


def generate(model, prompt, steps, gen_length, block_length, mask_id, threshold=None, factor=None):
    """A peer of another mind: one token at a time, from the left. Returns what Fast-dLLM returns."""
    x = torch.cat([prompt, torch.full((1, gen_length), mask_id)], dim=1)
    for i in range(prompt.shape[1], x.shape[1]):
        x[0, i] = model(x).logits[0, i].argmax()
    return x, gen_length
'''


@pytest.fixture(scope="module")
def benchmark() -> Iterator[Callable[[str], Any]]:
    """Imports a benchmark by name; they are scripts beside one another, no package."""
    folder = str(Path(__file__).parents[1] / "benchmarks")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield importlib.import_module


@pytest.fixture
def peers(benchmark) -> Any:
    return benchmark("peers")


def test_a_peer_that_decodes_otherwise_is_told_apart(peers, tmp_path):
    (tmp_path / "llada").mkdir()
    (tmp_path / "llada" / "generate.py").write_text(WRONG_ORDER)
    loop = peers.load_loop(tmp_path)
    assert "model.modeling_llada" not in sys.modules
    same = peers.compare(loop, peers.Case("left-to-right:k=1", 48, 48), problems=1, rounds=1)
    other = peers.compare(loop, peers.Case("confidence:k=1", 48, 48), problems=1, rounds=0)
    assert [found["same"] for found in same["canvases"].values()] == [1, 1]
    assert [found["same"] for found in other["canvases"].values()] == [0, 0]
    assert other["canvases"]["softened"]["difference"] == 1
    assert same["canvases"]["as trained"]["forwards_per_problem"] == {"peer": 48, "ours": 48}
    assert min(same["problems_per_second"].values()) > 0
    assert "`left-to-right:k=1`" in peers.table("llada", [same, other])


def test_a_checkout_without_a_loop_is_refused(peers, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no generate\.py"):
        peers.load_loop(tmp_path)


def test_judging_where_two_decodings_part(peers):
    start, first, second = np.array([9, 9, 9]), np.array([1, 9, 9]), np.array([9, 1, 9])
    full = np.array([1, 1, 1])
    sure, close = [np.array([0.9, 0.5, 0.1])] * 2, [np.array([0.5, 0.5 + 1e-7, 0.1])] * 2
    assert peers.judge([start, first, full], [start, first, full], sure, None) == "same"
    assert peers.judge([start, first, full], [start, second, full], sure, None) == "difference"
    assert peers.judge([start, first, full], [start, second, full], close, None) == "tie"
    assert peers.judge([start, first, full], [start, first], sure, None) == "difference"
    both = np.array([1, 1, 9])
    assert peers.judge([start, first, full], [start, both, full], close, 0.5) == "tie"
    assert peers.judge([start, first, full], [start, both, full], close, 0.4) == "difference"


# A dLLM of LLaDA's shape ------------------------------------------------------------------------------------


def test_the_8b_shape_is_lladas_and_takes_no_disk(benchmark, tmp_path):
    large = benchmark("large")
    large.write_hollow_checkpoint(tmp_path, large.SHAPES["8b"])
    weights = tmp_path / "model.safetensors"
    with weights.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    status = weights.stat()
    assert status.st_size - 8 - header == 2 * 8_015_581_184  # LLaDA-8B's parameters, in bfloat16
    assert status.st_blocks * 512 < 2**20
    weights.unlink()


def test_large_measures_random_weights(benchmark, monkeypatch, tmp_path):
    large = benchmark("large")
    report = tmp_path / "large.json"
    command = [
        "large.py",
        "--shape",
        "tiny",
        "--rows",
        "2",
        "--steps",
        "2",
        "--rounds",
        "1",
        "--device",
        "cpu",
    ]
    monkeypatch.setattr("sys.argv", [*command, "--output", str(report)])
    monkeypatch.setattr(large, "BLOCKS", (32,))
    loaded = []
    load = large.load_random
    monkeypatch.setattr(large, "load_random", lambda *a, **k: loaded.append(load(*a, **k)) or loaded[0])
    large.main()
    weights = loaded[0].model.state_dict()
    assert weights["lm_head.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert weights["model.layers.1.mlp.up_proj.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert (weights["model.norm.weight"] == 1).all()
    content = json.loads(report.read_text())
    assert content["parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert [row["block_length"] for row in content["results"]] == [32]
    row = content["results"][0]
    assert row["rows_per_second"] > 0
    assert 0 < row["outside_predict"] < row["outside_forward"] < 1
    assert content["peak_memory_gib"] > 0.05
    assert content["machine"]["torch"]


def test_a_clock_counts_what_runs_inside(benchmark):
    clock = benchmark("throughput").Clock()
    double = clock.around(lambda x: time.sleep(0.01) or 2 * x)
    assert (double(2), double(3)) == (4, 6)
    assert 0.02 <= clock.seconds < 2
