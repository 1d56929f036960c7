"""``UnmaskEnv``: what an agent sees, what its actions do, when an episode ends and what it is paid."""

import tracemalloc

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3
from toy_backend import EOS, MASK, ScriptedBackend, ToyBackend, ToyTask

from dllm_gym.backends.base import predict_from_logits
from dllm_gym.envs.observations import OBSERVE
from dllm_gym.envs.rewards import REWARDS
from dllm_gym.envs.unmask import UnmaskEnv

EVERYTHING = tuple(key for key in OBSERVE if key != "quality")  # tiny-arithmetic has no head for it
CONFIGURATIONS = [
    {},
    {"block_length": 8},
    {"observe": EVERYTHING},
    {"temperature": 0.7},
    {"on_empty": "noop"},
    {"reward": "additive", "alpha": 0.5},
    {"reward": "correctness", "block_length": 1},
    {"stop_at_eos": True, "completion_length": 20},
    {"observe": ("alpha", "target_steps"), "alpha": (0.1, 10.0), "target_steps": (1, 64)},
    {"observe": ("block_length",), "block_length": (4, 8, None)},
    {"actions": "set-state", "observe": ("tokens", "remasks"), "max_remasks": 2, "block_length": 12},
    {"actions": "set-state", "finish": "confirm", "max_steps": 60, "commit_drift": True},
    {"actions": "edit", "finish": "confirm", "max_steps": 60, "observe": ("predicted_confidence",)},
]
configurations = pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)


def toy(**kwargs):
    return UnmaskEnv(**{"backend": ToyBackend(), "task": ToyTask(), **kwargs})


def only(*positions, length=6, dtype=np.int8):
    action = np.zeros(length, dtype=dtype)
    action[list(positions)] = 1
    return action


def play(env, actions, **reset):
    """Everything an episode returns, until it ends or the actions do."""
    steps = [env.reset(**reset)]
    for action in actions:
        steps.append(env.step(action))
        if steps[-1][2]:
            break
    return steps


def assert_same(one, other):
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, tuple | list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert type(one) is type(other)
        np.testing.assert_array_equal(one, other)


# Checkers -------------------------------------------------------------------------------------------------


@configurations
def test_gymnasium_checker_has_nothing_to_say(configuration):
    env = gym.make("DLLMUnmask-v0", render_mode="rgb_array", **configuration)
    check_env(env.unwrapped)
    env.close()


@configurations
def test_sb3_checker_has_nothing_to_say(configuration):
    if "observe" in configuration:  # SB3 takes one dimension or an image
        flat = tuple(key for key in configuration["observe"] if key not in ("top_k", "hidden", "attention"))
        configuration = {**configuration, "observe": flat}
    env = gym.make("DLLMUnmask-v0", render_mode="rgb_array", **configuration)
    check_env_for_sb3(env, skip_render_check=False)
    env.close()


# Observations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "configuration", [{}, {"observe": EVERYTHING, "block_length": 8, "temperature": 1.0}]
)
def test_observations_of_a_whole_episode(configuration):
    env = gym.make("DLLMUnmask-v0", **configuration)
    observation, info = env.reset(seed=3)
    env.action_space.seed(0)
    over, steps = False, 0
    while not over:
        assert observation in env.observation_space
        assert observation.keys() == {
            "confidence",
            "mask",
            "action_mask",
            "progress",
            *configuration.get("observe", ()),
        }
        for key in ("confidence", "progress"):
            assert observation[key].dtype == np.float32
            assert ((observation[key] >= 0) & (observation[key] <= 1)).all()
        masked = observation["mask"] == 1
        assert (observation["confidence"][~masked] == 1).all()
        assert (observation["confidence"][masked] > 0).all()
        assert observation["progress"] == np.float32(steps / 48)
        assert (observation["action_mask"] <= observation["mask"]).all()
        assert info["action_mask"].dtype == np.int8
        np.testing.assert_array_equal(info["action_mask"], observation["action_mask"])
        if "tokens" in observation:
            mask_token = env.unwrapped.engine.backend.mask_token_id
            np.testing.assert_array_equal(observation["tokens"] == mask_token, masked)
            assert observation["alpha"] == 1.0
            assert (observation["entropy"][~masked] == 0).all()
            assert (observation["margin"][~masked] == 1).all()
            assert (observation["top_k"][~masked] == np.eye(1, 8)).all()
            assert (np.diff(observation["top_k"]) <= 0).all()
            top = observation["top_k"]
            np.testing.assert_allclose(
                (top[:, 0] - top[:, 1])[masked], observation["margin"][masked], atol=1e-6
            )
            assert (observation["confidence"] <= top[:, 0] + 1e-6).all()
        action = env.action_space.sample(mask=2 * info["action_mask"])
        assert (action <= info["action_mask"]).all()
        observation, reward, over, truncated, info = env.step(action)
        steps += 1
        assert type(reward) is float
        assert type(over) is type(truncated) is bool
        assert not truncated
        assert reward == 0.0 or over
    assert observation in env.observation_space
    assert info["nfe"] == steps
    assert info["ignored_actions"] == 0
    env.close()


