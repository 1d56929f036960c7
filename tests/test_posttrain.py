"""Post-training: likelihoods by brute force, gradients by differences, runs that go on to the same bits."""

from __future__ import annotations

import itertools
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deaths import posttrain_until
from hypothesis import given, settings
from hypothesis import strategies as st
from llada_reference import ReferenceLLaDA
from safetensors.torch import load_file
from test_paper import write_problems, write_tiny_checkpoint
from tiny_dllm import Ones, write_tiny_dllm

import dllm_gym.tasks
from dllm_agents import posttrain
from dllm_agents.config import find_config
from dllm_agents.posttraining import running
from dllm_agents.posttraining.agrpo import AGRPO, draw_steps, low_discrepancy
from dllm_agents.posttraining.config import (
    METHODS,
    PosttrainConfig,
    find_posttrain_config,
    load_posttrain_config,
    posttrain_config,
)
from dllm_agents.posttraining.learning import Learner, learning_rate
from dllm_agents.posttraining.masked import CoupledGRPO, DiffuGRPO
from dllm_agents.posttraining.parameters import merged_state, trained_parameters
from dllm_agents.posttraining.rollouts import Rollouts, collect
from dllm_agents.posttraining.scoring import log_likelihood, policy_loss
from dllm_gym import cli
from dllm_gym.backends import load_backend, own_backend
from dllm_gym.envs.engine import Engine
from dllm_gym.evaluation import as_agent, evaluate
from dllm_gym.files import read_json

quick = settings(deadline=None, max_examples=25)


@pytest.fixture(scope="module")
def dllm(tmp_path_factory) -> Path:
    return write_tiny_dllm(tmp_path_factory.mktemp("dllm") / "tiny")


@pytest.fixture(scope="module")
def backend(dllm) -> Any:
    return own_backend(dllm)


@pytest.fixture(scope="module")
def reference(dllm) -> ReferenceLLaDA:
    return ReferenceLLaDA(dllm)


@pytest.fixture(autouse=True)
def ones(monkeypatch):
    monkeypatch.setitem(dllm_gym.tasks._TASKS, "ones", Ones)


def make_rollouts(backend: Any, completions: Any, order: Any, **changes: Any) -> Rollouts:
    """Episodes whose prompts are one, two, three, one, ... zeros long."""
    completions, order = np.array(completions), np.array(order)
    count, zero = len(completions), backend.tokenizer.convert_tokens_to_ids("0")
    lengths = [1 + at % 3 for at in range(count)]
    prompts = np.array([[backend.pad_token_id] * (3 - n) + [zero] * n for n in lengths])
    real = np.array([[0] * (3 - n) + [1] * (n + completions.shape[1]) for n in lengths])
    rng = np.random.default_rng(0)
    fixed = {
        "sequences": np.concatenate([prompts, completions], axis=1),
        "attention_mask": real,
        "reveal_step": order,
        "entropy": rng.uniform(0.1, 1.0, completions.shape).astype(np.float32),
        "is_end": completions == backend.eos_token_id,
        "rewards": rng.random(count),
        "scores": np.zeros(count),
        "paid_for": np.zeros(count),
        "steps": order.max(axis=1),
        "group_size": count,
    }
    return Rollouts(**{**fixed, **changes})


