"""The leaderboard of the suite: rules, learned agents and the oracle on every member, `docs/benchmark.md`.

Learned agents are trained by the study ``suite`` (agents/configs/studies/suite.yaml), which ``--algorithms``
without a name leaves out. Rules are tuned on validation problems, each over its settings; the best setting of
each family of rules then decodes the test problems, as do ``random``, the oracle, every trained policy and
those that come with the package.

Run: ``python benchmarks/leaderboard.py``; it goes on where it was interrupted. ``--algorithms ppo --seeds 1``
is a first look. Writes the page, ``docs/results/benchmark.json`` and ``.png``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from suite import ORACLES

from dllm_agents import study
from dllm_agents.config import read_yaml
from dllm_agents.studies.page import markdown_table
from dllm_agents.studies.statistics import aup, estimate, interquartile_mean
from dllm_gym.bench import machine
from dllm_gym.evaluation import EvaluationResult, compare
from dllm_gym.evaluation.figures import save_figure
from dllm_gym.evaluation.tuning import agent_text, best_settings
from dllm_gym.files import read_json, write_json, write_text
from dllm_gym.strategies import make_strategy
from dllm_gym.suite import SUITE, normalized_score

ROOT = Path(__file__).resolve().parent.parent
STUDY = ROOT / "agents" / "configs" / "studies" / "suite.yaml"
SHIPPED = "comes with the package"
FEWER = {"Overconfident": 4}  # so many times fewer problems: 128 positions are slow
PAGE, NUMBERS = ROOT / "docs" / "benchmark.md", ROOT / "docs" / "results" / "benchmark.json"
INTRODUCTION = """# The leaderboard

Written by `{command}`; do not edit. What rules, learned agents and the oracle earn on every member of
[the suite](suite.md), with alpha 1 and everything else by default, on {episodes:,} test problems ({fewer}).

