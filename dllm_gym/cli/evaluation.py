"""How good agents are, and how they decode: ``evaluate``, ``compare`` and ``analyze``."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from dllm_gym.cli.options import (
    AgentOption,
    AgentsOption,
    CompileOption,
    FewProblems,
    JsonOption,
    Place,
    Problems,
    complete_agent,
    environment,
)
from dllm_gym.cli.program import command
from dllm_gym.cli.screen import Counter, duration, progress, results_table, say, show, where, write_json

if TYPE_CHECKING:
    from dllm_gym.evaluation import Comparison, EvaluationResult, Profile
    from dllm_gym.evaluation.statistics import Interval

_WORTH_SAYING = 5.0  # seconds


@command("evaluate")
def evaluate(
    agent: AgentOption,
    place: Place,
    problems: Problems,
    compile: CompileOption = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Append every finished episode here (.jsonl): an interrupted evaluation goes on."),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Evaluate one agent on a task's problems."""
    from dllm_gym.evaluation import as_agent
    from dllm_gym.evaluation import evaluate as run

    told = place.arguments()  # before all else: files of the user's are run
    one = as_agent(agent)
    with progress(agent) as bar:
        result = run(
            one,
            **vars(problems),
            on_start=bar.expect,
            on_episode=bar.advance,
            output=output,
            **environment([one], told, compile),
        )
    rows = [result.to_json()]
    show(json_file, where(rows), results_table(rows))
    write_json(rows, json_file)


