"""What stands between an environment and its dLLM on a GPU: one script, made to fit into eight minutes.

    python benchmarks/gpu.py                                   # LLaDA-8B's shape; wants 40 GB
    python benchmarks/gpu.py --shape tiny --rows 1 2 --length 16 --block-length 8    # runs anywhere

In this order, with random weights in bfloat16:

- *limits*: what ``dllm_gym.bench`` defines, in blocks and in full diffusion. *Outside* is the share of the
  environment's time that is not in the forward.
- *copies*: between host and device in one step of all rows, as torch's profiler counts them.
- *compiled*: environment steps per second once ``torch.compile`` has the model, as ``compile=True`` does it,
  beside the same model without.
- *grpo*: where the time of a training goes with dLLM and policy on the GPU, by ``benchmarks/training.py``;
  with the embedded dLLM, because random weights solve nothing and GRPO leaves out groups that are all alike.

A part that has not begun when the minutes are over is left out, and named. Writes
``benchmarks/results/gpu.json`` and ``.md``, or what ``--output`` names, after every part.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gymnasium.vector import AutoresetMode
from limit import RESULTS, peak_memory
from random_weights import SHAPES, TASK, load_random
from torch.profiler import ProfilerActivity, profile
from training import split

from dllm_gym.bench import EPISODE_STEPS, Limit, limit_table, machine, measure_limit, timed_steps
from dllm_gym.envs.vector import UnmaskVectorEnv
from dllm_gym.files import write_json, write_text
from dllm_gym.strategies import make_strategy

GRPO = "scratch/grpo"


def limits(backend: Any, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The limit of every number of rows, in blocks and without."""
    found = []
    for block_length in (arguments.block_length, None):
        for rows in arguments.rows:
            limit = measure_limit(
                backend,
                batch_size=rows,
                completion_length=arguments.length,
                block_length=block_length,
                rounds=arguments.rounds,
                seconds=arguments.seconds,
                task=TASK,
            )
            outside = round(1 - limit.model, 4)
            found.append({"block_length": block_length, "outside": outside, **limit.to_json()})
            print(found[-1], file=sys.stderr, flush=True)
    return found


class Play:
    """An environment of so many rows, warm, that a rule plays."""

    def __init__(self, backend: Any, rows: int, length: int) -> None:
        self.env = UnmaskVectorEnv(
            rows,
            task=TASK,
            backend=backend,
            completion_length=length,
            autoreset_mode=AutoresetMode.SAME_STEP,
        )
        self.agent = make_strategy("confidence", k=max(length // EPISODE_STEPS, 1))
        self.observation = self.env.reset(seed=0)[0]
        self.episode()

    def episode(self) -> float:
        """Plays one episode of all rows; its seconds, without the rule's."""
        self.observation, seconds = timed_steps(self.env, self.agent, self.observation, EPISODE_STEPS)
        return seconds


def copies(backend: Any, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Copies between host and device per step of all rows, by the names that CUDA has for them."""
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if backend.device.type == "cuda" else []
    found = []
    for rows in arguments.rows:
        play = Play(backend, rows, arguments.length)
        with profile(activities=activities) as profiler:
            play.episode()
        kinds = {event.key: event.count for event in profiler.key_averages() if "Memcpy" in event.key}
        per_step = {kind: round(count / EPISODE_STEPS, 2) for kind, count in kinds.items()}
        found.append({"batch_size": rows, "per_step": per_step})
    return found


def steps_per_second(backend: Any, arguments: argparse.Namespace) -> dict[int, float]:
    """Environment steps per second of every number of rows, in full diffusion; the best of the rounds."""
    plays = {rows: Play(backend, rows, arguments.length) for rows in arguments.rows}
    seconds = {rows: min(play.episode() for _ in range(arguments.rounds)) for rows, play in plays.items()}
    return {rows: rows * EPISODE_STEPS / least for rows, least in seconds.items()}


def compiled(backend: Any, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Eager and compiled side by side; the model stays compiled."""
    eager = steps_per_second(backend, arguments)
    backend.model.base_model.compile(backend=arguments.compiler)
    fast = steps_per_second(backend, arguments)
    return [
        {"batch_size": rows, "eager": round(eager[rows], 1), "compiled": round(fast[rows], 1)}
        for rows in arguments.rows
    ]


def table(result: dict[str, Any]) -> str:
    """What was measured, as Markdown."""
    lines = [f"{result['shape']}: {result['parameters'] / 1e6:.1f} million parameters on {result['device']}"]
    for block_length in dict.fromkeys(row["block_length"] for row in result.get("limits", ())):
        own = [dict(row) for row in result["limits"] if row["block_length"] == block_length]
        outside = ", ".join(f"{row.pop('outside'):.1%} with {row['batch_size']}" for row in own)
        for row in own:
            del row["block_length"]
        name = "Full diffusion" if block_length is None else f"Blocks of {block_length}"
        lines += ["", f"{name}; outside of the forward, by rows: {outside}", ""]
        lines.append(limit_table([Limit(**row) for row in own]))
    if "copies" in result:
        lines += ["", "| rows | copies per step |", "|---|---|"]
        for row in result["copies"]:
            kinds = ", ".join(f"{count:g} {kind}" for kind, count in row["per_step"].items())
            lines.append(f"| {row['batch_size']} | {kinds or 'none'} |")
    if "compiled" in result:
        lines += ["", "| rows | steps/s, eager | compiled |", "|---|---|---|"]
        lines += [f"| {' | '.join(map(str, row.values()))} |" for row in result["compiled"]]
    if "grpo" in result:
        shares = ", ".join(
            f"{part} {result['grpo'][part]:.1%}" for part in ("dllm", "policy", "update", "rest")
        )
        lines += ["", f"{GRPO}: {result['grpo']['env_steps_per_second']} steps/s; {shares}"]
    lines += ["", f"Peak memory {result['peak_memory_gib']} GiB; {result['seconds']} s"]
    if result["left_out"]:
        lines += ["", f"Left out: {', '.join(result['left_out'])}"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--block-length", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn, at least one episode")
    parser.add_argument("--compiler", default="inductor", help="torch.compile's backend")
    parser.add_argument("--grpo-steps", type=int, default=40_960)
    parser.add_argument("--minutes", type=float, default=6.0, help="in which parts may begin")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu.json")
    arguments = parser.parse_args()
    if arguments.shape == "8b" and not torch.cuda.is_available():
        parser.error("there is no GPU; --shape tiny shows that the script runs")
    started = time.monotonic()
    backend = load_random(SHAPES[arguments.shape], dtype="bfloat16")
    parts: dict[str, Callable[[], Any]] = {
        "limits": lambda: limits(backend, arguments),
        "copies": lambda: copies(backend, arguments),
        "compiled": lambda: compiled(backend, arguments),
        "grpo": lambda: split(GRPO, "auto", None, arguments.grpo_steps),
    }
    result: dict[str, Any] = {
        "machine": machine(),
        "shape": arguments.shape,
        "parameters": sum(parameter.numel() for parameter in backend.model.parameters()),
        "device": str(backend.device),
        "left_out": [],
    }
    for name, part in parts.items():
        if time.monotonic() - started > 60 * arguments.minutes:
            result["left_out"].append(name)
        else:
            result[name] = part()
        result["peak_memory_gib"] = round(peak_memory(backend.device), 2)
        result["seconds"] = round(time.monotonic() - started)
        write_json(arguments.output, result)  # as they come: who is cut off has what there is
        text = f"{table(result)}\n\n`python benchmarks/gpu.py`, {result['machine']}\n"
        write_text(arguments.output.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