*Score*: 0 is the best rule of each member (tuned on validation problems), 1 is the oracle; interquartile mean
over members and seeds, with a 95 % interval from a stratified bootstrap over seeds where there are several
([studies](studies.md#what-is-computed)). The cells have mean reward, and accuracy @ steps behind it. A family
of rules is a file of `dllm_gym/strategies`; its best setting is chosen for every member. The oracle decodes
every problem carefully first and knows what it will write: it marks what there is to gain. *Comes with the
package* is `member.trained`, one training each; where there is none its score is that of the other members.

## Enter an agent of your own

```python
import dllm_gym

agent = "confidence:k=3"  # a name, a function of the observation, a policy's directory, an SB3 model
for member in dllm_gym.SUITE:
    result = dllm_gym.evaluate(agent, episodes=100, **member.env)
    score = float("nan") if member.figures is None else member.normalized(result.reward_mean)
    print(f"{member.id}: reward {result.reward_mean:.3f}, score {score:.2f}")
```

An algorithm of your own is one more line under `algorithms` of the study file.
"""


def family(result: EvaluationResult) -> str:
    """The file of ``dllm_gym/strategies`` that a rule stands in; ``random`` is one of its own."""
    if result.agent == "random":
        return "random"
    return type(make_strategy(result.agent, **result.parameters)).__module__.rpartition(".")[2]


def test(agents: Sequence[str], episodes: int, keep: Path, env: Mapping[str, Any]) -> list[EvaluationResult]:
    """What agents come to on test problems."""
    return compare(agents, episodes, strategies=[], keep=keep, **env).results


def rules(episodes: int, strategies: str, keep: Path, env: Mapping[str, Any]) -> dict[str, Any]:
    """Of every rule its best setting and the AUP of all settings, on validation problems; and the families.

    Returns:
        ``rules``: rule -> measures; ``families``: family -> measures of its best rule on test problems.
    """
    every = compare([], episodes, "validation", strategies=strategies, keep=keep, **env).results
    best = max(result.accuracy for result in every)
    by_rule: dict[str, list[EvaluationResult]] = {}
    for result in every:
        by_rule.setdefault(result.agent, []).append(result)
    tuned = best_settings(every)
    found = {
        name: {**measures(tuned[name]), "aup": round(aup([_point(one) for one in results], best), 1)}
        for name, results in by_rule.items()
    }
    families: dict[str, EvaluationResult] = {}
    for result in sorted(tuned.values(), key=lambda one: one.reward_mean):
        families[family(result)] = result  # the best comes last
    tested = test([agent_text(result) for result in families.values()], episodes, keep, env)
    winner = max(families, key=lambda name: families[name].reward_mean)
    return {
        "rules": found,
        "families": {name: measures(result) for name, result in zip(families, tested, strict=True)},
        "best_family": winner,
    }


def measures(result: EvaluationResult) -> dict[str, Any]:
    """What is told of one agent."""
    numbers = {"reward": result.reward_mean, "accuracy": result.accuracy, "nfe": result.nfe_mean}
    return {"agent": result.label, **{name: round(number, 4) for name, number in numbers.items()}}


def _point(result: EvaluationResult) -> tuple[float, float]:
    return result.environment["completion_length"] / result.nfe_mean, result.accuracy


def learned(directory: Path, algorithms: Sequence[str]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Of every algorithm and member the measures of all seeds, decoded as the study's first decoding."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in algorithms}
    for cell, content in read_json(directory / "results.json")["cells"].items():
        algorithm, task, _ = cell.split("/")
        test = next(iter(content["tests"].values()))
        seed = {"reward": test["reward_mean"], "accuracy": test["accuracy"], "nfe": test["nfe_mean"]}
        found[algorithm].setdefault(task, []).append(seed)
    return found


def scores(
    rewards: Mapping[str, Sequence[float]], low: Mapping[str, float], high: Mapping[str, float]
) -> list[NDArray[np.float64]]:
    """``(N,)`` normalised scores of each member's runs."""
    return [np.array([normalized_score(one, low[m], high[m]) for one in rewards[m]]) for m in rewards]


def leaderboard(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Agents by their score, the highest first; those without all members are left out."""
    members = list(found["members"])
    low = {m: found["members"][m]["families"][found["members"][m]["best_family"]]["reward"] for m in members}
    high = {m: found["members"][m]["oracle"]["reward"] for m in members}
    agents: dict[str, dict[str, list[dict[str, Any]]]] = {
        "oracle": {m: [found["members"][m]["oracle"]] for m in members},
        SHIPPED: {m: [one] for m in members if (one := found["members"][m]["trained"]) is not None},
        **found["learned"],
        **{
            name if name == "random" else f"best of `{name}`": {
                m: [found["members"][m]["families"][name]] for m in members
            }
            for name in found["members"][members[0]]["families"]
        },
    }
    rows = []
    for name, by_member in agents.items():
        if set(by_member) != set(members) and (name != SHIPPED or not by_member):
            continue
        rewards = {m: [run["reward"] for run in by_member[m]] for m in members if m in by_member}
        score = estimate(scores(rewards, low, high), interquartile_mean)
        interval = None if score.low is None or score.high is None else [float(score.low), float(score.high)]
        rows.append({"agent": name, "score": float(score.value), "interval": interval, "members": by_member})
    return sorted(rows, key=lambda row: row["score"], reverse=True)


def page(found: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The leaderboard as Markdown."""
    members = list(found["members"])
    fewer = ", ".join(f"{m}: {found['members'][m]['episodes']:,}" for m in members if m in FEWER)
    head = ["agent", "score", "seeds", *members]
    table = [head]
    for row in rows:
        interval = "" if row["interval"] is None else " ({:.2f} to {:.2f})".format(*row["interval"])
        runs = row["members"]
        cells = [_cell(runs[m]) if m in runs else "-" for m in members]
        seeds = str(len(next(iter(runs.values()))))
        table.append([row["agent"], f"{row['score']:.2f}{interval}", seeds, *cells])
    each = [["rule", *members]]
    for name in dict.fromkeys(rule for m in members for rule in found["members"][m]["rules"]):
        of = [found["members"][m]["rules"].get(name) for m in members]
        each.append([f"`{name}`", *(f"{one['reward']:.3f}, {one['aup']:.0f}" if one else "-" for one in of)])
    parts = [
        INTRODUCTION.replace("{command}", found["command"])
        .replace("{episodes:,}", f"{found['episodes']:,}")
        .replace(" ({fewer})", f" ({fewer})" if fewer else ""),
        "## Agents\n\n" + markdown_table(table),
        "![scores](results/benchmark.png)",
        "## Every rule\n\nMean reward of its best setting and AUP of all its settings "
        "([studies](studies.md#what-is-computed)), on validation problems; - where it reads what the dLLM "
        "does not show.\n\n" + markdown_table(each),
        f"Machine: {found['machine']}",
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _cell(runs: Sequence[Mapping[str, float]]) -> str:
    reward, accuracy, nfe = (np.mean([run[name] for run in runs]) for name in ("reward", "accuracy", "nfe"))
    return f"**{reward:.3f}** {accuracy:.3f} @ {nfe:.1f}"


def plot(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Scores of the agents, the best on top."""
    figure = Figure(figsize=(7, 0.4 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    at = np.arange(len(rows))[::-1]
    axes.barh(at, [row["score"] for row in rows], color="#7a5cc4")
    for y, row in zip(at, rows, strict=True):
        if row["interval"] is not None:
            axes.plot(row["interval"], [y, y], color="black", linewidth=2)
    axes.set_yticks(at, [row["agent"].replace("`", "") for row in rows])
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.set_xlim(min(-1.0, *(max(row["score"], -2.0) for row in rows)), 1.1)
    axes.set_xlabel("score: 0 = best rule of each member, 1 = oracle")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    content = read_yaml(STUDY)
    parser.add_argument("--algorithms", nargs="*", default=list(content["algorithms"]))
    parser.add_argument("--members", nargs="*", default=[member.name for member in SUITE])
    parser.add_argument("--seeds", type=int, default=content["seeds"])
    parser.add_argument("--total-timesteps", type=int, default=content["common"]["total_timesteps"])
    parser.add_argument("--episodes", type=int, default=content["episodes"], help="problems, each split")
    parser.add_argument("--strategies", default="full", help="short, or full: every setting of every rule")
    parser.add_argument("--jobs", type=int, help="trainings at a time; default: as many as CPUs")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/leaderboard"), help="to go on with")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--numbers", type=Path, default=NUMBERS)
    given = parser.parse_args(arguments)
    chosen = [member for member in SUITE if member.name in given.members]
    content["algorithms"] = {name: content["algorithms"][name] for name in given.algorithms}
    content |= {"tasks": [member.id for member in chosen], "seeds": given.seeds, "episodes": given.episodes}
    every = max(given.total_timesteps // 8, 1)
    content["common"] |= {"total_timesteps": given.total_timesteps, "eval_every": every}
    trained = (
        study(content, given.runs / "study", jobs=given.jobs, on_cell=print) if given.algorithms else None
    )
    found: dict[str, Any] = {"command": "python benchmarks/leaderboard.py", "episodes": given.episodes}
    if arguments is None and (told := parser_line(given, parser)):
        found["command"] += f" {told}"
    found["members"] = {}
    for member in chosen:
        env = {**member.env, "backend_kwargs": {"compile": given.compile and "auto"}}
        keep = given.runs / "rules" / member.name
        episodes = max(given.episodes // FEWER.get(member.name, 1), 1)
        of = {"episodes": episodes, **rules(episodes, given.strategies, keep, env)}
        oracles = [measures(one) for one in test(ORACLES, episodes, keep, env)]
        best = max(oracles, key=lambda one: one["reward"])
        own = None if member.trained is None else measures(*test([member.trained], episodes, keep, env))
        found["members"][member.name] = {**of, "oracle": best, "trained": own}
        print(f"{member.id}: rules and oracle done")
    names = {member.id.split("/")[-1]: member.name for member in chosen}
    runs = {} if trained is None else learned(trained, given.algorithms)
    found["learned"] = {
        algorithm: {names[task]: seeds for task, seeds in by_task.items()}
        for algorithm, by_task in runs.items()
    }
    found["machine"] = machine()
    rows = leaderboard(found)
    write_json(given.numbers, {**found, "leaderboard": rows})
    save_figure(plot(rows), given.numbers.with_suffix(".png"))
    print(write_text(given.page, page(found, rows)))


def parser_line(given: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """The options that were given, as they would be typed; those of where it is written are left out."""
    told = []
    for name, value in vars(given).items():
        if name not in ("runs", "page", "numbers", "jobs", "compile") and value != parser.get_default(name):
            told += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    return " ".join(told)


if __name__ == "__main__":
    main()
