"""A training run from configuration to policy: what it writes, how it goes on, what it refuses."""

from __future__ import annotations

import functools
import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from stable_baselines3 import A2C, PPO
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import dllm_agents
import dllm_agents.config
import dllm_agents.sb3.grouped
import dllm_agents.training
import dllm_gym
from dllm_agents import load_policy, train
from dllm_agents.checkpoint import read_description
from dllm_agents.config import TrainConfig, load_config
from dllm_agents.networks import DEFAULT_FEATURES, UnmaskTransformer
from dllm_agents.run import begin_with
from dllm_agents.sb3.callbacks import evaluation_figures
from dllm_agents.sb3.grouped import GroupA2C, GroupPPO
from dllm_agents.sb3.grpo import GRPO
from dllm_agents.training import _Run
from dllm_gym.envs.rendering import render_ansi
from dllm_gym.looking import film

pytestmark = pytest.mark.usefixtures("toys")

TOY = {"task": "toy", "backend": "toy"}
LENGTH = 6
CONFIGS = Path(dllm_agents.config.__file__).parents[1] / "configs"
SHIPPED = [path for path in sorted(CONFIGS.glob("*.yaml")) if not path.stem.startswith("rllib")]


def tiny(**changes: Any) -> TrainConfig:
    """Rollouts of 32 steps, six of them."""
    settings = {
        "algorithm": "ppo",
        "env": TOY,
        "num_envs": 8,
        "group_size": 4,
        "total_timesteps": 192,
        "learning_rate": 1e-2,
        "algorithm_kwargs": {"n_steps": 4, "batch_size": 32, "n_epochs": 2, "normalize_advantage": False},
        "policy": {"width": 16, "initial_bias": -1.0},
        "eval_every": 64,
        "eval_episodes": 12,
    }
    return TrainConfig(**{**settings, **changes})


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    return json.loads((directory / "metrics.json").read_text())["evaluations"]


def read_events(directory: Path) -> EventAccumulator:
    events = EventAccumulator(str(directory), size_guidance={"images": 0, "tensors": 0, "scalars": 0})
    events.Reload()
    return events


def weights(directory: Path) -> torch.Tensor:
    network = load_policy(directory).network
    return torch.cat([parameter.flatten() for parameter in network.parameters()])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, toys) -> Path:
    """A run that went through, for all tests that only look at it."""
    return train(tiny(), tmp_path_factory.mktemp("runs") / "finished", command="dllm-gym train ppo")


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch):
    """Drawing takes longer than learning here; ``finished``, made before this counts, has real pictures."""
    monkeypatch.setattr("dllm_agents.sb3.callbacks.evaluation_figures", lambda *_: {})


class Interrupted(Exception):
    pass


def train_until(config: TrainConfig, directory: Path, evaluations: int, monkeypatch: Any) -> None:
    """Trains and dies, as a machine would, when the state with so many evaluations is saved."""
    save = _Run._save_state

    def save_and_die(self: Any) -> None:
        save(self)
        if len(self.history) == evaluations:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(_Run, "_save_state", save_and_die)
        with pytest.raises(Interrupted):
            train(config, directory)


