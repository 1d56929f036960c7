"""Where the time of training goes, and how long PPO, A2C and GRPO take to leave every heuristic behind.

The split is that of ``dllm-gym train`` from random weights (``scratch/*``), without evaluations: the dLLM's
forward, the policy while it collects, its updates, and the rest (environments, buffers). For GRPO also from
the shipped policy with the learning rate at zero, as at the end of a training. The dtype is the dLLM's;
``auto`` is bfloat16 where the processor computes in it.

The leads: trainings by the default configurations, warm start and evaluations included. A lead is the points
of accuracy by which the better of the two decodings on validation problems lies over the best mixture of all
settings of all rules on the same problems, at its number of steps. The table has medians over seeds.

Run: ``make bench`` or ``python benchmarks/training.py``; writes ``benchmarks/results/training.json`` and
``.md``. With ``--resume`` what that file has by the same options is kept and the rest is measured.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from limit import RESULTS
from numpy.typing import NDArray

from dllm_agents import train
from dllm_agents.config import find_config, load_config
from dllm_agents.run_folder import REPORTED
from dllm_agents.sb3.callbacks import Evaluation
from dllm_agents.sb3.grouped import GroupA2C, GroupedRollouts, GroupPPO
from dllm_agents.sb3.grpo import GRPO
from dllm_gym.backends.transformers_backend import TransformersBackend
from dllm_gym.bench import Clock, machine
from dllm_gym.evaluation import compare
from dllm_gym.evaluation.statistics import envelope
from dllm_gym.files import write_json, write_text

LEADS = (0.05, 0.3)
LEADERS = ("ppo-full", "a2c-full", "grpo-full")
TRAINED = "arithmetic-full"  # the shipped policy
CASES: tuple[tuple[str, str, str | None], ...] = (
    ("scratch/ppo", "auto", None),
    ("scratch/a2c", "auto", None),
    *(("scratch/grpo", dtype, begin_with) for dtype in ("auto", "float32") for begin_with in (None, TRAINED)),
)
PARTS = {
    "dllm": [(TransformersBackend, "forward")],
    "policy": [(GroupedRollouts, "_act")],
    "update": [(GroupPPO, "train"), (GroupA2C, "train"), (GRPO, "train")],
    "all": [(GroupedRollouts, "collect_rollouts"), (GroupPPO, "train"), (GroupA2C, "train"), (GRPO, "train")],
}


def split(name: str, dtype: str, begin_with: str | None, steps: int) -> dict[str, Any]:
    """Environment steps per second and the shares of the parts."""
    rates = {"learning_rate": 0.0} if begin_with else {}  # a full rate would soon make another policy of it
    config = load_config(find_config(name))
    env = {**config.env, "backend_kwargs": {"dtype": dtype, "compile": "auto"}}
    config = config.updated(env=env, init_from=begin_with, total_timesteps=steps, **rates)
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
        "dtype": dtype,
        "from": begin_with or "scratch",
        "env_steps_per_second": round(steps / total),
        **{part: round(share, 3) for part, share in shares.items()},
    }


@cache  # the same for every training
def heuristics(episodes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean steps and accuracy of every rule on the validation problems."""
    env = load_config(find_config(LEADERS[0])).env
    rules = compare([], episodes, "validation", **env).results
    return np.array([rule.nfe_mean for rule in rules]), np.array([rule.accuracy for rule in rules])


def time_to_lead(name: str, steps: int, every: int, episodes: int, seed: int) -> dict[str, Any]:
    """All evaluations of a training, and the first ones with each lead; seconds include evaluations."""
    changes = {"total_timesteps": steps, "eval_every": every, "eval_episodes": episodes, "seed": seed}
    config = load_config(find_config(name)).updated(**changes)
    with tempfile.TemporaryDirectory() as directory:
        run = train(config, Path(directory) / "run")
        history = json.loads((run / "metrics.json").read_text())["evaluations"]
    nfe, accuracy = heuristics(episodes)
    points = []
    for row in history:
        gaps = {
            decoding: row[decoding]["accuracy"] - envelope(nfe, accuracy, row[decoding]["nfe_mean"])
            for decoding in REPORTED
        }
        decoding = max(gaps, key=lambda name: gaps[name])
        point = {"timesteps": row["timesteps"], "seconds": row["seconds"], "decoding": decoding}
        point |= {key: round(row[decoding][key], 3) for key in ("accuracy", "nfe_mean", "reward_mean")}
        points.append({**point, "lead": round(float(gaps[decoding]), 3)})
    first = [next((point for point in points if point["lead"] >= lead), None) for lead in LEADS]
    return {"config": name, "seed": seed, "episodes": episodes, "first": first, "evaluations": points}


