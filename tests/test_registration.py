"""The front door: ids, imports, specs, and what a wrong argument is told."""

import math
import pickle
import subprocess
import sys
import textwrap
from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode
from toy_backend import ToyBackend, ToyTask

import dllm_gym
from dllm_gym.envs.unmask import UnmaskEnv
from dllm_gym.envs.vector import UnmaskVectorEnv
from dllm_gym.registration import register_envs


def run_python(code):
    """In a fresh process, where any warning is an error."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_import_is_light_and_silent_when_repeated():
    out = run_python(
        """
        import importlib, sys
        import dllm_gym, dllm_gym.registration
        importlib.reload(dllm_gym.registration)
        importlib.reload(dllm_gym)
        dllm_gym.registration.register_envs()
        heavy = {"torch", "transformers", "stable_baselines3", "matplotlib", "PIL"}
        print(sorted(heavy & sys.modules.keys()), dllm_gym.ENV_ID)
        """
    )
    assert out == "[] DLLMUnmask-v0\n"


def test_id_with_module_in_a_fresh_process():
    out = run_python(
        """
        import sys
        import gymnasium as gym
        env = gym.make("dllm_gym:DLLMUnmask-v0", completion_length=8)
        observation, info = env.reset(seed=0)
        print(observation["mask"].sum(), type(env.unwrapped).__name__)
        envs = gym.make_vec("dllm_gym:DLLMUnmask-v0", num_envs=2, completion_length=8)
        print(type(envs).__name__, "stable_baselines3" in sys.modules)
        """
    )
    assert out == "8 UnmaskEnv\nUnmaskVectorEnv False\n"


def test_registering_again_keeps_the_spec():
    spec = gym.spec("DLLMUnmask-v0")
    register_envs()
    assert gym.spec("DLLMUnmask-v0") is spec
    assert spec.max_episode_steps is None
    assert spec.id == dllm_gym.ENV_ID


@pytest.mark.parametrize("name", dllm_gym.__all__)
def test_every_public_name_is_there(name):
    assert getattr(dllm_gym, name) is not None


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        dllm_gym.nonsense  # noqa: B018


# Specs ----------------------------------------------------------------------------------------------------


def same_observation(one, other):
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key])


def test_spec_survives_json():
    arguments = {
        "completion_length": 24,
        "block_length": 8,
        "observe": ("tokens", "margin"),
        "temperature": 0.5,
    }
    env = gym.make("DLLMUnmask-v0", task_kwargs={"seed": 3}, alpha=2.0, on_empty="noop", **arguments)
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.observation_space == env.observation_space
    assert again.unwrapped.engine.description() == env.unwrapped.engine.description()
    same_observation(env.reset(seed=7)[0], again.reset(seed=7)[0])
    action = np.ones(24, dtype=np.int8)
    same_observation(env.step(action)[0], again.step(action)[0])


def test_spec_carries_no_model():
    backend = dllm_gym.load_backend("tiny-arithmetic")
    env = gym.make("DLLMUnmask-v0", backend="tiny-arithmetic")
    assert env.unwrapped.engine.backend is backend
    assert len(pickle.dumps(deepcopy(env.spec))) < 5_000
    with_object = gym.make("DLLMUnmask-v0", backend=backend)
    assert deepcopy(with_object.spec).kwargs["backend"] is backend
    assert with_object.unwrapped.engine.backend is backend


def test_default_backend_is_the_tasks_own():
    env = gym.make("DLLMUnmask-v0")
    assert env.unwrapped.engine.description()["backend"] == "tiny-arithmetic"
    assert env.unwrapped.engine.length == env.unwrapped.engine.task.completion_length


def test_make_vec_keeps_a_spec_and_takes_modes_as_text_or_member():
    for mode in AutoresetMode:
        for given in (mode, mode.value):
            env = gym.make_vec("DLLMUnmask-v0", num_envs=2, autoreset_mode=given, completion_length=8)
            assert isinstance(env, UnmaskVectorEnv)
            assert env.spec.id == "DLLMUnmask-v0"
            assert env.autoreset_mode is env.metadata["autoreset_mode"] is mode
    assert gym.make_vec("DLLMUnmask-v0", num_envs=2).metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


def test_make_vec_64():
    env = gym.make_vec("DLLMUnmask-v0", num_envs=64, autoreset_mode="SameStep")
    observation, info = env.reset(seed=0)
    assert observation in env.observation_space
    assert observation["confidence"].shape == (64, 48)
    assert len(set(info["problem"])) == 64
    for _ in range(2):
        observation, rewards, terminations, truncations, info = env.step(np.ones((64, 48), dtype=np.int8))
        assert observation in env.observation_space
        assert rewards.shape == terminations.shape == (64,)
        assert terminations.all()
        assert not truncations.any()
        assert info["_final_obs"].all()
    env.close()


def test_sync_mode_works_too():
    env = gym.make_vec("DLLMUnmask-v0", num_envs=2, vectorization_mode="sync", completion_length=8)
    observation, _ = env.reset(seed=0)
    assert observation["mask"].tolist() == [[1] * 8] * 2
    env.close()


# Wrong arguments ------------------------------------------------------------------------------------------


def toy(**kwargs):
    return UnmaskEnv(**{"backend": ToyBackend(), "task": ToyTask(), **kwargs})


def toys(num_envs=4, **kwargs):
    return UnmaskVectorEnv(num_envs, **{"backend": ToyBackend(), "task": ToyTask(), **kwargs})


@pytest.mark.parametrize("make", [toy, toys])
@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        (
            "backend",
            "nonsense",
            r"unknown backend 'nonsense'; known: .*tiny-arithmetic.*checkpoint directory",
        ),
        ("task", "nonsense", r"unknown task 'nonsense'; known tasks: arithmetic, .*sudoku"),
        (
            "reward",
            "nonsense",
            r"unknown reward 'nonsense'; choose one of multiplicative, multiplicative-paper, additive, "
            "correctness",
        ),
        ("on_empty", "nonsense", r"unknown on_empty 'nonsense'; choose one of best, noop"),
        (
            "observe",
            ("tokens", "nonsense"),
            r"unknown observation 'nonsense'; choose one of .*entropy, margin, top_k, .*tokens, .*alpha",
        ),
        ("observe", "nonsense", r"unknown observation 'nonsense'; choose one of .*entropy"),
        ("render_mode", "nonsense", r"unknown render_mode 'nonsense'; choose one of ansi, rgb_array"),
        ("alpha", -0.5, r"alpha must be a finite number of at least 0, or a range .* got -0.5"),
        ("alpha", math.nan, r"alpha must be a finite number of at least 0, or a range .* got nan"),
        ("alpha", math.inf, r"alpha must be a finite number of at least 0, or a range .* got inf"),
        ("alpha", "high", r"alpha must be a finite number of at least 0, or a range .* got 'high'"),
        ("alpha", None, r"alpha must be a finite number of at least 0, or a range .* got None"),
        ("alpha", (2.0, 1.0), r"alpha must be .* range \(low, high\) .* 0 < low <= high, got \(2.0, 1.0\)"),
        ("alpha", (0, 1), r"alpha must be .* 0 < low <= high, got \(0, 1\)"),
        ("alpha", (1,), r"alpha must be .* 0 < low <= high, got \(1,\)"),
        ("alpha", (1, 2, 3), r"alpha must be .* 0 < low <= high, got \(1, 2, 3\)"),
        ("alpha", (1, math.inf), r"alpha must be .* 0 < low <= high, got \(1, inf\)"),
        ("target_steps", 0.5, r"target_steps must be a finite number of at least 1, or a range .* got 0.5"),
        ("target_steps", (0.5, 2), r"target_steps must be .* of at least 1, .* got \(0.5, 2\)"),
        ("target_steps", ["1", "2"], r"target_steps must be .* got \['1', '2'\]"),
        ("reward_metric", "elegance", r"unknown reward_metric 'elegance'; choose one of written"),
        ("temperature", -1.0, r"temperature must be a finite number of at least 0, got -1.0"),
        ("temperature", math.nan, r"temperature must be a finite number of at least 0, got nan"),
        ("block_length", 0, r"block_length must be a whole number of at least 1, got 0"),
        ("block_length", -2, r"block_length must be a whole number of at least 1, got -2"),
        ("block_length", 2.5, r"block_length must be a whole number of at least 1, got 2.5"),
        ("block_length", math.nan, r"block_length must be a whole number of at least 1, got nan"),
        ("block_length", "all", r"block_length must be a whole number of at least 1, got 'all'"),
        ("block_length", True, r"block_length must be a whole number of at least 1, got True"),
        ("block_length", 7, r"block_length 7 exceeds completion_length 6"),
        ("completion_length", 0, r"completion_length must be a whole number of at least 1, got 0"),
        ("completion_length", -1, r"completion_length must be a whole number of at least 1, got -1"),
        ("top_k", 0, r"top_k must be a whole number of at least 1, got 0"),
        ("group_size", 0, r"group_size must be a whole number of at least 1, got 0"),
        ("group_size", 3, r"group_size 3 must divide the number of environments, [14]"),
    ],
)
def test_wrong_values_are_named(make, argument, value, message):
    with pytest.raises(ValueError, match=message):
        make(**{argument: value})


@pytest.mark.parametrize("make", [toy, toys])
def test_observation_keys_in_any_form(make):
    always = {"confidence", "mask", "action_mask", "progress"}
    for observe, more in ((), set()), ("margin", {"margin"}), (["tokens", "tokens", "mask"], {"tokens"}):
        env = make(observe=observe)
        assert env.observation_space.keys() == env.reset(seed=0)[0].keys() == always | more


@pytest.mark.parametrize("make", [toy, toys])
def test_more_probabilities_than_tokens(make):
    with pytest.raises(ValueError, match=r"top_k 14 exceeds the dLLM's vocabulary of 13 tokens"):
        make(observe="top_k", top_k=14)
    make(observe="top_k", top_k=13)


@pytest.mark.parametrize("mode", ["nonsense", "SAME_STEP", None, 1])
def test_unknown_autoreset_mode(mode):
    with pytest.raises(
        ValueError, match=rf"unknown autoreset_mode {mode!r}; choose one of NextStep, SameStep, Disabled"
    ):
        toys(autoreset_mode=mode)


@pytest.mark.parametrize("num_envs", [0, -1, 2.5, True, None])
def test_too_few_environments(num_envs):
    with pytest.raises(ValueError, match=f"num_envs must be a whole number of at least 1, got {num_envs}"):
        toys(num_envs)


def test_unknown_split():
    with pytest.raises(ValueError, match=r"unknown split 'exam'; choose one of train, validation, test"):
        gym.make("DLLMUnmask-v0", split="exam")


def test_unknown_argument():
    with pytest.raises(TypeError, match="warmth"):
        gym.make("DLLMUnmask-v0", warmth=1.0)
