"""What goes where: results and lists to standard output, progress and notes to standard error."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

console = Console(stderr=True)

_FIRST, _EVERY = 5.0, 10.0  # seconds after which progress is told where there is no terminal
_TELLING = 0.02  # share of the work that must be done to tell how long the rest will take
_ENDLESS = 10_000  # columns: nothing is cut in a file or pipe


def say(what: str, text: object) -> None:
    """One line to standard error, however long; nothing in the text is markup."""
    style = {"error": "bold red", "warning": "bold yellow"}.get(what)
    console.print(Text.assemble((f"{what}:", style or ""), " ", " ".join(str(text).split())), soft_wrap=True)


def show(json_file: str | None, *results: RenderableType) -> None:
    """Results to standard output, or to standard error where standard output gets their JSON alone.

    Args:
        json_file: What was given as ``--json``.
        *results: Texts and tables; strings are markup.
    """
    target = Console(stderr=json_file == "-")
    if not target.is_terminal:
        target.width = _ENDLESS
    for result in results:
        target.print(result, highlight=False, soft_wrap=not isinstance(result, Table))


def write_json(value: Any, target: str | None) -> None:
    """Writes what ``--json`` asks for: nothing, a file, or ``-``, one line to standard output."""
    if target == "-":
        print(json.dumps(value, ensure_ascii=False))
    elif target is not None:
        from dllm_gym.files import write_json

        write_json(target, value)


def duration(seconds: float) -> str:
    """About how long, for people: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


class Counter:
    """How much is done of how much, told in a line now and then.

    Args:
        description: What is counted.
        total: How much there is, if that is known.
        tell: Called with every line.
        clock: Tells the time in seconds.
    """

    def __init__(
        self,
        description: str,
        total: float | None = None,
        tell: Callable[[str], None] = lambda line: say("progress", line),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.description, self.done, self.total = description, 0, total
        self._tell, self._clock = tell, clock
        self._started = clock()
        self._next = self._started + _FIRST

    def advance(self, *_: Any) -> None:
        """One more is done."""
        self.done += 1
        self._changed()

    def expect(self, more: float) -> None:
        """So many are still to be done; with the first ones that are known the time begins to count."""
        if self.total is None:
            self._started = self._clock()
        self.total = self.done + more
        self._changed()

    def begin(self, description: str) -> None:
        """Another part of the work, counted anew."""
        self.description, self.done, self.total = description, 0, None
        self._changed()

    def describe(self, description: str) -> None:
        """What is done now, of the same work."""
        self.description = description
        self._changed()

    def _changed(self) -> None:
        now = self._clock()
        if now < self._next:
            return
        self._next = now + _EVERY
        line = self.description
        if self.total:
            line += f": {self.done} of {self.total:.0f}"
            if self.done >= _TELLING * self.total:
                left = (now - self._started) / self.done * (self.total - self.done)
                line += f", about {duration(left)} left"
        self._tell(line)


class _Bar(Counter):
    """The same as a bar on a terminal."""

    def __init__(self, description: str, total: float | None, bars: Progress) -> None:
        self._bars, self._row = bars, bars.add_task(escape(description), total=total)
        super().__init__(description, total)

    def begin(self, description: str) -> None:
        self._bars.reset(self._row, total=None)
        super().begin(description)

    def _changed(self) -> None:
        self._bars.update(
            self._row, description=escape(self.description), completed=self.done, total=self.total
        )


@contextmanager
def progress(description: str, total: float | None = None) -> Iterator[Counter]:
    """Counts work: with a bar and the time that is left on a terminal, with lines elsewhere.

    Args:
        description: What is done.
        total: How much there is, if that is known.
    """
    if not console.is_terminal:
        yield Counter(description, total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        yield _Bar(description, total, bars)


def results_table(rows: list[dict[str, Any]]) -> Table:
    """Accuracy, steps and reward of evaluations, as they are in JSON."""
    from dllm_gym.envs.blocks import shown

    table = Table(box=None)
    for name in ("agent", "block", "accuracy", "95 % interval", "steps", "reward"):
        table.add_column(name, justify="left" if name == "agent" else "right")
    for row in rows:
        low, high = row["accuracy_ci95"]
        table.add_row(
            escape(row["label"]),
            shown(row["block_length"]),
            f"{row['accuracy']:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{row['nfe_mean']:.1f}",
            f"{row['reward_mean']:.3f}",
            style="bold" if row.get("learned") else None,
        )
    return table


def where(rows: list[dict[str, Any]]) -> Text:
    """The heading of such a table: on which problems, with which dLLM."""
    one = rows[0]
    return Text(f"{one['episodes']} {one['split']} problems of {one['task']}, decoded with {one['backend']}")
