"""Whether a dLLM gains by having its predictions fed back, as Residual Context Diffusion claims: a small one.

``tiny-arithmetic`` is trained further in pairs: plain, and with soft masks, on the same data with the same
masks, seed and learning rates. Soft masks may begin to feed back where the dLLM is certain or where it is
not; both are tried with the first seed, and what then decodes validation problems best is trained with the
other seeds.

Then both of a pair decode the same test problems, and the one with soft masks also without feeding anything
back: two trainings of the same dLLM differ by luck, too. At equal forwards: in a fixed number of steps
(``confidence:k``). At equal accuracy: the forwards that the hull of all rules needs for it. Policies: a
success model is trained on each dLLM, and decodes it with several budgets. An episode begins with plain
masks, so that no dLLM takes a forward more than the other.

Intervals are over problems, paired; what differs from one training to the next is in the lists of the seeds.

Run: ``python benchmarks/residual_context.py``. An interrupted run goes on.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from limit import RESULTS
from numpy.typing import NDArray
from posttraining import against
from rich.progress import track

from dllm_agents.config import find_config, load_config
from dllm_agents.training import train
from dllm_gym.bench import machine
from dllm_gym.evaluation import EvaluationResult, compare
from dllm_gym.evaluation.statistics import envelope_steps
from dllm_gym.files import json_values, read_json, write_json, write_text
from dllm_gym.pretrain import PretrainConfig, Pretrainer

BASE = "tiny-arithmetic"
TASK = {"two_digit_share": 0.25}  # as in the last stage of its own training
PLAIN = "plain"
KINDS = ("soft-mask", "soft-mask-uncertain")
FIXED = ("confidence:k=1", "confidence:k=2", "confidence:k=4", "confidence:k=6")
ADAPTIVE = (
    *(f"fast-dllm:threshold={threshold}" for threshold in (0.5, 0.7, 0.9)),
    *(f"eb-sampler:gamma={gamma}" for gamma in (0.01, 0.1)),
)
BUDGETS = (0.003, 0.01, 0.03, 0.1)
LEVELS = (0.65, 0.7, 0.75, 0.8, 0.85, 0.9)  # accuracies
NUMBERS = "residual_context"  # of a checkpoint's config.json


def trained(kind: str, seed: int, given: argparse.Namespace) -> Path:
    """The checkpoint directory of a training, which is made if it is not over."""
    config = PretrainConfig(
        task_kwargs=TASK,
        steps=given.steps,
        batch_size=given.batch_size,
        learning_rate=given.learning_rate,
        adam_learning_rate=given.learning_rate,
        seed=seed,
        init_from=BASE,
        residual_context=None if kind == PLAIN else kind,
    )
    output: Path = given.directory / f"{kind}-{given.steps}-{seed}"
    if not (output / "config.json").is_file():
        run = Pretrainer(config, output)
        for _ in track(run.train(), output.name, total=given.steps - run.step):
            pass
        run.save_checkpoint()
    return output


def place(kind: str, seed: int, given: argparse.Namespace, fed: bool = True) -> dict[str, Any]:
    """Where a dLLM decodes, and how: with its predictions fed back, if it was trained so, or without."""
    how = {} if kind == PLAIN or not fed else {"backend_kwargs": {"residual_context": True}}
    return {"backend": str(trained(kind, seed, given)), **how}


def decoded(
    agents: Sequence[str], where: dict[str, Any], given: argparse.Namespace, split: str = "test"
) -> list[EvaluationResult]:
    """What agents come to somewhere; what is kept of that is taken."""
    keep = given.directory / "kept"
    return list(compare(agents, given.episodes, split, strategies=[], keep=keep, **where).results)


def policies(kind: str, seed: int, given: argparse.Namespace) -> list[EvaluationResult]:
    """A success model, trained on a dLLM if that is not done, with every budget."""
    where = place(kind, seed, given)
    recipe = load_config(find_config("success-full"))
    env = {**recipe.env, "backend_kwargs": {}, **where}  # not compiled: that would not serve both
    run = given.directory / f"policy-{given.policy_steps}-{kind}-{given.steps}-{seed}"
    costs = {
        "total_timesteps": given.policy_steps,
        "eval_every": given.policy_steps,
        "eval_episodes": min(recipe.eval_episodes, given.episodes),
    }
    if not (run / "metrics.json").is_file():
        train(recipe.merged({"env": env, "seed": seed}, costs), run, resume=(run / "config.yaml").is_file())
    return decoded([f"{run}:budget={budget}" for budget in BUDGETS], env, given)


def equal_accuracy(
    plain: Sequence[Sequence[EvaluationResult]],
    fed: Sequence[Sequence[EvaluationResult]],
    resamples: int = 1000,
) -> list[dict[str, Any]]:
    """Forwards that the hulls of some decoders of two dLLMs need for several accuracies, and their ratio.

    The mean over the seeds; the interval is a paired percentile bootstrap over problems. Accuracies that one
    of them does not reach are left out, and so are resamples in which neither does.

    Args:
        plain: By seed, the decoders of the one.
        fed: Of the other.
        resamples: Of the bootstrap.
    """
    n = plain[0][0].episodes
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=resamples) / n
    weights = np.concatenate([np.full((1, n), 1 / n), weights])  # (R + 1, N)

    def steps(decoders: Sequence[EvaluationResult]) -> NDArray[np.float64]:  # (R + 1, levels)
        nfe = weights @ np.stack([one.records.nfe for one in decoders], axis=1)
        accuracy = weights @ np.stack([one.records.success for one in decoders], axis=1)
        return np.array(
            [[envelope_steps(*row, level) for level in LEVELS] for row in zip(nfe, accuracy, strict=True)]
        )

    found = []
    before, after = (np.mean([steps(one) for one in arm], axis=0) for arm in (plain, fed))
    with np.errstate(invalid="ignore"):
        ratios = after / before - 1
    for at, level in enumerate(LEVELS):
        if math.isfinite(before[0, at]) and math.isfinite(after[0, at]):
            low, high = np.nanquantile(ratios[1:, at], [0.025, 0.975], method="inverted_cdf")
            found.append(
                {
                    "accuracy": level,
                    "plain": round(before[0, at], 2),
                    "fed_back": round(after[0, at], 2),
                    "ratio": round(ratios[0, at], 4),
                    "ratio_ci95": json_values([round(low, 4), round(high, 4)]),
                }
            )
    return found


def compared(
    labels: Sequence[str],
    plain: Sequence[Sequence[EvaluationResult]],
    fed: Sequence[Sequence[EvaluationResult]],
) -> list[dict[str, Any]]:
    """The decoders of two dLLMs, each over all seeds: their means, and what the second has over the first."""
    return [
        {
            "label": label,
            **{
                f"{name}_{what}": round(float(np.mean([getattr(result, what) for result in results])), 4)
                for name, results in (("plain", one), ("fed_back", two))
                for what in ("accuracy", "nfe_mean")
            },
            **against(two, one),
        }
        for label, one, two in zip(labels, zip(*plain, strict=True), zip(*fed, strict=True), strict=True)
    ]


def differences(
    plain: Sequence[Sequence[EvaluationResult]], fed: Sequence[Sequence[EvaluationResult]]
) -> dict[str, Any]:
    """All that rules tell of two dLLMs, by seed."""
    fixed = len(FIXED)
    together = against(*([one for results in arm for one in results[:fixed]] for arm in (fed, plain)))
    by_seed = np.reshape(together["accuracy_of_seeds"], (len(fed), fixed)).mean(axis=1)
    return {
        "rules": compared((*FIXED, *ADAPTIVE), plain, fed),
        "equal_forwards": {
            **together,
            "trainings": len(fed),
            "accuracy_of_seeds": [round(one, 4) for one in by_seed.tolist()],
        },
        "equal_accuracy": equal_accuracy(plain, fed),
    }


def measured(given: argparse.Namespace) -> dict[str, Any]:
    """Everything there is to say."""
    first = given.seeds[0]
    validation = {
        kind: decoded(FIXED[1:], place(kind, first, given), given, "validation") for kind in (*KINDS, PLAIN)
    }
    accuracies = {
        kind: round(float(np.mean([result.accuracy for result in results])), 4)
        for kind, results in validation.items()
    }
    best = max(KINDS, key=accuracies.__getitem__)
    plain, without, fed = (
        [decoded((*FIXED, *ADAPTIVE), place(kind, seed, given, how), given) for seed in given.seeds]
        for kind, how in ((PLAIN, False), (best, False), (best, True))
    )
    found: dict[str, Any] = {
        "kind": best,
        "validation": {"agents": list(FIXED[1:]), "accuracy": accuracies, "seed": first},
        "numbers": {
            f"{kind}, seed {seed}": read_json(trained(kind, seed, given) / "config.json")[NUMBERS]
            for kind in KINDS
            for seed in (given.seeds if kind == best else [first])
        },
        "against": {
            "trained plain": differences(plain, fed),
            "the same dLLM, decoded plainly": differences(without, fed),
        },
    }
    seeds = given.seeds[: given.policy_seeds]
    if seeds:
        plain, fed = ([policies(kind, seed, given) for seed in seeds] for kind in (PLAIN, best))
        found["policies"] = {
            "seeds": seeds,
            "budgets": compared([f"budget={budget}" for budget in BUDGETS], plain, fed),
            "equal_accuracy": equal_accuracy(plain, fed),
        }
    return found


def report(found: dict[str, Any], given: argparse.Namespace) -> str:
    """What was measured, as Markdown."""
    validation = ", ".join(f"{kind} {value:.3f}" for kind, value in found["validation"]["accuracy"].items())
    lines = [
        f"`{found['command']}`, {found['machine']}",
        "",
        f"{BASE} trained on, plain and with predictions fed back ({found['kind']}): {given.steps} steps of",
        f"{given.batch_size} problems, learning rate {given.learning_rate:g}, seeds "
        f"{', '.join(map(str, given.seeds))}; {given.episodes} test problems, full diffusion.",
        f"Mean accuracy of {', '.join(FIXED[1:])} on as many validation problems, seed {given.seeds[0]}:",
        f"{validation}.",
        "",
        "| learned numbers | scale | steepness | offset |",
        "|---" * 4 + "|",
        *(
            f"| {name} | {one['scale']:.3f} | {one['steepness']:.2f} | {one['offset']:.3f} |"
            for name, one in found["numbers"].items()
        ),
        "",
        "Accuracy @ mean forwards, means over the seeds. Differences, fed back less plain, are in percentage",
        "points, with 95 % intervals over problems, and in brackets the seeds one by one.",
    ]
    for name, one in found["against"].items():
        lines += [
            "",
            f"Plain: {name}.",
            "",
            *_table(one["rules"]),
            "",
            f"In a fixed number of steps, all {len(FIXED)} together: {_points(one['equal_forwards'])}.",
            "Forwards at equal accuracy, on the hulls of all rules:",
            "",
            *_forwards(one["equal_accuracy"]),
        ]
    if "policies" in found:
        seeds = ", ".join(map(str, found["policies"]["seeds"]))
        lines += [
            "",
            f"Success models trained on each dLLM for {given.policy_steps:,} steps, seeds {seeds}:",
            "",
            *_table(found["policies"]["budgets"]),
            "",
            *_forwards(found["policies"]["equal_accuracy"]),
        ]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [
        "| decoded by | plain | fed back | accuracy | forwards |",
        "|---" * 5 + "|",
        *(
            f"| {row['label']} | {row['plain_accuracy']:.3f} @ {row['plain_nfe_mean']:.1f} "
            f"| {row['fed_back_accuracy']:.3f} @ {row['fed_back_nfe_mean']:.1f} | {_points(row)} "
            f"| {row['nfe']:+.2f} ({row['nfe_ci95'][0]:+.2f} to {row['nfe_ci95'][1]:+.2f}) |"
            for row in rows
        ),
    ]


def _points(row: dict[str, Any]) -> str:
    low, high = (f"{100 * end:+.1f}" for end in row["accuracy_ci95"])
    seeds = ", ".join(f"{100 * one:+.1f}" for one in row["accuracy_of_seeds"])
    return f"{100 * row['accuracy']:+.1f} ({low} to {high}) [{seeds}]"


def _forwards(rows: Sequence[dict[str, Any]]) -> list[str]:
    def share(value: float | None) -> str:
        return "never" if value is None else f"{value:+.1%}"

    return [
        "| accuracy | plain | fed back | difference |",
        "|---" * 4 + "|",
        *(
            f"| {row['accuracy']} | {row['plain']:.2f} | {row['fed_back']:.2f} | {share(row['ratio'])} "
            f"({' to '.join(map(share, row['ratio_ci95']))}) |"
            for row in rows
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300, help="optimiser steps of each training")
    parser.add_argument("--batch-size", type=int, default=32, help="problems per step")
    parser.add_argument("--learning-rate", type=float, default=2e-4, help="of the dLLM's weights")
    parser.add_argument("--seeds", nargs="+", type=int, default=[10, 11, 12], help="of the trainings")
    parser.add_argument("--episodes", type=int, default=500, help="test problems")
    parser.add_argument("--policy-steps", type=int, default=65_000, help="of each success model")
    parser.add_argument("--policy-seeds", type=int, default=3, help="so many of the seeds have policies")
    parser.add_argument("--directory", type=Path, default=Path("runs/residual-context"), help="to go on with")
    parser.add_argument("--output", type=Path, default=RESULTS / "residual_context.json")
    given = parser.parse_args()
    command = " ".join(["python benchmarks/residual_context.py", *sys.argv[1:]])
    found = {"command": command, "machine": machine(), **measured(given)}
    write_json(given.output, found)
    write_text(given.output.with_suffix(".md"), report(found, given))
    print(given.output.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
