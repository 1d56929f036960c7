"""Every family that is claimed: tiny random checkpoints in its layout against independent forwards."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import padded
import pytest
import torch
from family_checkpoints import CASES, ReferenceStock
from padded import LENGTH, left_padded
from safetensors.torch import load_file, save_file

from dllm_gym.backends import load_backend
from dllm_gym.backends.families import FAMILIES, family_of
from dllm_gym.backends.transformers_backend import TransformersBackend

PROMPTS = (
    "Sam has 20 coins, finds 4, triples them. Total?",
    "Sam has 7 coins. Total?",
    "Zoe wins 50. Total?",
)
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=list(CASES))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def case(name):
    return CASES[name]


@pytest.fixture(scope="module")
def checkpoint(name, case, tmp_path_factory):
    return case.write(tmp_path_factory.mktemp("families") / name)


@pytest.fixture(scope="module")
def reference(case, checkpoint):
    return case.reference(checkpoint)


@pytest.fixture(scope="module")
def backend(checkpoint):
    return load_backend(checkpoint)


canvases = partial(padded.canvases, prompts=PROMPTS)


def predict(backend, rows, extra=0, **kwargs):
    return backend.predict(*left_padded(backend, rows, extra), slice(-LENGTH, None), **kwargs)


def logits_of(backend, rows, extra=0):
    """All logits about the completions, ``(B, L, V)``: ``predict`` shows its softmax only."""
    seen = []
    hook = backend.model.get_output_embeddings().register_forward_hook(
        lambda module, arguments, output: seen.append(output)
    )
    try:
        predict(backend, rows, extra)
    finally:
        hook.remove()
    return seen[0]


def test_every_family_that_is_claimed_is_tested_here_or_with_the_layouts():
    tested = {case.family for case in CASES.values()} | {"LLaDA", "Dream"}  # these: test_backends.py
    assert {family.name for family in FAMILIES} == tested
    assert all("parity" in family.verified for family in FAMILIES)


def test_every_family_that_is_published_has_its_line():
    page = (Path(__file__).parents[1] / "docs" / "your_model.md").read_text(encoding="utf-8")
    lines = re.findall(r"`dllm-gym serve --backend ([^\s`]+/[^\s`]+)", page)
    known = {checkpoint: family.name for family in FAMILIES for checkpoint in family.published}
    theirs = {known[backend] for backend in lines if not backend.startswith("./")}
    assert theirs == {family.name for family in FAMILIES if family.published} - {"MaskedLM"}


@pytest.mark.parametrize("extra", [0, 5], ids=["no further padding", "padded"])
@pytest.mark.parametrize("batch", [1, 4])
def test_logits_are_those_of_the_reference(case, backend, reference, batch, extra):
    assert backend.family.name == case.family
    assert backend.attention_block == case.attention_block
    rows = canvases(backend, batch)
    found = logits_of(backend, rows, extra)
    for at, row in enumerate(rows):
        expected = reference(row)[-LENGTH:]
        assert expected.std() > 0.5  # so that the tolerance says something
        torch.testing.assert_close(found[at], expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_attention_implementation_is_right(checkpoint, case, reference, attention):
    backend = TransformersBackend(checkpoint, attn_implementation=attention)
    rows = canvases(backend, 3, seed=1)
    found = logits_of(backend, rows, extra=2)
    for at, row in enumerate(rows):
        torch.testing.assert_close(found[at], reference(row)[-LENGTH:], atol=TOLERANCE, rtol=0)


def test_a_row_depends_neither_on_its_neighbours_nor_on_padding(backend):
    rows = canvases(backend, 5)
    statistics = ("entropy", "margin", "top_k", "hidden")
    together = predict(backend, rows, extra=3, statistics=statistics)
    for at, row in enumerate(rows):
        alone = predict(backend, [row], statistics=statistics)
        assert torch.equal(together.tokens[at], alone.tokens[0])
        torch.testing.assert_close(together.confidence[at], alone.confidence[0], atol=1e-5, rtol=0)
        for name in statistics:
            torch.testing.assert_close(
                together.statistics[name][at], alone.statistics[name][0], atol=1e-4, rtol=0
            )


def test_what_stands_under_the_padding_does_not_matter(backend):
    rows = canvases(backend, 2)
    tokens, mask = left_padded(backend, rows, extra=3)
    before = backend.predict(tokens, mask, slice(-LENGTH, None))
    after = backend.predict(torch.where(mask == 1, tokens, 7), mask, slice(-LENGTH, None))
    assert torch.equal(before.tokens, after.tokens)
    torch.testing.assert_close(before.confidence, after.confidence, atol=1e-6, rtol=0)


def test_the_last_token_is_seen_by_all_or_by_its_block(backend):
    """Which also says that no class is causal any more."""
    row = canvases(backend, 1)[0]
    changed = [*row[:-1], row[-1] - 1 if row[-1] > 5 else row[-1] + 1]
    before, after = (predict(backend, [tokens], statistics=("hidden",)) for tokens in (row, changed))
    moved = (before.statistics["hidden"] - after.statistics["hidden"]).abs().amax(-1)[0] > 1e-4
    at, block = torch.arange(len(row))[-LENGTH:] - int(backend.family.shift_logits), backend.attention_block
    if block is None:
        # a window of local attention reaches from layer to layer
        assert moved.all() or backend.family.name == "ModernBERT-chat"
    else:
        origin = 0 if backend.blocks_from == "sequence" else len(row) - LENGTH
        last = (len(row) - 1 - origin) // block
        assert torch.equal(moved, (at - origin) // block == last)


def test_a_whole_episode_runs(checkpoint, backend):
    env = gym.make(
        "DLLMUnmask-v0", backend=str(checkpoint), completion_length=LENGTH, observe=("hidden", "top_k")
    )
    observation, info = env.reset(seed=3)
    terminated = False
    while not terminated:
        observation, _, terminated, _, info = env.step(observation["action_mask"])
    assert 1 <= info["nfe"] <= LENGTH
    assert env.unwrapped.engine.canvas.completions()[0].tolist().count(backend.mask_token_id) == 0


REAL = {
    # 7.62 billion parameters, says its model card
    "iLLaDA": (
        {"d_model": 4096, "mlp_hidden_size": 14336, "n_heads": 32, "n_kv_heads": 8, "n_layers": 32}
        | {"embedding_size": 155136, "vocab_size": 155136, "max_sequence_length": 8192, "weight_tying": True}
        | {"model_type": "llada", "rms_norm_eps": 1e-5, "rope_theta": 5e5},
        7_615_025_152,
    ),
    # 14,032 MiB in bfloat16, of which 12,288 are experts, as measured on the published weights
    "LLaDA-MoE": (
        {"model_type": "llada", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16}
        | {"dense_intermediate_size": 8192, "expert_intermediate_size": 1024, "num_experts": 64}
        | {"num_experts_per_tok": 8, "vocab_size": 157184, "max_position_embeddings": 8192}
        | {"rms_norm_eps": 1e-5, "rope_theta": 5e4},
        7_356_880_896,
    ),
    # "16B-A1B"
    "LLaDA2": (
        {"model_type": "llada2_moe", "hidden_size": 2048, "intermediate_size": 5120, "num_hidden_layers": 20}
        | {"num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128, "partial_rotary_factor": 0.5}
        | {"first_k_dense_replace": 1, "num_experts": 256, "num_experts_per_tok": 8, "num_shared_experts": 1}
        | {"n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5, "moe_intermediate_size": 512}
        | {"rms_norm_eps": 1e-6, "rope_theta": 6e5, "max_position_embeddings": 32768, "vocab_size": 157184},
        16_255_638_528,
    ),
    # 8.25 billion, says its model card
    "Stable-DiffCoder": (
        {"model_type": "llama", "architectures": ["StableDiffcoderForCausalLM"], "vocab_size": 155136}
        | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "rms_norm_eps": 1e-6}
        | {"num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 5e5},
        8_250_462_208,
    ),
    # as many as Qwen3-0.6B
    "A2D-Qwen3": (
        {"model_type": "a2d-qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28}
        | {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True}
        | {"vocab_size": 151936, "rms_norm_eps": 1e-6, "rope_theta": 1e6},
        596_049_920,
    ),
}


@pytest.mark.parametrize("family_name", list(REAL))
def test_the_real_sizes_give_the_published_number_of_parameters(family_name):
    import transformers

    config, parameters = REAL[family_name]
    family = family_of(config, family_name)
    assert family.name == family_name
    with torch.device("meta"):
        model = getattr(transformers, family.model_class)(family.translate(config))
    model.tie_weights()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model.config.is_causal is False


def test_fields_that_happen_to_have_the_classes_defaults_are_read(tmp_path):
    config = json.loads((CASES["LLaDA2.0-mini"].write(tmp_path) / "config.json").read_text())
    changed = family_of(config, "").translate(config | {"partial_rotary_factor": 0.25})
    assert changed.rope_parameters["partial_rotary_factor"] == 0.25


@pytest.mark.parametrize(
    ("published", "changes", "field"),
    [
        ("LLaDA-MoE-7B-A1B-Base", {"moe_router_score_function": "sigmoid"}, "moe_router_score_function"),
        ("LLaDA-MoE-7B-A1B-Base", {"shared_expert_intermediate_size": 8}, "shared_expert_intermediate_size"),
        ("LLaDA-MoE-7B-A1B-Base", {"clip_qkv": 8.0}, "clip_qkv"),
        ("LLaDA2.0-mini", {"score_function": "softmax"}, "score_function"),
        ("LLaDA2.0-mini", {"use_qkv_bias": True}, "use_qkv_bias"),
        ("LLaDA2.0-mini", {"num_experts_per_tok": 1}, "num_experts_per_tok"),
        ("SDAR-1.7B-Chat", {"use_sliding_window": True}, "use_sliding_window"),
        ("SDAR-1.7B-Chat", {"hidden_act": "gelu"}, "hidden_act"),
        ("Stable-DiffCoder-8B-Instruct", {"hidden_act": "gelu"}, "hidden_act"),
        ("SDAR-1.7B-Chat", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "RoPE of type 'dynamic'"),
    ],
)
def test_what_the_stock_class_would_compute_otherwise_is_refused(tmp_path, published, changes, field):
    directory = CASES[published].write(tmp_path)
    config = json.loads((directory / "config.json").read_text()) | changes
    with pytest.raises(ValueError, match=f"config has {field}.*support"):
        family_of(config, published).translate(config)


@pytest.mark.parametrize("name", ["SDAR-8B-Chat-b16", "Qwen3-0.6B-diffusion-bd3lm-v0.1"], indirect=True)
def test_the_prompts_own_padding_token_is_not_padding(backend, reference):
    """Blocks are counted from the first real token, whatever it is."""
    row = [backend.pad_token_id] * 3 + canvases(backend, 1)[0]
    found = logits_of(backend, [row], extra=6)
    torch.testing.assert_close(found[0], reference(row)[-LENGTH:], atol=TOLERANCE, rtol=0)


# Blocks -----------------------------------------------------------------------------------------------------


def make(checkpoint, **kwargs):
    return gym.make("DLLMUnmask-v0", backend=str(checkpoint), **kwargs).unwrapped


@pytest.mark.parametrize("name", ["SDAR-1.7B-Chat", "Fast_dLLM_v2_7B"], indirect=True)
@pytest.mark.parametrize("given", [None, 2])
def test_the_active_block_is_inside_a_block_of_attention(checkpoint, backend, given):
    env = make(checkpoint, completion_length=21, block_length=given)
    window = given or backend.attention_block
    for problem in range(6):
        observation, info = env.reset(options={"problem": problem})
        before = len(backend.encode_prompt(info["prompt"]))
        seen, terminated = [], False
        while not terminated:
            positions = np.flatnonzero(observation["action_mask"]) + before
            seen.append(positions)
            observation, _, terminated, _, _ = env.step(observation["action_mask"])
        expected = [
            np.arange(before, before + 21)[np.arange(before, before + 21) // window == at]
            for at in range(before // window, (before + 20) // window + 1)
        ]
        assert [block.tolist() for block in seen] == [block.tolist() for block in expected]


@pytest.mark.parametrize("name", ["Qwen3-0.6B-diffusion-bd3lm-v0.1"], indirect=True)
def test_blocks_counted_from_the_completion_start_with_it(checkpoint):
    env = make(checkpoint, completion_length=40)
    observation, _ = env.reset(seed=1)
    assert observation["action_mask"].tolist() == [1] * 32 + [0] * 8


@pytest.mark.parametrize("name", ["SDAR-8B-Chat-b16"], indirect=True)
@pytest.mark.parametrize("block_length", [3, 12, 32])
def test_a_block_length_that_crosses_blocks_of_attention_is_refused(checkpoint, block_length):
    with pytest.raises(ValueError, match=rf"block_length {block_length} .* blocks of 16 .* 1, 2, 4, 8, 16$"):
        make(checkpoint, completion_length=48, block_length=block_length)


@pytest.mark.parametrize("name", ["SDAR-1.7B-Chat"], indirect=True)
def test_the_blocks_can_be_others(checkpoint, case):
    wide = load_backend(checkpoint, attention_block=8)
    assert wide.attention_block == 8
    row = canvases(wide, 1)[0]
    for block, other in ((8, wide), (None, load_backend(checkpoint, attention_block="full"))):
        assert other.attention_block == block
        expected = ReferenceStock(checkpoint, block)(row)[-LENGTH:]
        torch.testing.assert_close(logits_of(other, [row])[0], expected, atol=TOLERANCE, rtol=0)
    for bad in (0, -4, "half", True):
        with pytest.raises(ValueError, match=f"attention_block must be a whole .* got {bad!r}"):
            load_backend(checkpoint, attention_block=bad)
    with pytest.raises(ValueError, match="takes no mask of blocks, which SDAR needs; choose sdpa or eager"):
        load_backend(checkpoint, attn_implementation="flash_attention_2")


@pytest.mark.parametrize("name", ["iLLaDA-8B-Base", "bert-base"], indirect=True)
def test_who_attends_everywhere_has_no_blocks(checkpoint, case):
    with pytest.raises(ValueError, match=f"{case.family} does not"):
        load_backend(checkpoint, attention_block=4)


# Every tensor counts ----------------------------------------------------------------------------------------


def test_a_tensor_too_few_or_too_many_is_refused(case, tmp_path):
    directory = case.write(tmp_path / "broken")
    path = directory / "model.safetensors"
    tensors = load_file(path)
    rng = np.random.default_rng(0)
    needed = [name for name in sorted(tensors) if not re.search(r"pooler|seq_relationship", name)]
    for name in rng.choice(needed, 4, replace=False):
        save_file({k: v for k, v in tensors.items() if k != name}, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match="did not load completely"):
            TransformersBackend(directory)
        wrong = {k: v[: len(v) // 2] if k == name else v for k, v in tensors.items()}
        save_file(wrong, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match="did not load completely"):
            TransformersBackend(directory)
    further = needed[0].rsplit(".", 2)[0] + ".adapter.weight"
    save_file(tensors | {further: torch.zeros(3)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"did not load completely: unexpected_keys: .*adapter"):
        TransformersBackend(directory)
