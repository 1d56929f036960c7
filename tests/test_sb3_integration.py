"""Plain Stable-Baselines3 on the environment that ``make_sb3_env`` makes."""

from __future__ import annotations

import zipfile
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize, VecVideoRecorder

import dllm_gym
from dllm_agents import make_sb3_env
from dllm_agents.agent import LearnedPolicy
from dllm_agents.sb3 import UnmaskPolicy
from dllm_agents.sb3.env import MONITORED

pytestmark = pytest.mark.usefixtures("toys")

LENGTH = 6
TOY = {"task": "toy", "backend": "toy"}
ALWAYS_RIGHT = {"task": "toy", "backend": "always-right"}
ALGORITHMS = [
    pytest.param(PPO, {"n_steps": 8, "batch_size": 32, "n_epochs": 2}, id="ppo"),
    pytest.param(A2C, {"n_steps": 8}, id="a2c"),
]


def make_model(algorithm: Any = PPO, settings: Any = None, env: Any = None, **kwargs: Any) -> Any:
    env = make_sb3_env(8, **TOY) if env is None else env
    settings = {"n_steps": 8, "batch_size": 32, "n_epochs": 1} if settings is None else settings
    fixed = {"gamma": 1.0, "device": "cpu", "seed": 0, "policy_kwargs": {"width": 16}}
    return algorithm(UnmaskPolicy, env, **{**fixed, **settings, **kwargs})


