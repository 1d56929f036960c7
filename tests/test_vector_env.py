"""``UnmaskVectorEnv`` against Gymnasium's ``SyncVectorEnv`` of single environments, and what is its own."""

from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version
from toy_backend import MASK, ScriptedBackend, ToyBackend, ToyTask

from dllm_gym.envs.observations import OBSERVE
from dllm_gym.envs.rewards import REWARDS
from dllm_gym.envs.unmask import UnmaskEnv
from dllm_gym.envs.vector import UnmaskVectorEnv

NEXT_STEP, SAME_STEP, DISABLED = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED
EVERYTHING = tuple(key for key in OBSERVE if key != "hidden")
EMBEDDED = tuple(key for key in EVERYTHING if key != "quality")  # tiny-arithmetic has no head for it
RANGES = {"alpha": (0.1, 10.0), "target_steps": (1, 8), "observe": ("tokens", "alpha", "target_steps")}
every_mode = pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.value)


def toys(num_envs=3, mode=SAME_STEP, **kwargs):
    kwargs = {"backend": ToyBackend(), "task": ToyTask(), "observe": ("tokens",), **kwargs}
    return UnmaskVectorEnv(num_envs, autoreset_mode=mode, **kwargs)


def everyone(num_envs, *positions, length=6):
    actions = np.zeros((num_envs, length), dtype=np.int8)
    actions[:, list(positions)] = 1
    return actions


def assert_same(one, other, atol=0.0):
    """The same keys, types and values; floats to within ``atol``."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key], atol)
    elif isinstance(one, tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b, atol)
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        if one.dtype == object:
            for a, b in zip(one, other, strict=True):
                assert_same(a, b, atol)
        elif one.dtype == np.float32:
            np.testing.assert_allclose(one, other, rtol=0, atol=atol)
        else:
            np.testing.assert_array_equal(one, other)
    else:
        assert type(one) is type(other)
        assert one == other


# Batched = one by one -------------------------------------------------------------------------------------


class Limited(TimeLimit):
    """Gymnasium's, saying at its end too what an episode came to."""

    def step(self, action):
        *rest, terminated, truncated, info = super().step(action)
        if truncated and not terminated:
            info = {**self.unwrapped.engine.outcomes(np.array([0]))[0][1], **info}
        return *rest, terminated, truncated, info


class Twins:
    """The batched environment and its one-by-one twin, treated alike and compared each time."""

    def __init__(self, num_envs, mode, atol=0.0, limit=None, **kwargs):
        self.ours = UnmaskVectorEnv(num_envs, autoreset_mode=mode, max_episode_steps=limit, **kwargs)
        singles = [lambda: Limited(UnmaskEnv(**kwargs), limit) if limit else UnmaskEnv(**kwargs)] * num_envs
        self.theirs = SyncVectorEnv(singles, autoreset_mode=mode)
        self.atol = atol
        assert self.ours.observation_space == self.theirs.observation_space
        assert self.ours.action_space == self.theirs.action_space

    def reset(self, seed=None, options=None):
        # SyncVectorEnv takes the mask out of the options it is given
        theirs = self.theirs.reset(seed=seed, options=None if options is None else dict(options))
        ours = self.ours.reset(seed=seed, options=options)
        observation, info = ours
        assert observation in self.ours.observation_space
        if options is not None and "reset_mask" in options:
            # rows that go on may be sampled from as well, so ours says what they may do; theirs says 0
            np.testing.assert_array_equal(info["action_mask"], observation["action_mask"])
            assert info["_action_mask"].all()
            info = {
                **info,
                "action_mask": info["action_mask"] * options["reset_mask"][:, None],
                "_action_mask": options["reset_mask"],
            }
        assert_same((observation, info), theirs, self.atol)
        return ours

    def step(self, actions):
        ours, theirs = self.ours.step(actions), self.theirs.step(actions)
        assert ours[0] in self.ours.observation_space
        assert_same(ours, theirs, self.atol)
        return ours


