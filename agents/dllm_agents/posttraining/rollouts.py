"""Episodes to learn from: whole groups, decoded by the engine with the weights as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dllm_agents.sb3.groups import group_advantages
from dllm_gym.envs.canvas import left_padded
from dllm_gym.envs.engine import Engine
from dllm_gym.evaluation.agents import Agent
from dllm_gym.evaluation.decode import Episode, decode
from dllm_gym.evaluation.recording import Recorder
from dllm_gym.tasks.base import ENDLESS


@dataclass(frozen=True, eq=False)
class Rollouts:
    """N episodes in groups of the same problem: what was written, in which order, and what it earned.

    Attributes:
        sequences: ``(N, P + L)`` int64, left-padded prompts followed by completions.
        attention_mask: ``(N, P + L)`` int64, 0 at padding.
        reveal_step: ``(N, L)`` int64, the step that revealed each position: 1 is the first, 0 means never.
        entropy: ``(N, L)`` float32, the dLLM's entropy at the position when it was revealed, in nats.
        is_end: ``(N, L)`` bool, where the token is one that ends a completion.
        rewards: ``(N,)`` float64.
        scores: ``(N,)`` float64, the task's.
        paid_for: ``(N,)`` float64, what the rewards are paid for: the score, or the ``reward_metric``.
        steps: ``(N,)`` int64, forwards taken.
        group_size: Episodes per group; those of a group stand together.
    """

    sequences: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    reveal_step: NDArray[np.int64]
    entropy: NDArray[np.float32]
    is_end: NDArray[np.bool_]
    rewards: NDArray[np.float64]
    scores: NDArray[np.float64]
    paid_for: NDArray[np.float64]
    steps: NDArray[np.int64]
    group_size: int

    @property
    def length(self) -> int:
        """L, positions per completion."""
        return int(self.reveal_step.shape[1])

    @property
    def completions(self) -> NDArray[np.int64]:
        """``(N, L)``."""
        return self.sequences[:, -self.length :]

    @property
    def text(self) -> NDArray[np.bool_]:
        """``(N, L)``: revealed, and not behind the first end token, which itself belongs to the text."""
        ends_before: NDArray[np.int64] = np.cumsum(self.is_end, axis=1) - self.is_end
        text: NDArray[np.bool_] = (self.reveal_step > 0) & (ends_before == 0)
        return text

    def advantages(self, baseline: str) -> NDArray[np.float64]:
        """``(N,)``, see ``group_advantages``; no method scales them."""
        groups = self.rewards.reshape(-1, self.group_size)
        return np.concatenate([group_advantages(group, baseline, "none") for group in groups])

    def unpriced(self) -> Rollouts:
        """The same episodes, rewarded for what was written however many steps it took."""
        return replace(self, rewards=self.paid_for)

    @property
    def flat_groups(self) -> float:
        """The share of groups whose episodes all earned the same: nothing is learned from them."""
        return float((np.ptp(self.rewards.reshape(-1, self.group_size), axis=1) < 1e-9).mean())


def draw_problems(engine: Engine, groups: int, rng: np.random.Generator) -> list[int]:
    """Problems of the engine's task, one per group."""
    drawn: list[int] = rng.integers(engine.task.num_problems or ENDLESS, size=groups).tolist()
    return drawn


def collect(
    agent: Agent,
    engine: Engine,
    problems: Sequence[int],
    group_size: int,
    seed: int,
    on_episode: Callable[[int, Episode], None] | None = None,
) -> Rollouts:
    """Decodes every problem ``group_size`` times.

    Where alpha, target_steps or block_length are drawn from a range, all episodes of a problem have the same.

    Args:
        agent: Chooses the positions.
        engine: Observes ``entropy``; its rows are started anew.
        problems: One per group.
        group_size: G.
        seed: Of the agent's draws, the token noise and what is drawn from ranges.
        on_episode: Called with the row and every episode as soon as it is finished; its ``position`` divided
            by G is its group.
    """
    every = [problem for problem in problems for _ in range(group_size)]
    watcher = _Watcher(engine, len(every))
    rewards, scores, paid_for = np.zeros((3, len(every)))
    engine.draw_knobs = (  # type: ignore[method-assign]  # it is there to be replaced
        lambda row: np.random.default_rng([seed, engine.indices[row], 1]).random(3)
    )
    for episode in decode(agent, engine, every, seed, watcher.after_step):
        at, info = episode.position, episode.info
        rewards[at], scores[at] = episode.reward, info["score"]
        paid_for[at] = info[engine.reward_metric or "score"]
        if on_episode is not None:
            on_episode(int(watcher.row[at]), episode)
    recording = watcher.recording("", scores, np.array(every))
    assert recording.tokens is not None
    prompts = [engine.prompt(problem) for problem in every]
    sequences, attention_mask = left_padded(prompts, recording.tokens, engine.backend.pad_token_id)
    return Rollouts(
        sequences=sequences,
        attention_mask=attention_mask,
        reveal_step=recording.reveal_step,
        entropy=watcher.entropy,
        is_end=np.isin(recording.tokens, list(engine.end_token_ids)),
        rewards=rewards,
        scores=scores,
        paid_for=paid_for,
        steps=recording.steps,
        group_size=group_size,
    )


class _Watcher(Recorder):
    """A recorder that also keeps the dLLM's entropy at every position when it was revealed, and the row."""

    def __init__(self, engine: Engine, episodes: int) -> None:
        super().__init__(engine, episodes)
        self.entropy = np.zeros((episodes, engine.length), dtype=np.float32)
        self.row = np.zeros(episodes, dtype=np.int64)

    def after_step(self, rows: NDArray[np.int64], episodes: NDArray[np.int64]) -> None:
        super().after_step(rows, episodes)
        self.row[episodes] = rows
        new = self._engine.canvas.just_revealed[rows]
        self.entropy[episodes] = np.where(
            new, self._engine.statistic("entropy")[rows], self.entropy[episodes]
        )