def table(splits: list[dict[str, Any]], leads: list[dict[str, Any]]) -> str:
    """The measurements as Markdown."""
    lines = [
        "| configuration | dtype | from | steps/s | dLLM forward | policy | update | rest |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in splits:
        cells = [row["config"], row["dtype"], row["from"], row["env_steps_per_second"]]
        cells += [f"{row[part]:.1%}" for part in ("dllm", "policy", "update", "rest")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    ahead = [f"seconds to {100 * lead:.0f} points" for lead in LEADS]
    lines += ["", f"| configuration | seeds | {' | '.join(ahead)} | lead at the end | decoding |"]
    lines += ["|---|---|---|---|---|---|"]
    for name in dict.fromkeys(lead["config"] for lead in leads):
        own = [lead for lead in leads if lead["config"] == name]
        cells = [name, str(len(own))]
        for at in range(len(LEADS)):
            seconds = [lead["first"][at]["seconds"] if lead["first"][at] else np.inf for lead in own]
            median = np.median(seconds)
            cells.append(f"{median:.0f} ({', '.join(f'{one:.0f}' for one in seconds)})")
        ends = [lead["evaluations"][-1] for lead in own]
        gained = [100 * end["lead"] for end in ends]
        cells.append(f"{np.median(gained):.0f} ({', '.join(f'{one:.0f}' for one in gained)})")
        cells.append("; ".join(f"{end['accuracy']:.3f} @ {end['nfe_mean']:.1f}" for end in ends))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines).replace("inf", "never")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=40_000, help="of a training whose time is split")
    parser.add_argument("--cases", type=int, help="the first ones of the table; default: all")
    parser.add_argument("--lead-steps", type=int, default=200_000, help="of a training that is to lead")
    parser.add_argument("--lead-every", type=int, default=20_000, help="steps between its evaluations")
    parser.add_argument("--episodes", type=int, default=256, help="validation problems")
    parser.add_argument("--leaders", nargs="*", default=LEADERS, help="configurations that are to lead")
    parser.add_argument("--seeds", nargs="*", type=int, default=range(5), help="of their trainings")
    parser.add_argument("--resume", action="store_true", help="keep what the output has already")
    parser.add_argument("--output", type=Path, default=RESULTS / "training.json")
    arguments = parser.parse_args()
    sizes = (arguments.lead_steps, arguments.lead_every, arguments.episodes)
    asked = {"steps": arguments.steps, "leads": list(sizes)}
    done: dict[str, Any] = {}
    if arguments.resume and arguments.output.exists():
        done = json.loads(arguments.output.read_text())
        if done.get("asked") != asked:
            parser.error(f"{arguments.output} was measured with {done.get('asked')}, not with {asked}")
    result = {"machine": machine(), "asked": asked, "splits": [], "leads": [], **done}
    splits, leads = result["splits"], result["leads"]
    known = {(row["config"], row["dtype"], row["from"]) for row in splits}
    for case in CASES[: arguments.cases]:
        if (*case[:2], case[2] or "scratch") not in known:
            splits.append(split(*case, arguments.steps))
            write_json(arguments.output, result)  # as they come: a killed benchmark leaves what it has
    trained = {(row["config"], row["seed"]) for row in leads}
    for seed, name in product(arguments.seeds, arguments.leaders):
        if (name, seed) not in trained:
            leads.append(time_to_lead(name, *sizes, seed))
            write_json(arguments.output, result)
    text = f"{table(splits, leads)}\n\n`python benchmarks/training.py`, {result['machine']}\n"
    write_text(arguments.output.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
