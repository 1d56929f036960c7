"""Groups of episodes per problem: tickets, the leave-one-out baseline, the buffer, and learning with them."""

from __future__ import annotations

import json
import zipfile
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecMonitor
from toy_unmask import ToyUnmaskVectorEnv

import dllm_gym
from dllm_agents import load_policy, save_policy
from dllm_agents.agent import LearnedPolicy
from dllm_agents.sb3 import GymVecEnv, UnmaskPolicy
from dllm_agents.sb3.env import make_sb3_env
from dllm_agents.sb3.grouped import GroupA2C, GroupPPO
from dllm_agents.sb3.groups import GroupRolloutBuffer, group_advantages
from dllm_agents.sb3.tickets import Tickets

pytestmark = pytest.mark.usefixtures("toys")

LENGTH = 6
TOY = {"task": "toy", "backend": "toy"}
ALWAYS_RIGHT = {"task": "toy", "backend": "always-right"}
PPO_SETTINGS: dict[str, Any] = {"n_steps": 8, "batch_size": 64, "n_epochs": 2, "normalize_advantage": False}
A2C_SETTINGS: dict[str, Any] = {"n_steps": 8}
ALGORITHMS = [
    pytest.param(GroupPPO, PPO_SETTINGS, id="ppo"),
    pytest.param(GroupA2C, A2C_SETTINGS, id="a2c"),
]


def make_model(
    algorithm: Any = GroupPPO, settings: Any = PPO_SETTINGS, env: Any = None, **kwargs: Any
) -> Any:
    env = make_sb3_env(16, group_size=4, **TOY) if env is None else env
    fixed = {"gamma": 1.0, "vf_coef": 0.0, "device": "cpu", "seed": 0, "policy_kwargs": {"width": 16}}
    return algorithm(UnmaskPolicy, env, **{**fixed, **settings, **kwargs})


class Spy(BaseCallback):
    """Looks at the model at the end of every rollout."""

    def __init__(self, look: Any) -> None:
        super().__init__()
        self.look = look

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.look(self.model)


# Tickets ----------------------------------------------------------------------------------------------------


