"""The rewards against their formulas, and what a learner relies on."""

import functools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_backend import ScriptedBackend, ToyTask

from dllm_gym.envs.rewards import REWARDS, additive, correctness, multiplicative, multiplicative_paper
from dllm_gym.envs.unmask import UnmaskEnv
from dllm_gym.envs.vector import UnmaskVectorEnv

ALPHAS = [0, 0.5, 1, 2]
every_reward = pytest.mark.parametrize("reward", REWARDS.values(), ids=REWARDS.keys())
every_alpha = pytest.mark.parametrize("alpha", ALPHAS)


def test_names():
    assert list(REWARDS) == ["multiplicative", "multiplicative-paper", "additive", "correctness"]


@every_alpha
@pytest.mark.parametrize("score", [0.0, 0.25, 1.0])
@pytest.mark.parametrize(("steps", "length"), [(1, 1), (1, 8), (5, 8), (8, 8), (1, 256), (256, 256)])
def test_formulas(score, steps, length, alpha):
    assert multiplicative(score, steps, length, alpha) == pytest.approx(
        score * ((length - steps + 1) / length) ** alpha
    )
    assert multiplicative_paper(score, steps, length, alpha) == pytest.approx(
        score * (1 - steps / length) ** alpha
    )
    assert additive(score, steps, length, alpha) == pytest.approx(score - alpha * steps / length)
    assert correctness(score, steps, length, alpha) == score


@every_reward
@given(
    score=st.sampled_from([0, 1, 0.3, np.float32(0.3), np.float64(1), np.bool_(True)]),
    steps=st.one_of(st.integers(1, 600), st.integers(1, 600).map(np.int64), st.floats(1, 600)),
    length=st.integers(1, 300),
    alpha=st.floats(0, 4),
)
def test_a_finite_python_float_even_beyond_the_budget(reward, score, steps, length, alpha):
    value = reward(score, steps, length, alpha)
    assert type(value) is float
    assert math.isfinite(value)


@every_reward
@every_alpha
def test_never_better_for_more_steps(reward, alpha):
    values = [reward(1.0, steps, 32, alpha) for steps in range(1, 33)]
    assert values == sorted(values, reverse=True)
    if alpha > 0 and reward is not correctness:
        assert len(set(values)) == 32


@every_reward
def test_alpha_zero_is_pure_correctness(reward):
    for steps in (1, 7, 16):
        assert reward(0.75, steps, 16, 0) == 0.75
        assert reward(0.0, steps, 16, 0) == 0.0


@every_alpha
@pytest.mark.parametrize("length", [1, 48, 256])
def test_multiplicative_puts_any_correct_answer_above_any_wrong_one(alpha, length):
    assert multiplicative(1.0, 1, length, alpha) == 1.0
    slowest = multiplicative(1.0, length, length, alpha)
    assert slowest == pytest.approx(length**-alpha)
    assert slowest > multiplicative(0.0, 1, length, alpha) == 0.0


@pytest.mark.parametrize("alpha", [0.3, 1, 10])
def test_the_papers_form_pays_nothing_for_the_last_step(alpha):
    assert multiplicative_paper(1.0, 8, 8, alpha) == multiplicative_paper(1.0, 9, 8, alpha) == 0.0
    assert multiplicative_paper(1.0, 1, 8, alpha) == pytest.approx((7 / 8) ** alpha)


def test_additive_may_put_a_wrong_fast_answer_first():
    # why multiplicative is the default
    assert additive(0.0, 1, 32, 1.5) > additive(1.0, 32, 32, 1.5)


# One's own ------------------------------------------------------------------------------------------------


def scripted(**kwargs):
    # 3 + 1 + 4 + 1 + 5 + 9 = 23: the toy's score is 3/4
    return {"backend": ScriptedBackend([3, 1, 4, 1, 5, 9]), "task": ToyTask(), **kwargs}


def deadline(score, steps, length, alpha):
    return score - alpha * (steps > length / 2)