def test_confidence_is_the_most_probable_tokens():
    env = gym.make("DLLMUnmask-v0", observe=("top_k", "tokens"))
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(observation["confidence"], observation["top_k"][:, 0])


def test_reset_says_which_problem():
    env = gym.make("DLLMUnmask-v0", split="test")
    task = env.unwrapped.engine.task
    _, info = env.reset(seed=5)
    assert info.keys() == {"problem", "prompt", "action_mask"}
    assert type(info["problem"]) is int
    assert info["prompt"] == task.problem(info["problem"]).prompt
    _, again = env.reset(options={"problem": info["problem"]})
    assert again["prompt"] == info["prompt"]
    _, other = env.reset(options={"problem": np.int64(info["problem"] + 1)})
    assert other["problem"] == info["problem"] + 1
    assert other["prompt"] != info["prompt"]


def test_drawn_problems_are_those_of_the_task_and_do_not_repeat_in_a_row():
    env = toy(task=ToyTask(num_problems=5))
    drawn = [env.reset(seed=1 if i == 0 else None)[1]["problem"] for i in range(60)]
    assert set(drawn) == set(range(5))
    assert len({tuple(drawn[i : i + 4]) for i in range(0, 60, 4)}) > 8


def test_a_chosen_problem_does_not_shift_the_drawn_ones():
    drawn = []
    for options in (None, {"problem": 3}):
        env = toy()
        env.reset(seed=1)
        env.reset(options=options)
        drawn.append([env.reset()[1]["problem"] for _ in range(3)])
    # choosing draws nothing, so the second sequence is the first one, one earlier
    assert drawn[1][1:] == drawn[0][:2]


@given(block_length=st.integers(1, 6), seed=st.integers(0, 2**32))
def test_action_mask_is_what_is_masked_in_the_first_unfinished_block(block_length, seed):
    env = toy(block_length=block_length, observe=("tokens",), on_empty="noop")
    rng = np.random.default_rng(seed)
    observation, _ = env.reset(seed=0)
    before = observation["tokens"]
    while True:
        masked = np.flatnonzero(observation["tokens"] == MASK)
        np.testing.assert_array_equal(observation["mask"], observation["tokens"] == MASK)
        if len(masked):
            block = masked[0] // block_length
            expected = [p for p in masked if p // block_length == block]
            assert np.flatnonzero(observation["action_mask"]).tolist() == expected
        else:
            assert not observation["action_mask"].any()
        action = rng.integers(0, 2, 6)
        candidates = observation["action_mask"].astype(bool)
        observation, _, over, _, _ = env.step(action)
        changed = observation["tokens"] != before
        np.testing.assert_array_equal(changed, (action == 1) & candidates)
        before = observation["tokens"]
        if over:
            break


# Actions --------------------------------------------------------------------------------------------------

WRITTEN = [3, 1, 4, 1, 5, 9]
CONFIDENCE = [0.2, 0.6, 0.4, 0.9, 0.1, 0.3]


def scripted(**kwargs):
    return toy(**{"backend": ScriptedBackend(WRITTEN, CONFIDENCE), "observe": ("tokens",), **kwargs})


def test_ends_are_masked_positions_that_would_become_an_end_token():
    env = toy(backend=ScriptedBackend([1, EOS, EOS, 3, EOS, 2]), observe="ends", view="block", block_length=3)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert observation["ends"].tolist() == [0, 1, 1, 0, 0, 0]
    assert env.step(only(1))[0]["ends"].tolist() == [0, 0, 1, 0, 0, 0]
    assert env.step(only(0, 2))[0]["ends"].tolist() == [0, 0, 0, 0, 1, 0]


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int64, np.float32, np.float64])
def test_action_dtypes(dtype):
    env = scripted()
    env.reset(seed=0)
    observation = env.step(only(0, 3, dtype=dtype))[0]
    assert observation["tokens"].tolist() == [3, MASK, MASK, 1, MASK, MASK]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.int64, torch.float32, torch.bfloat16])