def test_train_is_a_function_whatever_was_imported_before():
    """A module of that name would take its place as soon as anything imports it."""
    assert dllm_agents.train is train
    assert dllm_agents.train is train
    assert set(dllm_agents.__all__) >= {"load_policy", "make_sb3_env", "save_policy", "train"}
    assert all(callable(getattr(dllm_agents, name)) for name in dllm_agents.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        dllm_agents.nonsense  # noqa: B018


# What a run writes ------------------------------------------------------------------------------------------


def test_files(finished):
    names = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    events = {name for name in names if name.startswith("events.out.tfevents")}
    assert len(events) == 1
    assert names - events == {
        "config.yaml", "metrics.json", "training_state.pt", "last/policy.json", "last/policy.safetensors",
        "best/policy.json", "best/policy.safetensors",
    }  # fmt: skip
    assert load_config(finished / "config.yaml") == tiny()


def test_scalars_in_tensorboard(finished):
    tags = read_events(finished).Tags()
    assert {
        "unmask/accuracy", "unmask/nfe", "unmask/tokens_per_step", "unmask/empty_action_rate",
        "unmask/entropy_per_masked_token", "eval/accuracy_sample", "eval/accuracy_deterministic",
        "eval/nfe_sample", "eval/nfe_deterministic", "eval/reward_sample", "eval/reward_deterministic",
        "rollout/ep_rew_mean", "rollout/ep_len_mean", "rollout/success_rate", "train/approx_kl",
        "train/clip_fraction", "train/policy_gradient_loss", "train/entropy_loss", "train/learning_rate",
        "train/samples", "train/zero_variance_groups", "time/fps",
    } <= set(tags["scalars"])  # fmt: skip


def test_scalars_have_sensible_values(finished):
    events = read_events(finished)

    def values(tag: str) -> np.ndarray:
        return np.array([event.value for event in events.Scalars(tag)])

    for tag in (
        "unmask/accuracy",
        "unmask/empty_action_rate",
        "eval/accuracy_sample",
        "rollout/success_rate",
    ):
        assert ((values(tag) >= 0) & (values(tag) <= 1)).all()
    assert ((values("unmask/nfe") >= 1) & (values("unmask/nfe") <= LENGTH)).all()
    # every completion has 6 tokens
    np.testing.assert_allclose(values("unmask/tokens_per_step"), LENGTH / values("unmask/nfe"), rtol=1e-5)
    entropy = values("unmask/entropy_per_masked_token")
    assert ((entropy > 0) & (entropy <= np.log(2) + 1e-6)).all()
    rate = values("train/learning_rate")
    assert (np.diff(rate) < 0).all()
    assert 0 <= rate[-1] < rate[0] < 1e-2
    steps = [event.step for event in events.Scalars("unmask/nfe")]
    assert steps == sorted(set(steps))
    assert steps[-1] >= 192


def test_evaluations_in_tensorboard_are_those_in_metrics(finished):
    events, rows = read_events(finished), read_metrics(finished)
    assert len(rows) >= 3
    for decoding in ("sample", "deterministic"):
        for tag, key in (("accuracy", "accuracy"), ("nfe", "nfe_mean"), ("reward", "reward_mean")):
            logged = events.Scalars(f"eval/{tag}_{decoding}")
            assert [event.step for event in logged] == [row["timesteps"] for row in rows]
            np.testing.assert_allclose(
                [event.value for event in logged], [row[decoding][key] for row in rows]
            )
    assert all(row["sample"]["episodes"] == 12 for row in rows)
    assert rows[-1]["timesteps"] >= 192
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)


@pytest.mark.parametrize("changes", [{}, {"group_size": 1}, {"algorithm": "grpo"}, {"eval_every": None}])
def test_nothing_is_evaluated_twice(tmp_path, changes):
    """The last rollout ends where an evaluation is due, and so does the training."""
    if changes.get("algorithm") == "grpo":
        changes = {**changes, "algorithm_kwargs": {"n_steps": 4, "batch_size": 32}}
    directory = train(tiny(**{"total_timesteps": 128, "eval_every": 32, **changes}), tmp_path / "run")
    steps = [row["timesteps"] for row in read_metrics(directory)]
    assert steps == sorted(set(steps))
    assert steps[-1] >= 128
    last, best = (read_description(directory / name)["metadata"]["validation"] for name in ("last", "best"))
    assert last == read_metrics(directory)[-1]
    assert best in read_metrics(directory)


def test_an_evaluation_is_of_the_policy_after_the_update(tmp_path, monkeypatch):
    seen = []
    note = _Run._note

    def compared(self: Any, results: Any) -> None:
        seen.append((self.model.num_timesteps, self.model._n_updates))
        note(self, results)

    monkeypatch.setattr(_Run, "_note", compared)
    train(tiny(group_size=1, eval_every=32, total_timesteps=96), tmp_path / "run")
    assert seen == [(32, 2), (64, 4), (96, 6)]  # two passes each


def test_policies_are_saved_whatever_happens_to_the_pictures(tmp_path, monkeypatch):
    def broken(*_: Any) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr("dllm_agents.sb3.callbacks.evaluation_figures", broken)
    with pytest.raises(ValueError, match="no ink"):
        train(tiny(), tmp_path / "run")
    assert load_policy(tmp_path / "run" / "best").name == "policy"


def test_pictures_of_every_evaluation(finished):
    events, rows = read_events(finished), read_metrics(finished)
    assert set(events.Tags()["images"]) == {"eval/pareto", "eval/reveal_order"}
    for tag in events.Tags()["images"]:
        images = events.Images(tag)
        assert [image.step for image in images] == [row["timesteps"] for row in rows]
        assert all(image.width > 300 and image.height > 200 for image in images)
        assert all(image.encoded_image_string.startswith(b"\x89PNG") for image in images)


