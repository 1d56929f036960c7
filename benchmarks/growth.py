"""How the cost of a step grows with batch size, completion length, vocabulary and number of blocks.

One of them grows at a time, from a small dLLM of LLaDA's layout with random weights, 32 rows, 48 positions,
512 tokens and one block. For every point: milliseconds of an environment step, all rows together, and how
many of them are spent outside the model. The exponent is the slope of a straight line through the
logarithms: 0 costs nothing, 1 is proportional. Where even the largest point costs little, fixed costs keep
it low.

Run: ``make bench`` or ``python benchmarks/growth.py``; writes ``benchmarks/results/growth.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from limit import RESULTS
from random_weights import SHAPES, load_random

from dllm_gym.bench import machine, measure_limit
from dllm_gym.files import write_json, write_text

START = {"batch_size": 32, "completion_length": 48, "vocab_size": 512, "blocks": 1}
GROWTH = {
    "batch_size": (8, 16, 32, 64, 128, 256),
    "completion_length": (48, 96, 192, 384),
    "vocab_size": (512, 2048, 8192, 32768),
    "blocks": (1, 2, 4, 8),
}


def measure(rounds: int, seconds: float, **point: int) -> dict[str, Any]:
    """One point: milliseconds of a step, and those outside the model."""
    backend = load_random({**SHAPES["tiny"], "vocab_size": point["vocab_size"]}, dtype="float32")
    length = point["completion_length"]
    limit = measure_limit(
        backend,
        batch_size=point["batch_size"],
        completion_length=length,
        block_length=length // point["blocks"],
        rounds=rounds,
        seconds=seconds,
    )
    step = 1000 * point["batch_size"] / limit.env_steps_per_second
    return {**point, "milliseconds": round(step, 3), "outside_model": round(step * (1 - limit.model), 3)}


def exponent(sizes: list[int], costs: list[float]) -> float:
    """The slope of log cost over log size."""
    return round(float(np.polyfit(np.log(sizes), np.log(costs), 1)[0]), 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--grow", nargs="+", choices=GROWTH, default=list(GROWTH))
    parser.add_argument("--points", type=int, help="of each, the smallest ones; default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a round, at least one episode")
    parser.add_argument("--output", type=Path, default=RESULTS / "growth.json")
    arguments = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    lines = [
        "| growing | sizes | ms per step | of it outside the model | exponents |",
        "|---|---|---|---|---|",
    ]
    for name in arguments.grow:
        sizes = list(GROWTH[name][: arguments.points])
        points = [measure(arguments.rounds, arguments.seconds, **{**START, name: size}) for size in sizes]
        columns = {key: [point[key] for point in points] for key in ("milliseconds", "outside_model")}
        slopes = {key: exponent(sizes, costs) for key, costs in columns.items()}
        results[name] = {"points": points, "exponents": slopes}
        cells = [", ".join(map(str, values)) for values in (sizes, *columns.values(), slopes.values())]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    write_json(arguments.output, {"machine": machine(), "start": START, "results": results})
    text = "\n".join(lines) + f"\n\n`python benchmarks/growth.py`, {machine()}\n"
    write_text(arguments.output.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