def random_rollouts(backend: Any, seed: int, count: int = 4, length: int = 3) -> Rollouts:
    rng = np.random.default_rng(seed)
    completions = rng.integers(backend.mask_token_id, size=(count, length))  # the mask is the last token
    order = np.array([rng.permutation(length) // 2 + 1 for _ in range(count)])  # two in the first step
    return make_rollouts(backend, completions, order)


def log_p(reference: ReferenceLLaDA, rollouts: Rollouts, row: int, hidden: Any, mask: int, t: float = 1.0):
    """Log-probabilities ``(L, V)`` after one unpadded sequence, some of its tokens hidden."""
    real = rollouts.attention_mask[row] != 0
    shown = np.where(hidden, mask, rollouts.sequences[row])[real].tolist()
    logits = reference(shown)[-rollouts.length :] / t
    logits[:, mask] = -torch.inf
    return logits.log_softmax(-1)


# Likelihoods -----------------------------------------------------------------------------------------------


def all_steps(rollouts: Rollouts) -> Any:
    """The scoring of every step of every episode, a line each, in order."""
    most = int(rollouts.reveal_step.max())
    steps = np.tile(np.arange(1, most + 1), (len(rollouts.reveal_step), 1))

    class Every(AGRPO):
        pass

    method = Every(samples=most, temperature=1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dllm_agents.posttraining.agrpo.draw_steps", lambda *_: (steps, np.ones(steps.shape)))
        return method.scoring(rollouts, np.random.default_rng(0))


def test_the_likelihoods_of_everything_that_can_be_written_add_up_to_one(backend):
    """Two positions at once, then the third, of six tokens: 216 completions."""
    everything = list(itertools.product(range(backend.mask_token_id), repeat=3))
    alike = {"attention_mask": np.ones((216, 4), dtype=np.int64)}
    rollouts = make_rollouts(backend, everything, np.tile([1, 2, 1], (216, 1)))
    zero = backend.tokenizer.convert_tokens_to_ids("0")
    prompts = np.full((216, 1), zero)
    rollouts = make_rollouts(
        backend, everything, rollouts.reveal_step,
        sequences=np.concatenate([prompts, rollouts.completions], axis=1), **alike,
    )  # fmt: skip
    scoring = all_steps(rollouts)
    with torch.no_grad():
        of_steps = log_likelihood(backend, rollouts, scoring).sum(1).view(216, 2).sum(1)
    assert float(of_steps.exp().sum()) == pytest.approx(1.0, abs=1e-5)
    assert float(of_steps.exp().std()) > 1e-3  # and they differ


@quick
@given(seed=st.integers(0, 2**32), temperature=st.sampled_from([0.6, 1.0, 1.7]))
def test_agrpo_scores_the_true_steps(backend, reference, seed, temperature):
    rollouts = random_rollouts(backend, seed)
    scoring = AGRPO(samples=3, temperature=temperature).scoring(rollouts, np.random.default_rng(seed))
    with torch.no_grad():
        found = log_likelihood(backend, rollouts, scoring)
    assert found.shape == (12, 3)
    for line, row in enumerate(scoring.episodes.tolist()):
        order = rollouts.reveal_step[row]
        revealed_now = scoring.weights[line] > 0
        (step,) = set(order[revealed_now])
        assert (order[revealed_now] == step).all()
        assert (order[~revealed_now] != step).all()
        hidden = np.concatenate([np.zeros(3, dtype=bool), order >= step])
        expected = log_p(reference, rollouts, row, hidden, backend.mask_token_id, temperature)
        for at in range(3):
            wanted = float(expected[at, rollouts.completions[row, at]]) if revealed_now[at] else 0.0
            assert float(found[line, at]) == pytest.approx(wanted, abs=2e-4)


@quick
@given(seed=st.integers(0, 2**32))
def test_coupled_grpo_scores_every_token_with_all_masked_and_on_one_of_a_pair(backend, reference, seed):
    rollouts = random_rollouts(backend, seed)
    scoring = CoupledGRPO().scoring(rollouts, np.random.default_rng(seed))
    t = np.random.default_rng(seed).uniform(0.2, 0.8)
    hidden = scoring.hidden[:, :, 3:]
    assert not scoring.hidden[:, :, :3].any()
    assert hidden[:, 0].all()
    assert (hidden[:, 1] ^ hidden[:, 2]).all()
    with torch.no_grad():
        found = log_likelihood(backend, rollouts, scoring)
    for row in range(4):
        full, first, second = (
            log_p(reference, rollouts, row, scoring.hidden[row, k], backend.mask_token_id) for k in range(3)
        )
        for at in np.flatnonzero(rollouts.text[row]):
            token = rollouts.completions[row, at]
            partial = first[at, token] / t if hidden[row, 1, at] else second[at, token] / (1 - t)
            assert float(found[row, at]) == pytest.approx(float(full[at, token] + partial) / 2, abs=5e-4)


@quick
@given(seed=st.integers(0, 2**32))
def test_diffu_grpo_scores_with_all_and_some_of_the_prompt_masked(backend, reference, seed):
    rollouts = random_rollouts(backend, seed)
    scoring = DiffuGRPO(prompt_masked=0.5).scoring(rollouts, np.random.default_rng(seed))
    assert scoring.hidden.shape == (4, 1, 6)
    assert scoring.hidden[:, :, 3:].all()
    assert not scoring.hidden[:, 0][rollouts.attention_mask == 0].any()  # padding is no prompt
    with torch.no_grad():
        found = log_likelihood(backend, rollouts, scoring)
    for row in range(4):
        expected = log_p(reference, rollouts, row, scoring.hidden[row, 0], backend.mask_token_id)
        for at in np.flatnonzero(rollouts.text[row]):
            wanted = float(expected[at, rollouts.completions[row, at]])
            assert float(found[row, at]) == pytest.approx(wanted, abs=2e-4)


@pytest.mark.parametrize("method", [AGRPO(samples=2), CoupledGRPO(), DiffuGRPO()])
def test_pieces_are_the_whole(backend, method):
    rollouts = random_rollouts(backend, 3, count=5)
    scoring = method.scoring(rollouts, np.random.default_rng(0))
    with torch.no_grad():
        whole = log_likelihood(backend, rollouts, scoring)
        parts = [log_likelihood(backend, rollouts, piece) for _, piece in scoring.pieces(4)]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=1e-5)
    assert len(parts) == math.ceil(len(whole) / (4 // scoring.hidden.shape[1]))


def test_what_was_never_revealed_and_what_follows_the_end_is_no_text(backend):
    end, one = backend.eos_token_id, 5
    rollouts = make_rollouts(
        backend, [[one, end, one, one], [one, one, one, backend.mask_token_id]], [[1, 1, 2, 2], [2, 1, 3, 0]]
    )
    assert rollouts.text.tolist() == [[True, True, False, False], [True, True, True, False]]
    for method in (CoupledGRPO(), DiffuGRPO()):
        scoring = method.scoring(rollouts, np.random.default_rng(0))
        assert scoring.weights == pytest.approx(np.where(rollouts.text, 1 / 5, 0.0))
        with torch.no_grad():
            assert torch.isfinite(log_likelihood(backend, rollouts, scoring)).all()


# Which steps AGRPO draws -----------------------------------------------------------------------------------


@quick
@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 9))
def test_low_discrepancy_numbers_are_one_in_each_interval(seed, count, samples):
    drawn = low_discrepancy(count, samples, np.random.default_rng(seed))
    assert drawn.shape == (count, samples)
    size = count * samples
    assert sorted(np.floor(drawn.flatten() * size).astype(int)) == list(range(size))


@quick
@given(seed=st.integers(0, 2**32))
def test_weighted_draws_estimate_the_mean_over_steps(backend, seed):
    """Whatever a step is worth: the draws' expectation, on a fine grid, is the plain mean."""
    rollouts = random_rollouts(backend, seed, length=6)
    grid = (np.arange(20_000) + 0.5) / 20_000
    steps, importance = draw_steps(rollouts, np.tile(grid, (4, 1)))
    worth = np.random.default_rng(seed).random(8)
    for row in range(4):
        not_end = rollouts.reveal_step[row][~rollouts.is_end[row]]
        last = int(not_end.max()) if len(not_end) else 3
        assert steps[row].max() <= last
        found = float((worth[steps[row]] * importance[row]).mean())
        assert found == pytest.approx(worth[1 : last + 1].mean(), rel=2e-3)


def test_uncertain_steps_are_drawn_more_often(backend):
    rollouts = make_rollouts(
        backend, [[4, 5, 4]], [[1, 2, 3]], entropy=np.array([[0.1, 0.3, 0.0]], dtype=np.float32)
    )
    steps, _ = draw_steps(rollouts, np.array([(np.arange(400) + 0.5) / 400]))
    assert np.bincount(steps[0], minlength=4).tolist() == [0, 100, 300, 0]


def test_an_episode_that_revealed_nothing_teaches_nothing(backend):
    """With ``on_empty="noop"`` there may be one; the others are scored as ever."""
    mask = backend.mask_token_id
    completions, order = [[mask] * 3, [4, 5, 4]], [[0, 0, 0], [1, 2, 2]]
    for chosen in ([0, 1], [0]):
        rollouts = make_rollouts(backend, np.array(completions)[chosen], np.array(order)[chosen])
        scoring = AGRPO(samples=3).scoring(rollouts, np.random.default_rng(0))
        assert not scoring.weights[scoring.episodes == 0].any()
        with torch.no_grad():
            assert torch.isfinite(log_likelihood(backend, rollouts, scoring)).all()
    steps, importance = draw_steps(rollouts, np.full((1, 2), 0.3))
    assert (steps == 1).all()
    assert (importance == 1).all()


# The loss --------------------------------------------------------------------------------------------------


@quick
@given(seed=st.integers(0, 2**32), kl=st.sampled_from([0.0, 0.3]))
def test_the_loss_is_the_one_of_a_loop(seed, kl):
    generator = torch.Generator().manual_seed(seed)
    now, old, anchor = (-3 * torch.rand(3, 4, generator=generator) for _ in range(3))
    advantages, weights = torch.randn(3, generator=generator), torch.rand(3, 4, generator=generator)
    loss, facts = policy_loss(now, old, advantages, weights, 0.3, anchor if kl else None, kl)
    total = 0.0
    for row, column in itertools.product(range(3), range(4)):
        ratio = math.exp(float(now[row, column] - old[row, column]))
        a, w = float(advantages[row]), float(weights[row, column])
        total -= w * min(ratio * a, min(max(ratio, 0.7), 1.3) * a)
        difference = float(anchor[row, column] - now[row, column])
        total += w * kl * (math.exp(difference) - difference - 1)
    assert float(loss) == pytest.approx(total, rel=1e-4, abs=1e-5)
    assert facts["loss"] == float(loss)


@pytest.mark.parametrize("method", [AGRPO(samples=3, kl_coef=0.1), CoupledGRPO(kl_coef=0.1), DiffuGRPO()])
def test_gradients_are_those_of_finite_differences(dllm, method):
    backend = own_backend(dllm)
    parameters = trained_parameters(backend.model, None, 0)
    rollouts = random_rollouts(backend, 7)
    scoring = method.scoring(rollouts, np.random.default_rng(1))
    weights = torch.from_numpy(scoring.weights)
    advantages = torch.from_numpy(rollouts.advantages("mean")[scoring.episodes]).float()
    with torch.no_grad():
        before = log_likelihood(backend, rollouts, scoring)
    anchor = before + 0.1 * torch.randn(before.shape, generator=torch.Generator().manual_seed(0))

    def loss() -> torch.Tensor:
        now = log_likelihood(backend, rollouts, scoring)
        return policy_loss(now, before - 0.01, advantages, weights, 0.5, anchor, method.kl_coef)[0]

    loss().backward()
    slope = sum(float((p.grad**2).sum()) for p in parameters.values())
    step = 2e-3 / slope**0.5  # along the gradient, far enough for float32
    gradients = [p.grad.clone() for p in parameters.values()]
    values = []
    with torch.no_grad():
        for sign in (1, -2):
            for parameter, gradient in zip(parameters.values(), gradients, strict=True):
                parameter += sign * step * gradient
            values.append(float(loss()))
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=2e-2)


def test_agrpo_ascends_the_expected_reward(dllm):
    """Its gradient, averaged over everything that can be written, is that of the expected reward.

    Over the number of steps, which for all episodes here is two.
    """
    backend = own_backend(dllm)
    parameters = trained_parameters(backend.model, None, 0)
    everything = np.array(list(itertools.product(range(4, backend.mask_token_id), repeat=2)))
    everything = np.array(list(itertools.product(range(backend.mask_token_id), repeat=2)))
    count, zero = len(everything), backend.tokenizer.convert_tokens_to_ids("0")
    rewards = np.random.default_rng(0).random(count)
    rollouts = make_rollouts(
        backend, everything, np.tile([2, 1], (count, 1)),
        sequences=np.concatenate([np.full((count, 1), zero), everything], axis=1),
        attention_mask=np.ones((count, 3), dtype=np.int64),
    )  # fmt: skip
    scoring = all_steps(rollouts)
    of_steps = log_likelihood(backend, rollouts, scoring)
    probability = of_steps.sum(1).view(count, 2).sum(1).exp()
    expected_reward = (probability * torch.from_numpy(rewards).float()).sum()
    exact = torch.autograd.grad(expected_reward, list(parameters.values()), retain_graph=True)
    advantages = torch.from_numpy(rewards[scoring.episodes]).float()
    # each episode as often as it is written
    often = probability.detach().repeat_interleave(2)[:, None] * count
    weights = torch.from_numpy(scoring.weights) * often
    loss, _ = policy_loss(of_steps, of_steps.detach(), advantages, weights, 0.2)
    found = torch.autograd.grad(loss, list(parameters.values()))
    for one, other in zip(exact, found, strict=True):
        torch.testing.assert_close(one, -2 * other, atol=1e-5, rtol=1e-3)


def test_lines_without_advantage_may_be_left_out(dllm):
    results = []
    for rewards in ([1.0, 0.0, 0.5, 0.5], [1.0, 0.0, 0.5, 0.5]):
        backend = own_backend(dllm)
        learner = Learner(backend, trained_parameters(backend.model, None, 0), AGRPO(samples=2))
        rollouts = random_rollouts(backend, 1)
        rollouts = make_rollouts(
            backend, rollouts.completions, rollouts.reveal_step, rewards=np.array(rewards)
        )
        if results:
            learner.reference = running.Learner(
                backend, learner.parameters, AGRPO(samples=2, kl_coef=1e-30)
            ).reference
        learner.learn(rollouts, np.random.default_rng(0), 1e-2)
        results.append(torch.cat([p.detach().flatten() for p in learner.parameters.values()]))
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=1e-5)


