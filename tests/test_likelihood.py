"""Log-likelihoods of answers: LLaDA's estimate against its own steps, and against all masks there are."""

from __future__ import annotations

from itertools import product

import family_checkpoints
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from llada_reference import ReferenceLLaDA, write_checkpoint
from toy_backend import ToyBackend

import dllm_gym
from dllm_gym import likelihood
from dllm_gym.backends.transformers_backend import TransformersBackend
from dllm_gym.likelihood import are_greedy, draw_masks, log_likelihoods


@pytest.fixture(scope="module")
def random_llada(tmp_path_factory):
    """A dLLM with random weights, and an independent forward for it."""
    directory = write_checkpoint(tmp_path_factory.mktemp("llada"))
    return TransformersBackend(directory), ReferenceLLaDA(directory)


@pytest.fixture(scope="module")
def arithmetic():
    return dllm_gym.load_backend("tiny-arithmetic")


def token_pairs(count, longest=6, seed=0):
    rng = np.random.default_rng(seed)
    return [
        (
            rng.integers(5, 40, rng.integers(1, 9)).tolist(),
            rng.integers(5, 40, rng.integers(1, longest)).tolist(),
        )
        for _ in range(count)
    ]


def weighted_loss(backend, reference, pair, mask):
    """``get_log_likelihood.py``: the cross-entropy of what is masked over the share that is masked."""
    prompt, answer = pair
    tokens = torch.tensor([*prompt, *answer])
    masked = torch.cat([torch.zeros(len(prompt), dtype=torch.bool), torch.as_tensor(mask)])
    logits = reference(torch.where(masked, backend.mask_token_id, tokens).tolist())
    loss = torch.nn.functional.cross_entropy(logits[masked], tokens[masked], reduction="sum")
    return float(loss) / (float(mask.sum()) / len(answer))


# The masks -------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 64), st.integers(0, 2**32))
def test_numbers_of_masks_are_those_of_llada(length, samples, seed):
    """``forward_process`` of LLaDA's ``get_log_likelihood.py``, for the number it begins with."""
    counts = draw_masks(length, samples, np.random.default_rng(seed)).sum(1)
    assert counts.min() >= 1
    assert counts.max() <= length
    k = int(np.random.default_rng(seed).integers(1, length + 1))
    spread = torch.linspace(k, k + (samples - 1) * (length / samples), steps=samples, dtype=torch.float64)
    rounded = (counts - spread.numpy() + length / 2) % length - length / 2  # beyond all tokens it begins anew
    assert np.abs(rounded).max() <= 0.5 + 1e-9


def test_every_token_is_masked_as_often():
    masks = draw_masks(5, 20_000, np.random.default_rng(0))
    for count in range(1, 6):
        share = masks[masks.sum(1) == count].mean(0)
        np.testing.assert_allclose(share, count / 5, atol=0.03)


# The estimate ----------------------------------------------------------------------------------------------


def test_it_is_the_loss_of_llada_for_the_same_masks(random_llada, monkeypatch):
    backend, reference = random_llada
    drawn = []

    def draw(length, samples, rng):
        drawn.append(draw_masks(length, samples, rng))
        return drawn[-1]

    monkeypatch.setattr(likelihood, "draw_masks", draw)
    pairs = token_pairs(6)
    found = log_likelihoods(backend, pairs, samples=12)
    for one, pair, masks in zip(found, pairs, drawn, strict=True):
        losses = [weighted_loss(backend, reference, pair, mask) for mask in masks]
        assert one == pytest.approx(-np.mean(losses), rel=1e-5)


def test_it_tends_to_the_mean_over_all_masks(random_llada):
    """Uniform over the number of masks, and then over those of that number: what LLaDA's bound is."""
    backend, reference = random_llada
    pair = ([7, 9, 11], [20, 6, 31])
    by_count = {count: [] for count in (1, 2, 3)}
    for bits in product([False, True], repeat=3):
        if any(bits):
            by_count[sum(bits)].append(weighted_loss(backend, reference, pair, np.array(bits)))
    exact = -np.mean([np.mean(losses) for losses in by_count.values()])
    (found,) = log_likelihoods(backend, [pair], samples=30_000)
    assert found == pytest.approx(exact, rel=0.01)


