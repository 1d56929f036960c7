"""Checkpoints that are not what they should be, or hostile: refused by name, nothing executed."""

from __future__ import annotations

import base64
import importlib.util
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from dream_reference import write_dream_checkpoint
from family_checkpoints import CASES
from llada_reference import PREFIX, write_checkpoint
from safetensors.torch import load_file, save_file

import dllm_gym
from dllm_gym import sharing
from dllm_gym.backends import chat, load_backend
from dllm_gym.backends.transformers_backend import TransformersBackend

DLLM = dllm_gym.backends.ASSETS / "tiny-arithmetic"


@pytest.fixture
def directory(tmp_path):
    return write_checkpoint(tmp_path / "dllm")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Adapters ---------------------------------------------------------------------------------------------------


def write_adapter(directory: Path) -> None:
    described = {"peft_type": "LORA", "base_model_name_or_path": "GSAI-ML/LLaDA-8B-Instruct", "r": 2}
    (directory / "adapter_config.json").write_text(json.dumps(described))
    weight = load_file(DLLM / "model.safetensors")[f"{PREFIX}blocks.0.q_proj.weight"]
    save_file({"base_model.model.q_proj.lora_A.weight": weight[:2]}, directory / "adapter_model.safetensors")


@pytest.mark.parametrize("has_peft", [False, True])
@pytest.mark.parametrize("alone", [False, True])
def test_an_adapter_is_neither_applied_nor_ignored(directory, has_peft, alone, monkeypatch):
    find = importlib.util.find_spec
    there = lambda name, *rest: (object() if has_peft else None) if name == "peft" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", there)
    write_adapter(directory)
    if alone:
        for name in ("config.json", "model.safetensors"):
            (directory / name).unlink()
    with pytest.raises(ValueError, match=r"dllm holds a LoRA adapter.*merge_and_unload\(\), save that by"):
        load_backend(directory)


# Weights ----------------------------------------------------------------------------------------------------


class Explosive:
    """Whoever unpickles this gets an exception."""

    def __reduce__(self):
        return exec, ("raise AssertionError('unpickled')",)


