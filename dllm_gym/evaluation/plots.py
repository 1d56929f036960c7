"""Plots of accuracy against steps, made with matplotlib's Agg canvas and without pyplot's global state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from dllm_gym.evaluation.results import EvaluationResult
from dllm_gym.files import write_atomically

_MARKERS = "osD^vP<>Xph"


def pareto_figure(results: Sequence[EvaluationResult], learned: Sequence[bool]) -> Any:
    """Accuracy over mean steps with 95 % intervals; strategies as lines, learned agents as stars."""
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
