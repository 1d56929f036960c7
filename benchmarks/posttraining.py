"""Whether a dLLM becomes better by reinforcement learning on its task's rewards, and which method does it.

``tiny-arithmetic`` was pretrained on problems of which few have operands of two digits. Here all may have
one: decoded in 12 steps it solves about half. Every method trains it on such problems, all from the same
weights and on the same number of episodes, by the shipped configuration but for what is said here. Then it
decodes the same test problems before and after: as in the training, one token at a time, and by a threshold,
where the dLLM itself has a say in how many steps it takes.

Intervals are over problems, paired; what differs from one training to the next is in the lines of the seeds.

Run: ``python benchmarks/posttraining.py``. An interrupted run goes on. Some trainings at a time:
``python benchmarks/posttraining.py agrpo --seeds 0``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
from limit import RESULTS

from dllm_agents import posttrain
from dllm_agents.posttraining.config import (
    METHODS,
    PosttrainConfig,
    find_posttrain_config,
    load_posttrain_config,
    posttrain_config,
)
from dllm_agents.run_folder import CONFIG, METRICS
from dllm_gym.bench import machine
from dllm_gym.evaluation import EvaluationResult, compare
from dllm_gym.evaluation.figures import COLOURS, legend, new_figure, save_figure
from dllm_gym.evaluation.statistics import mean_interval, paired_share_interval
from dllm_gym.files import read_json, write_json, write_text

BASE = "tiny-arithmetic"
ENV = {"task": "arithmetic", "task_kwargs": {"two_digit_share": 1.0}}
DECODINGS = ("confidence:k=4", "confidence:k=1", "fast-dllm:threshold=0.9")  # the first is trained with
# learning rates, constant after the warm-up; lower where a round makes 2 or 4 updates instead of one
RATES = {"agrpo": 1e-4, "coupled-grpo": 5e-5, "diffu-grpo": 2.5e-5}
COMPILED = {"dtype": "auto", "compile": "auto"}  # when tested
COST = "cost.json"  # beside a training that is over


def place(method: str, seed: int, given: argparse.Namespace) -> Path:
    """The checkpoint directory of a training."""
    rate = given.learning_rate or RATES[method]
    directory: Path = given.directory / f"{method}-{given.rounds}x{given.groups}-{rate}-{seed}"
    return directory


def configured(method: str, seed: int, given: argparse.Namespace) -> PosttrainConfig:
    """The configuration of a training."""
    shipped = load_posttrain_config(find_posttrain_config(method)).to_dict()
    return posttrain_config(
        {
            **shipped,
            "method_kwargs": {
                **shipped["method_kwargs"],
                "learning_rate": given.learning_rate or RATES[method],
                "final_rate": 1.0,
            },
            "env": {**ENV, "backend": BASE},
            "agent": DECODINGS[0],
            "groups_per_round": given.groups,
            "rounds": given.rounds,
            "eval_every": max(given.rounds // 2, 1),
            "eval_episodes": given.validation,
            "test_episodes": 32,  # for its card; the test is below
            "seed": seed,
        }
    )


def train(run: Path, config: Any, trainer: Callable[..., Path] | None = None) -> None:
    """A training from its beginning, or from where it was interrupted, to its end.

    Args:
        run: Its directory.
        config: Its configuration.
        trainer: What trains; ``None``: ``posttrain``.
    """
    resume, began = (run / CONFIG).is_file(), time.process_time()
    (trainer or posttrain)(config, run, resume=resume, progress=True)
    cost = None if resume else round(time.process_time() - began)  # of the last part it would say nothing
    write_json(run / COST, {"cpu_seconds": cost})


def tested(
    backend: str, given: argparse.Namespace, agents: Sequence[str], how: Mapping[str, Any]
) -> list[EvaluationResult]:
    """How a dLLM, computed as ``how`` says, decodes the test problems; what is kept of that is taken."""
    env = {**ENV, "backend": backend, "backend_kwargs": how}
    return list(compare(agents, given.episodes, strategies=[], keep=given.directory / "kept", **env).results)


def against(after: Sequence[EvaluationResult], before: Sequence[EvaluationResult]) -> dict[str, Any]:
    """How much more accurate some results are than others of the same problems, and in how many fewer steps.

    Args:
        after: One per seed, all of the same decoding.
        before: As many.
    """
    pairs = list(zip(after, before, strict=True))
    correct = [(a.records.success, b.records.success) for a, b in pairs]
    steps = np.mean([a.records.nfe - b.records.nfe for a, b in pairs], axis=0)
    each = [float(np.mean(a - b)) for a, b in correct]
    # a problem's difference is 0, 1 or -1 in one training, a mean over several
    interval = (
        paired_share_interval(*correct[0])
        if len(pairs) == 1
        else mean_interval(np.mean([a - b for a, b in correct], axis=0))
    )
    return {
        "trainings": len(pairs),
        "accuracy": round(float(np.mean(each)), 4),
        "accuracy_ci95": [round(end, 4) for end in interval],
        "accuracy_of_seeds": [round(one, 4) for one in each],
        "nfe": round(float(steps.mean()), 3),
        "nfe_ci95": [round(end, 3) for end in mean_interval(steps)],
    }


def measured(methods: Sequence[str], given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Everything that can be said, anew after every training."""
    before = tested(BASE, given, DECODINGS, COMPILED)
    found: dict[str, Any] = {"before": [_summary(result) for result in before], "runs": []}
    after: dict[str, dict[int, list[EvaluationResult]]] = {method: {} for method in methods}
    for seed, method in product(given.seeds, methods):
        run = place(method, seed, given)
        if not (run / COST).is_file():
            if given.finished:
                continue
            train(run, configured(method, seed, given))
        after[method][seed] = tested(str(run), given, DECODINGS, COMPILED)
        evaluations = read_json(run / METRICS)["evaluations"]
        found["runs"].append(
            {
                "method": method,
                "seed": seed,
                "learning_rate": given.learning_rate or RATES[method],
                "seconds": evaluations[-1]["seconds"],
                **read_json(run / COST),
                "validation": evaluations,
                "test": [_summary(result) for result in after[method][seed]],
            }
        )
        yield {**found, **paired(after, before, _differences)}