def test_action_tensors(dtype):
    env = scripted()
    env.reset(seed=0)
    observation = env.step(torch.tensor([1, 0, 0, 1, 0, 0], dtype=dtype))[0]
    assert observation["tokens"].tolist() == [3, MASK, MASK, 1, MASK, MASK]
    assert env.step(torch.ones(6, requires_grad=True))[2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_action_on_a_gpu():
    env = scripted()
    env.reset(seed=0)
    action = torch.tensor([1.0, 0, 0, 1, 0, 0], device="cuda", requires_grad=True)
    assert env.step(action)[0]["tokens"].tolist() == [3, MASK, MASK, 1, MASK, MASK]


def test_action_as_a_list():
    env = scripted()
    env.reset(seed=0)
    assert env.step([0, 1, 0, 0, 0, 0])[0]["tokens"].tolist() == [MASK, 1, MASK, MASK, MASK, MASK]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.ones(5, np.int8), r"shape \(6,\), got int8 of \(5,\)"),
        (np.ones((2, 6), np.int8), r"shape \(6,\), got int8 of \(2, 6\)"),
        (np.ones((1, 6), np.int8), r"shape \(6,\), got int8 of \(1, 6\)"),
        ([[1], [1, 0]], r"0/1 numbers of shape \(6,\), got \[\[1\], \[1, 0\]\]"),
        (1, r"shape \(6,\), got int64 of \(\)"),
        (np.array(["1"] * 6), r"0/1 numbers of shape \(6,\), got <U1 of \(6,\)"),
        (np.ones(6, complex), r"0/1 numbers of shape \(6,\), got complex128"),
        (np.array([None] * 6), r"0/1 numbers of shape \(6,\), got object"),
        (np.full(6, 2), r"only 0 and 1, got values from 2 to 2"),
        (np.array([0, 0, 0, 0, 0, -1]), r"only 0 and 1, got values from -1 to 0"),
        (np.full(6, 0.5), r"only 0 and 1, got values from 0.5 to 0.5"),
        (np.full(6, np.nan), r"only 0 and 1, got values from nan"),
    ],
)
def test_other_actions_are_refused_and_change_nothing(action, message):
    env = scripted()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(action)
    observation = env.step(only(0))[0]
    assert observation["progress"] == np.float32(1 / 6)
    assert observation["mask"].tolist() == [0, 1, 1, 1, 1, 1]


def test_an_action_stays_as_it_was():
    env = scripted(block_length=2)
    env.reset(seed=0)
    action = np.ones(6, dtype=np.int8)
    env.step(action)
    assert action.tolist() == [1] * 6


@given(seed=st.integers(0, 2**32), temperature=st.sampled_from([0.0, 1.0]))
def test_revealed_tokens_never_change(seed, temperature):
    env = toy(observe=("tokens",), temperature=temperature)
    rng = np.random.default_rng(seed)
    before, over = env.reset(seed=seed)[0]["tokens"], False
    while not over:
        observation, _, over, _, _ = env.step(rng.random(6) < 0.4)
        revealed = before != MASK
        np.testing.assert_array_equal(observation["tokens"][revealed], before[revealed])
        assert (observation["tokens"] == MASK).sum() < (before == MASK).sum()
        before = observation["tokens"]


