"""Where the time of training goes, and how long GRPO takes to beat every heuristic by five points.

The split is that of ``dllm-gym train`` with the shipped configurations, without evaluations: the dLLM's
forward, the policy while it collects, its updates, and the rest (environments, buffers). From scratch,
where episodes are long, and for GRPO also from the shipped policy with the learning rate at zero, as at the
end of a training; and with updates on all episodes of a group instead of half of them (``learn_from`` of
``algorithm_kwargs``). The dtype is the dLLM's; ``auto`` is bfloat16 where the processor computes in it, and
what the configurations take.

The lead: two trainings, on half of every group and on all of it, with evaluations on validation problems; the
first of those in which sampled decoding lies five points over the best mixture of 52 settings of eight rules
on the same problems.

Run: ``make bench`` or ``python benchmarks/training.py``; writes ``benchmarks/results/training.json`` and
``.md``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from limit import RESULTS
from numpy.typing import NDArray

from dllm_agents import train
from dllm_agents.config import TrainConfig, find_config, load_config
from dllm_agents.sb3.callbacks import Evaluation
from dllm_agents.sb3.grouped import GroupA2C, GroupedRollouts, GroupPPO
from dllm_agents.sb3.grpo import GRPO
from dllm_gym.backends.transformers_backend import TransformersBackend
from dllm_gym.bench import Clock, machine
from dllm_gym.evaluation import compare
from dllm_gym.evaluation.statistics import envelope
from dllm_gym.files import write_json, write_text

LEAD = 0.05
TRAINED = "arithmetic-full"  # the shipped policy
WHOLE = {"learn_from": None, "batch_size": 512}  # all eight episodes of a group
CASES: tuple[tuple[str, str, str | None, dict[str, Any]], ...] = (
    ("ppo-full", "auto", None, {}),
    ("a2c-full", "auto", None, {}),
    *(
        ("grpo-full", dtype, begin_with, options)
        for options in ({}, WHOLE)
        for dtype in ("auto", "float32")
        for begin_with in (None, TRAINED)
    ),
)
PARTS = {
    "dllm": [(TransformersBackend, "forward")],
    "policy": [(GroupedRollouts, "_act")],
    "update": [(GroupPPO, "train"), (GroupA2C, "train"), (GRPO, "train")],
    "all": [(GroupedRollouts, "collect_rollouts"), (GroupPPO, "train"), (GroupA2C, "train"), (GRPO, "train")],
}


def configuration(
    name: str, dtype: str, begin_with: str | None, options: dict[str, Any], **changes: Any
) -> TrainConfig:
    """A shipped configuration with another dtype of the dLLM and further options, perhaps from a policy."""
    config = load_config(find_config(name))
    env = {**config.env, "backend_kwargs": {"dtype": dtype}}
    algorithm_kwargs = {**config.algorithm_kwargs, **options}
    return config.updated(env=env, algorithm_kwargs=algorithm_kwargs, init_from=begin_with, **changes)


def split(
    name: str, dtype: str, begin_with: str | None, options: dict[str, Any], steps: int
) -> dict[str, Any]:
    """Environment steps per second and the shares of the parts."""
    rates = {"learning_rate": 0.0} if begin_with else {}  # a full rate would soon make another policy of it
    config = configuration(name, dtype, begin_with, options, total_timesteps=steps, **rates)
    clocks = {part: Clock() for part in PARTS}

    def begin(_: Evaluation) -> None:  # the reset's forwards, just done, are not in the time of the loop
        for clock in clocks.values():
            clock.seconds = 0.0

    with ExitStack() as stack, tempfile.TemporaryDirectory() as directory:
        stack.enter_context(patch.object(Evaluation, "_on_training_start", begin))
        stack.enter_context(patch.object(Evaluation, "evaluate", lambda _: None))  # nor are evaluations
        for part, methods in PARTS.items():
            timed = [clocks[part].around(getattr(owner, method)) for owner, method in methods]
            for (owner, method), function in zip(methods, timed, strict=True):
                stack.enter_context(patch.object(owner, method, function))
        train(config, Path(directory) / "run")
    total = clocks["all"].seconds
    shares = {part: clocks[part].seconds / total for part in ("dllm", "policy", "update")}
    shares["rest"] = 1 - sum(shares.values())
    return {
        "config": name,
        "options": options,
        "dtype": dtype,
        "from": begin_with or "scratch",
        "env_steps_per_second": round(steps / total),
        **{part: round(share, 3) for part, share in shares.items()},
    }


@cache  # the same for every training
def heuristics(episodes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean steps and accuracy of every rule on the validation problems."""
    env = configuration("grpo-full", "auto", None, {}).env
    rules = compare([], episodes, "validation", **env).results
    return np.array([rule.nfe_mean for rule in rules]), np.array([rule.accuracy for rule in rules])