def test_the_pareto_picture_has_the_evaluations_of_the_training_and_the_heuristics(finished):
    rows = read_metrics(finished)
    rules = [dllm_gym.evaluate(f"confidence:k={k}", 8, **TOY) for k in (1, 3)]
    results = {
        decoding: dllm_gym.evaluate(load_policy(finished / "last", decoding=decoding), 8, record=True, **TOY)
        for decoding in ("sample", "deterministic")
    }
    figures = evaluation_figures(rules, results, rows)
    (axes,) = figures["eval/pareto"].axes
    drawn = [np.array(line.get_xydata()) for line in axes.lines]
    for decoding, result in results.items():
        way = [(row[decoding]["nfe_mean"], row[decoding]["accuracy"]) for row in rows]
        expected = np.array([*way, (result.nfe_mean, result.accuracy)])
        assert any(np.array_equal(line, expected) for line in drawn)
    heuristics = np.array(sorted((rule.nfe_mean, rule.accuracy) for rule in rules))
    assert any(np.array_equal(line, heuristics) for line in drawn)
    (picture,) = figures["eval/reveal_order"].axes[0].images
    recording = results["sample"].recording
    share = [[(recording.reveal_step == s).mean(0)] for s in range(1, int(recording.steps.max()) + 1)]
    np.testing.assert_allclose(picture.get_array(), np.concatenate(share))


def test_sample_decodings_as_text(finished):
    events, rows = read_events(finished), read_metrics(finished)
    (tag,) = [tag for tag in events.Tags()["tensors"] if tag.startswith("eval/sample")]
    texts = events.Tensors(tag)
    assert [text.step for text in texts] == [row["timesteps"] for row in rows]
    endings, *films = texts[-1].tensor_proto.string_val[0].decode().split("\n\n```\n")
    lines = endings.split("  \n")
    assert len(lines) == 4
    assert all(line.startswith(("right in ", "wrong in ")) and line.endswith("`") for line in lines)
    assert len(films) == 2
    for problem, text in enumerate(films):
        frames = [re.sub(r"\x1b\[\d+m", "", render_ansi(frame)) for (frame,) in shown_film(finished, problem)]
        assert text.removesuffix("\n```").split("\n\n") == frames
        assert "step 0/6   revealed 0/6" in frames[0]


def shown_film(run: Path, problem: int) -> Any:
    return film([load_policy(run / "last")], problem, "validation", **TOY).frames


def test_hyper_parameters_are_those_of_the_configuration(finished):
    data = read_events(finished).summary_metadata
    plugins = {
        tag: HParamsPluginData.FromString(metadata.plugin_data.content)
        for tag, metadata in data.items()
        if metadata.plugin_data.plugin_name == "hparams"
    }
    started = plugins["_hparams_/session_start_info"].session_start_info.hparams
    told = {name: getattr(value, value.WhichOneof("kind")) for name, value in started.items()}
    expected = tiny().settings()
    assert told.keys() == expected.keys()
    assert told["learning_rate"] == 1e-2
    assert told["env.task"] == "toy"
    assert told["policy.width"] == 16
    assert not told["algorithm_kwargs.normalize_advantage"]
    assert told["max_minutes"] == "null"
    metrics = {info.name.tag for info in plugins["_hparams_/experiment"].experiment.metric_infos}
    assert {"eval/reward_sample", "eval/accuracy_deterministic"} <= metrics
    assert metrics <= set(read_events(finished).Tags()["scalars"])


def test_saved_policies(finished):
    rows = read_metrics(finished)
    for name in ("last", "best"):
        description = read_description(finished / name)
        metadata = description["metadata"]
        assert metadata["command"] == "dllm-gym train ppo"
        assert metadata["config"] == tiny().to_dict()
        assert metadata["validation"] in rows
        agent = load_policy(finished / name, decoding="deterministic")
        result = dllm_gym.evaluate(agent, 12, "validation", **TOY)
        # the numbers in the file are those of the policy in the file
        assert result.accuracy == metadata["validation"]["deterministic"]["accuracy"]
        assert result.nfe_mean == metadata["validation"]["deterministic"]["nfe_mean"]
    assert read_description(finished / "last")["metadata"]["validation"] == rows[-1]


def test_best_is_the_first_of_highest_validation_reward(finished):
    rewards = [row["sample"]["reward_mean"] for row in read_metrics(finished)]
    best = read_description(finished / "best")["metadata"]["validation"]
    assert best == read_metrics(finished)[int(np.argmax(rewards))]


def test_best_follows_the_reward_of_sampled_decoding(tmp_path, monkeypatch):
    """With the rewards given: neither the last nor the highest accuracy wins."""
    rewards = iter([0.2, 0.7, 0.5, 0.7])
    note = _Run._note

    class Result:
        def __init__(self, reward: float, accuracy: float) -> None:
            self.accuracy, self.nfe_mean, self.reward_mean, self.episodes = accuracy, 2.0, reward, 12

    def given(self: Any, results: Any) -> None:
        reward = next(rewards, 0.0)
        note(self, {"sample": Result(reward, 1 - reward), "deterministic": Result(1 - reward, 1.0)})

    monkeypatch.setattr(_Run, "_note", given)
    directory = train(tiny(group_size=1, eval_every=32, total_timesteps=128), tmp_path / "run")
    assert [row["sample"]["reward_mean"] for row in read_metrics(directory)] == [0.2, 0.7, 0.5, 0.7]
    best = read_description(directory / "best")["metadata"]["validation"]
    assert best == read_metrics(directory)[1]
    assert not torch.equal(weights(directory / "best"), weights(directory / "last"))


