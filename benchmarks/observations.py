"""What observing costs: steps per second with a further observation, as a share of those without.

64 rows of arithmetic (L = 48), episodes of 8 steps, the agent's time not counted; one process, in turns of
one episode of every row, medians of several rounds. Once with the plain forward, once with the compiled one.

Run: ``make bench`` or ``python benchmarks/observations.py``; writes ``benchmarks/results/observations.json``
and ``.md``.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import gymnasium as gym

import dllm_gym
from dllm_gym.bench import EPISODE_STEPS, machine, timed_steps
from dllm_gym.envs.observations import ALWAYS_OBSERVED
from dllm_gym.envs.statistics import STATISTICS
from dllm_gym.files import write_json, write_text

RESULTS = Path(__file__).parent / "results"
# the dLLM has no quality head
OBSERVED = tuple(name for name in STATISTICS if name not in (*ALWAYS_OBSERVED, "quality"))
FORWARDS = {"plain": False, "compiled": "auto"}


def measure(names: list[str], rows: int, forward: str, rounds: int) -> dict[str, Any]:
    """Steps per second without any of the observations, and with each its share of those."""
    envs = {
        name: gym.make_vec(
            dllm_gym.ENV_ID,
            num_envs=rows,
            observe=name or (),
            backend_kwargs={"compile": FORWARDS[forward]},
            autoreset_mode="SameStep",
        )
        for name in ("", *names)
    }
    length = envs[""].single_action_space.n
    agent = dllm_gym.make_strategy("confidence", k=length // EPISODE_STEPS)
    seen = {name: env.reset(seed=0)[0] for name, env in envs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in envs}
    for turn in range(rounds + 1):
        for name, env in envs.items():
            seen[name], taken = timed_steps(env, agent, seen[name], EPISODE_STEPS)
            if turn > 0:  # everything is warm
                seconds[name].append(taken)
    shares = {
        name: round(statistics.median(a / b for a, b in zip(seconds[""], seconds[name], strict=True)), 2)
        for name in names
    }
    speed = rows * EPISODE_STEPS / statistics.median(seconds[""])
    return {"forward": forward, "steps_per_second_without": round(speed), "share_with": shares}


def table(names: list[str], results: list[dict[str, Any]]) -> str:
    """The measurements as Markdown."""
    lines = [
        "| forward | without, steps/s | " + " | ".join(f"with `{name}`" for name in names) + " |",
        "|---" * (len(names) + 2) + "|",
    ]
    for result in results:
        shares = " | ".join(f"{share:.2f}" for share in result["share_with"].values())
        lines.append(f"| {result['forward']} | {result['steps_per_second_without']} | {shares} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--observe", nargs="+", choices=OBSERVED, default=list(OBSERVED))
    parser.add_argument("--forwards", nargs="+", choices=list(FORWARDS), default=list(FORWARDS))
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=RESULTS / "observations.json")
    arguments = parser.parse_args()
    results = [
        measure(arguments.observe, arguments.rows, forward, arguments.rounds)
        for forward in arguments.forwards
    ]
    write_json(arguments.output, {"machine": machine(), "rows": arguments.rows, "results": results})
    text = f"{table(arguments.observe, results)}\n\n`python benchmarks/observations.py`, {machine()}\n"
    write_text(arguments.output.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
