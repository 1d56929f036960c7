"""Episodes as data: ``record`` and ``pairs``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dllm_gym.cli.options import (
    AgentsOption,
    CompileOption,
    EpisodesOption,
    Place,
    SeedOption,
    SplitOption,
    environment,
)
from dllm_gym.cli.program import command
from dllm_gym.cli.screen import progress, say

DatasetArgument = Annotated[
    str, typer.Argument(metavar="ID", help="As Minari calls it, such as dllm-gym/sudoku-mixed-v0.")
]


@command("record")
def record(
    dataset: DatasetArgument,
    place: Place,
    agent: AgentsOption = None,
    observe: Annotated[
        list[str] | None,
        typer.Option(help="A further observation to record, such as entropy; may be given several times."),
    ] = None,
    episodes: EpisodesOption = 200,
    split: SplitOption = "train",
    seed: SeedOption = 0,
    compile: CompileOption = None,
) -> None:
    """Record how agents decode into a new Minari dataset, every problem by every agent.

    Without --agent these are four rules from slow and right to fast and wrong, and with --env the trained
    policy of that member of the suite.
    """
    from dllm_gym.evaluation import as_agent
    from dllm_gym.offline import mixed_agents, record_dataset
    from dllm_gym.suite import member

    told = place.arguments()
    trained = member(place.env).trained if place.env is not None else None
    team = [as_agent(text) for text in agent or mixed_agents(trained)]
    with progress("decoding") as bar:
        made = record_dataset(
            dataset,
            team,
            episodes,
            split,
            seed=seed,
            on_start=bar.expect,
            on_episode=bar.advance,
            observe=tuple(observe or ()),
            **environment(team, told, compile),
        )
    say("dataset", f"{made.total_episodes} episodes in {made.spec.data_path}")


@command("pairs")
def pairs(
    dataset: DatasetArgument,
    output: Annotated[Path, typer.Option(help="Write the pairs here (.jsonl).")] = Path("pairs.jsonl"),
) -> None:
    """Write pairs of right answers to one problem out of a dataset, the faster one chosen."""
    from dllm_gym.offline import preference_pairs, read_dataset, write_pairs

    found = preference_pairs(read_dataset(dataset))
    write_pairs(found, output)
    say("pairs", f"{len(found)} in {output}")
