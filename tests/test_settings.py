"""What may change after an environment is made changes, everything else is refused by name."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from toy_backend import ScriptedBackend, ToyBackend, ToyTask

from dllm_agents import make_sb3_env
from dllm_agents.sb3 import GymVecEnv
from dllm_gym.envs.rewards import REWARDS
from dllm_gym.envs.unmask import UnmaskEnv
from dllm_gym.envs.vector import UnmaskVectorEnv

LENGTH = 6
RIGHT = [4, 0, 0, 0, 0, 0]
ONE_BY_ONE = np.eye(LENGTH, dtype=np.int8)
OBSERVE = ("alpha", "target_steps")
SETTINGS = [{"alpha": 3.0}, {"target_steps": 2}, {"alpha": 0.5, "target_steps": 4}]


def kwargs(**more):
    return {"backend": ScriptedBackend(RIGHT), "task": ToyTask(), "observe": OBSERVE, **more}


def made(**more):
    return gym.make("DLLMUnmask-v0", **kwargs(**more))


def batched(mode=AutoresetMode.SAME_STEP, num_envs=3, **more):
    return UnmaskVectorEnv(num_envs, autoreset_mode=mode, **kwargs(**more))


def in_sync(num_envs=3):
    return gym.make_vec(
        "DLLMUnmask-v0", num_envs, "sync", {"autoreset_mode": AutoresetMode.SAME_STEP}, **kwargs()
    )


def priced(steps=LENGTH, alpha=1.0, target_steps=1):
    """What a right answer earns."""
    missed = max(steps / target_steps, target_steps / steps)
    return REWARDS["multiplicative"](1.0, missed, LENGTH, alpha)


def earned(env):
    """What an episode that runs from its start earns, position by position."""
    for action in ONE_BY_ONE:
        _, reward, terminated, *_ = env.step(action)
    assert terminated
    return reward


def all_earn(envs):
    for action in ONE_BY_ONE:
        rewards = envs.step(np.tile(action, (3, 1)))[1]
    return rewards.tolist()


# One reset ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_options_of_a_reset_hold_for_its_episode(settings):
    env = made()
    observation = env.reset(seed=0, options=settings)[0]
    assert observation["alpha"] == np.float32(settings.get("alpha", 1.0))
    assert observation["target_steps"] == np.float32(settings.get("target_steps", 1))
    assert earned(env) == pytest.approx(priced(**settings))
    assert env.reset()[0]["alpha"] == 1.0
    assert earned(env) == pytest.approx(priced())


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_options_hold_for_the_episodes_that_start_then_in_batches(settings):
    envs = batched()
    envs.reset(seed=0, options=settings)
    assert all_earn(envs) == pytest.approx([priced(**settings)] * 3)
    assert all_earn(envs) == pytest.approx([priced()] * 3)


def test_every_row_its_own():
    envs = batched(AutoresetMode.DISABLED)
    envs.reset(seed=0)
    options = {"alpha": np.array([9.0, 2.0, 3.0]), "target_steps": [9, 2, 1]}
    observation, _ = envs.reset(options={**options, "reset_mask": np.array([False, True, True])})
    assert observation["alpha"][:, 0].tolist() == [1.0, 2.0, 3.0]
    expected = [priced(), priced(alpha=2.0, target_steps=2), priced(alpha=3.0)]
    assert all_earn(envs) == pytest.approx(expected)


def test_options_shift_neither_problems_nor_what_is_drawn_otherwise():
    ranges = {"alpha": (0.1, 10.0), "target_steps": (1, 6)}
    plain, chosen = (made(backend=ToyBackend(), **ranges) for _ in range(2))
    for options in (None, {"alpha": 2.0}, None, {"target_steps": 3}):
        seed = 4 if options is None and plain.unwrapped.engine.problems[0] is None else None
        one, one_info = plain.reset(seed=seed)
        other, other_info = chosen.reset(seed=seed, options=options)
        assert one_info["problem"] == other_info["problem"]
        for name in OBSERVE:
            if not options or name not in options:
                assert one[name] == other[name]


# From now on ----------------------------------------------------------------------------------------------


def by_wrappers(env, name, value):
    assert env.set_wrapper_attr(name, value)


def by_assignment(env, name, value):
    setattr(env.unwrapped, name, value)


@pytest.mark.parametrize("set_one", [by_wrappers, by_assignment])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_set_on_a_single_environment(set_one, settings):
    env = made()
    env.reset(seed=0)
    for name, value in settings.items():
        set_one(env, name, value)
        assert env.get_wrapper_attr(name) == value
    assert earned(env) == pytest.approx(priced())  # the episode goes on as it began
    for _ in range(2):
        env.reset()
        assert earned(env) == pytest.approx(priced(**settings))
    description = env.unwrapped.engine.description()
    assert {name: description[name] for name in settings} == settings


ADAPTED = {
    "batched": lambda: GymVecEnv(batched()),
    "sync": lambda: GymVecEnv(in_sync()),
    "monitored": lambda: make_sb3_env(3, **kwargs()),
}


@pytest.mark.parametrize("make", ADAPTED)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_set_attr_of_stable_baselines3(make, settings):
    env = ADAPTED[make]()
    env.reset()
    for name, value in settings.items():
        env.set_attr(name, value)
        assert env.get_attr(name) == [value] * 3
    assert all_earn(env) == pytest.approx([priced()] * 3)
    for _ in range(2):
        assert all_earn(env) == pytest.approx([priced(**settings)] * 3)


def test_a_range_may_be_set_and_becomes_a_number_again():
    envs = batched(backend=ToyBackend())
    envs.reset(seed=0)
    envs.set_attr("alpha", [0.1, 10.0])
    assert envs.alpha == (0.1, 10.0)
    drawn = envs.reset(seed=0)[0]["alpha"]
    assert len(np.unique(drawn)) == 3
    expected = batched(backend=ToyBackend(), alpha=(0.1, 10.0)).reset(seed=0)[0]["alpha"]
    np.testing.assert_array_equal(drawn, expected)
    envs.set_attr("alpha", 2)
    assert envs.reset()[0]["alpha"].tolist() == [[2.0]] * 3


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("alpha", -1, "alpha must be a finite number of at least 0, .* got -1"),
        ("alpha", "high", "alpha must be .* got 'high'"),
        ("target_steps", 0.5, "target_steps must be a finite number of at least 1, .* got 0.5"),
        ("target_steps", (3, 2), r"target_steps must be .* got \(3, 2\)"),
    ],
)
def test_values_are_checked_as_in_the_constructor(name, value, message):
    env = made(alpha=2.0, target_steps=3)
    for set_one in (by_wrappers, by_assignment):
        with pytest.raises(ValueError, match=message):
            set_one(env, name, value)
    assert (env.unwrapped.alpha, env.unwrapped.target_steps) == (2.0, 3.0)


def fails_above_two(score, steps, length, alpha):
    return score if alpha <= 2 else np.nan


def test_a_reward_function_is_tried_on_an_alpha_that_is_set():
    env = made(reward=fails_above_two)
    with pytest.raises(ValueError, match=r"reward fails_above_two must give .* got nan .* alpha 3"):
        env.unwrapped.alpha = 3.0
    assert env.unwrapped.alpha == 1.0


# All the rest ---------------------------------------------------------------------------------------------

REST = ["alhpa", "temperature", "on_empty", "observe", "reward", "num_envs", "engine", "action_space"]


@pytest.mark.parametrize("name", REST)
def test_everything_else_is_refused_by_name(name):
    message = f"'{name}' cannot be set: but for alpha, target_steps and block_length, everything"
    env = made()
    for force in (True, False):
        with pytest.raises(AttributeError, match=message):
            env.unwrapped.set_wrapper_attr(name, 0.5, force=force)
    with pytest.raises(AttributeError, match=message):
        batched().set_attr(name, 0.5)


@pytest.mark.parametrize("name", ["alhpa", "temperature", "on_empty", "reward"])
def test_through_wrappers_too(name):
    with pytest.raises(AttributeError, match=f"'{name}' cannot be set"):
        made().set_wrapper_attr(name, 0.5)
    for make in ADAPTED.values():
        with pytest.raises(AttributeError, match=f"'{name}'"):
            make().set_attr(name, 0.5)


@pytest.mark.parametrize(
    "name", ["alpha", "alhpa", "temperature", "block_length", "on_empty", "task", "length"]
)
def test_an_engine_is_what_it_was_made_to_be(name):
    with pytest.raises(AttributeError, match=f"'{name}' of an engine cannot be set.*prices.alpha"):
        setattr(made().unwrapped.engine, name, 5.0)


@pytest.mark.parametrize("name", ["alhpa", "reward", "length"])
def test_prices_take_no_other_names(name):
    prices = made().unwrapped.engine.prices
    with pytest.raises(AttributeError, match=f"'{name}'"):
        setattr(prices, name, 5.0)
    prices.alpha = 3.0
    assert prices.alpha == 3.0


def test_a_generator_is_set_by_gymnasiums_own_property():
    env = made()
    env.set_wrapper_attr("np_random", np.random.default_rng(8))
    assert env.reset()[1]["problem"] == np.random.default_rng(8).integers(50)


# Keywords -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "accepted"),
    [
        (lambda **more: UnmaskEnv(**kwargs(), **more), "backend, .*group_size, render_mode"),
        (lambda **more: batched(**more), "num_envs, autoreset_mode, max_episode_steps, render_mode, backend"),
        (lambda **more: make_sb3_env(**kwargs(), **more), "num_envs, seed, num_experts, .*backend"),
        (lambda **more: gym.make("DLLMUnmask-v0", **more), "backend, .*group_size, render_mode"),
        (lambda **more: gym.make_vec("DLLMUnmask-v0", 2, **more), "num_envs, autoreset_mode, .*backend"),
    ],
)
def test_unknown_keywords_are_told_what_there_is(make, accepted):
    for error in (TypeError, ValueError):  # Python's, and what the command line reports in a line
        with pytest.raises(error, match=f"takes no 'n_envs', 'blok_length'; it takes {accepted}"):
            make(n_envs=2, blok_length=8)


def test_what_an_sb3_environment_refuses():
    for wrong in (2.5, 0, "two"):
        with pytest.raises(ValueError, match="num_envs must be a whole number of at least 1"):
            make_sb3_env(wrong, **kwargs())
    with pytest.raises(ValueError, match="group_size must be 1 to num_envs, 4; got 5"):
        make_sb3_env(4, group_size=5, **kwargs())


def test_groups_in_sync_mode_say_where_there_are_groups():
    with pytest.raises(ValueError, match=r"group_size 2 must divide .* 1: groups are rows of one batched"):
        gym.make_vec("DLLMUnmask-v0", 2, "sync", group_size=2)