def draw_seed(rng, num_envs):
    choice = rng.integers(4)
    if choice == 0:
        return None
    if choice == 1:
        return int(rng.integers(100))
    seeds = rng.integers(0, 100, num_envs).tolist()
    return seeds if choice == 2 else [seed if rng.random() < 0.5 else None for seed in seeds]


def draw_options(rng, partial):
    options = {}
    if partial.any():
        options["reset_mask"] = partial
    if rng.random() < 0.5:
        options["problem"] = int(rng.integers(50))
    if rng.random() < 0.3:
        options["alpha"] = float(rng.random() * 3)
    if rng.random() < 0.3:
        options["target_steps"] = int(rng.integers(1, 9))
    if rng.random() < 0.3:
        options["block_length"] = int(rng.integers(1, 7))
    return options or None


def draw_actions(rng, num_envs, length):
    """Dense, sparse, empty and full ones; many of the bits illegal."""
    density = rng.choice([0.0, 0.1, 0.5, 1.0], size=(num_envs, 1))
    return (rng.random((num_envs, length)) < density).astype(
        rng.choice([np.int8, bool, np.int64, np.float32])
    )


def walk(twins, rng, steps, first_seed):
    """Some steps, with resets of some or all rows in between wherever they are allowed or needed."""
    num_envs, length = twins.ours.num_envs, twins.ours.engine.length
    twins.reset(seed=first_seed)
    over, episodes = np.zeros(num_envs, dtype=bool), 0
    for _ in range(steps):
        if rng.random() < 0.1:
            twins.reset(seed=draw_seed(rng, num_envs), options=draw_options(rng, np.zeros(0, dtype=bool)))
        elif (twins.ours.autoreset_mode is DISABLED and over.any()) or rng.random() < 0.1:
            some = over | (rng.random(num_envs) < 0.3)
            if some.any():
                twins.reset(seed=draw_seed(rng, num_envs), options=draw_options(rng, some))
        over = np.logical_or(*twins.step(draw_actions(rng, num_envs, length))[2:4])
        episodes += over.sum()
    return episodes


toy_configurations = st.fixed_dictionaries(
    {
        "block_length": st.sampled_from([None, 1, 4, (1, 2, 4), (3, None)]),
        "on_empty": st.sampled_from(["best", "noop"]),
        "stop_at_eos": st.booleans(),
        "temperature": st.sampled_from([0.0, 0.7]),
        "observe": st.sampled_from([("tokens",), EVERYTHING]),
        "reward": st.sampled_from(list(REWARDS)),
        "reward_metric": st.sampled_from([None, "written"]),
        "alpha": st.sampled_from([0.0, 0.5, 1.0, 2.0, (0.1, 10.0)]),
        "target_steps": st.sampled_from([1, 3, (1, 8)]),
    }
)
seeds = st.one_of(st.integers(0, 2**40), st.lists(st.integers(0, 2**40), min_size=4, max_size=4))


@every_mode
@settings(max_examples=40)
@given(
    num_envs=st.integers(1, 4), kwargs=toy_configurations, first_seed=seeds, rng_seed=st.integers(0, 2**32)
)
def test_equals_single_environments_step_by_step(mode, num_envs, kwargs, first_seed, rng_seed):
    twins = Twins(num_envs, mode, backend=ToyBackend(), task=ToyTask(), **kwargs)
    first_seed = first_seed if isinstance(first_seed, int) else first_seed[:num_envs]
    walk(twins, np.random.default_rng(rng_seed), steps=20, first_seed=first_seed)


