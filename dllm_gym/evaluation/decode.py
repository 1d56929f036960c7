"""Runs an agent in the rows of an engine: over a list of problems, or over what comes in as it comes in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dllm_gym.envs.checks import as_bits
from dllm_gym.envs.engine import Engine
from dllm_gym.envs.rows import IntArray
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


class Rows:
    """Rows of an engine in which an agent decodes; each is started and stopped while the others go on.

    Which of them have an episode is the engine's ``ended``.

    Args:
        agent: Chooses the positions.
        engine: Fresh or used; what was running in it is given up.
    """

    def __init__(self, agent: Agent, engine: Engine) -> None:
        self._agent, self._engine = agent, engine
        self._changed = np.zeros(engine.num_rows, dtype=bool)  # since the dLLM last saw them
        if hasattr(agent, "attach"):
            agent.attach(engine)
        self.stop(np.arange(engine.num_rows))

    def start(self, rows: IntArray, problems: Sequence[int], seeds: Sequence[int]) -> None:
        """Starts episodes; the dLLM sees them at the next step.

        Args:
            rows: ``(R,)``, where; an episode that was running there is over.
            problems: ``(R,)``, indices into the task.
            seeds: ``(R,)``: all randomness of an episode comes from its own, see ``episode_seed``.
        """
        engine, agent = self._engine, self._agent
        for row, own in zip(rows, seeds, strict=True):
            engine.noise_rngs[row] = np.random.default_rng([own, 1])
            engine.problem_rngs[row] = np.random.default_rng([own, 2])  # alpha and target, if drawn
        engine.start(rows, problems)
        self._changed[rows] = True
        if len(rows) and hasattr(agent, "seed"):
            agent.seed(rows, seeds)
        if len(rows) and hasattr(agent, "reset"):
            agent.reset(rows)

    def stop(self, rows: IntArray) -> None:
        """No forward is spent on ``rows`` ``(R,)`` any more."""
        self._engine.ended[rows] = True
        self._changed[rows] = False

    def step(self) -> IntArray:
        """One forward of the rows that changed and one action in all that run.

        Returns:
            The rows ``(R,)`` that took a step; whoever calls ends those that are finished.
        """
        engine = self._engine
        engine.predict(np.flatnonzero(self._changed))
        actions = as_bits(self._agent.act(engine.observation()), (engine.num_rows, engine.length))
        running = np.flatnonzero(~engine.ended)
        self._changed[:] = False
        self._changed[running] = engine.act(running, actions[running])
        return running


def decode(
    agent: Agent,
    engine: Engine,
    problems: Sequence[int],
    seed: int | Sequence[int] = 0,
    on_step: Callable[[NDArray[np.int64], NDArray[np.int64]], None] | None = None,
) -> Iterator[Episode]:
    """Decodes every problem once, in as few forwards as the engine's number of rows allows.

    A row that finishes takes the next problem in the same forward; when there is none left it drops out.
    Problems with long prompts come first: prompts decoded together are then of similar length, which saves
    padding. All randomness of an episode comes from ``seed``, its problem and, if that stands in the list
    several times, which of them it is, so the batch size changes nothing.

    Args:
        agent: Chooses the positions.
        engine: Fresh or used; all its rows are started anew.
        problems: Indices into the task.
        seed: Seeds the agent's draws and the token noise; a sequence has that of each episode, as
            ``episode_seed`` makes it.
        on_step: Called after every action, before the dLLM predicts again, with the rows ``(R,)`` that took
            a step and their places ``(R,)`` in ``problems``.

    Yields:
        Episodes in the order they finish.
    """
    warn_if_abroad(agent, engine)
    rows = Rows(agent, engine)
    positions = np.full(engine.num_rows, -1)  # which of ``problems`` a row is at
    lengths = [len(engine.prompt(problem)) for problem in problems]
    waiting = iter(sorted(range(len(problems)), key=lambda position: -lengths[position]))
    seeds = seed if isinstance(seed, Sequence) else _episode_seeds(seed, problems)

    def refill(free: IntArray) -> None:
        """Gives rows their next problems, as long as there are any."""
        rows.stop(free)
        positions[free] = [next(waiting, -1) for _ in free]
        free = free[positions[free] >= 0]
        own = [problems[position] for position in positions[free]]
        rows.start(free, own, [seeds[position] for position in positions[free]])

    refill(np.arange(engine.num_rows))
    while not engine.ended.all():
        stepped = rows.step()
        if on_step is not None:
            on_step(stepped, positions[stepped])
        ended = stepped[engine.canvas.finished()[stepped]]
        if len(ended):
            results = zip(ended, engine.outcomes(ended), engine.canvas.completions(ended), strict=True)
            for row, (reward, info), tokens in results:
                yield Episode(int(positions[row]), tokens, reward, info)
            refill(ended)


def episode_seed(seed: int, problem: int, repetition: int = 0) -> int:
    """The seed of a problem's episode, of those that are decoded together with ``seed``.

    ``repetition`` is how often the problem was among them before.
    """
    words = [seed, problem, *([repetition] if repetition else [])]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def _episode_seeds(seed: int, problems: Sequence[int]) -> list[int]:
    seen: Counter[int] = Counter()
    seeds = []
    for problem in map(int, problems):
        seeds.append(episode_seed(seed, problem, seen[problem]))
        seen[problem] += 1
    return seeds
