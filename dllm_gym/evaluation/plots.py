"""Plots of accuracy against steps, made with matplotlib's Agg canvas and without pyplot's global state."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from PIL import Image

from dllm_gym.evaluation.results import EvaluationResult
from dllm_gym.files import write_atomically

_MARKERS = "osD^vP<>Xph"


def pareto_figure(
    results: Sequence[EvaluationResult],
    learned: Sequence[bool],
    tracks: Sequence[Sequence[tuple[float, float]]] = (),
) -> Any:
    """Accuracy over mean steps with 95 % intervals; strategies as lines, learned agents as stars.

    Args:
        results: What to draw.
        learned: Which of them are stars.
        tracks: For every star the way it came: earlier pairs of mean steps and accuracy.
    """
    figure = Figure(figsize=(8.0, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    palette = mpl.colormaps["tab10"]
    rules: dict[str, list[EvaluationResult]] = {}
    for result, is_learned in zip(results, learned, strict=True):
        if not is_learned:
            rules.setdefault(result.agent, []).append(result)
    for at, (name, points) in enumerate(rules.items()):
        points.sort(key=lambda r: r.nfe_mean)
        _errorbar(axes, points, label=name, color=palette(at % 10), marker=_MARKERS[at % 11], linestyle="-")
    stars = [r for r, is_learned in zip(results, learned, strict=True) if is_learned]
    shades = mpl.colormaps["autumn"]
    for at, result in enumerate(stars):
        color = shades(0.7 * at / max(len(stars) - 1, 1))
        if at < len(tracks):
            way = [*tracks[at], (result.nfe_mean, result.accuracy)]
            axes.plot(*zip(*way, strict=True), color=color, marker=".", linewidth=0.8, alpha=0.6)
        _errorbar(
            axes, [result], label=result.label, color=color, marker="*", linestyle="none", markersize=13,
            markeredgecolor="black", markeredgewidth=0.6, zorder=5,
        )  # fmt: skip
    first = results[0].environment
    block = first["block_length"]
    mode = "full diffusion" if block == first["completion_length"] else f"block length {block}"
    axes.set_title(
        f"{first['task']} on {first['backend']}, {mode}, {results[0].episodes} problems", fontsize=9
    )
    axes.set_xlabel("steps per completion (NFE)")
    axes.set_ylabel("accuracy")
    axes.set_ylim(0, 1.02)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def learning_figures(evaluations: Sequence[Mapping[str, Any]]) -> list[Any]:
    """How accuracy, steps and reward changed while a policy was trained, a figure for each.

    Args:
        evaluations: In the order of training: ``timesteps``, and for every way of decoding a mapping with
            ``accuracy``, ``nfe_mean`` and ``reward_mean``, as in the ``metrics.json`` of a training run.
    """
    timesteps = [row["timesteps"] for row in evaluations]
    decodings = [name for name, value in evaluations[0].items() if isinstance(value, Mapping)]
    measures = {"accuracy": "accuracy", "nfe_mean": "steps per completion (NFE)", "reward_mean": "reward"}
    figures: list[Any] = []
    for name, label in measures.items():
        figure = Figure(figsize=(4.6, 3.0), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for at, decoding in enumerate(decodings):
            values = [row[decoding][name] for row in evaluations]
            axes.plot(
                timesteps, values, label=decoding, color=mpl.colormaps["tab10"](at), marker=_MARKERS[at],
                markersize=3.5, linewidth=1.3,
            )  # fmt: skip
        axes.set_xlabel("environment steps of training")
        axes.set_ylabel(label)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0, top=1.02 if name != "nfe_mean" else None)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
        figures.append(figure)
    return figures


def svg_element(figure: Any, description: str) -> str:
    """A figure as an ``<svg>`` element for a web page: texts stay text, black is the page's colour of text.

    Args:
        figure: The matplotlib ``Figure``.
        description: What a screen reader says.
    """
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dllm_gym"}):  # the same names every time
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    body = file.getvalue().partition("<svg")[2].partition(">")[2]
    for pattern, replacement in (
        (r'<g id="[^"]*"', "<g"),  # names that several figures have
        (r"font-family: [^;\"]*", "font-family: inherit"),
        ("#000000", "currentColor"),
        (r"\s+\n", "\n"),
    ):
        body = re.sub(pattern, replacement, body)
    width, height = figure.get_size_inches() * 72
    label = html.escape(description)
    return f'<svg role="img" aria-label="{label}" viewBox="0 0 {width:g} {height:g}">{body}'


def save_figure(figure: Any, path: str | Path) -> Path:
    """Writes a figure atomically; the suffix chooses the format, PNG if there is none."""
    kind = Path(path).suffix[1:] or "png"

    def write(temporary: Path) -> None:
        figure.savefig(temporary, format=kind)
        if kind == "png":  # plots have few colours: a palette makes the file a third of the size
            with Image.open(temporary) as picture:
                small = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
            small.save(temporary, format="PNG", optimize=True)

    return write_atomically(path, write)


def _errorbar(axes: Any, points: Sequence[EvaluationResult], **style: Any) -> None:
    accuracy = [p.accuracy for p in points]
    low = [p.accuracy - p.accuracy_ci95[0] for p in points]
    high = [p.accuracy_ci95[1] - p.accuracy for p in points]
    style = {"markersize": 4, "linewidth": 1.2, "elinewidth": 0.7, "capsize": 1.5, **style}
    axes.errorbar([p.nfe_mean for p in points], accuracy, yerr=[low, high], **style)