def test_ignored_and_empty_actions_are_counted():
    env = scripted(block_length=3)
    env.reset(seed=0)
    env.step(only(0, 4, 5))  # two outside the block
    env.step(only(0, 3))  # one revealed already, one outside: nothing is left of it, the best is taken
    env.step(only())  # position 2 is all there is left
    *_, over, _, info = env.step(only(0, 1, 2, 3, 4, 5))
    assert over
    assert info["ignored_actions"] == 2 + 2 + 0 + 3
    assert info["empty_actions"] == 2
    assert info["nfe"] == 4


def test_counters_start_afresh_with_each_episode():
    env = scripted()
    play(env, [only(), only(), only(*range(6))], seed=0)
    *_, info = play(env, [only(0, 1, 2, 3, 4), only(0, 5)])[-1]
    assert (info["ignored_actions"], info["empty_actions"], info["nfe"]) == (1, 0, 2)


def test_on_empty_best_reveals_the_most_confident_selectable_position():
    for block_length, order in ((6, [3, 1, 2, 5, 0, 4]), (2, [1, 0, 3, 2, 5, 4])):
        env = scripted(block_length=block_length)
        env.reset(seed=0)
        for revealed in order:
            before = env.engine.canvas.masked[0].copy()
            observation, _, over, _, info = env.step(only())
            assert np.flatnonzero(before & (observation["mask"] == 0)).tolist() == [revealed]
        assert over
        assert info["empty_actions"] == 6


def test_on_empty_noop_spends_the_step_without_a_forward():
    env = scripted(on_empty="noop")
    first, _ = env.reset(seed=0)
    for step in range(1, 6):
        observation, reward, over, truncated, _ = env.step(only())
        assert (reward, over, truncated) == (0.0, False, False)
        assert observation["progress"] == np.float32(step / 6)
        for key in ("confidence", "mask", "action_mask", "tokens"):
            np.testing.assert_array_equal(observation[key], first[key])
    assert env.engine.backend.rows_per_call == [1]
    observation, _, over, truncated, info = env.step(only())
    assert (over, truncated) == (True, False)
    assert env.engine.backend.rows_per_call == [1]
    assert (info["nfe"], info["empty_actions"], info["completion"]) == (6, 6, "######")


def test_no_forward_after_the_last_reveal():
    env = scripted()
    play(env, [only(0, 1), only(2, 3), only(4, 5)], seed=0)
    assert env.engine.backend.rows_per_call == [1, 1, 1]
    env.reset()
    assert env.engine.backend.rows_per_call == [1, 1, 1, 1]


def test_action_masks_for_sb3_contrib_are_two_sided():
    env = scripted(block_length=2)
    env.reset(seed=0)
    env.step(only(0))
    assert env.action_masks().reshape(6, 2).tolist() == [[True, False], [True, True]] + [[True, False]] * 4
    assert env.action_masks().dtype == bool


# Ends and rewards -----------------------------------------------------------------------------------------


def test_the_budget_of_steps_is_part_of_the_task():
    env = scripted(on_empty="noop", alpha=1.0)
    steps = play(env, [only(0, 1, 2, 3, 4)] + [only()] * 4 + [only(5)], seed=0)
    assert [over for _, _, over, _, _ in steps[1:]] == [False] * 5 + [True]
    assert not any(truncated for _, _, _, truncated, _ in steps[1:])
    # 3 + 1 + 4 + 1 + 5 + 9 = 23: the toy's score is 3/4
    assert steps[-1][1] == 0.75 / 6
    assert steps[-1][4]["score"] == 0.75
    assert steps[-1][4]["is_success"] is False
    assert steps[-1][4]["written"] == 6.0


@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize("alpha", [0, 0.5, 1, 2])
@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_the_reward_is_paid_at_the_end(reward, alpha, parts):
    env = scripted(reward=reward, alpha=alpha)
    actions = [only(*part) for part in np.split(np.arange(6), parts)]
    *before, (_, paid, over, _, info) = play(env, actions, seed=0)
    assert over
    assert all(step[1] == 0.0 for step in before[1:])
    assert paid == REWARDS[reward](0.75, parts, 6, alpha)
    assert type(paid) is float
    assert info["nfe"] == parts


