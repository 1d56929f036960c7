"""RoPE as configurations say it: both forms of transformers, every family, and what cannot be computed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from dream_reference import ReferenceDream, write_dream_checkpoint
from family_checkpoints import CASES, Case
from llada_reference import ReferenceLLaDA, write_checkpoint
from padded import LENGTH
from test_families import TOLERANCE, canvases, logits_of
from torch import Tensor

from dllm_gym.backends.families import FAMILIES, family_of
from dllm_gym.backends.transformers_backend import TransformersBackend

THETA = 100.0  # of all checkpoints that the tests write
DECODERS = {name: case for name, case in CASES.items() if case.family not in ("ModernBERT-chat", "MaskedLM")}
DECODERS |= {
    "LLaDA-8B-Instruct": Case(write_checkpoint, ReferenceLLaDA, "LLaDA"),
    "Dream-v0-Instruct-7B": Case(write_dream_checkpoint, ReferenceDream, "Dream"),
}
STOCK = [name for name, case in DECODERS.items() if case.family.startswith(("A2D", "SDAR", "Fast", "Stable"))]


def change(directory: Path, **fields: Any) -> Path:
    """Gives ``config.json`` other fields; ``...`` deletes one."""
    path = directory / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    return directory


def in_the_newer_form(directory: Path, **parameters: Any) -> Path:
    config = json.loads((directory / "config.json").read_text())
    partial = config.get("partial_rotary_factor")
    moved = {} if partial is None else {"partial_rotary_factor": partial}
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"], **moved, **parameters}
    return change(
        directory, rope_theta=..., rope_scaling=..., partial_rotary_factor=..., rope_parameters=rope
    )


def test_every_decoder_is_here():
    assert {case.family for case in DECODERS.values()} == {
        family.name for family in FAMILIES if family.rotary
    }


@pytest.mark.parametrize("name", DECODERS)
def test_a_config_of_transformers_5_is_read(name, tmp_path):
    """With the theta in ``rope_parameters`` and nowhere else."""
    case = DECODERS[name]
    directory = case.write(tmp_path / name)
    reference = case.reference(change(directory, rope_theta=30.0))
    backend = TransformersBackend(in_the_newer_form(directory))
    (row,) = canvases(backend, 1)
    torch.testing.assert_close(logits_of(backend, [row])[0], reference(row)[-LENGTH:], atol=TOLERANCE, rtol=0)
    plain = case.reference(change(directory, rope_theta=THETA, partial_rotary_factor=0.5))
    assert (plain(row)[-LENGTH:] - reference(row)[-LENGTH:]).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("scaling", [{"rope_type": "default"}, {"type": "default"}, {}, None])
def test_no_scaling_in_whatever_words_is_fine(name, scaling, tmp_path):
    directory = DECODERS[name].write(tmp_path / name)
    before = translated(directory).rope_parameters
    assert translated(change(directory, rope_scaling=scaling)).rope_parameters == before
    assert before["rope_theta"] == THETA


def translated(directory: Path) -> Any:
    from dllm_gym.backends.loading import read_config

    config = read_config(directory)
    return family_of(config, str(directory)).translate(config)


# Types ------------------------------------------------------------------------------------------------------

SCALED: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "yarn with its own bounds": {"factor": 2.0, "beta_fast": 8.0, "beta_slow": 2.0, "attention_factor": 1.5},
}  # fmt: skip


def scaled(reference: Any, kind: str, said: dict[str, Any], longest: int) -> Any:
    """The reference with the frequencies of the papers in place of the plain ones.

    Linear: arXiv 2306.15595. Llama 3: ``apply_scaling`` of meta-llama/llama-models. YaRN: arXiv 2309.00071,
    equations 17 to 22, with its bounds rounded outwards as in the code.
    """
    plain = reference._frequencies

    def frequencies(size: int) -> Tensor:
        return torch.stack([one(float(f), at, size) for at, f in enumerate(plain(size))])

    def one(frequency: float, at: int, size: int) -> Tensor:
        length = said.get("original_max_position_embeddings", longest)
        turns = length * frequency / (2 * math.pi)  # within the original context
        slow = frequency / said["factor"]
        if kind == "linear":
            share = 0.0
        elif kind == "llama3":
            low, high = said["low_freq_factor"], said["high_freq_factor"]
            share = (turns - low) / (high - low)
        else:

            def place(rotations: float) -> float:
                return size * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(THETA))

            first = max(math.floor(place(said.get("beta_fast", 32))), 0)
            last = min(math.ceil(place(said.get("beta_slow", 1))), size - 1)
            share = 1 - (at - first) / (last - first)
        share = min(max(share, 0.0), 1.0)
        return torch.tensor(share * frequency + (1 - share) * slow, dtype=torch.float64)

    reference._frequencies = frequencies
    if kind == "yarn":
        turn, factor = reference._rotate, said.get("attention_factor", 0.1 * math.log(said["factor"]) + 1)
        reference._rotate = lambda x: turn(x) * factor
    return reference


@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize("form", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("what", SCALED)
def test_scaled_rope_is_computed_as_its_paper_says(name, form, what, tmp_path):
    case, said, kind = DECODERS[name], SCALED[what], what.split()[0]
    directory = case.write(tmp_path / name)
    plain = case.reference(directory)
    reference = scaled(case.reference(directory), kind, said, longest=256)
    if form == "rope_parameters":
        in_the_newer_form(directory, **said, rope_type=kind)
    else:
        change(directory, rope_parameters=..., rope_scaling={"type": kind, **said})
    backend = TransformersBackend(directory)
    (row,) = canvases(backend, 1)
    expected = reference(row)[-LENGTH:]
    torch.testing.assert_close(logits_of(backend, [row])[0], expected, atol=TOLERANCE, rtol=0)
    assert (plain(row)[-LENGTH:] - expected).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("form", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, kind) for name in DECODERS for kind in ("dynamic", "longrope", "su")),
        *((name, kind) for name in DECODERS if name not in STOCK for kind in ("linear", "yarn")),
    ],
)
def test_a_type_that_cannot_be_computed_is_refused_by_name(name, form, kind, tmp_path):
    directory = DECODERS[name].write(tmp_path / name)
    change(directory, **{"rope_parameters": ..., form: {"rope_type": kind, "factor": 4.0}})
    with pytest.raises(ValueError, match=f"RoPE of type '{kind}', {form}=.*; only default.* is supported"):
        TransformersBackend(directory)


@pytest.mark.parametrize("form", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_encoders_do_not_scale_by_the_longest_of_a_batch_either(form, kind, tmp_path):
    name = "ModernBERT-base-chat-v0.1"
    directory = CASES[name].write(tmp_path / name)
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 64}
    rope = {"rope_type": kind, "factor": 2.0, **(factors if kind == "longrope" else {})}
    layers = {"full_attention": rope, "sliding_attention": {"rope_type": "default"}}
    change(directory, **{form: rope if form == "rope_scaling" else layers})
    with pytest.raises(ValueError, match=f"modernbert config has RoPE of type '{kind}'"):
        TransformersBackend(directory)


# Contradictions and gaps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECODERS)
def test_two_thetas_are_refused(name, tmp_path):
    directory = DECODERS[name].write(tmp_path / name)
    change(directory, rope_parameters={"rope_type": "default", "rope_theta": 2 * THETA})
    said = "contradicts itself about rope_theta: 100.0 and, in rope_parameters, 200.0"
    with pytest.raises(ValueError, match=said):
        TransformersBackend(directory)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "contradicts itself about rope_type: 'default' and, in rope_scaling, 'linear'",
        ),
        ({"rope_scaling": {"type": "linear"}}, r"config\.json lacks the field 'factor'"),
        ({"rope_scaling": {"type": "linear", "factor": "4"}}, "factor='4'; only a number above 0"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor=0; only a number above 0"),
        ({"rope_theta": True}, "rope_theta=True; only a number above 0"),
        ({"rope_theta": None}, "rope_theta=None; only a number above 0"),
        ({"rope_scaling": {"factor": 4.0}}, "of type 'default' with factor=4.0; only rope_theta are"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "of type 'default' with full_attention={'rope_type': 'default'}; only",
        ),
        ({"rope_scaling": "linear"}, "rope_scaling='linear'; only an object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor; only 1 is supported"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor; only 1 is supported"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(fields, message, tmp_path):
    directory = change(CASES["SDAR-1.7B-Chat"].write(tmp_path / "sdar"), **fields)
    with pytest.raises(ValueError, match=message):
        TransformersBackend(directory)


# What says nothing about the function, or has one meaning where it is absent.
NOT_NEEDED = {
    "architectures", "attention_dropout", "auto_map", "bd_size", "block_size", "bos_token_id", "eos_token_id",
    "fuse_cross_entropy", "initializer_range", "mask_token_id", "max_position_embeddings",
    "max_window_layers", "mlp_only_layers", "model_type", "moe_layer_freq", "n_kv_heads",
    "num_key_value_heads", "pad_token_id", "rope_scaling", "router_aux_loss_coef", "sliding_window",
    "tie_word_embeddings", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip


@pytest.mark.parametrize("name", DECODERS)
def test_a_missing_field_is_named_with_its_file(name, tmp_path):
    """Sizes and the like: nothing is taken from another model, and nothing ends in a ``KeyError``."""
    directory = DECODERS[name].write(tmp_path / name)
    config = json.loads((directory / "config.json").read_text())
    config.pop("rope_parameters", None)
    complete, named = vars(translated(change(directory, rope_parameters=...))), set()
    for field in config:
        change(directory, **{**config, field: ...})
        lacks = f"{directory / 'config.json'} lacks the field {field!r}"
        try:
            assert vars(translated(directory)) == complete or field in NOT_NEEDED
        except ValueError as error:
            named.add(field)
            if lacks not in str(error) and "is no supported dLLM" not in str(error):
                raise
    assert {"rope_theta", "rms_norm_eps"} <= named