@every_mode
@settings(max_examples=20)
@given(
    num_envs=st.integers(1, 4),
    kwargs=toy_configurations,
    game=st.fixed_dictionaries(
        {
            "max_remasks": st.sampled_from([None, 1]),
            "forbid_remask": st.booleans(),
            "max_steps": st.sampled_from([None, 4, 12]),
            "finish": st.sampled_from(["full", "confirm"]),
            "commit_drift": st.booleans(),
        }
    ),
    rng_seed=st.integers(0, 2**32),
)
def test_equals_single_environments_where_tokens_go_back(mode, num_envs, kwargs, game, rng_seed):
    game = {**kwargs, **game, "actions": "set-state", "observe": (*kwargs["observe"], "remasks")}
    twins = Twins(num_envs, mode, backend=ToyBackend(), task=ToyTask(), **game)
    walk(twins, np.random.default_rng(rng_seed), steps=20, first_seed=1)


@every_mode
@settings(max_examples=20)
@given(
    limit=st.integers(1, 6), on_empty=st.sampled_from(["best", "noop"]), first_seed=seeds,
    rng_seed=st.integers(0, 2**32),
)  # fmt: skip
def test_truncates_as_single_environments_with_a_time_limit_do(mode, limit, on_empty, first_seed, rng_seed):
    twins = Twins(4, mode, limit=limit, backend=ToyBackend(), task=ToyTask(), on_empty=on_empty)
    walk(twins, np.random.default_rng(rng_seed), 12, first_seed)


def test_a_truncated_episode_is_paid_nothing_and_accounted_for():
    env = gym.make_vec("DLLMUnmask-v0", num_envs=2, max_episode_steps=2, autoreset_mode="SameStep")
    env.reset(seed=0)
    env.step(everyone(2, 0, length=48))
    *_, rewards, terminations, truncations, infos = env.step(everyone(2, 1, length=48))
    assert (rewards.tolist(), terminations.any(), truncations.all()) == ([0.0, 0.0], False, True)
    assert infos["final_info"]["nfe"].tolist() == [2, 2]
    assert infos["final_obs"][0]["mask"].sum() == 46
    with pytest.raises(ValueError, match="max_episode_steps must be a whole number of at least 1, got 0"):
        toys(max_episode_steps=0)


@every_mode
def test_the_walk_meets_enough_episodes(mode):
    # or the test above would show little
    twins = Twins(3, mode, backend=ToyBackend(), task=ToyTask(), observe=("tokens",))
    assert walk(twins, np.random.default_rng(0), steps=40, first_seed=0) > 15


@every_mode
@settings(max_examples=5, derandomize=True)
@given(
    num_envs=st.integers(2, 5),
    block_length=st.sampled_from([None, 8, (4, 8, 24)]),
    on_empty=st.sampled_from(["best", "noop"]),
    temperature=st.sampled_from([0.0, 0.7]),
    rng_seed=st.integers(0, 2**32),
)
def test_equals_single_environments_with_the_embedded_dllm(
    mode, num_envs, block_length, on_empty, temperature, rng_seed
):
    kwargs = {
        "block_length": block_length,
        "on_empty": on_empty,
        "temperature": temperature,
        "observe": EMBEDDED,
        "completion_length": 24,
    }
    twins = Twins(num_envs, mode, atol=1e-4, **kwargs)
    walk(twins, np.random.default_rng(rng_seed), steps=12, first_seed=3)


@every_mode
def test_batch_size_one(mode):
    env = toys(1, mode)
    observation, _ = env.reset(seed=0)
    assert observation["mask"].shape == (1, 6)
    observation, rewards, terminations, truncations, _ = env.step(np.zeros((1, 6)))
    assert observation["mask"].sum() == 5
    assert rewards.shape == terminations.shape == truncations.shape == (1,)


@every_mode
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_does_not_feel_its_neighbours(mode, temperature):
    """Row 1 sends the same actions while the others do different things with different problems."""
    rng = np.random.default_rng(0)
    own = rng.random((12, 6)) < 0.5

    def history(neighbours):
        env = toys(3, mode, temperature=temperature, observe=EVERYTHING)
        others = np.random.default_rng(neighbours)
        env.reset(seed=[neighbours, 7, neighbours + 1])
        rows, over = [], np.zeros(3, dtype=bool)
        for bits in own:
            if mode is DISABLED and over.any():
                env.reset(options={"reset_mask": over})
            actions = others.random((3, 6)) < others.choice([0.1, 0.9])
            actions[1] = bits
            observation, rewards, over, _, _ = env.step(actions)
            rows.append(({key: value[1] for key, value in observation.items()}, rewards[1], over[1]))
        return rows

    one, other = history(10), history(20)
    for (a, *rest_a), (b, *rest_b) in zip(one, other, strict=True):
        assert_same(a, b)
        assert rest_a == rest_b


