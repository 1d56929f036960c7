"""The ``dllm-gym`` command, in this process where nothing speaks against it."""

from __future__ import annotations

import io
import json
import math
import re
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from rich.console import Console

import dllm_agents.checkpoint
import dllm_gym
from dllm_agents import save_policy
from dllm_agents.config import TrainConfig, load_config
from dllm_agents.networks import UnmaskTransformer, UnmaskTransformerConfig
from dllm_gym import bench, cli
from dllm_gym.cli import options, screen
from dllm_gym.cli.evaluation import Settings
from dllm_gym.evaluation import sweep

pytestmark = pytest.mark.usefixtures("toys")

TOY = ("--task", "toy", "--backend", "toy")
COMMANDS = (
    "list", "evaluate", "compare", "analyze", "play", "report", "generate", "serve", "pretrain",
    "quality-head", "bench", "train", "posttrain",
)  # fmt: skip
RESULT_KEYS = {
    "agent", "parameters", "label", "backend", "task", "split", "completion_length", "block_length", "alpha",
    "target_steps", "reward", "reward_metric", "on_empty", "temperature", "stop_at_eos", "episodes", "seed",
    "accuracy", "accuracy_ci95", "nfe_mean", "nfe_ci95", "reward_mean", "reward_ci95",
}  # fmt: skip


class Output(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What the last line of standard output says."""
        return json.loads(self.out.splitlines()[-1])

    @property
    def words(self) -> str:
        """Standard error without the line breaks of an 80 column terminal."""
        return " ".join(self.err.split())


@pytest.fixture
def run(monkeypatch, capfd):
    """Runs the command as the console script does."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # typer replaces it
    monkeypatch.setattr(cli.app, "registered_commands", list(cli.app.registered_commands))

    def run_command(*arguments: object) -> Output:
        monkeypatch.setattr(sys, "argv", ["dllm-gym", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return Output(stopped.value.code or 0, *capfd.readouterr())

    return run_command


def save_network(path: Path, bias: float = -1.0) -> Path:
    config = UnmaskTransformerConfig(width=16, initial_bias=bias, value_head=True)
    return save_policy(path, UnmaskTransformer(config))


def assert_finite(value: Any) -> None:
    if isinstance(value, float):
        assert math.isfinite(value)
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        assert_finite(inner)


# Help and list ----------------------------------------------------------------------------------------------


def test_help_names_the_commands(run):
    done = run("--help")
    assert done.code == 0
    for command in COMMANDS:
        assert f" {command} " in done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run, command):
    assert run(command, "--help").code == 0


def test_list(run, tmp_path, monkeypatch):
    save_network(tmp_path / "shipped" / "quick")
    monkeypatch.setattr(dllm_agents.checkpoint, "SHIPPED", tmp_path / "shipped")
    done = run("list", "--json", "-")
    assert done.code == 0
    content = done.json
    families = {family.pop("name"): family for family in content.pop("families")}
    assert "GSAI-ML/LLaDA-8B-Instruct" in families["LLaDA"]["published"]
    for name, family in families.items():
        assert name in done.words
        assert family["verified"] in done.words
    suite = {member.pop("id"): member for member in content.pop("suite")}
    assert list(suite) == [member.id for member in dllm_gym.SUITE]
    for member in dllm_gym.SUITE:
        assert member.id in done.words
        shown = suite[member.id]
        assert {name: shown[name] for name in member.env} == member.env
        if member.figures is not None:
            assert shown["figures"]["best_rule"]["label"] == member.figures.best_rule.label
            assert f"{member.figures.best_rule.reward:.3f} {member.figures.best_rule.label}" in done.words
    strategies = {rule.pop("name"): rule for rule in content.pop("strategies")}
    assert strategies["fast-dllm"] == {
        "label": "fast-dllm(threshold=0.9)",
        "paper": "Fast-dLLM, arXiv 2505.22618",
    }
    for rule in strategies.values():
        assert f"{rule['label']}: {rule['paper']}" in done.words
    assert content.keys() == {"backends", "datasets", "tasks", "policies"}
    assert "toy" in content["backends"]
    assert {"arithmetic", "sudoku", "toy"} <= set(content["tasks"])
    assert content["policies"] == ["policy:quick"]
    for kind, names in content.items():
        assert f"{kind}: {', '.join(names)}" in done.words
    assert len(done.out.splitlines()) == 1

    listed = run("list", "--json", tmp_path / "list.json")
    assert listed.err == ""
    for kind, names in content.items():
        assert f"{kind}: {', '.join(names)}" in listed.out.splitlines()
    assert json.loads((tmp_path / "list.json").read_text()) == done.json


def test_version(run):
    assert run("--version") == (0, f"dllm-gym {dllm_gym.__version__}\n", "")


@pytest.mark.parametrize(
    ("complete", "incomplete", "expected"),
    [
        (options.complete_task, "ari", ["arithmetic"]),
        (options.complete_dllm, "tiny-arithmetic-", ["tiny-arithmetic-dream"]),
        (options.complete_agent, "conf", ["confidence"]),
        (options.complete_agent, "policy:sudoku", ["policy:sudoku-full"]),
        (options.complete_member, "DLLMUnmask/Sudoku-", ["DLLMUnmask/Sudoku-v0"]),
        (options.complete_split, "t", ["train", "test"]),
        (options.complete_agent, "?", []),
    ],
)
def test_names_are_completed(complete, incomplete, expected):
    assert complete(incomplete) == expected


def test_the_shell_completes_values(run, monkeypatch):
    monkeypatch.setenv("_DLLM_GYM_COMPLETE", "complete_fish")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "dllm-gym evaluate --task sud")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    assert run().out.split() == ["sudoku"]


# Pretrain ---------------------------------------------------------------------------------------------------


def test_pretrain_a_dream_on_a_mixture(run, tmp_path):
    arguments = (
        f"--output {tmp_path / 'tiny'} --layout dream --layers 1 --width 16 --heads 2 --kv-heads 1 "
        '--task sudoku --task-kwargs [{"size":4},{"size":6}] --steps 2 --batch-size 2 --episodes 2'
    )
    done = run("pretrain", *arguments.split())
    assert done.code == 0, done.err
    config = json.loads((tmp_path / "tiny" / "config.json").read_text())
    assert (config["model_type"], config["num_key_value_heads"]) == ("Dream", 1)
    rows = json.loads((tmp_path / "tiny" / "pretraining.json").read_text())["metrics"]
    assert [(row["task_kwargs"], row["completion_length"], row["block_length"]) for row in rows] == [
        ({"size": 4}, 16, 8),
        ({"size": 4}, 16, 16),
        ({"size": 6}, 36, 8),
        ({"size": 6}, 36, 36),
    ]


def test_a_quality_head_beside_its_dllm(run, tmp_path):
    directory = tmp_path / "tiny"
    small = "--layers 1 --width 16 --task sudoku --steps 2 --batch-size 2 --episodes 2"
    assert run("pretrain", "--output", directory, *small.split()).code == 0
    play = ("evaluate", "--agent", "prism", "--backend", directory, "--task", "sudoku", "--episodes", 2)
    assert "tiny has no quality_head.safetensors, which dllm-gym quality-head trains" in run(*play).words
    few = "--steps 3 --batch-size 2 --reveal 2 --episodes 4"
    done = run("quality-head", "--backend", directory, "--output", directory, *few.split())
    assert done.code == 0, done.err
    assert done.out.split()[:4] == ["quality", "written", "unseen", "right"]
    record = json.loads((directory / "quality_head.json").read_text())
    assert record["config"] | {"steps": 3, "batch_size": 2, "reveal": 2} == record["config"]
    assert run(*play).code == 0


# Generate ---------------------------------------------------------------------------------------------------

GENERATE = ("generate", "--backend", "toy", "--completion-length", 6, "--agent", "confidence:k=2")


def expected_texts(*prompts, **options):
    return dllm_gym.generate(prompts, "confidence:k=2", "toy", completion_length=6, **options)


def test_generate_writes_texts_to_standard_output(run):
    done = run(*GENERATE, "31", "4", "159")
    assert done.code == 0, done.err
    generations = expected_texts("31", "4", "159")
    assert done.out.splitlines() == [one.text for one in generations]
    tokens, steps = sum(len(one.tokens) for one in generations), sum(one.steps for one in generations)
    assert f"{tokens} tokens in {steps} steps: {tokens / steps:.1f} tokens per forward" in done.words
    assert done.words.startswith("31 4 159 ")  # whose texts they are


def test_generate_json(run, tmp_path):
    done = run(*GENERATE, "31", "4", "--json", tmp_path / "texts.json")
    rows = json.loads((tmp_path / "texts.json").read_text())
    assert rows == [one.to_json() for one in expected_texts("31", "4")]
    assert done.out.splitlines() == [row["text"] for row in rows]
    done = run(*GENERATE, "31", "4", "--json", "-")
    assert len(done.out.splitlines()) == 1
    assert done.json == rows


def test_generate_passes_its_options_on(run):
    options = {"temperature": 0.7, "block_length": 3, "batch_size": 2, "seed": 5}
    given = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    done = run(*GENERATE, "31", "4", "159", *given)
    assert done.out.splitlines() == [one.text for one in expected_texts("31", "4", "159", **options)]


def test_generate_from_files_and_standard_input(run, tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("31\n4\n")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "31"}\n{"prompt": "4"}\n')
    monkeypatch.setattr(sys, "stdin", io.StringIO("31\n4\n"))
    expected = [one.text for one in expected_texts("31", "4")]
    for source in (tmp_path / "prompts.txt", tmp_path / "prompts.jsonl", "-"):
        assert run(*GENERATE, "--file", source).out.splitlines() == expected


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (("generate", "1", "2\udcff"), "argument 3 is no UTF-8 text: the byte 0xff, at position 2"),
        (("evaluate", "--agent", "\udcff", "--json", "-"), "argument 3 is no UTF-8 text: the byte 0xff"),
    ],
)
def test_an_argument_that_is_no_text_is_named(run, arguments, place):
    done = run(*arguments)
    assert done.code == 1
    assert done.words.startswith(f"error: {place}")


