"""Policies that take tokens back: how they begin, what they draw, and that everything trains them."""

from __future__ import annotations

import copy

import gymnasium as gym
import hypothesis.extra.numpy as npst
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_backend import ToyBackend, ToyTask

from dllm_agents.agent import LearnedPolicy
from dllm_agents.checkpoint import load_policy, save_policy
from dllm_agents.config import TrainConfig
from dllm_agents.distributions import (
    adjust_logits,
    bernoulli_bit_log_probs,
    bernoulli_entropy,
    bernoulli_log_prob,
    bernoulli_mode,
    dpls_log_prob,
    sample_bernoulli,
    sample_dpls,
    with_argmax_fallback,
)
from dllm_agents.networks import DEFAULT_FEATURES, UnmaskTransformer, UnmaskTransformerConfig
from dllm_agents.run import begin_with
from dllm_agents.sb3.env import make_sb3_env
from dllm_agents.sb3.grpo import GRPO
from dllm_agents.sb3.imitation import imitate
from dllm_agents.sb3.policy import SAMPLERS, UnmaskPolicy
from dllm_agents.sb3.success import SuccessModel
from dllm_agents.training import train
from dllm_gym.evaluation import evaluate
from dllm_gym.strategies import make_strategy

SHAPE = (3, 5)
LOGITS = npst.arrays(np.float32, SHAPE, elements=st.floats(-12, 12, width=32)).map(torch.from_numpy)
BITS = npst.arrays(np.int8, SHAPE, elements=st.integers(0, 1)).map(torch.from_numpy)
JUDGING = (*DEFAULT_FEATURES, "written", "remasks")
quick = settings(deadline=None, max_examples=40)


def network(seed=0, **fields):
    torch.manual_seed(seed)
    return UnmaskTransformer(UnmaskTransformerConfig(**{"width": 8, "keep_prior": 5.0, **fields}))


def seen(seed=0, **kwargs):
    """Observations of an environment in which some tokens stand."""
    env = gym.make_vec(
        "DLLMUnmask-v0", num_envs=3, backend=ToyBackend(), task=ToyTask(), actions="set-state",
        observe=("remasks",), **kwargs,
    )  # fmt: skip
    env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    for _ in range(2):
        observation, *_ = env.step(rng.random((3, 6)) < 0.5)
    return {key: torch.from_numpy(value) for key, value in observation.items()}


# Likelihoods ----------------------------------------------------------------------------------------------


@quick
@given(LOGITS, BITS, BITS, BITS)
def test_likelihoods_over_positions_of_both_kinds(logits, action_mask, mask, actions):
    """The bits of masked and revealed positions are draws alike: torch knows no difference either."""
    reference = torch.distributions.Bernoulli(logits=logits.double(), validate_args=False)
    of_bits = reference.log_prob(actions.double()) * action_mask
    close = {"rtol": 1e-4, "atol": 1e-5, "check_dtype": False}
    torch.testing.assert_close(bernoulli_bit_log_probs(logits, action_mask, actions), of_bits, **close)
    for distribution in (SAMPLERS["bernoulli"](5), SAMPLERS["bits"](5)):
        given_mask = distribution.proba_distribution(logits, action_mask, mask)
        log_prob = given_mask.log_prob(actions)
        torch.testing.assert_close(log_prob, of_bits if log_prob.ndim == 2 else of_bits.sum(-1), **close)
        entropy = (reference.entropy() * action_mask).sum(-1)
        torch.testing.assert_close(given_mask.entropy(), entropy, **close)
    torch.testing.assert_close(bernoulli_log_prob(logits, action_mask, actions), of_bits.sum(-1), **close)
    torch.testing.assert_close(bernoulli_entropy(logits, action_mask), entropy, **close)


@quick
@given(LOGITS, BITS, BITS)
def test_ordered_draws_may_let_tokens_stand(logits, action_mask, mask):
    torch.manual_seed(0)
    ranks = sample_dpls(logits, action_mask)
    assert ((ranks > 0) <= (action_mask != 0)).all()
    assert torch.isfinite(dpls_log_prob(logits, action_mask, ranks)).all()


def plain_fallback(bits, logits, allowed, masked):
    """Row by row."""
    bits = bits.copy()
    for row in range(len(bits)):
        positions = [p for p in range(bits.shape[1]) if allowed[row, p]]
        idle = all(bits[row, p] != masked[row, p] for p in positions)
        masks = [p for p in positions if masked[row, p]]
        if idle and masks:
            bits[row, max(masks, key=lambda p: (logits[row, p], -p))] = 1
    return bits