class Bonus:
    def __call__(self, score, steps, length, alpha):
        return np.float32(score + 2)


@pytest.mark.parametrize(
    ("reward", "name", "fast", "slow"),
    [
        (deadline, "deadline", 0.75, 0.5),
        (Bonus(), "Bonus", 2.75, 2.75),
        (functools.partial(additive), "partial", 0.75 - 0.25 / 6, 0.5),
        (lambda r, n, length, alpha: 1000 * n + length, "<lambda>", 1006.0, 6006.0),
    ],
)
def test_a_function_is_a_reward(reward, name, fast, slow):
    """It gets the score, the steps, L and alpha of the episode; single and batched environments agree."""
    env = UnmaskEnv(**scripted(reward=reward, alpha=0.25))
    envs = UnmaskVectorEnv(2, **scripted(reward=reward, alpha=0.25))
    for paid, parts in ((fast, 1), (slow, 6)):
        env.reset(seed=0), envs.reset(seed=0)
        for part in np.split(np.arange(6), parts):
            action = np.isin(np.arange(6), part)
            _, one, over, _, _ = env.step(action)
            _, both, _, _, _ = envs.step(np.stack([action, action]))
        assert over
        assert type(one) is float
        assert one == pytest.approx(paid)
        assert both == pytest.approx(paid)
    description = env.engine.description()
    assert description["reward"] == name
    assert json.loads(json.dumps(description)) == description


def test_a_function_gets_the_alpha_its_episode_drew_and_the_metric_asked_for():
    env = UnmaskEnv(
        **scripted(
            reward=lambda r, n, length, alpha: r + alpha,
            reward_metric="written",
            alpha=(1, 9),
            observe=("alpha",),
        )
    )
    for seed in range(3):
        observation, _ = env.reset(seed=seed)
        *_, info = step = env.step(np.ones(6))
        assert step[1] == pytest.approx(info["written"] + observation["alpha"][0])


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (3, "unknown reward 3; choose one of multiplicative, .*, or give a function of score, steps"),
        (lambda score, steps: score, "reward <lambda> must take score, steps, length and alpha: too many"),
        (lambda r, n, length, alpha: None, "must give a finite number, got None for score 0, steps 1"),
        (
            lambda r, n, length, alpha: math.inf if n == length else r,
            "got inf for score 0, steps 6, length 6, alpha 0.5",
        ),
        (lambda r, n, length, alpha: math.nan if alpha > 1 else r, "got nan for .*, alpha 2"),
    ],
)
def test_a_function_that_is_no_reward_is_refused_at_the_door(reward, message):
    with pytest.raises(ValueError, match=message):
        UnmaskEnv(**scripted(reward=reward, alpha=(0.5, 2)))


@pytest.mark.parametrize("paid", [np.nan, np.inf, None, "0.5", 1j])
def test_a_function_that_fails_in_play_only_is_refused_there(paid):
    def sometimes(score, steps, length, alpha):
        return 0.5 if steps in (1, length) else paid

    for make in (UnmaskEnv, UnmaskVectorEnv):
        env = make(backend=ScriptedBackend([4, 0, 0, 0, 0, 0]), task=ToyTask(), reward=sometimes)
        env.reset(seed=0)
        first, second = np.eye(2, dtype=np.int8).repeat(3, axis=1)
        several = second.shape if make is UnmaskEnv else (1, 6)
        env.step(first.reshape(several))
        with pytest.raises(ValueError, match=r"reward sometimes must give a finite number, got .* steps 2,"):
            env.step(second.reshape(several))


@pytest.mark.parametrize("score", [np.nan, -0.5, 1.5])
def test_scores_out_of_range_are_refused(score):
    class Strange(ToyTask):
        def score(self, completion, problem):
            return score

    env = UnmaskEnv(backend=ScriptedBackend([4, 0, 0, 0, 0, 0]), task=Strange())
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"task toy must score 0 to 1, got {score} for '400000'"):
        env.step(np.ones(6))
