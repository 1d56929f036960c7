"""Copies of environments, and states taken from them: complete, and independent in both directions."""

import copy
import pickle

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_backend import ScriptedBackend, ToyBackend, ToyTask

from dllm_agents.sb3.flight import as_arrays, as_tensors
from dllm_agents.sb3.grouped import Tickets
from dllm_gym.backends import load_backend
from dllm_gym.envs.observations import OBSERVE
from dllm_gym.envs.unmask import UnmaskEnv
from dllm_gym.envs.vector import UnmaskVectorEnv

SAME_STEP, DISABLED = AutoresetMode.SAME_STEP, AutoresetMode.DISABLED
EVERYTHING = OBSERVE
WAYS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda env: pickle.loads(pickle.dumps(env)),
    "cloudpickle": lambda env: cloudpickle.loads(cloudpickle.dumps(env)),
}
every_way = pytest.mark.parametrize("way", WAYS)
options = st.fixed_dictionaries(
    {
        "block_length": st.sampled_from([None, 2, (1, 3, 6)]),
        "on_empty": st.sampled_from(["best", "noop"]),
        "stop_at_eos": st.booleans(),
        "temperature": st.sampled_from([0.0, 0.7]),
        "observe": st.sampled_from([("tokens",), EVERYTHING]),
        "alpha": st.sampled_from([1.0, (0.1, 10.0)]),
        "target_steps": st.sampled_from([3, (1, 8)]),
        "revealed_confidence": st.sampled_from(["one", "model"]),
        "view": st.sampled_from(["completion", "block"]),
        "actions": st.sampled_from(["reveal", "set-state", "edit"]),
        "commit_drift": st.booleans(),
    }
)
kinds = st.sampled_from(["single", "made", *AutoresetMode])


def deadline(score, steps, length, alpha):
    return score if steps < 4 else -alpha


def make(kind, **kwargs):
    kwargs = {"backend": ToyBackend(), "task": ToyTask(), **kwargs}
    if kind == "single":
        return UnmaskEnv(**kwargs)
    if kind == "made":
        return gym.make("DLLMUnmask-v0", **kwargs)
    return UnmaskVectorEnv(4, autoreset_mode=kind, **kwargs)


class Walk:
    """Goes through an environment, always the same way from the same number on, episode after episode."""

    def __init__(self, env, number=0):
        self.env, self.number = env, number

    def __call__(self, steps):
        """Everything that was returned."""
        returned = []
        for _ in range(steps):
            rng = np.random.default_rng(self.number)
            self.number += 1
            engine = self.env.unwrapped.engine
            ended = engine.ended
            if isinstance(self.env, UnmaskVectorEnv):
                if self.env.autoreset_mode is not AutoresetMode.NEXT_STEP and ended.any():
                    given = {"reset_mask": ended.copy()} if self.env._started else None
                    returned.append(self.env.reset(options=given))
                shape = (engine.num_rows, engine.length)
            else:
                if ended[0]:
                    returned.append(self.env.reset())
                shape = (engine.length,)
            returned.append(self.env.step(rng.random(shape) < 0.4))
        return returned


def assert_same(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple) or (isinstance(one, np.ndarray) and one.dtype.kind == "O"):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert type(one) is type(other)
        np.testing.assert_array_equal(one, other)


def begun(kind, kwargs, seed, steps):
    """A walk that has come so far; the same for the same arguments."""
    walk = Walk(make(kind, **kwargs))
    walk.env.reset(seed=seed)
    walk(steps)
    return walk


# Copies ---------------------------------------------------------------------------------------------------


@every_way
@settings(max_examples=40)
@given(kind=kinds, kwargs=options, seed=st.integers(0, 2**40), steps=st.integers(0, 9))
def test_a_copy_goes_on_like_the_original_and_neither_feels_the_other(way, kind, kwargs, seed, steps):
    original, expected = (begun(kind, kwargs, seed, steps) for _ in range(2))
    copied = Walk(WAYS[way](original.env), original.number)
    ahead, later = expected(6), expected(6)
    assert_same(copied(6), ahead)  # the copy first: the original must not have moved
    assert_same(original(6), ahead)
    assert_same(original(6), later)
    assert_same(copied(6), later)