# Rollouts --------------------------------------------------------------------------------------------------


def engine_of(backend: Any, rows: int = 8, **changes: Any) -> Engine:
    fixed = {"task": "ones", "temperature": 1.0, "reward": "correctness", "observe": ("entropy",)}
    return Engine(rows, backend=backend, **{**fixed, **changes})


def test_rollouts_hold_what_was_decoded(backend, reference):
    """Every entropy at its time, and tokens that the distribution of that time can give."""
    rollouts = collect(as_agent("confidence:k=2"), engine_of(backend), [0, 1], 4, seed=1)
    assert rollouts.sequences.shape == (8, rollouts.attention_mask.shape[1])
    assert (np.sort(rollouts.reveal_step, axis=1) == [1, 1, 2, 2]).all()
    assert (rollouts.steps == 2).all()
    ones = (rollouts.completions == backend.tokenizer.convert_tokens_to_ids("1")).sum(axis=1)
    for row in range(8):
        prompt = rollouts.sequences[row][rollouts.attention_mask[row] != 0][:-4].tolist()
        assert prompt == backend.encode_prompt("0 " * (1 + row // 4))
        width = rollouts.sequences.shape[1] - 4
        for at in range(4):
            step = rollouts.reveal_step[row, at]
            hidden = np.concatenate([np.zeros(width, dtype=bool), rollouts.reveal_step[row] >= step])
            p = log_p(reference, rollouts, row, hidden, backend.mask_token_id)[at]
            entropy = float(torch.special.entr(p.exp()).sum())
            assert rollouts.entropy[row, at] == pytest.approx(entropy, abs=1e-4)
    before_end = np.array([not rollouts.is_end[row].any() for row in range(8)])
    assert rollouts.rewards[before_end] == pytest.approx(ones[before_end] / 4)
    assert len(np.unique(rollouts.completions[:4], axis=0)) > 1  # a group draws more than once
    again = collect(as_agent("confidence:k=2"), engine_of(backend, rows=3), [0, 1], 4, seed=1)
    assert (again.completions == rollouts.completions).all()  # however many rows there are


def test_advantages_are_of_groups(backend):
    rollouts = random_rollouts(backend, 0)
    rollouts = make_rollouts(
        backend,
        rollouts.completions,
        rollouts.reveal_step,
        rewards=np.array([1.0, 0.0, 0.5, 0.5]),
        group_size=2,
    )
    assert rollouts.advantages("mean").tolist() == [0.5, -0.5, 0.0, 0.0]
    assert rollouts.advantages("leave-one-out").tolist() == [1.0, -1.0, 0.0, 0.0]
    assert rollouts.flat_groups == 0.5


def test_an_own_dllm_is_shared_with_nobody(dllm):
    shared, own = load_backend(dllm), own_backend(dllm)
    assert own is not shared
    assert own_backend(dllm) is not own
    assert load_backend(dllm) is shared
    before = shared.model.lm_head.weight.clone()
    with torch.no_grad():
        own.model.lm_head.weight.zero_()
    assert torch.equal(shared.model.lm_head.weight, before)


# Configuration ---------------------------------------------------------------------------------------------


def test_the_constants_are_the_published_ones():
    """As read in the authors' recipes; see the docstrings."""
    agrpo, coupled, diffu = (METHODS[name]() for name in ("agrpo", "coupled-grpo", "diffu-grpo"))
    assert (agrpo.group_size, agrpo.samples, agrpo.clip_range, agrpo.temperature) == (8, 24, 0.2, 0.6)
    assert (agrpo.learning_rate, agrpo.iterations, agrpo.kl_coef, agrpo.baseline) == (5e-6, 1, 0.0, "mean")
    assert (coupled.group_size, coupled.iterations, coupled.clip_range, coupled.kl_coef) == (10, 2, 0.5, 0.01)
    assert (coupled.least_masked, coupled.most_masked, coupled.reference_sync) == (0.2, 0.8, 64)
    assert (coupled.learning_rate, coupled.temperature, coupled.baseline) == (1e-6, 1.0, "leave-one-out")
    assert (diffu.group_size, diffu.iterations, diffu.clip_range, diffu.kl_coef) == (6, 12, 0.5, 0.04)
    assert (diffu.learning_rate, diffu.prompt_masked, diffu.baseline) == (3e-6, 0.15, "mean")
    assert (coupled.max_grad_norm, diffu.max_grad_norm, agrpo.max_grad_norm) == (0.2, 0.2, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "grpo"}, "unknown method 'grpo'"),
        ({"rounds": 0}, "rounds must be a whole number of at least 1, got 0"),
        ({"micro_batch_size": 0}, "micro_batch_size must be"),
        ({"max_minutes": -1}, "max_minutes must be positive"),
        ({"seed": -1}, "seed must be"),
        ({"autocast": "yes"}, "autocast must be true or false, got 'yes'"),
        ({"env": {"temperature": 0.5}}, "temperature of the tokens is one of method_kwargs"),
        ({"env": {"split": "test"}}, "it trains on the split train, got 'test'"),
        ({"env": {"backend_kwargs": {"compile": "auto"}}}, "backend_kwargs may not hold compile"),
        ({"env": {"backend_kwargs": {"cache": "dual"}}}, "backend_kwargs may not hold cache"),
        ({"method_kwargs": {"samples": 0}}, "samples must be a whole number of at least 1, got 0"),
        ({"method_kwargs": {"temperature": 0}}, "temperature must be above 0"),
        ({"method_kwargs": {"group_size": 1}}, "group_size must be a whole number of at least 2, got 1"),
        ({"method_kwargs": {"baseline": "critic"}}, "unknown baseline 'critic'"),
        ({"method_kwargs": {"clip_range": -0.1}}, "clip_range must be a finite number of at least 0"),
        ({"method_kwargs": {"warmup": 2}}, "warmup must lie in"),
        ({"method_kwargs": {"prompt_masked": 0.1}}, "prompt_masked"),
        ({"method": "diffu-grpo", "method_kwargs": {"prompt_masked": 1.5}}, "prompt_masked must lie in"),
        ({"method": "coupled-grpo", "method_kwargs": {"least_masked": 0.9}}, "least_masked <= most_masked"),
        ({"lora": 8}, "lora must hold names and values, or be null, got 8"),
        ({"agent": None}, "agent must be a text"),
        ({"colour": "red"}, "unknown configuration fields"),
    ],
)
def test_values_out_of_range_speak(changes, message):
    with pytest.raises(ValueError, match=message):
        posttrain_config(changes)


