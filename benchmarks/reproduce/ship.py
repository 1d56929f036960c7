"""Makes package data of the best policies: ``python -m benchmarks.reproduce --ship``."""

from __future__ import annotations

from pathlib import Path

from benchmarks.reproduce.experiments import TARGETS, run_config
from benchmarks.reproduce.work import Workshop
from dllm_agents.checkpoint import SHIPPED, load_policy, read_description, save_policy

# name of the policy -> (run, environment, options its test results are shown for)
SHIPPED_RUNS = {
    "arithmetic-full": ("full", "full", ("sample", "deterministic")),
    "arithmetic-semi": ("semi", "semi", ("sample", "deterministic")),
    "arithmetic-any": ("any", "full", tuple(f"sample,target_steps={t}" for t in TARGETS)),
    "sudoku-full": ("sudoku", "sudoku", ("sample", "deterministic")),
}


def ship(workshop: Workshop) -> list[Path]:
    """Saves, for every name, the seed with the highest validation reward; returns the directories."""
    return [_ship(workshop, name, *what) for name, what in SHIPPED_RUNS.items()]


def _ship(workshop: Workshop, name: str, run: str, environment: str, options: tuple[str, ...]) -> Path:
    saved = {seed: workshop.policy(run, seed) / "best" for seed in workshop.finished(run)}
    validation = {seed: read_description(path)["metadata"]["validation"] for seed, path in saved.items()}
    best = max(saved, key=lambda seed: float(validation[seed]["sample"]["reward_mean"]))
    test = {}
    for option in options:
        result = workshop.result(environment, f"{workshop.policy(run, best).name}:{option}")
        test[option] = {
            "accuracy": result.accuracy,
            "accuracy_ci95": result.accuracy_ci95,
            "nfe_mean": result.nfe_mean,
            "episodes": result.episodes,
        }
    metadata = {
        "command": f"python -m benchmarks.reproduce --only {run}",
        "config": run_config(run, best, workshop.budget).to_dict(),
        "seed": best,
        "validation": validation[best],
        "test": test,
    }
    policy = load_policy(saved[best])
    return save_policy(SHIPPED / name, policy.network, metadata, decoding=policy.decoding)
