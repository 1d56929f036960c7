"""Long runs, many environments, threads and forks: nothing grows, and nobody feels the others."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv
from toy_backend import ToyBackend, ToyTask

import dllm_gym
from dllm_gym.backends import load_backend, register_backend
from dllm_gym.envs.engine import Engine
from dllm_gym.envs.unmask import UnmaskEnv
from dllm_gym.envs.vector import UnmaskVectorEnv

needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")


class Forgetful(ToyBackend):
    """A toy that does not remember its calls."""

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        found = super().predict(*args, **kwargs)
        self.calls.clear()
        return found


def resident() -> float:
    """Megabytes of memory that this process has."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def growth(work: Callable[[int], None], rounds: int) -> float:
    """Megabytes by which ``work(round)`` grows the process after a fifth of the rounds."""
    before = 0.0
    for at in range(rounds):
        if at == rounds // 5:
            before = resident()
        work(at)
    return resident() - before


def stepping(env: Any, steps: int) -> Callable[[int], None]:
    rng = np.random.default_rng(0)
    env.reset(seed=0)

    def work(_: int) -> None:
        for _ in range(steps):
            env.step(rng.integers(2, size=env.action_space.shape))

    return work


@needs_proc
@pytest.mark.parametrize("steps", [30_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_environment_steps_take_no_memory(steps):
    env = UnmaskVectorEnv(
        250, autoreset_mode="SameStep", backend=Forgetful(), task=ToyTask(num_problems=None),
        observe=("entropy", "tokens"), temperature=0.5, alpha=(0.5, 2.0),
    )  # fmt: skip
    assert growth(stepping(env, steps // 250 // 20), 20) < 6


@needs_proc
@pytest.mark.slow
def test_environment_steps_of_the_embedded_dllm_take_no_memory():
    env = gym.make_vec(dllm_gym.ENV_ID, num_envs=64, autoreset_mode="SameStep", split="train")
    assert growth(stepping(env, 20), 15) < 40  # the allocator's, for shapes met late


@needs_proc
@pytest.mark.parametrize("count", [300, pytest.param(5000, marks=pytest.mark.slow)])
def test_environments_that_are_closed_are_gone(count, toys):
    alive: list[Any] = []

    def work(_: int) -> None:
        for at in range(count // 10):
            batched = at % 2
            kwargs: dict[str, Any] = {"task": "toy", "backend": "toy"}
            env: Any = (
                gym.make_vec(dllm_gym.ENV_ID, num_envs=3, **kwargs)
                if batched
                else gym.make(dllm_gym.ENV_ID, **kwargs)
            )
            env.reset(seed=at)
            alive.append(weakref.ref(env.unwrapped.engine))
            env.close()

    assert growth(work, 10) < 4
    assert sum(reference() is not None for reference in alive) <= 1  # the last one's name


# Several in one process -------------------------------------------------------------------------------------


def walk(env: Any, steps: int, seed: int) -> list[Any]:
    """All that an environment shows in some steps of a fixed agent."""
    agent = dllm_gym.make_strategy("confidence", k=3)
    observation, info = env.reset(seed=seed)
    seen = [observation, info["problem"]]
    for _ in range(steps):
        observation, reward, *_ = env.step(agent.act(observation))
        seen += [observation, reward]
    return seen


def same(one: list[Any], other: list[Any]) -> bool:
    return all(
        np.array_equal(a[k], b[k]) for a, b in zip(one[::2], other[::2], strict=True) for k in a
    ) and all(np.array_equal(a, b) for a, b in zip(one[1::2], other[1::2], strict=True))


KINDS: dict[str, dict[str, Any]] = {
    "llada": {"backend": "tiny-arithmetic"},
    "dream": {"backend": "tiny-arithmetic-dream", "block_length": 8},
    "sudoku": {"task": "sudoku", "backend_kwargs": {"dtype": "bfloat16"}},
}


def make(kind: str) -> UnmaskVectorEnv:
    return UnmaskVectorEnv(3, autoreset_mode="SameStep", **KINDS[kind])


@pytest.fixture(scope="module")
def alone() -> dict[str, list[Any]]:
    return {kind: walk(make(kind), 8, seed=5) for kind in KINDS}


def test_environments_with_different_dllms_take_turns(alone):
    agent = dllm_gym.make_strategy("confidence", k=3)
    envs = {kind: make(kind) for kind in KINDS}
    seen: dict[str, list[Any]] = {}
    last = {}
    for kind, env in envs.items():
        last[kind], info = env.reset(seed=5)
        seen[kind] = [last[kind], info["problem"]]
    for _ in range(8):
        for kind, env in envs.items():
            last[kind], reward, *_ = env.step(agent.act(last[kind]))
            seen[kind] += [last[kind], reward]
    assert all(same(seen[kind], alone[kind]) for kind in KINDS)


def test_threads_do_not_feel_each_other(alone):
    """Three environments with dLLMs of their own and three that share them, all at once."""
    kinds = [*KINDS, *KINDS]
    seen: dict[int, list[Any]] = {}
    start = threading.Barrier(len(kinds))

    def work(at: int) -> None:
        torch.set_num_threads(1)
        env = make(kinds[at])
        start.wait()
        seen[at] = walk(env, 8, seed=5)

    threads = [threading.Thread(target=work, args=(at,)) for at in range(len(kinds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(seen[at], alone[kind]) for at, kind in enumerate(kinds))


def test_threads_that_ask_for_the_same_dllm_get_one(monkeypatch):
    made: list[Any] = []
    start = threading.Barrier(4)

    def factory() -> ToyBackend:
        made.append(ToyBackend())
        threading.Event().wait(0.05)  # loading takes time
        return made[-1]

    import dllm_gym.backends

    monkeypatch.setattr(dllm_gym.backends, "_factories", dict(dllm_gym.backends._factories))
    register_backend("one-for-all", factory)
    got: list[Any] = []

    def ask() -> None:
        start.wait()
        got.append(load_backend("one-for-all"))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert all(one is made[0] for one in got)


def test_a_dllm_can_be_sent_to_another_process(alone):
    backend = pickle.loads(pickle.dumps(load_backend("tiny-arithmetic")))
    env = UnmaskVectorEnv(3, autoreset_mode="SameStep", backend=backend)
    assert same(walk(env, 8, seed=5), alone["llada"])


# Forks ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize("loaded", [False, True])
def test_workers_forked_from_a_process_with_threads_do_not_hang(loaded):
    """torch's threads do not come along, and without care the first forward would wait for them for ever."""
    code = f"""
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, about forks
import gymnasium as gym, numpy as np, torch
from gymnasium.vector import AsyncVectorEnv
import dllm_gym
torch.set_num_threads(2)
(torch.randn(2000, 2000) @ torch.randn(2000, 2000)).sum()  # now there are threads
if {loaded}:
    env = gym.make(dllm_gym.ENV_ID)
    expected = env.reset(seed=4)[0]["confidence"]
envs = AsyncVectorEnv([lambda: gym.make(dllm_gym.ENV_ID)] * 2, context="fork")
try:
    envs.reset_async(seed=[3, 4])
    confidence = envs.reset_wait(timeout=60)[0]["confidence"]
finally:
    envs.close(terminate=True)
if {loaded}:
    assert np.abs(confidence[1] - expected).max() < 1e-5
print("alive")
"""
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.stdout == "alive\n", done.stderr


def test_a_fork_gives_what_its_parent_gives(alone):
    """The weights are shared with the parent, not loaded again."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    shared = Engine(1, backend="tiny-arithmetic").backend

    def work() -> None:
        env = make("llada")
        sender.send((walk(env, 8, seed=5), env.engine.backend is shared))

    process = context.Process(target=work)
    process.start()
    assert receiver.poll(60)
    seen, is_shared = receiver.recv()
    process.join()
    assert is_shared
    assert same(seen, alone["llada"])


@pytest.mark.slow
def test_spawned_workers_give_what_single_environments_give():
    make = partial(gym.make, "dllm_gym:DLLMUnmask-v0")  # which imports dllm_gym where it is not yet
    envs = AsyncVectorEnv([make, make], context="spawn")
    try:
        together, _ = envs.reset(seed=[3, 4])
    finally:
        envs.close()
    for row, seed in enumerate((3, 4)):
        single, _ = make().reset(seed=seed)
        assert all(np.array_equal(together[key][row], single[key]) for key in single)


# Going on in the middle of episodes ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_an_environment_goes_on_from_its_state(mode, temperature):
    def fresh() -> UnmaskVectorEnv:
        return UnmaskVectorEnv(
            5, autoreset_mode=mode, backend=ToyBackend(), task=ToyTask(), temperature=temperature,
            observe=("margin", "alpha"), alpha=(0.5, 2.0), block_length=3,
        )  # fmt: skip

    rng = np.random.default_rng(0)
    actions = rng.integers(2, size=(40, 5, ToyTask.completion_length))
    env = fresh()
    env.reset(seed=7)
    for action in actions[:13]:
        last, *_ = env.step(action)
    state: Any = env.state()
    other = fresh()
    restored = other.restore(state)
    assert same([restored], [last])
    for action in actions[13:]:
        one, other_one = env.step(action), other.step(action)
        assert same([one[0], one[1]], [other_one[0], other_one[1]])
        assert str(one[4]) == str(other_one[4])


def test_what_a_state_holds_does_not_change_with_the_environment():
    env = UnmaskEnv(ToyBackend(), task=ToyTask())
    env.reset(seed=0)
    state: Any = env.state()
    before = repr(state)
    env.step(np.ones(ToyTask.completion_length))
    env.reset(seed=1)
    assert repr(state) == before


# Same seed, same numbers ------------------------------------------------------------------------------------


def episodes_of(mode: str, seeds: list[int], count: int, temperature: float) -> list[list[Any]]:
    """The first ``count`` episodes of every row: problem, text, reward, steps."""
    env = UnmaskVectorEnv(
        len(seeds), autoreset_mode=mode, backend=ToyBackend(), task=ToyTask(), temperature=temperature,
        alpha=(0.5, 2.0), block_length=3,
    )  # fmt: skip
    agent = dllm_gym.make_strategy("confidence", k=2)
    observation, _ = env.reset(seed=seeds)
    found: list[list[Any]] = [[] for _ in seeds]
    while min(map(len, found)) < count:
        observation, rewards, ended, _, infos = env.step(agent.act(observation))
        told = infos.get("final_info", infos)
        for row in np.flatnonzero(ended):
            values = [told[key][row] for key in ("problem", "completion", "nfe")]
            found[row].append([*values, float(rewards[row])])
        if mode == "Disabled" and ended.any():
            observation, _ = env.reset(options={"reset_mask": ended})
    return [row[:count] for row in found]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_neither_the_autoreset_mode_nor_the_batch_size_changes_an_episode(temperature):
    seeds = [3, 14, 15, 92, 65]
    expected = episodes_of("SameStep", seeds, 6, temperature)
    assert len({str(row) for row in expected}) == len(seeds)
    for mode in ("SameStep", "NextStep", "Disabled"):
        assert episodes_of(mode, seeds, 6, temperature) == expected
        assert episodes_of(mode, seeds[1:3], 6, temperature) == expected[1:3]
        assert episodes_of(mode, seeds[4:], 6, temperature) == expected[4:]