def test_the_learning_rate_rises_and_falls_like_a_cosine():
    method = AGRPO(learning_rate=1.0, warmup=0.2, final_rate=0.1)
    found = [learning_rate(method, done) for done in (0.0, 0.1, 0.2, 0.6, 1.0)]
    assert found == pytest.approx([0.0, 0.5, 1.0, 0.55, 0.1])
    assert learning_rate(DiffuGRPO(warmup=0.0), 0.7) == 3e-6


# Runs ------------------------------------------------------------------------------------------------------

SMALL = {
    "agent": "confidence:k=2", "groups_per_round": 2, "rounds": 4, "eval_every": 2, "eval_episodes": 4,
    "test_episodes": 4,
}  # fmt: skip


def config_of(dllm: Path, method: str = "agrpo", **changes: Any) -> PosttrainConfig:
    quick = {"group_size": 4, "learning_rate": 1e-2}
    if method != "agrpo":
        quick |= {"iterations": 2, "kl_coef": 0.05, "reference_sync": 3}
    quick |= changes.pop("method_kwargs", {})
    env = {"backend": str(dllm), "task": "ones", **changes.pop("env", {})}
    return PosttrainConfig(method=method, method_kwargs=quick, env=env, **{**SMALL, **changes})


@pytest.mark.parametrize("method", list(METHODS))
def test_a_run_that_is_interrupted_ends_with_the_same_bits(tmp_path, dllm, method):
    config = config_of(dllm, method)
    whole = posttrain(config, tmp_path / "whole")
    posttrain_until(3, config, tmp_path / "cut")
    cut = posttrain(config, tmp_path / "cut", resume=True)
    one, other = (torch.load(run / "training_state.pt", weights_only=True) for run in (whole, cut))
    assert one["round"] == other["round"] == 4
    assert one["updates"] == other["updates"] == 4 * config.made_method().iterations
    for part in ("parameters", "reference"):
        if one[part] is not None:
            assert all(torch.equal(tensor, other[part][name]) for name, tensor in one[part].items()), part
    for row in (*one["history"], *other["history"]):
        del row["seconds"]
    assert one["history"] == other["history"]
    assert (whole / "model.safetensors").read_bytes() == (cut / "model.safetensors").read_bytes()


