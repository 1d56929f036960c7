"""One page that shows how decoders decode: a heat map for each, then one panel per question."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dllm_gym.evaluation.figures import COLOURS, SMALL, literal_texts, new_figure
from dllm_gym.evaluation.profiles import MAX_K, Profile
from dllm_gym.evaluation.statistics import Reliability

_MARKERS = "osD^vPX"
_DASHES = ("-", "--", "-.", ":")
_COLUMNS = 4
_TITLE_WIDTH = 44  # characters
_HEAT_ROWS = 48  # more steps than this share rows of the heat map
_CURVE_POINTS = 64  # longer curves are drawn as means of neighbouring points
_RARE = 0.05  # a step is drawn if this share of the episodes reach it
_FEW = 5  # and a group of cases if it has so many

Style = dict[str, Any]
Panel = Callable[[Any, Sequence[Profile], Sequence[Style]], None]


@literal_texts()
def analysis_figure(profiles: Sequence[Profile]) -> Any:
    """Draws the profiles; panels without data for any of them are left out."""
    panels = _panels(profiles)
    heat_rows, rows = ceil(len(profiles) / _COLUMNS), ceil(len(panels) / _COLUMNS)
    heights = [3.1 * heat_rows, 2.6 * rows + 0.3]
    figure = new_figure(14.0, sum(heights))
    figure.get_layout_engine().set(h_pad=0.08)
    top, bottom = figure.subfigures(2, 1, height_ratios=heights)
    _heat_maps(top, profiles)
    styles = [_style(at) for at in range(len(profiles))]
    grid = bottom.subplots(rows, min(_COLUMNS, len(panels)), squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        _draw(axes, panel, profiles, styles)
    for axes in grid[len(panels) :]:
        axes.remove()
    handles = [grid[0].lines[at] for at in range(len(profiles))]
    labels = [f"{profile.label}: {_result(profile)}" for profile in profiles]
    bottom.legend(
        handles, labels, loc="outside lower center", ncols=min(3, len(labels)), fontsize=9, frameon=False
    )
    return figure


@literal_texts()
def heat_map_figure(profiles: Sequence[Profile]) -> Any:
    """When which position is revealed, a heat map for each profile."""
    columns = min(_COLUMNS, len(profiles))
    figure = new_figure(2.8 * columns + 0.8, 2.6 * ceil(len(profiles) / columns))
    _heat_maps(figure, profiles)
    return figure


@literal_texts()
def panel_figures(profiles: Sequence[Profile]) -> list[Any]:
    """One small figure per question that ``analysis_figure`` answers, in ``COLOURS`` and without a legend."""
    figures: list[Any] = []
    for panel in _panels(profiles):
        figure = new_figure(*SMALL)
        _draw(figure.add_subplot(), panel, profiles, [_style(at) for at in range(len(profiles))])
        figures.append(figure)
    return figures


def _draw(axes: Any, panel: Panel, profiles: Sequence[Profile], styles: Sequence[Style]) -> None:
    panel(axes, profiles, styles)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _panels(profiles: Sequence[Profile]) -> list[Panel]:
    checked = any(profile.kept_by_confidence is not None for profile in profiles)
    scored = any(profile.success_by_surprise is not None for profile in profiles)
    blocks = any(len(profile.steps_per_block) > 1 for profile in profiles)
    wanted = [
        (_local, True),
        (_global, True),
        (_neighbours, True),
        (_speed, True),
        (_confidence_by_step, True),
        (_confidence_by_position, True),
        (_steps_per_block, blocks),
        (_success_by_surprise, scored),
        (_kept_by_confidence, checked),
        (_kept_by_step, checked),
        (_kept_by_position, checked),
        (_success_by_changes, scored and checked),
    ]
    return [panel for panel, there in wanted if there]


def _result(profile: Profile) -> str:
    steps = f"{profile.steps_mean:.1f} steps"
    return steps if np.isnan(profile.accuracy) else f"{100 * profile.accuracy:.1f} % right in {steps}"


def _style(at: int) -> Style:
    return {
        "color": COLOURS[at % len(COLOURS)],
        "marker": _MARKERS[at % len(_MARKERS)],
        "linestyle": _DASHES[at // len(COLOURS) % len(_DASHES)],
        "markersize": 3.5,
        "linewidth": 1.3,
    }


# Heat maps -------------------------------------------------------------------------------------------------


def _heat_maps(figure: Any, profiles: Sequence[Profile]) -> None:
    columns = min(_COLUMNS, len(profiles))
    if columns > 1:  # there is room for it
        figure.suptitle("When is which position revealed? Share of the episodes", fontsize=11)
    grid = figure.subplots(ceil(len(profiles) / columns), columns, squeeze=False).ravel()
    for axes, profile in zip(grid, profiles, strict=False):
        image = _heat_map(axes, profile)
    for axes in grid[len(profiles) :]:
        axes.remove()
    bar = figure.colorbar(image, ax=list(grid[: len(profiles)]), fraction=0.025, pad=0.01)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    bar.ax.tick_params(labelsize=8)


def _heat_map(axes: Any, profile: Profile) -> Any:
    steps, length = profile.reveals.shape
    together = ceil(steps / _HEAT_ROWS)  # steps per row of the picture
    starts = np.arange(0, steps, together)
    share = np.add.reduceat(profile.reveals, starts, axis=0) / profile.episodes
    image = axes.imshow(
        share,
        origin="upper",
        aspect="auto",
        interpolation="nearest",
        cmap="Blues",
        norm=PowerNorm(0.5, 0.0, 1.0),  # the square root lifts small shares off the ground
        extent=(-0.5, length - 0.5, len(starts) * together + 0.5, 0.5),
    )
    for start in profile.block_starts:
        axes.axvline(start - 0.5, color="black", linewidth=0.6, alpha=0.6)
    axes.set_title(textwrap.fill(profile.label, _TITLE_WIDTH), fontsize=9)
    axes.set_xlabel("position in the completion", fontsize=9)
    axes.set_ylabel("step" if together == 1 else f"step (rows of {together})", fontsize=9)
    _whole_numbers(axes.xaxis)
    _whole_numbers(axes.yaxis)
    axes.tick_params(labelsize=8)
    return image


# Panels ----------------------------------------------------------------------------------------------------


def _local(axes: Any, profiles: Sequence[Profile], styles: Sequence[Style]) -> None:
    _title(axes, "Does it go on with the next position?", "k (reveals before it)", "local AR-ness@k")
    for profile, style in zip(profiles, styles, strict=True):
        _curve_over_k(axes, profile.local_ar_ness, profile.local_ar_ness_ci95, style)
    _shares(axes)


def _global(axes: Any, profiles: Sequence[Profile], styles: Sequence[Style]) -> None:
    _title(axes, "Does it fill the leftmost masks first?", "k (leftmost masks)", "global AR-ness@k")
    for profile, style in zip(profiles, styles, strict=True):
        _curve_over_k(axes, profile.global_ar_ness, profile.global_ar_ness_ci95, style)
    _shares(axes)


def _curve_over_k(axes: Any, values: Any, intervals: Any, style: Style) -> None:
    k = np.arange(1, MAX_K + 1)
    axes.plot(k, values, **style)
    axes.fill_between(k, *np.asarray(intervals).T, color=style["color"], alpha=0.2, linewidth=0)
    _whole_numbers(axes.xaxis)


def _neighbours(axes: Any, profiles: Sequence[Profile], styles: Sequence[Style]) -> None:
    _title(axes, "Of two neighbours, which one first?", "share of neighbouring pairs", "")
    rows = np.arange(len(profiles))
    left = np.zeros(len(profiles))
    cases = {
        "left": ("left_first", "", 0.9),
        "both": ("same_step", "///", 0.45),
        "right": ("right_first", "", 0.2),
    }
    for case, (name, hatch, alpha) in cases.items():
        width = np.nan_to_num([getattr(profile, name) for profile in profiles])
        axes.barh(
            rows, width, left=left, height=0.7, color=[style["color"] for style in styles], alpha=alpha,
            hatch=hatch, edgecolor="white", linewidth=0.8,
        )  # fmt: skip
        for row, start, share in zip(rows, left, width, strict=True):
            if share >= 0.12:
                text = f"{case}\n{100 * share:.0f} %"
                axes.text(start + share / 2, row, text, ha="center", va="center", fontsize=8)
        left = left + width
    axes.set_yticks([])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))


def _speed(axes: Any, profiles: Sequence[Profile], styles: Sequence[Style]) -> None:
    _title(axes, "How much does it reveal at once?", "step", "positions per step")
    for profile, style in zip(profiles, styles, strict=True):
        _curve_over_steps(axes, profile, profile.reveals_at_step, style)
    axes.set_ylim(bottom=0)


def _confidence_by_step(axes: Any, profiles: Sequence[Profile], styles: Sequence[Style]) -> None:
    _title(axes, "How sure is the dLLM, step by step?", "step", "mean confidence of reveals")
    for profile, style in zip(profiles, styles, strict=True):
        _curve_over_steps(axes, profile, profile.confidence_at_step, style)
    _up_to_one(axes)


def _confidence_by_position(axes: Any, profiles: Sequence[Profile], styles: Sequence[Style]) -> None:
    _title(axes, "Where does it hesitate?", "position in the completion", "mean confidence of reveals")
    for profile, style in zip(profiles, styles, strict=True):
        _curve(axes, np.arange(profile.length), profile.confidence_at_position, style)
    _up_to_one(axes)


def _steps_per_block(axes: Any, profiles: Sequence[Profile], styles: Sequence[Style]) -> None:
    _title(axes, "Which block takes how long?", "block", "steps that revealed something")
    for profile, style in zip(profiles, styles, strict=True):
        blocks = np.arange(1, len(profile.steps_per_block) + 1)
        axes.plot(blocks, profile.steps_per_block, **style)
    axes.set_ylim(bottom=0)
    _whole_numbers(axes.xaxis)


def _success_by_surprise(axes: Any, profiles: Sequence[Profile], styles: Sequence[Style]) -> None:
    _title(axes, "Is a hesitant episode a wrong one?", "surprise of the completion (nats)", "episodes right")
    for profile, style in zip(profiles, styles, strict=True):
        _reliability(axes, profile.success_by_surprise, style)
    _shares(axes)
    axes.set_xlim(left=0)


def _success_by_changes(axes: Any, profiles: Sequence[Profile], styles: Sequence[Style]) -> None:
    _title(axes, "Do such tokens spoil the episode?", "tokens it would change, per episode", "episodes right")
    for profile, style in zip(profiles, styles, strict=True):
        _reliability(axes, profile.success_by_changes, style)
    _shares(axes)
    _whole_numbers(axes.xaxis)


def _kept_by_confidence(axes: Any, profiles: Sequence[Profile], styles: Sequence[Style]) -> None:
    _title(axes, "Is its confidence honest?", "confidence when revealed", "tokens it would write again")
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, zorder=0)
    for profile, style in zip(profiles, styles, strict=True):
        _reliability(axes, profile.kept_by_confidence, style)
    _shares(axes)
    axes.set_xlim(-0.02, 1.02)


def _kept_by_step(axes: Any, profiles: Sequence[Profile], styles: Sequence[Style]) -> None:
    _title(axes, "Are early reveals wrong?", "step", "tokens it would change")
    for profile, style in zip(profiles, styles, strict=True):
        _curve_over_steps(axes, profile, 1 - profile.kept_at_step, style)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _kept_by_position(axes: Any, profiles: Sequence[Profile], styles: Sequence[Style]) -> None:
    _title(axes, "Where are they wrong?", "position in the completion", "tokens it would change")
    for profile, style in zip(profiles, styles, strict=True):
        _curve(axes, np.arange(profile.length), 1 - profile.kept_at_position, style)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _curve_over_steps(axes: Any, profile: Profile, values: Any, style: Style) -> None:
    """Only as far as enough episodes go; what a handful of stragglers do is noise."""
    shown = profile.running_at_step >= _RARE * profile.episodes
    steps = np.arange(1, len(values) + 1)
    _curve(axes, steps[shown], np.asarray(values)[shown], style)
    axes.set_xlim(0.5, max(axes.get_xlim()[1], steps[shown][-1] + 0.5))
    _whole_numbers(axes.xaxis)


def _curve(axes: Any, x: Any, y: Any, style: Style) -> None:
    """A curve of up to 64 points; a longer one is drawn as means of neighbours."""
    together = ceil(len(x) / _CURVE_POINTS)
    starts = np.arange(0, len(x), together)
    there = ~np.isnan(y)
    counts = np.add.reduceat(there.astype(int), starts)
    means = np.add.reduceat(np.where(there, y, 0.0), starts) / np.where(counts > 0, counts, np.nan)
    axes.plot(x[starts] + (together - 1) / 2, means, **style, markevery=max(1, len(starts) // 16))


def _reliability(axes: Any, bins: Reliability | None, style: Style) -> None:
    """Only groups of some size; what one or two cases say is noise."""
    if bins is None:
        return
    shown = np.array(bins.count) >= _FEW
    value, share, interval = (np.array(x)[shown] for x in (bins.value, bins.share, bins.interval))
    error = np.abs(interval.T - share)  # (2, groups)
    axes.errorbar(value, share, yerr=error, elinewidth=0.7, capsize=1.5, **style)


def _title(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.grid(alpha=0.25)


def _shares(axes: Any) -> None:
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _up_to_one(axes: Any) -> None:
    axes.set_ylim(top=1.005)


def _whole_numbers(axis: Any) -> None:
    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
