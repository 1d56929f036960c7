"""What there is to see while agents decode one problem, side by side, in the one decode loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dllm_gym.envs.checks import as_bits
from dllm_gym.envs.engine import Engine
from dllm_gym.envs.rendering import Frame, beside_or_below, render_rgb
from dllm_gym.evaluation.agents import Observation, as_agent
from dllm_gym.evaluation.decode import Episode, decode, episode_seed
from dllm_gym.evaluation.home import at_home, at_play, warn_if_abroad

Frames = tuple[Frame, ...]  # what is to see at one time, a frame for each agent


@dataclass(frozen=True)
class Film:
    """How A agents decoded one problem.

    Attributes:
        frames: S + 1 times A frames: before the first step, after each one; who has finished stands still.
        episodes: A, how it ended.
        environment: What they were decoded in, JSON values.
    """

    frames: Sequence[Frames]
    episodes: Sequence[Episode]
    environment: Mapping[str, Any]

    def pictures(self) -> list[NDArray[np.uint8]]:
        """S + 1 images of one shape, ``(H, W, 3)``, as ``save_gif`` and ``save_mp4`` take them."""
        return [beside_or_below([render_rgb(frame) for frame in frames]) for frames in self.frames]


def film(
    agents: Sequence[Any],
    problem: int = 0,
    split: str = "test",
    *,
    seed: int = 0,
    on_frames: Callable[[Frames], None] | None = None,
    **env_kwargs: Any,
) -> Film:
    """Decodes one problem with several agents at once, a row of the batch for each, and keeps every frame.

    The episodes are those of ``evaluate`` with the same arguments.

    Args:
        agents: Whatever ``as_agent`` takes, at least one.
        problem: Index into the split.
        split: ``train``, ``validation`` or ``test``.
        seed: Seeds the agents' draws and the token noise, the same for all of them.
        on_frames: Called with the frames before the first step and after each one, as soon as the dLLM has
            predicted; the agents act when it returns.
        **env_kwargs: Arguments of ``UnmaskEnv``; the task, dLLM and block length of the first policy among
            the agents where they are not given.

    Raises:
        ValueError: For no agents, a problem outside the task, or arguments out of range.
    """
    team = [as_agent(agent) for agent in agents]
    if not team:
        raise ValueError("nobody to decode: give at least one agent")
    env_kwargs = at_play(team, at_home(team, env_kwargs))
    observe = env_kwargs.pop("observe", ())
    observe = [observe] if isinstance(observe, str) else list(observe)
    observe += [key for agent in team for key in getattr(agent, "requires", ())]
    engine = Engine(len(team), split=split, observe=tuple(dict.fromkeys(observe)), **env_kwargs)
    for agent in team:
        warn_if_abroad(agent, engine)
    labels = [str(getattr(agent, "label", type(agent).__name__)) for agent in team]
    frames: list[Frames] = []

    def look() -> None:
        before = frames[-1] if frames else [None] * len(team)
        frames.append(
            tuple(
                # a finished row stands still, and is not scored again
                old if old is not None and old.score is not None else replace(engine.frame(row), agent=label)
                for row, (old, label) in enumerate(zip(before, labels, strict=True))
            )
        )
        if on_frames is not None:
            on_frames(frames[-1])

    own = episode_seed(seed, problem)  # the same for all, so that each decodes as it would alone
    episodes = decode(_OneForEachRow(team, look), engine, [problem] * len(team), [own] * len(team))
    ended = sorted(episodes, key=lambda episode: episode.position)
    look()
    return Film(frames, ended, engine.description())


class _OneForEachRow:
    """An agent made of agents, the first of which acts in the first row, and so on."""

    def __init__(self, team: Sequence[Any], before_acting: Callable[[], None]) -> None:
        self._team, self._before_acting = team, before_acting

    def act(self, observation: Observation) -> NDArray[Any]:
        self._before_acting()
        shape = (1, observation["mask"].shape[1])
        actions = [
            as_bits(agent.act({key: value[row, None] for key, value in observation.items()}), shape)
            for row, agent in enumerate(self._team)
        ]
        return np.concatenate(actions)

    def seed(self, rows: Sequence[int], seeds: Sequence[int]) -> None:
        for row, seed in zip(rows, seeds, strict=True):
            if hasattr(self._team[row], "seed"):
                self._team[row].seed(np.zeros(1, dtype=np.int64), [seed])

    def reset(self, rows: Sequence[int]) -> None:
        for row in rows:
            if hasattr(self._team[row], "reset"):
                self._team[row].reset(np.zeros(1, dtype=np.int64))
