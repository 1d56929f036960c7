"""How close the environment comes to its limit, the bare forward of the dLLM; measured side by side.

An environment step needs one forward for every row. So nothing can be faster than the model called directly
on the same canvases, and ``efficiency`` is what is left of that speed once problems are drawn, tokens picked,
actions applied, completions scored and observations made. A backend that took the fast forward
(``dllm_gym.backends.compiled``) is measured against that one, too, for it can be faster than the plain model.
"""

from __future__ import annotations

import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from dllm_gym.backends import Backend, load_backend
from dllm_gym.backends.transformers_backend import TransformersBackend
from dllm_gym.envs.blocks import BlockLength
from dllm_gym.envs.engine import Engine
from dllm_gym.envs.unmask import UnmaskEnv
from dllm_gym.envs.vector import UnmaskVectorEnv
from dllm_gym.strategies import make_strategy

EPISODE_STEPS = 8  # as many as a good policy takes, so that restarts weigh what they weigh in practice


class Clock:
    """Adds up the time spent inside functions, with what they leave to the GPU."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` with its time counted."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = now()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += now() - started

        return timed


def now() -> float:
    """Seconds on a clock, once the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def machine() -> dict[str, Any]:
    """What figures are taken on."""
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        **gpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    described = Path("/proc/cpuinfo")  # platform.processor() knows no more than the architecture on Linux
    names = re.findall(r"^model name\s*: (.+)$", described.read_text() if described.exists() else "", re.M)
    return names[0] if names else platform.processor() or platform.machine()