def test_serve_says_what_stands_in_its_way(run, monkeypatch):
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("serve", "--backend", "never-loaded", "--host", "0.0.0.0", "--port", port)
    assert done.code == 1
    assert "warning: whoever reaches 0.0.0.0 can use this server: give --api-key" in done.words
    assert f"cannot listen at 0.0.0.0, port {port}" in done.words
    monkeypatch.delitem(sys.modules, "dllm_gym.server.app", raising=False)
    monkeypatch.delattr("dllm_gym.server.app", raising=False)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert "pip install 'dllm-gym[serve]'" in run("serve", "--backend", "toy", "--port", 0).words


def test_generate_answers_chats(run, tmp_path):
    prompt = "Sam has 20 coins, finds 4, loses 9. Total?"
    lines = [json.dumps({"messages": [{"role": "user", "content": prompt}]}), json.dumps({"prompt": prompt})]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines))
    done = run("generate", "--no-compile", "--file", tmp_path / "chats.jsonl")
    chat, text = done.out.splitlines()
    assert chat == text == dllm_gym.generate(prompt).text
    assert done.words.count(prompt) == 2


def test_generate_streams_the_text_being_written(run, monkeypatch):
    monkeypatch.setattr(screen, "console", Console(stderr=True, force_terminal=True, width=80))
    done = run(
        "generate",
        "--no-compile",
        "--stream",
        "--agent",
        "confidence:k=12",
        "Mia has 7 pens, doubles them, finds 4. Total?",
    )
    assert done.code == 0, done.err
    drafts = []
    dllm_gym.generate(
        "Mia has 7 pens, doubles them, finds 4. Total?",
        "confidence:k=12",
        on_step=lambda index, text, step: drafts.append(f"{step:4}  {text}"),
    )
    assert len(drafts) > 1
    shown = [done.err.find(draft[:70]) for draft in drafts]
    assert -1 not in shown
    assert shown == sorted(shown)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give either prompts or --file"),
        (("31", "--file", "prompts.txt"), "give either prompts or --file"),
        (("31", "4", "--stream"), "--stream shows one text being written, got 2 prompts"),
        (("--file", "prompts.csv"), "prompts come from .txt and .jsonl files"),
        (("31", "--block-length", "x"), "block length must be a whole number or 'full', got 'x'"),
    ],
)
def test_generate_refuses_in_one_line(run, arguments, message):
    done = run(*GENERATE, *arguments)
    assert done.code == 1
    assert done.out == ""
    assert message in done.words


