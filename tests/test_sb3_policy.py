"""UnmaskPolicy inside plain Stable-Baselines3."""

from __future__ import annotations

import zipfile
from itertools import permutations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.distributions import kl_divergence
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecMonitor
from toy_unmask import ToyUnmaskVectorEnv

from dllm_agents.networks import UnmaskTransformer
from dllm_agents.sb3 import GymVecEnv, UnmaskPolicy
from dllm_agents.sb3.policy import DPLSDistribution

LENGTH = 6


def make_env(**kwargs: object) -> VecMonitor:
    return VecMonitor(GymVecEnv(ToyUnmaskVectorEnv(length=LENGTH, **kwargs)))  # type: ignore[arg-type]


def make_ppo(**kwargs: object) -> PPO:
    settings = {"n_steps": 8, "batch_size": 32, "n_epochs": 1, "seed": 0, "device": "cpu", "gamma": 1.0}
    return PPO(UnmaskPolicy, make_env(), policy_kwargs={"width": 16}, **{**settings, **kwargs})


def make_policy(length: int = LENGTH, **kwargs: object) -> UnmaskPolicy:
    torch.manual_seed(0)
    env = ToyUnmaskVectorEnv(length=length)
    policy = UnmaskPolicy(
        env.single_observation_space, env.single_action_space, lambda _: 1e-3, **{"width": 16, **kwargs}
    )
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return policy


def make_observation(batch: int = 5, length: int = LENGTH, masked: float = 0.6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(batch, length, generator=generator) < masked).to(torch.int8)
    return {
        "confidence": torch.where(mask == 1, torch.rand(batch, length, generator=generator), 1.0),
        "mask": mask,
        "action_mask": mask,
        "progress": torch.rand(batch, 1, generator=generator),
    }


@pytest.mark.parametrize("deterministic", [False, True])
def test_forward_agrees_with_evaluate_actions(deterministic):
    policy, observation = make_policy(), make_observation()
    actions, values, log_prob = policy.forward(observation, deterministic=deterministic)
    assert actions.shape == (5, LENGTH)
    assert values.shape == (5, 1)
    # The rollout buffer gives actions back as float32.
    values_again, log_prob_again, entropy = policy.evaluate_actions(observation, actions.float())
    torch.testing.assert_close(log_prob_again, log_prob, rtol=0, atol=0)
    torch.testing.assert_close(values_again, values, rtol=0, atol=0)
    torch.testing.assert_close(policy.predict_values(observation), values)
    torch.testing.assert_close(policy.get_distribution(observation).entropy(), entropy)


def test_bits_outside_the_mask_never_occur_and_never_count():
    policy, observation = make_policy(initial_bias=2.0), make_observation()
    excluded = observation["action_mask"] == 0
    actions = policy.forward(observation)[0]
    assert (actions[excluded] == 0).all()
    log_prob = policy.evaluate_actions(observation, actions)[1]
    torch.testing.assert_close(policy.evaluate_actions(observation, actions | excluded)[1], log_prob)


def test_nothing_masked_is_finite():
    policy, observation = make_policy(), make_observation(masked=0.0)
    actions, values, log_prob = policy.forward(observation)
    values, log_prob, entropy = policy.evaluate_actions(observation, actions)
    assert torch.isfinite(values).all()
    assert log_prob.tolist() == entropy.tolist() == [0.0] * 5
    (values + log_prob + entropy).sum().backward()
    assert all(
        torch.isfinite(parameter.grad).all()
        for parameter in policy.parameters()
        if parameter.grad is not None
    )


def test_the_optimizer_holds_the_transformer_and_nothing_else():
    model = make_ppo()
    policy = model.policy
    held = {id(parameter) for group in policy.optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in policy.network.parameters()}
    assert held == {id(parameter) for parameter in policy.parameters()}
    model.learn(32)
    assert all(parameter.grad is not None for parameter in policy.parameters())


def test_ratio_is_one_in_the_first_epoch():
    model = make_ppo()
    model.learn(32)
    metrics = model.logger.name_to_value
    assert metrics["train/clip_fraction"] == 0
    assert metrics["train/approx_kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("algorithm", "settings"), [(PPO, {"n_steps": 8, "batch_size": 16, "n_epochs": 2}), (A2C, {"n_steps": 8})]
)
def test_trains_saves_and_loads(tmp_path, algorithm, settings):
    model = algorithm(
        UnmaskPolicy, make_env(), policy_kwargs={"width": 16, "layers": 2}, device="cpu", **settings
    )
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(96)
    assert all(torch.isfinite(parameter).all() for parameter in model.policy.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, model.policy.parameters(), strict=True))
    model.save(tmp_path / "model.zip")
    loaded = algorithm.load(tmp_path / "model.zip", device="cpu")
    observation = {key: value.numpy() for key, value in make_observation(20).items()}
    assert np.array_equal(
        loaded.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
    )
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert sum(entry.file_size for entry in archive.infolist()) < 300_000


