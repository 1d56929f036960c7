"""Whether to train the dLLM, the policy that decodes it, or both at once on the same episodes.

The task and the dLLM are those of ``posttraining.py``, and a shipped policy decodes, which was trained on the
problems that the dLLM was pretrained on. Three trainings begin there: in one the dLLM learns, in one the
policy, in one both (``joint``). All decode the same number of episodes, and are otherwise the same
configuration: what does not learn has a learning rate of 0. A fourth is that of a policy alone as it is
usually trained: by ``dllm-gym train grpo``, whose dLLM writes without noise, on as many episodes or a few
more, as rows do not wait for each other. The weights tested are those at the end.

The dLLM learns from the score, the policy from the reward, score times the price of the steps. Intervals are
over problems, paired; what differs from one training to the next is in the lines of the seeds.

Run: ``python benchmarks/joint.py``. An interrupted run goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import posttraining
from limit import RESULTS

from dllm_agents import train
from dllm_agents.config import TrainConfig
from dllm_agents.posttraining.config import PosttrainConfig, find_posttrain_config, load_posttrain_config
from dllm_agents.posttraining.joint import POLICY
from dllm_agents.run_folder import METRICS
from dllm_gym.bench import machine
from dllm_gym.evaluation import EvaluationResult
from dllm_gym.evaluation.statistics import mean_interval
from dllm_gym.files import read_json, write_json, write_text

START = "arithmetic-full"
BOTH, DLLM, POLICY_ONLY, BY_TRAIN = "both", "dLLM alone", "policy alone", "policy by train"
WHO = (BOTH, DLLM, POLICY_ONLY, BY_TRAIN)
POLICY_RATE = 3e-4
NEVER = 10**9  # steps
SHOWN = ("accuracy", "nfe", "reward")


def configured(who: str, seed: int, given: argparse.Namespace) -> PosttrainConfig:
    """The configuration of a training in which one or both learn."""
    config = posttraining.configured("agrpo", seed, given)
    recipe = load_posttrain_config(find_posttrain_config("joint-agrpo"))
    still = {"learning_rate": 0.0} if who == POLICY_ONLY else {}
    return replace(
        config,
        agent=f"policy:{START}",
        joint={**how(recipe), "learning_rate": 0.0 if who == DLLM else given.policy_rate},
        method_kwargs={**config.method_kwargs, **still},
        eval_every=given.rounds,
    )


def configured_by_train(seed: int, given: argparse.Namespace) -> TrainConfig:
    """The configuration of a policy's training by ``dllm-gym train``, with the same constants."""
    recipe = load_posttrain_config(find_posttrain_config("joint-agrpo"))
    constants = how(recipe)
    policy = {"critic": False, "sampler": constants.pop("sampler")}
    del constants["learning_rate"]
    return TrainConfig(
        algorithm="grpo",
        env={**posttraining.ENV, "backend": posttraining.BASE},
        num_envs=min(recipe.num_envs, 8 * given.groups),
        total_timesteps=NEVER,  # rounds are counted
        eval_every=NEVER,
        eval_episodes=given.validation,
        learning_rate=given.policy_rate,
        final_learning_rate=given.policy_rate,
        warmup=recipe.made_method().warmup,
        algorithm_kwargs={
            **constants,
            "n_steps": 1,
            "groups_per_rollout": given.groups,
            "total_rounds": given.rounds,
        },
        policy=policy,
        init_from=START,
        seed=seed,
    )


def how(recipe: PosttrainConfig) -> dict[str, Any]:
    """The constants by which a policy learns."""
    assert isinstance(recipe.joint, Mapping)
    return dict(recipe.joint)


def place(who: str, seed: int, given: argparse.Namespace) -> Path:
    """The checkpoint directory of a training."""
    rates = {DLLM: (given.learning_rate,), BOTH: (given.learning_rate, given.policy_rate)}
    of = "-".join(map(str, rates.get(who, (given.policy_rate,))))
    name = f"{who.replace(' ', '-')}-{given.rounds}x{given.groups}-{of}-{seed}"
    directory: Path = given.directory / name
    return directory


def against(after: Sequence[EvaluationResult], before: Sequence[EvaluationResult]) -> dict[str, Any]:
    """How some results differ from others of the same problems, one of each per seed."""
    rewards = [a.records.reward - b.records.reward for a, b in zip(after, before, strict=True)]
    steps = [a.records.nfe - b.records.nfe for a, b in zip(after, before, strict=True)]
    return {
        **posttraining.against(after, before),
        "nfe_of_seeds": [round(float(one.mean()), 3) for one in steps],
        "reward": round(float(np.mean(rewards)), 4),
        "reward_ci95": [round(end, 4) for end in mean_interval(np.mean(rewards, axis=0))],
        "reward_of_seeds": [round(float(one.mean()), 4) for one in rewards],
    }