def test_generate_refuses_an_empty_file(run, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n")
    done = run(*GENERATE, "--file", tmp_path / "prompts.txt")
    assert done.code == 1
    assert "prompts.txt holds no prompts" in done.words


# Bench ------------------------------------------------------------------------------------------------------


def test_bench_json(run, monkeypatch):
    monkeypatch.setattr(bench, "measure_limit", partial(bench.measure_limit, seconds=0.01))
    sizes = ("--batch-size", 1, "--batch-size", 3, "--completion-length", 16, "--block-length", 8)
    done = run("bench", "--quick", *sizes, "--agent", "confidence:k=4", "--json", "-")
    assert done.code == 0
    assert [limit["batch_size"] for limit in done.json["limits"]] == [1, 3]
    assert all(limit["completion_length"] == 16 for limit in done.json["limits"])
    assert done.json["efficiency_batch_3"] == pytest.approx(done.json["limits"][1]["efficiency"], abs=1e-3)
    assert done.json["machine"]["torch"]
    assert "efficiency" in done.err  # standard output has the JSON alone
    found = [(speed["label"], speed["batch_size"], speed["steps"]) for speed in done.json["speeds"]]
    each = [("plain loop", 16.0), ("confidence(k=4)", 4.0)]
    assert found == [(label, size, steps) for size in (1, 3) for label, steps in each]
    assert "completions/s" in done.words


def test_bench_needs_a_transformers_model(run):
    done = run("bench", "--backend", "toy")
    assert done.code == 1
    assert "only transformers models have a bare forward to compare with" in done.words


# Evaluate ---------------------------------------------------------------------------------------------------


def test_evaluate_json(run):
    done = run("evaluate", "--agent", "confidence:k=2", *TOY, "--episodes", 12, "--json", "-")
    assert done.code == 0
    assert len(done.out.splitlines()) == 1
    (row,) = done.json
    assert row.keys() >= RESULT_KEYS
    assert_finite(row)
    expected = dllm_gym.evaluate("confidence:k=2", 12, task="toy", backend="toy").to_json()
    assert row == expected
    assert row["label"] == "confidence(k=2)"
    assert f"{row['accuracy']:.3f}" in done.err
    assert "confidence(k=2)" in done.err


def test_results_go_to_standard_output(run, tmp_path):
    arguments = ("evaluate", "--agent", "random:k=1", *TOY, "--episodes", 3)
    done = run(*arguments)
    assert (done.code, done.err) == (0, "")
    assert "3 test problems of toy, decoded with toy" in done.out
    assert "random(k=1)" in done.out
    again = run(*arguments, "--json", tmp_path / "deep" / "result.json")
    assert again == done
    assert json.loads((tmp_path / "deep" / "result.json").read_text())[0]["episodes"] == 3


def test_evaluate_passes_every_option_on(run):
    (row,) = run(
        "evaluate", "--agent", "left-to-right:k=1", *TOY, "--block-length", 2, "--episodes", 7,
        "--split", "validation", "--alpha", 2.5, "--seed", 4, "--json", "-",
    ).json  # fmt: skip
    given = {"block_length": 2, "episodes": 7, "split": "validation", "alpha": 2.5, "seed": 4}
    assert {key: row[key] for key in given} == given
    (row,) = run("evaluate", "--agent", "random", *TOY, "--block-length", "full", "--json", "-").json
    assert row["block_length"] == row["completion_length"] == 6
    several = run("evaluate", "--agent", "random", *TOY, "--block-length", "2,4,full", "--json", "-")
    assert several.json[0]["block_length"] == [2, 4, 6]
    assert " 2, 4, 6 " in several.err
    assert row["split"] == "test"
    assert row["episodes"] == 50  # the task has no more


def test_evaluate_a_policy(run, tmp_path):
    save_network(tmp_path / "run" / "best")
    for text, label in (
        (tmp_path / "run", "run (sample)"),
        (f"{tmp_path}/run:deterministic", "run (deterministic)"),
        (f"{tmp_path}/run/best:sample", "best (sample)"),
    ):
        (row,) = run("evaluate", "--agent", text, *TOY, "--episodes", 5, "--json", "-").json
        assert row["label"] == label
        assert row["parameters"] == {"decoding": label.split("(")[1][:-1]}


# Compare ----------------------------------------------------------------------------------------------------


def test_compare(run, tmp_path):
    for name, bias in (("a", -2.0), ("b", 1.0)):
        save_network(tmp_path / name / "best", bias)
    done = run(
        "compare", *TOY, "--episodes", 6, "--agent", tmp_path / "a/best", "--agent", tmp_path / "b/best",
        "--plot", tmp_path / "plots" / "pareto.png", "--json", tmp_path / "rows.json",
    )  # fmt: skip
    assert done.code == 0
    assert done.err.endswith(f"plot: {tmp_path / 'plots' / 'pareto.png'}\n")  # the first lines tell the time
    assert (tmp_path / "plots" / "pareto.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["label"] for row in rows[:-2]] == [strategy.label for strategy in sweep("full")]
    assert all(row.keys() >= RESULT_KEYS and row["episodes"] == 6 for row in rows)
    assert_finite(rows)
    assert [row["learned"] for row in rows] == [False] * (len(rows) - 2) + [True] * 2
    assert not any("envelope_gap" in row for row in rows[:-2])
    # two runs of the same name keep their own gaps
    for row in rows[-2:]:
        assert row["label"] == "best (sample)"
        assert row["envelope_gap"] == pytest.approx(row["accuracy"] - row["envelope_accuracy"])
        low, high = row["envelope_gap_ci95"]
        assert low <= high
        assert (
            f"best (sample): {100 * row['accuracy']:.1f} % at {row['nfe_mean']:.1f} steps, "
            f"{100 * row['envelope_gap']:+.1f} points" in done.out
        )
    assert rows[-1]["nfe_mean"] < rows[-2]["nfe_mean"]


def test_names_that_look_like_markup(run, tmp_path):
    save_network(tmp_path / "[x]" / "best")
    done = run("compare", *TOY, "--episodes", 2, "--agent", tmp_path / "[x]")
    assert done.code == 0
    assert done.out.count("[x] (sample)") == 2  # in the table and in the line about its gap
    assert "[x] (sample)" in run("evaluate", *TOY, "--episodes", 2, "--agent", tmp_path / "[x]").out


def test_results_are_there_whatever_happens_to_the_plot(run, tmp_path, monkeypatch):
    def broken(*_: Any) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr("dllm_gym.evaluation.Comparison.plot", broken)
    monkeypatch.setattr("dllm_gym.evaluation.Analysis.plot", broken)
    arguments = (*TOY, "--episodes", 2, "--agent", "confidence:k=2", "--json", tmp_path / "rows.json")
    for command in (
        ("compare", "--strategies", "none", "--plot", tmp_path / "a.png"),
        ("analyze", "--output", tmp_path),
    ):
        done = run(*command, *arguments)
        assert done.code == 1
        assert "error: no ink" in done.words
        (row,) = json.loads((tmp_path / "rows.json").read_text())
        assert row["label"] == "confidence(k=2)"
        (tmp_path / "rows.json").unlink()
    assert json.loads((tmp_path / "analysis.json").read_text())


def test_an_ending_that_is_no_picture_is_refused_before_anything_is_decoded(run, tmp_path, monkeypatch):
    monkeypatch.setattr("dllm_gym.evaluation.compare", lambda *_, **__: pytest.fail("decoded"))
    done = run("compare", *TOY, "--agent", "confidence:k=2", "--plot", tmp_path / "a.txt")
    assert done.code == 1
    assert "no picture ends in .txt; known: " in done.words


@pytest.mark.parametrize("name", ["$x$", "$\\frac{", "_under", "a^{b_"])
def test_names_that_look_like_formulas(run, tmp_path, name):
    save_network(tmp_path / name / "best")
    picture, agent = tmp_path / "a.png", ("--agent", tmp_path / name)
    done = run("compare", *TOY, "--episodes", 2, "--strategies", "short", *agent, "--plot", picture)
    assert done.code == 0, done.err
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert run("analyze", *TOY, "--episodes", 2, *agent, "--output", tmp_path / "out").code == 0


@pytest.mark.parametrize(("name", "count"), [("none", 1), ("short", 9), ("full", 103)])
def test_compare_with_as_many_heuristics_as_wanted(run, name, count):
    done = run("compare", *TOY, "--episodes", 1, "--strategies", name, "--agent", "random:k=3", "--json", "-")
    assert (done.code, len(done.json)) == (0, count)
    assert done.json[-1]["label"] == "random(k=3)"


def test_compare_refuses_strategies_it_does_not_know(run):
    done = run("compare", *TOY, "--strategies", "some")
    assert done.code == 1
    assert "unknown strategies 'some'; choose one of none, short, full" in done.words
    assert "nobody to compare" in run("compare", *TOY, "--strategies", "none").words


def test_one_problem_has_no_interval(run, tmp_path):
    save_network(tmp_path / "a" / "best")
    arguments = ("--episodes", 1, "--strategies", "short", "--agent", tmp_path / "a")
    done = run("compare", *TOY, *arguments, "--json", "-")
    assert done.code == 0
    assert re.search(r"[+-][\d.]+ points to the best mixture", done.words)
    assert done.json[-1]["envelope_gap_ci95"] == [None, None]
    assert "NaN" not in done.out


def test_compare_strategies_alone(run):
    done = run("compare", *TOY, "--episodes", 2, "--block-length", 3, "--json", "-")
    assert done.code == 0
    assert len(done.out.splitlines()) == 1
    assert len(done.json) == len(sweep("full"))
    assert all(row["block_length"] == 3 for row in done.json)


def test_compare_two(run):
    done = run("compare", "confidence:k=3", "confidence:k=1", *TOY, "--strategies", "none", "--json", "-")
    first, second = (dllm_gym.evaluate(f"confidence:k={k}", task="toy", backend="toy") for k in (3, 1))
    _, row = done.json
    assert row["lead_of"] == "confidence(k=3)"
    assert row["lead_accuracy"] == pytest.approx(first.accuracy - second.accuracy)
    assert row["lead_nfe"] == -4.0  # two steps instead of six
    assert row["lead_reward"] == pytest.approx(first.reward_mean - second.reward_mean)
    (line,) = [line for line in done.err.splitlines() if " - confidence(k=1): " in line]
    assert f"{100 * row['lead_accuracy']:+.1f} points" in line
    assert "at 2.0 and 6.0 steps, -4.0 steps (-4.0 to -4.0), reward " in line
    # an agent may also be named by --agent
    again = run("compare", "confidence:k=3", "--agent", "confidence:k=1", *TOY, "--strategies", "none")
    assert line in again.out.splitlines()


def test_the_duration_is_told_after_the_first_setting(capfd):
    seconds = iter([100.0, 103.0, 103.0, 106.0])
    follow = Settings(4, screen.Counter("decoding"), clock=lambda: next(seconds))
    result = dllm_gym.evaluate("confidence:k=3", 5, task="toy", backend="toy")
    for _ in range(2):
        follow.start(5)
        follow.finish(result)
    expected = "time: confidence(k=3) took 3 s for 2.0 steps a problem; 3 more settings like it take 9 s\n"
    assert capfd.readouterr() == ("", expected)


def test_what_takes_no_time_is_not_told(run):
    assert run("compare", *TOY, "--episodes", 2, "--strategies", "short").err == ""


# Progress ---------------------------------------------------------------------------------------------------


def test_progress_without_a_terminal_is_a_line_now_and_then():
    now, lines = [0.0], []
    count = screen.Counter("decoding", 100, lines.append, lambda: now[0])
    for second in range(1, 31):
        now[0] = float(second)
        count.advance()
    assert lines == [
        "decoding: 5 of 100, about 2 min left",
        "decoding: 15 of 100, about 85 s left",
        "decoding: 25 of 100, about 75 s left",
    ]
    lines.clear()
    count.begin("comparing")
    now[0] += 20
    count.expect(1000)  # loading is over: from here on the time counts
    now[0] += 10
    count.advance()
    for _ in range(19):
        count.advance()
    now[0] += 10
    count.advance()
    expected = ["comparing: 0 of 1000", "comparing: 1 of 1000", "comparing: 21 of 1000, about 16 min left"]
    assert lines == expected


def test_progress_on_a_terminal_is_a_bar(monkeypatch, capfd):
    monkeypatch.setattr(screen, "console", Console(stderr=True, force_terminal=True, width=80))
    with screen.progress("[decoding]", 4) as bar:
        bar.advance()
        bar.expect(2)
        bar.describe("[red]")
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "[red]" in shown.err
    assert "1/3" in shown.err


# A user's own file ------------------------------------------------------------------------------------------


MY_TASKS = """
from dllm_gym import register_task
from toy_backend import ToyTask

register_task("my-task", ToyTask)
"""


@pytest.fixture
def my_tasks(tmp_path, monkeypatch):
    monkeypatch.setattr(dllm_gym.tasks, "_TASKS", dict(dllm_gym.tasks._TASKS))
    path = tmp_path / "my_tasks_of_a_test.py"
    path.write_text(MY_TASKS)
    yield path
    sys.modules.pop(path.stem, None)


def test_own_tasks(run, tmp_path, my_tasks, config_file):
    """Trained on and evaluated on without naming it again."""
    mine = ("--import", my_tasks)
    directory = tmp_path / "run"
    arguments = (
        "--config",
        config_file,
        "--task",
        "my-task",
        "--set",
        "env.backend=toy",
        "--output",
        directory,
    )
    done = run("train", "ppo", *arguments, *mine)
    assert done.code == 0, done.err
    (row,) = run("evaluate", "--agent", directory, "--episodes", 3, *mine, "--json", "-").json
    assert (row["task"], row["backend"]) == ("toy", "toy")  # what the task calls itself
    done = run("compare", directory, "--strategies", "none", "--episodes", 3, *mine, "--json", "-")
    assert done.json[0]["task"] == "toy"
    assert run("generate", "1", "--agent", directory, *mine).code == 0


def test_members_of_the_suite_by_their_ids(run, tmp_path, config_file, monkeypatch):
    few = ("--env", "DLLMUnmask/Sudoku-v0", "--episodes", 2, "--no-compile", "--json", "-")
    (row,) = run("evaluate", "--agent", "confidence:k=8", *few).json
    assert (row["task"], row["backend"], row["block_length"]) == ("sudoku", "tiny-sudoku", 16)
    # a member says where, whatever the policy was trained on; what is told besides counts
    told = ("--backend", "toy", "--block-length", 4, "--task-kwargs", '{"size": 6}')
    (row,) = run("compare", "random:k=9", "--strategies", "none", *few, *told).json
    assert (row["task"], row["backend"], row["block_length"]) == ("sudoku", "toy", 4)
    assert row["completion_length"] == 36
    words = run("evaluate", "--agent", "random", "--task", "sudoku", *few).words
    assert "--env DLLMUnmask/Sudoku-v0 has a task: give --env or --task sudoku, not both" in words
    words = run("evaluate", "--agent", "random", "--env", "DLLMUnmask/Sudoko-v0").words
    assert "unknown environment 'DLLMUnmask/Sudoko-v0' (did you mean 'DLLMUnmask/Sudoku-v0'?)" in words
    monkeypatch.chdir(tmp_path)
    done = run("train", "ppo", "--config", config_file, "--env", "DLLMUnmask/Sudoku-v0")
    assert done.code == 0, done.err
    trained = load_config(Path("runs/tiny-DLLMUnmask-Sudoku-v0/config.yaml"))
    assert (trained.env["task"], trained.env["backend"]) == ("sudoku", "tiny-sudoku")


def test_without_its_file_a_task_is_unknown(run, tmp_path, my_tasks):
    words = run("evaluate", "--agent", "random", "--task", "my-task").words
    assert (
        "one of your own is registered first (register_task; on the command line --import my_tasks.py)"
        in words
    )
    taken = tmp_path / "json.py"
    taken.write_text("")
    done = run("evaluate", "--agent", "random", "--import", taken)
    assert done.err == "error: --import json.py: there is a module json already; rename the file\n"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ("train ppo --group-size 8", "field of the configuration can be given as --set name=value"),
        ("train ppo --reward x", "a task of your own comes from --import my_tasks.py"),
        ("evaluate --agent random --size 6", "the task's own parameters go into --task-kwargs, as JSON"),
        ("generate 1 --cache dual", "those of the dLLM into --backend-kwargs"),
    ],
)
def test_an_unknown_option_points_to_those_that_take_it(run, arguments, hint):
    done = run(*arguments.split())
    assert done.code == 2
    assert hint in " ".join(done.err.replace("│", " ").split())