def test_policy_saves_its_own_arguments(tmp_path):
    policy = make_policy(
        features=("confidence", "mask"), heads=1, mlp_width=24, layers=2, initial_bias=-1.0, sampler="dpls",
        critic=False,
    )  # fmt: skip
    policy.save(str(tmp_path / "policy.pt"))
    loaded = UnmaskPolicy.load(str(tmp_path / "policy.pt"), device="cpu")
    assert loaded.network_config == policy.network_config
    assert loaded.sampler == "dpls"
    observation = {key: value.numpy() for key, value in make_observation().items()}
    assert np.array_equal(
        loaded.predict(observation, deterministic=True)[0], policy.predict(observation, deterministic=True)[0]
    )


def test_weights_fit_another_length():
    short, long = make_policy(LENGTH), make_policy(2 * LENGTH)
    long.load_state_dict(short.state_dict())
    assert long.forward(make_observation(length=2 * LENGTH))[0].shape == (5, 2 * LENGTH)


def test_deterministic_evaluation_never_stalls():
    """The toy environment spends a step on an empty action, so a stalled policy would never succeed."""
    policy = make_policy()
    with torch.no_grad():
        policy.network.output_proj.bias.fill_(-9.0)
    rewards, lengths = evaluate_policy(policy, make_env(), n_eval_episodes=8, return_episode_rewards=True)
    assert lengths == [LENGTH] * 8
    assert rewards == pytest.approx([1 / LENGTH] * 8)


def test_predict_on_single_observations():
    observation = {key: value.numpy()[0] for key, value in make_observation().items()}
    actions, _ = make_policy().predict(observation)
    assert actions.shape == (LENGTH,)
    assert actions.dtype == np.int8


def test_keys_the_features_do_not_name_are_ignored():
    env = ToyUnmaskVectorEnv(length=LENGTH, extra_keys=True)
    model = PPO(UnmaskPolicy, GymVecEnv(env), n_steps=8, batch_size=32, n_epochs=1, device="cpu")
    model.learn(32)
    assert model.policy.network.config.requires == ("confidence", "mask", "action_mask", "progress")


def test_optimizer_arguments_are_sb3s():
    model = make_ppo()
    assert isinstance(model.policy.optimizer, torch.optim.Adam)
    policy = make_policy(optimizer_class=torch.optim.AdamW, optimizer_kwargs={"weight_decay": 0.1})
    assert isinstance(policy.optimizer, torch.optim.AdamW)
    assert policy.optimizer.param_groups[0]["weight_decay"] == 0.1
    assert policy.optimizer.param_groups[0]["lr"] == 1e-3


REFUSED = {
    "net_arch": [64, 64],
    "activation_fn": torch.nn.ReLU,
    "ortho_init": True,
    "features_extractor_class": FlattenExtractor,
    "features_extractor_kwargs": {},
    "share_features_extractor": False,
    "normalize_images": False,
    "log_std_init": 0.0,
    "squash_output": False,
    "widht": 16,
}


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_would_change_nothing_are_refused_by_name(name):
    message = rf"{name} would change nothing: .* it accepts features, width, .*optimizer_kwargs"
    with pytest.raises(ValueError, match=message):
        PPO(UnmaskPolicy, make_env(), policy_kwargs={name: REFUSED[name]})
    with pytest.raises(ValueError, match="use_sde would change nothing"):
        make_policy(use_sde=True)


def test_arguments_that_are_accepted_arrive():
    sizes = {"width": 16, "heads": 1, "layers": 2, "mlp_width": 8, "initial_bias": -1.0}
    settings = {**sizes, "critic": False, "sampler": "dpls", "optimizer_class": torch.optim.SGD}
    policy = PPO(UnmaskPolicy, make_env(), policy_kwargs=settings).policy
    assert isinstance(policy.optimizer, torch.optim.SGD)
    assert {name: getattr(policy.network_config, name) for name in sizes} == sizes
    assert policy.network.value_head is None
    assert isinstance(policy.action_dist, DPLSDistribution)