def test_final_info():
    env = gym.make("DLLMUnmask-v0")
    env.reset(seed=0, options={"problem": 12})
    *_, info = env.step(np.ones(48, dtype=np.int8))
    assert {key: type(value) for key, value in info.items()} == {
        "is_success": bool,
        "score": float,
        "nfe": int,
        "completion": str,
        "problem": int,
        "empty_actions": int,
        "ignored_actions": int,
        "answer_correct": float,
        "action_mask": np.ndarray,
    }
    task = env.unwrapped.engine.task
    assert info["problem"] == 12
    assert info["score"] == task.score(info["completion"], task.problem(12))


STOPPING = [3, 4, EOS, 5, EOS, 6]


@pytest.mark.parametrize("block_length", [None, 3])
def test_stop_at_eos(block_length):
    env = scripted(backend=ScriptedBackend(STOPPING), stop_at_eos=True, block_length=block_length)
    env.reset(seed=0)
    assert not env.step(only(2))[2]  # what comes before the end token is still masked
    assert not env.step(only(0))[2]
    observation, reward, over, truncated, info = env.step(only(1))
    assert (over, truncated) == (True, False)
    assert (info["nfe"], info["completion"], info["score"]) == (3, "34", 0.5)
    assert reward == 0.5 * 4 / 6
    assert observation["tokens"].tolist() == [3, 4, EOS, MASK, MASK, MASK]
    assert env.engine.backend.rows_per_call == [1, 1, 1]


def test_without_stop_at_eos_everything_is_revealed_and_the_same_text_scored():
    env = scripted(backend=ScriptedBackend(STOPPING))
    env.reset(seed=0)
    assert not env.step(only(0, 1, 2))[2]
    *_, over, _, info = env.step(only(3, 4, 5))
    assert over
    assert (info["nfe"], info["completion"], info["score"]) == (2, "34", 0.5)


def test_stepping_without_an_episode():
    env = scripted()
    with pytest.raises(RuntimeError, match="no episode is running; call reset first"):
        env.step(only(0))
    play(env, [only(*range(6))], seed=0)
    with pytest.raises(RuntimeError, match="no episode is running; call reset first"):
        env.step(only(0))
    env.reset()
    env.step(only(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"problm": 3}, r"unknown reset options \['problm'\]; known: problem, alpha"),
        (
            {"reset_mask": np.array([True])},
            r"unknown reset options \['reset_mask'\]; known: problem",
        ),
        ({"problem": -1}, r"problem index -1 is out of range"),
        ({"problem": 50}, r"problem index 50 is out of range"),
        ({"problem": 1.5}, r"problem must be an index .* got 1.5"),
        ({"problem": "3"}, r"problem must be an index .* got '3'"),
        ({"problem": True}, r"problem must be an index .* got True"),
        ({"problem": [3, 4]}, r"problem must be an index .* got \[3, 4\]"),
        (5, r"reset options must be a dict with any of problem, alpha, target_steps, block_length; got 5"),
        ([("problem", 1)], r"reset options must be a dict .* got \[\('problem', 1\)\]"),
        ({1: 2}, r"unknown reset options \['1'\]"),
        ({"alpha": -1}, r"alpha must be a finite number of at least 0, .* got -1"),
        ({"alpha": np.inf}, r"alpha must be a finite number of at least 0, .* got inf"),
        ({"alpha": "high"}, r"alpha must be a finite number .* got 'high'"),
        ({"alpha": (0.1, 10.0)}, r"alpha must be .* of shape \(1,\), got \(0.1, 10.0\)"),
        ({"target_steps": 0.5}, r"target_steps must be a finite number of at least 1, .* got 0.5"),
        ({"block_length": 0}, r"block_length must be a whole number of at least 1, got 0"),
        ({"block_length": 2.0}, r"block_length must be a whole number, or such numbers of shape .* got 2.0"),
        ({"block_length": 7}, r"block_length 7 exceeds completion_length 6"),
    ],
)
def test_wrong_reset_options(options, message):
    with pytest.raises(ValueError, match=message):
        toy().reset(options=options)


# Randomness -----------------------------------------------------------------------------------------------


