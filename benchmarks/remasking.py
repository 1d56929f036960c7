"""Whether it pays to take tokens back: rules and policies that do against those that only reveal.

For every dLLM: what there is to repair (commit drift), the published rules that take back against the hull of
all rules that only reveal, at equal forwards, how many tokens that went back came back as others, and what
``ppo-remask`` learns against ``ppo-full``, which is the same training without the right; where the dLLM has a
quality head, also what ``ppo-remask`` learns that sees ``quality``. Whoever takes back also plays without it
(``forbid_remask``), on the same problems.

Run: ``python benchmarks/remasking.py``. An interrupted run goes on. Several dLLMs at a time:
``python benchmarks/remasking.py tiny-lists weak --steps 0``. ``weak`` is an arithmetic dLLM that is
pretrained here, for a part of the steps of ``tiny-arithmetic``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dllm_agents.config import TrainConfig, find_config, load_config
from dllm_agents.training import train
from dllm_gym.backends import load_backend
from dllm_gym.evaluation import EvaluationResult, compare, evaluate, sweep
from dllm_gym.evaluation.figures import save_figure
from dllm_gym.evaluation.kept import digest
from dllm_gym.evaluation.plots import pareto_figure
from dllm_gym.evaluation.statistics import envelope_gap, paired_share_interval
from dllm_gym.files import read_json, write_json, write_text
from dllm_gym.pretrain import PretrainConfig, Pretrainer
from dllm_gym.strategies import Strategy, make_strategy

TASKS = {"tiny-arithmetic": "arithmetic", "tiny-lists": "lists", "tiny-latin": "latin-square"}
WEAK = "weak"
FAST = {"dtype": "auto", "compile": "auto"}
QUALITY = "remask-quality"
ARMS = {"reveal": "ppo-full", "remask": "ppo-remask", QUALITY: "ppo-remask"}
# How all arms begin where a success model of single reveals is no beginning (docs/training_notes.md).
BEGINNINGS: dict[str, dict[str, Any]] = {
    "tiny-latin": {
        "warm_start": None,
        "expert": "eb-sampler:gamma=0.01",
        "imitation_steps": 40_000,
        "learning_rate": 0.002,
        "policy": {"layers": 2},
    }
}


def weak_dllm(directory: Path, steps: int) -> str:
    """The checkpoint directory of a dLLM for arithmetic that has learned too little."""
    output = directory / f"dllm-{steps}"
    run = Pretrainer(PretrainConfig(steps=steps), output)
    for _ in run.train():
        pass
    run.save_checkpoint()
    return str(output)


def configuration(name: str, env: dict[str, Any], arm: str, steps: int) -> TrainConfig:
    """What one arm of the experiment trains on one dLLM."""
    begins = BEGINNINGS.get(name, {"warm_start_steps": 3 * steps // 10})
    config = load_config(find_config(ARMS[arm])).merged({"env": env}, begins)
    if arm == QUALITY:
        return config.merged({"policy": {"features": [*config.policy["features"], "quality"]}})
    return config


def policies(
    name: str, directory: Path, env: dict[str, Any], arm: str, given: argparse.Namespace
) -> list[str]:
    """The trained policies of one arm of the experiment, one per seed; none for 0 steps."""
    found, steps = [], given.steps
    for seed in range(given.seeds if steps else 0):
        output = directory / f"{arm}-{steps}-{seed}"
        costs = {
            "total_timesteps": steps,
            "eval_every": max(steps // 4, 1),
            "eval_episodes": min(256, given.episodes),
            "seed": seed,
        }
        config = configuration(name, env, arm, steps).merged(costs)
        if not (output / "metrics.json").is_file():
            train(config, output, resume=(output / "config.yaml").is_file())
        found.append(str(output))
    return found


def rewritten(agent: Any, episodes: int, keep: Path, **env: Any) -> dict[str, float]:
    """Positions that were taken back, and the share of these whose last token is another than the first."""
    label = agent.label if isinstance(agent, Strategy) else Path(agent).name
    file = keep / "rewritten" / f"{digest([label, episodes])}.json"
    if not file.is_file():
        recording = evaluate(agent, episodes, record=True, **env).recording
        assert recording is not None
        back = recording.remasks > 0
        share = float(recording.rewritten[back].mean()) if back.any() else 0.0
        write_json(file, {"taken_back": int(back.sum()), "rewritten": round(share, 4)})
    values: dict[str, float] = read_json(file)
    return values


def gap(result: EvaluationResult, others: Sequence[EvaluationResult]) -> dict[str, Any]:
    """How far a result's accuracy is above the hull of others at its own number of forwards."""
    correct = np.stack([other.records.success for other in others])
    nfe = np.stack([other.records.nfe for other in others])
    difference, interval = envelope_gap(result.records.success, result.records.nfe, correct, nfe)
    return {"gap": difference, "gap_ci95": interval}


def counterfactual(result: EvaluationResult, without: EvaluationResult) -> dict[str, Any]:
    """What the right is worth to an agent: its result less its own without."""
    return {
        "without_accuracy": without.accuracy,
        "without_nfe": without.nfe_mean,
        "worth": result.accuracy - without.accuracy,
        "worth_ci95": paired_share_interval(result.records.success, without.records.success),
    }