@quick
@given(LOGITS, BITS, BITS, BITS)
def test_who_would_change_nothing_reveals_the_likeliest_mask(logits, action_mask, mask, actions):
    actions = actions * action_mask
    expected = plain_fallback(actions.numpy(), logits.numpy(), action_mask.numpy(), mask.numpy())
    assert with_argmax_fallback(actions, logits, action_mask, mask).tolist() == expected.tolist()
    mode = bernoulli_mode(logits, action_mask, mask).numpy()
    chosen = ((logits > 0) & (action_mask != 0)).to(torch.int8).numpy()
    assert mode.tolist() == plain_fallback(chosen, logits, action_mask.numpy(), mask.numpy()).tolist()


def test_beta_is_about_reveals_only():
    logits, mask = torch.tensor([[1.0, 1.0]]), torch.tensor([[1, 0]])
    scaled = adjust_logits(logits, 1.0, 0.5, mask)
    assert torch.sigmoid(scaled[0, 0]) == pytest.approx(torch.sigmoid(logits[0, 0]) / 2)
    assert scaled[0, 1] == 1.0


# Networks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [DEFAULT_FEATURES, JUDGING])
def test_what_stands_is_kept_at_first_by_what_the_dllm_thinks_of_it(features):
    observation = seen()
    net = network(features=features)
    logits = net(observation)
    stands = observation["mask"] == 0
    assert stands.any()
    torch.testing.assert_close(logits[stands], 5.0 * observation["written"][stands])
    plain = network(keep_prior=None, features=features)
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("keep")})
    only = {**observation, "action_mask": observation["action_mask"] * observation["mask"]}
    torch.testing.assert_close(logits[~stands], plain(only)[~stands])
    assert set(net.config.requires) >= {"mask", "written"}


def test_all_ways_to_the_logits_agree():
    observation = seen(block_length=4)
    net = network(value_head=True, features=JUDGING)
    torch.nn.init.normal_(net.keep_proj.weight)
    allowed = observation["action_mask"] != 0
    logits = net(observation)
    torch.testing.assert_close(net.candidate_logits(observation)[allowed], logits[allowed])
    torch.testing.assert_close(net.forward_actor_critic(observation)[0], logits)
    torch.testing.assert_close(net.logits_of(observation, allowed), logits[allowed])


def test_both_outputs_learn():
    observation = seen()
    net = network()
    net.candidate_logits(observation).sum().backward()
    assert net.keep_proj.bias.grad != 0
    assert net.output_proj.bias.grad != 0


def test_policies_that_take_back_are_saved(tmp_path):
    net = network(features=JUDGING)
    again = load_policy(save_policy(tmp_path, net)).network
    torch.testing.assert_close(again(seen()), net(seen()))


def test_a_two_action_policy_begins_with_the_same_behaviour():
    """Deterministically to the bit, on the dLLM it was trained with; only what it does from there differs."""
    saved = load_policy("sudoku-full")
    fields = {
        name: value for name, value in saved.network.config.__dict__.items()
        if name not in ("features", "keep_prior", "value_head")
    }  # fmt: skip
    net = UnmaskTransformer(
        UnmaskTransformerConfig(
            **fields, features=(*saved.network.config.features, "written"), keep_prior=5.0, value_head=True
        )
    )
    begin_with(net, "sudoku-full")
    where = {"task": "sudoku", "split": "test"}
    before = evaluate(LearnedPolicy(saved.network, decoding="deterministic"), 12, **where)
    after = evaluate(LearnedPolicy(net, decoding="deterministic"), 12, actions="set-state", **where)
    assert after.records.nfe.tolist() == before.records.nfe.tolist()
    assert after.records.completion == before.records.completion
    assert after.records.metrics["remasks"].sum() == 0


def test_a_two_action_policy_lets_everything_stand():
    saved = LearnedPolicy(load_policy("sudoku-full").network)
    before = evaluate(saved, 12, task="sudoku")
    after = evaluate(saved, 12, task="sudoku", actions="set-state")
    assert after.records.completion == before.records.completion