@command("compare")
def compare(
    place: Place,
    problems: Problems,
    agents: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[AGENT]...",
            help="Whom to compare, as --agent. The first one is compared with each of the others.",
            show_default=False,
            autocompletion=complete_agent,
        ),
    ] = None,
    agent: AgentsOption = None,
    strategies: Annotated[
        str,
        typer.Option(help="With which heuristics: none, short (8 settings) or full (every rule)."),
    ] = "full",
    compile: CompileOption = None,
    plot: Annotated[Path | None, typer.Option(help="Write the Pareto plot here (.png, .pdf).")] = None,
    keep: Annotated[
        Path | None,
        typer.Option(help="Directory for episodes and results: an interrupted comparison goes on."),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Compare agents, and heuristics over their parameters, on the same problems."""
    from dllm_gym.evaluation import as_agent, sweep
    from dllm_gym.evaluation import compare as run

    if plot is not None:
        from dllm_gym.evaluation.figures import picture_format

        picture_format(plot)  # tells now what it could not draw at the end
    told = place.arguments()
    team = [as_agent(text) for text in [*(agents or []), *(agent or [])]]
    rules = sweep(strategies)
    with progress("decoding") as bar:
        settings = Settings(len(rules) + len(team), bar)
        comparison = run(
            team,
            **vars(problems),
            strategies=rules,
            on_start=settings.start,
            on_episode=bar.advance,
            on_result=settings.finish,
            keep=keep,
            **environment(team, told, compile),
        )
    rows = comparison.to_json()
    show(json_file, where(rows), results_table(rows), *_findings(comparison))
    write_json(rows, json_file)
    if plot is not None:  # last: whatever goes wrong with it, the results are there
        comparison.plot(plot)
        say("plot", plot)


class Settings:
    """Follows a comparison, setting by setting; after the first one it says how long all of them will take.

    Args:
        number: Of settings.
        bar: Counts episodes.
        clock: Tells the time in seconds.
    """

    def __init__(self, number: int, bar: Counter, clock: Callable[[], float] = time.monotonic) -> None:
        self._number, self._left, self._bar, self._clock = number, number, bar, clock
        self._episodes, self._started = 0, 0.0

    def start(self, episodes: int) -> None:
        """The next setting begins, with so many episodes."""
        self._episodes, self._started = episodes, self._clock()
        self._bar.expect(episodes * self._left)

    def finish(self, result: EvaluationResult) -> None:
        """It has ended, or its result was there."""
        self._left -= 1
        self._bar.describe(result.label)
        self._bar.expect(self._episodes * self._left)
        seconds = self._clock() - self._started
        if self._left == self._number - 1 and self._episodes and seconds * self._left > _WORTH_SAYING:
            say(
                "time",
                f"{result.label} took {duration(seconds)} for {result.nfe_mean:.1f} steps a problem; "
                f"{self._left} more settings like it take {duration(seconds * self._left)}",
            )


def _findings(comparison: Comparison) -> list[str]:
    """What a comparison says, in sentences."""
    lines = [
        f"{escape(gap.label)}: {100 * gap.accuracy:.1f} % at {gap.nfe_mean:.1f} steps, "
        f"{100 * gap.difference:+.1f} points{_interval(gap.difference_ci95, '+.1f', 100)} "
        f"to the best mixture of strategies at the same number of steps"
        for gap in comparison.gaps()
    ]
    for lead in comparison.leads():
        first, other = lead.nfe_means
        lines.append(
            f"{escape(lead.first)} - {escape(lead.other)}: "
            f"{100 * lead.accuracy:+.1f} points{_interval(lead.accuracy_ci95, '+.1f', 100)} "
            f"at {first:.1f} and {other:.1f} steps, {lead.nfe:+.1f} steps{_interval(lead.nfe_ci95, '+.1f')}, "
            f"reward {lead.reward:+.3f}{_interval(lead.reward_ci95, '+.3f')}"
        )
    return lines


def _interval(ends: Interval, form: str, factor: float = 1.0) -> str:
    low, high = ends
    return "" if math.isnan(low) else f" ({factor * low:{form}} to {factor * high:{form}})"


@command("analyze")
def analyze(
    place: Place,
    problems: FewProblems,
    agent: AgentsOption = None,
    recording: Annotated[
        list[Path] | None, typer.Option(help="Episodes recorded before (.npz); may be given several times.")
    ] = None,
    output: Annotated[
        Path, typer.Option(help="Directory for the page of plots, the numbers and the recorded episodes.")
    ] = Path("runs/analysis"),
    compile: CompileOption = None,
    text_only: Annotated[
        bool, typer.Option("--text-only", help="Leave out the positions from the first end token on.")
    ] = False,
    check_consistency: Annotated[
        bool,
        typer.Option(
            "--check-consistency",
            help="Ask the dLLM which tokens of the finished completions it would change; "
            "costs a row of a forward per position.",
        ),
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """Show how agents decode: in which order, how fast, how sure, and where they go wrong."""
    from dllm_gym.evaluation import Recording, as_agent
    from dllm_gym.evaluation import analyze as run
    from dllm_gym.evaluation import evaluate as decode
    from dllm_gym.files import write_json as write

    loaded = [Recording.load(path) for path in recording or []]
    told = place.arguments()
    team = [as_agent(text) for text in agent or []]
    arguments = environment(team, told, compile)
    new: list[Recording] = []
    written: list[Path] = []
    with progress("decoding") as bar:
        settings = Settings(len(team), bar)
        for number, one in enumerate(team, start=1):
            result = decode(
                one,
                **vars(problems),
                record=True,
                check_consistency=check_consistency,
                on_start=settings.start,
                on_episode=bar.advance,
                **arguments,
            )
            settings.finish(result)
            assert result.recording is not None
            new.append(result.recording)
            name = "-".join([str(number), *re.findall(r"[\w.]+", result.label)])
            written.append(result.recording.save(output / f"{name}.npz"))
    analysis = run([*new, *loaded], text_only=text_only)
    rows = analysis.to_json()
    show(json_file, _order_table(analysis.profiles))
    written.append(write(output / "analysis.json", rows))
    write_json(rows, json_file)
    analysis.plot(output / "analysis.png")
    for path in (*written, output / "analysis.png"):
        say("written", path)


def _order_table(profiles: Sequence[Profile]) -> Table:
    """A column per agent: the names of the measures would be too long for headings."""
    table = Table(box=None)
    table.add_column("")
    for profile in profiles:
        table.add_column(escape(profile.label), justify="right", overflow="fold")
    measures: dict[str, Callable[[Any], str]] = {
        "accuracy": lambda p: f"{p.accuracy:.3f}",
        "steps": lambda p: f"{p.steps_mean:.1f}",
        "positions per step": lambda p: f"{p.reveals_per_step:.1f}",
        "local AR-ness@1": lambda p: f"{p.local_ar_ness[0]:.2f}",
        "global AR-ness@1": lambda p: f"{p.global_ar_ness[0]:.2f}",
        "neighbours in the same step": lambda p: f"{p.same_step:.2f}",
        "reveals beside earlier ones": lambda p: f"{p.adjacent_share:.2f}",
        "mean confidence": lambda p: f"{p.confidence_mean:.2f}",
        "tokens it would write again": lambda p: f"{p.kept:.3f}",
    }
    for name, value_of in measures.items():
        values = [value_of(profile) for profile in profiles]
        if set(values) != {"nan"}:
            table.add_row(name, *("-" if value == "nan" else value for value in values))
    return table