def answers(env, **reset):
    """What every row writes at once on the same problem."""
    env.reset(options={"problem": 1}, **reset)
    return [tuple(row) for row in env.step(np.ones((env.num_envs, 6)))[0]["tokens"]]


def test_rows_have_noise_of_their_own():
    env = toys(8, DISABLED, temperature=1.0)
    assert len(set(answers(env, seed=0))) == 8
    assert len(set(answers(env, seed=[5] * 8))) == 1
    assert answers(env, seed=5)[0] == answers(env, seed=[5] * 8)[0]


# Autoreset modes ------------------------------------------------------------------------------------------


def test_same_step():
    env = toys(2, SAME_STEP)
    env.reset(seed=0)
    actions = everyone(2, 0, 1)
    actions[0] = 1
    observation, rewards, terminations, _, infos = env.step(actions)
    assert terminations.tolist() == [True, False]
    assert observation["mask"].tolist() == [[1] * 6, [0, 0, 1, 1, 1, 1]]
    assert infos["final_obs"][1] is None
    final = infos["final_obs"][0]
    assert final in env.single_observation_space
    assert final["mask"].sum() == 0
    assert MASK not in final["tokens"]
    assert infos["final_info"]["nfe"].tolist() == [1, 0]
    assert infos["final_info"]["_nfe"].tolist() == [True, False]
    assert rewards[0] == infos["final_info"]["score"][0]
    assert infos["_problem"].tolist() == [True, False]
    assert "is_success" not in infos


def test_next_step():
    env = toys(2, NEXT_STEP)
    env.reset(seed=0)
    actions = everyone(2, 0, 1)
    actions[0] = 1
    observation, _, terminations, _, infos = env.step(actions)
    assert terminations.tolist() == [True, False]
    assert observation["mask"].tolist() == [[0] * 6, [0, 0, 1, 1, 1, 1]]
    assert infos["_is_success"].tolist() == [True, False]
    observation, rewards, terminations, _, infos = env.step(everyone(2, 2))
    assert (rewards[0], terminations.tolist()) == (0.0, [False, False])
    assert observation["mask"].tolist() == [[1] * 6, [0, 0, 0, 1, 1, 1]]
    assert infos["_problem"].tolist() == [True, False]


def test_disabled():
    env = toys(3, DISABLED)
    env.reset(seed=0)
    actions = everyone(3, 0)
    actions[[0, 2]] = 1
    assert env.step(actions)[2].tolist() == [True, False, True]
    for rows in ([0, 2], [2]):
        with pytest.raises(
            RuntimeError, match=rf"no episode is running in rows \[{', '.join(map(str, rows))}\]"
        ):
            env.step(actions)
        mask = np.arange(3) == rows[0]
        options = {"reset_mask": mask, "problem": np.array([7, 8, 9])}
        observation, infos = env.reset(options=options)
        assert list(options) == ["reset_mask", "problem"]  # wrappers look at them afterwards
        assert observation["mask"][rows[0]].all()
        assert observation["mask"][1].tolist() == [0, 1, 1, 1, 1, 1]
        assert infos["problem"][rows[0]] == [7, 8, 9][rows[0]]
        assert infos["_problem"].tolist() == mask.tolist()
    assert not env.step(everyone(3, 1))[2].any()


