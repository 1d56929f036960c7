"""Positions that give way to each other: the mathematics against brute force, and networks that have it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_agents import load_policy, save_policy
from dllm_agents.agent import LearnedPolicy
from dllm_agents.harm import HarmScale, harm_logits, risk, success_loss
from dllm_agents.networks import UnmaskTransformer, UnmaskTransformerConfig
from dllm_agents.rivalry import ROUNDS, before, beside, give_way
from dllm_agents.run import begin_with

LENGTH = 6


@st.composite
def steps(draw, rows=2, length=LENGTH):
    """Logits, rivalry, action mask and actions of a batch; equal logits occur."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = np.round(rng.normal(0, 2, (rows, length)), draw(st.integers(0, 3)))
    rivalry = rng.exponential(draw(st.sampled_from([0.1, 3.0])), (rows, length, length))
    action_mask = (rng.random((rows, length)) < 0.7).astype(np.int8)
    actions = action_mask * (rng.random((rows, length)) < 0.5)
    arrays = (logits, rivalry + rivalry.transpose(0, 2, 1), action_mask, actions)
    return tuple(torch.tensor(array) for array in arrays)


def in_order(logits, action_mask):
    """Candidates of one row, the most certain first."""
    return sorted(np.flatnonzero(action_mask), key=lambda k: (-float(logits[k]), k))


@given(steps())
def test_who_is_revealed_takes_from_those_behind(step):
    logits, rivalry, action_mask, actions = step
    got = beside(logits, rivalry, action_mask, actions)
    for row in range(len(logits)):
        order = in_order(logits[row], action_mask[row])
        for place, k in enumerate(order):
            taken = sum(float(rivalry[row, k, j]) for j in order[:place] if actions[row, j])
            assert float(got[row, k]) == pytest.approx(float(logits[row, k]) - taken, abs=1e-9)


@given(steps())
def test_probabilities_take_from_those_behind(step):
    logits, rivalry, action_mask, _ = step
    got = give_way(logits, rivalry, action_mask)
    for row in range(len(logits)):
        settled: dict[int, float] = {}
        for k in in_order(logits[row], action_mask[row]):
            given_way = sum(float(rivalry[row, k, j]) / (1 + math.exp(-b)) for j, b in settled.items())
            settled[k] = float(logits[row, k]) - given_way
            assert float(got[row, k]) == pytest.approx(settled[k], abs=1e-6)


@given(steps(rows=3), st.permutations(range(LENGTH)))
def test_neither_neighbours_in_the_batch_nor_places_matter(step, places):
    logits, rivalry, action_mask, _ = step
    logits = logits + torch.arange(LENGTH) * 1e-6  # no two are equal: those are ordered by place
    together = give_way(logits, rivalry, action_mask)
    for row in range(3):
        one = slice(row, row + 1)
        torch.testing.assert_close(give_way(logits[one], rivalry[one], action_mask[one]), together[one])
    moved = give_way(logits[:, places], rivalry[:, places][:, :, places], action_mask[:, places])
    torch.testing.assert_close(moved, together[:, places])


def test_chains_are_exact_as_long_as_said():
    length = ROUNDS + 1
    logits = torch.linspace(3, 1, length, dtype=torch.float64)[None]
    rivalry = torch.zeros(1, length, length, dtype=torch.float64)
    neighbours = torch.arange(length - 1)
    rivalry[0, neighbours + 1, neighbours] = rivalry[0, neighbours, neighbours + 1] = 50.0
    settled = give_way(logits, rivalry, torch.ones(1, length, dtype=torch.int8))
    assert (settled[0] > 0).tolist() == [k % 2 == 0 for k in range(length)]


@given(steps())
def test_what_is_no_candidate_is_in_nobodys_way(step):
    logits, rivalry, action_mask, actions = step
    assert not (before(logits, action_mask) & (action_mask == 0)[:, None, :]).any()
    louder = torch.where(action_mask == 0, logits + 9, logits)
    allowed = action_mask != 0
    for function in (
        lambda b: give_way(b, rivalry, action_mask),
        lambda b: beside(b, rivalry, action_mask, actions),
    ):
        torch.testing.assert_close(function(louder)[allowed], function(logits)[allowed])


def observation(rows=3, length=8, seed=0, **more):
    rng = np.random.default_rng(seed)
    mask = torch.tensor(rng.random((rows, length)) < 0.7).to(torch.int8)
    mask[:, 0] = 1
    return {
        "confidence": torch.tensor(rng.random((rows, length)), dtype=torch.float32),
        "mask": mask,
        "action_mask": mask,
        "progress": torch.tensor(rng.random((rows, 1)), dtype=torch.float32),
        **more,
    }


def network(**changes):
    torch.manual_seed(0)
    return UnmaskTransformer(UnmaskTransformerConfig(**{"width": 16, "pair_width": 4, **changes}))