def paired(
    after: Mapping[str, Mapping[int, Any]], before: Any, differences: Callable[[Any, Any], Any]
) -> dict[str, Any]:
    """``gains`` over what was before, and ``duels`` of every two that have seeds in common.

    Args:
        after: Results by name and seed.
        before: The one that all began with.
        differences: Of the results of two, each by seed.
    """
    here = [name for name in after if after[name]]
    return {
        "gains": {name: differences(after[name], dict.fromkeys(after[name], before)) for name in here},
        "duels": {
            f"{first} - {second}": differences(after[first], after[second])
            for first, second in combinations(here, 2)
            if after[first].keys() & after[second].keys()
        },
    }


def _differences(
    first: Mapping[int, list[EvaluationResult]], second: Mapping[int, list[EvaluationResult]]
) -> list[dict[str, Any]]:
    """Of every decoding, over the seeds that both have."""
    seeds = [seed for seed in first if seed in second]
    return [
        against([first[seed][at] for seed in seeds], [second[seed][at] for seed in seeds])
        for at in range(len(DECODINGS))
    ]


def _summary(result: EvaluationResult) -> dict[str, Any]:
    kept = ("label", "accuracy", "accuracy_ci95", "nfe_mean")
    return {name: value for name, value in result.to_json().items() if name in kept}


