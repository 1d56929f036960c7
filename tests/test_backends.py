"""Backends: the loaded model against an independent one, and everything that must be refused at the door."""

from __future__ import annotations

import copy
import json
import pickle
import re
import socket
import sys
from functools import partial

import numpy as np
import padded
import pytest
import torch
from dream_reference import ReferenceDream, write_dream_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from llada_reference import PREFIX, ReferenceLLaDA, write_checkpoint
from padded import LENGTH, left_padded
from safetensors.torch import load_file, save_file

import dllm_gym
from dllm_gym import backends
from dllm_gym.backends import backend_names, embedded_names, load_backend, register_backend
from dllm_gym.backends.base import Backend, predict_from_logits
from dllm_gym.backends.families import family_named, family_of
from dllm_gym.backends.llada import KEY_MAPPING, to_llada_names
from dllm_gym.backends.transformers_backend import TransformersBackend
from dllm_gym.backends.word_tokenizer import build_tokenizer, save_tokenizer
from dllm_gym.tasks import load_task
from dllm_gym.trained import trained_tasks

WRITERS = {"llada": write_checkpoint, "dream": write_dream_checkpoint}
REFERENCES = {"llada": ReferenceLLaDA, "dream": ReferenceDream}
PROMPT = "Sam has 20 coins, finds 4, triples them. Total?"
LONG_PROMPT = "Zoe has 7 cards, wins 50, halves them, spends 3, doubles them. Total?"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=list(WRITERS))
def layout(request):
    return request.param


@pytest.fixture(scope="module")
def special(layout):
    return family_named(layout).special_tokens


@pytest.fixture(scope="module")
def checkpoint(layout, tmp_path_factory):
    return WRITERS[layout](tmp_path_factory.mktemp(layout))


@pytest.fixture(scope="module")
def reference(layout, checkpoint):
    return REFERENCES[layout](checkpoint)


@pytest.fixture(scope="module")
def backend(checkpoint):
    return load_backend(checkpoint)


@pytest.fixture
def broken(tmp_path):
    """A LLaDA checkpoint to be tampered with."""
    return write_checkpoint(tmp_path / "broken")


@pytest.fixture
def broken_dream(tmp_path):
    """A Dream checkpoint to be tampered with."""
    return write_dream_checkpoint(tmp_path / "broken")


def edit_config(directory, **changes):
    path = directory / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def edit_tensors(directory, edit):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


canvases = partial(padded.canvases, prompts=(PROMPT, LONG_PROMPT))


def predict(backend, rows, extra=0, positions=slice(-LENGTH, None), **kwargs):
    return backend.predict(*left_padded(backend, rows, extra), positions, **kwargs)


def assert_same(one, other, tolerance=1e-5):
    assert torch.equal(one.tokens, other.tokens)
    torch.testing.assert_close(one.confidence, other.confidence, atol=tolerance, rtol=0)
    assert one.statistics.keys() == other.statistics.keys()
    for name, values in one.statistics.items():
        torch.testing.assert_close(values, other.statistics[name], atol=tolerance, rtol=0)


# The model -------------------------------------------------------------------------------------------------


def about_their_own_tokens(layout, logits):
    """What the publisher's sampler makes of the logits ``(T, V)`` of one sequence."""
    return torch.cat([logits[:1], logits[:-1]]) if layout == "dream" else logits


