"""Plots of accuracy against steps, and of how a training went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.ticker import EngFormatter

from dllm_gym.envs.blocks import shown
from dllm_gym.evaluation.figures import COLOURS, SMALL, legend, literal_texts, new_figure
from dllm_gym.evaluation.results import EvaluationResult

_MARKERS = "osD^vP<>Xph"
_LEGEND_ROWS = 20  # that fit beside the axes


@literal_texts()
def pareto_figure(
    results: Sequence[EvaluationResult],
    learned: Sequence[bool],
    tracks: Sequence[Sequence[tuple[float, float]]] = (),
    colours: Mapping[str, str] | None = None,
) -> Any:
    """Accuracy over mean steps with 95 % intervals; strategies as lines, learned agents as stars.

    Args:
        results: What to draw.
        learned: Which of them are stars.
        tracks: For every star the way it came: earlier pairs of mean steps and accuracy.
        colours: Of agents, by label, that have one elsewhere, too. The lines of all strategies are then grey.
    """
    figure = new_figure(8.0, 4.2, dpi=150)
    axes = figure.add_subplot()
    palette = mpl.colormaps["tab10"]
    handles = []
    rules: dict[str, list[EvaluationResult]] = {}
    for result, is_learned in zip(results, learned, strict=True):
        if not is_learned:
            rules.setdefault(result.agent, []).append(result)
    for at, (name, points) in enumerate(rules.items()):
        points.sort(key=lambda r: r.nfe_mean)
        style: dict[str, Any] = {
            "color": palette(at % 10) if colours is None else "grey",
            "marker": _MARKERS[at % 11],
        }
        own = [point for point in points if colours and point.label in colours]
        if len(own) < len(points):
            handles.append(_errorbar(axes, points, label=name, linestyle="-", **style))
        for point in own:
            style |= {"color": (colours or {})[point.label], "markersize": 8, "zorder": 4}
            handles.append(_errorbar(axes, [point], label=point.label, linestyle="none", **style))
    stars = [r for r, is_learned in zip(results, learned, strict=True) if is_learned]
    shades = mpl.colormaps["autumn"]
    for at, result in enumerate(stars):
        color: Any = shades(0.7 * at / max(len(stars) - 1, 1))
        color = color if colours is None else colours.get(result.label, color)
        if at < len(tracks):
            way = [*tracks[at], (result.nfe_mean, result.accuracy)]
            axes.plot(*zip(*way, strict=True), color=color, marker=".", linewidth=0.8, alpha=0.6)
        star: dict[str, Any] = {
            "color": color, "marker": "*", "linestyle": "none", "markersize": 13, "markeredgecolor": "black",
            "markeredgewidth": 0.6, "zorder": 5,
        }  # fmt: skip
        handles.append(_errorbar(axes, [result], label=result.label, **star))
    first = results[0].environment
    block = first["block_length"]
    mode = "full diffusion" if block == first["completion_length"] else f"block length {shown(block)}"
    axes.set_title(
        f"{first['task']} on {first['backend']}, {mode}, {results[0].episodes} problems", fontsize=9
    )
    axes.set_xlabel("steps per completion (NFE)")
    axes.set_ylabel("accuracy")
    axes.set_ylim(0, 1.02)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    columns = -(-len(handles) // _LEGEND_ROWS)
    if columns > 1:  # all rules at once: the legend gets room of its own
        width, height = figure.get_size_inches()
        figure.set_size_inches(width + 2.0 * (columns - 1), height)
    legend(axes, handles, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), ncols=columns)
    return figure


@literal_texts()
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
        figure = new_figure(*SMALL)
        axes = figure.add_subplot()
        for decoding, marker, dashes in zip(decodings, _MARKERS, ("-", "--", ":"), strict=False):
            values = [row[decoding][name] for row in evaluations]
            # one agent, so one colour: that of the first in a report
            axes.plot(
                timesteps, values, dashes, label=decoding, color=COLOURS[0], marker=marker, markersize=3.5,
                linewidth=1.3,
            )  # fmt: skip
        axes.set_xlabel("environment steps of training", fontsize=9)
        axes.set_ylabel(label, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0, top=1.02 if name != "nfe_mean" else None)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        legend(axes, axes.lines, fontsize=8)
        figures.append(figure)
    return figures


def _errorbar(axes: Any, points: Sequence[EvaluationResult], **style: Any) -> Any:
    accuracy = [p.accuracy for p in points]
    low = [p.accuracy - p.accuracy_ci95[0] for p in points]
    high = [p.accuracy_ci95[1] - p.accuracy for p in points]
    style = {"markersize": 4, "linewidth": 1.2, "elinewidth": 0.7, "capsize": 1.5, **style}
    return axes.errorbar([p.nfe_mean for p in points], accuracy, yerr=[low, high], **style)