@settings(max_examples=10, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    configuration=st.sampled_from([{}, {"temperature": 0.7}, {"temperature": 2.0, "block_length": 5}]),
)
def test_same_seed_and_actions_same_trajectory(seed, configuration):
    rng = np.random.default_rng(seed)
    actions = [rng.random(20) < 0.2 for _ in range(20)]
    one, other = (
        gym.make("DLLMUnmask-v0", completion_length=20, observe=EVERYTHING, **configuration) for _ in range(2)
    )
    other.reset(seed=seed + 1)  # a past does not matter
    other.step(np.ones(20, dtype=np.int8))
    assert_same(play(one, actions, seed=seed), play(other, actions, seed=seed))
    assert_same(play(one, actions), play(other, actions))


def test_different_seeds_differ():
    env = toy()
    assert len({env.reset(seed=seed)[1]["problem"] for seed in range(12)}) > 6


def tokens_of(env, seed):
    env.reset(seed=seed, options={"problem": 1})
    return tuple(env.step(np.ones(env.action_space.n, dtype=np.int8))[0]["tokens"])


def test_temperature_draws_tokens_anew_for_every_seed_and_episode():
    env = gym.make("DLLMUnmask-v0", temperature=3.0, observe=("tokens",))
    assert len({tokens_of(env, seed) for seed in range(4)}) == 4
    assert len({tokens_of(env, None) for _ in range(4)}) == 4
    assert tokens_of(env, 3) == tokens_of(env, 3)
    cold = gym.make("DLLMUnmask-v0", observe=("tokens",))
    assert len({tokens_of(cold, seed) for seed in range(4)}) == 1


def test_noise_does_not_shift_the_sequence_of_problems():
    sequences = []
    for temperature in (0.0, 1.0):
        env = toy(temperature=temperature)
        env.reset(seed=8)
        sequences.append([env.reset()[1]["problem"] for _ in range(5)])
    assert sequences[0] == sequences[1]


def test_without_a_seed_every_environment_goes_its_own_way():
    assert len({tuple(env.reset()[1]["problem"] for _ in range(4)) for env in (toy() for _ in range(6))}) == 6


def test_looking_at_the_generator_first_changes_nothing():
    # Gymnasium makes the generator on first use
    def sequence(env):
        assert env.np_random is not None
        return tuple(env.reset()[1]["problem"] for _ in range(4))

    assert len({sequence(toy()) for _ in range(6)}) == 6


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_generator_of_ones_own(temperature):
    def sequence(seed):
        env = toy(temperature=temperature, observe=("tokens",))
        env.reset(seed=0)
        env.np_random = np.random.default_rng(seed)
        return [
            (env.reset()[1]["problem"], env.step(only(*range(6)))[0]["tokens"].tolist()) for _ in range(4)
        ]

    assert sequence(1) == sequence(1)
    assert sequence(1) != sequence(2)


# Memory ---------------------------------------------------------------------------------------------------


def arrays_in(value):
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from arrays_in(item)
    elif isinstance(value, tuple):
        for item in value:
            yield from arrays_in(item)


def test_returned_arrays_belong_to_the_caller():
    actions = [only(0, 1), only(2), only(), only(3, 5), only(4)]
    clean = play(toy(observe=EVERYTHING), actions, seed=0)
    env = toy(observe=EVERYTHING)
    kept = []
    for at, expected in enumerate(clean):
        got = env.step(actions[at - 1]) if at else env.reset(seed=0)
        assert_same(expected, got)
        for array in arrays_in(got):
            assert not any(np.shares_memory(array, other) for other in kept)
            kept.append(array)
            array[...] = 0  # writing into them does the environment no harm
    assert len(kept) == len(clean) * (4 + len(EVERYTHING) + 1)


def test_metadata_belongs_to_the_instance():
    one, other = toy(), toy()
    one.metadata["render_fps"] = 99
    one.metadata["render_modes"].append("human")
    assert other.metadata == toy().metadata == UnmaskEnv.metadata
    assert UnmaskEnv.metadata == {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}


def test_many_episodes_leave_nothing_behind():
    env = toy(observe=EVERYTHING, temperature=1.0)
    actions = [only(0, 1, 2), only(3, 4, 5)]

    def run(episodes):
        for _ in range(episodes):
            play(env, actions)
        env.engine.backend.calls.clear()

    run(60)
    tracemalloc.start()
    run(10)
    before = tracemalloc.get_traced_memory()[0]
    run(200)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 20_000