@every_mode
def test_statistics_wrapper(mode):
    if mode is SAME_STEP and Version(gym.__version__) < Version("1.4.0"):
        pytest.skip("Gymnasium before 1.4 loses a step: Farama-Foundation/Gymnasium, pull request 1624")
    env = RecordEpisodeStatistics(toys(2, mode, alpha=0.0))
    env.reset(seed=0)
    lengths = []
    for _ in range(3):
        for part in ([0, 1], [2, 3, 4], [5]):
            *_, terminations, _, infos = env.step(everyone(2, *part))
        assert terminations.all()
        lengths += infos["episode"]["l"].tolist()
        if mode is DISABLED:
            env.reset(options={"reset_mask": np.ones(2, dtype=bool)})
        elif mode is NEXT_STEP:
            env.step(everyone(2))
    assert lengths == [3] * 6


@every_mode
def test_before_the_first_reset(mode):
    with pytest.raises(RuntimeError, match="no episode is running; call reset first"):
        toys(2, mode).step(everyone(2))


@pytest.mark.parametrize("mode", [SAME_STEP, DISABLED])
def test_rows_that_were_never_reset(mode):
    env = toys(2, mode)
    env.reset(seed=0, options={"reset_mask": np.array([True, False])})
    with pytest.raises(RuntimeError, match=r"no episode is running in rows \[1\]"):
        env.step(everyone(2, 0))
    env.reset(options={"reset_mask": np.array([False, True])})
    env.step(everyone(2, 0))
    whole = toys(2, mode)
    whole.reset(seed=0)
    whole.step(everyone(2, 0))
    assert_same(env.step(everyone(2, 1, 2)), whole.step(everyone(2, 1, 2)))


def test_rows_that_were_never_reset_start_in_the_next_step():
    env = toys(2, NEXT_STEP)
    env.reset(seed=0, options={"reset_mask": np.array([True, False])})
    observation, _, _, _, infos = env.step(everyone(2, 0))
    assert observation["mask"].tolist() == [[0, 1, 1, 1, 1, 1], [1] * 6]
    assert infos["_problem"].tolist() == [False, True]


# Every forward is spent on a row that needs it ------------------------------------------------------------


