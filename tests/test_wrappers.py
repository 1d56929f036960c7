"""The wrappers: other action spaces, flat observations, infos that stay alike, and the same environment."""

import doctest

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space, iterate
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecFrameStack, VecMonitor
from toy_backend import ToyBackend, ToyTask

import dllm_gym
import dllm_gym.envs.wrappers
from dllm_agents import make_sb3_env
from dllm_agents.sb3 import GymVecEnv
from dllm_gym import MultiBinaryToMultiDiscrete, VectorMultiBinaryToMultiDiscrete
from dllm_gym.envs.unmask import UnmaskEnv
from dllm_gym.envs.vector import UnmaskVectorEnv

LENGTH = 6


def toy(**kwargs):
    return UnmaskEnv(backend=ToyBackend(), task=ToyTask(), **kwargs)


def toys(num_envs, **kwargs):
    return UnmaskVectorEnv(num_envs, backend=ToyBackend(), task=ToyTask(), **kwargs)


def assert_same(one, other):
    assert data_equivalence(one, other, exact=True), f"{one} differs from {other}"


class Bits(gym.Env):
    """What is not ours: bits in two dimensions."""

    observation_space = gym.spaces.Discrete(1)
    action_space = gym.spaces.MultiBinary((2, 3))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}

    def step(self, action):
        assert action in self.action_space
        return 0, float(action.sum()), False, False, {"action": action}


def test_spaces():
    env = MultiBinaryToMultiDiscrete(toy())
    assert env.action_space == gym.spaces.MultiDiscrete([2] * LENGTH)
    assert env.observation_space == toy().observation_space
    envs = VectorMultiBinaryToMultiDiscrete(toys(3))
    assert envs.single_action_space == env.action_space
    assert envs.action_space == batch_space(env.action_space, 3)
    assert envs.single_observation_space == env.observation_space
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


@given(data=st.data())
@settings(max_examples=25)
def test_the_same_episode_behind_both_spaces(data):
    """Whatever is chosen, every return value is that of the environment inside."""
    plain, wrapped = toy(), MultiBinaryToMultiDiscrete(toy())
    seed = data.draw(st.integers(0, 1000))
    assert_same(plain.reset(seed=seed), wrapped.reset(seed=seed))
    over = False
    while not over:
        choices = np.array(data.draw(st.lists(st.integers(0, 1), min_size=LENGTH, max_size=LENGTH)))
        assert choices in wrapped.action_space
        expected = plain.step(choices.astype(np.int8))
        assert_same(expected, wrapped.step(choices))
        over = expected[2]


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_the_same_batch_behind_both_spaces(mode):
    plain, wrapped = (
        toys(4, autoreset_mode=mode),
        VectorMultiBinaryToMultiDiscrete(toys(4, autoreset_mode=mode)),
    )
    wrapped.action_space.seed(0)
    assert_same(plain.reset(seed=1), wrapped.reset(seed=1))
    for _ in range(10):
        choices = wrapped.action_space.sample()
        assert_same(plain.step(choices.astype(np.int8)), wrapped.step(choices))


def test_batched_and_single_wrapper_agree():
    kwargs = {"autoreset_mode": AutoresetMode.SAME_STEP}
    singles = SyncVectorEnv([lambda: MultiBinaryToMultiDiscrete(toy()) for _ in range(3)], **kwargs)
    batched = VectorMultiBinaryToMultiDiscrete(toys(3, **kwargs))
    assert singles.action_space == batched.action_space
    assert_same(singles.reset(seed=5)[0], batched.reset(seed=5)[0])
    batched.action_space.seed(5)
    for _ in range(10):
        choices = batched.action_space.sample()
        assert_same(singles.step(choices)[:4], batched.step(choices)[:4])


def test_bits_of_any_shape_reach_the_environment_inside_its_space():
    env = MultiBinaryToMultiDiscrete(Bits())
    assert env.action_space == gym.spaces.MultiDiscrete([[2, 2, 2]] * 2)
    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(10):
        choices = env.action_space.sample()
        *_, info = env.step(choices)
        np.testing.assert_array_equal(info["action"], choices)
        assert info["action"].dtype == np.int8


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.float32, bool, torch.int64])
def test_choices_of_any_dtype(dtype):
    env = MultiBinaryToMultiDiscrete(toy())
    env.reset(seed=0)
    choices = torch.tensor([0, 1, 0, 0, 1, 0], dtype=dtype) if dtype is torch.int64 else None
    choices = np.array([0, 1, 0, 0, 1, 0], dtype=dtype) if choices is None else choices
    assert env.step(choices)[0]["mask"].tolist() == [1, 0, 1, 1, 0, 1]


