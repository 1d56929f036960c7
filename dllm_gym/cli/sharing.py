"""Policies and small dLLMs to a hub and back: ``push`` and ``pull``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dllm_gym.cli.program import command


@command("push")
def push(
    path: Annotated[Path, typer.Argument(help="Directory of a policy, training run or pretrained dLLM.")],
    repo: Annotated[str, typer.Argument(help="Repository to write to, owner/name; made if there is none.")],
    license: Annotated[
        str | None, typer.Option(help="For the card of a policy that has none, such as apache-2.0.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Upload a policy or a small dLLM to a hub."""
    from dllm_gym.sharing import push as run

    print(run(path, repo, license=license, private=private))


@command("pull")
def pull(
    repo: Annotated[str, typer.Argument(help="Repository to read, owner/name.")],
    directory: Annotated[Path, typer.Argument(help="Where to put it; must not exist.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit; default: the newest.")] = None,
) -> None:
    """Download a policy or a small dLLM from a hub."""
    from dllm_gym.sharing import pull as run

    print(run(repo, directory, revision=revision))