def random_actions(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Some rows reveal much, some little, some nothing."""
    return (rng.random((rows, LENGTH)) < rng.random((rows, 1))).astype(np.int8)


# Learning ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "settings"), ALGORITHMS)
def test_learn_with_evaluation_callback(tmp_path, algorithm, settings):
    model = make_model(algorithm, settings)
    evaluation = make_sb3_env(4, seed=100, split="validation", **TOY)
    callback = EvalCallback(
        evaluation,
        n_eval_episodes=6,
        eval_freq=16,
        best_model_save_path=str(tmp_path),
        log_path=str(tmp_path),
        verbose=0,
    )
    model.learn(256, callback=callback)
    assert model.num_timesteps == 256
    results = np.load(tmp_path / "evaluations.npz")
    assert results["timesteps"].tolist() == [128, 256]
    assert results["results"].shape == results["ep_lengths"].shape == results["successes"].shape == (2, 6)
    assert (results["results"] >= 0).all()
    assert (results["results"] <= 1).all()
    assert (results["ep_lengths"] >= 1).all()
    assert (results["ep_lengths"] <= LENGTH).all()
    best = algorithm.load(tmp_path / "best_model.zip", device="cpu")
    assert isinstance(best.policy, UnmaskPolicy)
    assert all(torch.isfinite(parameter).all() for parameter in model.policy.parameters())


def test_stock_ppo_learns_that_steps_cost():
    env = make_sb3_env(16, **ALWAYS_RIGHT)
    settings = {"n_steps": 16, "batch_size": 128, "n_epochs": 4, "gae_lambda": 1.0, "learning_rate": 1e-2}
    model = make_model(PPO, settings, env)

    def nfe() -> float:
        return dllm_gym.evaluate(LearnedPolicy(model.policy.network.eval()), 50, **ALWAYS_RIGHT).nfe_mean

    assert nfe() > 5
    model.learn(4000)
    assert nfe() < 2.5


def test_on_the_embedded_dllm():
    env = make_sb3_env(4, block_length=8)
    model = make_model(env=env, settings={"n_steps": 4, "batch_size": 16, "n_epochs": 1})
    model.learn(16)
    assert env.action_space.shape == (48,)
    env.close()


def test_statistics_that_sb3_logs():
    model = make_model()
    logged: dict[str, Any] = {}
    dump = model.dump_logs

    def keep(iteration: int = 0) -> None:
        logged.update(model.logger.name_to_value)
        dump(iteration)

    model.dump_logs = keep
    model.learn(256)
    keep()
    episodes = list(model.ep_info_buffer)
    assert len(episodes) > 20
    assert set(MONITORED) | {"r", "l", "t"} == episodes[0].keys()
    assert len(model.ep_success_buffer) == len(episodes)
    assert np.mean(model.ep_success_buffer) == np.mean([episode["is_success"] for episode in episodes])


# The environment --------------------------------------------------------------------------------------------


def test_what_the_monitor_keeps_of_an_episode():
    env = make_sb3_env(4, on_empty="noop", **TOY)
    env.reset()
    rng = np.random.default_rng(0)
    seen = 0
    empty = np.zeros(4, dtype=int)
    for _ in range(40):
        actions = random_actions(rng, 4)
        masks = np.stack(env.env_method("action_masks"))[:, 1::2]
        empty += ~(actions.astype(bool) & masks).any(1)
        _, rewards, dones, infos = env.step(actions)
        for row in np.flatnonzero(dones):
            episode = infos[row]["episode"]
            assert episode["r"] == pytest.approx(rewards[row], abs=1e-6)
            assert episode["l"] == episode["nfe"] == infos[row]["nfe"]
            assert episode["is_success"] == (episode["score"] == 1.0)
            assert episode["empty_actions"] == empty[row]
            empty[row] = 0
            seen += 1
    assert seen > 15


@pytest.mark.parametrize(
    "kwargs", [{}, {"block_length": 2}, {"on_empty": "noop"}, {"temperature": 1.0}], ids=str
)
def test_equals_single_environments_and_terminal_observation_is_the_true_last_state(kwargs):
    rows, arguments = 3, {**TOY, "observe": ("tokens", "entropy"), **kwargs}
    batched = make_sb3_env(rows, seed=7, **arguments)
    adapter = batched.venv  # VecMonitor hands the infos of a reset on to nobody
    singles = [gym.make(dllm_gym.ENV_ID, **arguments) for _ in range(rows)]
    observation = batched.reset()
    for row, env in enumerate(singles):
        expected, info = env.reset(seed=7 + row)
        assert adapter.reset_infos[row]["problem"] == info["problem"]
        assert adapter.reset_infos[row]["prompt"] == info["prompt"]
        for key, value in expected.items():
            np.testing.assert_array_equal(observation[key][row], value)
    rng = np.random.default_rng(0)
    finished = 0
    for _ in range(30):
        actions = random_actions(rng, rows)
        observation, rewards, dones, infos = batched.step(actions)
        for row, env in enumerate(singles):
            expected, reward, terminated, truncated, info = env.step(actions[row])
            assert rewards[row] == np.float32(reward)
            assert dones[row] == (terminated or truncated)
            assert infos[row]["TimeLimit.truncated"] is False
            assert ("terminal_observation" in infos[row]) == terminated
            if terminated:
                finished += 1
                last = infos[row]["terminal_observation"]
                assert last.keys() == expected.keys()
                for key, value in expected.items():
                    np.testing.assert_array_equal(last[key], value)
                assert last["progress"] == pytest.approx(info["nfe"] / LENGTH)
                for key in ("completion", "score", "nfe", "is_success", "problem", "written"):
                    assert infos[row][key] == info[key]
                expected, info = env.reset()
                assert adapter.reset_infos[row]["problem"] == info["problem"]
            for key, value in expected.items():
                np.testing.assert_array_equal(observation[key][row], value)
    assert finished > 10


def test_returned_arrays_are_not_reused():
    env = make_sb3_env(3, **TOY)
    first = env.reset()
    kept = {key: value.copy() for key, value in first.items()}
    second, rewards, dones, _ = env.step(np.ones((3, LENGTH), dtype=np.int8))
    third, *others = env.step(np.zeros((3, LENGTH), dtype=np.int8))
    for key, value in first.items():
        np.testing.assert_array_equal(value, kept[key])
        assert not np.shares_memory(second[key], third[key])
    assert not np.shares_memory(rewards, others[0])
    assert not np.shares_memory(dones, others[1])


def test_seeds_problems_and_groups():
    def problems(**kwargs: Any) -> list[int]:
        env = make_sb3_env(6, **{**TOY, "task_kwargs": {"num_problems": None}, **kwargs})
        env.reset()
        return [info["problem"] for info in env.venv.reset_infos]

    assert problems(seed=1) == problems(seed=1) != problems(seed=2)
    assert problems(seed=1)[1:] == problems(seed=2)[:-1]
    grouped = problems(seed=1, group_size=3)
    assert grouped[0] == grouped[1] == grouped[2] != grouped[3]
    assert grouped[3] == grouped[4] == grouped[5]
    assert grouped == problems(seed=1, group_size=3)
    assert problems(seed=2, group_size=3) != grouped


def test_it_is_a_monitored_batch_without_sub_environments():
    env = make_sb3_env(5, **TOY)
    assert isinstance(env, VecMonitor)
    assert env.num_envs == 5
    assert env.get_attr("render_mode") == [None] * 5
    assert env.env_is_wrapped(VecMonitor) == [False] * 5
    assert env.has_attr("action_masks")
    env.close()
    env.close()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"group_size": 0}, r"group_size must be a whole number of at least 1, got 0"),
        ({"group_size": -2}, r"group_size must be a whole number of at least 1, got -2"),
        ({"group_size": 8}, r"group_size must be 1 to num_envs, 4; got 8"),
        ({"group_size": 2, "num_experts": -1}, r"num_experts must be at least 0, .* got -1"),
        ({"num_experts": 1}, r"num_experts must be .* above 0 only in groups; got 1"),
        ({"num_envs": 0}, r"num_envs must be a whole number of at least 1, got 0"),
        ({"num_envs": 0, "group_size": 2}, r"num_envs must be a whole number of at least 1, got 0"),
        ({"block_length": 7}, r"block_length 7 exceeds completion_length 6"),
        ({"alpha": -1.0}, r"alpha must be a finite number of at least 0, or a range .* got -1.0"),
        ({"task": "algebra"}, r"unknown task 'algebra'; known tasks: arithmetic"),
        ({"backend": "huge"}, r"unknown backend 'huge'; known: .*toy"),
        ({"split": "exam", "task": "arithmetic"}, r"unknown split 'exam'; choose one of train"),
        ({"observe": ("smell",)}, r"unknown observation 'smell'"),
        ({"render_mode": "human"}, r"unknown render_mode 'human'; choose one of ansi, rgb_array"),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_sb3_env(**{"num_envs": 4, **TOY, **kwargs})


def test_unknown_keyword():
    with pytest.raises(TypeError, match="nonsense"):
        make_sb3_env(4, nonsense=1, **TOY)


# Pictures ---------------------------------------------------------------------------------------------------


def test_images():
    env = make_sb3_env(3, render_mode="rgb_array", **TOY)
    env.reset()
    env.step(np.eye(3, LENGTH, dtype=np.int8))
    images = env.get_images()
    assert len(images) == 3
    assert len({image.shape for image in images}) == 1
    height, width, channels = images[0].shape
    assert channels == 3
    assert height % 2 == width % 2 == 0
    assert all(image.dtype == np.uint8 for image in images)
    assert env.unwrapped.metadata["render_fps"] == 4  # where VecVideoRecorder looks
    tiled = env.render()
    assert tiled.shape == (2 * height, 2 * width, 3)
    env.close()


def test_video(tmp_path):
    pytest.importorskip("moviepy")
    env = make_sb3_env(2, render_mode="rgb_array", **TOY)
    recorder = VecVideoRecorder(env, str(tmp_path), lambda step: step == 0, video_length=5)
    recorder.reset()
    for _ in range(6):
        recorder.step(np.eye(2, LENGTH, dtype=np.int8))
    recorder.close()
    assert list(tmp_path.glob("*.mp4"))


# Evaluation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deterministic", [True, False])
def test_evaluate_policy(deterministic):
    model = make_model()
    rewards, lengths = evaluate_policy(
        model,
        make_sb3_env(4, **TOY),
        n_eval_episodes=10,
        deterministic=deterministic,
        return_episode_rewards=True,
    )
    assert len(rewards) == len(lengths) == 10
    assert all(1 <= length <= LENGTH for length in lengths)
    assert all(0 <= reward <= 1 for reward in rewards)


@pytest.mark.parametrize("on_empty", ["best", "noop"])
def test_deterministic_evaluation_never_stalls(on_empty):
    """Every p far below 0.5: SB3's own mode would select nothing for ever."""
    model = make_model(policy_kwargs={"width": 16, "initial_bias": -9.0})
    arguments = {**ALWAYS_RIGHT, "on_empty": on_empty}
    rewards, lengths = evaluate_policy(
        model, make_sb3_env(4, **arguments), n_eval_episodes=8, return_episode_rewards=True
    )
    assert lengths == [LENGTH] * 8
    assert rewards == pytest.approx([1 / LENGTH] * 8)
    result = dllm_gym.evaluate(model, 8, **arguments)
    assert result.accuracy == 1.0
    assert result.nfe_mean == LENGTH


def test_a_model_is_an_agent_for_dllm_gym():
    model = make_model(policy_kwargs={"width": 16, "initial_bias": 0.0})
    model.learn(128)
    results = [dllm_gym.evaluate(model, 30, batch_size=size, **TOY) for size in (30, 7)]
    twin = LearnedPolicy(model.policy.network.eval(), decoding="deterministic")
    results.append(dllm_gym.evaluate(twin, 30, **TOY))
    for result in results[1:]:
        assert result.records.completion == results[0].records.completion
        np.testing.assert_array_equal(result.records.nfe, results[0].records.nfe)
        np.testing.assert_array_equal(result.records.reward, results[0].records.reward)
    assert results[0].agent == "PPO"
    assert results[0].parameters == {"decoding": "deterministic"}
    assert results[0].label == "PPO (deterministic)"
    assert results[0].episodes == 30


def test_a_model_sees_observations_as_its_normalizer_shows_them():
    env = VecNormalize(make_sb3_env(8, **TOY), norm_obs_keys=["confidence", "progress"], norm_reward=False)
    model = PPO("MultiInputPolicy", env, n_steps=8, batch_size=32, n_epochs=1, device="cpu", seed=0)
    model.learn(256)
    env.training = False
    before = {key: (running.mean.copy(), running.count) for key, running in env.obs_rms.items()}

    def by_hand(observation: Any) -> Any:
        known = {key: observation[key] for key in model.observation_space.spaces}
        return model.predict(env.normalize_obs(known), deterministic=True)[0]

    found, expected = dllm_gym.evaluate(model, 30, **TOY), dllm_gym.evaluate(by_hand, 30, **TOY)
    raw = dllm_gym.evaluate(lambda seen: model.predict(dict(seen), deterministic=True)[0], 30, **TOY)
    np.testing.assert_array_equal(found.records.nfe, expected.records.nfe)
    assert found.records.completion == expected.records.completion
    assert (found.records.nfe != raw.records.nfe).any()  # or this test would say nothing
    for key, (mean, count) in before.items():  # looking teaches the normalizer nothing
        np.testing.assert_array_equal(env.obs_rms[key].mean, mean)
        assert env.obs_rms[key].count == count


def test_a_model_that_reads_more_observes_more():
    policy = {"width": 16, "features": ("confidence", "mask", "progress", "entropy")}
    env = make_sb3_env(4, observe=("entropy",), **TOY)
    model = make_model(env=env, policy_kwargs=policy)
    model.learn(32)
    assert dllm_gym.evaluate(model, 5, **TOY).episodes == 5
    with pytest.raises(ValueError, match=r"the observation space lacks \['entropy'\]"):
        make_model(policy_kwargs=policy)


# Saving -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "settings"), ALGORITHMS)
def test_save_and_load(tmp_path, algorithm, settings):
    model = make_model(algorithm, settings)
    model.learn(128)
    model.save(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert sum(entry.file_size for entry in archive.infolist()) < 200_000
    loaded = algorithm.load(tmp_path / "model.zip", env=make_sb3_env(8, **TOY), device="cpu")
    # the safe way with a stranger's file: own settings, and the tensors of the zip
    rebuilt = make_model(algorithm, settings, seed=1)
    rebuilt.set_parameters(tmp_path / "model.zip", device="cpu")
    expected = dllm_gym.evaluate(model, 20, **TOY).to_json()
    assert dllm_gym.evaluate(loaded, 20, **TOY).to_json() == expected
    assert dllm_gym.evaluate(rebuilt, 20, **TOY).to_json() == expected
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded.num_timesteps == 192