# Compile ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), {"compile": "auto"}),
        (("--compile",), {"compile": True}),
        (("--no-compile",), {}),
        (
            ("--backend-kwargs", '{"compile": false}', "--dtype", "float32"),
            {"compile": False, "dtype": "float32"},
        ),
        (("--task", "toy", "--backend", "toy"), {}),
    ],
)
@pytest.mark.parametrize(
    "command", ["evaluate --agent confidence", "compare confidence", "analyze --agent confidence"]
)
def test_embedded_dllms_are_compiled_unless_told_otherwise(run, monkeypatch, command, arguments, expected):
    seen = {}

    def engine(*_: Any, **kwargs: Any) -> Any:
        seen.update(kwargs)
        raise ValueError("seen")

    monkeypatch.setattr("dllm_gym.evaluation.running.Engine", engine)
    assert "seen" in run(*command.split(), *arguments).err
    assert (seen.get("backend_kwargs") or {}) == expected


def test_the_dllm_of_a_text_is_compiled_and_that_of_a_film_is_not(run, monkeypatch):
    seen = []

    def engine(*_: Any, **kwargs: Any) -> Any:
        seen.append(kwargs.get("backend_kwargs"))
        raise ValueError("seen")

    monkeypatch.setattr("dllm_gym.generation.Engine", engine)
    monkeypatch.setattr(sys.modules["dllm_gym.looking.film"], "Engine", engine)
    monkeypatch.setattr("dllm_gym.evaluation.running.Engine", engine)
    run("generate", "1", "--agent", "policy:arithmetic-full")
    run("report", "policy:sudoku-full")
    run("play", "--agent", "policy:sudoku-full")
    assert seen == [{"compile": "auto"}, {"compile": "auto"}, None]