def trained(run: Path, who: str, seed: int, given: argparse.Namespace) -> tuple[str, str]:
    """The dLLM and the policy of a training, which is made if it is not over."""
    if who != BY_TRAIN:
        if not (run / posttraining.COST).is_file():
            posttraining.train(run, configured(who, seed, given))
        return str(run), str(run / POLICY)
    if not (run / posttraining.COST).is_file():
        posttraining.train(run, configured_by_train(seed, given), train)
    return posttraining.BASE, str(run / "last")


def measured(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Everything that can be said, anew after every training."""
    (before,) = posttraining.tested(posttraining.BASE, given, [f"policy:{START}"], {})
    found: dict[str, Any] = {"before": _summary(before), "runs": []}
    after: dict[str, dict[int, EvaluationResult]] = {who: {} for who in given.who}
    for seed, who in product(given.seeds, given.who):
        run = place(who, seed, given)
        dllm, policy = trained(run, who, seed, given)
        (after[who][seed],) = posttraining.tested(dllm, given, [policy], {})
        evaluations = read_json(run / METRICS)["evaluations"]
        found["runs"].append(
            {
                "learns": who,
                "seed": seed,
                "seconds": evaluations[-1]["seconds"],
                **read_json(run / posttraining.COST),
                "test": _summary(after[who][seed]),
            }
        )
        yield {**found, **posttraining.paired(after, before, _differences)}


def _differences(
    first: Mapping[int, EvaluationResult], second: Mapping[int, EvaluationResult]
) -> dict[str, Any]:
    """Over the seeds that both have."""
    seeds = [seed for seed in first if seed in second]
    return against([first[seed] for seed in seeds], [second[seed] for seed in seeds])


def _summary(result: EvaluationResult) -> dict[str, Any]:
    kept = ("accuracy", "accuracy_ci95", "nfe_mean", "reward_mean")
    return {name: value for name, value in result.to_json().items() if name in kept}


def report(found: dict[str, Any], given: argparse.Namespace) -> str:
    """What was measured, as Markdown."""
    lines = [
        f"`{found['command']}`, {found['machine']}",
        "",
        f"{posttraining.BASE} on arithmetic with operands of two digits wherever possible, decoded by "
        f"policy:{START}; {given.rounds} rounds of",
        f"{given.groups * 8} episodes in each training, AGRPO at {given.learning_rate:g} for the dLLM, "
        f"{given.policy_rate:g} for the policy. {given.episodes} test problems.",
        "",
        "| learned | accuracy | steps | reward | seconds | CPU seconds |",
        "|---" * 6 + "|",
        f"| nothing | {_point(found['before'])} | | |",
    ]
    for run in found["runs"]:
        cost = "interrupted" if run["cpu_seconds"] is None else run["cpu_seconds"]
        name = f"{run['learns']}, seed {run['seed']}"
        lines.append(f"| {name} | {_point(run['test'])} | {run['seconds']:.0f} | {cost} |")
    lines += [
        "",
        "Differences of the same problems, accuracy in percentage points, with 95 % intervals over problems, "
        "and in brackets the",
        "trainings one by one.",
    ]
    for title, rows in (("gained by", found["gains"]), ("difference", found["duels"])):
        lines += ["", f"| {title} | accuracy | steps | reward |", "|---" * 4 + "|"]
        lines += [
            f"| {name} | {' | '.join(_shown(row, key) for key in SHOWN)} |" for name, row in rows.items()
        ]
    return "\n".join(lines) + "\n"


def _point(one: dict[str, Any]) -> str:
    return f"{one['accuracy']:.3f} | {one['nfe_mean']:.2f} | {one['reward_mean']:.3f}"


def _shown(row: dict[str, Any], key: str) -> str:
    scale, digits = {"accuracy": (100, 1), "nfe": (1, 2), "reward": (1, 3)}[key]
    low, high = (f"{scale * end:+.{digits}f}" for end in row[f"{key}_ci95"])
    seeds = ", ".join(f"{scale * value:+.{digits}f}" for value in row[f"{key}_of_seeds"])
    return f"{scale * row[key]:+.{digits}f} ({low} to {high}) [{seeds}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--who", nargs="+", choices=WHO, default=list(WHO), help="learns")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the trainings")
    parser.add_argument("--rounds", type=int, default=40, help="of each training")
    parser.add_argument("--groups", type=int, default=16, help="problems per round, each decoded 8 times")
    parser.add_argument("--learning-rate", type=float, default=posttraining.RATES["agrpo"], help="the dLLM's")
    parser.add_argument("--policy-rate", type=float, default=POLICY_RATE, help="the policy's learning rate")
    parser.add_argument("--validation", type=int, default=256, help="validation problems")
    parser.add_argument("--episodes", type=int, default=500, help="test problems")
    parser.add_argument("--directory", type=Path, default=Path("runs/joint"), help="to go on with")
    parser.add_argument("--output", type=Path, default=RESULTS / "joint.json")
    given = parser.parse_args()
    command = f"python {' '.join(['benchmarks/joint.py', *sys.argv[1:]])}"
    for found in measured(given):
        result = {"command": command, "machine": machine(), **found}
        write_json(given.output, result)
        write_text(given.output.with_suffix(".md"), report(result, given))
    print(given.output.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