def test_training_state_is_plain_data(finished):
    state = torch.load(finished / "training_state.pt", weights_only=True)
    assert state["timesteps"] == read_metrics(finished)[-1]["timesteps"]
    assert state["history"] == read_metrics(finished)
    assert state["best_reward"] == max(row["sample"]["reward_mean"] for row in state["history"])
    assert state["next_ticket"] > 0
    assert (finished / "training_state.pt").stat().st_size < 500_000


def test_nothing_is_left_of_the_atomic_writes(finished):
    assert not [path for path in finished.rglob(".*")]


# Algorithms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "group_size", "kind"),
    [("grpo", 4, GRPO), ("ppo", 4, GroupPPO), ("ppo", 1, PPO), ("a2c", 4, GroupA2C), ("a2c", 1, A2C)],
)
def test_every_algorithm(tmp_path, monkeypatch, algorithm, group_size, kind):
    kinds = []
    build = _Run._build
    monkeypatch.setattr(_Run, "_build", lambda self: kinds.append(model := build(self)) or model)
    minibatches = {"n_steps": 4, "batch_size": 32, "n_epochs": 1}
    settings = {"grpo": {**minibatches, "ent_coef": 0.01}, "ppo": minibatches, "a2c": {"n_steps": 4}}
    config = tiny(
        algorithm=algorithm, group_size=group_size, algorithm_kwargs=settings[algorithm], total_timesteps=64
    )
    directory = train(config, tmp_path / "run")
    assert type(kinds[0]) is kind
    assert dllm_gym.evaluate(directory, 5, **TOY).episodes == 5
    tags = read_events(directory).Tags()["scalars"]
    entropy = "train/entropy" if algorithm == "grpo" else "train/entropy_loss"
    assert {"unmask/accuracy", "eval/accuracy_sample", "train/learning_rate", entropy} <= set(tags)


@pytest.mark.parametrize("algorithm", ["ppo", "a2c", "grpo", "success"])
def test_every_algorithm_learns_from_pairs_of_positions(tmp_path, algorithm):
    minibatches = {"n_steps": 4, "batch_size": 32, "n_epochs": 1}
    settings = {
        "a2c": {"n_steps": 4},
        "success": {"first_episodes": 12, "round_episodes": 8, "n_epochs": 1, "batch_size": 4},
    }
    config = tiny(
        algorithm=algorithm,
        group_size=1 if algorithm == "success" else 4,
        algorithm_kwargs=settings.get(algorithm, minibatches),
        total_timesteps=192,
        policy={"width": 16, "features": ["confidence", "attention", "mask"]},
    )
    directory = train(config, tmp_path / "run")
    policy = load_policy(directory / "last")
    assert "attention" in policy.requires
    assert (policy.network.pair_weights != 0).any()
    assert dllm_gym.evaluate(policy, 5, **TOY).episodes == 5


def test_pairs_are_added_to_a_policy_that_knew_none_without_changing_it(finished):
    saved = load_policy(finished / "last").network
    network = UnmaskTransformer(
        replace(saved.config, features=(*saved.config.features, "attention"), value_head=True)
    )
    begin_with(network, str(finished / "last"))
    rng = torch.Generator().manual_seed(0)
    observation = {key: torch.rand(3, LENGTH, generator=rng) for key in saved.config.requires}
    observation["progress"] = torch.rand(3, 1, generator=rng)
    observation["attention"] = torch.rand(3, LENGTH, LENGTH, generator=rng)
    assert torch.equal(network(observation), saved(observation))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_trains(tmp_path, path):
    """On the toys instead of a dLLM, for one rollout."""
    config = load_config(path)
    env = {key: value for key, value in config.env.items() if key not in ("backend_kwargs", "task_kwargs")}
    if env.get("block_length") is not None:
        env["block_length"] = 3
    changes: dict[str, Any] = {"num_envs": 32, "total_timesteps": 1, "eval_episodes": 4}
    if config.warm_start == "hindsight":  # of a policy that reads hidden states of the dLLM it was trained on
        changes |= {"warm_start": None, "init_from": None}
    directory = train(config.updated(env={**env, **TOY}, **changes), tmp_path / "run")
    assert read_metrics(directory)[-1]["timesteps"] >= 32


