"""Runs any agent over a task's problems."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dllm_gym.envs.engine import Engine
from dllm_gym.evaluation.agents import as_agent
from dllm_gym.evaluation.decode import Episode, decode
from dllm_gym.evaluation.home import at_home, at_play
from dllm_gym.evaluation.kept import episodes_found, lines_of
from dllm_gym.evaluation.recording import Recorder, self_consistency
from dllm_gym.evaluation.results import EpisodeRecords, EvaluationResult, check_metric_names


def evaluate(
    agent: Any,
    episodes: int = 1000,
    split: str = "test",
    *,
    seed: int = 0,
    batch_size: int = 64,
    on_start: Callable[[int], None] | None = None,
    on_episode: Callable[[Episode], None] | None = None,
    record: bool = False,
    check_consistency: bool = False,
    output: str | Path | None = None,
    **env_kwargs: Any,
) -> EvaluationResult:
    """Decodes the first ``episodes`` problems of a split with an agent.

    Args:
        agent: Whatever ``as_agent`` takes: a strategy or its name, a saved policy's path, a
            Stable-Baselines3 model, an object with ``act``, a function.
        episodes: Number of problems; fewer if the task has fewer.
        split: ``train``, ``validation`` or ``test``.
        seed: Seeds the agent's draws and the token noise, never the problems.
        batch_size: Rows decoded at once. Changes the speed, not the result.
        on_start: Called with the number of episodes that are to be decoded, once that is known.
        on_episode: Called with every finished episode, for progress bars.
        record: Keep when every position was revealed, how sure the dLLM was, and what it wrote: the result's
            ``recording``.
        check_consistency: Record, and ask the dLLM about every token of the finished completions whether it
            would write it again (``recording.kept``); one further row of a forward per position.
        output: A file of JSON lines that gets every episode as soon as it is finished. Episodes that are
            there are not decoded again, so that an interrupted evaluation goes on, and one of fewer
            ``episodes`` can be extended. A dLLM is known by its name or path only, an agent without
            ``fingerprint`` by its ``label``.
        **env_kwargs: Arguments of ``UnmaskEnv``. What the agent reads besides the default observations
            is observed automatically. A policy that tells where it was trained has its task, dLLM and block
            length where they are not given; and an agent that takes tokens back its ``actions`` and their
            rules.

    Returns:
        Accuracy, mean steps and mean reward with their 95 % intervals.

    Raises:
        ValueError: For arguments out of range, naming what is accepted, and for an ``output`` that holds
            something else or is to go with a recording.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if output is not None and (record or check_consistency):
        raise ValueError("episodes are kept without recordings: give output or record, not both")
    resolved = as_agent(agent)
    env_kwargs = at_play([resolved], at_home([resolved], env_kwargs))
    observe = env_kwargs.pop("observe", ())
    observe = (observe,) if isinstance(observe, str) else tuple(observe)
    observe += tuple(getattr(resolved, "requires", ()))
    engine = Engine(min(batch_size, episodes), split=split, observe=observe, **env_kwargs)
    taken = {**engine.description(), **dict.fromkeys(engine.measures)}
    check_metric_names(engine.metric_names, taken, f"task {engine.task.name!r}")
    names = (*engine.metric_names, *engine.measures)
    episodes = min(episodes, engine.task.num_problems or episodes)
    lines = None if output is None else lines_of(output, engine, resolved, seed)
    finished: dict[int, Mapping[str, Any]] = {}
    if lines is not None:
        finished = episodes_found(lines, names)
    missing = [index for index in range(episodes) if index not in finished]
    if on_start is not None:
        on_start(len(missing))
    if missing and hasattr(resolved, "prepare"):
        resolved.prepare(engine, lambda other: decode(other, engine, missing, seed))
    recorder = Recorder(engine, episodes) if record or check_consistency else None
    on_step = None if recorder is None else recorder.after_step
    for episode in decode(resolved, engine, missing, seed, on_step):
        index = missing[episode.position]
        finished[index] = {"reward": episode.reward, **episode.info}
        if lines is not None:
            lines.add(index, finished[index])
        if on_episode is not None:
            on_episode(episode)
    label = str(getattr(resolved, "label", type(resolved).__name__))
    records = _records([finished[index] for index in range(episodes)], names)
    recording = None
    if recorder is not None:
        recording = recorder.recording(label, records.score, records.problem)
    if recording is not None and check_consistency:
        recording = self_consistency(recording, engine, batch_size)
    return EvaluationResult(
        agent=str(getattr(resolved, "name", type(resolved).__name__)),
        parameters=dict(getattr(resolved, "parameters", {})),
        label=label,
        environment=engine.description(),
        episodes=episodes,
        seed=seed,
        records=records,
        recording=recording,
    )


def _records(episodes: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> EpisodeRecords:
    def column(key: str) -> np.ndarray:
        return np.array([float(episode[key]) for episode in episodes])

    return EpisodeRecords(
        problem=np.array([episode["problem"] for episode in episodes], dtype=np.int64),
        score=column("score"),
        success=column("is_success"),
        nfe=column("nfe"),
        reward=column("reward"),
        metrics={name: column(name) for name in metrics},
        completion=[episode["completion"] for episode in episodes],
    )
