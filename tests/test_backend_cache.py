"""One dLLM per process for the same arguments, another for others: never an old one, never a wrong one."""

from __future__ import annotations

import dataclasses
import gc
import os
import shutil

import numpy as np
import pytest
import torch
from llada_reference import write_checkpoint
from safetensors.torch import load_file, save_file

from dllm_gym import backends
from dllm_gym.backends import load_backend, register_backend


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch):
    monkeypatch.setattr(backends, "_loaded", {})
    monkeypatch.setattr(backends, "_factories", {})


def weight_of(backend):
    return backend.model.get_input_embeddings().weight


def test_a_directory_that_changed_is_loaded_anew(tmp_path):
    directory = write_checkpoint(tmp_path / "dllm", seed=0)
    old = load_backend(directory)
    assert load_backend(directory) is old
    kept = (directory / "model.safetensors").stat()
    tensors = load_file(directory / "model.safetensors")
    save_file({name: -tensor for name, tensor in tensors.items()}, directory / "model.safetensors")
    os.utime(directory / "model.safetensors", ns=(kept.st_atime_ns, kept.st_mtime_ns))  # as cp -p and tar do
    new = load_backend(directory)
    assert torch.equal(weight_of(new), -weight_of(old))
    assert load_backend(directory) is new
    assert len(backends._loaded) == 1  # the old one is not kept


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_every_file_counts(tmp_path, name):
    directory = write_checkpoint(tmp_path / "dllm")
    old = load_backend(directory)
    (directory / name).write_text((directory / name).read_text() + "\n")
    assert load_backend(directory) is not old


def test_a_directory_put_in_the_place_of_another_is_loaded(tmp_path):
    for seed in (0, 1):
        write_checkpoint(tmp_path / str(seed), seed=seed)
    shutil.copytree(tmp_path / "0", tmp_path / "current")
    old = load_backend(tmp_path / "current")
    shutil.rmtree(tmp_path / "current")
    shutil.copytree(tmp_path / "1", tmp_path / "current")
    new = load_backend(tmp_path / "current")
    assert torch.equal(weight_of(new), weight_of(load_backend(tmp_path / "1")))
    assert not torch.equal(weight_of(new), weight_of(old))


def test_a_relative_path_means_what_it_means_now(tmp_path, monkeypatch):
    found = []
    for seed in (0, 1):
        write_checkpoint(tmp_path / str(seed) / "dllm", seed=seed)
        monkeypatch.chdir(tmp_path / str(seed))
        found.append(load_backend("dllm"))
        assert load_backend("./dllm") is load_backend(tmp_path / str(seed) / "dllm") is found[-1]
    assert not torch.equal(*map(weight_of, found))


def test_a_name_is_its_own_directory(tmp_path):
    assert load_backend("tiny-arithmetic") is load_backend(backends.ASSETS / "tiny-arithmetic")


@dataclasses.dataclass
class Unhashable:
    number: int


@pytest.mark.parametrize(
    ("one", "same", "others"),
    [
        ({"a": [1, 2]}, {"a": [1, 2]}, [{"a": [2, 1]}, {"b": [1, 2]}]),
        (1, 1, [True, "1", 1.0, None]),
        (torch.device("cpu"), torch.device("cpu"), [torch.device("meta"), "cpu"]),
        (Unhashable(1), Unhashable(1), [Unhashable(2)]),
        ({"b": 1, "a": Unhashable(1)}, {"a": Unhashable(1), "b": 1}, [{"a": Unhashable(2), "b": 1}]),
    ],
)
def test_equal_arguments_are_the_same_and_no_others(one, same, others):
    register_backend("mine", lambda argument: object())
    first = load_backend("mine", argument=one)
    assert load_backend("mine", argument=same) is first
    assert all(load_backend("mine", argument=other) is not first for other in others)


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: torch.nn.Linear(2, 2),  # all of them print alike
        lambda seed: np.full(5000, seed),  # and so do these, in the middle
        lambda seed: lambda tokens: tokens,
        lambda seed: [torch.full((1,), float(seed))],
    ],
    ids=["module", "array", "function", "tensors"],
)
def test_objects_that_look_alike_are_not_the_same(make):
    """Nor is one that takes the place of another in memory."""
    register_backend("mine", lambda argument: (argument,))
    for seed in range(50):
        argument = make(seed)
        assert load_backend("mine", argument=argument)[0] is argument
        assert load_backend("mine", argument=argument)[0] is argument
        del argument
        gc.collect()