def test_all_readings_of_a_network_agree():
    net, seen = network(value_head=True), observation()
    with torch.no_grad():
        net.rivalry.bias.fill_(1.0)
    logits = net(seen)
    allowed = seen["action_mask"] != 0
    torch.testing.assert_close(net.candidate_logits(seen)[allowed], logits[allowed])
    torch.testing.assert_close(net.forward_actor_critic(seen)[0], logits)
    bolder = torch.full((3, 1), 2.0)
    torch.testing.assert_close(net.candidate_logits(seen, bolder)[allowed], net(seen, 2.0)[allowed])
    one = torch.zeros_like(seen["action_mask"])
    one[:, 0] = 1  # alone, nothing is in its way
    with torch.no_grad():
        beside_none = net.logits_of(seen, one)
        net.rivalry.bias.fill_(-1e3)
        torch.testing.assert_close(beside_none, net(seen)[:, 0])
    assert not torch.allclose(net(seen), logits)


@pytest.mark.parametrize(("changes", "said"), [
    ({"pair_width": 3}, "pair_width must be even"),
    ({"pair_width": 0}, "pair_width must be a positive integer"),
    ({"keep_prior": 5.0}, "does not go with keep_prior"),
])  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        network(**changes)


def test_it_is_saved_and_begins_from_a_policy_without(tmp_path):
    plain = network(pair_width=None)
    save_policy(tmp_path / "plain", plain)
    net = network()
    begin_with(net, str(tmp_path / "plain"))
    seen = observation()
    torch.testing.assert_close(net(seen), plain(seen), atol=0.1, rtol=0)
    save_policy(tmp_path / "pairs", net)
    loaded = load_policy(tmp_path / "pairs")
    torch.testing.assert_close(loaded.network(seen), net(seen))
    assert loaded.fingerprint == LearnedPolicy(net).fingerprint != load_policy(tmp_path / "plain").fingerprint


def test_it_goes_on_from_a_policy_that_sees_less(tmp_path):
    """Tokens, which are alike and where they stand begin without effect, beside attention that has one."""
    features = ("confidence", "attention", "mask", "action_mask")
    seen = observation(attention=torch.rand(3, 8, 8) / 8, predicted=torch.randint(3, (3, 8)))
    less = network(features=features)
    with torch.no_grad():
        less.pair_weights.normal_()
        less.rivalry.read_weight.fill_(2.0)
    save_policy(tmp_path / "less", less)
    net = network(features=(*features, "same_token", "position", "token"))
    begin_with(net, str(tmp_path / "less"))
    torch.testing.assert_close(net(seen), less(seen))
    net(seen).sum().backward()
    assert (net.rivalry.read_weight.grad != 0).all()


def test_caution_comes_before_giving_way():
    """Of two rivals the first is held back by caution: then the second may go, as it would alone."""
    net, seen = network(), observation(rows=4)
    with torch.no_grad():
        net.rivalry.bias.fill_(3.0)
    arrays = {key: value.numpy() for key, value in seen.items()}
    for caution in (-3.0, 0.0, 2.0):
        actions = LearnedPolicy(net, decoding="deterministic", caution=caution).act(arrays)
        logits = net.candidate_logits(seen, -caution)
        expected = logits > 0
        idle = ~expected.any(-1)
        expected[idle, logits[idle].argmax(-1)] = True
        assert (actions == expected.numpy()).all()


def test_reading_attention_it_depends_on_who_reads_whom():
    features = ("confidence", "attention", "mask", "action_mask")
    net = network(features=features)
    with torch.no_grad():
        net.rivalry.read_weight.fill_(2.0)
    read = torch.full((3, 8, 8), 1 / 8)
    read[:, 0, 1] += 0.5
    weights = net.rivalry(torch.zeros(3, 8, 16), net._pairs({"attention": read}))
    torch.testing.assert_close(weights, weights.transpose(1, 2))
    assert (weights[:, 0, 1] > 3 * weights[:, 0, 2]).all()


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 100))
def test_what_must_not_be_revealed_together_is_found_out(seed):
    """Positions of one kind spoil each other, alone each is free: independent harms cannot say so."""
    torch.manual_seed(seed)
    scale = HarmScale(3.0, 0.03)

    def play(count):
        bits = (torch.rand(count, 6) < 0.5).to(torch.int8)
        kinds = torch.rand(count, 6) < 0.5
        ones = torch.ones(count, 6, dtype=torch.int8)
        seen = {"confidence": torch.where(kinds, 0.2, 0.6), "mask": ones, "action_mask": ones}
        return seen, bits, ((bits != 0) & kinds).sum(-1) <= 1

    net = network(features=("confidence", "mask", "action_mask"))
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(250):
        seen, bits, right = play(64)
        risks = risk(harm_logits(net.logits_of(seen, bits), scale))
        of_episode = torch.zeros(64).index_add(0, bits.nonzero()[:, 0], risks)
        optimizer.zero_grad()
        success_loss(of_episode, right.float()).mean().backward()
        optimizer.step()
    seen, _, _ = play(50)
    chosen = net(seen, 5.0) > 0
    spoilers = (chosen & (seen["confidence"] < 0.5)).sum(-1)
    assert (spoilers <= 1).float().mean() > 0.95
    assert chosen[seen["confidence"] > 0.5].float().mean() > 0.95
    there = (seen["confidence"] < 0.5).any(-1)
    assert (spoilers[there] == 1).float().mean() > 0.9
