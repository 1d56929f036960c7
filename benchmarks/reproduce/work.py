"""What is missing is run by the workers of studies, what is there is kept: trainings and evaluations."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.reproduce.experiments import ENVIRONMENTS, RUNS, Budget, evaluations, heuristics, run_config
from dllm_agents.config import TrainConfig
from dllm_agents.run_folder import CONFIG, METRICS
from dllm_agents.studies.workers import Job, Processes
from dllm_agents.studies.workers import run as run_jobs
from dllm_gym.evaluation import EvaluationResult

ROOT = Path(__file__).resolve().parents[2]


class Workshop:
    """A directory of finished and unfinished work for one budget.

    Args:
        budget: How much everything costs.
        directory: Holds ``train/<run>-<seed>/`` and ``evaluations/*.json``; what is there is not done again.
        jobs: Processes at a time, each on one thread.
    """

    def __init__(self, budget: Budget, directory: Path, jobs: int) -> None:
        self.budget, self.directory, self.jobs = budget, directory, jobs

    def policy(self, run: str, seed: int) -> Path:
        """Where a run lies. Its name tells the configuration, so a changed one is another run."""
        config, defaults = run_config(run, seed, self.budget).to_dict(), TrainConfig().to_dict()
        # what is as ever is left out, so that an option which is added later changes no name
        told = {key: value for key, value in config.items() if value != defaults[key]}
        return self.directory / "train" / f"{run}-{seed}-{_digest(told)}"

    def finished(self, run: str) -> list[int]:
        """The seeds whose training is over."""
        return [s for s in self.budget.seeds if (self.policy(run, s) / METRICS).is_file()]

    def train(self, runs: Sequence[str]) -> None:
        """Trains what has not been trained, and what it begins with; an interrupted run goes on."""
        wanted = {name for run in runs for name in (run, *ancestors(run))}
        jobs = [(run, seed) for seed in self.budget.seeds for run in RUNS if run in wanted]
        missing = [(run, seed) for run, seed in jobs if seed not in self.finished(run)]
        # first what others begin with, to the end: several jobs run at a time
        for generation in range(1 + max(len(ancestors(run)) for run in RUNS)):
            chosen = [job for job in missing if len(ancestors(job[0])) == generation]
            self._run([(f"{run}-{seed}", ["--train", run, str(seed)]) for run, seed in chosen])

    def train_here(self, run: str, seed: int) -> None:
        """Trains, or goes on, in this process."""
        from dllm_agents.training import train

        target, config = self.policy(run, seed), run_config(run, seed, self.budget)
        first = RUNS[run].begins_with
        if first is not None:
            policy = self.policy(first, seed) / "best"
            config = config.updated(init_from=os.path.relpath(policy, ROOT))
        command = f"python -m benchmarks.reproduce --only {run}"
        train(config, target, resume=(target / CONFIG).is_file(), command=command)

    def evaluate(self) -> None:
        """Evaluates what has not been evaluated."""
        jobs = [
            (f"heuristics in {environment}", (environment, "heuristics", 0)) for environment in ENVIRONMENTS
        ]
        jobs += [
            (f"seed {seed} in {environment}", (environment, "learned", seed))
            for seed in self.budget.seeds
            for environment in ENVIRONMENTS
        ]
        self._run(
            [(name, ["--evaluate", *map(str, what)]) for name, what in jobs if not self._evaluated(*what)]
        )

    def evaluate_here(self, environment: str, kind: str, seed: int) -> None:
        """The evaluations of one environment that are missing, in this process."""
        from dllm_gym import evaluate

        for name, agent, label in self._agents(environment, kind, seed):
            path = self._file(environment, name)
            if not path.is_file():
                result = evaluate(agent, self.budget.problems, "test", seed=seed, **ENVIRONMENTS[environment])
                replace(result, label=label).save(path)

    def result(self, environment: str, name: str) -> EvaluationResult:
        """An evaluation that has been done."""
        return EvaluationResult.load(self._file(environment, name))

    def heuristics(self, environment: str) -> list[EvaluationResult]:
        """The evaluations of all heuristics."""
        return [self.result(environment, strategy.label) for strategy in heuristics(environment)]

    def learned(self, environment: str, run: str, options: str) -> list[EvaluationResult]:
        """The evaluations of a run with these options, one per training seed."""
        return [
            self.result(environment, f"{self.policy(run, seed).name}:{options}") for seed in self.budget.seeds
        ]

    def config(self, run: str) -> TrainConfig:
        """The configuration of a run, of its first seed."""
        return run_config(run, self.budget.seeds[0], self.budget)

    def seconds(self, run: str) -> str:
        """How long each seed of a run trained, as far as it did."""
        files = [self.policy(run, seed) / METRICS for seed in self.finished(run)]
        contents = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        return ", ".join(f"{content['evaluations'][-1]['seconds']:.0f}" for content in contents)

    def _agents(self, environment: str, kind: str, seed: int) -> list[tuple[str, Any, str]]:
        """Name of the file, agent and label of each evaluation."""
        if kind == "heuristics":
            return [(strategy.label, strategy, strategy.label) for strategy in heuristics(environment)]
        return [
            (
                f"{self.policy(run, seed).name}:{options}",
                f"{self.policy(run, seed) / 'best'}:{options}",
                f"{run}-{seed} ({options})",
            )
            for where, run, options in evaluations()
            if where == environment and seed in self.finished(run)
        ]

    def _evaluated(self, environment: str, kind: str, seed: int) -> bool:
        return all(
            self._file(environment, name).is_file() for name, *_ in self._agents(environment, kind, seed)
        )

    def _file(self, environment: str, name: str) -> Path:
        folder = f"{environment}-{_digest(ENVIRONMENTS[environment])}"
        return self.directory / "evaluations" / folder / f"{name}.json"

    def _run(self, commands: Sequence[tuple[str, list[str]]]) -> None:
        """Runs this program with arguments, by name, ``jobs`` at a time.

        Raises:
            RuntimeError: If some failed, when the others are done.
        """
        same = ["--budget", self.budget.name, "--directory", str(self.directory)]
        jobs = [
            Job(
                name,
                "benchmarks.reproduce",
                (*same, *arguments),
                self.directory / "logs" / f"{name.replace(' ', '-')}.log",
                ROOT,
            )
            for name, arguments in commands
        ]
        failed = run_jobs(jobs, Processes(self.jobs), on_ending=_tell)
        if failed:
            raise RuntimeError("\n".join(f"{name} {why}" for name, why in failed.items()))


def _tell(job: Job, ending: str, seconds: float, again: bool) -> None:
    print(f"{job.name}: {ending or 'done'}{', is run again,' * again} after {seconds:.0f} s", flush=True)


def ancestors(run: str) -> list[str]:
    """The runs a run goes back to, each beginning with the next."""
    first = RUNS[run].begins_with
    return [] if first is None else [first, *ancestors(first)]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
