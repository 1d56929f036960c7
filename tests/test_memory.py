"""Caches and residual context: exact where that is claimed, and elsewhere what their definition says."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from family_checkpoints import CASES
from hypothesis import given, settings
from hypothesis import strategies as st

import dllm_gym
from dllm_gym.backends import ASSETS, load_backend
from dllm_gym.backends.memory import residual_context, soft_mask
from dllm_gym.envs.vector import UnmaskVectorEnv

BLOCKWISE = sorted(name for name, case in CASES.items() if case.attention_block is not None)
EMBEDDED = ("tiny-arithmetic", "tiny-arithmetic-dream")
LENGTH = 12


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Directories of random checkpoints, written once each."""
    written = {}

    def get(name):
        if name not in written:
            written[name] = CASES[name].write(tmp_path_factory.mktemp("memory") / name)
        return str(written[name])

    return get


def play(backend, cache, *, rows=5, steps=40, seed=0, probability=0.3, **kwargs):
    """Observations of random play, where rows begin their episodes at different times."""
    env = UnmaskVectorEnv(
        rows,
        task="arithmetic",
        backend=backend,
        backend_kwargs={} if cache is None else {"cache": cache},
        autoreset_mode="SameStep",
        **{"completion_length": LENGTH, "observe": ("tokens", "entropy"), **kwargs},
    )
    rng = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    seen = [observation]
    for _ in range(steps):
        observation, *_ = env.step(rng.random((rows, env.single_action_space.n)) < probability)
        seen.append(observation)
    return seen


@pytest.mark.parametrize("name", BLOCKWISE)
def test_the_cache_of_finished_blocks_changes_nothing_in_the_active_one(checkpoint, name):
    plain, cached = (play(checkpoint(name), cache) for cache in (None, "block"))
    for expected, observation in zip(plain, cached, strict=True):
        for key in ("tokens", "mask", "action_mask", "progress"):
            assert np.array_equal(observation[key], expected[key])
        active = expected["action_mask"].astype(bool)
        for key in ("confidence", "entropy"):
            assert np.abs(observation[key] - expected[key])[active].max() < 2e-5
        behind = expected["mask"].astype(bool) & ~active
        assert (observation["confidence"][behind] == 0).all()


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("name", EMBEDDED)
def test_a_cache_is_exact_when_a_block_begins(name, cache):
    env = UnmaskVectorEnv(1, task="arithmetic", backend=name, backend_kwargs={"cache": cache}, block_length=8)
    exact = load_backend(name)
    rng = np.random.default_rng(0)
    env.reset(seed=3)
    begun, deviations = set(), {True: [0.0], False: [0.0]}
    for _ in range(40):
        rows = np.arange(1)
        window = tuple(env.engine.canvas.active_window(rows)[0].tolist())
        tokens, mask = (torch.from_numpy(x) for x in env.engine.canvas.model_input(rows))
        expected = exact.predict(tokens, mask, slice(-48, None)).confidence[0, slice(*window)].numpy()
        observation = env.engine.observation()
        active = observation["action_mask"][0, slice(*window)].astype(bool)
        difference = np.abs(observation["confidence"][0, slice(*window)] - expected)[active].max()
        deviations[window not in begun].append(float(difference))
        begun.add(window)
        _, _, over, _, _ = env.step(rng.random((1, 48)) < 0.3)
        if over[0]:
            break
    assert len(begun) == 6
    assert max(deviations[True]) < 2e-5
    assert max(deviations[False]) > 1e-4  # else there is nothing approximate, and nothing was cached


