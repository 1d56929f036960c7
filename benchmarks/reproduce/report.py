"""``results.md`` and its plots, from finished work."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.reproduce.claims import ALPHAS, CLAIMS, NOT_RUN, Claim, Evidence
from benchmarks.reproduce.experiments import BETAS, DECODINGS, RUNS, TARGETS
from benchmarks.reproduce.work import Workshop, ancestors
from dllm_agents.studies.page import markdown_table
from dllm_gym.evaluation import EvaluationResult
from dllm_gym.evaluation.figures import save_figure
from dllm_gym.evaluation.plots import pareto_figure
from dllm_gym.files import read_json, write_json, write_text

NOTES = Path(__file__).parent / "notes.md"  # what was found out about claims that fail; written by hand


def write_report(workshop: Workshop, directory: Path, resamples: int = 2000) -> Path:
    """Writes ``results.md``, ``results/*.png`` and ``results/claims.json`` under ``directory``.

    What was not run here keeps what an earlier report there found, as long as its trainings are configured
    as they were: a claim is tested again without all the others.
    """
    evidence = Evidence(workshop, resamples)
    results = directory / "results"
    before = {found["number"]: found for found in _earlier(results / "claims.json")}
    claims = [_decide(claim, evidence, before.get(claim.number, {})) for claim in CLAIMS]
    for name, draw in _PICTURES.items():
        with suppress(FileNotFoundError):  # not everything in it was run
            save_figure(draw(evidence), results / f"{name}.png")
    write_json(results / "claims.json", claims)
    path = directory / "results.md"
    pictures = [name for name in _PICTURES if (results / f"{name}.png").is_file()]
    write_text(path, _text(workshop, claims, pictures))
    return path


def _earlier(path: Path) -> list[dict[str, Any]]:
    return read_json(path) if path.is_file() else []


def _decide(claim: Claim, evidence: Evidence, before: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of a claim: its finding, or the one from before if its runs are not here but the same."""
    workshop = evidence.workshop
    finding = claim.find(evidence)
    needed = [name for run in claim.runs for name in (run, *ancestors(run))]
    runs = {run: workshop.policy(run, 0).name for run in needed}
    if finding.verdict == NOT_RUN and before.get("runs") == runs:
        return dict(before)
    try:
        heuristics = evidence.rules()
    except FileNotFoundError:  # it was decided without them
        heuristics = []
    return {
        "number": claim.number,
        "statement": claim.statement,
        "verdict": finding.verdict,
        "rule": finding.rule,
        "rows": finding.rows,
        "heuristics": {"settings": len(heuristics), "rules": len({result.agent for result in heuristics})},
        "runs": runs,
        "seconds": {run: workshop.seconds(run) for run in runs},
    }


def _section(found: Mapping[str, Any], note: str | None) -> str:
    against = found["heuristics"]
    parts = [
        f"## Claim {found['number']}",
        f"{found['statement']}: **{found['verdict']}**.",
        markdown_table(found["rows"]),
        f"Rule: {found['rule']}.",
    ]
    if any("heuristics" in cell for row in found["rows"] for cell in row):
        parts[-1] += f" Heuristics: {against['settings']} settings of {against['rules']} rules."
    return "\n\n".join([*parts, note] if note else parts)


def _text(workshop: Workshop, claims: Sequence[Mapping[str, Any]], pictures: Sequence[str]) -> str:
    budget = workshop.budget
    seconds = {run: took for found in claims for run, took in found["seconds"].items()}
    runs = "\n".join(
        f"| {name} | {config.algorithm} | {config.total_timesteps:,} | {seconds.get(name, '')} |"
        for name, config in ((name, workshop.config(name)) for name in RUNS)
    )
    verdicts = "\n".join(
        f"| {found['number']} | [{found['statement']}](#claim-{found['number']}) | **{found['verdict']}** |"
        for found in claims
    )
    notes = _notes()
    sections = "\n\n".join(_section(found, notes.get(found["number"])) for found in claims)
    shown = "\n\n".join(f"![{name}](results/{name}.png)" for name in pictures)
    seeds = ", ".join(map(str, budget.seeds))
    return f"""# The claims, tested

Written by `make reproduce` (`python -m benchmarks.reproduce`); do not edit. Everything below comes from the
embedded dLLMs, {budget.problems:,} test problems, the same for everyone, and training seeds {seeds}. On
`arithmetic` an answer counts as right only if its whole derivation is. In brackets: 95 % intervals and
p-values of a paired bootstrap over problems, and over seeds where seeds are pooled. "Over all heuristics"
means over the upper concave hull of the heuristics at the same mean NFE (steps), as many as each table says.
*sample* draws from the policy (Bernoulli-argmax), *deterministic* reveals what has probability above 0.5.
Rewards in comparisons are multiplicative with alpha 1. Verdicts follow from the numbers by the rule under
each table.

| | claim | verdict |
|---|---|---|
{verdicts}

{shown}

{sections}

## What was trained

Each seed in a process of one thread; torch {torch.__version__} on {platform.machine()}.
Seconds are wall-clock time with evaluations, beside whatever else ran; for benchmarks see `benchmarks/`.

| run | algorithm | environment steps | seconds per seed |
|---|---|---|---|
{runs}
"""


def _notes() -> dict[int, str]:
    """The parts of ``notes.md`` by claim: each begins with ``## Claim N``."""
    if not NOTES.is_file():
        return {}
    parts = NOTES.read_text(encoding="utf-8").split("## Claim ")[1:]
    return {int(part.split("\n", 1)[0]): part.split("\n", 1)[1].strip() for part in parts}


def _pareto_figure(evidence: Evidence, run: str) -> Figure:
    """All heuristics and the seeds of a run, where it was trained."""
    rules = evidence.rules(run)
    learned = [r for decoding in DECODINGS for r in evidence.learned(run, decoding, run)]
    figure: Figure = pareto_figure([*rules, *learned], [False] * len(rules) + [True] * len(learned))
    return figure


def _frontier_figure(evidence: Evidence) -> Figure:
    """Mean over seeds of accuracy against NFE for every way to choose a speed."""
    figure = Figure(figsize=(8.0, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    rules = evidence.rules()
    axes.scatter(
        [r.nfe_mean for r in rules], [r.accuracy for r in rules], s=10, color="lightgrey", label="heuristics"
    )
    curves = {
        f"one policy told {TARGETS[0]} to {TARGETS[-1]} steps (sample)": [
            evidence.learned("any", f"sample,target_steps={t}") for t in TARGETS
        ],
        "the same (deterministic)": [
            evidence.learned("any", f"deterministic,target_steps={t}") for t in TARGETS
        ],
        "alpha 1, beta scaling": [
            evidence.learned("full", "sample" if b == 1 else f"sample,beta={b:g}") for b in BETAS
        ],
        "separate policies, alpha 0.3, 1, 10": [evidence.learned(run) for _, run in ALPHAS],
    }
    palette = mpl.colormaps["tab10"]
    for at, (name, points) in enumerate(curves.items()):
        _curve(axes, points, label=name, color=palette(at))
    axes.set_xlabel("mean steps (NFE)")
    axes.set_ylabel("accuracy, whole derivation")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    return figure


def _curve(axes: object, points: Sequence[Sequence[EvaluationResult]], **style: object) -> None:
    nfe = [float(np.mean([r.nfe_mean for r in seeds])) for seeds in points]
    accuracy = [[r.accuracy for r in seeds] for seeds in points]
    mean = [float(np.mean(values)) for values in accuracy]
    spread = np.abs([[min(values), max(values)] for values in accuracy] - np.array(mean)[:, None]).T  # (2, P)
    axes.errorbar(nfe, mean, yerr=spread, marker="o", markersize=4, capsize=2, **style)  # type: ignore[attr-defined]


_PICTURES: dict[str, Callable[[Evidence], Figure]] = {
    "full": lambda evidence: _pareto_figure(evidence, "full"),
    "semi": lambda evidence: _pareto_figure(evidence, "semi"),
    "frontier": _frontier_figure,
}
