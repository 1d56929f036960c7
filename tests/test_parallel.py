"""Two processes against one: they must take the step that one takes on what both collected."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parallel_worker import UPDATES, groups, updates

from dllm_agents import load_policy, parallel, train
from dllm_agents.config import TrainConfig

WORKER = Path(__file__).with_name("parallel_worker.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory, toys) -> dict[str, Any]:
    """What the first and the second process report, and the updates of a single one."""
    folder = tmp_path_factory.mktemp("parallel")
    running = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder), str(rank)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(outputs)
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in range(2))
    return {"first": first, "second": second, "single": updates(groups()), "run": folder / "run"}


@pytest.mark.parametrize("name", UPDATES)
def test_the_update_is_that_of_one_process_on_the_union(found, name):
    """Of unequal parts: eight episodes in one process, four without any variance in the other."""
    np.testing.assert_allclose(found["first"][name], found["single"][name], atol=2e-6)
    assert found["first"][name] == found["second"][name]


def test_the_updates_differ_from_one_another(found):
    different = [found["single"][name] for name in UPDATES if name != "micro"]
    for one, other in itertools.pairwise(different):
        assert np.abs(np.subtract(one, other)).max() > 1e-4
    np.testing.assert_allclose(found["single"]["micro"], found["single"]["paper"], atol=2e-6)


def test_a_process_without_samples_takes_the_same_steps(found):
    """In minibatches, of which the second process has none."""
    assert found["first"]["minibatches"] == found["second"]["minibatches"]
    assert found["first"]["minibatches"] != found["first"]["paper"]


def test_a_run_in_two_processes_is_one_run(found):
    first, second = found["first"]["run"], found["second"]["run"]
    assert first["weights"] == second["weights"]
    assert first["timesteps"] == second["timesteps"]
    assert first["rounds"] == second["rounds"] == 3
    assert first["rows"] == second["rows"] == 8
    assert first["problems"] != second["problems"]
    assert first["draw"] != second["draw"]
    directory = found["run"]
    saved = load_policy(directory / "last").network
    weights = np.concatenate([p.detach().numpy().ravel() for p in saved.parameters()])
    np.testing.assert_array_equal(weights, np.float32(first["weights"]))
    metrics = json.loads((directory / "metrics.json").read_text())
    assert metrics["evaluations"][-1]["timesteps"] == first["timesteps"]
    assert len(list(directory.glob("events.*"))) == 1


def test_one_process_needs_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert (parallel.rank(), parallel.count(), parallel.share(5)) == (0, 1, 5)
    assert parallel.total(1.5, 2) == [1.5, 2]
    assert parallel.largest(3) == 3
    with parallel.launched() as is_first:
        assert is_first


def test_several_processes_need_accelerate(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r"pip install 'dllm-gym\[agents,large\]'"), parallel.launched():
        pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_envs": 16}, "num_envs 16 must be a multiple of the 3 processes, at least 12 for groups of 4"),
        ({"num_envs": 9}, "num_envs 9 must be a multiple of the 3 processes, at least 12"),
        ({"algorithm": "ppo"}, "several processes train grpo, without imitation_steps or hindsight; got ppo"),
        (
            {"imitation_steps": 5, "expert": "confidence"},
            "got grpo with imitation_steps 5 and warm_start None in 3",
        ),
    ],
)
def test_what_several_processes_cannot_do(monkeypatch, tmp_path, toys, changes, message):
    monkeypatch.setattr(parallel, "count", lambda: 3)
    config = TrainConfig(env={"task": "toy", "backend": "toy"}, num_envs=12, group_size=4)
    with pytest.raises(ValueError, match=message):
        train(config.updated(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