@pytest.mark.parametrize("kv_heads", [2, 1])
def test_logits_are_those_of_the_reference(tmp_path, layout, kv_heads):
    directory = WRITERS[layout](tmp_path, seed=3, kv_heads=kv_heads)
    reference, backend = REFERENCES[layout](directory), TransformersBackend(directory)
    rows = canvases(backend, 3)
    for row in rows:
        logits = about_their_own_tokens(layout, backend.model(input_ids=torch.tensor([row])).logits[0])
        assert logits.std() > 1  # so that 1e-5 says something
        torch.testing.assert_close(logits, reference(row), atol=1e-5, rtol=1e-5)
    tokens, mask = left_padded(backend, rows, extra=4)
    padded = backend.model(input_ids=tokens, attention_mask=mask).logits
    for at, row in enumerate(rows):
        logits = about_their_own_tokens(layout, padded[at, -len(row) :])
        torch.testing.assert_close(logits, reference(row), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", embedded_names())
def test_the_embedded_models_have_the_published_layouts(name):
    layout = "dream" if name.endswith("-dream") else "llada"
    backend, reference = load_backend(name), REFERENCES[layout](backends.ASSETS / name)
    (task, *_) = trained_tasks(name)
    rows = canvases(backend, 2, prompts=[task.problem(at).prompt for at in range(2)])
    tokens, mask = left_padded(backend, rows)
    padded = backend.model(input_ids=tokens, attention_mask=mask).logits
    for at, row in enumerate(rows):
        logits = about_their_own_tokens(layout, padded[at, -len(row) :])
        torch.testing.assert_close(logits, reference(row), atol=1e-4, rtol=1e-4)


def test_predictions_are_those_of_the_reference(reference, backend):
    rows, mask_id = canvases(backend, 4), backend.mask_token_id
    prediction = predict(backend, rows, statistics=("entropy", "margin", "top_k", "hidden"), top_k=5)
    assert prediction.statistics["hidden"].shape == (4, LENGTH, backend.hidden_width)
    for at, row in enumerate(rows):
        logits = reference(row)[-LENGTH:].double()
        kept = [token for token in range(backend.vocab_size) if token != mask_id]
        p = torch.zeros_like(logits)
        p[:, kept] = torch.softmax(logits[:, kept], dim=-1)
        descending = p.sort(dim=-1, descending=True).values
        assert torch.equal(prediction.tokens[at], p.argmax(-1))
        entropy = -(p * torch.where(p > 0, p, 1.0).log()).sum(-1)
        for found, expected in (
            (prediction.confidence[at], descending[:, 0]),
            (prediction.statistics["entropy"][at], entropy),
            (prediction.statistics["margin"][at], descending[:, 0] - descending[:, 1]),
            (prediction.statistics["top_k"][at], descending[:, :5]),
            (prediction.statistics["hidden"][at], reference.hidden(row)[-LENGTH:].double()),
        ):
            torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    assert prediction.tokens.dtype == torch.int64
    assert prediction.confidence.dtype == torch.float32
    assert {values.dtype for values in prediction.statistics.values()} == {torch.float32}


def test_a_sequence_without_prompt_is_predicted_from_its_first_token_on(reference, backend):
    """Beside others and under padding; with shifted logits nothing stands before that token."""
    with_prompt = canvases(backend, 2)
    rows = [with_prompt[0], with_prompt[1][-LENGTH:], with_prompt[0][-LENGTH - 1 :]]
    prediction = predict(backend, rows, extra=3, statistics=("hidden",))
    for at, row in enumerate(rows):
        expected = reference.hidden(row)[-LENGTH:]
        torch.testing.assert_close(prediction.statistics["hidden"][at], expected, atol=1e-5, rtol=1e-5)


def test_only_what_is_asked_for_is_computed(backend):
    rows = canvases(backend, 2)
    assert predict(backend, rows).statistics == {}
    assert set(predict(backend, rows, statistics=("margin",)).statistics) == {"margin"}
    assert not predict(backend, rows).confidence.requires_grad
    assert not any(parameter.requires_grad for parameter in backend.model.parameters())
    assert not backend.model.training


def test_positions_are_a_slice_or_indices(backend):
    rows = canvases(backend, 3)
    everything = predict(backend, rows, statistics=("top_k", "hidden"))
    columns = torch.tensor([-1, -LENGTH, -5])
    some = predict(backend, rows, positions=columns, statistics=("top_k", "hidden"))
    assert torch.equal(some.tokens, everything.tokens[:, columns])
    for name in ("top_k", "hidden"):
        torch.testing.assert_close(some.statistics[name], everything.statistics[name][:, columns])


@pytest.mark.parametrize("attention", [None, "sdpa"])
def test_attention_goes_both_ways(checkpoint, attention):
    backend = load_backend(checkpoint, attn_implementation=attention)
    row = canvases(backend, 1)[0]
    changed = [*row[:-1], row[-1] - 1 if row[-1] > 5 else row[-1] + 1]
    for mask in (None, torch.ones(2, len(row), dtype=torch.int64)):
        logits = backend.model(input_ids=torch.tensor([row, changed]), attention_mask=mask).logits
        moved = (logits[0] - logits[1]).abs().amax(-1)
        assert (moved > 1e-4).all()


@pytest.mark.parametrize("attention", [None, "sdpa"])
def test_a_row_depends_neither_on_its_neighbours_nor_on_padding(checkpoint, attention):
    backend = load_backend(checkpoint, attn_implementation=attention)
    rows, statistics = canvases(backend, 5), ("entropy", "margin", "top_k", "hidden")
    together = predict(backend, rows, statistics=statistics)
    further_padded = predict(backend, rows, extra=9, statistics=statistics)
    assert_same(together, further_padded)
    reversed_rows = predict(backend, rows[::-1], statistics=statistics)
    for at, row in enumerate(rows):
        alone = predict(backend, [row], statistics=statistics)
        for batch, index in ((together, at), (reversed_rows, len(rows) - 1 - at)):
            assert torch.equal(batch.tokens[index], alone.tokens[0])
            torch.testing.assert_close(batch.confidence[index], alone.confidence[0], atol=1e-5, rtol=0)
            for name in statistics:
                torch.testing.assert_close(
                    batch.statistics[name][index], alone.statistics[name][0], atol=1e-5, rtol=0
                )


def test_what_stands_under_the_padding_does_not_matter(backend):
    rows = canvases(backend, 2)
    tokens, mask = left_padded(backend, rows, extra=3)
    before = backend.predict(tokens, mask, slice(-LENGTH, None))
    after = backend.predict(torch.where(mask == 1, tokens, 7), mask, slice(-LENGTH, None))
    assert_same(before, after)


def test_too_long_a_canvas_is_refused(backend):
    tokens = torch.full((1, 257), 5)
    with pytest.raises(ValueError, match="take 257 tokens; this dLLM has 256"):
        backend.predict(tokens, torch.ones_like(tokens), slice(-LENGTH, None))


# From logits to predictions --------------------------------------------------------------------------------


def random_logits(rows=3, positions=6, vocabulary=10, scale=2.0, seed=0):
    return scale * torch.randn(rows, positions, vocabulary, generator=torch.Generator().manual_seed(seed))


def generators(count, first=0):
    return [torch.Generator().manual_seed(first + at) for at in range(count)]


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
def test_the_mask_token_is_never_written(temperature):
    logits = random_logits(rows=40)
    logits[..., 7] = 1e4
    prediction = predict_from_logits(
        logits,
        7,
        statistics=("entropy", "margin", "top_k"),
        temperature=temperature,
        generators=generators(40),
        top_k=9,
    )
    assert (prediction.tokens != 7).all()
    without = torch.cat([logits[..., :7], logits[..., 8:]], dim=-1).softmax(-1)
    renumbered = prediction.tokens - (prediction.tokens > 7).long()
    expected = without.gather(-1, renumbered[..., None])[..., 0]
    torch.testing.assert_close(prediction.confidence, expected)
    torch.testing.assert_close(prediction.statistics["top_k"], without.sort(-1, descending=True).values)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_raise(bad, temperature):
    logits = random_logits()
    logits[1, 2, 3] = bad
    with pytest.raises(ValueError, match=r"NaN or infinite logits in rows \[1\]"):
        predict_from_logits(logits, 9, temperature=temperature, generators=generators(3))
    with pytest.raises(ValueError, match=r"rows \[0\]"):
        predict_from_logits(torch.full((1, 1, 10), -torch.inf), 9)


def test_a_model_that_overflows_raises(broken):
    edit_tensors(broken, lambda tensors: tensors[PREFIX + "ln_f.weight"].fill_(torch.nan))
    backend = TransformersBackend(broken)
    with pytest.raises(ValueError, match="NaN or infinite"):
        predict(backend, canvases(backend, 1))


def test_impossible_tokens_are_fine():
    logits = random_logits()
    logits[..., :4] = -torch.inf
    prediction = predict_from_logits(logits, 9, statistics=("entropy", "top_k"), top_k=10)
    assert (prediction.tokens >= 4).all()
    assert torch.isfinite(prediction.statistics["entropy"]).all()
    assert (prediction.statistics["top_k"][..., 5:] == 0).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_drawn_tokens_follow_the_tempered_distribution(temperature):
    draws = 20_000
    logits = random_logits(1, 1, 6, scale=1.0, seed=4)
    prediction = predict_from_logits(
        logits.expand(1, draws, 6), 5, temperature=temperature, generators=generators(1, 11)
    )
    expected = torch.softmax(logits[0, 0, :5].double() / temperature, dim=-1) * draws
    counts = torch.bincount(prediction.tokens[0], minlength=6).double()
    assert counts[5] == 0
    chi_square = ((counts[:5] - expected) ** 2 / expected).sum()
    assert chi_square < 18.5  # 0.1 % of fair draws exceed it, with 4 degrees of freedom
    p = torch.softmax(logits[0, 0, :5], dim=-1)
    torch.testing.assert_close(prediction.confidence[0], p[prediction.tokens[0]])


def test_noise_leaves_the_statistics_alone():
    logits = random_logits()
    still = predict_from_logits(logits, 9, statistics=("entropy", "margin", "top_k"))
    noisy = predict_from_logits(
        logits, 9, statistics=("entropy", "margin", "top_k"), temperature=3.0, generators=generators(3)
    )
    assert not torch.equal(still.tokens, noisy.tokens)
    for name, values in still.statistics.items():
        assert torch.equal(values, noisy.statistics[name])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_large_vocabulary_is_looked_at_piece_by_piece(temperature):
    """With 126,464 tokens, as LLaDA has, 80 positions are more than are measured together."""
    logits = random_logits(2, 40, 126_464)
    options = {"statistics": ("entropy", "margin", "top_k"), "top_k": 4, "temperature": temperature}
    together = predict_from_logits(logits, 9, generators=generators(2), **options)
    for row in range(2):
        alone = predict_from_logits(logits[row, None], 9, generators=generators(1, row), **options)
        assert torch.equal(alone.tokens[0], together.tokens[row])
        torch.testing.assert_close(alone.confidence[0], together.confidence[row])
        for name, values in alone.statistics.items():
            torch.testing.assert_close(values[0], together.statistics[name][row])
    p = logits[1].double().softmax(-1)
    expected = p.gather(-1, together.tokens[1, :, None])[:, 0].float()
    torch.testing.assert_close(together.confidence[1], expected)
    logits[1, 39, 5] = torch.nan
    with pytest.raises(ValueError, match=r"NaN or infinite logits in rows \[1\]"):
        predict_from_logits(logits, 9)


def test_every_row_draws_from_its_own_generator(backend):
    rows = canvases(backend, 4)
    together = predict(backend, rows, temperature=2.0, generators=generators(4))
    assert_same(together, predict(backend, rows, temperature=2.0, generators=generators(4)))
    assert not torch.equal(
        together.tokens, predict(backend, rows, temperature=2.0, generators=generators(4, 50)).tokens
    )
    for at, row in enumerate(rows):
        alone = predict(backend, [row], temperature=2.0, generators=generators(1, at))
        assert torch.equal(alone.tokens[0], together.tokens[at])


def test_a_small_temperature_is_close_to_none():
    logits = random_logits(rows=20)
    drawn = predict_from_logits(logits, 9, temperature=1e-4, generators=generators(20))
    assert_same(predict_from_logits(logits, 9), drawn)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"statistics": ("entropy", "variance")},
            r"unknown statistics \['variance'\]; known: entropy, margin",
        ),
        ({"temperature": -0.5}, "temperature must not be negative, got -0.5"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1.0}, "one generator for each of 3 rows"),
        ({"temperature": 1.0, "generators": generators(2)}, "one generator for each of 3 rows"),
        ({"statistics": ("top_k",), "top_k": 11}, "top_k must be 1 to 10, .* got 11"),
        ({"statistics": ("top_k",), "top_k": 0}, "top_k must be 1 to 10, .* got 0"),
        ({"statistics": ("hidden",)}, "this backend does not give it"),
        ({"statistics": ("written",)}, "this backend gives no standing tokens"),
    ],
)
def test_bad_arguments_speak(kwargs, message):
    with pytest.raises(ValueError, match=message):
        predict_from_logits(random_logits(), 9, **kwargs)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.01, 1.0, 30.0, 1000.0]))