def test_an_answer_of_one_token_is_exact_and_takes_one_row(arithmetic, monkeypatch):
    rows = []
    forward = arithmetic.forward
    monkeypatch.setattr(
        arithmetic, "forward", lambda tokens, *rest: (rows.append(len(tokens)), forward(tokens, *rest))[1]
    )
    pairs = [(arithmetic.encode_prompt(text), [token]) for text in ("Sam has 2", "Mia") for token in (9, 30)]
    found = log_likelihoods(arithmetic, pairs, samples=64)
    assert rows == [4]
    for one, (prompt, (token,)) in zip(found, pairs, strict=True):
        canvas = torch.tensor([[*prompt, arithmetic.mask_token_id]])
        logits, _ = forward(canvas, torch.ones_like(canvas), torch.tensor([len(prompt)]))
        assert one == pytest.approx(float(logits[0, 0].log_softmax(-1)[token]), rel=1e-5)


@pytest.mark.parametrize("name", ["tiny-arithmetic", "tiny-arithmetic-dream"])
def test_right_answers_are_more_probable(name):
    """Of two that differ in one digit; rows of the logits are those about the token, in both families."""
    backend, task = dllm_gym.load_backend(name), dllm_gym.load_task("arithmetic", split="test")
    pairs = []
    for index in range(6):
        problem = task.problem(index)
        text = task.write(problem, np.random.default_rng(index))
        wrong = text[:-1] + str((int(text[-1]) + 1) % 10)
        pairs += [
            (backend.encode_prompt(problem.prompt), backend.encode_text(each)) for each in (text, wrong)
        ]
    found = log_likelihoods(backend, pairs, samples=32, batch_size=64).reshape(-1, 2)
    assert (found[:, 0] > found[:, 1]).all()


def test_neighbours_order_and_batch_size_change_nothing(random_llada):
    backend, _ = random_llada
    pairs = token_pairs(7, seed=1)
    expected = log_likelihoods(backend, pairs, samples=9)
    np.testing.assert_allclose(log_likelihoods(backend, pairs, 9, batch_size=1), expected, rtol=1e-5)
    turned = log_likelihoods(backend, pairs[::-1], 9, batch_size=4)[::-1]
    np.testing.assert_allclose(turned, expected, rtol=1e-5)
    assert not np.allclose(log_likelihoods(backend, pairs, 9, seed=1), expected, rtol=1e-3)


# Greedy answers --------------------------------------------------------------------------------------------


def test_greedy_is_what_the_dllm_itself_writes(arithmetic):
    prompts = [arithmetic.encode_prompt(text) for text in ("Sam has 2", "Mia has 7 pens", "Leo")]
    pairs = []
    for prompt, length in zip(prompts, (3, 5, 3), strict=True):
        canvas = torch.tensor([*prompt, *[arithmetic.mask_token_id] * length])
        while (masked := canvas == arithmetic.mask_token_id).any():
            own = arithmetic.predict(canvas[None], torch.ones_like(canvas)[None], slice(-length, None))
            at = torch.where(masked[-length:], own.confidence[0], -1.0).argmax()
            canvas[len(prompt) + at] = own.tokens[0, at]
        pairs.append((prompt, canvas[len(prompt) :].tolist()))
    assert are_greedy(arithmetic, pairs, batch_size=2).tolist() == [True] * 3
    changed = [(prompt, [*answer[:-1], answer[-1] - 1]) for prompt, answer in pairs]
    assert are_greedy(arithmetic, [pairs[0], *changed]).tolist() == [True, False, False, False]


# What is refused -------------------------------------------------------------------------------------------


def test_dllms_it_says_nothing_about_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a dLLM that shows its logits, ToyBackend does not"):
        log_likelihoods(ToyBackend(), [([1], [2])])
    directory = family_checkpoints.write_sdar(tmp_path / "SDAR-1.7B-Chat-b4")
    with pytest.raises(ValueError, match="attends in blocks of 4: LLaDA's estimate"):
        log_likelihoods(TransformersBackend(directory), [([6], [7])])
    backend = TransformersBackend(directory, attention_block="full")
    assert log_likelihoods(backend, [([6], [7])], samples=1) < 0


@pytest.mark.parametrize(
    ("pair", "options", "message"),
    [
        (([], [7]), {}, r"must have a token each, got \[\] and \[7\]"),
        (([7], []), {}, r"must have a token each, got \[7\] and \[\]"),
        (([7], [7]), {"samples": 0}, "samples must be at least 1, got 0"),
        (([7], [7]), {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (([7] * 5000, [7]), {}, "prompt and answer take 5001 tokens; this dLLM has"),
    ],
)
def test_what_has_no_likelihood_is_refused(random_llada, pair, options, message):
    with pytest.raises(ValueError, match=message):
        log_likelihoods(random_llada[0], [pair], **options)
