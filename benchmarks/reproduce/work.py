"""Runs what is missing and keeps what is there: trainings in processes of their own, evaluations in files."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.reproduce.experiments import ENVIRONMENTS, RUNS, Budget, evaluations, heuristics, run_config
from dllm_agents.config import TrainConfig
from dllm_gym.evaluation import EvaluationResult
from dllm_gym.files import write_text

ROOT = Path(__file__).resolve().parents[2]
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


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
        return [s for s in self.budget.seeds if (self.policy(run, s) / "metrics.json").is_file()]

    def train(self, runs: Sequence[str]) -> None:
        """Trains what has not been trained, and what it begins with; an interrupted run goes on."""
        wanted = {name for run in runs for name in (run, *_ancestors(run))}
        jobs = [(run, seed) for seed in self.budget.seeds for run in RUNS if run in wanted]
        missing = [(run, seed) for run, seed in jobs if seed not in self.finished(run)]
        # first what others begin with, to the end: several jobs run at a time
        for generation in range(1 + max(len(_ancestors(run)) for run in RUNS)):
            chosen = [job for job in missing if len(_ancestors(job[0])) == generation]
            self._run([(f"{run}-{seed}", self._training(run, seed)) for run, seed in chosen])

    def _training(self, run: str, seed: int) -> list[str]:
        target, config = self.policy(run, seed), run_config(run, seed, self.budget)
        first = RUNS[run].begins_with
        if first is not None:
            policy = self.policy(first, seed) / "best"
            config = config.updated(init_from=os.path.relpath(policy, ROOT))
        path = target.with_name(target.name + ".yaml")  # names hold dots: alpha-0.3
        write_text(path, yaml.safe_dump(json.loads(json.dumps(config.to_dict())), sort_keys=False))
        resume = ["--resume"] if (target / "config.yaml").is_file() else []  # written last
        return ["train", config.algorithm, "--config", str(path), "--output", str(target), *resume]

    def evaluate(self) -> None:
        """Evaluates what has not been evaluated."""
        commands = []
        for environment in ENVIRONMENTS:
            commands.append((f"heuristics in {environment}", ["--evaluate", environment, "heuristics", "0"]))
        for seed in self.budget.seeds:
            for environment in ENVIRONMENTS:
                commands.append(
                    (f"seed {seed} in {environment}", ["--evaluate", environment, "learned", str(seed)])
                )
        module = ["--budget", self.budget.name, "--directory", str(self.directory)]
        missing = [
            (name, [*module, *c]) for name, c in commands if not self._evaluated(c[1], c[2], int(c[3]))
        ]
        self._run(missing, "benchmarks.reproduce")

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
        files = [self.policy(run, seed) / "metrics.json" for seed in self.finished(run)]
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

    def _run(self, commands: list[tuple[str, list[str]]], module: str = "dllm_gym") -> None:
        """Runs commands, ``jobs`` at a time; one that fails stops everything after those still running."""
        waiting, running = list(commands), list[tuple[str, subprocess.Popen[bytes], Path, float]]()
        done = 0
        while waiting or running:
            while waiting and len(running) < self.jobs:
                name, arguments = waiting.pop(0)
                log = self.directory / "logs" / f"{name.replace(' ', '-')}.log"
                log.parent.mkdir(parents=True, exist_ok=True)
                with log.open("wb") as output:
                    process = subprocess.Popen(
                        [sys.executable, "-m", module, *arguments],
                        cwd=ROOT,
                        env={**os.environ, "OMP_NUM_THREADS": "1"},
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
                    )
                running.append((name, process, log, time.monotonic()))
            time.sleep(0.2)
            for job in [job for job in running if job[1].poll() is not None]:
                running.remove(job)
                name, process, log, started = job
                if process.returncode:
                    for _, other, _, _ in running:
                        other.terminate()
                    tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
                    raise RuntimeError(f"{name} failed; {log} ends with:\n{tail}")
                done += 1
                print(f"[{done}/{len(commands)}] {name}: {time.monotonic() - started:.0f} s", flush=True)


def _ancestors(run: str) -> list[str]:
    """The runs a run goes back to, each beginning with the next."""
    first = RUNS[run].begins_with
    return [] if first is None else [first, *_ancestors(first)]


def _end_with_parent() -> None:
    """Asks the kernel to kill this process with its parent: then nobody works in its directory any more."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