def test_probabilities_stay_within_their_bounds(seed, scale):
    prediction = predict_from_logits(
        random_logits(scale=scale, seed=seed), 9, statistics=("entropy", "margin", "top_k"), top_k=4
    )
    for values in (prediction.confidence, prediction.statistics["margin"], prediction.statistics["top_k"]):
        assert ((values >= 0) & (values <= 1)).all()
    top = prediction.statistics["top_k"]
    assert torch.equal(top[..., 0], prediction.confidence)
    assert (top[..., :-1] >= top[..., 1:]).all()
    assert (prediction.statistics["entropy"] >= 0).all()
    assert (prediction.statistics["entropy"] <= np.log(9) + 1e-4).all()


# Checkpoints -----------------------------------------------------------------------------------------------

LLADA_FIELDS = re.findall(
    r"\w+",
    """
activation_type alibi alibi_bias_max architectures attention_dropout attention_layer_norm
attention_layer_norm_with_affine auto_map bias_for_layer_norm block_group_size block_type d_model
embedding_dropout embedding_size eos_token_id flash_attention include_bias include_qkv_bias
init_cutoff_factor init_device init_fn init_std input_emb_norm layer_norm_type layer_norm_with_affine
mask_token_id max_sequence_length mlp_hidden_size mlp_ratio model_type multi_query_attention n_heads
n_kv_heads n_layers pad_token_id precision residual_dropout rms_norm_eps rope rope_full_precision
rope_theta scale_logits torch_dtype transformers_version use_cache vocab_size weight_tying
""",
)


