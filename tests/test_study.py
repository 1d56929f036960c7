"""Studies: the grid is checked, cells go on where they were, workers may die, the page is true."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import yaml
from test_interruption import kill_until_done, no_leftovers
from typer.testing import CliRunner

from dllm_agents import study
from dllm_agents.config import TrainConfig, find_config, load_config
from dllm_agents.studies import running
from dllm_agents.studies.cell import RECORD, run_cell
from dllm_agents.studies.findings import ALL_TASKS, find
from dllm_agents.studies.grid import STUDY, Study, load_study, make_study
from dllm_agents.studies.page import PAGE, RESULTS, write_page
from dllm_agents.studies.plots import algorithm_styles, pictures
from dllm_agents.studies.workers import Job, Processes, run
from dllm_gym.suite import SUITE
from dllm_gym.suite import member as suite_member

SMALL = {
    "num_envs": 8,
    "total_timesteps": 256,
    "algorithm_kwargs": {"n_steps": 4},
    "policy": {"width": 16},
    "eval_every": 128,
    "eval_episodes": 8,
}
TOY: dict[str, Any] = {
    "algorithms": {"a2c": {"algorithm": "a2c", "group_size": 1}, "grpo": {"group_size": 4}},
    "tasks": {"toy": {"task": "toy", "backend": "toy"}},
    "seeds": 2,
    "common": SMALL,
    "episodes": 12,
}


# The grid ---------------------------------------------------------------------------------------------------


def test_every_cell_has_its_configuration():
    grid = make_study(
        {
            "algorithms": {"slow": {"config": "ppo-full", "learning_rate": 1e-4, "policy": {"heads": 2}}},
            "tasks": {"blocks": {"block_length": 8, "alpha": 2.0}},
            "seeds": [3, 5],
            "common": {"learning_rate": 0.5, "env": {"alpha": 0.5, "temperature": 0.1}, "eval_every": 7},
        }
    )
    shipped = load_config(find_config("ppo-full"))
    env = {**shipped.env, "alpha": 2.0, "temperature": 0.1, "block_length": 8}
    policy = {**shipped.policy, "heads": 2}
    expected = shipped.updated(env=env, policy=policy, learning_rate=1e-4, eval_every=7)
    assert [cell.config for cell in grid.cells] == [expected.updated(seed=seed) for seed in (3, 5)]
    assert [cell.name for cell in grid.cells] == ["slow/blocks/3", "slow/blocks/5"]


def test_names_alone_are_enough(tmp_path):
    (tmp_path / "mine.yaml").write_text("algorithm: ppo\n")
    suite = make_study({"algorithms": ["ppo"], "tasks": ["DLLMUnmask/Sudoku-v0", "sudoku"]})
    assert suite.tasks == {
        "Sudoku-v0": suite_member("DLLMUnmask/Sudoku-v0").env,
        "sudoku": {"task": "sudoku"},
    }
    grid = make_study({"algorithms": ["ppo", "mine.yaml"], "tasks": ["sudoku"], "seeds": 1}, tmp_path)
    ppo, mine = grid.cells
    assert (ppo.name, mine.name) == ("ppo/sudoku/0", "mine/sudoku/0")
    assert ppo.config.env == {**load_config(find_config("ppo-full")).env, "task": "sudoku"}
    assert mine.config == TrainConfig(algorithm="ppo", env={"task": "sudoku"})


def test_what_is_given_for_every_training_wins_over_the_file():
    grid = make_study(TOY, overrides={"total_timesteps": 99, "policy": {"heads": 2}})
    assert {cell.config.total_timesteps for cell in grid.cells} == {99}
    assert all(cell.config.policy == {"width": 16, "heads": 2} for cell in grid.cells)


def test_a_saved_study_is_the_same_and_names_no_other_file(tmp_path):
    grid = make_study({**TOY, "decodings": ["sample,beta=2"], "threads": 2})
    grid.save(tmp_path)
    assert load_study(tmp_path / STUDY) == grid
    assert "config:" not in (tmp_path / STUDY).read_text()


@pytest.mark.parametrize(("name", "cells"), [("arithmetic", 30), ("dependence", 120), ("suite", 140)])
def test_a_shipped_study_is_found(name, cells):
    assert len(load_study(name).cells) == cells


def test_the_study_of_the_suite_has_all_its_members():
    assert [*load_study("suite").tasks.values()] == [member.env for member in SUITE]


def test_a_shipped_study_is_no_configuration():
    with pytest.raises(FileNotFoundError, match=r"known: (?!.*studies)"):
        find_config("studies/arithmetic")
    known = r"no study 'nothing'; known: arithmetic, dependence, suite; or give"
    with pytest.raises(FileNotFoundError, match=known):
        load_study("nothing")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 3}, r"unknown fields of a study \['seed'\]; known: common, algorithms, tasks, seeds"),
        ({"algorithms": {}}, "at least one of algorithms, got none"),
        ({"tasks": []}, "at least one of tasks, got none"),
        ({"algorithms": {"a/b": {}}}, r"algorithms are named by letters, digits and _\.\+-, got 'a/b'"),
        ({"algorithms": {"x": 3}}, "algorithm x must hold names and values, got 3"),
        ({"algorithms": {"x": {"learning_rat": 1}}}, r"algorithm x: unknown .* \['learning_rat'\]"),
        ({"algorithms": {"x": {"seed": 1}}}, "x must not have a seed: a study has seeds"),
        ({"common": {"seed": 1}}, "common must not have a seed"),
        ({"common": {**SMALL, "eval_every": 0}}, "algorithm a2c: eval_every must be a whole number"),
        ({"algorithms": ["ppo", "b/ppo"]}, "algorithms must be different from each other, got ppo, b/ppo"),
        ({"tasks": {"toy": "toy"}}, "task toy must hold names and values, got 'toy'"),
        ({"seeds": 0}, "seeds must be a whole number of at least 1, got 0"),
        ({"seeds": [1, 1]}, r"seeds must be different from each other, at least one, got \(1, 1\)"),
        ({"seeds": [-1]}, "a2c/toy: seed must be a whole number from 0"),
        ({"seeds": ["a"]}, r"seeds must be whole numbers, got \['a'\]"),
        ({"decodings": "sample"}, "decodings must be a list, got 'sample'"),
        ({"episodes": 0}, "episodes must be a whole number of at least 1"),
        ({"threads": 0}, "threads must be a whole number of at least 1"),
        ({"gpus": -1}, "gpus must be a finite number of at least 0"),
    ],
)
def test_a_grid_out_of_range_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_study({**TOY, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": {"t": {"tsk": "toy"}}}, r"a2c/t: unknown arguments \['tsk'\] in env"),
        ({"tasks": {"t": {"task": "nothing"}}}, r"a2c/t: unknown task 'nothing'"),
        ({"tasks": {"t": {"task_kwargs": {"max_stepz": 1}}}}, "a2c/t: .*max_stepz"),
        ({"common": {**SMALL, "policy": {"widht": 1}}}, r"a2c/toy: unknown arguments \['widht'\] in policy"),
        ({"decodings": ["greedy"]}, "cannot read the option 'greedy' of a policy"),
        ({"gpus": 1}, "gpus are what Ray counts, got 1 without ray"),
    ],
)
def test_nothing_is_trained_before_all_names_are_known(tmp_path, toys, changes, message):
    with pytest.raises(ValueError, match=message):
        study({**TOY, **changes}, tmp_path / "study")
    assert not (tmp_path / "study").exists()


# Cells ------------------------------------------------------------------------------------------------------


class Here:
    """Runs cells in this process, which has the toys."""

    count = 1

    def __init__(self, *_: Any) -> None:
        self.started: list[str] = []

    def start(self, job: Job) -> str:
        directory, name = job.arguments
        self.started.append(name)
        grid = load_study(Path(directory) / STUDY)
        run_cell(Path(directory), grid, next(cell for cell in grid.cells if cell.name == name))
        return name

    def ending(self, handle: str) -> str:
        return ""

    def stop(self, handle: str) -> None:
        pass


@pytest.fixture
def here(monkeypatch, toys) -> Here:
    monkeypatch.setattr("dllm_agents.sb3.callbacks.evaluation_figures", lambda *_: {})  # for TensorBoard
    workers = Here()
    monkeypatch.setattr(running, "Processes", lambda *_: workers)
    return workers


def by_steps(directory: Path) -> dict[str, Any]:
    """All numbers of a study but times."""
    found = json.loads((directory / RESULTS).read_text())
    return {name: value for name, value in found.items() if name != "seconds"}


def test_a_study_ends_with_a_page_and_is_not_run_again(tmp_path, here, monkeypatch):
    lines: list[str] = []
    directory = study(TOY, tmp_path / "study", on_cell=lines.append)
    names = ["a2c/toy/0", "grpo/toy/0", "a2c/toy/1", "grpo/toy/1"]
    assert here.started == names
    assert [line.split(": done")[0] for line in lines] == [f"[{n}/4] {c}" for n, c in enumerate(names, 1)]
    found = by_steps(directory)
    assert list(found["cells"]) == names
    test = found["cells"]["grpo/toy/1"]["tests"]["sample"]
    last = json.loads((directory / "cells/grpo/toy/1" / RECORD).read_text())["evaluations"][-1]
    assert last["timesteps"] >= 256
    assert test["tokens_per_forward"] == pytest.approx(6 / test["nfe_mean"])
    assert found["tasks"]["toy"]["grpo"]["sample"]["nfe_mean"]["value"] == pytest.approx(
        np.mean([found["cells"][f"grpo/toy/{seed}"]["tests"]["sample"]["nfe_mean"] for seed in (0, 1)])
    )
    page = (directory / PAGE).read_text()
    assert "| algorithm | reward | accuracy | steps (NFE) | tokens per forward | AUP |" in page
    assert "missing" not in page
    monkeypatch.setattr("dllm_agents.studies.page.pictures", lambda _: {})  # quicker
    study(TOY, directory)
    # again, and with a further seed: what is finished is not done again
    before = (directory / PAGE).read_bytes()
    study(TOY, directory)
    assert here.started == names
    assert (directory / PAGE).read_bytes() == before
    study({**TOY, "seeds": 3}, directory)
    assert here.started == [*names, "a2c/toy/2", "grpo/toy/2"]
    # other tests need no other training
    written = (directory / "cells/a2c/toy/0/metrics.json").stat().st_mtime_ns
    study({**TOY, "episodes": 4}, directory)
    assert here.started[6:] == names
    assert (directory / "cells/a2c/toy/0/metrics.json").stat().st_mtime_ns == written


def test_another_study_is_not_mixed_into_a_directory(tmp_path, here):
    study({**TOY, "seeds": 1}, tmp_path)
    changed = {**TOY, "common": {**SMALL, "learning_rate": 0.5, "eval_every": 32}}
    with pytest.raises(
        ValueError, match=r"config\.yaml differs from the study in learning_rate, eval_every;"
    ):
        study(changed, tmp_path)
    assert len(here.started) == 2


def test_killed_at_any_moment_a_study_ends_with_the_same_numbers(tmp_path, here, monkeypatch):
    monkeypatch.setattr("dllm_agents.studies.page.pictures", lambda _: {})
    whole = by_steps(study(TOY, tmp_path / "whole"))

    def work() -> None:
        study(TOY, tmp_path / "killed")

    assert kill_until_done(work, (0.1, 0.4), seed=3) >= 3
    assert by_steps(tmp_path / "killed") == whole
    assert no_leftovers(tmp_path / "killed" / "cells")


def test_two_processes_take_turns_in_a_cell(tmp_path, here):
    """A study that was started twice."""
    grid = make_study(TOY)
    threads = [threading.Thread(target=run_cell, args=(tmp_path, grid, grid.cells[0])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "cells" / grid.cells[0].name / RECORD).is_file()


# Workers ----------------------------------------------------------------------------------------------------


def job(folder: Path, name: str, source: str) -> Job:
    (folder / f"{name}.py").write_text(source)
    return Job(name, name, (str(folder),), folder / f"{name}.txt", folder)


DIES = """
import os, signal, sys
with open("tries", "a") as file:
    file.write("x")
