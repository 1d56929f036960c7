"""Attention as a statistic: transformers' own of every family, whatever the batch; what agents see of it."""

from __future__ import annotations

import pickle

import gymnasium as gym
import numpy as np
import padded
import pytest
import torch
from dream_reference import write_dream_checkpoint
from family_checkpoints import CASES
from llada_reference import write_checkpoint
from padded import LENGTH, left_padded
from toy_backend import ToyBackend, ToyTask

from dllm_gym.backends import CallableBackend, load_backend
from dllm_gym.backends.attention import layer_numbers
from dllm_gym.backends.compiled import FastForward
from dllm_gym.backends.transformers_backend import TransformersBackend
from dllm_gym.envs.unmask import UnmaskEnv
from dllm_gym.envs.vector import UnmaskVectorEnv

PROMPTS = ("Sam has 20 coins, finds 4, triples them. Total?", "Sam has 7 coins. Total?")
WRITERS = {name: case.write for name, case in CASES.items()}
WRITERS |= {"llada": write_checkpoint, "dream": write_dream_checkpoint}
ENCODERS = ("ModernBERT-base-chat-v0.1", "bert-base")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Directories of random checkpoints, written once each."""
    written = {}

    def get(name):
        if name not in written:
            written[name] = WRITERS[name](tmp_path_factory.mktemp("attention") / name)
        return str(written[name])

    return get


def shown(backend, rows, extra=0, positions=slice(-LENGTH, None)):
    prediction = backend.predict(*left_padded(backend, rows, extra), positions, statistics=("attention",))
    return prediction.statistics["attention"]


def transformers_own(eager, row):
    """Every layer's ``(layers, L, L)`` of one sequence without padding, by transformers alone."""
    tokens, length = torch.tensor([row]), len(row)
    seen = torch.ones(1, length)
    if eager.attention_block is not None:
        first = 0 if eager.blocks_from == "sequence" else length - LENGTH
        block = torch.arange(-first, length - first) // eager.attention_block
        hidden = block[None, :] > block[:, None]
        seen = torch.zeros(length, length).masked_fill(hidden, torch.finfo(torch.float32).min)[None, None]
    with torch.inference_mode():
        output = eager.model(input_ids=tokens, attention_mask=seen, output_attentions=True)
    square = torch.stack(output.attentions)[:, 0].mean(1)  # (layers, T, T)
    begin = length - LENGTH
    predicts = begin - int(eager.family.shift_logits)
    return square[:, predicts : predicts + LENGTH, begin:]


