"""The warm start: a policy learns what a rule does before it learns what pays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import obs_as_tensor

import dllm_gym
from dllm_agents import load_policy, train
from dllm_agents.agent import LearnedPolicy
from dllm_agents.config import TrainConfig
from dllm_agents.run import begin_with
from dllm_agents.sb3 import UnmaskPolicy
from dllm_agents.sb3.env import make_sb3_env
from dllm_agents.sb3.grpo import GRPO
from dllm_agents.sb3.imitation import hindsight, imitate
from dllm_gym.strategies import InBlocks, make_strategy

pytestmark = pytest.mark.usefixtures("toys")

TOY = {"task": "toy", "backend": "toy"}


def make_model(algorithm: Any = GRPO, env: Any = None, learning_rate: Any = 1e-2, **policy: Any) -> Any:
    env = make_sb3_env(16, group_size=4, **TOY) if env is None else env
    policy = {"width": 16, **policy}
    return algorithm(
        UnmaskPolicy,
        env,
        learning_rate=learning_rate,
        n_steps=8,
        batch_size=64,
        policy_kwargs=policy,
        seed=0,
        device="cpu",
    )


def unlikelihood(model: Any, expert: Any, steps: int = 20) -> float:
    """Mean negative log-likelihood of what the expert does, on problems of its own."""
    env = make_sb3_env(16, seed=99, **TOY)
    observation: Any = env.reset()
    losses = []
    for _ in range(steps):
        actions = expert.act(observation)
        with torch.no_grad():
            distribution = model.policy.get_distribution(obs_as_tensor(observation, "cpu"))
        losses.append(-distribution.log_prob(torch.as_tensor(actions)).mean().item())
        observation, *_ = env.step(actions)
    return float(np.mean(losses))


@pytest.mark.parametrize(
    "expert",
    [make_strategy("fast-dllm", threshold=0.5), InBlocks(make_strategy("fast-dllm", threshold=0.3), 3)],
    ids=lambda expert: expert.label,
)
def test_what_the_expert_does_becomes_likely(expert):
    model = make_model()
    before = unlikelihood(model, expert)
    final = imitate(model, expert, 4000)
    after = unlikelihood(model, expert)
    assert after < before - 1
    assert 0 < final < before - 1


def test_a_schedule_that_rises_from_zero_does_not_hold_it_up(tmp_path, monkeypatch):
    """As that of the default configurations does."""
    monkeypatch.setattr("dllm_agents.sb3.callbacks.evaluation_figures", lambda *_: {})
    expert = "fast-dllm:threshold=0.5"
    config = TrainConfig(
        algorithm="ppo", env=dict(TOY), expert=expert, imitation_steps=4000, total_timesteps=4000, warmup=0.5,
        learning_rate=1e-2, num_envs=16, eval_episodes=4, policy={"width": 16},
        algorithm_kwargs={"n_steps": 8, "batch_size": 64},
    )  # fmt: skip
    policy = load_policy(train(config, tmp_path / "run") / "last", decoding="deterministic")
    own, model_of = (dllm_gym.evaluate(agent, 50, **TOY).nfe_mean for agent in (policy, expert))
    assert own == pytest.approx(model_of, rel=0.25)


def test_it_decodes_like_the_expert():
    expert = make_strategy("fast-dllm", threshold=0.5)
    model = make_model()
    imitate(model, expert, 12000)
    policy = LearnedPolicy(model.policy.network.eval(), decoding="deterministic")
    own, model_of = (dllm_gym.evaluate(agent, 50, **TOY).nfe_mean for agent in (policy, expert))
    assert own == pytest.approx(model_of, rel=0.25)


def test_on_the_embedded_dllm():
    expert = make_strategy("fast-dllm", threshold=0.9)
    model = make_model(env=make_sb3_env(8, group_size=4))
    first = imitate(model, expert, 32)
    later = imitate(model, expert, 480)
    assert later < 0.5 * first


@pytest.mark.parametrize("algorithm", [GRPO, PPO])
def test_steps_count_and_learning_follows(algorithm):
    model = make_model(algorithm)
    expert = make_strategy("confidence", k=2)
    imitate(model, expert, 100)
    assert model.num_timesteps == 112  # whole steps of 16 rows
    model.learn(100, reset_num_timesteps=False)
    assert model.num_timesteps >= 212


def test_learning_begins_with_new_episodes():
    """In the middle of training, too; else the steps before and after would look like one episode."""

    class First(BaseCallback):
        def _on_step(self) -> bool:
            progress.append(self.locals["observation"]["progress"].copy())
            return True

    model = make_model()
    model.learn(200)
    imitate(model, make_strategy("confidence", k=2), 100)
    progress: list[np.ndarray] = []
    model.learn(50, First(), reset_num_timesteps=False)
    assert (progress[0] == 0).all()


def test_a_schedule_that_begins_with_nothing_is_refused():
    model = make_model(learning_rate=lambda left: 0.01 * (1 - left))
    with pytest.raises(ValueError, match=r"learning rate of 0.0: give one"):
        imitate(model, make_strategy("confidence"), 10)
    imitate(model, make_strategy("confidence"), 10, learning_rate=0.01)


def test_ordered_draws_are_refused():
    with pytest.raises(ValueError, match="imitation needs sampler 'bernoulli'"):
        imitate(make_model(sampler="dpls"), make_strategy("confidence"), 10)


def told_steps(rows: int, told: tuple[int, int]) -> Any:
    """``sudoku-full`` as a model that is told how many steps to take, without effect so far."""
    env = make_sb3_env(rows, group_size=4, task="sudoku", target_steps=told, observe=("target_steps",))
    features = [*load_policy("sudoku-full").network.config.features, "target_steps"]
    model = make_model(env=env, width=32, features=features)
    begin_with(model.policy.network, "sudoku-full")
    return model


def test_hindsight_makes_one_speed_all_speeds():
    """``sudoku-full`` takes 2 steps, whatever it is told; afterwards it takes about as many as it is told."""
    model = told_steps(64, (1, 16))

    def steps(told: float) -> float:
        policy = LearnedPolicy(
            model.policy.network.eval(), decoding="deterministic", knobs={"target_steps": told}
        )
        return dllm_gym.evaluate(policy, 50, task="sudoku").nfe_mean

    assert steps(2) == steps(10)
    hindsight(model, 6000, learning_rate=1e-2)
    assert 6000 <= model.num_timesteps < 6064
    assert steps(2) < 3 < steps(5) < steps(10)
    assert steps(10) > 6


def test_hindsight_learns_from_right_answers_in_its_own_numbers_of_steps(monkeypatch):
    """What is learned from: whole right episodes, each told its own length."""
    batches: list[Any] = []
    monkeypatch.setattr(
        "dllm_agents.sb3.imitation._follow", lambda _, given, rate: batches.extend(given) or 0.0
    )
    model = told_steps(16, (2, 8))
    hindsight(model, 1600, n_epochs=1)
    told = np.concatenate([batch["target_steps"][:, 0] for batch in batches])
    revealed = np.concatenate([(batch["mask"] == 0).sum(axis=1) for batch in batches])
    lengths, counts = np.unique(told, return_counts=True)
    assert lengths.min() >= 2
    assert lengths.max() <= 8
    assert (counts % lengths == 0).all()  # whole episodes
    assert (revealed == 0).sum() == (counts / lengths).sum()  # each with its first step


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"least_caution": 2.0, "most_caution": 2.0}, "least_caution 2.0 must be below most_caution 2.0"),
        ({"total_timesteps": 16}, "nothing to teach: no answer was right within 16 steps"),
    ],
)
def test_hindsight_that_cannot_be(kwargs, message):
    model = told_steps(16, (2, 8))
    with pytest.raises(ValueError, match=message):
        hindsight(model, **{"total_timesteps": 64, **kwargs})