def test_starts_with_the_papers_bias_and_plain_torch_initialisation():
    policy = make_ppo().policy
    assert isinstance(policy.network, UnmaskTransformer)
    assert policy.network.output_proj.bias.item() == -2.0
    assert policy.network.blocks[0].modulation.weight.abs().sum() == 0


def test_kl_divergence_of_sb3_is_finite():
    observation = make_observation()
    policy = make_policy()
    first = policy.get_distribution(observation)
    second = policy.get_distribution({**observation, "progress": 1 - observation["progress"]})
    divergence = kl_divergence(first, second)
    assert torch.isfinite(divergence).all()
    assert (divergence[observation["action_mask"] == 0] == 0).all()
    assert divergence.sum() > 0


# Ordered draws ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deterministic", [False, True])
def test_ordered_draws_keep_their_order_and_likelihood(deterministic):
    policy, observation = make_policy(sampler="dpls"), make_observation(40)
    actions, _, log_prob = policy.forward(observation, deterministic=deterministic)
    assert actions.max() > 1
    for ranks, mask in zip(actions.tolist(), observation["action_mask"].tolist(), strict=True):
        assert sorted(filter(None, ranks)) == list(range(1, sum(map(bool, ranks)) + 1))
        assert all(bit or not rank for rank, bit in zip(ranks, mask, strict=True))
    again, swapped = (
        policy.evaluate_actions(observation, changed.float())[1]
        for changed in (actions, torch.where(actions == 1, 2, torch.where(actions == 2, 1, actions)))
    )
    torch.testing.assert_close(again, log_prob, rtol=0, atol=0)
    assert not torch.allclose(swapped, log_prob)


def test_the_mode_of_ordered_draws_is_what_stop_is_less_probable_than():
    distribution = DPLSDistribution(4).proba_distribution(
        torch.tensor([[-1.0, 2.0, 1.0, 3.0], [-3.0, -1.0, -2.0, 5.0]]),
        torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
    )
    assert distribution.mode().tolist() == [[0, 2, 3, 1], [0, 1, 0, 0]]


def test_entropy_of_ordered_draws_is_estimated_without_bias_and_so_is_its_gradient():
    """Against the sum over all ordered selections of three positions."""
    torch.manual_seed(0)
    logits = torch.tensor([0.5, -1.0, 1.0], requires_grad=True)
    orders = [order for m in (1, 2, 3) for order in permutations(range(3), m)]
    ranks = torch.zeros(len(orders), 3)
    for row, order in enumerate(orders):
        for rank, k in enumerate(order, start=1):
            ranks[row, k] = rank
    exact = DPLSDistribution(3).proba_distribution(logits.expand(15, 3), torch.ones(15, 3))
    log_prob = exact.log_prob(ranks)
    entropy = -(log_prob.exp() * log_prob).sum()
    (expected,) = torch.autograd.grad(entropy, logits)
    draws = 40_000
    sampled = DPLSDistribution(3).proba_distribution(logits.expand(draws, 3), torch.ones(draws, 3))
    estimate = sampled.entropy().mean()
    (found,) = torch.autograd.grad(estimate, logits)
    assert estimate.item() == pytest.approx(entropy.item(), abs=0.02)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)
    assert expected.abs().max() > 0.1


def test_without_a_critic_values_are_zero():
    policy, observation = make_policy(critic=False), make_observation()
    assert policy.network.value_head is None
    assert (
        policy.forward(observation)[1].tolist() == policy.predict_values(observation).tolist() == [[0.0]] * 5
    )


def test_spaces_it_is_not_made_for():
    env = ToyUnmaskVectorEnv(length=LENGTH)
    observation_space, action_space = env.single_observation_space, env.single_action_space
    with pytest.raises(ValueError, match="must be a Dict with confidence, mask, action_mask, progress"):
        UnmaskPolicy(spaces.Box(0, 1, (6,)), action_space, lambda _: 1e-3)
    lacking = spaces.Dict({key: space for key, space in observation_space.items() if key != "progress"})
    with pytest.raises(ValueError, match=r"lacks \['progress'\]; it has action_mask, confidence, mask"):
        UnmaskPolicy(lacking, action_space, lambda _: 1e-3)
    with pytest.raises(ValueError, match=r"must be MultiBinary\(L\)"):
        UnmaskPolicy(observation_space, spaces.Discrete(6), lambda _: 1e-3)
    with pytest.raises(ValueError, match="unknown features"):
        UnmaskPolicy(observation_space, action_space, lambda _: 1e-3, features=("mask", "smell"))
