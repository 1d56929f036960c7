"""Rules that look ahead: what they take, what it costs, and that nothing is computed twice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_backend import ToyBackend, ToyTask

import dllm_gym
from dllm_gym.envs.unmask import UnmaskEnv
from dllm_gym.envs.vector import UnmaskVectorEnv
from dllm_gym.evaluation import compare, evaluate
from dllm_gym.strategies import InBlocks, make_strategy

quick = settings(max_examples=15, deadline=None)
SUDOKU = {"task": "sudoku", "split": "test", "observe": ("entropy",)}


class Counting(ToyBackend):
    """Counts the rows it predicts."""

    def __init__(self):
        super().__init__()
        self.rows = 0

    def predict(self, tokens, *arguments, **options):
        self.rows += len(tokens)
        return super().predict(tokens, *arguments, **options)


def toy(**options):
    return {"backend": Counting(), "task": ToyTask("test"), "completion_length": 10, **options}


def lopa(observation, k, threshold):
    """The paths of one row, literally."""
    c = observation["confidence"]
    among = [i for i in np.flatnonzero(observation["action_mask"])]
    order = sorted(among, key=lambda i: (-c[i], i))
    anchor = [i for i in order if c[i] > np.float32(threshold)] or order[:1]
    return [anchor, *([*anchor, i] for i in [i for i in order if i not in anchor][: k - 1])]


def by_hand(problem, k, threshold, **where):
    """LoPA through the public environment, going back after every look; and the forwards it took."""
    env = UnmaskEnv(**{**SUDOKU, **where})
    observation, _ = env.reset(options={"problem": problem})
    forwards, over = 1, False
    while not over:
        here, found = env.state(), []
        for path in lopa(observation, k, threshold):
            bits = np.zeros(len(observation["mask"]))
            bits[path] = 1
            seen, _, over, _, _ = env.step(bits)
            entropies = seen["entropy"][seen["mask"] == 1].astype(float)
            found.append((entropies.mean() if len(entropies) else 0.0, len(found), bits))
            forwards += not over
            observation = env.restore(here)
        observation, _, over, _, info = env.step(min(found, key=lambda one: one[:2])[2])
    return info["completion"], forwards


@pytest.mark.parametrize("parameters", [{"k": 1, "threshold": 0.9}, {"k": 3, "threshold": 0.99}])
def test_lopa_is_the_brute_force_and_every_path_is_counted(parameters):
    rule = make_strategy("lopa", **parameters)
    records = evaluate(rule, 4, task="sudoku", batch_size=3).records
    expected = [by_hand(problem, **parameters) for problem in range(4)]
    assert list(zip(records.completion, records.nfe.tolist(), strict=True)) == expected


def test_with_one_path_lopa_is_a_threshold():
    one, other = (
        evaluate(name, 6, task="sudoku").records for name in ("lopa:k=1", "fast-dllm:threshold=0.9")
    )
    assert one.nfe.tolist() == other.nfe.tolist()
    assert one.completion == other.completion


@quick
@given(
    st.sampled_from(["lopa:k=1", "lopa:k=3", "lopa:k=2,threshold=0.5", "lookum:k=2", "lookum:k=3,size=3"]),
    st.sampled_from([{}, {"block_length": 4}, {"temperature": 1.0}, {"actions": "set-state"}]),
    st.integers(1, 4),
)
def test_nfe_is_what_the_dllm_computed(name, options, batch):
    where = toy(**options)
    records = evaluate(name, 4, batch_size=batch, **where).records
    assert where["backend"].rows == records.nfe.sum()
    assert (records.nfe >= 1).all()


def test_what_was_looked_at_is_what_comes():
    env = UnmaskVectorEnv(2, observe=("entropy", "persistence"), **toy(temperature=1.0))
    here, _ = env.reset(seed=3)
    actions = np.zeros((2, 10), dtype=bool)
    actions[0, :3] = actions[1, 4] = True
    ahead = env.engine.look_ahead(np.array([0, 1]), actions)
    for key, value in env.engine.observation().items():
        np.testing.assert_array_equal(value, here[key])  # nothing has happened
    after, *_ = env.step(actions)
    for key, value in after.items():
        np.testing.assert_array_equal(value, ahead[key])
    assert env.engine.backend.rows == 4
    assert env.engine.ahead.tolist() == [0, 0]


def test_what_was_looked_at_and_not_taken_is_paid_for():
    env = UnmaskVectorEnv(1, **toy(alpha=1.0))
    env.reset(seed=3)
    look = np.eye(10, dtype=bool)
    for position in (0, 1, 1):  # the second time it is known
        env.engine.look_ahead(np.array([0]), look[[position]])
    kept = env.state()
    env.step(look[[2]])
    assert env.engine.ahead.tolist() == [2]
    *_, infos = env.step(np.ones((1, 10)))
    assert infos["nfe"].tolist() == [4]
    assert env.engine.backend.rows == 4
    env.restore(kept)
    assert env.engine.ahead.tolist() == [2]
    env.reset(seed=4)
    assert env.engine.ahead.tolist() == [0]


def test_looking_further_keeps_what_lies_beyond_the_step_taken():
    env = UnmaskVectorEnv(1, observe=("persistence",), **toy())
    env.reset(seed=3)
    one, two, three = np.eye(10, dtype=bool)[:3, None]
    ahead = env.engine.look_ahead(np.array([0]), one, two)
    env.engine.look_ahead(np.array([0]), two, one)  # the same canvas, but another way
    assert env.engine.backend.rows == 5
    env.step(one)
    after, *_ = env.step(two)
    for key, value in after.items():
        np.testing.assert_array_equal(value, ahead[key])
    assert env.engine.backend.rows == 5
    env.step(three)
    *_, infos = env.step(np.ones((1, 10)))
    assert infos["nfe"].tolist() == [env.engine.backend.rows] == [6]


def test_a_recording_counts_steps_of_the_canvas():
    result = evaluate("lopa:k=3", 3, record=True, **toy())
    assert (result.recording.steps < result.records.nfe).all()
    assert (result.recording.reveal_step.max(axis=1) == result.recording.steps).all()


def test_looks_are_the_same_in_batches_of_any_size():
    for name in ("lopa", "lookum", "lookum:temperature=0,pool=3"):
        few, many = (evaluate(name, 5, batch_size=size, task="sudoku").records for size in (2, 5))
        assert few.completion == many.completion
        assert few.nfe.tolist() == many.nfe.tolist()


def test_lookum_draws_from_the_pool_and_takes_the_surer_path_more_often():
    rule = make_strategy("lookum", k=2, size=2, pool=3, temperature=1.0)
    rows, length = 2000, 6
    observation = {"confidence": np.tile(np.array([0.5, 0.25, 0.0, 0.25, 0.1, 0.9], np.float32), (rows, 1))}
    candidates = np.ones((rows, length), dtype=bool)
    candidates[:, 5] = False
    one, other = rule.paths({**observation, "action_mask": candidates}, candidates)
    assert (one.sum(axis=1) == 2).all()
    assert not one[:, [2, 4, 5]].any()
    # the first of two is 0 with 1/2, else the second is with 2/3
    assert one[:, 0].mean() == pytest.approx(1 / 2 + 1 / 2 * 2 / 3, abs=0.04)
    assert (one != other).any()
    taken = rule.choose(np.tile([[0.0], [np.log(3)]], rows))
    assert taken.mean() == pytest.approx(1 / 4, abs=0.04)
    sure = make_strategy("lookum", temperature=0)
    assert sure.choose(np.array([[0.5, 0.1], [0.2, 0.1]])).tolist() == [1, 0]


def test_they_say_what_they_need():
    rule = make_strategy("lopa")
    env = UnmaskVectorEnv(2, observe=("entropy",), **toy())
    observation, _ = env.reset(seed=0)
    with pytest.raises(ValueError, match=r"'lopa' looks ahead with the dLLM: use evaluate.* attach\("):
        rule.act(observation)
    rule.attach(env.engine)
    assert rule.act(observation).any(axis=1).all()
    with pytest.raises(ValueError, match="must see all 2 rows of its engine, got 1"):
        rule.act({key: value[:1] for key, value in observation.items()})
    with pytest.raises(ValueError, match="to look ahead needs a dLLM that does not remember earlier steps"):
        evaluate("lopa", 1, task="sudoku", backend_kwargs={"cache": "dual"})


def test_in_blocks_and_for_text():
    where = toy()
    records = evaluate(InBlocks(make_strategy("lopa", k=2), 4), 2, **where).records
    assert where["backend"].rows == records.nfe.sum()
    text = dllm_gym.generate("12+30=", "lopa:k=2,threshold=1", "tiny-arithmetic", completion_length=8)
    assert text.steps > 1


class Blind(ToyBackend):
    """Shows no attention."""

    @property
    def attention_layers(self):
        raise AttributeError("this one keeps it for itself")


def test_rules_that_a_dllm_shows_too_little_are_left_out_of_comparisons():
    where = {"task": ToyTask("test"), "backend": Blind()}
    with pytest.warns(
        UserWarning, match=r"not compared with clad.*, dawn.*: observation 'attention' needs .*"
    ):
        found = compare(["confidence"], 1, strategies=["clad", "fast-dllm", "dawn"], **where)
    assert [result.agent for result in found.results] == ["fast-dllm", "confidence"]
    assert found.learned == [False, False]
    with pytest.raises(ValueError, match="that shows its attention: this one keeps it for itself"):
        compare(["clad"], 1, strategies="none", **where)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("lopa", {"k": 0}, "k must be an integer >= 1, got 0"),
        ("lopa", {"threshold": 2}, r"threshold must be a finite number in \[0, 1\], got 2"),
        ("lookum", {"pool": 1}, "pool must be an integer >= 2, got 1"),
        ("lookum", {"temperature": -1}, "temperature must be a finite number >= 0, got -1"),
        ("lookum", {"seed": -1}, "seed must be an integer >= 0, got -1"),
    ],
)
def test_parameters_are_checked_at_the_door(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        make_strategy(name, **parameters)
