"""GymVecEnv behaves like SB3's own vector environments."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
from toy_unmask import ToyUnmaskVectorEnv

from dllm_agents.sb3 import GymVecEnv


class CountingEnv(gym.Env[Any, Any]):
    """Ends after 3 steps, by truncation when asked; tells a lot in its infos."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, truncate: bool = False) -> None:
        self.truncate, self.steps, self.episode = truncate, 0, -1

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.options = options
        self.steps, self.episode = 0, self.episode + 1
        return self._observe(), {"episode_index": self.episode, "table": np.arange(3)}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        over = self.steps == 3
        info = {
            "steps": self.steps,
            "note": f"step {self.steps}",
            "table": np.arange(3),
            "nested": {"deep": self.steps},
        }
        if over:
            info["is_success"] = True
        return self._observe(), float(self.steps), over and not self.truncate, over and self.truncate, info

    def _observe(self) -> Any:
        return np.array([self.episode, self.steps], dtype=np.float32)


def make_counting(*truncate: bool) -> GymVecEnv:
    factories = [lambda cut=cut: CountingEnv(cut) for cut in truncate]
    return GymVecEnv(gym.vector.SyncVectorEnv(factories, copy=False, autoreset_mode=AutoresetMode.SAME_STEP))


def make_cartpole(n: int = 3) -> GymVecEnv:
    arguments = {"autoreset_mode": AutoresetMode.SAME_STEP}
    return GymVecEnv(gym.make_vec("CartPole-v1", n, vectorization_mode="sync", vector_kwargs=arguments))


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_other_autoreset_modes_are_refused(mode):
    env = gym.make_vec("CartPole-v1", 2, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode})
    with pytest.raises(
        ValueError, match=r"needs autoreset mode SAME_STEP, got .*; pass autoreset_mode='SameStep'"
    ):
        GymVecEnv(env)
    env.close()


def test_equals_dummy_vec_env_step_by_step():
    ours, theirs = make_cartpole(), DummyVecEnv([lambda: gym.make("CartPole-v1") for _ in range(3)])
    ours.seed(5)
    theirs.seed(5)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    rng = np.random.default_rng(0)
    finished = 0
    for _ in range(80):
        actions = rng.integers(0, 2, 3)
        (obs, rewards, dones, infos), expected = ours.step(actions), theirs.step(actions)
        np.testing.assert_array_equal(obs, expected[0])
        np.testing.assert_array_equal(rewards, expected[1])
        np.testing.assert_array_equal(dones, expected[2])
        assert rewards.dtype == np.float32
        assert isinstance(infos, list)
        for info, other in zip(infos, expected[3], strict=True):
            assert info.keys() == other.keys()
            assert info["TimeLimit.truncated"] is other["TimeLimit.truncated"]
            if "terminal_observation" in info:
                finished += 1
                np.testing.assert_array_equal(info["terminal_observation"], other["terminal_observation"])
    assert finished > 3
    ours.close()
    theirs.close()


def test_infos_are_split_by_row_and_by_episode():
    env = make_counting(False, True)
    env.reset()
    assert [info["episode_index"] for info in env.reset_infos] == [0, 0]
    assert env.reset_infos[0]["table"].tolist() == [0, 1, 2]
    *_, infos = env.step(np.zeros(2, dtype=int))
    # Arrays and nested dicts are left out between episode ends.
    assert infos == [{"steps": 1, "note": "step 1", "TimeLimit.truncated": False}] * 2
    env.step(np.zeros(2, dtype=int))
    obs, rewards, dones, infos = env.step(np.zeros(2, dtype=int))
    assert obs.tolist() == [[1.0, 0.0]] * 2
    assert rewards.tolist() == [3.0, 3.0]
    assert dones.tolist() == [True, True]
    for info, truncated in zip(infos, (False, True), strict=True):
        assert info.pop("terminal_observation").tolist() == [0.0, 3.0]
        assert info.pop("table").tolist() == [0, 1, 2]
        assert info == {
            "steps": 3,
            "note": "step 3",
            "nested": {"deep": 3},
            "is_success": True,
            "TimeLimit.truncated": truncated,
        }
    assert [info["episode_index"] for info in env.reset_infos] == [1, 1]
    *_, infos = env.step(np.zeros(2, dtype=int))
    assert infos[0] == {"steps": 1, "note": "step 1", "TimeLimit.truncated": False}


def test_rows_that_go_on_keep_their_infos_while_others_finish():
    env = GymVecEnv(ToyUnmaskVectorEnv(num_envs=2, length=4))
    env.reset()
    obs, rewards, dones, infos = env.step(np.array([[1, 1, 1, 1], [1, 0, 0, 0]]))
    assert dones.tolist() == [True, False]
    assert rewards.tolist() == [1.0, 0.0]
    assert infos[1] == {"steps": 1, "TimeLimit.truncated": False}
    assert infos[0]["steps"] == 1
    assert infos[0]["is_success"] is True
    assert infos[0]["terminal_observation"]["mask"].sum() == 0
    assert obs["mask"].tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]
    assert env.reset_infos[0]["steps"] == 0


def test_returned_arrays_stay_what_they_were():
    env = GymVecEnv(ToyUnmaskVectorEnv(num_envs=2, length=4))
    first = env.reset()
    second = env.step(np.array([[1, 0, 0, 0]] * 2))[0]
    assert first["mask"].tolist() == [[1, 1, 1, 1]] * 2
    assert second["mask"].tolist() == [[0, 1, 1, 1]] * 2
    assert not np.shares_memory(first["confidence"], second["confidence"])
    counting = make_counting(False)
    first = counting.reset()
    counting.step(np.zeros(1, dtype=int))
    assert first.tolist() == [[0.0, 0.0]]