@every_mode
@given(
    on_empty=st.sampled_from(["best", "noop"]),
    block_length=st.sampled_from([None, 2]),
    stop_at_eos=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_forwards(mode, on_empty, block_length, stop_at_eos, seed):
    rng = np.random.default_rng(seed)
    num_envs = int(rng.integers(1, 5))
    backend = ToyBackend()
    env = toys(
        num_envs, mode, backend=backend, on_empty=on_empty, block_length=block_length, stop_at_eos=stop_at_eos
    )
    observation, _ = env.reset(seed=int(seed))
    assert backend.rows_per_call == [num_envs]
    over = np.zeros(num_envs, dtype=bool)
    for _ in range(12):
        backend.calls.clear()
        if mode is DISABLED and over.any():
            observation, _ = env.reset(options={"reset_mask": over})
            assert backend.rows_per_call == [over.sum()]
            backend.calls.clear()
        before = observation["tokens"]
        observation, _, over_now, _, _ = env.step(draw_actions(rng, num_envs, 6))
        changed = (observation["tokens"] != before).any(axis=1)
        needed = {
            SAME_STEP: changed | over_now,
            NEXT_STEP: (changed & ~over_now) | over,
            DISABLED: changed & ~over_now,
        }[mode]
        assert backend.rows_per_call == ([needed.sum()] if needed.any() else [])
        if needed.any():
            np.testing.assert_array_equal(backend.calls[0][:, -6:], observation["tokens"][needed])
        over = over_now


# Groups ---------------------------------------------------------------------------------------------------


def problems_of_rows(env, steps, rng):
    """Per row, the problems it is given one after another."""
    mode, over = env.autoreset_mode, np.zeros(env.num_envs, dtype=bool)
    _, infos = env.reset(seed=3)
    given = [[problem] for problem in infos["problem"].tolist()]
    for _ in range(steps):
        *_, now, _, infos = env.step(rng.random((env.num_envs, 6)) < rng.random((env.num_envs, 1)))
        if mode is DISABLED and now.any():
            _, infos = env.reset(options={"reset_mask": now})
        for row in np.flatnonzero(over if mode is NEXT_STEP else now):
            given[row].append(int(infos["problem"][row]))
        over = now
    return given


@every_mode
@pytest.mark.parametrize("group_size", [1, 2, 3, 6])
def test_rows_of_a_group_get_the_same_problems_in_the_same_order(mode, group_size):
    given = problems_of_rows(toys(6, mode, group_size=group_size), 30, np.random.default_rng(1))
    assert min(len(row) for row in given) >= 5
    assert len({len(row) for row in given}) > 1  # though they are not equally fast
    sequences = [tuple(row[:5]) for row in given]
    for row, sequence in enumerate(sequences):
        assert sequence == sequences[row - row % group_size]
    assert len(set(sequences)) == 6 // group_size


@every_mode
@pytest.mark.parametrize("kwargs", [{}, RANGES], ids=["", "ranges"])
def test_a_group_is_single_environments_with_the_seed_of_its_first_row(mode, kwargs):
    env = toys(4, mode, group_size=2, **kwargs)
    plain = toys(4, mode, **kwargs)
    assert_same(env.reset(seed=11), plain.reset(seed=[11, 11, 13, 13]))
    rng = np.random.default_rng(0)
    over = np.zeros(4, dtype=bool)
    for _ in range(15):
        if mode is DISABLED and over.any():
            options = {"reset_mask": over}
            assert_same(env.reset(options=options), plain.reset(options=options))
        actions = rng.random((4, 6)) < 0.5
        one, other = env.step(actions), plain.step(actions)
        assert_same(one, other)
        over = one[2]


def test_rows_of_a_group_draw_different_noise():
    env = toys(4, DISABLED, group_size=4, temperature=1.0)
    _, infos = env.reset(seed=0)
    assert len(set(infos["problem"].tolist())) == 1
    assert len({tuple(row) for row in env.step(np.ones((4, 6)))[0]["tokens"]}) == 4


# Resets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_seeds_and_problems_of_any_sequence_type(kind):
    env, expected = toys(3), toys(3)
    assert_same(env.reset(seed=kind([4, 2, 9])), expected.reset(seed=[4, 2, 9]))
    assert env.np_random_seed == (4, 2, 9)
    _, infos = env.reset(options={"problem": kind([4, 2, 9])})
    assert infos["problem"].tolist() == [4, 2, 9]
    assert list(infos["prompt"]) == ["44", "222", "9"]
    _, infos = env.reset(options={"problem": np.int64(5)})
    assert infos["problem"].tolist() == [5, 5, 5]


def test_int_seed_counts_up():
    env, expected = toys(3), toys(3)
    assert_same(env.reset(seed=np.int64(7)), expected.reset(seed=[7, 8, 9]))
    assert env.np_random_seed == (7, 8, 9)


def test_without_a_seed_every_run_is_another():
    drawn = {tuple(toys(3).reset()[1]["problem"].tolist()) for _ in range(5)}
    assert len(drawn) == 5


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ([True, False, False], TypeError, r"reset_mask must be a numpy array of bool, got <class 'list'>"),
        (np.array([1, 0, 0]), TypeError, r"reset_mask must be a numpy array of bool, got int64"),
        (None, TypeError, r"reset_mask must be a numpy array of bool, got <class 'NoneType'>"),
        (np.array([True, False]), ValueError, r"reset_mask must have shape \(3,\) .*got \[ True False\]"),
        (np.ones((3, 1), bool), ValueError, r"reset_mask must have shape \(3,\)"),
        (np.zeros(3, bool), ValueError, r"reset_mask must have shape \(3,\) and a True in it"),
    ],
)
def test_wrong_reset_masks(mask, error, message):
    env = toys(3)
    env.reset(seed=0)
    with pytest.raises(error, match=message):
        env.reset(options={"reset_mask": mask})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"options": {"problm": 1}}, r"unknown reset options \['problm'\]; known: reset_mask, problem"),
        (
            {"options": {"problem": [1, 2]}},
            r"problem must be an index or integers of shape \(3,\), got \[1, 2\]",
        ),
        ({"options": {"problem": 1.5}}, r"problem must be an index or integers of shape \(3,\), got 1.5"),
        ({"options": {"problem": [1, 2, "3"]}}, r"problem must be an index or integers of shape \(3,\), got"),
        ({"options": {"problem": [1, 2, 50]}}, r"problem index 50 is out of range"),
        ({"options": {"problem": -1}}, r"problem index -1 is out of range"),
        ({"seed": [1, 2]}, r"got 2 seeds for 3 environments"),
        ({"seed": "x"}, r"seed must be a whole number, or one or None for each of 3 environments, got 'x'"),
        ({"seed": "123"}, r"seed must be a whole number, .* got '123'"),
        ({"seed": 1.5}, r"seed must be a whole number, .* got 1.5"),
        ({"seed": [1, "x", 2]}, r"seed must be a whole number, .* got \[1, 'x', 2\]"),
        ({"options": 5}, r"reset options must be a dict with any of reset_mask, problem, alpha, .* got 5"),
        ({"options": {"alpha": [1.0, 2.0]}}, r"alpha must be .* of shape \(3,\), got \[1.0, 2.0\]"),
        (
            {"options": {"target_steps": [1, 2, np.nan]}},
            r"target_steps must be a finite number of",
        ),
    ],
)
def test_a_wrong_reset_is_refused_and_starts_nothing(arguments, message):
    env, expected = toys(3), toys(3)
    for each in (env, expected):
        each.reset(seed=0)
        each.step(everyone(3, 0))
    with pytest.raises(ValueError, match=message):
        env.reset(**arguments)
    assert_same(env.step(everyone(3, 1)), expected.step(everyone(3, 1)))