def kept_and_overwritten(backend, tokens, attention_mask, kept, stale):
    """Confidences ``(L,)`` of a full pass in which the stale columns' keys and values are those kept.

    With ``kept`` None, keeps them: a list of what every key and value projection gave.
    """
    projections = [
        getattr(layer.self_attn, f"{which}_proj") for layer in backend.model.model.layers for which in "kv"
    ]
    found, handles = [], []

    def hook(at):
        def replace(module, inputs, output):
            if kept is not None:
                output = torch.where(stale[None, :, None], kept[at], output)
            found.append(output)
            return output

        return replace

    handles = [module.register_forward_hook(hook(at)) for at, module in enumerate(projections)]
    try:
        prediction = backend.predict(tokens, attention_mask, slice(-LENGTH * 2, None))
    finally:
        for handle in handles:
            handle.remove()
    return prediction, found


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("name", EMBEDDED)
def test_within_a_block_the_rest_is_as_it_was_at_its_beginning(name, cache):
    length, block = 2 * LENGTH, 6
    exact, cached = load_backend(name), load_backend(name, cache=cache)
    memory = cached.memory(1, length)
    memory.forget(np.arange(1))
    prompt = cached.encode_prompt(dllm_gym.load_task("arithmetic").problem(0).prompt)
    tokens = torch.tensor([prompt + [cached.mask_token_id] * length])
    attention_mask = torch.ones_like(tokens)
    columns, completion = torch.arange(tokens.shape[1]), len(prompt)
    shift = int(cached.family.shift_logits)
    last = None
    for begin in range(0, length, block):
        kept = None
        for step in range(3):
            window = np.array([[begin, begin + block]])
            prediction = memory.predict(np.arange(1), window, tokens, attention_mask)
            fresh = columns >= completion + begin - shift
            if cache == "dual":
                fresh &= columns < completion + begin + block
            expected, found = kept_and_overwritten(exact, tokens, attention_mask, kept, ~fresh)
            kept = kept or found
            told = slice(begin, begin + block if cache == "dual" else length)
            torch.testing.assert_close(
                prediction.confidence[:, told], expected.confidence[:, told], atol=2e-5, rtol=0
            )
            if step == 0:
                last = expected.confidence
            elif cache == "dual":  # what follows the block is as it was
                behind = slice(begin + block, None)
                torch.testing.assert_close(prediction.confidence[:, behind], last[:, behind])
            write = completion + begin + 2 * step + torch.arange(2)
            tokens[0, write] = prediction.tokens[0, write - completion]


@pytest.mark.parametrize(
    ("name", "cache"),
    [("tiny-arithmetic", "prefix"), ("tiny-arithmetic-dream", "dual"), ("SDAR-1.7B-Chat", "block")],
)
def test_a_cached_row_does_not_depend_on_the_others(checkpoint, name, cache):
    backend = name if name in EMBEDDED else checkpoint(name)
    block = {} if cache == "block" else {"block_length": 4}

    def begun(problems):
        env = UnmaskVectorEnv(
            len(problems),
            task="arithmetic",
            backend=backend,
            backend_kwargs={"cache": cache},
            completion_length=LENGTH,
            **block,
        )
        env.engine.start(np.arange(len(problems)), problems)
        env.engine.predict(np.arange(len(problems)))
        return env.engine

    rows = np.arange(4)
    together, singles = begun([0, 1, 2, 3]), [begun([row]) for row in range(4)]
    rng = np.random.default_rng(0)
    for _ in range(12):
        selected = rng.random((4, LENGTH)) < 0.35
        together.act(rows, selected)
        together.predict(rows)
        observation = together.observation()
        for row, single in enumerate(singles):
            single.act(np.arange(1), selected[row : row + 1])
            single.predict(np.arange(1))
            theirs = single.observation()
            assert np.array_equal(observation["mask"][row], theirs["mask"][0])
            np.testing.assert_allclose(observation["confidence"][row], theirs["confidence"][0], atol=2e-5)


def test_refused(checkpoint):
    with pytest.raises(
        ValueError, match="attends in all directions: cache must be prefix or dual, got 'block'"
    ):
        load_backend("tiny-arithmetic", cache="block")
    with pytest.raises(ValueError, match="attends block by block: cache must be block, got 'dual'"):
        load_backend(checkpoint("SDAR-1.7B-Chat"), cache="dual")
    with pytest.raises(ValueError, match="got 'hot'"):
        load_backend("tiny-arithmetic", residual_context="hot")
    with pytest.raises(ValueError, match="without cache"):
        load_backend("tiny-arithmetic", residual_context=True, cache="dual")


# Residual context ------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**31), words=st.integers(2, 40), width=st.integers(1, 16), sharp=st.floats(0, 50))
def test_residual_context_mixes_by_entropy(seed, words, width, sharp):
    generator = torch.Generator().manual_seed(seed)
    p = (sharp * torch.randn(3, words, generator=generator)).softmax(-1)
    embeddings, mask = torch.randn(words, width, generator=generator), torch.randn(width, generator=generator)
    mixed = residual_context(p, embeddings, mask)
    for row in range(3):
        entropy = -sum(float(x) * math.log(float(x)) for x in p[row] if x > 0)
        share = entropy / math.log(words)
        expected = sum(float(x) * e for x, e in zip(p[row], embeddings, strict=True))
        torch.testing.assert_close(mixed[row], (1 - share) * mask + share * expected, atol=1e-4, rtol=1e-3)


def test_the_certain_and_the_clueless():
    embeddings, mask = torch.eye(4), torch.full((4,), 9.0)
    assert torch.equal(residual_context(torch.tensor([0.0, 1, 0, 0]), embeddings, mask), mask)
    mixed = residual_context(torch.full((4,), 0.25), embeddings, mask)
    torch.testing.assert_close(mixed, torch.full((4,), 0.25))


