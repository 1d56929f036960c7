"""Runs any agent over a task's problems: accuracy against steps, with confidence intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dllm_gym.envs.engine import Engine
from dllm_gym.evaluation.agents import Agent, as_agent
from dllm_gym.evaluation.analysis import Analysis, Profile, profile
from dllm_gym.evaluation.decode import Episode, decode
from dllm_gym.evaluation.kept import episodes_found, kept_file, lines_of
from dllm_gym.evaluation.recording import Recorder, Recording, self_consistency
from dllm_gym.evaluation.results import Comparison, EpisodeRecords, EvaluationResult, Gap
from dllm_gym.files import remove_unfinished
from dllm_gym.strategies import make_strategy
from dllm_gym.strategies.base import Strategy

__all__ = [
    "Agent",
    "Analysis",
    "Comparison",
    "EpisodeRecords",
    "EvaluationResult",
    "Gap",
    "Profile",
    "Recording",
    "analyze",
    "as_agent",
    "compare",
    "default_sweep",
    "evaluate",
    "profile",
    "strategies_of",
]

# Every rule over its main parameter, from careful to hasty.
SWEEP: dict[str, tuple[str, tuple[float, ...]]] = {
    "random": ("k", (1, 2, 4, 8)),
    "left-to-right": ("k", (1, 2, 4, 8)),
    "confidence": ("k", (1, 2, 3, 4, 6, 8, 12)),
    "margin": ("k", (1, 2, 3, 4, 6, 8, 12)),
    "entropy": ("k", (1, 2, 3, 4, 6, 8, 12)),
    "fast-dllm": ("threshold", (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)),
    "fast-dllm-factor": ("factor", (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)),
    "eb-sampler": ("gamma", (0.001, 0.01, 0.05, 0.1, 0.3, 1.0, 2.0)),
}

# A few of them, for where there is no time for more.
SHORT_SWEEP: dict[str, tuple[str, tuple[float, ...]]] = {
    "confidence": ("k", (1, 2, 4, 8)),
    "fast-dllm": ("threshold", (0.5, 0.7, 0.9, 0.99)),
}


def default_sweep() -> list[Strategy]:
    """Every rule-based strategy at several values of its main parameter."""
    return strategies_of(SWEEP)


def strategies_of(sweep: Mapping[str, tuple[str, Sequence[float]]]) -> list[Strategy]:
    """The strategies of a table that maps a rule's name to a parameter and its values."""
    return [
        make_strategy(name, **{parameter: value})
        for name, (parameter, values) in sweep.items()
        for value in values
    ]


def evaluate(
    agent: Any,
    episodes: int = 1000,
    split: str = "test",
    *,
    seed: int = 0,
    batch_size: int = 64,
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
            is observed automatically.

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
    observe = env_kwargs.pop("observe", ())
    observe = (observe,) if isinstance(observe, str) else tuple(observe)
    observe += tuple(getattr(resolved, "requires", ()))
    engine = Engine(min(batch_size, episodes), split=split, observe=observe, **env_kwargs)
    episodes = min(episodes, engine.task.num_problems or episodes)
    lines = None if output is None else lines_of(output, engine, resolved, seed)
    finished: dict[int, Mapping[str, Any]] = {}
    if lines is not None:
        finished = episodes_found(lines, engine.metric_names)
    missing = [index for index in range(episodes) if index not in finished]
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
    records = _records([finished[index] for index in range(episodes)], engine)
    recording = None
    if recorder is not None:
        recording = recorder.recording(label, records.nfe, records.score, records.problem)
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


def compare(
    agents: Iterable[Any],
    episodes: int = 1000,
    split: str = "test",
    *,
    strategies: Sequence[Strategy] | None = None,
    on_result: Callable[[EvaluationResult], None] | None = None,
    keep: str | Path | None = None,
    **kwargs: Any,
) -> Comparison:
    """Evaluates agents and strategies on the same problems.

    Args:
        agents: Whatever ``as_agent`` takes, any number.
        episodes: As in ``evaluate``, like the arguments that follow.
        split: See there.
        strategies: Rule-based strategies to compare with; ``None`` takes ``default_sweep()``.
        on_result: Called with every result as soon as it is there.
        keep: A directory that gets every episode as soon as it is finished, and every result. What is there
            of the same agent under the same arguments is taken instead of evaluating again: an interrupted
            comparison goes on. A dLLM is known by its name or path only. Agents without ``fingerprint`` are
            always evaluated.
        **kwargs: Further arguments of ``evaluate``.

    Returns:
        All results, the gaps between learned agents and the strategies' envelope, table and plot.

    Raises:
        ValueError: If results are to be kept with a recording, or under arguments that are more than plain
            values; and what ``evaluate`` raises.
    """
    rules = default_sweep() if strategies is None else list(strategies)
    everyone = [*rules, *(as_agent(agent) for agent in agents)]
    results = []
    if keep is not None:
        remove_unfinished(keep)
    for agent in everyone:
        file = None if keep is None else kept_file(Path(keep), agent, episodes, split, kwargs)
        unfinished = None if file is None else file.with_suffix(".jsonl")
        if file is not None and file.is_file():
            result = EvaluationResult.load(file)
        else:
            result = evaluate(agent, episodes, split, output=unfinished, **kwargs)
            if file is not None:
                result.save(file)
        if unfinished is not None:  # a kill may have left it beside the result
            unfinished.unlink(missing_ok=True)
        results.append(result)
        if on_result is not None:
            on_result(result)
    return Comparison(results, [not isinstance(agent, Strategy) for agent in everyone])


def analyze(
    agents: Iterable[Any],
    episodes: int = 200,
    split: str = "test",
    *,
    text_only: bool = False,
    on_result: Callable[[Profile], None] | None = None,
    **kwargs: Any,
) -> Analysis:
    """Shows how agents decode: in which order, how fast, how sure, and whether being sure means being right.

    Args:
        agents: Whatever ``as_agent`` takes, and episodes recorded before (``Recording``), in any number.
        episodes: As in ``evaluate``, like the arguments that follow.
        split: See there.
        text_only: Leave out the positions from the first end token on, which otherwise are part of the order.
        on_result: Called with every agent's profile as soon as it is there.
        **kwargs: Further arguments of ``evaluate``.

    Returns:
        The recordings, the numbers, and the plot.

    Raises:
        ValueError: For no agents, and what ``evaluate`` raises.
    """
    recordings, profiles = [], []
    for agent in agents:
        recording = agent
        if not isinstance(agent, Recording):
            recording = evaluate(agent, episodes, split, record=True, **kwargs).recording
        recordings.append(recording)
        profiles.append(profile(recording.text_only() if text_only else recording))
        if on_result is not None:
            on_result(profiles[-1])
    if not profiles:
        raise ValueError("nothing to analyze: give at least one agent or recording")
    return Analysis(recordings, profiles)


def _records(episodes: Sequence[Mapping[str, Any]], engine: Engine) -> EpisodeRecords:
    def column(key: str) -> np.ndarray:
        return np.array([float(episode[key]) for episode in episodes])

    return EpisodeRecords(
        problem=np.array([episode["problem"] for episode in episodes], dtype=np.int64),
        score=column("score"),
        success=column("is_success"),
        nfe=column("nfe"),
        reward=column("reward"),
        metrics={name: column(name) for name in engine.metric_names},
        completion=[episode["completion"] for episode in episodes],
    )
