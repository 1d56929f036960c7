"""Looking at decoding: ``play`` and ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dllm_gym.cli.options import (
    AgentsOption,
    Chance,
    CompileOption,
    FewProblems,
    Place,
    complete_agent,
    environment,
)
from dllm_gym.cli.program import command
from dllm_gym.cli.screen import console, progress, say

_USUAL = ["fast-dllm:threshold=0.9"]


@command("play")
def play(
    place: Place,
    chance: Chance,
    agent: AgentsOption = None,
    problem: Annotated[int, typer.Option(min=0, help="Index of the problem in the split.")] = 0,
    human: Annotated[
        bool, typer.Option("--human", help="Decode it yourself, then see how the agents did.")
    ] = False,
    speed: Annotated[float, typer.Option(help="Steps per second, on the screen and in films.")] = 4.0,
    gif: Annotated[Path | None, typer.Option(help="Write a film instead of showing it (.gif).")] = None,
    mp4: Annotated[
        Path | None, typer.Option(help="The same as a video (.mp4); needs dllm-gym[video].")
    ] = None,
) -> None:
    """Watch agents decode a problem step by step, make a film of it, or decode it yourself.

    Several agents decode side by side; without --agent it is fast-dllm:threshold=0.9.
    """
    from dllm_gym.envs.rendering import mp4_writer, save_gif, save_mp4
    from dllm_gym.files import check_ending
    from dllm_gym.looking import film as run
    from dllm_gym.looking.terminal import play as play_yourself
    from dllm_gym.looking.terminal import watch

    # tells now what could not be written at the end
    if gif is not None:
        check_ending(gif, ".gif")
    if mp4 is not None:
        check_ending(mp4, ".mp4")
        mp4_writer()
    agents = agent or _USUAL
    options = {"problem": problem, **vars(chance), **place.arguments()}
    if human:
        seen = play_yourself(agents, Console(), **options)
    elif gif or mp4:
        with console.status("decoding"):
            seen = run(agents, **options)
    else:
        seen = watch(agents, Console(), speed, **options)
    for path, save in ((gif, save_gif), (mp4, save_mp4)):
        if seen is not None and path is not None:
            save(seen.pictures(), path, fps=speed, hold_last=2.5)
            say("film", path)


@command("report")
def report(
    run: Annotated[
        str,
        typer.Argument(
            help="Folder of a training run, or an agent: policy:NAME, a path, a strategy.",
            autocompletion=complete_agent,
        ),
    ],
    place: Place,
    problems: FewProblems,
    output: Annotated[
        Path | None, typer.Option(help="The page; default: report.html in the run's folder, or here.")
    ] = None,
    agent: AgentsOption = None,
    comparison: Annotated[
        Path | None,
        typer.Option(help="What compare --json wrote; default: compare.json in the run's folder, if there."),
    ] = None,
    compile: CompileOption = None,
) -> None:
    """Write one self-contained HTML page about a training run or an agent.

    The agent is compared with every --agent, or with fast-dllm:threshold=0.9.
    """
    from dllm_gym.evaluation import as_agent
    from dllm_gym.evaluation.home import settle
    from dllm_gym.looking.report import report as run_report
    from dllm_gym.looking.report import run_named

    told = place.arguments()  # before all else: files of the user's are run
    trained = (run_named(run) or {}).get("environment", {})
    told = {**trained, **settle(told, trained)}
    told.pop("split", None)  # of the training
    team = [as_agent(text) for text in [run, *(agent or _USUAL)]]
    with progress("loading") as bar:
        path = run_report(
            run,
            output,
            agents=team[1:],
            comparison=comparison,
            **vars(problems),
            on_part=bar.begin,
            on_start=bar.expect,
            on_episode=bar.advance,
            **environment(team, told, compile),
        )
    say("report", path)