numbers = st.fixed_dictionaries(
    {"scale": st.floats(-1, 2), "steepness": st.floats(-9, 9), "offset": st.floats(-3, 1)}
)


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**31),
    words=st.integers(1, 40),
    width=st.integers(1, 16),
    sharp=st.floats(0.5, 50),  # no two are equally likely
    numbers=numbers,
)
def test_soft_masks_mix_the_three_likeliest(seed, words, width, sharp, numbers):
    generator = torch.Generator().manual_seed(seed)
    p = (sharp * torch.randn(4, words, generator=generator)).softmax(-1)
    embeddings, mask = torch.randn(words, width, generator=generator), torch.randn(width, generator=generator)
    mixed = soft_mask(p, embeddings, mask, **numbers)
    for row in range(4):
        entropy = -sum(float(x) * math.log(float(x)) for x in p[row] if x > 0)
        certain = numbers["steepness"] * (-entropy - numbers["offset"])
        share = numbers["scale"] / (1 + math.exp(-certain))
        best = sorted(range(words), key=lambda word: -float(p[row, word]))[:3]
        total = sum(float(p[row, word]) for word in best)
        expected = sum(float(p[row, word]) / total * embeddings[word] for word in best)
        torch.testing.assert_close(mixed[row], (1 - share) * mask + share * expected, atol=1e-4, rtol=1e-3)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), steepness=st.floats(-50, 50), offset=st.floats(-5, 5))
def test_soft_masks_of_scale_0_are_masks(seed, steepness, offset):
    generator = torch.Generator().manual_seed(seed)
    p = (20 * torch.randn(7, 9, generator=generator)).softmax(-1)
    embeddings, mask = torch.randn(9, 5, generator=generator), torch.randn(5, generator=generator)
    mixed = soft_mask(p, embeddings, mask, scale=0.0, steepness=steepness, offset=offset)
    assert torch.equal(mixed, mask.expand(7, 5))


CERTAIN = {"scale": 0.9, "steepness": 6.0, "offset": -0.8}
UNCERTAIN = {"scale": 0.7, "steepness": -5.0, "offset": -0.5}


@pytest.fixture(scope="module")
def soft(tmp_path_factory):
    """Directories of ``tiny-arithmetic`` with given numbers of soft masks, written once each."""
    written = {}

    def get(numbers):
        key = json.dumps(numbers)
        if key not in written:
            directory = shutil.copytree(
                ASSETS / "tiny-arithmetic", tmp_path_factory.mktemp("soft") / "checkpoint"
            )
            config = json.loads((directory / "config.json").read_text())
            (directory / "config.json").write_text(json.dumps({**config, "residual_context": numbers}))
            written[key] = str(directory)
        return written[key]

    return get