@pytest.mark.parametrize("name", list(WRITERS))
def test_it_is_transformers_own_for_every_family_with_padding_in_the_batch(checkpoint, name):
    eager = TransformersBackend(checkpoint(name), attn_implementation="eager")
    backends = [eager] if name in ENCODERS else [eager, load_backend(checkpoint(name))]
    rows = padded.canvases(eager, 4, prompts=PROMPTS)
    expected = torch.stack([transformers_own(eager, row).mean(0) for row in rows])
    assert expected.std() > 0.01  # so that the tolerance says something
    for backend in backends:
        together = shown(backend, rows, extra=3)
        assert together.dtype == torch.float32
        torch.testing.assert_close(together, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(shown(backend, rows[1:2]), expected[1:2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["llada", "bert-base"])
def test_layers_are_chosen(checkpoint, name):
    eager = TransformersBackend(checkpoint(name), attn_implementation="eager")
    rows = padded.canvases(eager, 2, prompts=PROMPTS)
    every = torch.stack([transformers_own(eager, row) for row in rows], dim=1)  # (layers, B, L, L)
    last = len(every) - 1
    for given, expected in (([-1], (last,)), ([1, 0, -last], (0, 1)), (None, tuple(range(last + 1)))):
        chosen = TransformersBackend(
            checkpoint(name), attn_implementation="eager", attention_layers=given
        )  # fmt: skip
        assert chosen.attention_layers == expected
        torch.testing.assert_close(shown(chosen, rows), every[list(expected)].mean(0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("given", [[4], [-5], [], 1, "all", [0.0], [True]])
def test_layers_that_are_none_are_refused(given):
    with pytest.raises(ValueError, match="attention_layers must be numbers of layers, -4 to 3"):
        layer_numbers(given, 4)


def test_some_positions_only(checkpoint):
    backend = load_backend(checkpoint("dream"))
    rows = padded.canvases(backend, 2, prompts=PROMPTS)
    width = max(map(len, rows))
    whole, some = shown(backend, rows), torch.tensor([1, 4, 5])
    part = shown(backend, rows, positions=some + width - LENGTH)
    torch.testing.assert_close(part, whole[:, some][:, :, some], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["tiny-arithmetic", "tiny-arithmetic-dream"])
def test_the_fast_forward_shows_the_same(name):
    backend = load_backend(name)
    rows = padded.canvases(backend, 3, prompts=PROMPTS)
    tokens, mask = left_padded(backend, rows, extra=2)
    width = tokens.shape[1]
    columns = backend.rows_about(torch.arange(width - LENGTH, width), mask.argmax(1)).expand(3, -1)
    for layers in (backend.attention_layers, (0, 2)):
        chosen = TransformersBackend(f"dllm_gym/assets/{name}", attention_layers=layers)
        with torch.inference_mode():
            *_, attention = FastForward(backend.model, layers)(tokens, mask, columns)
        torch.testing.assert_close(attention[..., -LENGTH:], shown(chosen, rows), atol=1e-5, rtol=0)


def test_who_does_not_show_it_says_how_it_can_be_had(checkpoint):
    with pytest.raises(ValueError, match=r"'sdpa' computes attention without showing it; .*='eager'"):
        UnmaskEnv(backend_kwargs={"attn_implementation": "sdpa"}, observe="attention")
    backend = load_backend(checkpoint("bert-base"))
    with pytest.raises(
        ValueError, match=r"observation 'attention' needs a dLLM that shows its attention: .*'sdpa'"
    ):
        UnmaskEnv(backend=backend, task=ToyTask(), observe="attention")
    function = CallableBackend(
        lambda tokens, mask: torch.zeros(*tokens.shape, 13),
        ToyBackend(), mask_token_id=10, eos_token_id=11, vocab_size=13,
    )  # fmt: skip
    with pytest.raises(ValueError, match="'CallableBackend' object has no attribute 'attention_layers'"):
        UnmaskEnv(backend=function, task=ToyTask(), observe="attention")


def test_agents_see_it_of_all_positions_or_of_the_active_block():
    whole, block = (
        UnmaskVectorEnv(
            3, backend=ToyBackend(), task=ToyTask(), observe="attention", block_length=2, view=view
        )
        for view in ("completion", "block")
    )
    first, same = whole.reset(seed=0)[0], block.reset(seed=0)[0]
    rng = np.random.default_rng(0)
    for _ in range(5):
        assert first["attention"].shape == (3, 6, 6)
        assert (first["attention"] > 0).all()
        active = np.arange(6) // 2 == first["action_mask"].argmax(1)[:, None] // 2
        pairs = active[:, :, None] & active[:, None, :]
        np.testing.assert_array_equal(same["attention"], np.where(pairs, first["attention"], 0))
        actions = first["action_mask"] * rng.integers(0, 2, (3, 6))
        first, same = whole.step(actions)[0], block.step(actions)[0]


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_with_a_cache_rows_that_are_not_computed_stay_what_they_were(cache):
    def make(**kwargs):
        return gym.make("DLLMUnmask-v0", block_length=16, observe="attention", backend_kwargs=kwargs)

    exact, cached = make(), make(cache=cache)
    expected, found = exact.reset(seed=0)[0]["attention"], cached.reset(seed=0)[0]["attention"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    begin = found
    for position in range(20):
        action = np.eye(48, dtype=np.int8)[position]
        expected, found = exact.step(action)[0]["attention"], cached.step(action)[0]["attention"]
        if position + 1 == 16:  # another block begins
            np.testing.assert_allclose(found, expected, atol=1e-5)
            begin = found
            continue
        active = slice(0, 16) if position < 16 else slice(16, 32)
        assert not np.array_equal(found[active], begin[active])
        kept = slice(active.stop, None) if cache == "dual" else slice(0, active.start)
        np.testing.assert_array_equal(found[kept], begin[kept])


@pytest.mark.parametrize("name", ["SDAR-1.7B-Chat", "Fast_dLLM_v2_7B"])
def test_the_cache_of_finished_blocks_shows_the_same_in_the_active_one(checkpoint, name):
    plain, cached = (
        UnmaskEnv(
            checkpoint(name), kwargs, completion_length=LENGTH, observe="attention", view="block"
        )
        for kwargs in ({}, {"cache": "block"})
    )  # fmt: skip
    expected, found = plain.reset(seed=0)[0], cached.reset(seed=0)[0]
    for _ in range(LENGTH):
        np.testing.assert_allclose(found["attention"], expected["attention"], atol=1e-5)
        action = np.eye(LENGTH, dtype=np.int8)[expected["action_mask"].argmax()]
        expected, found = plain.step(action)[0], cached.step(action)[0]


@pytest.mark.filterwarnings("ignore:.*was not trained with residual context")
def test_residual_context_shows_it_too():
    env = gym.make("DLLMUnmask-v0", observe="attention", backend_kwargs={"residual_context": True})
    plain = gym.make("DLLMUnmask-v0", observe="attention")
    found, expected = (one.reset(seed=0)[0]["attention"] for one in (env, plain))
    np.testing.assert_allclose(found, expected, atol=1e-5)  # it begins with plain masks


def test_a_dllm_that_showed_its_attention_can_be_sent_to_another_process():
    backend = load_backend("tiny-arithmetic")
    env = {"task": "arithmetic", "observe": ["attention"]}
    shown = UnmaskVectorEnv(2, autoreset_mode="SameStep", backend=backend, **env).reset(seed=1)[0]
    sent = pickle.loads(pickle.dumps(backend))
    for one in (sent, backend):  # which shows it again
        again = UnmaskVectorEnv(2, autoreset_mode="SameStep", backend=one, **env).reset(seed=1)[0]
        np.testing.assert_array_equal(again["attention"], shown["attention"])