@every_way
def test_a_copy_before_the_first_reset(way):
    for kind in ("single", "made", SAME_STEP):
        original = make(kind, temperature=0.7)
        copied = WAYS[way](original)
        assert_same(copied.reset(seed=3), original.reset(seed=3))
        assert_same(Walk(copied)(8), Walk(original)(8))


@every_way
@pytest.mark.parametrize(
    "kwargs",
    [
        {"group_size": 2, "alpha": (0.1, 10.0)},
        {"max_episode_steps": 2},
        {"reward": deadline, "reward_metric": "written"},
        {"render_mode": "ansi"},
    ],
    ids=lambda kwargs: next(iter(kwargs)),
)
def test_copies_of_the_batched_environments_own_options(way, kwargs):
    original = begun(SAME_STEP, kwargs, 5, 3)
    copied = Walk(WAYS[way](original.env), original.number)
    assert_same(copied(9), original(9))
    if "render_mode" in kwargs:
        assert copied.env.render() == original.env.render()


@every_way
@pytest.mark.parametrize("given", [{"cache": "dual"}, {"cache": "prefix"}, {"residual_context": "warm"}])
@pytest.mark.filterwarnings("ignore:.*was not trained with residual context")  # it was not trained for that
def test_what_a_dllm_remembers_is_copied_and_the_dllm_shared_or_pickled(way, given):
    kwargs = {"backend": "tiny-arithmetic", "backend_kwargs": given, "task": "arithmetic", "block_length": 8}
    original, expected = (begun(SAME_STEP, kwargs, 5, 3) for _ in range(2))
    copied = Walk(WAYS[way](original.env), original.number)
    ahead = expected(4)
    assert_same(copied(4), ahead)
    assert_same(original(4), ahead)
    shared = copied.env.engine.backend is original.env.engine.backend
    assert shared is (way == "deepcopy")
    if way == "deepcopy":
        assert load_backend("tiny-arithmetic", **given) is copied.env.engine.backend
        assert copied.env.engine.task is original.env.engine.task


def test_a_deep_copy_shares_a_dllm_that_does_not_say_so_itself():
    class Heavy(ToyBackend):
        def __deepcopy__(self, memo):
            raise AssertionError("gigabytes")

    env = make("single", backend=Heavy())
    assert copy.deepcopy(env).engine.backend is env.engine.backend


def test_a_users_own_generator_is_copied():
    env = make("single", temperature=0.7)
    env.np_random = np.random.Generator(np.random.MT19937(3))
    env.reset()
    for way in WAYS.values():
        copied = way(env)
        assert copied.engine.problem_rngs[0] is copied.np_random
        assert copied.np_random is not env.np_random
        expected = copy.deepcopy(env.np_random).integers(2**60)
        assert copied.np_random.integers(2**60) == expected


def test_groups_whose_problems_tickets_hand_out():
    env = make(SAME_STEP, alpha=(0.1, 10.0), observe=("alpha",))
    tickets = Tickets(2, 4, 50, seed=1)
    env.engine.draw_problem, env.engine.draw_knobs = tickets, tickets.knobs
    env.reset(seed=0)
    copied = copy.deepcopy(env)
    before = tickets.next
    assert_same(ahead := Walk(copied)(9), Walk(copy.deepcopy(env))(9))
    assert tickets.next == before
    assert_same(Walk(env)(9), ahead)


