"""Whether residual context helps the embedded dLLM: trains it on with and without, and decodes with both.

Run: ``python benchmarks/residual_context.py``. An interrupted run goes on. Both start at ``tiny-arithmetic``
with the same data for the same number of steps, so that the further training alone is told apart.
"""

import argparse
from pathlib import Path
from typing import Any

from rich.progress import track

from dllm_gym import evaluate
from dllm_gym.backends import ASSETS
from dllm_gym.evaluation import EvaluationResult
from dllm_gym.files import write_json, write_text
from dllm_gym.pretrain import PretrainConfig, Pretrainer

AGENTS = ("confidence:k=1", "confidence:k=2", "confidence:k=4", "confidence:k=6", "fast-dllm:threshold=0.9")
BASE = "tiny-arithmetic"
TASK = {"two_digit_share": 0.25}  # as in the last stage of its own training


def trained(directory: Path, steps: int, seed: int, residual: bool) -> str:
    """The checkpoint directory of one arm of the experiment."""
    config = PretrainConfig(
        task_kwargs=TASK,
        steps=steps,
        learning_rate=2e-3,
        adam_learning_rate=2e-3,
        seed=seed,
        init_from=str(ASSETS / BASE),
        residual_context=residual,
    )
    output = directory / f"{'residual' if residual else 'plain'}-{steps}-{seed}"
    run = Pretrainer(config, output)
    for _ in track(run.train(), f"{output.name}, from step {run.step}", total=steps - run.step):
        pass
    run.save_checkpoint()
    return str(output)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps of each training")
    parser.add_argument("--episodes", type=int, default=500, help="test problems")
    parser.add_argument("--seed", type=int, default=10, help="of data and masks")
    parser.add_argument("--directory", type=Path, default=Path("runs/residual-context"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/residual_context"))
    arguments = parser.parse_args()
    plain, residual = (
        trained(arguments.directory, arguments.steps, arguments.seed, which) for which in (False, True)
    )
    arms: list[tuple[str, str, dict[str, Any]]] = [
        ("as shipped", BASE, {}),
        ("trained on, plain", plain, {}),
        ("trained on with residual context, decoded without", residual, {}),
        ("with residual context, cold start", residual, {"residual_context": "cold"}),
        ("with residual context, warm start", residual, {"residual_context": "warm"}),
    ]
    results: dict[str, list[EvaluationResult]] = {
        name: [
            evaluate(agent, arguments.episodes, "test", backend=backend, backend_kwargs=kwargs)
            for agent in AGENTS
        ]
        for name, backend, kwargs in track(arms, "evaluating")
    }
    rows = [
        {"arm": name, **result.to_json(), "backend": Path(backend).name}
        for name, backend, _ in arms
        for result in results[name]
    ]
    write_json(arguments.output.with_suffix(".json"), rows)
    lines = [
        f"Accuracy @ mean NFE, {arguments.episodes} test problems of arithmetic, full diffusion;",
        f"one training seed, {arguments.steps} steps each. `python benchmarks/residual_context.py`",
        "",
        "| dLLM | " + " | ".join(AGENTS) + " |",
        "|---" * (len(AGENTS) + 1) + "|",
    ]
    for name, results_of_arm in results.items():
        cells = [
            f"{r.accuracy:.3f} ({r.accuracy_ci95[0]:.3f} to {r.accuracy_ci95[1]:.3f}) @ {r.nfe_mean:.1f}"
            for r in results_of_arm
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    write_text(arguments.output.with_suffix(".md"), "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