def test_a_run_becomes_a_checkpoint_like_the_one_it_began_with(tmp_path, dllm):
    directory = posttrain(config_of(dllm), tmp_path / "run", command="what was typed")
    before, after = (load_file(place / "model.safetensors") for place in (dllm, directory))
    assert before.keys() == after.keys()
    assert all(after[name].shape == tensor.shape for name, tensor in before.items())
    assert any(not torch.equal(after[name], tensor) for name, tensor in before.items())
    assert read_json(directory / "config.json") == read_json(dllm / "config.json")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (directory / name).read_bytes() == (dllm / name).read_bytes()
    backend = load_backend(directory)
    row = [*backend.encode_prompt("0 0"), *[backend.mask_token_id] * 4]
    found = backend.predict(
        torch.tensor([row]), torch.ones(1, len(row)), slice(-4, None), statistics=("hidden",)
    )
    expected = ReferenceLLaDA(directory).hidden(row)[-4:]
    torch.testing.assert_close(found.statistics["hidden"][0], expected, atol=1e-4, rtol=1e-4)
    card = (directory / "README.md").read_text(encoding="utf-8")
    assert "what was typed" in card
    tests = read_json(directory / "posttraining.json")["results"]
    result = evaluate("confidence:k=2", 4, backend=str(directory), task="ones", reward="correctness")
    assert tests["after"]["accuracy"] == result.accuracy
    assert f"{result.accuracy:.3f}" in card
    assert load_posttrain_config(directory / "config.yaml") == config_of(dllm)