DREAM_FIELDS = re.findall(
    r"\w+",
    """
architectures attention_dropout auto_map bos_token_id eos_token_id hidden_act hidden_size
initializer_range intermediate_size mask_token_id max_position_embeddings max_window_layers model_type
num_attention_heads num_hidden_layers num_key_value_heads pad_token_id rms_norm_eps rope_scaling
rope_theta sliding_window tie_word_embeddings torch_dtype transformers_version use_cache
use_sliding_window vocab_size
""",
)


@pytest.mark.parametrize(
    ("layout", "fields", "model_type", "architecture", "published"),
    [
        ("llada", LLADA_FIELDS, "llada", "LLaDAModelLM", "GSAI-ML/LLaDA-8B-Instruct"),
        ("dream", DREAM_FIELDS, "Dream", "DreamModel", "Dream-org/Dream-v0-Instruct-7B"),
    ],
    indirect=["layout"],
)
def test_config_json_has_the_published_fields(checkpoint, fields, model_type, architecture, published):
    config = json.loads((checkpoint / "config.json").read_text())
    assert sorted(config) == fields
    assert config["model_type"] == model_type
    assert config["architectures"] == [architecture]
    assert config["vocab_size"] == config.get("embedding_size", config["vocab_size"])
    assert all(value.startswith(published + "--") for value in config["auto_map"].values())


