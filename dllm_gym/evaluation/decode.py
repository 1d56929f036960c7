"""Runs an agent over a list of problems, keeping the batch full until the problems run out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dllm_gym.envs.checks import as_bits
from dllm_gym.envs.engine import Engine
from dllm_gym.evaluation.agents import Agent
from dllm_gym.evaluation.home import warn_if_abroad


@dataclass(frozen=True)
class Episode:
    """One finished episode: its place in the list of problems, its completion, reward and final info.

    ``tokens`` ``(L,)`` int64 is the whole completion, beyond the first end token too.
    """

    position: int
    tokens: NDArray[np.int64]
    reward: float
    info: dict[str, Any]


def decode(
    agent: Agent,
    engine: Engine,
    problems: Sequence[int],
    seed: int = 0,
    on_step: Callable[[NDArray[np.int64], NDArray[np.int64]], None] | None = None,
) -> Iterator[Episode]:
    """Decodes every problem once, in as few forwards as the engine's number of rows allows.

    A row that finishes takes the next problem in the same forward; when there is none left it drops out.
    Problems with long prompts come first: prompts decoded together are then of similar length, which saves
    padding. All randomness of an episode comes from ``seed`` and its problem, so the batch size changes
    nothing.

    Args:
        agent: Chooses the positions.
        engine: Fresh or used; all its rows are started anew.
        problems: Indices into the task.
        seed: Seeds the agent's draws and the token noise.
        on_step: Called after every action, before the dLLM predicts again, with the rows ``(R,)`` that took
            a step and their places ``(R,)`` in ``problems``.

    Yields:
        Episodes in the order they finish.
    """
    warn_if_abroad(agent, engine)
    positions = np.full(engine.num_rows, -1)  # which of ``problems`` a row is at
    lengths = [len(engine.prompt(problem)) for problem in problems]
    waiting = iter(sorted(range(len(problems)), key=lambda position: -lengths[position]))

    def start(rows: np.ndarray) -> np.ndarray:
        """Gives rows their next problems; returns those that got one."""
        positions[rows] = [next(waiting, -1) for _ in rows]
        rows = rows[positions[rows] >= 0]
        seeds = [_episode_seed(seed, problems[positions[row]]) for row in rows]
        for row, own in zip(rows, seeds, strict=True):
            engine.noise_rngs[row] = np.random.default_rng([own, 1])
            engine.problem_rngs[row] = np.random.default_rng([own, 2])  # alpha and target, if drawn
        engine.start(rows, [problems[position] for position in positions[rows]])
        if len(rows) and hasattr(agent, "seed"):
            agent.seed(rows, seeds)
        if len(rows) and hasattr(agent, "reset"):
            agent.reset(rows)
        return rows

    stale = start(np.arange(engine.num_rows))
    while len(active := np.flatnonzero(positions >= 0)):
        engine.predict(stale)
        actions = as_bits(agent.act(engine.observation()), (engine.num_rows, engine.length))
        changed = active[engine.act(active, actions[active])]
        if on_step is not None:
            on_step(active, positions[active])
        finished = engine.canvas.finished()
        ended = active[finished[active]]
        stale = changed[~finished[changed]]
        if len(ended):
            results = zip(ended, engine.outcomes(ended), engine.canvas.completions(ended), strict=True)
            for row, (reward, info), tokens in results:
                yield Episode(int(positions[row]), tokens, reward, info)
            stale = np.concatenate([stale, start(ended)])


def _episode_seed(seed: int, problem: int) -> int:
    return int(np.random.SeedSequence([seed, problem]).generate_state(1)[0])