def with_residual(start, source="tiny-arithmetic"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_backend(source, residual_context=start)


@pytest.mark.parametrize("start", ["cold", "warm"])
@pytest.mark.parametrize("numbers", [None, CERTAIN, UNCERTAIN], ids=["rcd", "certain", "uncertain"])
def test_masks_are_fed_with_what_the_last_step_thought(start, numbers, soft):
    """Two steps, by hand."""
    backend = with_residual(start, "tiny-arithmetic" if numbers is None else soft(numbers))
    mix = residual_context if numbers is None else partial(soft_mask, **numbers)
    length = 10
    memory = backend.memory(3, length)
    row = np.array([1])
    memory.forget(row)
    prompt = backend.encode_prompt(dllm_gym.load_task("arithmetic").problem(0).prompt)
    tokens = torch.tensor([prompt + [backend.mask_token_id] * length])
    table = backend.model.get_input_embeddings().weight
    embedded = table[tokens]

    def forward():
        with torch.inference_mode():
            positions = torch.arange(-tokens.shape[1], 0)[None]
            logits = backend.model(inputs_embeds=embedded, position_ids=positions).logits[:, -length:]
            logits[..., backend.mask_token_id] = -torch.inf
            return logits.softmax(-1)

    if start == "warm":
        embedded = embedded.clone()
        embedded[:, -length:] = mix(forward(), table, table[backend.mask_token_id])
    for _ in range(2):
        prediction = memory.predict(row, np.array([[0, length]]), tokens, torch.ones_like(tokens))
        p = forward()
        torch.testing.assert_close(prediction.confidence, p.max(-1).values, atol=2e-5, rtol=0)
        revealed = prediction.confidence[0].argmax()
        tokens[0, len(prompt) + revealed] = prediction.tokens[0, revealed]
        embedded = table[tokens].clone()
        masked = tokens[0, -length:] == backend.mask_token_id
        context = mix(p, table, table[backend.mask_token_id])
        embedded[0, -length:][masked] = context[0][masked]


def observed(rows, problems, **kwargs):
    """Observations of episodes in which the two surest positions are revealed per step."""
    env = UnmaskVectorEnv(rows, task="arithmetic", observe=("tokens", "entropy"), **kwargs)
    env.reset(seed=0)
    env.engine.start(np.arange(rows), problems)
    env.engine.predict(np.arange(rows))
    seen = [env.engine.observation()]
    for _ in range(8):
        sure = np.where(seen[-1]["action_mask"] == 1, seen[-1]["confidence"], -1)
        action = np.zeros_like(sure)
        np.put_along_axis(action, np.argsort(-sure, axis=1, kind="stable")[:, :2], 1, axis=1)
        seen.append(env.step(action)[0])
    return seen


def test_a_scale_of_0_changes_no_bit(soft):
    source = soft({**CERTAIN, "scale": 0.0})
    plain, cold, warm = (
        observed(3, [4, 5, 6], backend=source, backend_kwargs={"residual_context": start})
        for start in (False, "cold", "warm")
    )
    for at, step in enumerate(plain):
        for name, values in step.items():
            assert np.array_equal(values, cold[at][name]), name
            assert np.array_equal(values, warm[at][name]), name


def test_without_the_option_a_checkpoint_with_soft_masks_is_plain(soft):
    seen = [observed(2, [0, 1], backend=source) for source in (soft(CERTAIN), "tiny-arithmetic")]
    for one, other in zip(*seen, strict=True):
        assert all(np.array_equal(values, other[name]) for name, values in one.items())
    fed = observed(2, [0, 1], backend=soft(CERTAIN), backend_kwargs={"residual_context": True})
    assert np.array_equal(fed[0]["confidence"], seen[0][0]["confidence"])  # nothing is known yet
    assert not np.array_equal(fed[1]["confidence"], seen[0][1]["confidence"])


def test_soft_masks_do_not_depend_on_the_neighbours(soft):
    kwargs = {"backend": soft(CERTAIN), "backend_kwargs": {"residual_context": True}}
    together = observed(4, [3, 40, 17, 8], **kwargs)
    for row, problem in enumerate((3, 40, 17, 8)):
        for step, alone in zip(together, observed(1, [problem], **kwargs), strict=True):
            assert np.array_equal(step["tokens"][row], alone["tokens"][0])
            # what rounds differently is fed back
            np.testing.assert_allclose(step["confidence"][row], alone["confidence"][0], atol=1e-3)


@pytest.mark.parametrize(("start", "forwards"), [(False, 12), ("cold", 12), ("warm", 13)])
def test_every_forward_counts(start, forwards, soft):
    result = dllm_gym.evaluate(
        "confidence:k=4", 3, backend=soft(CERTAIN), backend_kwargs={"residual_context": start}
    )
    assert result.records.nfe.tolist() == [forwards] * 3


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"scale": 0.5, "steepness": 1.0}, "residual_context lacks offset"),
        ({**CERTAIN, "scale": "much"}, "residual_context: scale must be a finite number, got 'much'"),
        ({**CERTAIN, "offset": float("nan")}, "residual_context: offset must be a finite number, got nan"),
    ],
)
def test_damaged_numbers_of_soft_masks_speak(numbers, message, soft):
    with pytest.raises(ValueError, match=message):
        load_backend(soft(numbers))


def test_a_stock_checkpoint_says_so():
    dllm_gym.backends._loaded.clear()
    with pytest.warns(UserWarning, match="not trained with residual context"):
        load_backend("tiny-arithmetic", residual_context=True)


def test_an_episode_begins_without_the_last_ones_thoughts():
    kwargs = {"task": "arithmetic", "backend": with_residual("cold"), "autoreset_mode": "SameStep"}
    seen = []
    for before in (0, 3):
        env = UnmaskVectorEnv(2, **kwargs)
        env.reset(seed=0)
        for _ in range(before):
            env.step(np.ones((2, 48)))
        env.engine.start(np.arange(2), [7, 8])
        env.engine.predict(np.arange(2))
        seen.append(env.engine.observation()["confidence"])
    assert np.array_equal(*seen)


def test_results_tell_the_cache():
    result = dllm_gym.evaluate(
        "fast-dllm:threshold=0.9", 4, task="arithmetic", block_length=8, backend_kwargs={"cache": "dual"}
    )
    assert json.loads(json.dumps(result.to_json()))["backend_kwargs"] == {"cache": "dual"}