# States ---------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(kind=kinds, kwargs=options, seed=st.integers(0, 2**40), steps=st.integers(0, 9))
def test_a_restored_environment_goes_on_like_the_one_the_state_is_of(kind, kwargs, seed, steps):
    if kind == "made":
        kind = "single"
    walk, other = begun(kind, kwargs, seed, steps), begun(kind, kwargs, 7, 4)
    last = walk.env.engine.observation()
    state = walk.env.state()
    assert_same(as_arrays(as_tensors(state)), state)  # arrays and plain values, which can be saved
    ahead = walk(6)
    for again in (walk, other, Walk(make(kind, **kwargs))):
        observation = again.env.restore(state)
        assert_same(observation, last if kind != "single" else {key: row[0] for key, row in last.items()})
        again.number = walk.number - 6
        assert_same(again(6), ahead)
        assert again.env.np_random_seed == walk.env.np_random_seed
        again.number = walk.number


@settings(max_examples=40)
@given(kwargs=options, seed=st.integers(0, 2**40), steps=st.integers(0, 4), width=st.integers(1, 5))
def test_one_state_fanned_out_is_as_many_episodes_of_the_same_past(kwargs, seed, steps, width):
    single = begun("single", kwargs, seed, steps)
    if single.env.engine.ended[0]:
        single.env.reset()
    state = single.env.state()
    envs = UnmaskVectorEnv(width, autoreset_mode=DISABLED, backend=ToyBackend(), task=ToyTask(), **kwargs)
    observation = envs.restore(state)
    rng = np.random.default_rng(seed)
    actions = rng.random((width, 6)) < 0.4
    branched = envs.step(actions)
    for row in range(width):
        seen = single.env.restore(state)
        assert_same({key: values[row] for key, values in observation.items()}, seen)
        expected, reward, terminated, _, info = single.env.step(actions[row])
        assert_same({key: values[row] for key, values in branched[0].items()}, expected)
        assert (branched[1][row], branched[2][row]) == (reward, terminated)
        if terminated:
            assert branched[4]["completion"][row] == info["completion"]
        # and the next episode is the same one too
        assert int(envs.engine.problem_rngs[row].bit_generator.state["state"]["state"]) == int(
            single.env.np_random.bit_generator.state["state"]["state"]
        )


def test_rows_change_places_and_multiply():
    envs = begun(DISABLED, {"temperature": 0.7}, 3, 1).env
    before = envs.engine.observation()
    after = envs.restore(envs.state(rows=[2, 2, 0, 3]))
    assert_same(after, {key: values[[2, 2, 0, 3]] for key, values in before.items()})
    after = envs.restore(envs.state(rows=np.array([3])))
    assert_same(after, {key: values[[3] * 4] for key, values in before.items()})


def test_rows_that_are_not_restored_go_on_undisturbed():
    walk, expected = (begun(DISABLED, {"temperature": 0.7}, 3, 1) for _ in range(2))
    state = make("single", temperature=0.7)
    state.reset(seed=99)
    walk.env.restore(state.state(), rows=[1])
    actions = np.random.default_rng(0).random((4, 6)) < 0.3
    ours, theirs = walk.env.step(actions)[0], expected.env.step(actions)[0]
    others = [0, 2, 3]
    assert_same({key: v[others] for key, v in ours.items()}, {key: v[others] for key, v in theirs.items()})
    alone = state.step(actions[1])[0]
    assert_same({key: values[1] for key, values in ours.items()}, alone)


def test_a_row_of_a_batch_goes_on_in_a_single_environment():
    envs = begun(SAME_STEP, {"alpha": (0.1, 10.0)}, 3, 2).env
    single = make("single", alpha=(0.1, 10.0))
    state = envs.state(rows=[2])
    seen = single.restore(state)
    assert_same(seen, {key: values[2] for key, values in envs.engine.observation().items()})
    assert single.np_random_seed == 5
    assert_same(single.state(), state)


def test_a_state_is_a_value():
    walk = begun("single", {"temperature": 0.7}, 3, 1)
    state = walk.env.state()
    kept = copy.deepcopy(state)
    walk(9)
    assert_same(state, kept)
    walk.env.restore(state)
    walk(9)
    assert_same(state, kept)
    restored = make("single", temperature=0.7)
    restored.restore(state)
    state["canvas"]["masked"][:] = False
    state["canvas"]["prompts"][0][:] = 0
    assert_same(restored.state(), kept)