def test_the_real_llada_config_translates():
    """The values of GSAI-ML/LLaDA-8B-Instruct; only the sizes matter, no weights are made."""
    real = {
        "activation_type": "silu",
        "alibi": False,
        "block_type": "llama",
        "d_model": 4096,
        "embedding_size": 126464,
        "eos_token_id": 126081,
        "layer_norm_type": "rms",
        "mask_token_id": 126336,
        "max_sequence_length": 4096,
        "mlp_hidden_size": 12288,
        "model_type": "llada",
        "n_heads": 32,
        "n_kv_heads": 32,
        "n_layers": 32,
        "pad_token_id": 126081,
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "vocab_size": 126464,
        "weight_tying": False,
    }
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(family_of(real, "LLaDA").translate(real))
    assert sum(parameter.numel() for parameter in model.parameters()) == 8_015_581_184
    assert model.config.is_causal is False
    names = set(to_llada_names(model.state_dict()))
    assert len(names) == 32 * 9 + 3
    assert {f"{PREFIX}blocks.31.ff_out.weight", f"{PREFIX}ff_out.weight"} <= names


def test_the_real_dream_config_translates():
    """The values of Dream-org/Dream-v0-Instruct-7B."""
    real = {
        "architectures": ["DreamModel"],
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "hidden_act": "silu",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "mask_token_id": 151666,
        "max_position_embeddings": 131072,
        "max_window_layers": 28,
        "model_type": "Dream",
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "pad_token_id": 151643,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vocab_size": 152064,
    }
    from transformers import Qwen2ForCausalLM

    with torch.device("meta"):
        model = Qwen2ForCausalLM(family_of(real, "Dream").translate(real))
    assert sum(parameter.numel() for parameter in model.parameters()) == 7_615_616_512
    assert model.config.is_causal is False
    assert family_of(real | {"model_type": "dream"}, "a copy").name == "Dream"


def test_names_go_to_llada_and_back(tmp_path):
    checkpoint = write_checkpoint(tmp_path)
    stored = load_file(checkpoint / "model.safetensors")
    renamed = to_llada_names(TransformersBackend(checkpoint).model.state_dict())
    assert renamed.keys() == stored.keys()
    for name, tensor in stored.items():
        assert torch.equal(renamed[name], tensor), name
    for name in stored:
        forwards = [re.sub(pattern, llama, name) for pattern, llama in KEY_MAPPING.items()]
        assert len([new for new in forwards if new != name]) == 1  # no tensor is claimed twice
    with pytest.raises(ValueError, match=r"no LLaDA name for the tensor 'model\.rotary\.inv_freq'"):
        to_llada_names({"model.rotary.inv_freq": torch.zeros(1)})


def test_weights_come_in_several_files_too(broken):
    backend = TransformersBackend(broken)
    tensors = load_file(broken / "model.safetensors")
    (broken / "model.safetensors").unlink()
    names, where = sorted(tensors), {}
    for part, chosen in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{part}-of-00002.safetensors"
        save_file({name: tensors[name] for name in chosen}, broken / file, metadata={"format": "pt"})
        where |= dict.fromkeys(chosen, file)
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    rows = canvases(backend, 2)
    assert_same(predict(TransformersBackend(broken), rows), predict(backend, rows), tolerance=0)


def test_bfloat16_weights_compute_in_the_type_asked_for(broken):
    edit_tensors(broken, lambda t: t.update({name: tensor.bfloat16() for name, tensor in t.items()}))
    assert TransformersBackend(broken).model.dtype == torch.float32
    assert TransformersBackend(broken, dtype="bfloat16").model.dtype == torch.bfloat16
    assert TransformersBackend(broken, dtype="auto").model.dtype in (torch.float32, torch.bfloat16)
    reference, backend = ReferenceLLaDA(broken), TransformersBackend(broken)
    row = canvases(backend, 1)[0]
    logits = backend.model(input_ids=torch.tensor([row])).logits[0]
    torch.testing.assert_close(logits, reference(row), atol=1e-5, rtol=1e-5)
    with pytest.raises(
        ValueError, match="unknown dtype 'int8'; choose one of float32, bfloat16, float16, auto"
    ):
        TransformersBackend(broken, dtype="int8")


def drop(name):
    return lambda tensors: tensors.pop(PREFIX + name)


