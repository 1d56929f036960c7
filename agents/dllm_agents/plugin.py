"""What this package adds to dllm_gym: learned agents by path, and ``train``, ``posttrain`` and ``study``.

dllm_gym finds this module through the entry point group ``dllm_gym.plugins``.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dllm_gym.cli.options import EnvOption, ImportOption, complete_task, env_arguments, run_files
from dllm_gym.cli.program import command
from dllm_gym.suggestions import did_you_mean

if TYPE_CHECKING:
    from dllm_agents.agent import LearnedPolicy
    from dllm_gym.sharing import Kind


def load_agent(text: str) -> LearnedPolicy | None:
    """A shipped policy as ``policy:NAME``, or a saved one by the path of its directory or training run.

    Of a run it takes the best policy. Options may follow after a colon, separated by commas: a decoding
    (``sample``, ``deterministic``, ``bernoulli``, ``dpls``), ``temperature=``, ``beta=``, ``caution=``,
    ``budget=`` of a success model, and the knobs of a conditioned policy, ``alpha=`` and ``target_steps=``:
    ``policy:arithmetic-any:target_steps=8``.

    Raises:
        ValueError: For an unknown shipped policy or option.
    """
    from dllm_agents.checkpoint import DESCRIPTION, load_policy, shipped_policies

    if text.startswith("policy:"):
        name, _, options = text.removeprefix("policy:").partition(":")
        if name not in shipped_policies():
            known = shipped_policies()
            raise ValueError(
                f"unknown policy {name!r}{did_you_mean(name, known)}; shipped are: {', '.join(known)}"
            )
        return load_policy(name, name=name, **policy_options(options))
    path, colon, options = text.rpartition(":")
    for place, given in ((Path(text), ""), *([(Path(path), options)] if colon else [])):
        for directory in (place, place / "best"):
            if (directory / DESCRIPTION).is_file():
                return load_policy(directory, name=place.name, **policy_options(given))
    return None


def read_run(text: str) -> dict[str, Any] | None:
    """What the folder of a training run says (``run_folder``), if it is one; options may follow a colon."""
    from dllm_agents.run_folder import read_run

    told = (read_run(place) for place in (text, text.rpartition(":")[0]) if place)
    return next(filter(None, told), None)


def agent_names() -> list[str]:
    """What ``load_agent`` knows by name."""
    from dllm_agents.checkpoint import shipped_policies

    return [f"policy:{name}" for name in shipped_policies()]


def shared_kinds() -> list[Kind]:
    """Policies can be pushed to a hub and pulled."""
    from dllm_agents.card import POLICY

    return [POLICY]


def policy_options(text: str) -> dict[str, Any]:
    """The arguments of ``load_policy`` that options after a colon stand for, see ``load_agent``.

    Raises:
        ValueError: For an unknown option.
    """
    from dllm_agents.agent import DECODINGS, KNOBS

    options: dict[str, Any] = {"knobs": {}}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals and key in DECODINGS:
            options["decoding"] = key
            continue
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if key not in ("temperature", "beta", "caution", "budget", *KNOBS) or number != number:
            raise ValueError(
                f"cannot read the option {part!r} of a policy; write one of {', '.join(DECODINGS)}, "
                f"or a number for temperature=, beta=, caution=, budget=, {'=, '.join(KNOBS)}="
            )
        (options["knobs"] if key in KNOBS else options)[key] = number
    return options


def register_commands(app: typer.Typer) -> None:
    """Adds ``dllm-gym train``, ``dllm-gym posttrain`` and ``dllm-gym study``."""
    command("train", app)(_train)
    command("posttrain", app)(_posttrain)
    command("study", app)(_study)


def _train(
    algorithm: Annotated[str, typer.Argument(help="grpo, ppo, a2c, success or rllib-ppo.")],
    config: Annotated[
        str | None,
        typer.Option(help="Name of a configuration in agents/configs (paper/llada-bl32), or a YAML file."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Train on another task than the configuration's, one of yours with --import.",
            autocompletion=complete_task,
        ),
    ] = None,
    env: EnvOption = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A field of the configuration, such as env.task_kwargs.size=6; may be given several times.",
        ),
    ] = None,
    imports: ImportOption = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Directory of the run; default: runs/<config>, or runs/<config>-<task>."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Overrides the configuration.")] = None,
    total_timesteps: Annotated[int | None, typer.Option(help="Overrides the configuration.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Overrides the configuration.")] = None,
    num_envs: Annotated[int | None, typer.Option(help="Overrides the configuration.")] = None,
    num_env_runners: Annotated[
        int | None, typer.Option(help="Processes that sample (rllib-ppo); overrides the configuration.")
    ] = None,
    num_learners: Annotated[
        int | None, typer.Option(help="Processes that learn (rllib-ppo); overrides the configuration.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Overrides the configuration's env.alpha.")] = None,
    eval_every: Annotated[
        int | None, typer.Option(help="Environment steps between evaluations; overrides the configuration.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="Minari dataset that success is fitted to, or imitation_steps imitate."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the directory.")] = False,
    save_every: Annotated[float, typer.Option(min=0.0, help="Seconds between two saved states.")] = 60.0,
) -> None:
    """Train an unmasking policy."""
    from dllm_agents import parallel
    from dllm_agents.config import ALGORITHMS, find_config, load_config
    from dllm_agents.run_folder import CONFIG
    from dllm_agents.training import train

    if algorithm not in ALGORITHMS:
        hint = did_you_mean(algorithm, ALGORITHMS)
        raise ValueError(f"unknown algorithm {algorithm!r}{hint}; choose one of {', '.join(ALGORITHMS)}")
    run_files(imports)
    name = config or f"{algorithm}-full"
    place = {"task": task} if env is None else env_arguments(env, task)
    of_task = "-".join(["", *re.findall(r"[\w.]+", env or task or "")])
    directory = output or Path("runs") / f"{find_config(name).stem}{of_task}"
    path = directory / CONFIG if resume else find_config(name)
    if resume and not path.is_file():
        missing = f"no {CONFIG} there" if directory.is_dir() else "there is no such folder"
        raise FileNotFoundError(f"nothing to resume in {directory}: {missing}")
    changes = {
        "seed": seed, "total_timesteps": total_timesteps, "max_minutes": max_minutes, "num_envs": num_envs,
        "eval_every": eval_every,
    }  # fmt: skip
    changes = {name: value for name, value in changes.items() if value is not None}
    workers = {"num_env_runners": num_env_runners, "num_learners": num_learners}
    workers = {name: value for name, value in workers.items() if value is not None}
    price = {} if alpha is None else {"alpha": alpha}
    resolved = load_config(path).merged(changes, {"env": price, "workers": workers})
    if place["task"] is not None:
        resolved = resolved.moved(place)
    # a dataset makes sense only together with the settings that say what is done with it
    recorded = [] if dataset is None else [f"dataset={dataset}"]
    resolved = resolved.with_settings([*recorded, *(settings or ())])
    if resolved.algorithm != algorithm:
        raise ValueError(f"{path} configures {resolved.algorithm}, not {algorithm}")
    command = " ".join(["dllm-gym", *sys.argv[1:]])
    with parallel.launched() as is_first:
        train(resolved, directory, resume=resume, progress=True, command=command, save_every=save_every)
    if is_first:
        print(f"policy: {directory / 'best'}")
        print(f"curves: tensorboard --logdir {directory}")


def _posttrain(
    method: Annotated[str, typer.Argument(help="agrpo, coupled-grpo or diffu-grpo.")],
    config: Annotated[
        str | None,
        typer.Option(help="Name of a configuration in agents/configs/posttrain, or a YAML file."),
    ] = None,
    dllm: Annotated[
        str | None,
        typer.Option(help="Name, checkpoint directory or hub id; overrides the configuration's env.backend."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Overrides the configuration's env.task.", autocompletion=complete_task),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A field of the configuration, such as method_kwargs.learning_rate=1e-4; several times.",
        ),
    ] = None,
    imports: ImportOption = None,
    output: Annotated[
        Path | None, typer.Option(help="Directory of the run and its checkpoint; default: runs/<config>.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Overrides the configuration.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Overrides the configuration.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Overrides the configuration.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the directory.")] = False,
    save_every: Annotated[float, typer.Option(min=0.0, help="Seconds between two saved states.")] = 60.0,
) -> None:
    """Train the dLLM itself on the rewards of a task."""
    from dllm_agents import parallel
    from dllm_agents.config import with_settings
    from dllm_agents.posttraining.config import (
        METHODS,
        find_posttrain_config,
        load_posttrain_config,
        posttrain_config,
    )
    from dllm_agents.posttraining.joint import POLICY
    from dllm_agents.posttraining.running import posttrain
    from dllm_agents.run_folder import CONFIG

    if method not in METHODS:
        hint = did_you_mean(method, METHODS)
        raise ValueError(f"unknown method {method!r}{hint}; choose one of {', '.join(METHODS)}")
    run_files(imports)
    name = config or method
    directory = output or Path("runs") / find_posttrain_config(name).stem
    path = directory / CONFIG if resume else find_posttrain_config(name)
    content = load_posttrain_config(path).to_dict()
    env = {"backend": dllm, "task": task}
    content["env"] = {**content["env"], **{key: value for key, value in env.items() if value is not None}}
    given = {"seed": seed, "rounds": rounds, "max_minutes": max_minutes}
    content |= {key: value for key, value in given.items() if value is not None}
    resolved = posttrain_config(with_settings(content, settings or ()))
    if resolved.method != method:
        raise ValueError(f"{path} configures {resolved.method}, not {method}")
    command = " ".join(["dllm-gym", *sys.argv[1:]])
    with parallel.launched() as is_first:
        posttrain(resolved, directory, resume=resume, progress=True, command=command, save_every=save_every)
    if is_first:
        print(f"dLLM: {directory}")
        if resolved.made_joint() is not None:
            print(f"policy: {directory / POLICY}")
        print(f"curves: tensorboard --logdir {directory}")


def _study(
    file: Annotated[
        str | None, typer.Argument(help="Study file (YAML), or the name of one in agents/configs/studies.")
    ] = None,
    algorithm: Annotated[
        list[str] | None,
        typer.Option(help="Without a file: name of a configuration, or a YAML file; several times."),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="Without a file: registered task, or an id of the suite; several times."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Number of seeds; default: the file's, or 5.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Directory of the study, where it goes on; default: runs/<file>.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes at a time; default: as many as there are CPUs.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Run on this Ray cluster; local: on one of its own, here."),
    ] = None,
    total_timesteps: Annotated[int | None, typer.Option(help="Of every training.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Of every training.")] = None,
    eval_every: Annotated[
        int | None, typer.Option(help="Steps between validations of every training.")
    ] = None,
    episodes: Annotated[
        int | None, typer.Option(min=1, help="Test problems; default: the file's, or 1000.")
    ] = None,
) -> None:
    """Compare algorithms over tasks and seeds: train them all, then tables and plots.

    Give it again after an interruption and it goes on; what is finished is not done again.
    """
    from dllm_agents import study
    from dllm_agents.studies.grid import load_study, make_study

    if (file is None) == (algorithm is None) or (file is not None and task is not None):
        raise ValueError("give either a study file, or --algorithm and --task")
    every = {"total_timesteps": total_timesteps, "max_minutes": max_minutes, "eval_every": eval_every}
    every = {name: value for name, value in every.items() if value is not None}
    if file is None:
        grid = make_study({"algorithms": algorithm, "tasks": task or ["arithmetic"]}, overrides=every)
    else:
        grid = load_study(file, every)
    grid = replace(
        grid,
        seeds=grid.seeds if seeds is None else tuple(range(seeds)),
        episodes=grid.episodes if episodes is None else episodes,
    )
    directory = output or Path("runs") / Path(file or "study").stem
    study(grid, directory, jobs=jobs, ray=ray, on_cell=partial(print, file=sys.stderr, flush=True))
    print(f"results: {directory / 'results.md'}")