def test_a_users_own_generator_is_restored_by_another_one():
    env = make("single")
    own = env.np_random = np.random.Generator(np.random.MT19937(3))
    env.reset()
    state = env.state()
    expected = own.integers(2**60)
    other = make("single")
    other.restore(as_arrays(as_tensors(state)))
    assert other.np_random_seed == -1
    assert other.np_random.integers(2**60) == expected
    env.restore(state)
    assert env.np_random is not own  # it may be drawn from elsewhere
    assert env.np_random.integers(2**60) == expected


def state_of(**kwargs):
    env = make("single", **kwargs)
    env.reset(seed=0)
    return env.state()


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "there is no 'canvas' in it"),
        ([], "there is no 'canvas' in it"),
        ({}, "there is no 'canvas' in it"),
        (lambda: state_of(completion_length=5), r"block_of must be int64 of \(4, 6\) or \(1, 6\), got int64"),
        (lambda: state_of(temperature=1.0), r"token_generators is array.* where it is None here"),
        (lambda: without(state_of(), "alphas"), "there is no 'alphas' in it"),
        (
            lambda: state_of() | {"alphas": 1.0},
            r"alphas must be float64 of \(4,\) or \(1,\), got 1.0",
        ),
        (lambda: state_of() | {"alphas": np.ones(3)}, r"alphas must be float64 of .*, got float64 of \(3,\)"),
        (lambda: state_of() | {"seeds": [1, 2]}, r"seeds must be a list of 4 or 1, got \[1, 2\]"),
        (
            lambda: state_of() | {"problem_rngs": [{"bit_generator": "Pickle"}]},
            "unknown bit generator 'Pickle'",
        ),
        (lambda: state_of() | {"problem_rngs": [7]}, "there is no 'bit_generator' in it"),
        (lambda: state_of() | {"indices": np.array([50])}, "problem index 50 is out of range"),
    ],
)
def test_states_that_do_not_fit_are_refused(state, message):
    envs = make(DISABLED)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        envs.restore(state() if callable(state) else state)


def test_a_state_with_more_observed_fits_where_less_is():
    envs = make(DISABLED)
    envs.restore(state_of(observe=EVERYTHING))
    with pytest.raises(ValueError, match="there is no 'entropy' in it"):
        make(DISABLED, observe=EVERYTHING).restore(state_of())


def test_rows_there_are_not():
    envs = make(DISABLED)
    envs.reset(seed=0)
    for rows in ([4], [-1], [0.5], 2, [[0]], ["a"]):
        with pytest.raises(ValueError, match="rows must be a list of numbers from 0 to 3, got"):
            envs.state(rows)
    with pytest.raises(ValueError, match=r"rows must be restored once each, got \[1, 1\]"):
        envs.restore(envs.state([0, 1]), rows=[1, 1])
    with pytest.raises(ValueError, match=r"must be int64 of \(3, 6\) or \(1, 6\), got int64 of \(2, 6\)"):
        envs.restore(envs.state([0, 1]), rows=[0, 1, 2])


def test_before_the_first_reset():
    for env in (make("single"), make(DISABLED)):
        with pytest.raises(RuntimeError, match="call reset first"):
            env.state()
    with pytest.raises(RuntimeError, match="restore all rows or call reset first"):
        make(DISABLED).restore(state_of(), rows=[0])


def test_a_dllm_that_remembers_has_no_state_and_says_what_has():
    env = gym.make("DLLMUnmask-v0", backend_kwargs={"cache": "dual"})
    env.reset(seed=0)
    with pytest.raises(RuntimeError, match=r"remembers earlier steps .*; copy.deepcopy copies"):
        env.unwrapped.state()


def test_restoring_costs_no_forward():
    backend = ScriptedBackend([4, 0, 0, 0, 0, 0])
    env = make("single", backend=backend)
    env.reset(seed=0)
    forwards = len(backend.calls)
    env.restore(env.state())
    assert len(backend.calls) == forwards