if len(open("tries").read()) < 3:
    os.kill(os.getpid(), signal.SIGKILL)
print("at last, with", os.environ["OMP_NUM_THREADS"], "threads and", sys.argv[1:])
"""


def test_one_that_dies_is_run_again_and_one_that_fails_is_named(tmp_path):
    jobs = [
        job(tmp_path, "dies", DIES),
        job(tmp_path, "fails", "raise ValueError('never works')"),
        job(tmp_path, "works", "print('fine')"),
    ]
    endings: list[tuple[str, str, bool]] = []
    failed = run(
        jobs,
        Processes(2, threads=3),
        on_ending=lambda job, ending, seconds, again: endings.append((job.name, ending, again)),
    )
    assert list(failed) == ["fails"]
    assert failed["fails"].startswith("ended with status 1; ")
    assert failed["fails"].endswith("ends with: ValueError: never works")
    killed = ("dies", "killed by SIGKILL", True)
    assert [end for end in endings if end[0] == "dies"] == [killed, killed, ("dies", "", False)]
    assert [again for name, _, again in endings if name == "fails"] == [True, True, False]
    assert ("works", "", False) in endings
    assert (tmp_path / "dies.txt").read_text() == f"at last, with 3 threads and ['{tmp_path}']\n"


WAITS = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(300)"


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def wait_for(condition: Any, what: str) -> None:
    for _ in range(400):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail(what)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's doing")
def test_what_a_killed_program_was_running_ends_with_it(tmp_path):
    process = multiprocessing.get_context("fork").Process(
        target=run, args=([job(tmp_path, "waits", WAITS)], Processes(1))
    )
    process.start()
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "it does not begin")
    pid = int((tmp_path / "pid").read_text())
    assert is_running(pid)
    process.kill()
    process.join()
    wait_for(lambda: not is_running(pid), "it goes on by itself")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_interrupted_program_leaves_nothing_running(tmp_path):
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    jobs = [job(tmp_path, "waits", WAITS), job(tmp_path, "works", "import os, time\n" + "time.sleep(1)\n")]
    with pytest.raises(KeyboardInterrupt):
        run(jobs, Processes(2), on_ending=interrupt)
    assert not (tmp_path / "pid").exists() or not is_running(int((tmp_path / "pid").read_text()))


# Findings and the page --------------------------------------------------------------------------------------


def made_up(grid: Study) -> dict[str, Any]:
    """Records of cells: an algorithm earns less than the one before it and learns more slowly."""
    rng, records = np.random.default_rng(0), {}
    for cell in grid.cells:
        place = list(grid.algorithms).index(cell.algorithm)
        top = 0.8 - 0.2 * place + float(rng.uniform(-0.05, 0.05))
        rows = [
            {
                "timesteps": 100 * n,
                "seconds": (10.0 + place) * n,
                "sample": {"reward_mean": top * n / 4},
            }
            for n in range(1, 5)
        ]
        tests = {}
        for at, decoding in enumerate(grid.decodings):
            nfe = 8.0 + 4 * at
            tests[decoding] = {
                "accuracy": top + 0.1,
                "nfe_mean": nfe,
                "reward_mean": top,
                "tokens_per_forward": 48 / nfe,
            }
        records[cell.name] = {"episodes": grid.episodes, "tests": tests, "evaluations": rows}
    return records


GRID: dict[str, Any] = {
    "algorithms": {"ppo": {"algorithm": "ppo"}, "a2c": {"algorithm": "a2c"}},
    "tasks": {"full": {}, "blocks": {"block_length": 8}},
}


def test_curves_pass_through_the_evaluations():
    grid = make_study(GRID)
    records = made_up(grid)
    curve = find(grid, records)["timesteps"]["curves"]["full"]["ppo"]
    assert curve["at"] == [100, 200, 300, 400]
    tops = sorted(records[f"ppo/full/{seed}"]["tests"]["sample"]["reward_mean"] for seed in grid.seeds)
    np.testing.assert_allclose(curve["value"], np.mean(tops[1:-1]) * np.array([1, 2, 3, 4]) / 4)
    assert (np.array(curve["low"]) <= curve["value"]).all()
    assert (np.array(curve["high"]) >= curve["value"]).all()


def test_algorithms_are_compared_at_equal_seconds():
    grid = make_study(GRID)
    found = find(grid, made_up(grid))["seconds"]
    assert found["points"] == [11.0, 22.0, 33.0, 44.0]  # those of the slower one
    whole = found["curves"][ALL_TASKS]["ppo"]["value"]
    grown = [point["value"] for point in found["grid"]["ppo"]]
    np.testing.assert_allclose(grown, [*(whole[-1] * s / 40 for s in (11, 22, 33)), whole[-1]])
    slow = find(grid, made_up(grid))["seconds"]["grid"]["a2c"]
    assert [point["value"] for point in slow] == pytest.approx(found["curves"][ALL_TASKS]["a2c"]["value"])


def test_the_better_algorithm_is_said_to_be_better():
    grid = make_study(GRID)
    found = find(grid, made_up(grid))
    assert found["improvement"]["ppo"]["a2c"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert found["improvement"]["a2c"]["ppo"]["value"] == 0.0
    assert found["all"]["ppo"]["reward_mean"]["low"] > found["all"]["a2c"]["reward_mean"]["high"]
    assert found["all"]["ppo"]["tokens_per_forward"]["value"] == 6.0
    profile = np.array(found["profiles"]["ppo"]["value"])
    assert profile[0] == 1
    assert profile[-1] == 0
    assert (np.diff(profile) <= 0).all()


def test_what_is_missing_is_said_and_nothing_made_up_for_it(tmp_path):
    grid = make_study(GRID)
    records = made_up(grid)
    missing = {name: "ended with status 1" for name in list(records) if name.startswith("a2c/full/")}
    for name in [*missing, "ppo/blocks/0"]:
        del records[name]
    missing["ppo/blocks/0"] = "killed by SIGKILL"
    found = find(grid, records)
    assert found["all"]["a2c"]["reward_mean"] is None
    assert found["tasks"]["blocks"]["a2c"]["sample"]["accuracy"]["low"] is not None
    assert found["timesteps"]["curves"][ALL_TASKS]["a2c"] is None
    assert found["improvement"]["ppo"]["a2c"] is None
    page = write_page(tmp_path, grid, records, missing).read_text()
    assert "**6 of 20 cells are missing**" in page
    assert "- `ppo/blocks/0`: killed by SIGKILL" in page
    assert "| a2c | - | - | - | - | - |" in page
    assert {path.name for path in tmp_path.glob("*.png")} == {
        f"{name}.png" for name in ("learning", "measures", "speed", "profiles", "improvement")
    }


def test_one_algorithm_one_seed_has_a_page_too(tmp_path):
    grid = make_study({**GRID, "algorithms": {"ppo": {"algorithm": "ppo"}}, "seeds": 1})
    page = write_page(tmp_path, grid, made_up(grid), {}).read_text()
    assert "Who earns more" not in page
    assert "1 seed, each training in a process of 1 thread" in page
    assert "(" not in page.split("| ppo |")[1].split("\n")[0]  # no interval


def test_an_algorithm_has_its_colour_everywhere():
    """Also where another one is missing; and more algorithms than colours are still told apart."""
    grid = make_study(GRID)
    records = made_up(grid)
    only = {name: record for name, record in records.items() if name.startswith("a2c")}
    second = mpl.colormaps["tab10"](1)
    figures = pictures(find(grid, only))
    (line,) = figures["learning"].axes[0].lines
    assert line.get_color() == second
    assert {point.get_color() for panel in figures["speed"].axes for point in panel.lines} == {second}
    (line,) = figures["profiles"].axes[0].lines
    assert line.get_color() == second
    styles = [str(style) for style in algorithm_styles([f"a{n}" for n in range(40)]).values()]
    assert len(set(styles)) == 40


# The command ------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch) -> Any:
    import typer

    from dllm_agents import plugin

    given: list[Any] = []
    monkeypatch.setattr(running, "study", lambda *args, **kwargs: given.append((*args, kwargs)))
    app = typer.Typer()
    plugin.register_commands(app)

    def run(*arguments: str) -> Any:
        result = CliRunner().invoke(app, ["study", *arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return given[-1]

    return run


def test_the_command_makes_a_study_of_names(command):
    grid, directory, options = command(
        *("--algorithm", "ppo", "--algorithm", "a2c", "--task", "sudoku", "--seeds", "2", "--jobs", "3"),
        *("--total-timesteps", "500", "--eval-every", "100", "--max-minutes", "0.5", "--episodes", "10"),
    )
    assert directory == Path("runs/study")
    assert options["jobs"] == 3
    assert (grid.seeds, grid.episodes) == ((0, 1), 10)
    assert [cell.name for cell in grid.cells[:2]] == ["ppo/sudoku/0", "a2c/sudoku/0"]
    config = grid.cells[0].config
    assert (config.total_timesteps, config.eval_every, config.max_minutes) == (500, 100, 0.5)


def test_the_command_takes_a_file(command, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**TOY, "common": SMALL}))
    grid, directory, options = command(str(path), "--ray", "auto", "--total-timesteps", "70")
    assert directory == Path("runs/mine")
    assert options["ray"] == "auto"
    assert grid == replace(make_study(TOY, overrides={"total_timesteps": 70}))
    for wrong in ([], [str(path), "--algorithm", "ppo"], [str(path), "--task", "sudoku"]):
        with pytest.raises(ValueError, match="give either a study file, or --algorithm and --task"):
            command(*wrong)


def test_failures_are_named_when_the_rest_is_done(tmp_path, here, monkeypatch):
    start = here.start

    def one_fails(job: Job) -> str:
        return "" if job.name == "grpo/toy/0" else start(job)

    monkeypatch.setattr(here, "start", one_fails)
    monkeypatch.setattr(here, "ending", lambda handle: "" if handle else "killed by SIGKILL")
    with pytest.raises(ChildProcessError, match=r"1 of 4 cells failed: grpo/toy/0 killed by SIGKILL; .*log"):
        study(TOY, tmp_path)
    assert here.started == ["a2c/toy/0", "a2c/toy/1", "grpo/toy/1"]
    page = (tmp_path / PAGE).read_text()
    assert "**1 of 4 cells are missing**" in page
    assert "- `grpo/toy/0`: killed by SIGKILL" in page


@pytest.mark.slow
def test_killed_three_times_a_study_of_processes_ends_with_the_same_tables(tmp_path):
    content = {
        **TOY,
        "tasks": ["sudoku"],
        "common": {**SMALL, "total_timesteps": 800, "eval_every": 400},
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(content))

    def start(directory: Path) -> subprocess.Popen[bytes]:
        arguments = ["study", str(path), "--output", str(directory), "--jobs", "2"]
        with (tmp_path / "log.txt").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dllm_gym", *arguments],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    started = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0
    seconds = time.monotonic() - started
    rng, kills = np.random.default_rng(0), 0
    while kills < 3:
        process = start(tmp_path / "killed")
        try:
            assert process.wait(float(rng.uniform(0.1, 0.6)) * seconds) == 0
            pytest.fail("it was faster than the killer")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
    assert start(tmp_path / "killed").wait() == 0
    assert by_steps(tmp_path / "killed") == by_steps(tmp_path / "whole")