def reshape(name, *shape):
    return lambda tensors: tensors.update({PREFIX + name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (drop("blocks.1.up_proj.weight"), "up_proj"),
        (drop("ff_out.weight"), "lm_head"),
        (drop("ln_f.weight"), "norm"),
        (reshape("blocks.0.q_proj.bias", 16), "q_proj.bias"),
        (reshape("blocks.2.q_proj.weight", 16, 16), "layers.2"),
        (reshape("wpe.weight", 16, 16), "wpe"),
        (reshape("blocks.0.q_proj.weight", 8, 16), "q_proj"),
        (reshape("blocks.1.ff_norm.weight", 8), "post_attention_layernorm"),
        (reshape("wte.weight", 59, 16), "embed_tokens"),
    ],
    ids=[
        "missing",
        "no head",
        "no norm",
        "extra bias",
        "extra layer",
        "unknown",
        "wrong shape",
        "wrong norm",
        "other vocabulary",
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(broken, edit, named):
    edit_tensors(broken, edit)
    with pytest.raises(ValueError, match=rf"(?s)broken did not load completely.*{re.escape(named)}"):
        load_backend(broken)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda tensors: tensors.pop("model.layers.0.self_attn.q_proj.bias"), "q_proj.bias"),
        (lambda tensors: tensors.pop("lm_head.weight"), "lm_head"),
        (lambda t: t.update({"model.layers.1.self_attn.o_proj.bias": torch.zeros(16)}), "o_proj.bias"),
        (lambda t: t.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(32, 16)}), "layers.2"),
        (lambda t: t.update({"model.layers.1.self_attn.k_proj.weight": torch.zeros(16, 16)}), "k_proj"),
    ],
    ids=["missing bias", "no head", "extra bias", "extra layer", "wrong shape"],
)
def test_a_dream_that_does_not_fit_is_refused(broken_dream, edit, named):
    edit_tensors(broken_dream, edit)
    with pytest.raises(ValueError, match=rf"(?s)broken did not load completely.*{re.escape(named)}"):
        load_backend(broken_dream)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("use_sliding_window", True),
        ("rope_scaling", {"type": "yarn", "factor": 4.0}),
    ],
)
def test_a_dream_that_is_no_qwen2_is_refused(broken_dream, key, value):
    edit_config(broken_dream, **{key: value})
    with pytest.raises(ValueError, match=f"{key}=.*; only .* is supported"):
        load_backend(broken_dream)


def test_dreams_published_tokenizer_files_are_qwen2s(broken_dream):
    """Vocabulary and merges instead of a tokenizer.json, and a tokenizer class that is remote code."""
    for path in broken_dream.glob("*token*.json"):
        path.unlink()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>"]
    vocabulary = ["T", "o", "t", "a", "l", "?", "Ċ", "to", "ta", "tal"]
    ids = {token: at for at, token in enumerate(vocabulary + special)}
    (broken_dream / "vocab.json").write_text(json.dumps({token: ids[token] for token in vocabulary}))
    (broken_dream / "merges.txt").write_text("#version: 0.2\nt o\nt a\nta l\n")
    roles = {"bos_token": special[3], "eos_token": special[0], "pad_token": special[0]}
    template = (
        "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    tokenizer_config = {
        "added_tokens_decoder": {str(ids[token]): {"content": token, "special": True} for token in special},
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "chat_template": template,
        "tokenizer_class": "DreamTokenizer",
        **roles,
    }
    (broken_dream / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    edit_config(broken_dream, mask_token_id=ids["<|mask|>"], eos_token_id=ids["<|endoftext|>"])
    backend = TransformersBackend(broken_dream)
    words = ["<|im_start|>", "T", "o", "tal", "?", "<|im_end|>", "Ċ", "<|im_start|>"]
    assert backend.encode_prompt("Total?") == [ids[word] for word in words]
    assert backend.decode([ids["tal"], ids["?"], ids["<|im_end|>"], ids["tal"]]) == "tal?"
    with pytest.raises(ValueError, match="contains the dLLM's mask token"):
        backend.encode_prompt("Total<|mask|>?")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("alibi", True),
        ("rope", False),
        ("block_type", "sequential"),
        ("layer_norm_type", "default"),
        ("activation_type", "gelu"),
        ("attention_layer_norm", True),
        ("input_emb_norm", True),
        ("bias_for_layer_norm", True),
        ("include_bias", True),
        ("include_qkv_bias", True),
        ("scale_logits", True),
    ],
)
def test_a_llada_that_is_no_llama_is_refused(broken, key, value):
    edit_config(broken, **{key: value})
    with pytest.raises(ValueError, match=f"{key}={value!r}; only .* is supported"):
        load_backend(broken)


def test_fewer_key_value_heads_are_fine(broken):
    edit_config(broken, n_kv_heads=None)  # then as many as heads
    assert TransformersBackend(broken).model.config.num_key_value_heads == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"num_experts": 64},
        {"model_type": "Dream", "architectures": ["DreamModel"]},
        {"model_type": "llama"},
        {"model_type": ...},
        {"d_model": ..., "hidden_size": 16, "num_experts": 8, "architectures": ["LLaDAMoEModelLM"]},
    ],
    ids=["LLaDA-MoE", "Dream", "Llama", "none", "LLaDA-MoE as published"],
)
def test_other_families_are_refused(broken, changes):
    edit_config(broken, **changes)
    with pytest.raises(
        ValueError, match=r"is no supported dLLM: model_type=.*supported families: iLLaDA, LLaDA"
    ):
        load_backend(broken)