def shard(directory: Path, name: Any, outside: Path) -> None:
    """Half the tensors in a file of that name, the rest in a good one."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    save_file({key: tensors[key] for key in names[1:]}, directory / "rest.safetensors")
    outside.parent.mkdir(exist_ok=True)
    outside.write_bytes(pickle.dumps(Explosive()))
    where = dict.fromkeys(names[1:], "rest.safetensors") | {names[0]: name}
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 0}, "weight_map": where})
    )


@pytest.mark.parametrize(
    "name",
    [
        "../elsewhere/weights.bin", "{outside}", "pytorch_model.bin", "../elsewhere/weights.safetensors",
        "sub/weights.safetensors", "..\\weights.safetensors", "", ".safetensors.bin", "weights.safetensors\n",
        5, None,
    ],
)  # fmt: skip
def test_shards_are_safetensors_of_the_directory(directory, tmp_path, name):
    outside = tmp_path / "elsewhere" / "weights.bin"
    name = name.format(outside=outside) if isinstance(name, str) else name
    shard(directory, name, outside)
    with pytest.raises(ValueError, match=r"index\.json names the file .*; only \*\.safetensors beside it"):
        load_backend(directory)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": [], "metadata": {}}])
def test_an_index_that_is_none_is_named(directory, index):
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        ValueError, match=r"index\.json must hold the objects weight_map and metadata, got \["
    ):
        load_backend(directory)


@pytest.mark.parametrize("name", ["adapter_model.bin", "../other.safetensors", "x.safetensors.index.json"])
@pytest.mark.parametrize("case", ["SDAR-1.7B-Chat", "bert-base"])
def test_a_config_cannot_send_for_other_weights(tmp_path, name, case):
    directory = CASES[case].write(tmp_path / case)
    (directory / "adapter_model.bin").write_bytes(pickle.dumps(Explosive()))
    edit(directory / "config.json", transformers_weights=name)
    with pytest.raises(ValueError, match=r"has its weights in '.*', says its config\.json; only"):
        TransformersBackend(directory)


def test_what_is_there_instead_is_said(directory, tmp_path):
    for number in (100, 20):
        shutil.copytree(directory, tmp_path / "run" / f"checkpoint-{number}")
    said = r"run is no checkpoint directory: it has no config\.json; .*: checkpoint-20, checkpoint-100$"
    with pytest.raises(FileNotFoundError, match=said):
        load_backend(tmp_path / "run")
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    said = r"neither model\.safetensors nor .*; pickles are not looked at, .*: pytorch_model\.bin$"
    with pytest.raises(FileNotFoundError, match=said):
        load_backend(directory)


# Tokenizers -------------------------------------------------------------------------------------------------

WRITERS = {name: case.write for name, case in CASES.items()}
WRITERS |= {"LLaDA-8B-Instruct": write_checkpoint, "Dream-v0-Instruct-7B": write_dream_checkpoint}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("kept", ["nothing", "tokenizer_config.json"])
def test_a_checkpoint_without_tokenizer_says_so(tmp_path, name, kept):
    """Whether transformers would refuse it or make one that knows no words."""
    directory = WRITERS[name](tmp_path / name)
    for path in directory.glob("*token*"):
        if path.name != kept:
            path.unlink()
    with pytest.raises(ValueError, match=rf"{name}( has no tokenizer: no tokenizer\.json| fails: )"):
        TransformersBackend(directory)


def charsmap(content: bytes) -> dict[str, Any]:
    return {"normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(content).decode()}}


MERGES = {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"], "continuing_subword_prefix": "abcdef"}
HOSTILE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "panics while loading": charsmap(b"\xff\xff\xff\xff"),
    "panics over its merges": {"model": {"type": "BPE", "unk_token": None, **MERGES}},
    "fails while loading": {"pre_tokenizer": {"type": "Metaspace", "replacement": "too long"}},
    "panics over a prompt": charsmap(b"\x04\x00\x00\x00\x01\x00\x00\x00a"),
    "panics over any text": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
}


@pytest.mark.parametrize("name", HOSTILE_TOKENIZERS)
def test_a_tokenizer_that_panics_is_an_error_like_any_other(tmp_path, name):
    """A panic of its library is no ``Exception``."""
    shutil.copytree(DLLM, tmp_path / "tiny")
    edit(tmp_path / "tiny" / "tokenizer.json", **HOSTILE_TOKENIZERS[name])
    with pytest.raises(ValueError, match=r"tokenizer.* fails: .+"):
        TransformersBackend(tmp_path / "tiny").encode_prompt("Sam has 20 coins.")
    with pytest.raises(ValueError, match=r"tokenizer.* fails: .+"):
        sharing._check_dllm(tmp_path / "tiny")


# Chat templates ---------------------------------------------------------------------------------------------


def with_template(directory: Path, template: Any) -> TransformersBackend:
    edit(directory / "tokenizer_config.json", chat_template=template)
    return TransformersBackend(directory)


def test_of_named_templates_the_default_is_taken(directory):
    named = [
        {"name": "tool_use", "template": "Zoe"},
        {"name": "default", "template": "{{ messages[0].content }}"},
    ]
    backend = with_template(directory, named)
    assert isinstance(backend.tokenizer.chat_template, dict)
    assert backend.encode_prompt("Sam has 20") == backend.tokenizer.encode(
        "Sam has 20", add_special_tokens=False
    )


def test_without_a_default_the_names_are_said(directory):
    names = ["rag", "tool_use"]
    backend = with_template(directory, [{"name": name, "template": "Sam"} for name in names])
    said = r"has the chat templates rag, tool_use, none of them named default: set backend\.tokenizer\.chat"
    with pytest.raises(ValueError, match=said):
        backend.encode_prompt("Sam")
    backend.tokenizer.chat_template = backend.tokenizer.chat_template["rag"]
    assert backend.encode_prompt("Zoe") == backend.tokenizer.encode("Sam", add_special_tokens=False)


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% set k = i %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('only users speak') }}", "only users speak"),
        ("{{ messages[0].text.strip() }}", "has no attribute 'text'"),
        ("{% for m in messages %}{{ m.content }}", "Unexpected end of template"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        (ENDLESS, "it does not end"),
        (f"Sam {ENDLESS}", "it does not end"),
    ],
)
def test_a_template_that_fails_or_never_ends_is_an_error(directory, template, message, monkeypatch):
    monkeypatch.setattr(chat, "_MAX_LINES", 100_000)
    backend = with_template(directory, template)
    said = rf"chat template fails on \[{{'role': 'user', 'content': 'Sam has 20'}}\]: .*{message}"
    with pytest.raises(ValueError, match=said):
        backend.encode_prompt("Sam has 20")
    with pytest.raises(ValueError, match=said):
        dllm_gym.generate("Sam has 20", backend=backend)


def test_a_long_chat_ends_and_a_debugger_stays(directory):
    import sys

    backend = with_template(directory, "{% for m in messages %}{{ m.content }} {% endfor %}")
    seen: list[str] = []
    before = sys.gettrace()
    mine = lambda frame, event, argument: seen.append(event)  # noqa: E731
    sys.settrace(mine)
    try:
        ids = backend.encode_prompt([{"role": "user", "content": "Sam"}] * 5000)
        assert sys.gettrace() is mine
    finally:
        sys.settrace(before)
    assert len(ids) == 5000