def test_learns(tmp_path):
    config = tiny(
        env={"task": "toy", "backend": "always-right"},
        num_envs=16,
        total_timesteps=3000,
        algorithm_kwargs={"n_steps": 8, "batch_size": 64, "n_epochs": 2, "gamma": 1.0, "vf_coef": 0.0},
        eval_every=1000,
    )
    directory = train(config, tmp_path / "run")
    rows = read_metrics(directory)
    assert rows[-1]["sample"]["nfe_mean"] < 2 < rows[0]["sample"]["nfe_mean"]
    assert dllm_gym.evaluate(str(directory), 20, **config.env).nfe_mean < 2


def grpo(**changes: Any) -> TrainConfig:
    """With all that GRPO has."""
    settings = {
        "algorithm": "grpo",
        "env": {**TOY, "alpha": [0.5, 2.0]},
        "algorithm_kwargs": {"n_steps": 4, "batch_size": 32, "kl_coef": 0.1},
        "policy": {"width": 16, "initial_bias": -1.0, "critic": False},
        "expert": "margin:k=3",
        "num_experts": 1,
        "expert_block_length": 3,
    }
    return tiny(**{**settings, **changes})


@pytest.fixture(scope="module")
def steered(tmp_path_factory, toys) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dllm_agents.sb3.callbacks.evaluation_figures", lambda *_: {})
        return train(grpo(), tmp_path_factory.mktemp("runs") / "steered")


def test_steered_grpo(steered):
    tags = read_events(steered).Tags()["scalars"]
    assert {
        "unmask/accuracy", "unmask/nfe", "eval/reward_sample", "eval/reward_deterministic", "train/loss",
        "train/approx_kl", "train/clip_fraction", "train/reference_kl", "train/samples",
        "train/zero_variance_groups", "rollout/ep_rew_mean", "rollout/success_rate",
    } <= set(tags)  # fmt: skip
    assert load_config(steered / "config.yaml") == grpo()
    # what the expert reads is not what the policy needs
    assert "margin" not in load_policy(steered / "best").requires


def test_same_seed_same_steered_run(tmp_path, steered):
    again = train(grpo(), tmp_path / "again")
    assert torch.equal(weights(again / "last"), weights(steered / "last"))


def test_a_policy_that_was_trained_on_ordered_draws_draws_them(tmp_path):
    policy = {"width": 16, "sampler": "dpls", "critic": False}
    config = grpo(policy=policy, expert=None, num_experts=0, expert_block_length=None)
    directory = train(config, tmp_path / "run")
    assert load_policy(directory / "best").decoding == "dpls"
    result = dllm_gym.evaluate(load_policy(directory / "last"), 12, "validation", **config.env)
    validation = read_metrics(directory)[-1]
    assert result.nfe_mean == validation["sample"]["nfe_mean"]
    assert result.accuracy == validation["sample"]["accuracy"]


def test_a_policy_for_every_budget(tmp_path):
    policy = {"width": 16, "features": ["confidence", "mask", "progress", "target_steps"], "critic": False}
    env = {**TOY, "target_steps": [1, 6]}
    config = grpo(env=env, policy=policy, expert=None, num_experts=0, expert_block_length=None)
    directory = train(config, tmp_path / "run")
    assert "target_steps" in load_policy(directory / "best").requires
    result = dllm_gym.evaluate(f"{directory}:target_steps=3", 5, **TOY)
    assert result.label == "run (sample, target_steps=3)"


def test_a_policy_for_every_block_length(tmp_path):
    policy = {"width": 16, "features": ["confidence", "mask", "progress", "block_length"], "critic": False}
    env = {**TOY, "block_length": [2, 3, None]}
    config = grpo(env=env, policy=policy, expert=None, num_experts=0, expert_block_length=None)
    directory = train(config, tmp_path / "run")
    assert "block_length" in load_policy(directory / "best").requires
    assert dllm_gym.evaluate(directory, 5).environment["block_length"] == [2, 3, 6]
    for block_length in (2, 3, None):  # each of them, and nothing is said
        result = dllm_gym.evaluate(directory, 5, block_length=block_length)
        assert result.environment["block_length"] == (block_length or 6)