def test_close_twice():
    env = gym.make("DLLMUnmask-v0")
    env.reset(seed=0)
    env.close()
    env.close()


def test_gymnasium_wrappers_see_the_episode():
    env = RecordEpisodeStatistics(toy(alpha=0.0))
    steps = play(env, [only(0, 1), only(2, 3, 4, 5)], seed=0)
    assert steps[-1][4]["episode"]["l"] == 2
    assert steps[-1][4]["episode"]["r"] == steps[-1][1] == steps[-1][4]["score"]


# Rendering ------------------------------------------------------------------------------------------------


def test_frames_keep_their_shape():
    env = gym.make("DLLMUnmask-v0", render_mode="rgb_array", block_length=16)
    env.reset(seed=0)
    shapes, over = {env.render().shape}, False
    while not over:
        over = env.step(np.arange(48) % 16 < 8)[2]
        frame = env.render()
        shapes.add(frame.shape)
        assert frame.dtype == np.uint8
    assert len(shapes) == 1
    height, width, channels = shapes.pop()
    assert (height % 2, width % 2, channels) == (0, 0, 3)


def test_text_shows_what_is_revealed():
    env = toy(backend=ScriptedBackend([7] * 6), render_mode="ansi")
    env.reset(seed=0)
    assert "7" not in env.render().split("\n")[-1]
    env.step(only(0, 1))
    assert env.render().split("\n")[-1].count("7") == 2


def test_rendering_costs_no_forward_and_changes_nothing():
    plain, drawn = toy(observe=EVERYTHING), toy(observe=EVERYTHING, render_mode="rgb_array")
    actions = [only(0, 1), only(2), only(3, 4, 5)]
    expected = play(plain, actions, seed=0)
    got = [drawn.reset(seed=0)]
    for action in actions:
        drawn.render()
        got.append(drawn.step(action))
    drawn.render()
    assert_same(got, expected)
    assert drawn.engine.backend.rows_per_call == plain.engine.backend.rows_per_call


def test_rendering_without_a_mode_warns():
    env = toy()
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="made without a render_mode"):
        assert env.render() is None


def test_rendering_before_reset():
    with pytest.raises(RuntimeError, match="call reset before render"):
        toy(render_mode="ansi").render()


# The dLLM -------------------------------------------------------------------------------------------------


class LogitsBackend(ToyBackend):
    """The same logits everywhere."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def predict(self, tokens, attention_mask, positions, **kwargs):
        logits = self.logits.repeat(len(tokens), len(range(tokens.shape[1])[positions]), 1)
        return predict_from_logits(logits, self.mask_token_id, **kwargs)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_mask_token_is_never_written(temperature):
    logits = np.zeros(13, dtype=np.float32)
    logits[MASK] = 50.0
    env = toy(backend=LogitsBackend(logits.tolist()), observe=("tokens", "entropy"), temperature=temperature)
    observation, _ = env.reset(seed=0)
    np.testing.assert_allclose(observation["confidence"], 1 / 12, rtol=1e-5)
    np.testing.assert_allclose(observation["entropy"], np.log(12), rtol=1e-5)
    observation, _, over, _, _ = env.step(only(*range(6)))
    assert over
    assert MASK not in observation["tokens"]


def test_nan_logits_are_an_error():
    with pytest.raises(ValueError, match="the dLLM returned NaN or infinite logits"):
        toy(backend=LogitsBackend([0.0] * 12 + [float("nan")])).reset(seed=0)


def test_only_statistics_asked_for_are_computed():
    asked = []

    class Spy(ToyBackend):
        def predict(self, *args, **kwargs):
            asked.append((tuple(kwargs["statistics"]), kwargs["top_k"]))
            return super().predict(*args, **kwargs)

    for observe in ((), ("tokens", "alpha"), ("margin", "tokens", "entropy"), "top_k"):
        toy(backend=Spy(), observe=observe, top_k=3).reset(seed=0)
    assert asked == [((), 3), ((), 3), (("margin", "entropy"), 3), (("top_k",), 3)]