def test_a_config_that_is_no_object_is_refused(broken):
    (broken / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no JSON object"):
        load_backend(broken)


def test_a_directory_without_a_checkpoint_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: pytest.fail("asked the network"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError, match=r"runs/first is no checkpoint directory: it has no config\.json"
    ):
        load_backend("runs/first")  # looks like a hub id, but it is a directory


class Explosive:
    """Whoever unpickles this gets an exception."""

    def __reduce__(self):
        return exec, ("raise AssertionError('unpickled')",)


def test_pickled_weights_are_not_looked_at(broken):
    (broken / "model.safetensors").unlink()
    (broken / "pytorch_model.bin").write_bytes(pickle.dumps(Explosive()))
    with pytest.raises(OSError, match="safetensors"):
        load_backend(broken)


def test_no_code_of_a_checkpoint_is_run(broken):
    for module in ("modeling_llada", "configuration_llada", "tokenization_llada"):
        (broken / f"{module}.py").write_text(
            f"from pathlib import Path\nPath({str(broken / 'executed')!r}).touch()\n"
            "class LLaDAModelLM: pass\nclass LLaDAConfig: pass\nclass LLaDATokenizer: pass\n"
        )
    names = {
        "AutoConfig": "configuration_llada.LLaDAConfig",
        "AutoModel": "modeling_llada.LLaDAModelLM",
        "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
    }
    edit_config(broken, auto_map=names)
    path = broken / "tokenizer_config.json"
    tokenizer_names = {"AutoTokenizer": ["tokenization_llada.LLaDATokenizer", None]}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": tokenizer_names}))
    backend = TransformersBackend(broken)
    assert type(backend.model).__module__.startswith("transformers.models.llama")
    assert not (broken / "executed").exists()
    assert not [name for name in sys.modules if "llada" in name and "modeling" in name]


def test_loading_needs_no_network(broken, monkeypatch):
    attempts = []

    def refuse(*args, **kwargs):
        attempts.append(args)
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    backend = load_backend(broken)
    predict(backend, canvases(backend, 1))
    for name in embedded_names():
        TransformersBackend(backends.ASSETS / name)
    assert attempts == []


@pytest.mark.parametrize("name", embedded_names())
def test_embedded_models_are_safetensors_and_text(name):
    for path in (backends.ASSETS / name).iterdir():
        assert path.suffix in (".safetensors", ".json", ".md"), path
        assert not path.is_symlink()


# Names -----------------------------------------------------------------------------------------------------


def test_a_backend_is_built_once(checkpoint, backend):
    assert load_backend(checkpoint) is backend
    assert load_backend(str(checkpoint)) is backend
    assert dllm_gym.load_backend(checkpoint) is backend
    half = load_backend(checkpoint, dtype="bfloat16")
    assert half is not backend
    assert half is load_backend(checkpoint, dtype="bfloat16")
    both = {"dtype": "bfloat16", "device": "cpu"}
    assert load_backend(checkpoint, **both) is load_backend(checkpoint, device="cpu", dtype="bfloat16")


def test_copying_a_backend_copies_no_model(backend):
    assert copy.deepcopy(backend) is backend
    assert copy.deepcopy({"backend": backend})["backend"] is backend


def test_a_backend_is_what_the_protocol_says(backend, special):
    assert isinstance(backend, Backend)
    assert backend.device == torch.device("cpu")
    assert backend.vocab_size == len(backend.tokenizer)
    ids = {backend.mask_token_id, backend.eos_token_id, backend.pad_token_id}
    assert all(0 <= token < backend.vocab_size for token in ids)
    assert backend.mask_token_id != backend.pad_token_id == backend.eos_token_id
    assert backend.end_token_ids == set(backend.tokenizer.convert_tokens_to_ids([special.eos, special.eot]))


def test_an_unknown_backend_says_what_there_is(monkeypatch):
    monkeypatch.setattr(backends, "_factories", {"mine": lambda: None})
    with pytest.raises(
        ValueError, match=r"unknown backend 'huge-chess'; known: .*mine.*checkpoint directory"
    ):
        load_backend("huge-chess")
    with pytest.raises(ValueError, match="unknown backend"):
        load_backend("/nowhere/at/all")


def test_a_registered_backend_is_made_once_per_arguments(monkeypatch):
    monkeypatch.setattr(backends, "_factories", {})
    made = []

    def factory(**kwargs):
        made.append(kwargs)
        return object()

    register_backend("mine", factory)
    assert "mine" in backend_names()
    assert set(backend_names()) == {"mine", *embedded_names()}
    first = load_backend("mine", size=3)
    assert load_backend("mine", size=3) is first
    assert load_backend("mine", size=4) is not first
    assert made == [{"size": 3}, {"size": 4}]
    register_backend("mine", factory)  # a new factory: what the old one made is forgotten
    assert load_backend("mine", size=3) is not first


# The tokenizer ---------------------------------------------------------------------------------------------


def encode(backend, text):
    return backend.tokenizer(text, add_special_tokens=False)["input_ids"]


@settings(max_examples=80, deadline=None)
@given(index=st.integers(0, 2**31 - 2), seed=st.integers(0, 2**32 - 1))
def test_completions_survive_the_tokenizer(backend, index, seed):
    task = load_task("arithmetic", "train")
    problem = task.problem(index)
    text = task.write(problem, np.random.default_rng(seed))
    ids = encode(backend, text)
    assert backend.decode(ids) == text
    assert len(ids) + 1 <= task.completion_length
    assert backend.decode([*ids, backend.eos_token_id]) == text
    assert backend.tokenizer.unk_token_id not in ids
    backend.encode_prompt(problem.prompt)  # every word is known


def test_grids_survive_the_tokenizer(backend):
    for size in (4, 6):
        task = load_task("sudoku", size=size)
        ids = encode(backend, task.problem(0).reference)
        assert len(ids) == size * size == task.completion_length
        assert backend.decode(ids) == task.problem(0).reference
        assert len(backend.encode_prompt(task.problem(0).prompt)) == size * size + 2


def test_the_saved_tokenizer_is_the_one_that_was_built(tmp_path, backend, special):
    from transformers import PreTrainedTokenizerFast

    built = build_tokenizer(load_task("arithmetic").vocabulary, special)
    save_tokenizer(built, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert loaded.get_vocab() == built.get_vocab() == backend.tokenizer.get_vocab()
    for text in (PROMPT, "So 20 + 4 = 24. #### 24", f"{special.bos}20{special.eot}{special.mask}"):
        ids = built(text, add_special_tokens=False)["input_ids"]
        assert loaded(text, add_special_tokens=False)["input_ids"] == ids
        assert loaded.decode(ids) == built.decode(ids)
    assert loaded.chat_template == built.chat_template
    assert loaded.padding_side == "left"
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == (special.bos, special.eos, special.eos)


def test_a_prompt_goes_through_the_chat_template(backend, special):
    ids = backend.encode_prompt(f"  {PROMPT}\n")
    start, turn = backend.tokenizer.convert_tokens_to_ids([special.bos, special.eot])
    words = re.findall(r"[A-Za-z]+|\d|[^\sA-Za-z\d]", PROMPT)
    assert ids == [start, *backend.tokenizer.convert_tokens_to_ids(words), turn]
    assert backend.encode_prompt([{"role": "user", "content": PROMPT}]) == ids
    templated = backend.tokenizer.apply_chat_template([{"role": "user", "content": PROMPT}], tokenize=False)
    assert templated == f"{special.bos}{PROMPT}{special.eot}"


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": PROMPT}],
        [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "#### 24"}],
    ],
    ids=["system", "two"],
)
def test_only_a_single_user_message_is_answered(backend, messages):
    with pytest.raises(Exception, match="answers a single user message"):
        backend.encode_prompt(messages)


