"""One batched environment against as many single ones, in Gymnasium's SyncVectorEnv and AsyncVectorEnv.

Environment steps per second with 64 rows, episodes of 8 steps, the agent's time not counted; one process, in
turns, medians of several rounds. AsyncVectorEnv starts 64 processes with a copy of the dLLM each, which takes
about 10 GB; ``--kinds batched sync`` leaves it out.

Run: ``make bench`` or ``python benchmarks/throughput.py``; writes ``benchmarks/results/throughput.json``
and ``.md``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode

import dllm_gym
from dllm_gym.bench import EPISODE_STEPS, machine, timed_steps
from dllm_gym.files import write_json, write_text

RESULTS = Path(__file__).parent / "results"
KINDS = ("batched", "sync", "async")


def make(kind: str, rows: int, dtype: str) -> Any:
    """A vector environment; single ones have one thread each where they run in processes."""
    settings = {"num_envs": rows, "backend_kwargs": {"dtype": dtype}}
    if kind == "batched":
        return gym.make_vec(dllm_gym.ENV_ID, autoreset_mode="SameStep", **settings)
    options: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}
    if kind == "async":
        # forked from a process without threads, which has imported what takes long
        multiprocessing.set_forkserver_preload(["dllm_gym.backends.transformers_backend"])
        options["context"] = "forkserver"
    return gym.make_vec(dllm_gym.ENV_ID, vectorization_mode=kind, vector_kwargs=options, **settings)


def seconds_of(env: Any, agent: Any, steps: int) -> float:
    """Seconds for ``steps`` steps of all rows."""
    return timed_steps(env, agent, env.reset()[0], steps)[1]


def measure(kinds: list[str], rows: int, dtype: str, rounds: int, episodes: int) -> dict[str, Any]:
    """Steps per second of every kind, and how many times as fast the batched environment is."""
    envs = {kind: make(kind, rows, dtype) for kind in kinds}
    length = next(iter(envs.values())).single_action_space.n
    agent = dllm_gym.make_strategy("confidence", k=length // EPISODE_STEPS)
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    try:
        for env in envs.values():
            seconds_of(env, agent, EPISODE_STEPS)
        for _ in range(rounds):
            for kind, env in envs.items():
                steps = EPISODE_STEPS * episodes
                rates[kind].append(rows * steps / seconds_of(env, agent, steps))
    finally:
        for env in envs.values():
            env.close()
    ratios = {
        kind: round(statistics.median(a / b for a, b in zip(rates["batched"], rates[kind], strict=True)), 2)
        for kind in kinds
        if kind != "batched"
    }
    return {
        "dtype": dtype,
        "steps_per_second": {kind: round(statistics.median(values)) for kind, values in rates.items()},
        "times_as_fast": ratios,
    }


def table(kinds: list[str], rows: int, results: list[dict[str, Any]]) -> str:
    """The measurements as Markdown."""
    lines = [
        "| dtype | " + " | ".join(f"{kind}, {rows} rows, steps/s" for kind in kinds) + " | batched is |",
        "|---" * (len(kinds) + 2) + "|",
    ]
    for result in results:
        ratios = ", ".join(f"{ratio} times {kind}" for kind, ratio in result["times_as_fast"].items())
        speeds = " | ".join(str(speed) for speed in result["steps_per_second"].values())
        lines.append(f"| {result['dtype']} | {speeds} | {ratios} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=2, help="of every row in a round")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--output", type=Path, default=RESULTS / "throughput.json")
    arguments = parser.parse_args()
    kinds = list(dict.fromkeys(["batched", *arguments.kinds]))
    results = [
        measure(kinds, arguments.rows, dtype, arguments.rounds, arguments.episodes)
        for dtype in arguments.dtypes
    ]
    write_json(arguments.output, {"machine": machine(), "rows": arguments.rows, "results": results})
    text = f"{table(kinds, arguments.rows, results)}\n\n`python benchmarks/throughput.py`, {machine()}\n"
    write_text(arguments.output.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