@pytest.mark.parametrize("wrong", [2, -1, 0.5, 256, np.nan])
def test_other_choices_are_refused(wrong):
    env, envs = MultiBinaryToMultiDiscrete(toy()), VectorMultiBinaryToMultiDiscrete(toys(2))
    env.reset(seed=0)
    envs.reset(seed=0)
    choices = np.array([0, wrong, 0, 1, 0, 0])
    with pytest.raises(ValueError, match="an action must hold only 0 and 1"):
        env.step(choices)
    with pytest.raises(ValueError, match="an action must hold only 0 and 1"):
        envs.step(np.stack([choices, np.zeros(LENGTH)]))


@pytest.mark.parametrize("block_length", [None, 2])
def test_the_mask_still_says_which_choices_count(block_length):
    env = MultiBinaryToMultiDiscrete(toy(block_length=block_length))
    _, info = env.reset(seed=0)
    env.action_space.seed(0)
    over = False
    while not over:
        np.testing.assert_array_equal(
            np.asarray(env.get_wrapper_attr("action_masks")()).reshape(LENGTH, 2),
            np.stack([np.ones(LENGTH), info["action_mask"]], axis=-1),
        )
        mask = tuple(np.array((1, bit), dtype=np.int8) for bit in info["action_mask"])
        choices = env.action_space.sample(mask=mask)
        assert not choices[info["action_mask"] == 0].any()
        _, _, over, _, info = env.step(choices)
    assert info["ignored_actions"] == 0