def test_words_the_model_does_not_know_are_named(backend):
    with pytest.raises(ValueError, match=r"words this dLLM does not know: Bob, bananas$"):
        backend.encode_prompt("Bob has 20 bananas, finds 4, bananas 3. Total?")
    with pytest.raises(ValueError, match=r"does not know: é$"):
        backend.encode_prompt("Sam has 20 é. Total?")
    with pytest.raises(ValueError, match=r"does not know: é+$") as caught:
        backend.encode_prompt("é" * 10_000)
    assert len(str(caught.value)) < 500


def test_a_mask_in_the_prompt_is_refused(backend, special):
    with pytest.raises(ValueError, match="contains the dLLM's mask token"):
        backend.encode_prompt(f"Sam has 20{special.mask} coins. Total?")


def test_decode_stops_at_the_end_and_shows_masks(backend, special):
    mask, eos = backend.mask_token_id, backend.eos_token_id
    turn = backend.tokenizer.convert_tokens_to_ids(special.eot)
    ids = encode(backend, "So 20 + 4")
    assert backend.decode(ids) == "So 20 + 4"
    assert backend.decode([*ids, eos, *ids]) == "So 20 + 4"
    assert backend.decode([*ids, turn, *ids]) == "So 20 + 4"
    assert backend.decode([eos, *ids]) == ""
    assert backend.decode([]) == ""
    shown = backend.decode([ids[0], mask, mask, *ids[3:], eos, mask])
    assert shown.split() == ["So", special.mask, special.mask, "+", "4"]
    assert backend.decode(torch.tensor([*ids, eos])) == backend.decode(np.array(ids)) == "So 20 + 4"