# Analyze ----------------------------------------------------------------------------------------------------


def test_analyze(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_network(tmp_path / "[mine]" / "best")
    done = run(
        "analyze", *TOY, "--agent", "[mine]:deterministic", "--agent", "fast-dllm:threshold=0.9",
        "--episodes", 5, "--block-length", 3, "--seed", 2, "--check-consistency", "--json", "-",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 1
    output = Path("runs") / "analysis"
    names = ["1-mine-deterministic.npz", "2-fast-dllm-threshold-0.9.npz", "analysis.json", "analysis.png"]
    assert sorted(path.name for path in output.iterdir()) == names
    for name in names:
        assert f"written: {output / name}" in done.words
    assert (output / "analysis.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((output / "analysis.json").read_text())
    assert rows == done.json
    assert_finite(rows)
    expected = dllm_gym.analyze(
        [tmp_path / "[mine]:deterministic", "fast-dllm:threshold=0.9"], 5, task="toy", backend="toy",
        block_length=3, seed=2, check_consistency=True, backend_kwargs={}, task_kwargs={}, alpha=1.0,
    ).to_json()  # fmt: skip
    assert rows == expected
    assert [row["label"] for row in rows] == ["[mine] (deterministic)", "fast-dllm(threshold=0.9)"]
    for measure, name in {
        "accuracy": "accuracy",
        "neighbours in the same step": "same_step",
        "tokens it would write again": "kept",
    }.items():
        digits = {"same_step": 2}.get(name, 3)
        shown = [f"{row[name]:.{digits}f}" for row in rows]
        assert f"{measure} {' '.join(shown)}" in done.words

    again = run(
        "analyze", "--recording", output / names[1], "--recording", output / names[0], "--output", "again",
        "--text-only",
    )  # fmt: skip
    assert again.code == 0
    assert "[mine] (deterministic)" in again.out
    assert sorted(path.name for path in Path("again").iterdir()) == ["analysis.json", "analysis.png"]
    text = json.loads((Path("again") / "analysis.json").read_text())
    assert [row["label"] for row in text] == [row["label"] for row in rows[::-1]]
    assert text[0]["environment"] == rows[1]["environment"]
    assert sum(map(sum, text[0]["reveals"])) < sum(map(sum, rows[1]["reveals"])) == 5 * 6


def test_an_interrupted_analysis_leaves_the_recordings_that_were_there(run, tmp_path, monkeypatch):
    expected = dllm_gym.analyze(["confidence:k=2"], 5, task="toy", backend="toy").to_json()
    evaluate = dllm_gym.evaluate

    def interrupted(agent, *args, **kwargs):
        if agent.label == "confidence(k=1)":
            raise KeyboardInterrupt
        return evaluate(agent, *args, **kwargs)

    monkeypatch.setattr("dllm_gym.evaluation.evaluate", interrupted)
    agents = ["--agent", "confidence:k=2", "--agent", "confidence:k=1"]
    run("analyze", *TOY, *agents, "--episodes", 5, "--output", tmp_path)
    (left,) = tmp_path.iterdir()
    assert dllm_gym.analyze([dllm_gym.Recording.load(left)]).to_json() == expected


# Train ------------------------------------------------------------------------------------------------------


@pytest.fixture
def config_file(tmp_path) -> Path:
    config = TrainConfig(
        algorithm="ppo",
        env={"task": "toy", "backend": "toy"},
        num_envs=8,
        group_size=4,
        total_timesteps=32,
        algorithm_kwargs={"n_steps": 4, "batch_size": 32, "n_epochs": 1},
        policy={"width": 16},
        eval_episodes=4,
    )
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(config.to_dict()))
    return path


def test_train_evaluate_resume(run, tmp_path, config_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("train", "ppo", "--config", config_file, "--seed", 5, "--max-minutes", 3)
    assert done.code == 0, done.err
    directory = Path("runs") / "tiny"
    assert done.out.splitlines() == [
        f"policy: {directory / 'best'}",
        f"curves: tensorboard --logdir {directory}",
    ]
    written = load_config(directory / "config.yaml")
    assert written == load_config(config_file).updated(seed=5, max_minutes=3.0)
    metrics = json.loads((directory / "metrics.json").read_text())
    assert metrics["command"] == f"dllm-gym train ppo --config {config_file} --seed 5 --max-minutes 3"
    assert (
        run("evaluate", "--agent", directory, *TOY, "--episodes", 3, "--json", "-").json[0]["episodes"] == 3
    )

    again = run("train", "ppo", "--config", config_file)
    assert again.code == 1
    assert (
        "error: runs/tiny already holds a training run; resume it (--resume) or choose another" in again.err
    )
    # resuming takes the configuration that is there, wherever it came from
    config_file.unlink()
    assert run("train", "ppo", "--resume", "--output", directory).code == 0
    assert load_config(directory / "config.yaml") == written


def test_train_overrides_the_configuration(run, tmp_path, config_file):
    changes = ["--total-timesteps", 1, "--num-envs", 16, "--alpha", 2.5]
    done = run("train", "ppo", "--config", config_file, *changes, "--output", tmp_path / "run")
    assert done.code == 0
    written = load_config(tmp_path / "run" / "config.yaml")
    env = {**load_config(config_file).env, "alpha": 2.5}
    assert written == load_config(config_file).updated(total_timesteps=1, num_envs=16, env=env)


def test_train_sets_any_field_of_the_configuration(run, tmp_path, config_file):
    changes = ["--set", "num_envs=16", "--set", "env.alpha=2.5", "--set", "algorithm_kwargs.ent_coef=1e-3"]
    done = run("train", "ppo", "--config", config_file, *changes, "--output", tmp_path / "run")
    assert done.code == 0, done.err
    before, written = load_config(config_file), load_config(tmp_path / "run" / "config.yaml")
    assert written == before.updated(
        num_envs=16,
        env={**before.env, "alpha": 2.5},
        algorithm_kwargs={**before.algorithm_kwargs, "ent_coef": 0.001},
    )


# Wrong input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "evaluate --agent nobody",
            "'nobody' is neither a strategy nor the path of a saved policy; strategies:",
        ),
        ("compare --agent nobody", "'nobody' is neither a strategy nor the path of a saved policy"),
        ("evaluate --agent [bold]x", "'[bold]x' is neither a strategy"),
        ("evaluate --agent [/x]", "there is no folder [/x]"),
        ("evaluate --agent runs/mine:sample", "there is no folder runs/mine"),
        ("evaluate --agent .", ". holds no policy: there is no policy.json in it"),
        (
            "evaluate --agent confidnce:k=2",
            "'confidnce:k=2' is neither a strategy nor the path of a saved policy "
            "(did you mean 'confidence'?)",
        ),
        ("evaluate --agent arithmetic-full", "(did you mean 'policy:arithmetic-full'?)"),
        (
            "evaluate --agent policy:sudoku-ful:sample",
            "unknown policy 'sudoku-ful' (did you mean 'sudoku-full'?)",
        ),
        ("evaluate --agent random --task sudku", "unknown task 'sudku' (did you mean 'sudoku'?)"),
        (
            "evaluate --agent random --backend tiny-sudku",
            "unknown backend 'tiny-sudku' (did you mean 'tiny-sudoku'?)",
        ),
        ("train pppo", "unknown algorithm 'pppo' (did you mean 'ppo'?)"),
        ("train ppo --config ppo-fll", "no configuration 'ppo-fll' (did you mean 'ppo-full'?)"),
        ("train ppo --set env.alpha", "write name=value, such as env.alpha=2, got 'env.alpha'"),
        ("train ppo --set nvironment.alpha=2", "unknown configuration fields ['nvironment']"),
        ("train ppo --set env=[", "env=[ is not YAML"),
        ("train ppo --set num_envs=x", "num_envs must be a whole number of at least 1, got 'x'"),
        ("train ppo --import tasks.txt", "--import takes Python files such as my_tasks.py, got"),
        ("evaluate --agent random --import nowhere.py", "No such file or directory:"),
        ("play --gif a.png", "a.png must end in .gif, which is what would be written there"),
        ("play --mp4 a.gif", "a.gif must end in .mp4"),
        ("evaluate --agent policy:nothing", "unknown policy 'nothing'; shipped are:"),
        ("evaluate --agent confidence:k=0", "k must be an integer >= 1, got 0"),
        ("evaluate --agent confidence:k=two", "k must be an integer >= 1, got 'two'"),
        ("evaluate --agent confidence:k=", "cannot read the parameter 'k='; write name=value"),
        ("evaluate --agent confidence:j=1", "strategy 'confidence': got an unexpected keyword argument 'j'"),
        ("evaluate --agent random --task algebra", "unknown task 'algebra'; known tasks: arithmetic"),
        ("evaluate --agent random --task toy --backend huge", "unknown backend 'huge'; known:"),
        (
            "evaluate --agent random --block-length half",
            "block length must be a whole number or 'full', got 'ha",
        ),
        (
            "evaluate --agent random --block-length 7 --task toy --backend toy",
            "block_length 7 exceeds completio",
        ),
        (
            "evaluate --agent random --block-length 0 --task toy --backend toy",
            "block_length must be a whole num",
        ),
        ("evaluate --agent random --split exam --task toy --backend toy", "unknown split 'exam'"),
        ("train dqn", "unknown algorithm 'dqn'; choose one of grpo, ppo, a2c"),
        ("train ppo --config nothing", "no configuration 'nothing'; known: "),
        ("train ppo --resume --output nowhere", "nothing to resume in nowhere: there is no such folder"),
        ("train ppo --resume --output .", "nothing to resume in .: no config.yaml there"),
        ("train a2c --config ppo-full --output new", "configures ppo, not a2c"),
        ("train ppo --config ppo-full --output new --seed -1", "seed must be a whole number from 0"),
        ("train ppo --config broken.yaml --output new", "broken.yaml is not YAML"),
        ("train ppo --config unknown.yaml --output new", "unknown configuration fields ['algo']"),
        ("train ppo --config task.yaml --output new", "unknown task 'algebra'"),
        ("train ppo --config argument.yaml --output new", "unknown arguments ['tsk'] in env"),
        ("pretrain --output new --task-kwargs {", "--task-kwargs must be a JSON object"),
        ("pretrain --output new --task-kwargs [{},1]", "--task-kwargs must be a JSON object, or a list of"),
        ("pretrain --output new --task-kwargs []", "--task-kwargs must be a JSON object, or a list of"),
        ("pretrain --output new --layout bert", "unknown layout 'bert'; choose one of llada, dream"),
        ("evaluate --agent random --task-kwargs [1]", "--task-kwargs must be a JSON object"),
        ("evaluate --agent random --backend-kwargs dual", "--backend-kwargs must be a JSON object such as"),
        (
            """evaluate --agent random --backend-kwargs {"cache":"block"}""",
            "cache must be prefix or dual, got 'block'",
        ),
        ("analyze", "nothing to analyze: give at least one agent or recording"),
        ("analyze --agent nope", "'nope' is neither a strategy"),
        ("analyze --recording broken.yaml", "broken.yaml holds no recording of episodes: it is no .npz file"),
        ("analyze --recording none.npz", "No such file or directory: 'none.npz'"),
    ],
)
def test_wrong_input_ends_in_one_line(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "broken": "env: [",
        "unknown": "algo: ppo",
        "task": "{algorithm: ppo, env: {task: algebra}}",
        "argument": "{algorithm: ppo, env: {tsk: arithmetic}}",
    }.items():
        Path(f"{name}.yaml").write_text(text)
    done = run(*arguments.split())
    assert done.code == 1
    assert done.out == ""
    lines = [line for line in done.err.splitlines() if line.strip()]
    assert len(lines) == 1, done.err
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not Path("new").exists()
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "arguments",
    ["evaluate", "evaluate --agent random --episodes 0", "evaluate --agent random --alpha -1", "go"],
)
def test_wrong_usage(run, arguments):
    done = run(*arguments.split())
    assert done.code == 2
    assert "Usage: " in done.err
    assert "Traceback" not in done.err