@pytest.mark.parametrize("seed", [-1, [1, 2, -3]])
def test_negative_seeds(seed):
    with pytest.raises(gym.error.Error, match="greater or equal to zero"):
        toys(3).reset(seed=seed)


# Actions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.ones((3, 5)), r"shape \(3, 6\), got float64 of \(3, 5\)"),
        (np.ones((2, 6)), r"shape \(3, 6\), got float64 of \(2, 6\)"),
        (np.ones(6), r"shape \(3, 6\), got float64 of \(6,\)"),
        (np.ones(18), r"shape \(3, 6\), got float64 of \(18,\)"),
        (np.full((3, 6), 3), r"only 0 and 1, got values from 3 to 3"),
        (np.full((3, 6), np.nan), r"only 0 and 1, got values from nan"),
        (np.full((3, 6), "1"), r"0/1 numbers of shape \(3, 6\), got <U1"),
    ],
)
def test_wrong_actions_are_refused_and_change_nothing(actions, message):
    env, expected = toys(3), toys(3)
    assert_same(env.reset(seed=0), expected.reset(seed=0))
    with pytest.raises(ValueError, match=message):
        env.step(actions)
    assert_same(env.step(everyone(3, 1)), expected.step(everyone(3, 1)))


@pytest.mark.parametrize("convert", [lambda a: a.tolist(), torch.tensor, lambda a: torch.tensor(a).float()])
def test_actions_as_lists_and_tensors(convert):
    env, expected = toys(3), toys(3)
    env.reset(seed=0)
    expected.reset(seed=0)
    actions = everyone(3, 1, 4)
    assert_same(env.step(convert(actions)), expected.step(actions))


def test_sampled_legal_actions_are_never_ignored():
    env = toys(4, NEXT_STEP, block_length=2)
    env.action_space.seed(0)
    _, infos = env.reset(seed=0)
    ended = 0
    for _ in range(20):
        actions = np.stack([env.single_action_space.sample(mask=2 * row) for row in infos["action_mask"]])
        assert (actions <= infos["action_mask"]).all()
        *_, terminations, _, infos = env.step(actions)
        ended += terminations.sum()
        assert not infos.get("ignored_actions", np.zeros(1)).any()
    assert ended > 4