@given(
    group_size=st.integers(1, 5),
    groups=st.integers(1, 6),
    num_rows=st.integers(1, 7),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
@settings(max_examples=50)
def test_every_problem_is_handed_out_group_size_times_to_whoever_asks(
    group_size, groups, num_rows, seed, data
):
    tickets = Tickets(group_size, num_rows, None, seed)
    rows = data.draw(
        st.lists(st.integers(0, num_rows - 1), min_size=group_size * groups, max_size=group_size * groups)
    )
    problems = []
    for count, row in enumerate(rows):
        problems.append(tickets(row))
        assert tickets.current[row] == count
        assert tickets.next == count + 1
    by_group = np.array(problems).reshape(groups, group_size)
    assert (by_group == by_group[:, :1]).all()
    assert all(type(problem) is int and 0 <= problem < 2**31 for problem in problems)
    # an endless task hardly repeats itself
    assert len(set(by_group[:, 0].tolist())) == groups
    # rows that never asked hold nothing
    assert (tickets.current[sorted(set(range(num_rows)) - set(rows))] == -1).all()
    again = Tickets(group_size, num_rows, None, seed)
    assert [again(0) for _ in rows] == problems


def test_problems_stay_within_the_task_and_cover_it():
    tickets = Tickets(2, 4, 5, seed=0)
    problems = [tickets(0) for _ in range(200)]
    assert set(problems) == set(range(5))


def test_other_seed_other_problems():
    first, second = Tickets(2, 1, None, 0), Tickets(2, 1, None, 1)
    assert [first(0) for _ in range(8)] != [second(0) for _ in range(8)]


@pytest.mark.parametrize(("handed_out", "following"), [(0, 0), (1, 4), (3, 4), (4, 4), (5, 8)])
def test_begin_group(handed_out, following):
    tickets = Tickets(4, 1, None, 0)
    for _ in range(handed_out):
        tickets(0)
    tickets.begin_group()
    assert tickets.next == following


def test_rows_of_the_real_environment_share_problems():
    """Counts by (ticket group) over many episodes: each complete group decoded one problem, G times."""
    env = make_sb3_env(6, group_size=3, seed=4, **TOY)
    tickets = env.tickets
    env.reset()
    problems: dict[int, list[int]] = defaultdict(list)
    rng = np.random.default_rng(0)
    for _ in range(60):
        before = tickets.current.copy()
        *_, dones, infos = env.step(rng.integers(0, 2, (6, LENGTH)) * rng.integers(0, 2, (6, 1)))
        for row in np.flatnonzero(dones):
            problems[int(before[row]) // 3].append(infos[row]["problem"])
    last_begun = tickets.next // 3
    assert last_begun > 20
    complete = [group for group in problems.values() if len(group) == 3]
    assert len(complete) >= last_begun - 6
    assert all(len(set(group)) == 1 for group in problems.values())
    env.close()


# Baseline ---------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=12))
def test_leave_one_out_advantages(rewards):
    advantages = group_advantages(np.array(rewards), "leave-one-out", "none")
    expected = [r - np.mean(rewards[:i] + rewards[i + 1 :]) for i, r in enumerate(rewards)]
    np.testing.assert_allclose(advantages, expected, atol=1e-12)
    assert abs(advantages.sum()) < 1e-10


def test_advantages_by_hand():
    rewards = np.array([1.0, 0.0, 0.0])
    np.testing.assert_allclose(group_advantages(rewards, "leave-one-out", "none"), [1.0, -0.5, -0.5])
    np.testing.assert_allclose(group_advantages(rewards, "mean", "batch"), [2 / 3, -1 / 3, -1 / 3])
    scaled = group_advantages(rewards, "mean", "group")
    np.testing.assert_allclose(scaled, np.array([2, -1, -1]) / np.sqrt(2), rtol=1e-5)
    for baseline in ("mean", "leave-one-out"):
        assert group_advantages(np.full(4, 0.25), baseline, "group").tolist() == [0.0] * 4


# Buffer -----------------------------------------------------------------------------------------------------


def make_buffer(rows: int, group_size: int, length: int = 3, **kwargs: Any) -> GroupRolloutBuffer:
    observation_space = spaces.Dict(
        {"confidence": spaces.Box(0, 1, (length,), np.float32), "mask": spaces.MultiBinary(length)}
    )
    return GroupRolloutBuffer(
        4, observation_space, spaces.MultiBinary(length), "cpu", n_envs=rows, group_size=group_size, **kwargs
    )


def make_step(time: int, rows: int, length: int = 3) -> dict[str, np.ndarray]:
    """A step whose every array tells time and row."""
    own = time * rows + np.arange(rows)  # (N,)
    return {
        "confidence": (own[:, None] + np.arange(length) / 8).astype(np.float32),
        "mask": ((own[:, None] >> np.arange(length)) & 1).astype(np.int8),
        "actions": ((own[:, None] >> np.arange(length)[::-1]) & 1).astype(np.int8),
        "values": own.astype(np.float32) / 2,
        "log_probs": -own.astype(np.float32),
    }


class ListBuffer:
    """The same in the plainest way: a list per row, a list per group."""

    def __init__(self, rows: int, group_size: int) -> None:
        self.group_size = group_size
        self.running: list[list[Any]] = [[] for _ in range(rows)]
        self.groups: dict[int, list[tuple[list[Any], float]]] = {}

    def add(self, step: dict[str, np.ndarray]) -> None:
        for row, steps in enumerate(self.running):
            steps.append({key: array[row].tolist() for key, array in step.items()})

    def finish(self, row: int, ticket: int, reward: float) -> None:
        self.groups.setdefault(ticket // self.group_size, []).append((self.running[row], reward))
        self.running[row] = []

    def complete(self) -> list[tuple[dict[str, Any], float, float]]:
        """(step, unscaled advantage, reward) of every step that is ready."""
        samples = []
        for key in [key for key, group in self.groups.items() if len(group) == self.group_size]:
            group = self.groups.pop(key)
            for at, (steps, reward) in enumerate(group):
                others = [other for i, (_, other) in enumerate(group) if i != at]
                samples += [(step, reward - sum(others) / len(others), reward) for step in steps]
        return samples


def by_identity(batch: Any) -> dict[float, tuple[Any, ...]]:
    """The samples of a batch, keyed by their log-probability, which is different for every sample."""
    rows = {}
    for at, log_prob in enumerate(batch.old_log_prob.tolist()):
        assert log_prob not in rows
        rows[log_prob] = (
            {key: value[at].tolist() for key, value in batch.observations.items()},
            batch.actions[at].tolist(),
            batch.old_values[at].item(),
            batch.advantages[at].item(),
            batch.returns[at].item(),
        )
    return rows


@pytest.mark.parametrize("argument", ["baseline", "scale"])
def test_unknown_choices(argument):
    with pytest.raises(ValueError, match=f"unknown {argument} 'best'; choose one of "):
        make_buffer(2, 2, **{argument: "best"})


@given(
    rows=st.integers(1, 5),
    group_size=st.integers(2, 4),
    rollouts=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    end=st.floats(0.05, 1.0),
    flat=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_buffer_against_lists(rows, group_size, rollouts, end, flat, seed):
    rng = np.random.default_rng(seed)
    buffer, lists = make_buffer(rows, group_size), ListBuffer(rows, group_size)
    tickets = Tickets(group_size, rows, None, seed)
    for row in rng.permutation(rows).tolist():
        tickets(row)
    seen: Counter[float] = Counter()
    time = 0
    for steps in rollouts:
        buffer.reset()
        assert list(buffer.get(3)) == []
        for _ in range(steps):
            step = make_step(time, rows)
            buffer.add(step)
            lists.add(step)
            time += 1
            for row in np.flatnonzero(rng.random(rows) < end).tolist():
                reward = 0.5 if flat else float(rng.integers(0, 3)) / 2
                for each in (buffer, lists):
                    each.finish(row, int(tickets.current[row]), reward)
                tickets(row)
        expected, count = lists.complete(), buffer.complete()
        assert count == len(expected)
        if not count:
            continue
        samples = by_identity(next(iter(buffer.get())))
        assert samples.keys() == {step["log_probs"] for step, *_ in expected}
        advantages = np.array([advantage for _, advantage, _ in expected])
        scale = advantages.std() + 1e-8
        for step, advantage, reward in expected:
            observation, action, value, scaled, returned = samples[step["log_probs"]]
            assert observation == {"confidence": step["confidence"], "mask": step["mask"]}
            assert action == [float(bit) for bit in step["actions"]]
            assert value == step["values"]
            assert returned == reward
            assert scaled == pytest.approx(advantage / scale, rel=1e-4, abs=1e-5)
        if flat:
            assert buffer.zero_variance == 1.0
        seen.update(samples.keys())
        # in batches it is the same again, every sample once
        batches = list(buffer.get(5))
        assert [len(batch.returns) for batch in batches[:-1]] == [5] * (len(batches) - 1)
        merged: dict[float, Any] = {}
        for batch in batches:
            part = by_identity(batch)
            assert not part.keys() & merged.keys()
            merged |= part
        assert merged == samples
    assert all(times == 1 for times in seen.values()), "a step came out twice"
    assert set(seen) <= {-float(own) for own in range(time * rows)}


def finish_all(buffer: GroupRolloutBuffer, tickets: list[int], rewards: list[float]) -> None:
    for row, (ticket, reward) in enumerate(zip(tickets, rewards, strict=True)):
        buffer.finish(row, ticket, reward)


def play_group(buffer: GroupRolloutBuffer, episodes: list[tuple[int, float]]) -> None:
    """One group, an episode of at most six steps in every row: its length and reward."""
    for time in range(6):
        buffer.add(make_step(time, len(episodes)))
        for row, (length, reward) in enumerate(episodes):
            if length == time + 1:
                buffer.finish(row, row, reward)


def test_zero_variance_groups_have_no_advantage_beside_others():
    buffer = make_buffer(rows=6, group_size=3)
    buffer.add(make_step(0, 6))
    finish_all(buffer, [0, 1, 2, 3, 4, 5], [0.1, 0.1, 0.1, 1.0, 0.0, 0.5])
    assert buffer.complete() == 6
    samples = by_identity(next(iter(buffer.get())))
    advantages = np.array([samples[-float(row)][3] for row in range(6)])
    np.testing.assert_allclose(advantages[:3], 0, atol=1e-6)
    assert advantages[3] > 0 > advantages[4]
    assert buffer.zero_variance == 0.5


def test_flat_groups_are_left_out_on_request():
    buffer = make_buffer(rows=6, group_size=3, drop_flat=True, scale="none")
    buffer.add(make_step(0, 6))
    finish_all(buffer, [0, 1, 2, 3, 4, 5], [0.1, 0.1, 0.1, 1.0, 0.0, 0.5])
    assert buffer.complete() == 6
    assert by_identity(next(iter(buffer.get()))).keys() == {-3.0, -4.0, -5.0}
    assert buffer.zero_variance == 0.5
    buffer.add(make_step(1, 6))
    finish_all(buffer, range(6, 12), [0.1] * 6)
    assert buffer.complete() == 6  # though nothing is left
    assert list(buffer.get(4)) == []


@given(
    episodes=st.lists(st.tuples(st.integers(1, 6), st.floats(0, 1, width=16)), min_size=2, max_size=6),
    learn_from=st.integers(1, 7),
)
@settings(max_examples=60)
def test_the_episodes_with_the_largest_advantages_are_learned_from(episodes, learn_from):
    rows = len(episodes)
    buffer = make_buffer(rows, rows, scale="none", learn_from=learn_from)
    play_group(buffer, episodes)
    assert buffer.complete() == sum(length for length, _ in episodes)  # what was played, chosen or not
    rewards = np.array([reward for _, reward in episodes])
    advantages = [reward - np.delete(rewards, row).mean() for row, reward in enumerate(rewards)]
    batch = next(iter(buffer.get()))
    row_of = (-batch.old_log_prob.numpy().astype(int)) % rows
    chosen = set(row_of.tolist())
    assert len(chosen) == min(learn_from, rows)
    assert len(row_of) == sum(episodes[row][0] for row in chosen)
    np.testing.assert_allclose(batch.advantages, [advantages[row] for row in row_of], atol=1e-6)
    left = [abs(advantages[row]) for row in range(rows) if row not in chosen]
    assert min(abs(advantages[row]) for row in chosen) >= max(left, default=0) - 1e-9
    assert batch.weights.mean().item() == pytest.approx(1, rel=1e-5)


def test_among_equal_advantages_nobody_is_preferred():
    """Neither who finishes first, with short episodes, nor who finishes last; and a draw can be repeated."""
    rows, groups = 8, 400
    counts = np.zeros((2, rows))
    for repetition in range(2):
        buffer = make_buffer(rows, rows, learn_from=4)
        for group in range(groups):
            buffer.add(make_step(0, rows))
            finish_all(buffer, [group * rows + row for row in range(rows)], [1.0] + [0.0] * (rows - 1))
            buffer.complete()
            counts[repetition, (-next(iter(buffer.get())).old_log_prob).long().numpy()] += 1  # the row
            buffer.reset()
    assert (counts[0] == counts[1]).all()
    assert counts[0, 0] == groups  # the one that stands out
    assert np.abs(counts[0, 1:] / groups - 3 / 7).max() < 0.1


def test_learning_from_no_episode_is_refused():
    with pytest.raises(ValueError, match="learn_from must be a whole number of at least 1, got 0"):
        make_buffer(2, 2, learn_from=0)


@given(st.lists(st.tuples(st.integers(1, 6), st.floats(0, 1)), min_size=2, max_size=6))
@settings(max_examples=30)
def test_weights_make_a_mean_over_steps_a_mean_over_episodes(episodes):
    rows = len(episodes)
    buffer = make_buffer(rows, rows, baseline="mean", scale="none")
    play_group(buffer, episodes)
    assert buffer.complete() == sum(length for length, _ in episodes)
    batch = next(iter(buffer.get()))
    mean_reward = np.mean([reward for _, reward in episodes])
    assert batch.weights.mean().item() == pytest.approx(1, rel=1e-5)
    assert (batch.weights * batch.returns).mean().item() == pytest.approx(mean_reward, rel=1e-4, abs=1e-6)
    assert (batch.weights * batch.advantages).mean().item() == pytest.approx(0, abs=1e-5)


def test_expert_steps_are_marked_and_count_for_the_mean():
    buffer = make_buffer(rows=3, group_size=3, baseline="mean", scale="none")
    buffer.add(make_step(0, 3))
    for row, reward in enumerate([0.0, 0.0, 0.9]):
        buffer.finish(row, row, reward, expert=row == 2)
    buffer.complete()
    batch = next(iter(buffer.get()))
    order = batch.returns.argsort()
    np.testing.assert_allclose(batch.advantages[order], [-0.3, -0.3, 0.6], atol=1e-6)
    assert batch.expert[order].tolist() == [False, False, True]


@pytest.mark.parametrize(("group_size", "num_experts"), [(4, 0), (4, 1), (5, 2)])
def test_the_last_tickets_of_each_group_are_the_experts(group_size, num_experts):
    tickets = Tickets(group_size, 2, None, 0, num_experts)
    flags = []
    for _ in range(3 * group_size):
        tickets(1)
        flags.append(bool(tickets.is_expert()[1]))
    assert flags == 3 * ([False] * (group_size - num_experts) + [True] * num_experts)


def test_knobs_are_those_of_the_group():
    tickets, again = Tickets(3, 2, 50, 0), Tickets(3, 1, 50, 0)
    drawn = []
    for at in range(9):
        row = at % 2
        tickets(row)
        drawn.append(tickets.knobs(row).tolist())
        again(0)
        assert again.knobs(0).tolist() == drawn[-1]
    groups = [drawn[:3], drawn[3:6], drawn[6:]]
    assert all(group[0] == group[1] == group[2] for group in groups)
    assert len({tuple(group[0]) for group in groups}) == 3
    assert all(0 <= number < 1 for pair in drawn for number in pair)


def test_only_zero_variance_groups():
    buffer = make_buffer(rows=3, group_size=3)
    buffer.add(make_step(0, 3))
    finish_all(buffer, [0, 1, 2], [0.1] * 3)
    buffer.complete()
    np.testing.assert_allclose(next(iter(buffer.get())).advantages, 0, atol=1e-6)


def test_unfinished_groups_stay_over_rollouts():
    buffer = make_buffer(rows=2, group_size=2)
    buffer.add(make_step(0, 2))
    buffer.finish(0, 0, 1.0)
    assert buffer.complete() == 0
    buffer.reset()
    buffer.add(make_step(1, 2))
    buffer.finish(1, 1, 0.0)
    assert buffer.complete() == 3  # one step of row 0, two of row 1; row 0's new episode is not over
    assert by_identity(next(iter(buffer.get()))).keys() == {0.0, -1.0, -3.0}


def test_history_is_forgotten():
    """Steps are kept as long as an episode that needs them is pending, and no longer."""
    rng = np.random.default_rng(0)
    buffer, tickets = make_buffer(rows=8, group_size=4), Tickets(4, 8, None, 0)
    for row in range(8):
        tickets(row)
    age = np.zeros(8, dtype=int)
    longest = 0
    for time in range(400):
        if time % 10 == 0:
            buffer.complete()
            longest = max(longest, len(buffer._history._steps))
            buffer.reset()
        buffer.add(make_step(time, 8))
        age += 1
        for row in np.flatnonzero((rng.random(8) < 0.3) | (age == 6)).tolist():
            buffer.finish(row, int(tickets.current[row]), 0.0)
            tickets(row)
            age[row] = 0
    # an episode lasts at most 6 steps, and its group at most a few episodes
    assert longest <= 30
    assert len(buffer._groups) <= 16


def test_restart_forgets_everything():
    buffer = make_buffer(rows=2, group_size=2)
    for time in range(3):
        buffer.add(make_step(time, 2))
    buffer.finish(0, 0, 1.0)
    buffer.complete()
    buffer.restart()
    assert list(buffer.get()) == []
    buffer.add(make_step(9, 2))
    finish_all(buffer, [0, 1], [1.0, 0.0])
    assert buffer.complete() == 2
    assert by_identity(next(iter(buffer.get()))).keys() == {-18.0, -19.0}


def test_samples_are_shuffled_by_torchs_generator():
    buffer = make_buffer(rows=2, group_size=2)
    for time in range(20):
        buffer.add(make_step(time, 2))
    finish_all(buffer, [0, 1], [1.0, 0.0])
    buffer.complete()
    orders = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        orders.append(next(iter(buffer.get())).old_log_prob.tolist())
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != sorted(orders[0], reverse=True)


def test_types_are_those_of_sb3s_buffer():
    buffer = make_buffer(rows=2, group_size=2)
    buffer.add(make_step(0, 2))
    finish_all(buffer, [0, 1], [1.0, 0.0])
    buffer.complete()
    batch = next(iter(buffer.get(2)))
    assert batch.observations["confidence"].dtype == torch.float32
    assert batch.observations["mask"].dtype == torch.int8
    for tensor in (batch.actions, batch.old_values, batch.old_log_prob, batch.advantages, batch.returns):
        assert tensor.dtype == torch.float32
    assert batch.actions.shape == (2, 3)
    assert batch.advantages.shape == batch.returns.shape == batch.old_values.shape == (2,)


# Learning ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "settings"), ALGORITHMS)
def test_stored_log_probs_are_those_of_the_policy(algorithm, settings):
    """Recomputed in training mode, before the first update: the first-epoch ratio is 1."""
    counts = []

    def look(model: Any) -> None:
        model.policy.set_training_mode(True)
        for batch in model.rollout_buffer.get(37):
            with torch.no_grad():
                values, log_prob, _ = model.policy.evaluate_actions(batch.observations, batch.actions)
            if model.num_timesteps <= first_rollout:
                torch.testing.assert_close(log_prob, batch.old_log_prob, rtol=0, atol=1e-5)
                torch.testing.assert_close(values.flatten(), batch.old_values, rtol=0, atol=1e-5)
                counts.append(len(batch.returns))
            assert (batch.actions[batch.observations["action_mask"] == 0] == 0).all()

    model = make_model(algorithm, settings)
    first_rollout = 16 * 8
    model.learn(300, Spy(look))
    assert sum(counts) > 50


def test_ratio_is_one_in_the_first_epoch_by_sb3s_own_account():
    model = make_model(n_steps=16, n_epochs=1, batch_size=256)
    model.learn(1)
    assert 16 < len(model.rollout_buffer.returns) <= 256  # one update only
    metrics = dict(model.logger.name_to_value)
    assert metrics["train/clip_fraction"] == 0
    assert metrics["train/approx_kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["train/policy_gradient_loss"] != 0


class Witness(BaseCallback):
    """Follows every row on its own and knows groups by the problem the environment says it was."""

    def __init__(self) -> None:
        super().__init__()
        self.episodes = 0
        self.running: dict[int, list[Any]] = defaultdict(list)
        self.groups: dict[int, list[tuple[list[Any], float]]] = defaultdict(list)

    def _on_step(self) -> bool:
        observation, arrays = self.locals["observation"], self.locals["arrays"]
        for row in range(self.training_env.num_envs):
            kept = {key: value[row].tobytes() for key, value in observation.items()}
            self.running[row].append((kept, arrays["actions"][row].tolist(), float(arrays["log_probs"][row])))
            if self.locals["dones"][row]:
                info, reward = self.locals["infos"][row], float(self.locals["rewards"][row])
                assert info["nfe"] == len(self.running[row])
                self.groups[info["problem"]].append((self.running.pop(row), reward))
        return True

    def _on_rollout_end(self) -> None:
        expected: dict[Any, list[float]] = defaultdict(list)
        for problem in [problem for problem, group in self.groups.items() if len(group) == 4]:
            group = self.groups.pop(problem)
            for at, (steps, reward) in enumerate(group):
                others = [other for i, (_, other) in enumerate(group) if i != at]
                for observation, action, log_prob in steps:
                    key = (*sorted(observation.items()), tuple(action), log_prob, reward)
                    expected[key].append(reward - sum(others) / 3)
            self.episodes += 4
        scale = np.concatenate(list(expected.values())).std() + 1e-8
        found: dict[Any, list[float]] = defaultdict(list)
        batch = next(iter(self.model.rollout_buffer.get()))
        for at in range(len(batch.returns)):
            observation = {key: value[at].numpy().tobytes() for key, value in batch.observations.items()}
            action = tuple(batch.actions[at].int().tolist())
            key = (
                *sorted(observation.items()),
                action,
                batch.old_log_prob[at].item(),
                batch.returns[at].item(),
            )
            found[key].append(batch.advantages[at].item())
        assert found.keys() == expected.keys()
        for key, advantages in expected.items():
            np.testing.assert_allclose(sorted(found[key]), np.sort(advantages) / scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("algorithm", "settings"), ALGORITHMS)
def test_samples_are_what_the_environment_played(algorithm, settings):
    """From the environment's own account, ignorant of tickets: observation, action, reward and baseline."""
    env = make_sb3_env(16, group_size=4, task_kwargs={"num_problems": None}, **TOY)
    witness = Witness()
    make_model(algorithm, settings, env, policy_kwargs={"width": 16, "initial_bias": -1.0}).learn(
        1000, witness
    )
    assert witness.episodes > 150
    # rows that go on take part in few groups: nothing waits for long
    assert len(witness.groups) < 12


@pytest.mark.parametrize(("algorithm", "settings"), ALGORITHMS)
def test_learns_that_steps_cost(algorithm, settings):
    env = make_sb3_env(16, group_size=4, **ALWAYS_RIGHT)
    model = make_model(algorithm, settings, env, learning_rate=1e-2)

    def nfe() -> float:
        agent = LearnedPolicy(model.policy.network.eval())
        return dllm_gym.evaluate(agent, 50, **ALWAYS_RIGHT).nfe_mean

    before = nfe()
    model.learn(3000)
    assert before > 5
    assert nfe() < 2


def test_zero_variance_everywhere_changes_nothing():
    """alpha = 0 and always right: all rewards are 1, no group has variance, no gradient, no update."""
    env = make_sb3_env(8, group_size=4, alpha=0.0, **ALWAYS_RIGHT)
    model = make_model(env=env)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    shares = []
    model.learn(200, Spy(lambda model: shares.append(model.rollout_buffer.zero_variance)))
    assert len(shares) > 1
    assert set(shares) == {1.0}
    for old, new in zip(before, model.policy.parameters(), strict=True):
        assert torch.equal(old, new)


def test_same_seed_same_weights():
    weights = []
    for seed in (0, 0, 1):
        env = make_sb3_env(16, group_size=4, seed=3, **TOY)
        model = make_model(env=env, seed=seed)
        model.learn(300)
        weights.append(torch.cat([parameter.flatten() for parameter in model.policy.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_rollout_goes_on_until_a_group_is_complete():
    """A rollout of one step ends no episode; there must be samples all the same."""
    model = make_model(n_steps=1, batch_size=16)
    sizes = []
    model.learn(200, Spy(lambda model: sizes.append(len(model.rollout_buffer.returns))))
    assert min(sizes) >= 4


def test_learning_in_parts_keeps_unfinished_groups():
    model = make_model()
    model.learn(200)
    pending, history = dict(model.rollout_buffer._groups), len(model.rollout_buffer._history._steps)
    assert pending or history
    model.learn(200, Spy(lambda model: None), reset_num_timesteps=False)
    assert model.num_timesteps >= 400
    # groups begun before were completed, not lost
    assert not set(pending) & set(model.rollout_buffer._groups)


def test_learning_anew_begins_with_whole_groups_and_bounded_memory():
    """A reset loses the episodes in flight; groups they belonged to must not pin the history."""
    model = make_model()
    model.learn(150)
    model.env.tickets(0)  # whatever the number of steps before, the reset falls into a group
    if model.env.tickets.next % 4 == 0:
        model.env.tickets(0)
    lengths = []
    model.learn(1500, Spy(lambda model: lengths.append(len(model.rollout_buffer._history._steps))))
    assert max(lengths) < 25
    oldest = min(model.rollout_buffer._groups, default=10**9)
    assert oldest > (model.env.tickets.next - 16) // 4 - 8


def test_another_environment_begins_anew():
    model = make_model()
    model.learn(150)
    env = make_sb3_env(16, group_size=8, **TOY)
    model.set_env(env)
    model.learn(150, reset_num_timesteps=False)
    assert model.rollout_buffer.group_size == 8
    assert all(len(group) < 8 for group in model.rollout_buffer._groups.values())
    assert max(model.rollout_buffer._groups, default=0) <= env.tickets.next // 8


def test_a_callback_stops_the_rollout():
    class Stop(Spy):
        def _on_step(self) -> bool:
            return self.num_timesteps < 48

    model = make_model()
    model.learn(10_000, Stop(lambda model: None))
    assert model.num_timesteps == 48
    model.learn(200, reset_num_timesteps=False)
    assert model.num_timesteps >= 248


# Saving -----------------------------------------------------------------------------------------------------


def observations(batch: int = 40) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 2, (batch, LENGTH)).astype(np.int8)
    return {
        "confidence": rng.random((batch, LENGTH), dtype=np.float32),
        "mask": mask,
        "action_mask": mask,
        "progress": rng.random((batch, 1), dtype=np.float32),
    }


@pytest.mark.parametrize(("algorithm", "settings"), ALGORITHMS)
def test_save_and_load(tmp_path, algorithm, settings):
    model = make_model(algorithm, settings, learning_rate=1e-2)
    model.learn(400)
    model.save(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        data = json.loads(archive.read("data"))
    assert "rollout_buffer" not in data
    assert "env" not in data
    assert sizes["data"] < 60_000
    assert sum(sizes.values()) < 200_000

    for loaded in (
        algorithm.load(tmp_path / "model.zip", device="cpu"),
        algorithm.load(tmp_path / "model.zip", env=make_sb3_env(16, group_size=4, **TOY), device="cpu"),
    ):
        expected = model.predict(observations(), deterministic=True)[0]
        assert np.array_equal(loaded.predict(observations(), deterministic=True)[0], expected)
    loaded.learn(200, reset_num_timesteps=False)
    assert loaded.num_timesteps >= model.num_timesteps + 200


def test_size_on_disk_does_not_grow_with_the_rollout(tmp_path):
    sizes = []
    for n_steps in (4, 32):
        model = make_model(n_steps=n_steps)
        model.learn(1000)  # the statistics of the last 100 episodes are saved in both cases
        model.save(tmp_path / "model.zip")
        sizes.append((tmp_path / "model.zip").stat().st_size)
    assert abs(sizes[1] - sizes[0]) < 2_000


def test_loaded_without_environment_it_cannot_learn(tmp_path):
    make_model().save(tmp_path / "model.zip")
    loaded = GroupPPO.load(tmp_path / "model.zip", device="cpu")
    with pytest.raises(ValueError, match=r"GroupPPO needs an environment made by make_sb3_env\(group_size=8"):
        loaded.learn(10)
    loaded.set_env(make_sb3_env(16, group_size=4, **TOY))
    loaded.learn(10)


def test_network_of_a_trained_model_becomes_a_policy(tmp_path):
    model = make_model(learning_rate=1e-2)
    model.learn(300)
    save_policy(tmp_path / "policy", model.policy.network)
    agent = load_policy(tmp_path / "policy", decoding="deterministic")
    assert np.array_equal(agent.act(observations()), model.predict(observations(), deterministic=True)[0])


# Refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "settings"), ALGORITHMS)
def test_needs_tickets(algorithm, settings):
    message = rf"{algorithm.__name__} needs an environment made by make_sb3_env\(group_size=8\)"
    for env in (make_sb3_env(16, **TOY), VecMonitor(GymVecEnv(ToyUnmaskVectorEnv(num_envs=16)))):
        with pytest.raises(ValueError, match=message):
            make_model(algorithm, settings, env)


def test_environment_restarts_within_the_step():
    env = make_sb3_env(4, group_size=2, **TOY)
    assert env.unwrapped.env.unwrapped.autoreset_mode is AutoresetMode.SAME_STEP