def test_own_errors_are_not_hidden(run, monkeypatch):
    """Only wrong input is put in one line; a bug shows where it is."""

    def broken(*args: Any, **kwargs: Any) -> None:
        raise KeyError("bug")

    monkeypatch.setattr("dllm_gym.evaluation.evaluate", broken)
    with pytest.raises(KeyError, match="bug"):
        run("evaluate", "--agent", "random", *TOY)


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line(run, monkeypatch):
    monkeypatch.setattr(
        "dllm_gym.evaluation.home._shown",
        lambda lengths, full: "[red]full" if full in lengths else "[red]blocks",
    )
    arguments = ("--task", "arithmetic", "--episodes", 1, "--no-compile")
    done = run("evaluate", "--agent", "policy:arithmetic-semi", "--block-length", "full", *arguments)
    assert done.code == 0
    (line,) = [line for line in done.err.splitlines() if line.startswith("warning: ")]
    assert line == (
        "warning: arithmetic-semi (sample) was trained [red]blocks, not [red]full: expect less of it here"
    )
    assert "warning" not in run("evaluate", "--agent", "policy:arithmetic-full", *arguments).err


def test_a_dllm_that_is_not_there(run, tmp_path, monkeypatch):
    """A missing directory looks like a hub id."""
    monkeypatch.chdir(tmp_path)
    for command in (("evaluate", "--agent", "confidence"), ("generate", "hello")):
        done = run(*command, "--backend", "runs/mine")
        assert done.code == 1
        assert (
            "error: there is no directory runs/mine here, nor does a hub give a dLLM of that name: "
            in done.words
        )
        assert len([line for line in done.err.splitlines() if line.strip()]) == 1