def test_a_dllm_learns_what_is_rewarded(tmp_path, dllm):
    """Ones were a matter of chance, and are nearly certain after a few dozen rounds."""
    config = config_of(
        dllm, rounds=25, groups_per_round=8, eval_every=25, env={"reward_metric": None},
        method_kwargs={"samples": 2, "group_size": 8, "temperature": 1.0, "learning_rate": 0.02},
    )  # fmt: skip
    directory = posttrain(config, tmp_path / "run")
    rows = json.loads((directory / "metrics.json").read_text())["evaluations"]
    assert rows[-1]["reward_mean"] > rows[0]["reward_mean"] + 0.3


def test_a_run_is_begun_and_resumed_on_purpose(tmp_path, dllm):
    config = config_of(dllm, rounds=1)
    with pytest.raises(FileNotFoundError, match="nothing to resume in"):
        posttrain(config, tmp_path / "run", resume=True)
    posttrain(config, tmp_path / "run")
    with pytest.raises(FileExistsError, match="already holds a training run"):
        posttrain(config, tmp_path / "run")
    with pytest.raises(ValueError, match="differs from the configuration given"):
        posttrain(config_of(dllm, rounds=2), tmp_path / "run", resume=True)


def test_without_a_name_it_trains_the_dllm_that_is_made_for_the_task(tmp_path):
    small = {"group_size": 2, "samples": 2}
    sizes = {"num_envs": 2, "groups_per_round": 1, "rounds": 1, "eval_episodes": 2, "test_episodes": 1}
    config = PosttrainConfig(env={"task": "latin-square"}, method_kwargs=small, **sizes)
    card = (posttrain(config, tmp_path / "run") / "README.md").read_text()
    assert "tiny-latin" in card


