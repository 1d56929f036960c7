"""Killed at any moment, a command goes on and ends where it would have ended."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file

import dllm_gym
import dllm_gym.files
from dllm_agents import train
from dllm_agents.config import TrainConfig
from dllm_agents.sb3.vec_env import GymVecEnv
from dllm_gym.evaluation import EvaluationResult, compare, evaluate
from dllm_gym.pretrain import PretrainConfig, Pretrainer
from dllm_gym.strategies import make_strategy

pytestmark = pytest.mark.usefixtures("toys")

TOY = {"task": "toy", "backend": "toy"}
N_STEPS = {"n_steps": 4, "batch_size": 16, "n_epochs": 2}


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch):
    monkeypatch.setattr("dllm_agents.sb3.callbacks.pareto_figure", lambda *_: Figure(figsize=(0.1, 0.1)))


def config(**changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "algorithm": "grpo",
        "env": TOY,
        "num_envs": 8,
        "group_size": 4,
        "total_timesteps": 320,
        "learning_rate": 1e-2,
        "algorithm_kwargs": N_STEPS,
        "policy": {"width": 16, "initial_bias": -1.0},
        "eval_every": 128,
        "eval_episodes": 8,
    }
    return TrainConfig(**{**settings, **changes})


ROUNDS = {"first_episodes": 8, "round_episodes": 8, "n_epochs": 1, "batch_size": 8}

CONFIGS = {
    "grpo": config(),
    "grpo, drawn tokens and ranges": config(env={**TOY, "temperature": 0.7, "alpha": [0.5, 2.0]}),
    "grpo with experts and a reference": config(
        algorithm_kwargs={**N_STEPS, "kl_coef": 0.1}, expert="confidence:k=3", num_experts=1
    ),
    "grpo after imitation": config(expert="confidence:k=3", imitation_steps=64),
    "success": config(algorithm="success", group_size=1, algorithm_kwargs=ROUNDS),
    "grpo with a warm start": config(warm_start="success", warm_start_steps=160, warm_start_kwargs=ROUNDS),
    "ppo": config(algorithm="ppo", group_size=1),
    "ppo in groups": config(algorithm="ppo"),
    "a2c": config(algorithm="a2c", group_size=1, algorithm_kwargs={"n_steps": 4}),
    "a2c in groups": config(algorithm="a2c", algorithm_kwargs={"n_steps": 4}),
}


def outcome(directory: Path) -> dict[str, Any]:
    """All that a training run ends with, but for times and the curves."""
    weights = {
        f"{name}/{key}": tensor.numpy().tobytes()
        for name in ("last", "best")
        for key, tensor in load_file(directory / name / "policy.safetensors").items()
    }
    rows = json.loads((directory / "metrics.json").read_text())["evaluations"]
    return {**weights, "rows": [{key: row[key] for key in row if key != "seconds"} for row in rows]}


class Killed(BaseException):
    """Like SIGKILL, nothing handles it."""


def killed_after(steps: int, run: Callable[[], Any], monkeypatch: Any) -> bool:
    """Runs until so many environment steps were made; whether it came to that."""
    left = steps
    step_wait = GymVecEnv.step_wait

    def counted(self: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return step_wait(self)

    with monkeypatch.context() as patch:
        patch.setattr(GymVecEnv, "step_wait", counted)
        try:
            run()
        except Killed:
            return True
    return False


@pytest.mark.parametrize("name", CONFIGS)
def test_a_training_that_stops_anywhere_ends_with_the_same_bits(tmp_path, monkeypatch, name):
    whole = outcome(train(CONFIGS[name], tmp_path / "whole"))
    rng, directory = np.random.default_rng(len(name)), tmp_path / "stopped"
    stops = 0
    for _ in range(100):
        torch.manual_seed(stops)  # what a new process would not know either
        np.random.seed(stops)  # noqa: NPY002

        def go_on() -> None:
            resume = (directory / "config.yaml").exists()
            train(CONFIGS[name], directory, resume=resume, save_every=0.0)

        if not killed_after(int(rng.integers(5, 15)), go_on, monkeypatch):
            break
        stops += 1
    assert stops >= 2
    assert outcome(directory) == whole


def test_rows_begin_anew_where_the_dllm_remembers(tmp_path, monkeypatch):
    """Keys and values of every row are not saved: such a run goes on, with new episodes."""
    remembering = config(env={**TOY}, total_timesteps=256)
    monkeypatch.setattr("dllm_gym.envs.engine.Engine.remembers", True)
    directory = tmp_path / "run"
    assert killed_after(18, lambda: train(remembering, directory, save_every=0.0), monkeypatch)
    train(remembering, directory, resume=True)
    assert outcome(directory)["rows"][-1]["timesteps"] >= 256


# Real kills ------------------------------------------------------------------------------------------------


def kill_until_done(work: Callable[[], None], seconds: tuple[float, float], seed: int) -> int:
    """Starts ``work`` again and again, killed at a random moment, until it ends; the number of kills."""
    context, rng, kills = multiprocessing.get_context("fork"), np.random.default_rng(seed), 0
    while True:
        process = context.Process(target=work)
        process.start()
        process.join(float(rng.uniform(*seconds)) * 1.3**kills)
        if process.exitcode is not None:
            assert process.exitcode == 0
            return kills
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1


def no_leftovers(directory: Path) -> bool:
    return not [path for path in directory.rglob("*") if path.name.startswith(".unfinished-")]


def test_a_killed_training_goes_on(tmp_path):
    whole = train(config(total_timesteps=1024), tmp_path / "whole")
    directory = tmp_path / "killed"

    def work() -> None:
        resume = (directory / "config.yaml").exists()
        train(config(total_timesteps=1024), directory, resume=resume, save_every=0.0)

    assert kill_until_done(work, (0.1, 0.4), seed=1) >= 1
    assert outcome(directory) == outcome(whole)
    assert no_leftovers(directory)


SMALL = {"width": 8, "layers": 1, "mlp_width": 8, "steps": 40, "batch_size": 4, "warmup": 2}


def test_a_killed_pretraining_goes_on(tmp_path):
    def work(directory: Path) -> None:
        pretrainer = Pretrainer(PretrainConfig(**SMALL), directory)  # type: ignore[arg-type]
        for _ in pretrainer.train(save_every=0.0):
            time.sleep(0.03)  # longer in all than two kills take
        pretrainer.save_checkpoint()

    work(tmp_path / "whole")
    directory = tmp_path / "killed"
    assert kill_until_done(lambda: work(directory), (0.2, 0.5), seed=2) >= 2
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (directory / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert no_leftovers(directory)


def test_a_killed_comparison_keeps_what_is_finished(tmp_path):
    agents = [make_strategy("confidence", k=k) for k in (1, 2, 3, 4, 5, 6)]
    settings: dict[str, Any] = {"episodes": 40, "strategies": agents, **TOY}
    whole = compare([], **settings).to_json()
    keep = tmp_path / "kept"

    def work() -> None:
        slow = lambda episode: time.sleep(0.004)  # noqa: E731
        compare([], keep=keep, on_episode=slow, **settings)

    assert kill_until_done(work, (0.1, 0.3), seed=3) >= 2
    decoded: list[Any] = []
    assert compare([], keep=keep, on_episode=decoded.append, **settings).to_json() == whole
    assert decoded == []
    assert len(list(keep.iterdir())) == len(agents)


def test_a_killed_evaluation_keeps_what_is_finished(tmp_path):
    settings: dict[str, Any] = {"agent": "random:k=2", "episodes": 40, "batch_size": 4, **TOY}
    whole = evaluate(**settings)
    output = tmp_path / "episodes.jsonl"
    work = lambda: evaluate(**settings, output=output, on_episode=lambda _: time.sleep(0.02))  # noqa: E731
    assert kill_until_done(work, (0.05, 0.15), seed=5) >= 2
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert sorted(line["index"] for line in lines) == list(range(40))  # each was decoded once
    decoded: list[Any] = []
    again = evaluate(**settings, output=output, on_episode=decoded.append)
    assert decoded == []
    again.save(tmp_path / "again.json"), whole.save(tmp_path / "whole.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_killed_generation_keeps_what_is_written(tmp_path):
    prompts = [str(number) for number in range(60)]
    whole = dllm_gym.generate(prompts, "confidence:k=2", "toy", completion_length=6)
    output = tmp_path / "texts.jsonl"

    def work() -> None:
        dllm_gym.generate(
            prompts, "confidence:k=2", "toy", completion_length=6, batch_size=4, output=output,
            on_text=lambda *_: time.sleep(0.01),
        )  # fmt: skip

    assert kill_until_done(work, (0.05, 0.15), seed=4) >= 2
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert sorted(line["index"] for line in lines) == list(range(60))  # each was written once
    again: list[int] = []
    assert whole == dllm_gym.generate(
        prompts, "confidence:k=2", "toy", completion_length=6, output=output,
        on_text=lambda index, _: again.append(index),
    )  # fmt: skip
    assert again == []


# What is kept, and of whom ---------------------------------------------------------------------------------


def test_kept_results_are_of_the_same_settings_only(tmp_path):
    calls: list[Any] = []

    def run(agent: str = "confidence:k=2", **changes: Any) -> int:
        calls.clear()
        settings: dict[str, Any] = {"episodes": 5, **TOY, **changes}
        compare([agent], strategies=[], keep=tmp_path, on_episode=calls.append, **settings)
        return len(calls)

    assert run() == 5
    assert run() == 0
    assert run("confidence:k=3") == 5
    assert run(episodes=6) == 6
    assert run(alpha=2.0) == 5
    assert run(split="train") == 5
    assert run(seed=1) == 5
    assert run() == 0


def test_an_evaluation_can_be_extended_but_not_mixed_with_another(tmp_path):
    output, decoded = tmp_path / "episodes.jsonl", []

    def run(agent: Any = "confidence:k=2", episodes: int = 5, **changes: Any) -> int:
        decoded.clear()
        evaluate(agent, episodes, output=output, on_episode=decoded.append, **{**TOY, **changes})
        return len(decoded)

    assert [run(), run(episodes=3), run(episodes=8)] == [5, 0, 3]
    for changes in ({"agent": "confidence:k=3"}, {"alpha": 2.0}, {"split": "train"}, {"seed": 1}):
        with pytest.raises(ValueError, match="line 1 was written with other settings"):
            run(**changes)
    with pytest.raises(ValueError, match="give output or record, not both"):
        run(record=True)
    lines = output.read_text().splitlines(keepends=True)
    lie = json.dumps(not json.loads(lines[0])["is_success"])
    for old, new in (
        ('"nfe": ', '"nfe": -Infinity, "": '),
        ('"nfe": ', f'"nfe": {10**400}, "": '),
        ('"nfe": ', '"nfe": -1, "": '),
        ('"score": ', '"score": 1.5, "": '),
        ('"is_success": ', f'"is_success": {lie}, "": '),
        ('"problem": ', '"problem": 7, "": '),
        ('"completion": "', '"completion": 1, "": "'),
        ('"is_success": ', '"is_success": 0, "": '),
    ):
        output.write_text(lines[0].replace(old, new))
        with pytest.raises(ValueError, match=r"episodes\.jsonl, index \d(: \w+ must be| is no episode)"):
            run()


def test_another_policy_at_the_same_place_is_evaluated(tmp_path):
    from dllm_agents import save_policy
    from dllm_agents.networks import UnmaskTransformer, UnmaskTransformerConfig

    calls: list[Any] = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        network = UnmaskTransformer(UnmaskTransformerConfig(width=16))
        save_policy(tmp_path / "policy", network)
        calls.append(0)

        def count(_: Any) -> None:
            calls[-1] += 1

        compare([str(tmp_path / "policy")], 5, strategies=[], keep=tmp_path / "k", on_episode=count, **TOY)
    assert calls == [5, 0, 5]


def test_what_cannot_be_kept_says_so_or_is_evaluated_again(tmp_path):
    with pytest.raises(ValueError, match="give keep or record, not both"):
        compare(["random"], 2, strategies=[], keep=tmp_path, record=True, **TOY)
    with pytest.raises(ValueError, match="described by plain values"):
        compare(["random"], 2, strategies=[], keep=tmp_path, task="toy", backend=object())
    everything = lambda observation: observation["action_mask"]  # noqa: E731
    for _ in range(2):
        done: list[Any] = []
        compare([everything], 2, strategies=[], keep=tmp_path / "k", on_episode=done.append, **TOY)
        assert len(done) == 2


def test_texts_of_other_settings_or_prompts_are_not_taken_over(tmp_path):
    output = tmp_path / "texts.jsonl"

    def write(prompts: list[str], **changes: Any) -> None:
        options: dict[str, Any] = {"backend": "toy", "completion_length": 6, "output": output, **changes}
        dllm_gym.generate(prompts, "confidence:k=2", **options)

    write(["1", "2"])
    before = output.read_bytes()
    for changes in ({"seed": 1}, {"temperature": 0.5}, {"completion_length": 5}):
        with pytest.raises(ValueError, match="line 1 was written with other settings"):
            write(["1", "2"], **changes)
    with pytest.raises(ValueError, match="index 1 answers another prompt: '2'"):
        write(["1", "3"])
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="ends with something else than a line of results"):
        write(["1"], output=tmp_path / "notes.txt")
    (tmp_path / "notes.txt").write_text('{"prompt": "mine"}\n')
    with pytest.raises(ValueError, match="is not of a file that is to be continued"):
        write(["1"], output=tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == '{"prompt": "mine"}\n'
    assert output.read_bytes() == before
    write(["1", "2", "3"])  # more of the same may follow
    assert output.read_bytes().startswith(before)


# Disks that fail -------------------------------------------------------------------------------------------


class FullDisk:
    """Lets so many bytes through, then every write raises ENOSPC, as a full file system does."""

    def __init__(self, patch: Any) -> None:
        self.left = 10**9
        write_bytes = Path.write_bytes

        def write(path: Path, content: Any) -> int:
            room, self.left = self.left, self.left - len(content)
            if self.left < 0:
                write_bytes(path, bytes(content)[: max(room, 0)])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            return write_bytes(path, content)

        patch.setattr(Path, "write_bytes", write)


@pytest.mark.parametrize("room", [0, 10, 1000, 10_000, 40_000])
def test_a_full_disk_stops_a_training_which_then_goes_on(tmp_path, monkeypatch, room):
    whole = outcome(train(config(), tmp_path / "whole"))
    directory = tmp_path / "run"
    assert killed_after(18, lambda: train(config(), directory, save_every=0.0), monkeypatch)
    before = {path: path.read_bytes() for path in directory.rglob("*.*") if "tfevents" not in path.name}
    with monkeypatch.context() as patch:
        FullDisk(patch).left = room
        with pytest.raises(OSError, match=r"cannot write .*run/.*: No space left on device") as raised:
            train(config(), directory, resume=True, save_every=0.0)
    assert raised.value.errno == errno.ENOSPC
    assert no_leftovers(directory)
    after = {path: path.read_bytes() for path in before}
    if not room:
        assert after == before
    train(config(), directory, resume=True)
    assert outcome(directory) == whole


def test_a_limit_on_file_size_is_an_error_and_leaves_the_old_file(tmp_path):
    """The real thing: the kernel refuses to write, in the middle of a file."""
    import resource

    path = dllm_gym.files.write_bytes(tmp_path / "state.pt", b"old")

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with pytest.raises(OSError, match=r"cannot write .*state\.pt: File too large"):
            dllm_gym.files.write_state(path, {"tensor": torch.zeros(10_000)})

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["state.pt"]


@pytest.mark.parametrize("command", ["evaluate", "generate", "compare"])
def test_a_full_disk_names_the_file_that_grows(tmp_path, command):
    """As above, in the middle of a file that gets a line per episode."""
    import resource

    folder = tmp_path / "kept"
    kept = folder / "lines.jsonl"
    grow: dict[str, Callable[[], Any]] = {
        "evaluate": lambda: evaluate("confidence:k=2", 200, output=kept, **TOY),
        "generate": lambda: dllm_gym.generate(
            ["1"] * 200, "confidence:k=2", "toy", completion_length=6, output=kept
        ),
        "compare": lambda: compare(["confidence:k=2"], 200, strategies="none", keep=folder, **TOY),
    }

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with pytest.raises(OSError, match=r"cannot write .*/kept/.*\.jsonl: File too large"):
            grow[command]()

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == 0
    grow[command]()  # and when there is room it goes on


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write .*file/policy\.json: (File exists|Not a directory)"):
        dllm_gym.files.write_text(tmp_path / "file" / "policy.json", "{}")
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(PermissionError, match=r"cannot write .*closed/a\.txt: Permission denied"):
        dllm_gym.files.write_text(tmp_path / "closed" / "a.txt", "")


# Damaged files ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory, toys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dllm_agents.sb3.callbacks.pareto_figure", lambda *_: Figure(figsize=(0.1, 0.1)))
        return train(config(total_timesteps=64), tmp_path_factory.mktemp("runs") / "run")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.99, 0.9999])
def test_a_cut_training_state_is_refused(run, share):
    state = run / "training_state.pt"
    whole = state.read_bytes()
    try:
        state.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=r"training_state\.pt is damaged or no training state"):
            train(config(total_timesteps=64), run, resume=True)
    finally:
        state.write_bytes(whole)
    train(config(total_timesteps=64), run, resume=True)


def test_a_training_state_of_another_version_is_refused(run):
    path = run / "training_state.pt"
    whole = path.read_bytes()
    state = torch.load(path, weights_only=True)
    del state["episodes"]
    try:
        torch.save(state, path)
        with pytest.raises(ValueError, match="no training state of this version: it lacks episodes"):
            train(config(total_timesteps=64), run, resume=True)
        torch.save([1], path)
        with pytest.raises(ValueError, match="is no training state: it holds list"):
            train(config(total_timesteps=64), run, resume=True)
    finally:
        path.write_bytes(whole)


def broken(state: Any) -> dict[str, Callable[[], Any]]:
    """Ways to spoil a training state of grpo, in place."""
    numbers = state["random"]["numpy"]
    env = state["episodes"]["env"]
    canvas, predicted = env["canvas"], env["predicted"]["shown"]
    steps = state["episodes"]["steps"]["history"]
    groups, first = state["episodes"]["steps"], steps["forgotten"]
    weights = next(iter(state["policy"].values()))
    moments = state["optimizer"]["state"][0]
    group = state["optimizer"]["param_groups"][0]
    first_row = state["history"][0]

    def put(place: Any, key: Any, value: Any) -> Callable[[], Any]:
        return lambda: place.__setitem__(key, value)

    return {
        "timesteps must be": put(state, "timesteps", -5),
        "updates must be": put(state, "updates", "3"),
        "best_reward must be": put(state, "best_reward", float("nan")),
        "seconds must be": put(state, "seconds", float("inf")),
        "next_ticket must be": put(state, "next_ticket", 1.5),
        "history must hold a list": put(state, "history", {"a": 1}),
        "evaluation 1 must be an object": put(state["history"], 0, [[[[]]]]),
        "evaluation 1: timesteps must be": put(first_row, "timesteps", -1),
        "evaluation 1, sample lacks accuracy": lambda: first_row["sample"].pop("accuracy"),
        "deterministic: accuracy must be a number": put(first_row["deterministic"], "accuracy", 7),
        "policy must hold": put(state, "policy", [1, 2]),
        "policy, .* must be torch.float32": put(state["policy"], next(iter(state["policy"])), torch.zeros(3)),
        "policy, .* holds NaN": lambda: weights.fill_(float("nan")),
        "reference must hold": put(state, "reference", {}),
        "optimizer must hold": put(state, "optimizer", {}),
        "param_groups, 0, lr must be a finite number": put(group, "lr", "fast"),
        "param_groups, 0, params must hold": put(group, "params", []),
        "optimizer, state, 0, exp_avg must be": put(moments, "exp_avg", torch.zeros(2)),
        "optimizer, state must be of the parameters": put(state["optimizer"]["state"], 99, {}),
        "random is no state of a random generator": put(state, "random", {"torch": torch.zeros(3)}),
        "random is no state of a random generator: .*": put(numbers["state"], "key", "key"),
        "episodes must hold": put(state, "episodes", {}),
        "episode_starts must be torch.bool": put(state["episodes"], "episode_starts", torch.zeros(8)),
        "current must lie from 0 to": lambda: state["episodes"]["current"].fill_(10**9),
        "env must hold canvas, indices": put(state["episodes"], "env", None),
        "canvas, masked must be torch.bool": put(canvas, "masked", torch.zeros(8, 5, dtype=torch.bool)),
        "completions must lie from 0 to": lambda: canvas["completions"].fill_(10**6),
        "steps must lie from 0 to 6": lambda: canvas["steps"].fill_(-1),
        "canvas, prompts must hold 8 values": put(canvas, "prompts", torch.zeros(3, 2)),
        "canvas, prompts, 0 must be torch.int64": put(canvas["prompts"], 0, torch.zeros(3)),
        "prompts must lie from 0 to": put(canvas["prompts"], 0, torch.full((3,), 10**6)),
        "ended must be torch.bool": put(env, "ended", None),
        "indices must lie from 0": lambda: env["indices"].fill_(-1),
        "alphas holds NaN": lambda: env["alphas"].fill_(float("nan")),
        "no environment shows this": lambda: predicted["confidence"].fill_(2.0),
        "problem_rngs must hold 8 values": put(env, "problem_rngs", []),
        "problem_rngs, 0 must hold": put(env["problem_rngs"], 0, {}),
        "env is no state of a random generator": put(env["problem_rngs"][0]["state"], "state", -1),
        "history, steps must hold tensors": put(steps, "steps", {"confidence": torch.zeros(1)}),
        "forgotten must be": put(steps, "forgotten", -1),
        "started must lie from": lambda: steps["started"].fill_(10**6),
        "groups: each must be": put(groups, "groups", [[0]]),
        "groups, 0: row must be": put(groups, "groups", [[0, [[99, 0, 0, 0.0, 0.0, False]]]]),
        "groups, 0: reward must be": put(
            groups, "groups", [[0, [[0, first, first, float("inf"), 0.0, False]]]]
        ),
    }


BROKEN = 44


@pytest.mark.parametrize("at", range(BROKEN))
def test_a_training_state_is_checked_field_by_field(stopped, at):
    path = stopped / "training_state.pt"
    whole = path.read_bytes()
    state = torch.load(path, weights_only=True)
    ways = broken(state)
    assert len(ways) == BROKEN
    message, spoil = list(ways.items())[at]
    spoil()
    try:
        torch.save(state, path)
        with pytest.raises(ValueError, match=rf"training_state\.pt.*{message}"):
            train(config(), stopped, resume=True)
    finally:
        path.write_bytes(whole)


def test_a_state_of_a_success_model_is_checked_too(tmp_path, monkeypatch):
    directory, success = tmp_path / "run", CONFIGS["success"]
    assert killed_after(20, lambda: train(success, directory, save_every=0.0), monkeypatch)
    path = directory / "training_state.pt"
    whole = path.read_bytes()
    for message, changes in {
        "rounds must be a list": {"rounds": [1]},
        "rounds, 0 lacks _length, _score": {"rounds": [{}]},
        "rounds, 0, _length must lie from 1": {
            "rounds": [{"_length": torch.tensor([0]), "_score": torch.ones(1)}]
        },
        "rounds, 0, mask must have the 2 steps": {
            "rounds": [{"_length": torch.tensor([2]), "_score": torch.ones(1), "mask": torch.zeros(3, 6)}]
        },
        "behaviour must hold 4 values": {"behaviour": []},
        "harm, 0 must be a finite number": {"harm": [float("nan"), 0.5]},
        "champion, weights must hold": {"champion": {"reward": 0.5, "harm": [3.0, 0.1], "weights": {}}},
    }.items():
        path.write_bytes(whole)
        state = torch.load(path, weights_only=True)
        state["episodes"]["steps"] |= changes
        torch.save(state, path)
        with pytest.raises(ValueError, match=rf"training_state\.pt.*{message}"):
            train(success, directory, resume=True)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, toys):
    """A run in the middle of episodes, groups and an evaluation or two."""
    directory = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dllm_agents.sb3.callbacks.pareto_figure", lambda *_: Figure(figsize=(0.1, 0.1)))
        assert killed_after(26, lambda: train(config(), directory, save_every=0.0), patch)
    return directory


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("step must be a whole number of at least 0, below 2", {"step": 7}),
        ("seconds must be", {"seconds": -1}),
        ("config must be an object", {"config": 3}),
        ("config is none of this version", {"config": {"widths": 3}}),
        ("config is none of this version", {"config": {"width": "a"}}),
        ("model must hold", {"model": {}}),
        ("optimizers must be a list of 2", {"optimizers": []}),
        ("optimizers, 0 must hold state, param_groups", {"optimizers": [{}, {}]}),
        ("generator is no state of a random generator", {"generator": [0]}),
    ],
)
def test_a_pretraining_state_is_checked_field_by_field(tmp_path_factory, message, changes):
    directory = tmp_path_factory.getbasetemp() / "pretraining"
    small = PretrainConfig(**{**SMALL, "steps": 1})
    if not directory.exists():
        list(Pretrainer(small, directory).train())
    path = directory / "training_state.pt"
    whole = path.read_bytes()
    try:
        torch.save({**torch.load(path, weights_only=True), **changes}, path)
        with pytest.raises(ValueError, match=rf"training_state\.pt.*{message}"):
            Pretrainer(small, directory)
    finally:
        path.write_bytes(whole)


def test_a_cut_pretraining_state_is_refused(tmp_path):
    list(Pretrainer(PretrainConfig(**{**SMALL, "steps": 1}), tmp_path).train())
    path = tmp_path / "training_state.pt"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"training_state\.pt is damaged"):
        Pretrainer(PretrainConfig(**{**SMALL, "steps": 1}), tmp_path)


def test_results_come_back_as_they_were(tmp_path):
    result = dllm_gym.evaluate("confidence:k=2", 7, **TOY)
    loaded = EvaluationResult.load(result.save(tmp_path / "result.json"))
    assert loaded.to_json() == result.to_json()
    assert loaded.records.completion == result.records.completion
    for name in ("problem", "score", "success", "nfe", "reward"):
        ours, theirs = getattr(loaded.records, name), getattr(result.records, name)
        assert ours.dtype == theirs.dtype
        assert (ours == theirs).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "no evaluation of format version 1"),
        ({"episodes": 6}, "6 episodes, but columns of"),
        ({"episodes": "7"}, "episodes must be a whole number of at least 1, got '7'"),
        ({"episodes": 0}, "episodes must be a whole number of at least 1, got 0"),
        ({"agent": None}, "agent must be a text, got None"),
        ({"seed": True}, "seed must be a whole number"),
        ({"columns": {}}, "columns lacks problem, score, success, nfe, reward"),
        ({"completion": [1] * 7}, "completion must be a list, each of it a text"),
        ({"completion": ["a"]}, "7 episodes, but columns of .*'completion': 1"),
        ({"environment": {"task": "toy"}}, "environment lacks backend, completion_length, block_length"),
        ({"environment.completion_length": "6"}, "completion_length must be a whole number"),
        ({"environment.block_length": 0}, "block_length must be a whole number of at least 1, or a list"),
        ({"environment.block_length": []}, "block_length must be a whole number of at least 1, or a list"),
        ({"columns.score": [1.5] * 7}, "score must be a list, each of it a number from 0 to 1"),
        ({"columns.score": [float("nan")] * 7}, "score must be a list, each of it a number from 0 to 1"),
        (
            {"columns.score": [0.5] * 7, "columns.success": [1.0] * 7},
            "success must be 1 where",
        ),
        ({"columns.success": [0.5] * 7}, "success must be a list, each of it 0 or 1"),
        ({"columns.nfe": [-3.0] * 7}, "nfe must be a list, each of it a whole number of at least 1"),
        ({"columns.nfe": [2.5] * 7}, "nfe must be a list, each of it a whole number of at least 1"),
        ({"columns.nfe": [0.0] * 7}, "nfe must be a list, each of it a whole number of at least 1"),
        ({"columns.problem": [-1] * 7}, "problem must be a list, each of it a whole number of at least 0"),
        ({"columns.problem": [10**30] * 7}, "problem must be a list, each of it a whole number"),
        ({"columns.reward": ["a"] * 7}, "reward must be a list, each of it a finite number"),
        ({"columns.accuracy": [0.0] * 7}, "no metric may be named accuracy"),
        ({"columns.backend": [0.0] * 7}, "no metric may be named backend"),
        ({"columns.mine": [True] * 7}, "mine must be a list, each of it a finite number"),
    ],
)
def test_results_that_do_not_fit_are_refused(tmp_path, changes, message):
    path = dllm_gym.evaluate("confidence:k=2", 7, **TOY).save(tmp_path / "result.json")
    content = json.loads(path.read_text())
    for key, value in changes.items():
        *inside, name = key.split(".")
        place = content
        for outer in inside:
            place = place[outer]
        place[name] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as raised:
        EvaluationResult.load(path)
    assert str(path) in str(raised.value)
