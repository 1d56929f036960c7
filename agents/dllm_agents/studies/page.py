"""What a study ends with: ``results.md``, ``results.json`` and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dllm_agents.studies.findings import AXES, COMPARED, Records, find
from dllm_agents.studies.grid import STUDY, Study
from dllm_agents.studies.plots import pictures
from dllm_agents.studies.statistics import RESAMPLES
from dllm_gym.evaluation.figures import save_figure
from dllm_gym.files import write_json, write_text

RESULTS, PAGE = "results.json", "results.md"

_DIGITS = {"reward_mean": 3, "accuracy": 3, "nfe_mean": 1, "tokens_per_forward": 2, "aup": 0}


def write_page(directory: Path, study: Study, records: Records, missing: Mapping[str, str]) -> Path:
    """Writes what the finished cells say; from the same cells the same files, but for times.

    Args:
        directory: The study's.
        study: The grid.
        records: What the finished cells recorded.
        missing: The other cells, and why.

    Returns:
        The page.
    """
    found = find(study, records)
    write_json(directory / RESULTS, {**found, "missing": dict(missing)})
    figures = pictures(found)
    for name, figure in figures.items():
        save_figure(figure, directory / f"{name}.png")
    return write_text(directory / PAGE, _text(study, records, found, missing, list(figures)))


def _text(
    study: Study,
    records: Records,
    found: Mapping[str, Any],
    missing: Mapping[str, str],
    figures: Sequence[str],
) -> str:
    threads = "1 thread" if study.threads == 1 else f"{study.threads} threads"
    seeds = "1 seed" if len(study.seeds) == 1 else f"{len(study.seeds)} seeds"
    sections = {  # heading, what it says, tables; a picture of that name follows
        "measures": (f"## Results, decoded as `{study.decodings[0]}`", _estimates(found["all"])),
        "learning": ("## While training", _grid(found)),
        "speed": ("## Accuracy and speed", ""),
        "profiles": ("## Distribution of runs", ""),
        "improvement": ("## Who earns more", _improvement(found)),
    }
    parts = [
        f"# {', '.join(study.algorithms)} on {', '.join(study.tasks)}",
        f"Written by `dllm-gym study`; do not edit. {seeds}, each training in a process of {threads}; the "
        f"last policies decode {study.episodes:,} test problems. The grid is in [{STUDY}]({STUDY}), every "
        f"number in [{RESULTS}]({RESULTS}).",
        _missing(study, missing),
    ]
    for name, (heading, table) in sections.items():
        if name in figures:
            parts += [heading, _TEXT[name], table, f"![{name}]({name}.png)"]
    parts += ["## Every task and decoding"]
    parts += [_task(task, found["tasks"][task]) for task in study.tasks]
    parts += ["## What was trained", _trained(study, records)]
    return "\n\n".join(part for part in parts if part) + "\n"


_TEXT = {
    "measures": "Interquartile means over the runs of all tasks, with 95 % intervals in brackets: a "
    f"stratified bootstrap over seeds, {RESAMPLES:,} resamples. *Tokens per forward* are positions of a "
    "completion per step. *AUP*, accuracy under parallelism, takes all decodings of a run together, and the "
    "best accuracy in this study.",
    "learning": "Reward of sampled decoding on validation problems: interquartile mean and 95 % interval, "
    "after equal steps and equal seconds. A run that has ended counts with its last evaluation. Seconds are "
    "wall-clock time with evaluations, beside whatever else ran.",
    "speed": "A point per run and decoding.",
    "profiles": "Share of runs that earn more than τ on test problems, mean over tasks, with 95 % bands.",
    "improvement": "Probability that a run of the row's algorithm earns more on test problems than one of "
    "the column's, on a task drawn at random. Bold: the interval excludes 0.5.",
}


def _missing(study: Study, missing: Mapping[str, str]) -> str:
    if not missing:
        return ""
    lines = "\n".join(f"- `{name}`: {why}" for name, why in missing.items())
    count = f"{len(missing)} of {len(study.cells)}"
    return f"**{count} cells are missing**, and what follows is without them:\n\n{lines}"


def _estimates(rows: Mapping[str, Mapping[str, Any]], header: Sequence[str] = ("algorithm",)) -> str:
    measures = list(next(iter(rows.values())))
    table = [[*header, *(COMPARED[measure] for measure in measures)]]
    for name, row in rows.items():
        cells = [_number(row[measure], _DIGITS[measure]) for measure in measures]
        table.append([*name.split("\n"), *cells])
    return markdown_table(table)


def _task(task: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    rows = {
        f"{name}\n{decoding}": measures
        for name, decodings in found.items()
        for decoding, measures in decodings.items()
    }
    return f"### {task}\n\n{_estimates(rows, ('algorithm', 'decoding'))}"


def _grid(found: Mapping[str, Any]) -> str:
    """Two tables: at equal steps and at equal seconds."""
    tables = []
    for axis in AXES:
        points = found[axis]["points"]
        if points:
            unit = "steps" if axis == "timesteps" else "s"
            header = ["algorithm", *(f"{point:,.0f} {unit}" for point in points)]
            rows = [[name, *(_number(e, 3) for e in row)] for name, row in found[axis]["grid"].items()]
            tables.append(markdown_table([header, *rows]))
    return "\n\n".join(tables)


def _improvement(found: Mapping[str, Any]) -> str:
    names = list(found["improvement"])
    rows = [["", *(f"over {name}" for name in names)]]
    for ours, others in found["improvement"].items():
        cells = []
        for theirs in names:
            estimate = others.get(theirs)
            text = "" if theirs == ours else _number(estimate, 2)
            clear = (
                estimate and estimate["low"] is not None and not estimate["low"] <= 0.5 <= estimate["high"]
            )
            cells.append(f"**{text}**" if clear else text)
        rows.append([ours, *cells])
    return markdown_table(rows)


def _trained(study: Study, records: Records) -> str:
    rows = [["algorithm", "task", "trained by", "environment steps", "seconds per seed"]]
    for name, config in study.algorithms.items():
        for task in study.tasks:
            cells = [cell for cell in study.cells if (cell.algorithm, cell.task) == (name, task)]
            ends = [records[cell.name]["evaluations"][-1] for cell in cells if cell.name in records]
            steps = sorted({end["timesteps"] for end in ends})
            shown = " to ".join(f"{count:,}" for count in dict.fromkeys([*steps[:1], *steps[-1:]]))
            rows.append([name, task, config.algorithm, shown, ", ".join(f"{e['seconds']:.0f}" for e in ends)])
    return markdown_table(rows)


def _number(estimate: Mapping[str, Any] | None, digits: int) -> str:
    if estimate is None:
        return "-"
    value = f"{estimate['value']:.{digits}f}"
    if estimate["low"] is None:
        return value
    return f"{value} ({estimate['low']:.{digits}f} to {estimate['high']:.{digits}f})"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as Markdown, the first one as the head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)