def test_what_cannot_be_trained_or_written_is_refused(tmp_path, dllm, toys):
    toy = PosttrainConfig(env={"task": "toy", "backend": "toy"})
    with pytest.raises(ValueError, match="toy is ToyBackend, which has no weights to train here"):
        posttrain(toy, tmp_path / "toy")
    with pytest.raises(ValueError, match=r"env\.actions must be 'reveal', got 'set-state'"):
        posttrain(config_of(dllm, env={"actions": "set-state"}), tmp_path / "back")
    assert not any(tmp_path.glob("*/config.yaml"))


def test_adapters_are_merged_into_what_is_written(tmp_path, dllm):
    pytest.importorskip("peft")
    backend = own_backend(dllm)
    lora = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"]}
    parameters = trained_parameters(backend.model, lora, 0)
    assert all(".lora_" in name for name in parameters)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter += 0.3
    plain = own_backend(dllm)
    row = torch.tensor([[*backend.encode_prompt("0 0"), *[backend.mask_token_id] * 4]])
    asked = (row, torch.ones_like(row), torch.arange(row.shape[1] - 4, row.shape[1]))
    with torch.no_grad():
        wanted, before = backend.forward(*asked)[0], plain.forward(*asked)[0]
        plain.model.load_state_dict(merged_state(backend.model))
        found = plain.forward(*asked)[0]
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert (found - before).abs().max() > 0.1
    directory = posttrain(config_of(dllm, lora=lora, rounds=1), tmp_path / "run")
    assert load_file(directory / "model.safetensors").keys() == load_file(dllm / "model.safetensors").keys()