def measure(name: str, env: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """All there is to say about one dLLM; what is kept of it is taken."""
    keep = given.directory / name / "kept"
    repairing = [rule for rule in sweep("full") if rule.plays]
    # without those that read what this dLLM does not show
    repaired = compare([], given.episodes, strategies=repairing, keep=keep, **env).results
    back = [make_strategy(result.agent, **result.parameters) for result in repaired]
    only = [rule for rule in sweep(given.strategies) if not rule.plays]

    def results(agents: Iterable[Any], **more: Any) -> list[EvaluationResult]:
        compared = compare(agents, given.episodes, strategies=[], keep=keep, **env, **more)
        return list(compared.results)

    revealing = results(only, commit_drift=True)
    arms = [arm for arm in ARMS if arm != QUALITY or hasattr(load_backend(env["backend"]), "quality_head")]
    trained = {arm: policies(name, given.directory / name, env, arm, given) for arm in arms}
    learned = {arm: [results([agent])[0] for agent in agents] for arm, agents in trained.items()}
    rows = []
    hull = [*revealing, *learned["reveal"]]
    for kind, agents, played in (
        ("rule", back, repaired),
        *(("policy", trained[arm], learned[arm]) for arm in arms if arm != "reveal"),
    ):
        for agent, result in zip(agents, played, strict=True):
            row = {
                "kind": kind,
                "label": result.label,
                "accuracy": result.accuracy,
                "nfe": result.nfe_mean,
                "remasks": float(result.records.metrics["remasks"].mean()),
                **gap(result, hull),
                **counterfactual(result, results([agent], forbid_remask=True)[0]),
                **rewritten(agent, min(given.episodes, 200), keep, **env),
            }
            rows.append(row)
    for result in learned["reveal"]:
        row = {"kind": "policy, reveals only", "label": result.label, "accuracy": result.accuracy}
        rows.append({**row, "nfe": result.nfe_mean, **gap(result, revealing)})
    figure = pareto_figure(
        [*revealing, *repaired, *(result for arm in arms for result in learned[arm])],
        [*[False] * (len(revealing) + len(back)), *[True] * sum(map(len, learned.values()))],
    )
    save_figure(figure, given.output.with_name(f"{given.output.name}_{name}.png"))
    drift = {result.label: float(result.records.metrics["commit_drift"].mean()) for result in revealing}
    surest = max(revealing, key=lambda result: result.accuracy)
    return {
        "dllm": name,
        "episodes": surest.episodes,
        "best_rule": surest.label,
        "best_accuracy": surest.accuracy,
        "drift_of_best": drift[surest.label],
        "largest_drift": max(drift.values()),
        "largest_drift_of": max(drift, key=lambda label: drift[label]),
        "rows": rows,
    }


def report(found: Sequence[dict[str, Any]], command: str) -> str:
    """What was measured, as Markdown."""
    lines = [
        f"`{command}`",
        "",
        "Gap: accuracy above the hull of whatever only reveals, rules and policies, at the same mean",
        "number of forwards (of policies that only reveal: of the rules). Worth: accuracy less that of the",
        "same agent that may not take back. In percentage points, 95 % intervals over problems in brackets.",
        "Rewritten: the share of positions taken back whose last token is another than the first.",
    ]
    for one in found:
        lines += [
            "",
            f"## {one['dllm']}",
            "",
            f"{one['episodes']} problems. Commit drift: {one['drift_of_best']:.2%} of the tokens of the",
            f"most accurate rule that only reveals ({one['best_rule']}, {one['best_accuracy']:.3f}); the",
            f"largest is {one['largest_drift']:.2%} ({one['largest_drift_of']}).",
            "",
            "| | accuracy | forwards | gap | worth | remasks per text | rewritten |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in one["rows"]:
            cells = [row["label"], f"{row['accuracy']:.3f}", f"{row['nfe']:.1f}", _points(row, "gap")]
            if "worth" in row:
                cells += [_points(row, "worth"), f"{row['remasks']:.2f}", f"{row['rewritten']:.0%}"]
            else:
                cells += ["-", "-", "-"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _points(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name}_ci95"]
    return f"{100 * row[name]:+.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*TASKS, WEAK]
    parser.add_argument("dllms", nargs="*", metavar="DLLM", help=f"of {', '.join(names)}; default: all")
    parser.add_argument("--episodes", type=int, default=1000, help="test problems")
    parser.add_argument("--strategies", default="full", choices=("short", "full"), help="that only reveal")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each kind")
    parser.add_argument("--steps", type=int, default=200_000, help="of each training; 0: nothing is learned")
    parser.add_argument("--weak-steps", type=int, default=1500, help="of the pretraining of the weak dLLM")
    parser.add_argument("--directory", type=Path, default=Path("runs/remasking"), help="to go on with")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/remasking"))
    given = parser.parse_args(arguments)
    unknown = set(given.dllms) - set(names)
    if unknown:
        parser.error(f"unknown dLLMs {', '.join(sorted(unknown))}; known: {', '.join(names)}")
    found = []
    for name in given.dllms or names:
        weak = name == WEAK
        backend = weak_dllm(given.directory, given.weak_steps) if weak else name
        env = {"task": TASKS.get(name, "arithmetic"), "backend": backend}
        found.append(measure(name, {**env, "backend_kwargs": FAST}, given))
        command = (
            f"python benchmarks/remasking.py {' '.join(given.dllms)} --episodes {given.episodes} "
            f"--strategies {given.strategies} --seeds {given.seeds} --steps {given.steps}"
        ).replace("  ", " ")
        write_json(given.output.with_suffix(".json"), {"command": command, "dllms": found})
        write_text(given.output.with_suffix(".md"), report(found, command))
    print(given.output.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
