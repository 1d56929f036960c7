"""Do rules lose where blocks grow, and do learned policies not? Every block length, rules and policies.

For members of the suite, block after block: the best setting of the best rule (of all rules, tuned on
validation problems at that block length), PPO trained at that block length, and one PPO that was trained at
all of them, its block length drawn per episode and observed; policies decode deterministically. All decode
the same test problems. *Lost* is the mean reward at the shortest block length less that in full diffusion,
problem by problem.

Run: ``python benchmarks/block_lengths.py``; it goes on where it was interrupted. ``Lists --seeds 1`` is a
first look. Writes ``docs/results/block_lengths.json``, ``.md`` and ``.png``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from suite import COMPILED, add_members, chosen_members

from dllm_agents import study
from dllm_agents.config import find_config, load_config
from dllm_agents.studies.page import markdown_table
from dllm_gym.bench import machine
from dllm_gym.evaluation import EvaluationResult, compare
from dllm_gym.evaluation.figures import COLOURS, new_figure, save_figure
from dllm_gym.evaluation.statistics import mean_interval
from dllm_gym.evaluation.tuning import agent_text, tuned
from dllm_gym.files import write_json, write_text
from dllm_gym.suite import Member

OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "results" / "block_lengths.json"
BLOCKS = (4, 8, 16, 32)  # and full diffusion
MEMBERS = ("Arithmetic", "Lists", "Overconfident")
ONE, ALL = "one", "all"
AGENTS = {"rule": "best rule", ONE: "PPO, one per block length", ALL: "PPO, one for all"}
CONFIGS = {"Lists": "ppo-pairs"}  # where tokens of one answer must agree; ppo-full elsewhere


def blocks_of(member: Member) -> list[int | None]:
    """The block lengths that are shorter than the completion, and full diffusion."""
    figures = member.figures
    return [block for block in BLOCKS if figures is None or block < figures.completion_length] + [None]


def policies(member: Member, directory: Path, given: argparse.Namespace) -> dict[str, list[list[str]]]:
    """For every block length the trained policies of all seeds, of both kinds."""
    blocks = blocks_of(member)
    config = CONFIGS.get(member.name, "ppo-full")
    features = load_config(find_config(config)).policy["features"]
    told = {"config": config, "policy": {"features": [*features, "block_length"]}}
    places: dict[str, dict[str, Any]] = {
        ONE: {name_of(block): {**member.env, "block_length": block} for block in blocks},
        ALL: {ALL: {**member.env, "block_length": blocks}},
    }
    common = {"total_timesteps": given.steps, "warm_start_steps": 3 * given.steps // 10}
    common |= {"eval_every": given.steps, "eval_episodes": 256}
    found = {}
    for kind, algorithm in ((ONE, config), (ALL, told)):
        grid = {
            "algorithms": {kind: algorithm}, "tasks": places[kind], "seeds": given.seeds, "common": common,
            "episodes": 1, "decodings": ["sample"],
        }  # fmt: skip
        cells = study(grid, directory / kind, jobs=given.jobs, on_cell=print) / "cells" / kind
        names = [name_of(block) if kind == ONE else ALL for block in blocks]
        found[kind] = [
            [f"{cells / name / str(seed) / 'last'}:deterministic" for seed in range(given.seeds)]
            for name in names
        ]
    return found


def name_of(block: int | None) -> str:
    """Of a block length, in folders and tables."""
    return "full" if block is None else f"B{block}"


def measure(member: Member, given: argparse.Namespace) -> dict[str, Any]:
    """Everybody at every block length of one member."""
    directory = given.runs / member.name
    trained = policies(member, directory, given)
    rewards: dict[str, list[NDArray[np.float64]]] = {name: [] for name in AGENTS}
    rows = []
    for at, block in enumerate(blocks_of(member)):
        env = {**member.env, "block_length": block, "backend_kwargs": COMPILED}
        keep = directory / "kept"
        rules = tuned(given.strategies, given.tuning_episodes, keep=keep, **env)
        best = agent_text(max(rules.values(), key=lambda result: result.reward_mean))
        for name, agents in (("rule", [best]), *((kind, trained[kind][at]) for kind in (ONE, ALL))):
            results = compare(agents, given.episodes, strategies=[], keep=keep, **env).results
            rewards[name].append(np.mean([result.records.reward for result in results], axis=0))
            rows.append({"block": name_of(block), "agents": name, **told(results, rewards[name][-1])})
    return {
        "rows": rows,
        "lost": {
            name: {"reward": float((of[0] - of[-1]).mean()), "ci95": list(mean_interval(of[0] - of[-1]))}
            for name, of in rewards.items()
        },
    }


def told(results: Sequence[EvaluationResult], rewards: NDArray[np.float64]) -> dict[str, Any]:
    """What is told of an agent, or of the seeds of a training; ``rewards`` are means over these, ``(N,)``."""
    return {
        "label": results[0].label if len(results) == 1 else f"{len(results)} seeds",
        "accuracy": float(np.mean([result.accuracy for result in results])),
        "nfe": float(np.mean([result.nfe_mean for result in results])),
        "reward": float(rewards.mean()),
        "reward_ci95": list(mean_interval(rewards)),
        "seeds": [float(result.reward_mean) for result in results],
    }


def report(found: dict[str, Any]) -> str:
    """The measurements as Markdown."""
    parts = [
        f"`{found['command']}`; {found['episodes']:,} test problems, the same for all, alpha 1.",
        "Mean reward, its 95 % interval over problems, and accuracy @ steps. *Lost*: the reward at the "
        "shortest block length less that in full diffusion.",
    ]
    for name, member in found["members"].items():
        blocks = list(dict.fromkeys(row["block"] for row in member["rows"]))
        table = [[name, *blocks, "lost"]]
        for agents, title in AGENTS.items():
            cells = [_cell(row) for row in member["rows"] if row["agents"] == agents]
            lost = member["lost"][agents]
            table.append(
                [title, *cells, f"{lost['reward']:+.3f} ({lost['ci95'][0]:+.3f} to {lost['ci95'][1]:+.3f})"]
            )
        best = [f"`{row['label']}` ({row['block']})" for row in member["rows"] if row["agents"] == "rule"]
        parts += [markdown_table(table), f"Best rules: {', '.join(best)}."]
    return "\n\n".join(parts) + "\n"


def _cell(row: dict[str, Any]) -> str:
    low, high = row["reward_ci95"]
    return f"**{row['reward']:.3f}** ({low:.3f} to {high:.3f}) {row['accuracy']:.3f} @ {row['nfe']:.1f}"


def plot(found: dict[str, Any]) -> Any:
    """Mean reward against block length, one picture per member."""
    figure = new_figure(3.6 * len(found["members"]), 3.2, dpi=150)
    columns = figure.subplots(1, len(found["members"]), squeeze=False)[0]
    for axes, (name, member) in zip(columns, found["members"].items(), strict=True):
        for colour, marker, (agents, title) in zip(COLOURS, "osD", AGENTS.items(), strict=False):
            rows = [row for row in member["rows"] if row["agents"] == agents]
            at, rewards = np.arange(len(rows)), np.array([row["reward"] for row in rows])
            low, high = np.array([row["reward_ci95"] for row in rows]).T
            bars = (rewards - low, high - rewards)
            axes.errorbar(at, rewards, bars, color=colour, marker=marker, capsize=2, label=title)
            axes.set_xticks(at, [row["block"].removeprefix("B") for row in rows])
        axes.set_title(name)
        axes.set_xlabel("block length")
    columns[0].set_ylabel("mean reward")
    columns[0].legend(frameon=False, fontsize=8)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_members(parser, MEMBERS)
    parser.add_argument("--episodes", type=int, default=1000, help="test problems")
    parser.add_argument("--tuning-episodes", type=int, default=200, help="validation problems for rules")
    parser.add_argument("--strategies", default="full", help="short, or full: every setting of every rule")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each kind")
    parser.add_argument("--steps", type=int, default=200_000, help="of each training")
    parser.add_argument("--jobs", type=int, help="trainings at a time; default: as many as CPUs")
    parser.add_argument("--runs", type=Path, default=Path("runs/block_lengths"), help="to go on with")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    given = parser.parse_args(arguments)
    chosen = chosen_members(parser, given.members)
    command = (
        f"python benchmarks/block_lengths.py {' '.join(given.members)} --episodes {given.episodes} "
        f"--tuning-episodes {given.tuning_episodes} --strategies {given.strategies} --seeds {given.seeds} "
        f"--steps {given.steps}"
    )
    found: dict[str, Any] = {
        "command": command, "episodes": given.episodes, "machine": machine(), "members": {},
    }  # fmt: skip
    for member in chosen:
        found["members"][member.name] = measure(member, given)
        write_json(given.output, found)
        write_text(given.output.with_suffix(".md"), report(found))
        save_figure(plot(found), given.output.with_suffix(".png"))
    print(report(found))


if __name__ == "__main__":
    main()