# What is shipped -------------------------------------------------------------------------------------------

SHIPPED = sorted(find_posttrain_config("agrpo").parent.rglob("*.yaml"))
PAPER = {"llada-agrpo": "llada", "llada-diffu-grpo": "llada", "diffucoder-coupled-grpo": "dream"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_loads(path):
    config = load_posttrain_config(path)
    assert path.stem.endswith(config.method), "a configuration is named after its method"
    place = path.relative_to(SHIPPED[0].parent).with_suffix("").as_posix()
    assert find_posttrain_config(place) == path
    with pytest.raises(FileNotFoundError, match="no configuration"):  # of a policy
        find_config(f"posttrain/{place}")


def test_the_papers_configurations_change_no_constant_of_the_method():
    assert {path.stem for path in SHIPPED if path.parent.name == "paper"} == set(PAPER)
    for name in PAPER:
        assert load_posttrain_config(find_posttrain_config(f"paper/{name}")).method_kwargs == {}


@pytest.mark.parametrize("name", PAPER)
def test_a_dry_run_goes_through_every_line(tmp_path, name):
    """With a tiny checkpoint, problems in a file, 8 tokens, 2 rounds of 2 problems."""
    if "agrpo" in name or "diffu-" in name:
        pytest.importorskip("peft")
    config = load_posttrain_config(find_posttrain_config(f"paper/{name}"))
    short = {
        "backend": str(write_tiny_checkpoint(tmp_path / "dllm", PAPER[name])),
        "backend_kwargs": {**config.env["backend_kwargs"], "dtype": "float32"},  # whatever the CPU has
        "task": "gsm8k",
        "task_kwargs": {"data": write_problems(tmp_path)["gsm8k"]},
        "completion_length": 8,
        "block_length": min(config.env.get("block_length", 8), 4),
    }
    sizes = {"groups_per_round": 2, "rounds": 2, "eval_every": 2, "eval_episodes": 2, "test_episodes": 0}
    config = replace(config, env={**config.env, **short}, **sizes)
    directory = posttrain(config, tmp_path / "run")
    state = torch.load(directory / "training_state.pt", weights_only=True)
    assert state["updates"] == 2 * config.made_method().iterations
    assert all((".lora_" in name) == (config.lora is not None) for name in state["parameters"])
    settings = state["optimizer"]["param_groups"][0]
    assert tuple(settings["betas"]) == (0.9, 0.99)
    assert load_file(directory / "model.safetensors").keys() == (
        load_file(tmp_path / "dllm" / "model.safetensors").keys()
    )


def test_the_command(tmp_path, dllm, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.excepthook", sys.excepthook)  # typer replaces it
    monkeypatch.setattr(cli.app, "registered_commands", list(cli.app.registered_commands))

    def run(*arguments: str) -> tuple[Any, str]:
        monkeypatch.setattr("sys.argv", ["dllm-gym", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code, " ".join(capsys.readouterr().err.split())

    given = ["--dllm", str(dllm), "--task", "ones", "--output", "run", "--rounds", "1"]
    for setting in ("groups_per_round=2", "eval_episodes=4", "test_episodes=4"):
        given += ["--set", setting]
    code, error = run("posttrain", "coupled-grpo", *given)
    assert code == 0, error
    assert "round 1 of 1" in error
    config = load_posttrain_config("run/config.yaml")
    assert config.method_kwargs["learning_rate"] == 1e-4  # of the shipped configuration
    assert (config.rounds, config.env["task"]) == (1, "ones")
    assert run("posttrain", "coupled-grpo", "--output", "run", "--resume")[0] == 0
    assert "unknown method 'grpo'" in run("posttrain", "grpo")[1]
    assert (
        "run/config.yaml configures coupled-grpo, not agrpo"
        in (run("posttrain", "agrpo", "--output", "run", "--resume")[1])
    )