# As installed -----------------------------------------------------------------------------------------------


def test_console_script(tmp_path):
    """Lists, with the plugin found, then cannot write the file: exit code and one line."""
    (tmp_path / "file").write_text("no directory")
    script = Path(sys.executable).with_name("dllm-gym")
    command = [script, "list", "--json", tmp_path / "file" / "list.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    listed, (error,) = done.stdout.splitlines(), done.stderr.splitlines()
    assert any(line.startswith("policies: ") for line in listed)
    assert error.startswith("error: ")
    assert str(tmp_path / "file") in error
    assert "Traceback" not in done.stderr


def test_the_package_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "dllm_gym", "list", "--json", "-"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "policy:arithmetic-full" in json.loads(done.stdout.splitlines()[-1])["policies"]


# Play -------------------------------------------------------------------------------------------------------


def test_play_prints_every_step_where_there_is_no_terminal(run):
    done = run("play", "--agent", "confidence:k=2", "--agent", "random:k=3", "--problem", 7, *TOY)
    assert done.code == 0
    assert [f"step {at}/6" in done.out for at in range(5)] == [True] * 4 + [False]
    assert "confidence(k=2): " in done.out
    assert "random(k=3): " in done.out


def test_play_makes_films(run, tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    gif, mp4 = tmp_path / "a.gif", tmp_path / "a.mp4"
    done = run("play", "--gif", gif, "--mp4", mp4, "--agent", "confidence:k=2", *TOY)
    assert done.code == 0
    assert done.out == ""
    assert gif.read_bytes()[:6] == b"GIF89a"
    assert mp4.read_bytes()[4:8] == b"ftyp"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--problem", 50], "problem index 50 is out of range"),
        (["--speed", 0], "speed must be above 0"),
        (["--human"], "needs a terminal"),
        (["--agent", "nobody"], "'nobody' is neither a strategy nor"),
    ],
)
def test_play_refuses(run, arguments, words):
    done = run("play", *arguments, *TOY)
    assert done.code == 1
    assert words in done.words


