"""What this package adds to dllm_gym: learned agents by path, and the command ``train``.

dllm_gym finds this module through the entry point group ``dllm_gym.plugins``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dllm_agents.agent import LearnedPolicy


def load_agent(text: str) -> LearnedPolicy | None:
    """A saved policy by the path of its directory or of its training run, whose best policy it takes.

    ``:sample`` or ``:deterministic`` behind the path chooses the decoding; the default is ``sample``.
    """
    from dllm_agents.checkpoint import DESCRIPTION, load_policy

    path, _, decoding = (
        text.rpartition(":") if text.endswith((":sample", ":deterministic")) else (text, "", "")
    )
    for directory in (Path(path), Path(path) / "best"):
        if (directory / DESCRIPTION).is_file():
            return load_policy(directory, decoding=decoding or "sample", name=Path(path).name)
    return None


def register_commands(app: typer.Typer) -> None:
    """Adds ``dllm-gym train``."""
    app.command("train")(_train)


def _train(
    algorithm: Annotated[str, typer.Argument(help="ppo or a2c.")],
    config: Annotated[
        str | None, typer.Option(help="Name of a configuration in agents/configs, or a YAML file.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Directory of the run; default: runs/<config>.")] = None,
    seed: Annotated[int | None, typer.Option(help="Overrides the configuration.")] = None,
    total_timesteps: Annotated[int | None, typer.Option(help="Overrides the configuration.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Overrides the configuration.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the directory.")] = False,
) -> None:
    """Train an unmasking policy."""
    from dllm_agents.config import ALGORITHMS, find_config, load_config
    from dllm_agents.training import CONFIG, train

    if algorithm not in ALGORITHMS:
        raise ValueError(f"unknown algorithm {algorithm!r}; choose one of {', '.join(ALGORITHMS)}")
    name = config or f"{algorithm}-full"
    directory = output or Path("runs") / find_config(name).stem
    path = directory / CONFIG if resume else find_config(name)
    if resume and not path.is_file():
        raise FileNotFoundError(f"nothing to resume in {directory}: no {CONFIG} there")
    changes = {"seed": seed, "total_timesteps": total_timesteps, "max_minutes": max_minutes}
    changes = {name: value for name, value in changes.items() if value is not None}
    resolved = load_config(path).updated(**changes)
    if resolved.algorithm != algorithm:
        raise ValueError(f"{path} configures {resolved.algorithm}, not {algorithm}")
    command = " ".join(["dllm-gym", *sys.argv[1:]])
    train(resolved, directory, resume=resume, progress=True, command=command)
    print(f"policy: {directory / 'best'}")
    print(f"curves: tensorboard --logdir {directory}")
