"""The pictures of a study, drawn from its findings; an algorithm has the same colour in all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from dllm_agents.studies.findings import AXES, COMPARED
from dllm_gym.evaluation.figures import legend, new_figure

_AXIS = {"timesteps": "environment steps of training", "seconds": "seconds of training"}
_MARKERS = "osD^vP<>Xph"
_DPI = 150


def pictures(found: Mapping[str, Any]) -> dict[str, Any]:
    """Figures by name, as far as there is anything to draw."""
    styles = algorithm_styles(list(found["all"]))
    drawn: dict[str, Callable[[Mapping[str, Any], Mapping[str, dict[str, Any]]], Any]] = {
        "learning": _learning,
        "measures": _measures,
        "speed": _speed,
        "profiles": _profiles,
        "improvement": _improvement,
    }
    figures = {name: draw(found, styles) for name, draw in drawn.items()}
    return {name: figure for name, figure in figures.items() if figure is not None}


def algorithm_styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and line of every algorithm, by its place in the study: ten colours, then other lines."""
    palette, lines = mpl.colormaps["tab10"], ("-", "--", ":", "-.")
    return {
        name: {"color": palette(at % 10), "linestyle": lines[at // 10 % len(lines)]}
        for at, name in enumerate(names)
    }


def _learning(found: Mapping[str, Any], styles: Mapping[str, dict[str, Any]]) -> Any:
    places = list(found["timesteps"]["curves"])
    figure = new_figure(9.0, 0.5 + 2.5 * len(places), dpi=_DPI)
    axes = figure.subplots(len(places), len(AXES), squeeze=False)
    for row, place in enumerate(places):
        for column, axis in enumerate(AXES):
            panel = axes[row][column]
            for name, curve in found[axis]["curves"][place].items():
                if curve is not None:
                    _band(panel, curve["at"], curve, styles[name])
            panel.set_title(place, fontsize=9)
            panel.set_xlim(left=0)
            panel.xaxis.set_major_formatter(EngFormatter(sep=""))
            _plain_look(panel)
            if row == len(places) - 1:
                panel.set_xlabel(_AXIS[axis])
        axes[row][0].set_ylabel("validation reward")
        top = max(panel.get_ylim()[1] for panel in axes[row])
        for panel in axes[row]:
            panel.set_ylim(0, top)
    return _with_legend(figure, styles)


def _measures(found: Mapping[str, Any], styles: Mapping[str, dict[str, Any]]) -> Any:
    """Intervals beside one another, a panel for each measure."""
    figure = new_figure(9.0, 0.8 + 0.28 * len(styles), dpi=_DPI)
    axes = figure.subplots(1, len(COMPARED), sharey=True)
    for panel, (measure, label) in zip(axes, COMPARED.items(), strict=True):
        for at, (name, style) in enumerate(styles.items()):
            estimate = found["all"][name][measure]
            if estimate is not None:
                _interval(panel, estimate, at, style)
        panel.set_xlabel(label)
        panel.use_sticky_edges = False  # or bars would begin at the panel's edge
        panel.margins(x=0.1)
        _plain_look(panel)
    _named_rows(axes[0], list(styles))
    return figure


def _speed(found: Mapping[str, Any], styles: Mapping[str, dict[str, Any]]) -> Any:
    """Accuracy over tokens per forward, a point per run and decoding."""
    tasks, decodings = found["tasks"], list(next(iter(next(iter(found["tasks"].values())).values())))
    columns = min(3, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    figure = new_figure(max(4.5, 3.2 * columns) + 1.3, 0.4 + 2.8 * rows, dpi=_DPI)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, task in zip(axes, tasks, strict=False):
        for cell, content in found["cells"].items():
            algorithm, of, _ = cell.split("/")
            for at, decoding in enumerate(decodings if of == task else ()):
                test = content["tests"][decoding]
                panel.plot(
                    test["tokens_per_forward"], test["accuracy"], color=styles[algorithm]["color"],
                    marker=_MARKERS[at % len(_MARKERS)], markersize=5, linestyle="none", alpha=0.75,
                    markeredgewidth=0,
                )  # fmt: skip
        panel.set_title(task, fontsize=9)
        panel.set_xlabel("tokens per forward")
        panel.set_ylabel("accuracy")
        panel.set_xlim(left=0)
        panel.set_ylim(0, 1.02)
        _plain_look(panel)
    for panel in axes[len(tasks) :]:
        panel.set_axis_off()
    shapes = [
        Line2D([], [], color="grey", marker=_MARKERS[at % len(_MARKERS)], linestyle="none", label=decoding)
        for at, decoding in enumerate(decodings)
    ]
    return _with_legend(figure, styles, shapes)


def _profiles(found: Mapping[str, Any], styles: Mapping[str, dict[str, Any]]) -> Any:
    figure = new_figure(6.0, 3.2, dpi=_DPI)
    panel = figure.subplots()
    for name, profile in found["profiles"].items():
        if profile is not None:
            _band(panel, found["thresholds"], profile, styles[name], drawstyle="steps-post")
    panel.set_xlabel("reward τ")
    panel.set_ylabel("share of runs above τ")
    panel.set_xlim(0, 1)
    panel.set_ylim(0, 1.02)
    _plain_look(panel)
    return _with_legend(figure, styles)


def _improvement(found: Mapping[str, Any], styles: Mapping[str, dict[str, Any]]) -> Any:
    """A row per pair of algorithms, in the colour of the first."""
    names = list(styles)
    pairs = [(a, b) for at, a in enumerate(names) for b in names[at + 1 :]]
    if not pairs:
        return None
    figure = new_figure(6.0, 0.9 + 0.28 * len(pairs), dpi=_DPI)
    panel = figure.subplots()
    panel.axvline(0.5, color="grey", linewidth=0.8)
    for at, (ours, theirs) in enumerate(pairs):
        estimate = found["improvement"][ours][theirs]
        if estimate is not None:
            _interval(panel, estimate, at, styles[ours])
    panel.set_xlabel("probability that a run of the first earns more than one of the second")
    panel.set_xlim(-0.02, 1.02)
    _plain_look(panel)
    _named_rows(panel, [f"{ours} > {theirs}" for ours, theirs in pairs])
    return figure


def _band(
    panel: Any, at: Sequence[float], estimate: Mapping[str, Any], style: Mapping[str, Any], **drawn: Any
) -> None:
    marker = "o" if len(at) == 1 else None
    panel.plot(at, estimate["value"], linewidth=1.5, marker=marker, markersize=4, **style, **drawn)
    if estimate["low"] is not None:
        step = "post" if drawn else None
        panel.fill_between(
            at, estimate["low"], estimate["high"], color=style["color"], alpha=0.18, linewidth=0, step=step
        )


def _interval(panel: Any, estimate: Mapping[str, Any], at: int, style: Mapping[str, Any]) -> None:
    if estimate["low"] is not None:
        panel.barh(
            at, estimate["high"] - estimate["low"], left=estimate["low"], height=0.6, color=style["color"],
            alpha=0.4,
        )  # fmt: skip
    panel.plot([estimate["value"]] * 2, [at - 0.3, at + 0.3], color=style["color"], linewidth=2)


def _named_rows(panel: Any, names: Sequence[str]) -> None:
    panel.set_yticks(range(len(names)), names, fontsize=8)
    panel.set_ylim(len(names) - 0.5, -0.5)  # the first on top


def _plain_look(panel: Any) -> None:
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=8)
    for label in (panel.xaxis.label, panel.yaxis.label):
        label.set_size(9)


def _with_legend(figure: Any, styles: Mapping[str, dict[str, Any]], further: Sequence[Line2D] = ()) -> Any:
    lines = [Line2D([], [], linewidth=2, label=name, **style) for name, style in styles.items()]
    legend(figure, [*lines, *further], loc="outside right upper", fontsize=8)
    return figure