def report(found: dict[str, Any], given: argparse.Namespace) -> str:
    """What was measured, as Markdown."""
    per_round = given.groups * 8
    lines = [
        f"`{found['command']}`, {found['machine']}",
        "",
        f"{BASE} on arithmetic with operands of two digits wherever possible; {given.rounds} rounds of "
        f"{per_round} episodes decoded by",
        f"{DECODINGS[0]} in each training. Accuracy @ steps on {given.episodes} test problems; "
        "gains in percentage points, with 95 %",
        "intervals over problems, paired, and in brackets the trainings one by one.",
        "",
        "| | " + " | ".join(DECODINGS) + " |",
        "|---" * (len(DECODINGS) + 1) + "|",
        "| before | " + " | ".join(_point(one) for one in found["before"]) + " |",
    ]
    for run in found["runs"]:
        cells = " | ".join(_point(one) for one in run["test"])
        lines.append(f"| {run['method']}, seed {run['seed']} | {cells} |")
    for title, rows in (
        ("gained by", found["gains"]),
        ("difference", found["duels"]),
    ):
        lines += ["", f"| {title} | " + " | ".join(DECODINGS) + " | steps, by threshold |"]
        lines += ["|---" * (len(DECODINGS) + 2) + "|"]
        for name, row in rows.items():
            low, high = row[-1]["nfe_ci95"]
            cells = [name, *map(_gain, row), f"{row[-1]['nfe']:+.1f} ({low:+.1f} to {high:+.1f})"]
            lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "| training | learning rate | validation accuracy by round | seconds | CPU seconds |",
        "|---" * 5 + "|",
    ]
    for run in found["runs"]:
        curve = ", ".join(f"{row['round']}: {row['accuracy']:.3f}" for row in run["validation"])
        cost = "interrupted" if run["cpu_seconds"] is None else run["cpu_seconds"]
        cells = [f"{run['method']}, seed {run['seed']}", f"{run['learning_rate']:g}", curve]
        lines.append(f"| {' | '.join(cells)} | {run['seconds']:.0f} | {cost} |")
    return "\n".join(lines) + "\n"


def _point(one: dict[str, Any]) -> str:
    return f"{one['accuracy']:.3f} @ {one['nfe_mean']:.1f}"


def _gain(one: dict[str, Any]) -> str:
    low, high = one["accuracy_ci95"]
    seeds = ", ".join(f"{100 * value:+.1f}" for value in one["accuracy_of_seeds"])
    return f"{100 * one['accuracy']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}) [{seeds}]"


def curves(runs: Sequence[dict[str, Any]]) -> Any:
    """Validation accuracy by round, a colour per method and a line per training."""
    figure = new_figure(5, 3)
    axes = figure.add_subplot()
    methods = list(dict.fromkeys(run["method"] for run in runs))
    first: dict[str, Any] = {}
    for run in runs:
        rows = run["validation"]
        at = methods.index(run["method"])
        (line,) = axes.plot(
            [row["round"] for row in rows],
            [row["accuracy"] for row in rows],
            label=run["method"], color=COLOURS[at], marker="osD"[at], markersize=3.5, linewidth=1.2,
        )  # fmt: skip
        first.setdefault(run["method"], line)
    axes.set_xlabel("round")
    axes.set_ylabel("validation accuracy")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    legend(axes, list(first.values()), fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"of {', '.join(METHODS)}; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the trainings")
    parser.add_argument("--rounds", type=int, default=40, help="of each training")
    parser.add_argument("--groups", type=int, default=16, help="problems per round, each decoded 8 times")
    parser.add_argument("--learning-rate", type=float, help="default: the method's own")
    parser.add_argument(
        "--finished", action="store_true", help="train nothing: report the trainings there are"
    )
    parser.add_argument("--validation", type=int, default=256, help="validation problems")
    parser.add_argument("--episodes", type=int, default=500, help="test problems")
    parser.add_argument("--directory", type=Path, default=Path("runs/posttraining"), help="to go on with")
    parser.add_argument("--output", type=Path, default=RESULTS / "posttraining.json")
    given = parser.parse_args()
    unknown = set(given.methods) - set(METHODS)
    if unknown:
        parser.error(f"unknown methods {', '.join(sorted(unknown))}; known: {', '.join(METHODS)}")
    command = f"python {' '.join(['benchmarks/posttraining.py', *sys.argv[1:]])}"
    for found in measured(given.methods or list(METHODS), given):
        result = {"command": command, "machine": machine(), **found}
        write_json(given.output, result)
        write_text(given.output.with_suffix(".md"), report(result, given))
        save_figure(curves(result["runs"]), given.output.with_suffix(".png"))
    print(given.output.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
