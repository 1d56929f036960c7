"""A study on Ray: cells are plain tasks, and what dies is run again. Run by ``make test-rllib``."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from dllm_agents import study
from dllm_agents.studies.grid import make_study
from dllm_agents.studies.workers import Job, RayTasks, run

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs Ray in an environment of its own: make test-rllib", allow_module_level=True)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own
    import ray

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL: dict[str, Any] = {
    "algorithms": {"a2c": {"algorithm": "a2c", "group_size": 1}, "grpo": {"group_size": 4}},
    "tasks": ["sudoku"],
    "seeds": 2,
    "common": {
        "num_envs": 8,
        "total_timesteps": 256,
        "algorithm_kwargs": {"n_steps": 4},
        "policy": {"width": 16},
        "eval_every": 256,
        "eval_episodes": 8,
    },
    "episodes": 8,
}


@pytest.fixture
def two_workers():
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="error")
    yield
    ray.shutdown()


def by_steps(directory: Path) -> dict[str, Any]:
    found = json.loads((directory / "results.json").read_text())
    return {name: value for name, value in found.items() if name != "seconds"}


def job(folder: Path, name: str, source: str) -> Job:
    (folder / f"{name}.py").write_text(source)
    return Job(name, name, (), folder / f"{name}.txt", folder)


# The second time it takes the worker that attends to it with it.
DIES = """
import os, signal, time
with open("tries", "a") as file:
    file.write("x")
tries = len(open("tries").read())
if tries < 3:
    os.kill(os.getppid() if tries == 2 else os.getpid(), signal.SIGKILL)
    time.sleep(60)
print("at last, with", os.environ["OMP_NUM_THREADS"])
"""


def test_tasks_that_die_are_run_again_and_failures_are_named(tmp_path, two_workers):
    jobs = [job(tmp_path, "dies", DIES), job(tmp_path, "fails", "raise ValueError('never works')")]
    endings: list[tuple[str, str]] = []
    failed = run(jobs, RayTasks(threads=2), on_ending=lambda job, how, *_: endings.append((job.name, how)))
    assert list(failed) == ["fails"]
    assert failed["fails"].endswith("ends with: ValueError: never works")
    first, second, third = (how for name, how in endings if name == "dies")
    assert first == "killed by SIGKILL"
    assert "worker" in second
    assert third == ""
    assert (tmp_path / "dies.txt").read_text() == "at last, with 2\n"


@pytest.mark.slow
def test_killed_a_study_in_two_local_workers_ends_with_the_same_tables(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))

    def start(directory: str, *options: str) -> subprocess.Popen[bytes]:
        arguments = ["study", str(path), "--output", str(tmp_path / directory), "--jobs", "2", *options]
        return subprocess.Popen([sys.executable, "-m", "dllm_gym", *arguments], start_new_session=True)

    assert start("processes").wait() == 0
    for cells in (0, 1, 3):  # killed while the first are trained, when one is finished, and so on
        process = start("ray", "--ray", "local")
        while len(list((tmp_path / "ray").glob("cells/*/*/*/cell.json"))) < cells or not list(
            (tmp_path / "ray").glob("cells/*/*/*/config.yaml")
        ):
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert start("ray", "--ray", "local").wait() == 0
    assert by_steps(tmp_path / "ray") == by_steps(tmp_path / "processes")
    assert len(by_steps(tmp_path / "ray")["cells"]) == 4


def test_a_cluster_that_lacks_the_gpu_is_refused(tmp_path, two_workers):
    grid = make_study({**SMALL, "gpus": 1})
    with pytest.raises(ValueError, match="a study's cells need 1 GPUs in all, Ray's cluster has 0"):
        study(grid, tmp_path, ray="auto")
    assert ray.is_initialized(), "whose it is"
