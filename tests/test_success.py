"""The success model: it finds out which reveals do harm, and trainings can begin with it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_train import TOY, Interrupted, read_metrics, tiny, train_until, weights

import dllm_gym
from dllm_agents import load_policy, make_sb3_env, train
from dllm_agents.config import TrainConfig
from dllm_agents.harm import logit
from dllm_agents.sb3.flight import as_arrays, as_tensors
from dllm_agents.sb3.policy import UnmaskPolicy
from dllm_agents.sb3.success import Behaviour, SuccessModel, best_threshold, one_cycle
from dllm_agents.schedules import Pace, learning_rate
from dllm_agents.training import _Run
from dllm_gym.backends.base import Prediction
from dllm_gym.tasks import Problem

pytestmark = pytest.mark.usefixtures("toys")

WARM = {"warm_start": "success", "warm_start_steps": 60}
ROUNDS = {"first_episodes": 12, "round_episodes": 8, "n_epochs": 1, "batch_size": 4}


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch):
    monkeypatch.setattr("dllm_agents.sb3.callbacks.evaluation_figures", lambda *_: {})


class Trap:
    """A dLLM that is surest where it is wrong: of a 9 at the last position, until three others are revealed.

    Outcomes alone tell that such a position has to wait; every rule by confidence takes it first.
    """

    mask_token_id, eos_token_id, pad_token_id, vocab_size = 10, 11, 12, 13
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.tokenizer = self

    def encode_prompt(self, prompt: Any) -> list[int]:
        return [1]

    def decode(self, ids: Any) -> str:
        return "".join("0123456789#.~"[i] for i in ids)

    def predict(self, tokens: Any, attention_mask: Any, positions: slice, **_: Any) -> Prediction:
        canvas = tokens[:, positions]
        predicted = torch.zeros_like(canvas)
        early = (canvas[:, :-1] != self.mask_token_id).sum(1) < 3
        predicted[:, -1] = torch.where(early, 9, 0)
        confidence = torch.full(canvas.shape, 0.5)
        confidence[:, -1] = torch.where(early, 0.9, 0.6)
        return Prediction(predicted, confidence)


class NoNines:
    """A completion is right if there is no 9 in it."""

    name, completion_length, num_problems, split = "no-nines", 6, 50, "train"

    def problem(self, index: int) -> Problem:
        return Problem(prompt="1", reference="")

    def score(self, completion: str, problem: Problem) -> float:
        return float("9" not in completion)

    def metrics(self, completion: str, problem: Problem) -> dict[str, float]:
        return {}


@pytest.mark.slow
def test_it_learns_which_reveal_does_harm():
    env = make_sb3_env(16, task=NoNines(), backend=Trap())
    model = SuccessModel(
        UnmaskPolicy,
        env,
        first_episodes=400,
        round_episodes=200,
        batch_size=8,
        thresholds=(0.02, 0.3),
        policy_kwargs={"width": 16, "critic": False},
        seed=0,
        device="cpu",
    )
    model.learn(12_500)
    network = model.policy.network.eval()
    result = dllm_gym.evaluate(
        load_like(network, model, budget=0.1), episodes=20, task=NoNines(), backend=Trap()
    )
    assert result.accuracy == 1.0
    assert result.nfe_mean <= 3
    hasty = dllm_gym.evaluate("confidence:k=6", episodes=20, task=NoNines(), backend=Trap())
    assert hasty.accuracy == 0.0


def load_like(network: Any, model: SuccessModel, **options: Any) -> Any:
    from dllm_agents.agent import LearnedPolicy

    return LearnedPolicy(network, harm=model.harm, **options)


def test_behaviours_cover_their_ranges():
    torch.manual_seed(0)
    behaviour = Behaviour.none(200)
    for row in range(200):
        behaviour.draw(row, (0.002, 0.1), explore=0.5)
    by_model = behaviour.threshold > logit(0.0019)
    assert 0.35 < by_model.mean() < 0.65
    assert (behaviour.threshold[by_model] < logit(0.1001)).all()
    assert (behaviour.sure[by_model] == 2).all()  # rows of the model look at nothing else
    assert 0.3 < (behaviour.chance[by_model] == 0).mean() < 0.7
    rules = ~by_model
    assert (behaviour.chance[rules] <= 0.51).all()
    assert ((behaviour.sure[rules] <= 1) | (behaviour.chance[rules] > 0)).all()


def test_the_threshold_follows_the_rewards():
    rng = np.random.default_rng(0)
    thresholds = rng.uniform(-6, -2, 2000)
    rewards = np.exp(-np.square(thresholds + 4)) + rng.normal(0, 0.3, 2000)
    at, earned = best_threshold(thresholds, rewards)
    assert at == pytest.approx(-4, abs=0.4)
    assert earned == pytest.approx(1, abs=0.2)


def test_in_the_end_the_network_returns_that_earned_most_in_a_round_of_its_own():
    env = make_sb3_env(16, task=NoNines(), backend=Trap())
    sizes = {"first_episodes": 8, "round_episodes": 300, "n_epochs": 1}
    policy = {"width": 16, "critic": False}
    model = SuccessModel(UnmaskPolicy, env, **sizes, policy_kwargs=policy, seed=0, device="cpu")
    model.learn(2_000)
    champion = model.rollout_buffer.champion
    assert 0 <= champion.reward <= 1
    assert model.harm == champion.harm
    for name, tensor in model.policy.network.state_dict().items():
        np.testing.assert_array_equal(tensor, champion.weights[name])

    state = as_tensors(model.rollout_buffer.state())  # as it lies on disk
    model.rollout_buffer.champion = None
    model.rollout_buffer.restore(as_arrays(state))
    returned = model.rollout_buffer.champion
    assert (returned.reward, returned.harm) == (champion.reward, champion.harm)
    np.testing.assert_equal(returned.weights, champion.weights)


def test_one_cycle_rises_and_falls():
    rates = [one_cycle(done) for done in np.linspace(0, 1, 101)]
    assert rates[0] == pytest.approx(0)
    assert max(rates) == pytest.approx(1)
    assert np.argmax(rates) == 30
    assert rates[-1] == pytest.approx(0, abs=1e-9)


# In training runs -------------------------------------------------------------------------------------------


def success(**changes: Any) -> TrainConfig:
    policy = {"width": 16, "critic": False}
    return tiny(algorithm="success", group_size=1, algorithm_kwargs=ROUNDS, policy=policy, **changes)


def warm(**changes: Any) -> TrainConfig:
    return tiny(**{**WARM, "warm_start_kwargs": ROUNDS, **changes})


def test_a_success_model_is_saved_as_a_policy_with_a_budget(tmp_path):
    run = train(success(), tmp_path / "run")
    policy = load_policy(run / "best", budget=0.05)
    assert policy.harm.sharpness == 3.0
    result = dllm_gym.evaluate(policy, episodes=5, **TOY)
    assert result.label == "policy (budget=0.05)"
    assert dllm_gym.evaluate(str(run), episodes=5, **TOY).nfe_mean <= 6


@pytest.mark.parametrize("algorithm", ["ppo", "a2c", "grpo"])
@pytest.mark.parametrize("sampler", ["bernoulli", "bits"])
def test_the_algorithm_begins_with_the_success_models_policy(tmp_path, monkeypatch, algorithm, sampler):
    seen: list[tuple[int, torch.Tensor]] = []
    end = _Run._end_warm_start

    def watch(self: Any) -> None:
        before = torch.cat([p.detach().flatten() for p in self.model.policy.network.parameters()])
        end(self)
        after = torch.cat([p.detach().flatten() for p in self.model.policy.network.parameters()])
        assert (before == after).all()
        seen.append((self.model.num_timesteps, after))

    monkeypatch.setattr(_Run, "_end_warm_start", watch)
    kwargs = {"n_steps": 4} | ({} if algorithm == "a2c" else {"batch_size": 32, "n_epochs": 2})
    policy = {"width": 16, "sampler": sampler}
    run = train(warm(algorithm=algorithm, algorithm_kwargs=kwargs, policy=policy), tmp_path / "run")
    ((steps, _),) = seen
    assert 60 <= steps < 192
    rows = read_metrics(run)
    assert rows[-1]["timesteps"] >= 192
    assert "harm" not in (run / "last" / "policy.json").read_text()  # what PPO made of it is no harm


@pytest.mark.parametrize("evaluations", [1, 2])
def test_resuming_a_warm_start_gives_the_same_to_the_bit(tmp_path, monkeypatch, evaluations):
    config = warm(eval_every=32)
    whole = train(config, tmp_path / "whole")
    train_until(config, tmp_path / "parts", evaluations, monkeypatch)
    train(config, tmp_path / "parts", resume=True)
    assert (weights(whole / "last") == weights(tmp_path / "parts" / "last")).all()
    ours, theirs = read_metrics(whole), read_metrics(tmp_path / "parts")
    assert [row["sample"] for row in ours] == [row["sample"] for row in theirs]


def test_resuming_a_success_model_gives_the_same_to_the_bit(tmp_path, monkeypatch):
    config = success(eval_every=32)
    whole = train(config, tmp_path / "whole")
    train_until(config, tmp_path / "parts", 1, monkeypatch)
    train(config, tmp_path / "parts", resume=True)
    assert (weights(whole / "last") == weights(tmp_path / "parts" / "last")).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warm_start": "luck"}, "unknown warm_start 'luck'; choose success, hindsight or null"),
        ({"warm_start_steps": 0}, "warm_start_steps must be a whole number of at least 1, got 0"),
        ({"init_from": "arithmetic-full"}, "begins in one way: give warm_start or init_from, not both"),
        ({"warm_start": "hindsight", "init_from": "any"}, "needs init_from and a range env.target_steps"),
        (
            {"warm_start": "hindsight", "init_from": "any", "env": {"target_steps": [2, 24]}},
            "hindsight needs target_steps in policy.features",
        ),
        ({"algorithm": "success"}, "warm_start is for grpo, ppo and a2c"),
        ({"policy": {"sampler": "dpls"}}, "warm_start is for grpo, ppo and a2c with sampler bernoulli"),
        ({"warm_start": None}, "warm_start_kwargs go with a warm_start"),
    ],
)
def test_warm_starts_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        warm(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"thresholds": [0.1, 0.01]},
            r"thresholds must be two numbers, 0 < low <= high < 1, got \[0.1, 0.01\]",
        ),
        ({"explore": 2}, "explore must lie from 0 to 1, got 2"),
        ({"sharpness": 0}, "sharpness must be positive and finite, got 0"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
    ],
)
def test_success_models_out_of_range(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(warm(warm_start_kwargs=changes), tmp_path / "run")


def test_unknown_arguments_of_a_warm_start_leave_nothing_behind(tmp_path):
    with pytest.raises(
        ValueError, match=r"unknown arguments \['rounds'\] in warm_start_kwargs; known: .*first"
    ):
        train(warm(warm_start_kwargs={"rounds": 3}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Schedules --------------------------------------------------------------------------------------------------


def test_the_learning_rate_follows_whatever_is_further():
    seconds = 0.0
    pace = Pace(1.0, lambda: seconds)
    rate = learning_rate(tiny(learning_rate=0.1), pace)
    assert rate(1.0) == pytest.approx(0.1)
    assert rate(0.5) == pytest.approx(0.05)
    seconds = 45.0
    assert rate(0.5) == pytest.approx(0.025)
    seconds = 600.0
    assert rate(0.5) == 0.0


def test_after_a_warm_start_the_schedule_begins_anew():
    pace = Pace(None, lambda: math.inf)
    pace.begun = 0.25
    rate = learning_rate(tiny(learning_rate=0.1, warmup=0.1), pace)
    assert rate(0.75) == 0.0
    assert rate(1 - 0.25 - 0.075) == pytest.approx(0.1)
    assert rate(0.0) == pytest.approx(0.0)


def test_a_deadline_in_the_warm_start_leaves_its_policy(tmp_path, monkeypatch):
    monkeypatch.setattr("dllm_agents.sb3.callbacks.Deadline._on_step", lambda self: False)
    run = train(warm(max_minutes=1.0), tmp_path / "run")
    assert load_policy(run / "last").harm is not None


def test_a_killed_warm_start_can_be_told_from_the_main_part(tmp_path, monkeypatch):
    save = _Run._save_state
    states: list[bool] = []

    def note(self: Any) -> None:
        save(self)
        states.append(self.model is self.warm)
        if len(states) > 1 and not states[-1]:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(_Run, "_save_state", note)
        with pytest.raises(Interrupted):
            train(warm(), tmp_path / "run", save_every=0.0)
    assert states[0]
    assert not states[-1]
    train(warm(), tmp_path / "run", resume=True)
    assert Path(tmp_path / "run" / "metrics.json").is_file()
