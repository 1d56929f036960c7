"""Writes how agents decode into a Minari dataset."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from dllm_gym.envs.checks import as_bits
from dllm_gym.envs.engine import Engine
from dllm_gym.envs.observations import ALWAYS_OBSERVED, observation_keys
from dllm_gym.envs.rows import BoolArray, IntArray
from dllm_gym.evaluation.agents import Observation, as_agent
from dllm_gym.evaluation.decode import decode
from dllm_gym.evaluation.home import at_home, at_play
from dllm_gym.offline.home import folder_of
from dllm_gym.registration import ENV_ID

MIXED = ("random:k=2", "confidence:k=2", "fast-dllm:threshold=0.9", "fast-dllm:threshold=0.6")
"""Rules that are slow and right, fast and wrong, and in between: what a dataset is to show."""


def mixed_agents(trained: str | None) -> list[str]:
    """``MIXED`` and a trained agent, such as ``member.trained``, where there is one."""
    return [*MIXED] if trained is None else [*MIXED, trained]


def record_dataset(
    id: str,
    agents: Sequence[Any],
    episodes: int = 200,
    split: str = "train",
    *,
    seed: int = 0,
    batch_size: int = 64,
    on_start: Callable[[int], None] | None = None,
    on_episode: Callable[[Any], None] | None = None,
    **env_kwargs: Any,
) -> Any:
    """Decodes the first ``episodes`` problems of a split with every agent, into a new Minari dataset.

    An episode has what the environment shows before every step and after the last one, the agent's bits and
    the rewards. Its ``options`` are those with which ``env.reset`` starts the same episode, and its metadata
    have the ``score``, the ``completion`` and the ``agent``'s label. ``dataset.recover_environment()`` makes
    the environment.

    Args:
        id: Of the new dataset, such as ``dllm-gym/sudoku-mixed-v0``.
        agents: Whatever ``as_agent`` takes, at least one.
        episodes: Number of problems; fewer if the task has fewer.
        split: ``train``, ``validation`` or ``test``.
        seed: Seeds the agents' draws and the token noise.
        batch_size: Rows decoded at once.
        on_start: Called with the number of episodes that will be decoded.
        on_episode: Called with every finished episode.
        **env_kwargs: Arguments of ``UnmaskEnv``, as for ``evaluate``; ``observe`` names what is recorded
            besides the observations that are always there.

    Returns:
        The ``minari.MinariDataset``.

    Raises:
        FileExistsError: If there is such a dataset.
        ImportError: Without Minari.
        ValueError: For arguments out of range, and a task or dLLM that is no name: a dataset says where it
            is from.
    """
    folder = folder_of(id)
    if folder.parent.exists():
        raise FileExistsError(f"there is a dataset {id} in {folder.parent}; give another version")
    for name, value in (("episodes", episodes), ("batch_size", batch_size), ("agents", len(agents))):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    team = [as_agent(agent) for agent in agents]
    env_kwargs = at_play(team, at_home(team, env_kwargs))
    for name in ("task", "backend", "reward"):
        if not isinstance(env_kwargs.get(name), str | None):
            raise ValueError(f"a dataset names its {name}: give one by its name, got {env_kwargs[name]!r}")
    asked = observation_keys(env_kwargs.pop("observe", ()))
    read = (key for agent in team for key in getattr(agent, "requires", ()))
    engine = Engine(min(batch_size, episodes), split=split, observe=(*asked, *read), **env_kwargs)
    problems = range(min(episodes, engine.task.num_problems or episodes))
    if on_start is not None:
        on_start(len(team) * len(problems))
    written = ("written",) if engine.moves.can_take_back else ()
    keys = tuple(dict.fromkeys((*ALWAYS_OBSERVED, *asked, *written)))
    buffers: list[Any] = []
    metadata: list[dict[str, Any]] = []
    for agent in team:
        if hasattr(agent, "prepare"):
            agent.prepare(engine, lambda other: decode(other, engine, problems, seed))
        watched = _Watched(agent, engine, keys, len(problems))
        label = str(getattr(agent, "label", type(agent).__name__))
        for episode in decode(watched, engine, problems, seed, watched.after_step):
            buffers.append(watched.buffer(episode.position, episode.reward))
            text = episode.info["completion"].replace("\0", "\ufffd")  # HDF5 has no text with zeros
            metadata.append({"score": episode.info["score"], "completion": text, "agent": label})
            if on_episode is not None:
                on_episode(episode)
    return _write(id, engine, asked, keys, buffers, metadata)


class _Watched:
    """An agent, and what it sees and does in E episodes."""

    def __init__(self, agent: Any, engine: Engine, keys: Sequence[str], episodes: int) -> None:
        self._agent, self._engine, self._keys = agent, engine, keys
        self._seen: list[list[Observation]] = [[] for _ in range(episodes)]
        self._done: list[list[BoolArray]] = [[] for _ in range(episodes)]
        self._options: list[dict[str, Any]] = [{} for _ in range(episodes)]

    def __getattr__(self, name: str) -> Any:  # seeds, what it is called, where it was trained
        return getattr(self._agent, name)

    def act(self, observation: Observation) -> BoolArray:
        """What the agent does, ``(N, L)``."""
        shape = self._engine.num_rows, self._engine.length
        self._observation, self._actions = observation, as_bits(self._agent.act(observation), shape)
        return self._actions

    def after_step(self, rows: IntArray, episodes: IntArray) -> None:
        """Notes a step of some rows, and of those that end what they look like then."""
        engine = self._engine
        for row, episode in zip(rows.tolist(), episodes.tolist(), strict=True):
            self._seen[episode].append({key: self._observation[key][row] for key in self._keys})
            self._done[episode].append(self._actions[row])
        ended = engine.canvas.finished()[rows]
        last = engine.observation() if ended.any() else {}
        for row, episode in zip(rows[ended].tolist(), episodes[ended].tolist(), strict=True):
            self._seen[episode].append({key: last[key][row] for key in self._keys})
            self._options[episode] = {
                "problem": int(engine.indices[row]),
                "alpha": float(engine.alphas[row]),
                "target_steps": float(engine.targets[row]),
                "block_length": int(engine.canvas.block_lengths[row]),
            }

    def buffer(self, episode: int, reward: float) -> Any:
        """A finished episode as Minari has it."""
        from minari.data_collector import EpisodeBuffer

        seen, done = self._seen[episode], self._done[episode]
        self._seen[episode], self._done[episode] = [], []
        return EpisodeBuffer(
            options=self._options[episode],
            observations={key: np.stack([one[key] for one in seen]) for key in self._keys},  # (T + 1, ...)
            actions=np.stack(done).astype(np.int8),  # (T, L)
            rewards=np.array([0.0] * (len(done) - 1) + [reward]),
            terminations=np.arange(1, len(done) + 1) == len(done),
            truncations=np.zeros(len(done), dtype=bool),
        )


def _write(
    id: str,
    engine: Engine,
    observe: Sequence[str],
    keys: Sequence[str],
    buffers: list[Any],
    metadata: list[dict[str, Any]],
) -> Any:
    import minari

    spec = copy.deepcopy(gym.spec(ENV_ID))
    spec.kwargs = {**engine.description(), "task": engine.task_name, "observe": list(observe)}
    labels = list(dict.fromkeys(one["agent"] for one in metadata))
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # nothing is said of author and address: add them yourself
        dataset = minari.create_dataset_from_buffers(
            id,
            buffers,
            env=spec,
            observation_space=spaces.Dict({key: engine.observation_space[key] for key in keys}),
            action_space=engine.action_space,
            algorithm_name=", ".join(labels),
            description=f"{engine.task_name} decoded with {engine.backend_name} by {len(labels)} agents",
            data_format="hdf5",
        )
    dataset.storage.update_episode_metadata(metadata)
    return dataset