def test_the_mask_of_every_row():
    envs = VectorMultiBinaryToMultiDiscrete(toys(3, block_length=3))
    _, infos = envs.reset(seed=0)
    assert infos["action_mask"].tolist() == [[1, 1, 1, 0, 0, 0]] * 3
    *_, infos = envs.step(np.array([[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]))
    assert infos["action_mask"].tolist() == [[0, 1, 1, 0, 0, 0], [1, 0, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]


@pytest.mark.parametrize("wrapper", [MultiBinaryToMultiDiscrete, VectorMultiBinaryToMultiDiscrete])
def test_other_action_spaces_are_refused(wrapper):
    vector = wrapper is VectorMultiBinaryToMultiDiscrete
    env = gym.make_vec("CartPole-v1") if vector else gym.make("CartPole-v1")
    with pytest.raises(ValueError, match=r"the action space must be MultiBinary, got Discrete\(2\)"):
        wrapper(env)
    env.close()


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version")
def test_checkers_have_nothing_to_say():
    env = MultiBinaryToMultiDiscrete(gym.make("DLLMUnmask-v0", block_length=8, render_mode="rgb_array"))
    check_env(env)
    check_env_for_sb3(env)


def test_spec_names_the_wrapper():
    env = MultiBinaryToMultiDiscrete(gym.make("DLLMUnmask-v0", completion_length=8))
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.action_space == env.action_space
    assert isinstance(again, MultiBinaryToMultiDiscrete)


def test_examples_in_the_docstrings():
    assert doctest.testmod(dllm_gym.envs.wrappers).attempted > 5
    assert doctest.testmod(dllm_gym.envs.wrappers).failed == 0


# Flat observations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_flat_observations_are_gymnasiums_row_by_row(mode):
    observe = ("tokens", "top_k", "alpha")
    flat = dllm_gym.VectorFlattenObservation(toys(3, autoreset_mode=mode, observe=observe))
    plain = toys(3, autoreset_mode=mode, observe=observe)
    single = plain.single_observation_space
    assert flat.single_observation_space == spaces.utils.flatten_space(single)
    assert flat.observation_space.shape == (3, flat.single_observation_space.shape[0])

    def rows(observations):
        return [spaces.utils.flatten(single, row) for row in iterate(plain.observation_space, observations)]

    observations, infos = flat.reset(seed=0)
    expected, expected_infos = plain.reset(seed=0)
    np.testing.assert_array_equal(observations, rows(expected))
    assert observations in flat.observation_space
    assert_same(infos, expected_infos)
    rng, finals = np.random.default_rng(0), 0
    for _ in range(12):
        actions = rng.random((3, 6)) < 0.5
        ours, theirs = flat.step(actions), plain.step(actions)
        np.testing.assert_array_equal(ours[0], rows(theirs[0]))
        assert ours[0].dtype == flat.observation_space.dtype
        assert_same(ours[1:4], theirs[1:4])
        for row in np.flatnonzero(theirs[4].get("_final_obs", np.zeros(3))):
            finals += 1
            last = spaces.utils.flatten(single, theirs[4]["final_obs"][row])
            np.testing.assert_array_equal(ours[4]["final_obs"][row], last)
        if mode is AutoresetMode.DISABLED and ours[2].any():
            flat.reset(options={"reset_mask": ours[2]})
            plain.reset(options={"reset_mask": ours[2]})
    assert (finals > 3) == (mode is AutoresetMode.SAME_STEP)


def test_frames_of_flat_observations_are_stacked():
    envs = dllm_gym.VectorFlattenObservation(toys(2, autoreset_mode="SameStep"))
    env = VecFrameStack(VecMonitor(GymVecEnv(envs)), n_stack=3)
    width = envs.single_observation_space.shape[0]
    first = env.reset()
    second, _, _, _ = env.step(np.eye(6, dtype=np.int8)[:2])
    assert first.shape == second.shape == (2, 3 * width)
    np.testing.assert_array_equal(second[:, width : 2 * width], first[:, 2 * width :])
    *_, infos = env.step(np.ones((2, 6), dtype=np.int8))
    assert infos[0]["terminal_observation"].shape == (3 * width,)
    PPO("MlpPolicy", env, n_steps=8, batch_size=16, n_epochs=1, device="cpu").learn(32)


def test_other_observations_are_refused():
    envs = gym.make_vec("CartPole-v1", 2, vectorization_mode="sync")
    with pytest.raises(ValueError, match=r"observations must be a Dict of Box and MultiBinary, got Box"):
        dllm_gym.VectorFlattenObservation(envs)


# Infos -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.parametrize("on_empty", ["best", "noop"])
def test_full_infos_have_the_same_keys_and_types_all_the_time(limit, on_empty):
    env = gym.make("DLLMUnmask-v0", max_episode_steps=limit, on_empty=on_empty, task="sudoku")
    env = dllm_gym.FullInfo(env)
    _, first = env.reset(seed=0)
    rng, over, steps, infos = np.random.default_rng(0), False, 0, [first]
    while not over:
        assert (infos[-1]["nfe"], infos[-1]["is_success"], infos[-1]["score"]) == (steps, False, 0.0)
        *_, terminated, truncated, info = env.step(rng.random(16) < 0.15)
        infos.append(info)
        steps, over = steps + 1, terminated or truncated
    assert truncated == (limit is not None)
    for info in infos:
        assert info.keys() == first.keys() >= {"prompt", "problem", "action_mask", "cell_accuracy"}
        assert {key: type(value) for key, value in info.items()} == {
            key: type(value) for key, value in first.items()
        }
        assert (info["problem"], info["prompt"]) == (first["problem"], first["prompt"])
    assert infos[-1]["nfe"] == steps
    task = env.unwrapped.engine.task
    assert infos[-1]["score"] == task.score(infos[-1]["completion"], task.problem(first["problem"]))
    assert infos[-1]["completion"]


def test_full_infos_change_nothing_that_is_there():
    plain, full = toy(), dllm_gym.FullInfo(toy())
    plain.reset(seed=0)
    full.reset(seed=0)
    for action in np.eye(6, dtype=np.int8):
        info, more = plain.step(action)[-1], full.step(action)[-1]
        assert_same(info, {key: more[key] for key in info})


def test_monitors_find_their_keywords_at_a_time_limit():
    env = gym.make("DLLMUnmask-v0", max_episode_steps=2, completion_length=8)
    env = Monitor(dllm_gym.FullInfo(env), info_keywords=("is_success", "score", "nfe"))
    env.reset(seed=0)
    nothing = np.zeros(8, dtype=np.int8)
    env.step(nothing)
    assert env.step(nothing)[-1]["episode"]["nfe"] == 2
    envs = make_sb3_env(2, completion_length=8, max_episode_steps=2)
    envs.reset()
    envs.step(np.zeros((2, 8)))
    *_, dones, infos = envs.step(np.zeros((2, 8)))
    assert dones.all()
    assert [info["TimeLimit.truncated"] for info in infos] == [True, True]
    assert [info["episode"]["nfe"] for info in infos] == [2, 2]
