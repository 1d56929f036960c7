"""How much of the time goes to the dLLM: batched against single environments, and against the bare forward.

All figures of one table come from one process, taken in turns, medians of several rounds:

- ``vector``: environment steps per second of one ``UnmaskVectorEnv`` with 64 rows, SameStep;
- ``singles``: of 64 single environments stepped in turn;
- ``forward_share``: share of the vector environment's time spent inside ``Backend.predict``'s forward.

Actions are the strategy ``confidence(k=2)``, computed outside the clock.

Run: ``make bench`` or ``python benchmarks/throughput.py``; writes ``benchmarks/results/throughput.json``
and ``.md``.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

import dllm_gym
from dllm_gym.files import write_json, write_text

RESULTS = Path(__file__).parent / "results"
ROWS = 64


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


def vector_round(env: Any, agent: Any, steps: int, clocks: Sequence[Clock] = ()) -> float:
    """Seconds for ``steps`` steps of all rows; the clocks begin with the first."""
    observation, _ = env.reset()
    for clock in clocks:
        clock.seconds = 0.0
    total = 0.0
    for _ in range(steps):
        actions = agent.act(observation)
        started = now()
        observation, *_ = env.step(actions)
        total += now() - started
    return total


def singles_round(envs: list[Any], agent: Any, steps: int) -> float:
    """Seconds for ``steps`` steps of every environment, restarts included."""
    observations = [env.reset()[0] for env in envs]
    total = 0.0
    for _ in range(steps):
        for at, env in enumerate(envs):
            action = agent.act(observations[at])
            started = time.perf_counter()
            observations[at], _, terminated, _, _ = env.step(action)
            if terminated:
                observations[at], _ = env.reset()
            total += time.perf_counter() - started
    return total


def measure(dtype: str, rounds: int, steps: int) -> dict[str, Any]:
    """One table row: medians over rounds taken in turns."""
    kwargs: dict[str, Any] = {"backend_kwargs": {"dtype": dtype}}
    agent = dllm_gym.make_strategy("confidence", k=2)
    vector = gym.make_vec(dllm_gym.ENV_ID, num_envs=ROWS, autoreset_mode="SameStep", **kwargs)
    singles = [gym.make(dllm_gym.ENV_ID, **kwargs) for _ in range(ROWS)]
    backend: Any = vector.unwrapped.engine.backend
    clock = Clock()
    backend.model.model.forward = clock.around(backend.model.model.forward)
    vector_round(vector, agent, 5)
    singles_round(singles, agent, 1)
    ratios, rates, single_rates, shares = [], [], [], []
    for _ in range(rounds):
        batched = vector_round(vector, agent, steps, [clock])
        shares.append(clock.seconds / batched)
        one_by_one = singles_round(singles, agent, max(steps // 8, 2))
        rates.append(ROWS * steps / batched)
        single_rates.append(ROWS * max(steps // 8, 2) / one_by_one)
        ratios.append(rates[-1] / single_rates[-1])
    return {
        "dtype": dtype,
        "vector_steps_per_second": round(statistics.median(rates)),
        "singles_steps_per_second": round(statistics.median(single_rates)),
        "ratio": round(statistics.median(ratios), 2),
        "forward_share": round(statistics.median(shares), 3),
    }


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "processor": platform.processor() or platform.machine(),
        **gpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    arguments = parser.parse_args()
    rows = [measure(dtype, arguments.rounds, arguments.steps) for dtype in arguments.dtypes]
    write_json(RESULTS / "throughput.json", {"machine": machine(), "rows": ROWS, "results": rows})
    lines = [
        "| dtype | 64 rows, steps/s | 64 singles, steps/s | ratio | share in the dLLM forward |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['dtype']} | {r['vector_steps_per_second']} | {r['singles_steps_per_second']} | {r['ratio']} "
        f"| {r['forward_share']:.1%} |"
        for r in rows
    ]
    text = "\n".join(lines) + f"\n\n`python benchmarks/throughput.py`, {machine()}\n"
    write_text(RESULTS / "throughput.md", text)
    print(text)


if __name__ == "__main__":
    main()