# Report -----------------------------------------------------------------------------------------------------


def test_report_of_an_agent_and_of_a_run(run, tmp_path):
    page = tmp_path / "pages" / "page.html"
    arguments = ("--agent", "random:k=3", "--episodes", 6, "--block-length", 2)
    done = run("report", "confidence:k=2", "--output", page, *arguments, *TOY)
    assert done.code == 0
    assert f"report: {page}" in done.err.replace("\n", "")
    text = page.read_text()
    expected = ("confidence(k=2)", "random(k=3)", "<td>block_length</td><td>2</td>")
    assert all(words in text for words in expected)
    folder = tmp_path / "mine"
    save_network(folder / "best")
    environment = {"task": "toy", "backend": "toy", "block_length": 3, "alpha": 2.0}
    config = yaml.safe_dump(TrainConfig(env=environment).to_dict())
    (folder / "config.yaml").write_text(config)
    assert run("report", folder, "--episodes", 3, "--block-length", "full").code == 0
    text = (folder / "report.html").read_text()
    assert "There has been no evaluation yet." in text
    assert "<td>env.block_length</td><td>3</td>" in text
    assert "<td>block_length</td><td>6</td>" in text
    assert "<td>alpha</td><td>2.0</td>" in text


def test_report_refuses(run, tmp_path):
    assert f"there is no folder {tmp_path / 'nothing'}" in run("report", tmp_path / "nothing").words
    done = run("report", "confidence", "--comparison", tmp_path / "none.json", *TOY)
    assert done.code == 1
    assert "none.json" in done.words