@dataclass(frozen=True)
class Limit:
    """One measurement: medians over rounds that take turns.

    Attributes:
        batch_size: Rows; 1 is a single environment from ``gym.make``.
        completion_length: L.
        input_length: Columns of the forward, prompt and completion.
        dtype: Of the dLLM's weights.
        env_steps_per_second: Rows times steps, restarts included, the agent's time not.
        forward_rows_per_second: Rows of the bare forward: the transformers model with logits at the L
            positions, nothing done with them.
        efficiency: Their ratio; the median of the rounds' ratios.
        fastest_rows_per_second: Rows of the fastest bare forward there is: the compiled one where the backend
            took it, else the same as ``forward_rows_per_second``.
        efficiency_of_fastest: Steps per second over those.
        model: Share of the environment's time inside the model.
        picking: Share in which tokens and confidences are picked out of the logits.
        episodes: Share in which problems are drawn and encoded and completions are decoded and scored.
        rest: Share of everything else: the canvas, observations and infos.
    """

    batch_size: int
    completion_length: int
    input_length: int
    dtype: str
    env_steps_per_second: float
    forward_rows_per_second: float
    efficiency: float
    fastest_rows_per_second: float
    efficiency_of_fastest: float
    model: float
    picking: float
    episodes: float
    rest: float

    def to_json(self) -> dict[str, Any]:
        """As a dictionary, rounded."""
        return {
            name: round(value, 1 if name.endswith("per_second") else 4) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


def measure_limit(
    backend: str | Backend,
    *,
    batch_size: int = 64,
    completion_length: int | None = None,
    block_length: BlockLength = None,
    rounds: int = 5,
    seconds: float = 1.0,
    task: str = "arithmetic",
    task_kwargs: Mapping[str, Any] | None = None,
    backend_kwargs: Mapping[str, Any] | None = None,
) -> Limit:
    """Environment steps per second beside the bare forward's rows per second.

    Args:
        backend: A name, directory or hub id, or a loaded transformers backend.
        batch_size: Number of rows.
        completion_length: L; ``None`` takes the task's.
        block_length: As in the environment.
        rounds: How often it is measured; the medians count.
        seconds: How long each of the two runs in a round, about, in turns of one episode of every row.
        task: Where prompts come from.
        task_kwargs: The task's parameters.
        backend_kwargs: For loading the backend.

    Raises:
        ValueError: If the backend is no transformers model, or for sizes below 1.
    """
    if batch_size < 1 or rounds < 1:
        raise ValueError(f"batch_size and rounds must be at least 1, got {batch_size} and {rounds}")
    loaded: Any = load_backend(backend, **(backend_kwargs or {})) if isinstance(backend, str) else backend
    if not isinstance(loaded, TransformersBackend):
        raise ValueError(f"only transformers models have a bare forward to compare with, got {backend!r}")
    settings: dict[str, Any] = {"completion_length": completion_length, "block_length": block_length}
    settings |= {"task": task, "task_kwargs": task_kwargs, "backend": loaded}
    play = (_play_one if batch_size == 1 else _play_batch)(batch_size, settings)
    clocks = {name: Clock() for name in ("model", "predict", "episodes")}
    undo = _put_clocks(clocks, play.engine)
    try:
        play.steps(EPISODE_STEPS)  # every row has been through an episode, and everything is warm
        steps = EPISODE_STEPS * max(1, round(seconds / max(play.steps(EPISODE_STEPS), 1e-9)))
        turns = [_turn(play, steps, clocks) for _ in range(rounds)]
    finally:
        undo()
    medians = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
    return Limit(
        batch_size,
        play.engine.length,
        play.engine.canvas.model_input(np.arange(batch_size))[0].shape[1],
        str(loaded.model.dtype).removeprefix("torch."),
        **medians,
    )


@dataclass
class _Play:
    """An environment being stepped: ``steps(n)`` takes n steps of all rows and returns their seconds."""

    engine: Engine
    steps: Callable[[int], float]


def _agent(engine: Engine) -> Any:
    return make_strategy("confidence", k=max(engine.length // EPISODE_STEPS, 1))


def _play_one(_: int, settings: dict[str, Any]) -> _Play:
    env: Any = gym.make("DLLMUnmask-v0", **settings)
    unwrapped: UnmaskEnv = env.unwrapped
    agent = _agent(unwrapped.engine)
    observation = env.reset(seed=0)[0]

    def steps(number: int) -> float:
        nonlocal observation
        total = 0.0
        for _ in range(number):
            action = agent.act(observation)
            started = now()
            observation, _, terminated, _, _ = env.step(action)
            if terminated:
                observation, _ = env.reset()
            total += now() - started
        return total

    return _Play(unwrapped.engine, steps)


def _play_batch(batch_size: int, settings: dict[str, Any]) -> _Play:
    env = UnmaskVectorEnv(batch_size, autoreset_mode=AutoresetMode.SAME_STEP, **settings)
    agent = _agent(env.engine)
    observation = env.reset(seed=0)[0]

    def steps(number: int) -> float:
        nonlocal observation
        observation, seconds = timed_steps(env, agent, observation, number)
        return seconds

    return _Play(env.engine, steps)


def timed_steps(env: Any, agent: Any, observation: Any, number: int) -> tuple[Any, float]:
    """Steps all rows of a vector environment; the last observation, and seconds without the agent's."""
    total = 0.0
    for _ in range(number):
        actions = agent.act(observation)
        started = now()
        observation, *_ = env.step(actions)
        total += now() - started
    return observation, total


def _put_clocks(clocks: Mapping[str, Clock], engine: Any) -> Callable[[], None]:
    """Times parts of the engine; returns what takes the clocks off the model, which others may share."""
    backend = engine.backend
    modules = [backend.model.base_model, backend.model.get_output_embeddings()]
    forwards = [module.forward for module in modules]
    fast = backend.fast_forward
    for module in modules:
        module.forward = clocks["model"].around(module.forward)
    backend.fast_forward = fast and clocks["model"].around(fast)
    engine.predict = clocks["predict"].around(engine.predict)
    engine.start = clocks["episodes"].around(engine.start)
    engine.outcomes = clocks["episodes"].around(engine.outcomes)

    def undo() -> None:
        for module, forward in zip(modules, forwards, strict=True):
            module.forward = forward
        backend.fast_forward = fast

    return undo


def _turn(play: _Play, steps: int, clocks: Mapping[str, Clock]) -> dict[str, float]:
    for clock in clocks.values():
        clock.seconds = 0.0
    total = bare = fastest = 0.0
    for _ in range(steps // EPISODE_STEPS):  # in turns so short that all meet the machine in the same state
        total += play.steps(EPISODE_STEPS)
        in_steps = clocks["model"].seconds
        eager, fast = _bare_forwards(play.engine, EPISODE_STEPS)
        bare, fastest = bare + eager, fastest + fast
        clocks["model"].seconds = in_steps
    model, predict, episodes = (clocks[name].seconds / total for name in ("model", "predict", "episodes"))
    rows = play.engine.num_rows * steps
    return {
        "env_steps_per_second": rows / total,
        "forward_rows_per_second": rows / bare,
        "efficiency": bare / total,
        "fastest_rows_per_second": rows / fastest,
        "efficiency_of_fastest": fastest / total,
        "model": model,
        "picking": predict - model,
        "episodes": episodes,
        "rest": 1 - predict - episodes,
    }


@torch.inference_mode()
def _bare_forwards(engine: Any, times: int) -> tuple[float, float]:
    """Seconds for so many forwards over the current canvases: of the plain model, of the fastest there is."""
    backend: TransformersBackend = engine.backend
    arrays = engine.canvas.model_input(np.arange(engine.num_rows))
    tokens, mask = (torch.from_numpy(array).to(backend.device) for array in arrays)
    options = {"use_cache": False, "logits_to_keep": engine.length} if backend.family.rotary else {}

    def seconds(forward: Callable[..., Any], *arguments: Tensor, **keywords: Any) -> float:
        started = now()
        for _ in range(times):
            forward(*arguments, **keywords)
        return now() - started

    eager = seconds(backend.model, input_ids=tokens, attention_mask=mask, **options)
    if backend.fast_forward is None:
        return eager, eager
    length = tokens.shape[1]
    columns = torch.arange(length - engine.length, length).expand(len(tokens), -1)
    return eager, seconds(backend.fast_forward, tokens, mask, columns)


def limit_table(limits: Sequence[Limit]) -> str:
    """Measurements as Markdown."""
    lines = [
        "| rows | L | columns | dtype | bare forward, rows/s | environment, steps/s | efficiency "
        "| fastest forward, rows/s | efficiency | model | picking tokens | episodes | rest |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for limit in limits:
        shares = (limit.model, limit.picking, limit.episodes, limit.rest)
        cells = [limit.batch_size, limit.completion_length, limit.input_length, limit.dtype]
        cells += [f"{limit.forward_rows_per_second:.0f}", f"{limit.env_steps_per_second:.0f}"]
        cells += [f"**{limit.efficiency:.2f}**", f"{limit.fastest_rows_per_second:.0f}"]
        cells += [f"**{limit.efficiency_of_fastest:.2f}**", *(f"{share:.1%}" for share in shares)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)