def time_to_lead(options: dict[str, Any], steps: int, every: int, episodes: int, seed: int) -> dict[str, Any]:
    """All evaluations of a training, and the first one with the lead; seconds include evaluations."""
    changes = {"total_timesteps": steps, "eval_every": every, "eval_episodes": episodes, "seed": seed}
    config = configuration("grpo-full", "auto", None, options, **changes)
    with tempfile.TemporaryDirectory() as directory:
        run = train(config, Path(directory) / "run")
        history = json.loads((run / "metrics.json").read_text())["evaluations"]
    nfe, accuracy = heuristics(episodes)
    points = []
    for row in history:
        sampled = row["sample"]
        best = envelope(nfe, accuracy, sampled["nfe_mean"])
        point = {"timesteps": row["timesteps"], "seconds": row["seconds"]}
        point |= {"accuracy": round(sampled["accuracy"], 3), "nfe_mean": round(sampled["nfe_mean"], 1)}
        points.append({**point, "lead": round(sampled["accuracy"] - best, 3)})
    first = next((point for point in points if point["lead"] >= LEAD), None)
    return {"options": options, "seed": seed, "episodes": episodes, "first": first, "evaluations": points}


def named(name: str, options: dict[str, Any]) -> str:
    """A configuration and the options changed in it."""
    return ", ".join([name, *(f"{key} {value}" for key, value in options.items())])


def table(splits: list[dict[str, Any]], leads: list[dict[str, Any]]) -> str:
    """The measurements as Markdown."""
    lines = [
        "| configuration | dtype | from | steps/s | dLLM forward | policy | update | rest |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in splits:
        cells = [named(row["config"], row["options"]), row["dtype"], row["from"], row["env_steps_per_second"]]
        cells += [f"{row[part]:.1%}" for part in ("dllm", "policy", "update", "rest")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    for lead in leads:
        first = lead["first"]
        said = (
            "no lead of 5 points within the training"
            if first is None
            else ", ".join(
                [
                    f"{100 * first['lead']:.1f} points over the heuristics after {first['seconds']:.0f} s",
                    f"{first['timesteps']} steps ({first['accuracy']:.3f} @ {first['nfe_mean']:.1f})",
                ]
            )
        )
        name = named("grpo-full", lead["options"])
        lines += ["", f"{name}, seed {lead['seed']}, {lead['episodes']} validation problems: {said}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=40_000, help="of a training whose time is split")
    parser.add_argument("--cases", type=int, help="the first ones of the table; default: all")
    parser.add_argument("--lead-steps", type=int, default=500_000, help="of the training that is to lead")
    parser.add_argument("--lead-every", type=int, default=50_000, help="steps between its evaluations")
    parser.add_argument("--episodes", type=int, default=256, help="validation problems")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0], help="of the trainings that are to lead")
    parser.add_argument("--output", type=Path, default=RESULTS / "training.json")
    arguments = parser.parse_args()
    splits = [split(*case, arguments.steps) for case in CASES[: arguments.cases]]
    leads = [
        time_to_lead(options, arguments.lead_steps, arguments.lead_every, arguments.episodes, seed)
        for options in ({}, WHOLE)
        for seed in arguments.seeds
    ]
    write_json(arguments.output, {"machine": machine(), "splits": splits, "leads": leads})
    text = f"{table(splits, leads)}\n\n`python benchmarks/training.py`, {machine()}\n"
    write_text(arguments.output.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