def test_action_masks_are_those_of_the_rows():
    env = toys(2, block_length=3)
    env.reset(seed=0)
    observation = env.step(np.array([[1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]))[0]
    masks = env.action_masks().reshape(2, 6, 2)
    assert masks[..., 0].all()
    np.testing.assert_array_equal(masks[..., 1], observation["action_mask"] == 1)
    assert masks[..., 1].tolist() == [[False, True, True, False, False, False], [False] * 3 + [True] * 3]


# The rest -------------------------------------------------------------------------------------------------


def arrays_in(value):
    if isinstance(value, np.ndarray) and value.dtype != object:
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from arrays_in(item)
    elif isinstance(value, tuple | np.ndarray):
        for item in value:
            yield from arrays_in(item)


@every_mode
def test_returned_arrays_belong_to_the_caller(mode):
    clean, env = toys(3, mode, observe=EVERYTHING), toys(3, mode, observe=EVERYTHING)
    rng = np.random.default_rng(0)
    kept = []

    def check(expected, got):
        assert_same(expected, got)
        for array in arrays_in(got):
            assert not any(np.shares_memory(array, other) for other in kept)
            kept.append(array)
        for array in arrays_in(got):
            array[...] = 0  # writing into them does the environment no harm

    check(clean.reset(seed=0), env.reset(seed=0))
    for _ in range(10):
        actions = rng.random((3, 6)) < 0.5
        expected = clean.step(actions)
        over = expected[2].copy()
        check(expected, env.step(actions))
        if mode is DISABLED and over.any():
            options = {"reset_mask": over}
            check(clean.reset(options=options), env.reset(options=options))
    assert len(kept) > 100


def test_returned_arrays_stay_what_they_were():
    env = toys(3, SAME_STEP, observe=EVERYTHING)
    env.reset(seed=0)
    history = []
    rng = np.random.default_rng(0)
    for _ in range(8):
        got = env.step(rng.random((3, 6)) < 0.5)
        history.append((got, deepcopy(got)))
    for got, copied in history:
        assert_same(got, copied)


def test_metadata_belongs_to_the_instance():
    one, other = toys(2, SAME_STEP), toys(2, DISABLED)
    one.metadata["render_modes"].append("human")
    one.metadata["render_fps"] = 1
    assert other.metadata == {**UnmaskEnv.metadata, "autoreset_mode": DISABLED}
    assert UnmaskEnv.metadata == {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}


def test_observations_stay_in_their_space_with_the_embedded_dllm():
    env = gym.make_vec("DLLMUnmask-v0", num_envs=4, observe=EMBEDDED, autoreset_mode="SameStep")
    rng = np.random.default_rng(0)
    observation, _ = env.reset(seed=0)
    for _ in range(8):
        assert observation in env.observation_space
        assert observation["confidence"].dtype == np.float32
        observation = env.step(rng.random((4, 48)) < 0.3)[0]
    env.close()


def test_frames():
    env = toys(2, render_mode="rgb_array")
    env.reset(seed=0)
    shapes = set()
    for part in ([0], [1, 2], [3, 4, 5], [0]):
        env.step(everyone(2, *part))
        frames = env.render()
        assert isinstance(frames, tuple)
        assert len(frames) == 2
        shapes |= {frame.shape for frame in frames}
    assert len(shapes) == 1
    texts = toys(2, render_mode="ansi", backend=ScriptedBackend([7] * 6))
    texts.reset(seed=0)
    texts.step(np.array([[1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]))
    assert [text.split("\n")[-1].count("7") for text in texts.render()] == [2, 1]


def test_rendering_without_a_mode_warns():
    env = toys(2)
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="made without a render_mode"):
        assert env.render() is None


def test_close_twice():
    env = gym.make_vec("DLLMUnmask-v0", num_envs=2)
    env.reset(seed=0)
    env.close()
    env.close()
    assert env.closed