def test_rllib_without_ray_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'dllm-gym\[rllib\]'"):
        train(TrainConfig(algorithm="rllib-ppo", group_size=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Warm start -------------------------------------------------------------------------------------------------


def test_imitation_comes_first_and_counts(tmp_path, monkeypatch):
    calls = []
    imitate = dllm_agents.training.imitate

    def watch(model: Any, expert: Any, steps: int, rate: float) -> float:
        calls.append((model.num_timesteps, expert.label, steps))
        return imitate(model, expert, steps, rate)

    monkeypatch.setattr(dllm_agents.training, "imitate", watch)
    config = grpo(num_experts=0, imitation_steps=64, total_timesteps=128)
    directory = train(config, tmp_path / "run")
    assert calls == [(0, "margin(k=3) in blocks of 3", 64)]
    assert 128 <= read_metrics(directory)[-1]["timesteps"] < 160
    train(config, directory, resume=True)
    assert len(calls) == 1


def test_hindsight_comes_first_and_counts(tmp_path, finished, monkeypatch):
    calls = []
    hindsight = dllm_agents.training.hindsight

    @functools.wraps(hindsight)  # with its signature
    def watch(model: Any, steps: int, **kwargs: Any) -> float:
        calls.append((model.num_timesteps, steps, kwargs))
        return hindsight(model, steps, **kwargs)

    monkeypatch.setattr(dllm_agents.training, "hindsight", watch)
    config = tiny(
        env={"task": "toy", "backend": "always-right", "target_steps": [1, LENGTH]},
        init_from=str(finished / "best"),
        warm_start="hindsight",
        warm_start_steps=64,
        warm_start_kwargs={"most_caution": 3.0},
        policy={"width": 16, "initial_bias": -1.0, "features": [*DEFAULT_FEATURES, "target_steps"]},
    )
    directory = train(config, tmp_path / "run")
    assert calls == [(0, 64, {"most_caution": 3.0})]
    assert 192 <= read_metrics(directory)[-1]["timesteps"] < 224
    train(config, directory, resume=True)
    assert len(calls) == 1
    with pytest.raises(ValueError, match=r"unknown arguments \['first_episodes'\] in warm_start_kwargs"):
        train(config.updated(warm_start_kwargs={"first_episodes": 8}), tmp_path / "other")


def test_mere_imitation_is_evaluated_and_saved(tmp_path):
    config = tiny(
        expert="fast-dllm:threshold=0", imitation_steps=1600, total_timesteps=1600, learning_rate=1e-2
    )
    directory = train(config, tmp_path / "run")
    (row,) = read_metrics(directory)
    assert row["timesteps"] == 1600
    assert row["deterministic"]["nfe_mean"] < 1.5  # as the expert, which reveals everything at once
    assert dllm_gym.evaluate(directory, 5, **TOY).nfe_mean < 2
    train(config, directory, resume=True)
    assert read_metrics(directory) == [row]


def test_time_for_imitation_counts(tmp_path, monkeypatch):
    deadlines = []
    monkeypatch.setattr(dllm_agents.training, "imitate", lambda *_: time.sleep(0.3))
    init = dllm_agents.training.Deadline.__init__
    monkeypatch.setattr(
        dllm_agents.training.Deadline,
        "__init__",
        lambda self, left: deadlines.append(left) or init(self, left),
    )
    train(tiny(expert="random", imitation_steps=1, total_timesteps=32, max_minutes=1.0), tmp_path / "run")
    assert 0.5 < deadlines[0] <= 1 - 0.3 / 60


def test_init_from_goes_on_from_a_saved_policy(tmp_path, finished, monkeypatch):
    starts = []
    begin = _Run._begin_with_a_saved_policy

    def watch(self: Any) -> None:
        begin(self)
        starts.append(
            torch.cat([parameter.flatten() for parameter in self.model.policy.network.parameters()])
        )

    monkeypatch.setattr(_Run, "_begin_with_a_saved_policy", watch)
    config = tiny(init_from=str(finished / "best"), total_timesteps=64)
    directory = train(config, tmp_path / "run")
    assert torch.equal(starts[0], weights(finished / "best"))
    assert not torch.equal(starts[0], weights(directory / "last"))
    train(config, directory, resume=True)
    assert len(starts) == 1


def before_and_after(
    tmp_path: Path, start: Path, **policy: Any
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The weights of a saved policy, and of one that began with it and learned nothing."""
    policy = {"width": 16, **policy}
    config = tiny(init_from=str(start), policy=policy, learning_rate=0.0, total_timesteps=32)
    directory = train(config, tmp_path / "run")
    return load_policy(start).network.state_dict(), load_policy(directory / "last").network.state_dict()


def test_a_critic_can_be_added_to_a_saved_policy(tmp_path, steered):
    before, after = before_and_after(tmp_path, steered / "best", initial_bias=-1.0)
    assert {name.partition(".")[0] for name in after.keys() - before.keys()} == {"value_head"}
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_saved_policys_critic_can_be_left_behind(tmp_path, finished):
    before, after = before_and_after(tmp_path, finished / "best", critic=False)
    assert {name.partition(".")[0] for name in before.keys() - after.keys()} == {"value_head"}
    assert all(torch.equal(after[name], before[name]) for name in after)


def test_init_from_something_else_leaves_nothing_behind(tmp_path, finished):
    for policy, message in (
        ({"width": 32}, "width 16 instead of 32, mlp_width 64 instead of 128"),
        (
            {"width": 16, "features": ["confidence", "mask"]},
            r"features .* instead of \('confidence', 'mask'\)",
        ),
    ):
        with pytest.raises(ValueError, match=rf"cannot go on from the policy .*best: it has {message}$"):
            train(tiny(init_from=str(finished / "best"), policy=policy), tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="no policy at nowhere"):
        train(tiny(init_from="nowhere"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_config_by_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(tiny(total_timesteps=32).to_dict()))
    for at, given in enumerate((path, str(path))):
        directory = train(given, str(tmp_path / f"run-{at}"))
        assert directory == tmp_path / f"run-{at}"
        assert load_config(directory / "config.yaml") == tiny(total_timesteps=32)


def test_validation_is_never_the_training_split(tmp_path, monkeypatch):
    splits = []
    evaluate = dllm_gym.evaluation.evaluate

    def watch(agent: Any, episodes: int, split: str, **kwargs: Any) -> Any:
        splits.append(split)
        return evaluate(agent, episodes, split, **kwargs)

    monkeypatch.setattr("dllm_agents.sb3.callbacks.evaluate", watch)
    directory = train(tiny(env={**TOY, "split": "test"}, total_timesteps=32), tmp_path / "run")
    assert set(splits) == {"validation"}
    assert load_config(directory / "config.yaml").env["split"] == "test"


# Determinism ------------------------------------------------------------------------------------------------


def test_same_seed_same_run(tmp_path, finished):
    again = train(tiny(), tmp_path / "again")
    assert torch.equal(weights(again / "last"), weights(finished / "last"))
    strip = [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(again)]
    assert strip == [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(finished)]


def test_evaluating_does_not_change_the_training(tmp_path, finished):
    directory = train(tiny(eval_every=10_000, eval_episodes=3), tmp_path / "run")
    assert len(read_metrics(directory)) == 1
    assert torch.equal(weights(directory / "last"), weights(finished / "last"))


# Going on ---------------------------------------------------------------------------------------------------


def test_resume_goes_on_to_the_end(tmp_path, monkeypatch):
    directory, config = tmp_path / "run", tiny()
    train_until(config, directory, 2, monkeypatch)
    before = torch.load(directory / "training_state.pt", weights_only=True)
    assert len(before["history"]) == 2
    assert not (directory / "metrics.json").exists()

    runs = []
    restore = _Run._restore

    def watch(self: Any, state: Any) -> None:
        restore(self, state)
        assert torch.equal(torch.get_rng_state(), state["random"]["torch"])
        runs.append(self)

    monkeypatch.setattr(_Run, "_restore", watch)
    with monkeypatch.context() as patch:
        patch.setattr(_Run, "learn", lambda self: None)
        train(config, directory, resume=True)
    model = runs[0].model
    assert model.num_timesteps == before["timesteps"]
    assert model._n_updates == before["updates"]
    for name, tensor in model.policy.state_dict().items():
        assert torch.equal(tensor, before["policy"][name])
    optimizer = model.policy.optimizer.state_dict()["state"]
    assert optimizer.keys() == before["optimizer"]["state"].keys()
    for key, moments in before["optimizer"]["state"].items():
        assert torch.equal(optimizer[key]["exp_avg"], moments["exp_avg"])
        assert optimizer[key]["step"] == moments["step"]
    assert runs[0].best_reward == before["best_reward"]

    train(config, directory, resume=True)
    rows = read_metrics(directory)
    assert rows[:2] == before["history"]
    steps = [row["timesteps"] for row in rows]
    assert steps == sorted(steps)
    assert before["timesteps"] < 192 <= steps[-1] < 192 + 64
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    best = read_description(directory / "best")["metadata"]["validation"]
    assert best == rows[int(np.argmax([row["sample"]["reward_mean"] for row in rows]))]
    # the learning rate goes on falling where it stood
    events = read_events(directory)
    rates = {event.step: event.value for event in events.Scalars("train/learning_rate")}
    assert [rates[step] for step in sorted(rates)] == sorted(rates.values(), reverse=True)


@pytest.mark.parametrize("remembers", [False, True])
def test_resume_goes_on_with_the_next_problem(tmp_path, monkeypatch, remembers):
    """Of the next group, where the dLLM remembers earlier steps: there all rows begin anew."""
    if remembers:
        monkeypatch.setattr("dllm_gym.envs.engine.Engine.remembers", True)
    directory, config = tmp_path / "run", tiny()
    train_until(config, directory, 1, monkeypatch)
    before = torch.load(directory / "training_state.pt", weights_only=True)["next_ticket"]
    drawn = []
    call = dllm_agents.sb3.grouped.Tickets.__call__

    def watch(self: Any, row: int) -> int:
        drawn.append(self.next)
        return call(self, row)

    monkeypatch.setattr(dllm_agents.sb3.grouped.Tickets, "__call__", watch)
    train(config, directory, resume=True)
    assert drawn[0] == (-(-before // 4) * 4 if remembers else before)
    assert drawn == list(range(drawn[0], drawn[0] + len(drawn)))


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    config = tiny(total_timesteps=64)
    directory = train(config, tmp_path / "run")
    before, rows = weights(directory / "last"), read_metrics(directory)
    train(config, directory, resume=True)
    assert torch.equal(weights(directory / "last"), before)
    assert read_metrics(directory) == rows


def test_resume_grpo_with_its_experts_and_its_reference(tmp_path, monkeypatch):
    directory, config = tmp_path / "run", grpo()
    references = []
    learn = GRPO._setup_learn

    def watch(self: Any, *args: Any) -> Any:
        done = learn(self, *args)
        references.append(torch.cat([parameter.flatten() for parameter in self._reference.parameters()]))
        return done

    monkeypatch.setattr(GRPO, "_setup_learn", watch)
    train_until(config, directory, 1, monkeypatch)
    before = torch.load(directory / "training_state.pt", weights_only=True)
    train(config, directory, resume=True)
    rows = read_metrics(directory)
    assert rows[0] == before["history"][0]
    assert rows[-1]["timesteps"] >= 192
    assert torch.equal(references[0], references[1])
    assert not torch.equal(references[0], weights(directory / "last"))


def test_resume_with_tuples(tmp_path):
    """YAML gives lists back; that is the same configuration."""
    policy = {"width": 16, "features": ("confidence", "mask", "progress", "entropy")}
    config = tiny(env={**TOY, "observe": ("entropy",)}, policy=policy, total_timesteps=32)
    directory = train(config, tmp_path / "run")
    train(config, directory, resume=True)
    train(directory / "config.yaml", directory, resume=True)


def test_resume_stock_ppo(tmp_path, monkeypatch):
    config = tiny(group_size=1)
    train_until(config, tmp_path / "run", 1, monkeypatch)
    directory = train(config, tmp_path / "run", resume=True)
    assert read_metrics(directory)[-1]["timesteps"] == 192


# Refusals ---------------------------------------------------------------------------------------------------


def test_an_existing_run_is_not_overwritten(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    with pytest.raises(FileExistsError, match=r"finished already holds a training run; resume it \(--resume"):
        train(tiny(), finished)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_directory_without_a_run_may_exist(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    train(tiny(total_timesteps=32), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_resume_needs_the_same_configuration(finished):
    with pytest.raises(ValueError, match=r"config.yaml differs from the configuration given; resume with"):
        train(tiny(seed=1), finished, resume=True)
    with pytest.raises(ValueError, match=r"differs from the configuration given"):
        train(tiny(env={**TOY, "alpha": 2.0}), finished, resume=True)


def test_resume_needs_a_state(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing to resume in .*: no training_state.pt there"):
        train(tiny(), tmp_path / "nothing", resume=True)
    assert not (tmp_path / "nothing").exists()


def test_a_run_that_could_not_begin_can_begin_later(tmp_path):
    with pytest.raises(ValueError, match="exceeds completion_length 6"):
        train(tiny(env={**TOY, "block_length": 7}), tmp_path / "run")
    train(tiny(total_timesteps=32), tmp_path / "run")


# Time and output --------------------------------------------------------------------------------------------


def test_max_minutes_stops(tmp_path):
    config = tiny(total_timesteps=10**9, max_minutes=0.2 / 60, eval_every=10**9)
    directory = train(config, tmp_path / "run")
    (row,) = read_metrics(directory)
    assert row["timesteps"] < 10**6
    assert 0.1 < row["seconds"] < 30
    assert load_policy(directory / "best").label
    # its time is used up: a resumed run stops again at once
    train(config, directory, resume=True)
    rows = read_metrics(directory)
    assert rows[-1]["timesteps"] <= row["timesteps"] + config.num_envs


def test_silent_by_default_and_talkative_on_request(tmp_path, capfd):
    train(tiny(total_timesteps=32), tmp_path / "silent")
    assert capfd.readouterr() == ("", "")
    train(tiny(total_timesteps=64), tmp_path / "talkative", progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "steps," in err
    assert "sample 0." in err
    assert "deterministic " in err
