"""Kills commands at random moments, starts them again, and compares what they end with.

Each command works on settings so small that it takes seconds. It runs once undisturbed; then it is killed
(SIGKILL, the process that was started and nothing else) at a moment drawn uniformly from the time that took,
and the same command is given again, until it was killed as often as it should and has come to its end. A run
is lost if the command fails or ends with anything else than the undisturbed one: policies, weights, metrics,
results and texts are compared bit by bit, times are not.

Run: ``python -m benchmarks.interruption --kills 20``; writes ``benchmarks/results/interruption.json`` and
``.md``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dllm_gym.bench import machine
from dllm_gym.files import write_json, write_text

RESULTS = Path(__file__).parent / "results"
TRAINING = {
    "num_envs": 16,
    "total_timesteps": 2400,
    "algorithm_kwargs": {"n_steps": 8},
    "policy": {"width": 16},
    "eval_every": 800,
    "eval_episodes": 8,
}


@dataclass(frozen=True)
class Command:
    """What is interrupted.

    Attributes:
        arguments: The command line that works in a directory, as it must be given now.
        outcome: What it ended with there.
    """

    arguments: Callable[[Path], list[str]]
    outcome: Callable[[Path], Any]


def _train(algorithm: str, group_size: int) -> Command:
    def arguments(directory: Path) -> list[str]:
        path = directory / "given.yaml"
        content = {**TRAINING, "algorithm": algorithm, "group_size": group_size}
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        resume = ["--resume"] if (directory / "run" / "config.yaml").exists() else []
        given = ["--config", str(path), "--output", str(directory / "run"), "--save-every", "0.5"]
        return ["dllm_gym", "train", algorithm, *given, *resume]

    return Command(arguments, lambda directory: training_outcome(directory / "run"))


def training_outcome(run: Path) -> dict[str, str]:
    """Digests of what a training run ended with."""
    rows = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["evaluations"]
    untimed = [{key: row[key] for key in row if key != "seconds"} for row in rows]
    return {**_files(run, "*/policy.safetensors"), "metrics": _digest(json.dumps(untimed).encode())}


def _files(directory: Path, pattern: str) -> dict[str, str]:
    paths = sorted(directory.glob(pattern))
    return {str(path.relative_to(directory)): _digest(path.read_bytes()) for path in paths}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _pretrain(directory: Path) -> list[str]:
    small = ["--width", "16", "--layers", "2", "--mlp-width", "16", "--steps", "250", "--batch-size", "8"]
    given = ["--episodes", "8", "--save-every", "0.5", "--output", str(directory / "dllm")]
    return ["dllm_gym", "pretrain", *small, *given]


def _pretrained(directory: Path) -> dict[str, Any]:
    record = json.loads((directory / "dllm" / "pretraining.json").read_text(encoding="utf-8"))
    files = {**_files(directory / "dllm", "model.safetensors"), **_files(directory / "dllm", "token*.json")}
    return {**files, "metrics": record["metrics"]}


def _compare(directory: Path) -> list[str]:
    given = ["--episodes", "6", "--keep", str(directory / "kept"), "--json", str(directory / "rows.json")]
    return ["dllm_gym", "compare", "--agent", "policy:arithmetic-full", *given]


def _evaluate(directory: Path) -> list[str]:
    given = ["--episodes", "400", "--output", str(directory / "episodes.jsonl")]
    agent = ["--agent", "policy:arithmetic-full", "--json", str(directory / "rows.json")]
    return ["dllm_gym", "evaluate", *agent, *given]


def _rows(directory: Path) -> Any:
    return json.loads((directory / "rows.json").read_bytes())


def _generate(directory: Path) -> list[str]:
    from dllm_gym.tasks import load_task

    task = load_task("arithmetic", split="test")
    text = "".join(task.problem(index).prompt + "\n" for index in range(600))
    (directory / "prompts.txt").write_text(text, encoding="utf-8")
    given = ["--output", str(directory / "texts.jsonl"), "--json", str(directory / "all.json")]
    return ["dllm_gym", "generate", "--file", str(directory / "prompts.txt"), *given]


def _study(directory: Path) -> list[str]:
    given = ["--algorithm", "ppo", "--algorithm", "grpo", "--task", "sudoku", "--seeds", "1", "--jobs", "2"]
    small = ["--total-timesteps", "4096", "--eval-every", "2048", "--episodes", "50"]
    return ["dllm_gym", "study", *given, *small, "--output", str(directory / "study")]


def _studied(directory: Path) -> dict[str, Any]:
    results = json.loads((directory / "study" / "results.json").read_text(encoding="utf-8"))
    return {name: value for name, value in results.items() if name != "seconds"}


def _reproduce(directory: Path) -> list[str]:
    given = ["--budget", "tiny", "--jobs", "1", "--directory", str(directory / "work")]
    return ["benchmarks.reproduce", *given, "--only", "base", "a2c"]


def _reproduced(directory: Path) -> dict[str, Any]:
    runs = sorted((directory / "work" / "train").glob("*/metrics.json"))
    return {path.parent.name: training_outcome(path.parent) for path in runs}


COMMANDS: dict[str, Command] = {
    "train grpo": _train("grpo", 4),
    "train ppo": _train("ppo", 1),
    "train a2c": _train("a2c", 1),
    "pretrain": Command(_pretrain, _pretrained),
    "evaluate": Command(_evaluate, _rows),
    "compare": Command(_compare, _rows),
    "generate": Command(_generate, lambda directory: json.loads((directory / "all.json").read_bytes())),
    "study": Command(_study, _studied),
    "reproduce": Command(_reproduce, _reproduced),
}


def start(command: Command, directory: Path) -> subprocess.Popen[bytes]:
    """Gives the command, as it must be given now."""
    with (directory / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *command.arguments(directory)], stdout=log, stderr=log, env={**os.environ}
        )


def interrupt(command: Command, kills: int, folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    """Kills a command ``kills`` times, in as many runs as it takes, and takes every run to its end."""
    (folder / "whole").mkdir(parents=True)
    started = time.monotonic()
    if start(command, folder / "whole").wait():
        raise RuntimeError(f"it fails undisturbed; see {folder / 'whole' / 'log.txt'}")
    seconds = time.monotonic() - started
    whole = command.outcome(folder / "whole")
    done, lost, runs = 0, list[str](), 0
    moments = []
    while done < kills:
        directory = folder / f"run-{runs}"
        directory.mkdir()
        runs += 1
        while done < kills:
            process = start(command, directory)
            moment = float(rng.uniform(0, seconds))
            try:
                process.wait(moment)
                break  # it was faster than the killer
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                done += 1
                moments.append(round(moment, 1))
        if status := start(command, directory).wait():
            lost.append(f"{directory.name}: ended with status {status}")
        elif command.outcome(directory) != whole:
            lost.append(f"{directory.name}: ended with something else")
    return {"seconds": round(seconds, 1), "kills": done, "at": moments, "runs": runs, "lost": lost}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="all together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--directory", type=Path, help="where to work; default: a temporary one")
    arguments = parser.parse_args()
    folder = arguments.directory or Path(tempfile.mkdtemp(prefix="interruption-"))
    rows = []
    shares = np.array_split(np.arange(arguments.kills), len(arguments.commands))
    for at, (name, share) in enumerate(zip(arguments.commands, shares, strict=True)):
        rng = np.random.default_rng([arguments.seed, at])
        found = interrupt(COMMANDS[name], len(share), folder / name.replace(" ", "-"), rng)
        rows.append({"command": name, **found})
        print(rows[-1], flush=True)
    lines = ["| command | undisturbed, s | kills, at second | runs | lost |", "|---|---|---|---|---|"]
    for row in rows:
        moments = ", ".join(map(str, row["at"]))
        kills = f"{row['kills']} ({moments})"
        lines.append(
            f"| {row['command']} | {row['seconds']} | {kills} | {row['runs']} | {len(row['lost'])} |"
        )
    kills, lost = sum(row["kills"] for row in rows), sum(len(row["lost"]) for row in rows)
    lines += ["", f"{kills} kills, {lost} lost runs."]
    lines += ["", f"`python -m benchmarks.interruption --kills {arguments.kills} --seed {arguments.seed}`"]
    write_json(
        RESULTS / "interruption.json", {"machine": machine(), "kills": kills, "lost": lost, "rows": rows}
    )
    write_text(RESULTS / "interruption.md", "\n".join(lines) + f", {machine()}\n")


if __name__ == "__main__":
    main()