def test_seed_and_options_count_once():
    env = GymVecEnv(ToyUnmaskVectorEnv(num_envs=2))
    env.seed(11)
    env.set_options({"alpha": 1.0})
    env.reset()
    assert (env.env.last_seed, env.env.last_options) == (11, {"alpha": 1.0})
    env.reset()
    assert (env.env.last_seed, env.env.last_options) == (None, None)
    env.set_options([{"alpha": 1.0}, {"alpha": 2.0}])
    with pytest.raises(ValueError, match="same options for all rows"):
        env.reset()


def test_attributes_and_methods_of_sub_environments():
    env = make_counting(False, True, False)
    assert env.get_attr("truncate") == [False, True, False]
    assert env.get_attr("truncate", indices=[1]) == [True]
    assert env.get_attr("render_mode") == [None] * 3
    env.set_attr("truncate", True, indices=0)
    assert env.get_attr("truncate") == [True, True, False]
    env.set_attr("truncate", False)
    assert env.get_attr("truncate") == [False] * 3
    with pytest.raises(AttributeError, match="has no attribute 'truncat' that could be set"):
        env.set_attr("truncat", True)
    env.reset()
    assert env.env_method("_observe", indices=2)[0].tolist() == [0.0, 0.0]
    assert not env.has_attr("nothing_like_it")
    assert not env.has_attr("action_masks")
    with pytest.raises(AttributeError, match="action_mask"):
        env.env_method("action_masks")


def test_attributes_and_methods_of_a_batched_environment():
    env = GymVecEnv(ToyUnmaskVectorEnv(num_envs=3))
    assert env.get_attr("length") == [6] * 3
    env.set_attr("length", 5)
    assert env.get_attr("length", indices=1) == [5]
    with pytest.raises(ValueError, match="cannot be set for rows \\[0\\] only"):
        env.set_attr("length", 4, indices=0)
    assert env.env_is_wrapped(Monitor) == [False] * 3
    assert len(env.env_method("render")) == 3
    assert not env.has_attr("nothing_like_it")
    with pytest.raises(AttributeError, match="'nothing_like_it'"):
        env.set_attr("nothing_like_it", 1)


def test_wrapped_sub_environments_are_recognised():
    vector = gym.vector.SyncVectorEnv(
        [lambda: Monitor(CountingEnv())] * 2, autoreset_mode=AutoresetMode.SAME_STEP
    )
    env = GymVecEnv(vector)
    assert env.env_is_wrapped(Monitor) == [True, True]
    env.reset()
    for _ in range(3):
        *_, infos = env.step(np.zeros(2, dtype=int))
    assert infos[0]["episode"]["r"] == 6.0


def test_episode_statistics_of_gymnasium_reach_sb3():
    vector = gym.make_vec(
        "CartPole-v1", 2, vectorization_mode="sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP}
    )
    env = GymVecEnv(RecordEpisodeStatistics(vector))
    env.reset()
    episodes = []
    for _ in range(60):
        *_, infos = env.step(np.zeros(2, dtype=int))
        episodes += [info["episode"] for info in infos if "episode" in info]
        assert all("episode" not in info for info in env.reset_infos)
    assert episodes
    assert all(episode["r"] == episode["l"] > 5 for episode in episodes)
    env.close()


def test_action_masks_are_in_sb3_contribs_order():
    env = GymVecEnv(ToyUnmaskVectorEnv(num_envs=2, length=3))
    assert env.has_attr("action_masks")
    assert VecMonitor(env).has_attr("action_masks")
    env.reset()
    env.step(np.array([[1, 0, 0], [0, 0, 1]]))
    masks = np.stack(env.env_method("action_masks"))
    assert masks.dtype == bool
    # allow 0, allow 1, for each position
    assert masks.astype(int).tolist() == [[1, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]]
    assert len(env.env_method("action_masks", indices=[1])) == 1


def test_images_and_metadata():
    env = GymVecEnv(ToyUnmaskVectorEnv(num_envs=2))
    env.reset()
    assert env.render_mode == "rgb_array"
    assert env.metadata["render_fps"] == 4
    assert env.metadata is not env.env.metadata
    assert [image.shape for image in env.get_images()] == [(4, 6, 3)] * 2
    assert env.render().shape == (8, 6, 3)


def test_ppo_with_monitor_and_evaluation(tmp_path):
    env, evaluation = VecMonitor(make_cartpole()), VecMonitor(make_cartpole(2))
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=48, n_epochs=1, seed=0, device="cpu")
    callback = EvalCallback(evaluation, n_eval_episodes=2, eval_freq=32, log_path=str(tmp_path), verbose=0)
    model.learn(192, callback=callback)
    assert len(model.ep_info_buffer) > 0
    assert callback.last_mean_reward > 5
    env.close()
    evaluation.close()


def test_monitor_keywords_are_there_at_episode_end():
    env = VecMonitor(GymVecEnv(ToyUnmaskVectorEnv(num_envs=2)), info_keywords=("steps", "is_success"))
    env.reset()
    *_, infos = env.step(np.ones((2, 6), dtype=np.int8))
    assert infos[0]["episode"]["steps"] == 1
    assert infos[0]["episode"]["is_success"] is True
    assert infos[0]["episode"]["l"] == 1
