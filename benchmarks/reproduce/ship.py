"""Makes package data of the best policies: ``python -m benchmarks.reproduce --ship``."""

from __future__ import annotations

from pathlib import Path

from benchmarks.reproduce.experiments import TARGETS, run_config
from benchmarks.reproduce.work import Workshop
from benchmarks.ship import ship as ship_policy
from dllm_agents.checkpoint import read_description

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
    results = {
        option: workshop.result(environment, f"{workshop.policy(run, best).name}:{option}")
        for option in options
    }
    config = run_config(run, best, workshop.budget).to_dict()
    return ship_policy(name, saved[best], results, f"python -m benchmarks.reproduce --only {run}", config)