def test_a_policy_plays_as_it_was_trained_and_may_be_forbidden_to(tmp_path):
    net = network(keep_prior=-2.0)  # takes nearly everything back
    env = {"task": "sudoku", "actions": "set-state", "max_remasks": 1, "max_steps": 24, "finish": "confirm"}
    save_policy(tmp_path, net, {"config": {"env": env}})
    policy = load_policy(tmp_path)
    result = evaluate(policy, 4)
    assert {key: result.environment[key] for key in env} == env
    assert (result.records.metrics["remasks"] > 0).all()
    forbidden = evaluate(policy, 4, forbid_remask=True)
    assert forbidden.environment["max_remasks"] == 1
    assert (forbidden.records.metrics["remasks"] == 0).all()


# Trainings ------------------------------------------------------------------------------------------------


def sb3(group_size=1, **kwargs):
    return make_sb3_env(
        8, group_size=group_size, backend=ToyBackend(), task=ToyTask(), actions="set-state", on_empty="noop",
        observe=("remasks",), **kwargs,
    )  # fmt: skip


def test_the_likelihood_of_a_rollout_is_that_of_its_update():
    """A ratio of 1 before the first step: the constraints hold in the loss as they did in sampling."""
    env = sb3(group_size=4, max_remasks=1)
    model = GRPO(
        UnmaskPolicy, env, n_steps=12, seed=0, device="cpu",
        policy_kwargs={"width": 8, "keep_prior": 0.5, "critic": False, "features": JUDGING},
    )  # fmt: skip
    ratios = []
    loss = model._loss

    def watched(batch, *rest):
        with torch.no_grad():
            new = model.policy.get_distribution(batch.observations).log_prob(batch.actions)
        ratios.append((new - batch.old_log_prob).exp())
        return loss(batch, *rest)

    model._loss = watched
    model.learn(8 * 12)
    torch.testing.assert_close(ratios[0], torch.ones_like(ratios[0]))


def test_success_models_let_everything_stand():
    model = SuccessModel(
        UnmaskPolicy, sb3(), first_episodes=20, round_episodes=10, n_epochs=1, seed=0, device="cpu",
        policy_kwargs={"width": 8, "keep_prior": 5.0, "critic": False},
    )  # fmt: skip
    kept = copy.deepcopy(model.policy.network.keep_proj.state_dict())
    remasks = []
    step = model.env.step_wait

    def watched():
        returned = step()
        remasks.extend(info["remasks"] for info in returned[3] if "remasks" in info)
        return returned

    model.env.step_wait = watched
    model.learn(400)
    assert len(remasks) > 20
    assert sum(remasks) == 0
    for name, tensor in model.policy.network.keep_proj.state_dict().items():
        assert torch.equal(tensor, kept[name])
    # what is learned from are reveals, not tokens that stand
    bits = model.rollout_buffer.samples()
    assert (bits["_bits"] <= bits["mask"]).all()


def test_imitation_teaches_to_let_stand():
    model = GRPO(
        UnmaskPolicy, sb3(group_size=4), n_steps=8, seed=0, device="cpu", learning_rate=0.02,
        policy_kwargs={"width": 8, "keep_prior": 0.0, "critic": False},
    )  # fmt: skip
    imitate(model, make_strategy("confidence", k=1), 8 * 60)
    observation = seen()
    stands = (observation["mask"] == 0) & (observation["action_mask"] == 1)
    assert (model.policy.network(observation)[stands] > 1).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "actions"),
    [*((algorithm, "set-state") for algorithm in ("ppo", "a2c", "grpo", "success")), ("grpo", "edit")],
)
def test_every_algorithm_trains(tmp_path, algorithm, actions):
    config = TrainConfig(
        algorithm=algorithm,
        env={"task": "sudoku", "actions": actions, "on_empty": "noop", "max_remasks": 2},
        num_envs=8,
        group_size=4 if algorithm == "grpo" else 1,
        total_timesteps=160,
        algorithm_kwargs={"first_episodes": 8, "round_episodes": 8}
        if algorithm == "success"
        else {"n_steps": 8},
        policy={"width": 8, "features": list(JUDGING)},
        eval_episodes=4,
        eval_every=160,
    )
    train(config, tmp_path / "run", progress=False)
    policy = load_policy(tmp_path / "run" / "last")
    assert policy.network.config.keep_prior == 5.0
    assert policy.takes_back
    assert evaluate(policy, 2).environment["actions"] == actions


@quick
@given(LOGITS, BITS)
def test_draws_stay_inside(logits, action_mask):
    assert (sample_bernoulli(logits, action_mask) <= action_mask).all()
