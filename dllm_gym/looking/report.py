"""One HTML page about a training run or any other agent, complete in itself: no network, no other file."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import dllm_gym
from dllm_gym.envs.blocks import BLOCK_LENGTH
from dllm_gym.envs.rendering import Frame, grid_columns, token_text
from dllm_gym.evaluation import (
    Comparison,
    EvaluationResult,
    Profile,
    as_agent,
    evaluate,
    profile,
    sweep,
)
from dllm_gym.evaluation.analysis_plots import heat_map_figure, panel_figures
from dllm_gym.evaluation.figures import COLOURS, svg_element
from dllm_gym.evaluation.home import at_home, settle
from dllm_gym.evaluation.plots import learning_figures, pareto_figure
from dllm_gym.fields import FLAG, INTERVAL, SHARE, TEXT, check_fields, number, whole
from dllm_gym.files import read_json, write_text
from dllm_gym.looking.film import Film, film
from dllm_gym.plugins import plugins
from dllm_gym.strategies.base import Strategy

_OF_EACH_KIND = 3  # sample episodes that are right, and as many that are wrong
_MOST_DATA = 500_000  # characters of sample episodes; the first one is always there
_COMPARISON = "compare.json"
_NEEDED = {
    "agent": TEXT,
    "label": TEXT,
    "accuracy": SHARE,
    "accuracy_ci95": INTERVAL,
    "nfe_mean": number(0),
    "reward_mean": number(),
    "episodes": whole(1),
    "learned": FLAG,
    "task": TEXT,
    "backend": TEXT,
    "completion_length": whole(1),
    "block_length": BLOCK_LENGTH,
}
_GAP = {"envelope_gap": number(-1, 1), "envelope_gap_ci95": INTERVAL}  # of learned ones, if there are rules


def report(
    run: str | Path,
    output: str | Path | None = None,
    *,
    agents: Sequence[Any] = ("fast-dllm:threshold=0.9",),
    comparison: str | Path | None = None,
    episodes: int = 200,
    split: str = "test",
    seed: int = 0,
    on_part: Callable[[str], None] | None = None,
    on_start: Callable[[int], None] | None = None,
    on_episode: Callable[[Any], None] | None = None,
    **env_kwargs: Any,
) -> Path:
    """Writes a page with learning curves, accuracy against steps, episodes to step through, order and so on.

    Args:
        run: The folder of a training run, whose environment is taken over, or anything that names an agent:
            ``policy:NAME``, the path of a saved policy, a strategy.
        output: The page; ``None`` is ``report.html`` in the folder of the run, or here if it is none.
        agents: With whom to compare it, step by step and in every plot.
        comparison: What ``dllm-gym compare --json`` wrote, for the plot of accuracy against steps; ``None``
            takes ``compare.json`` in the folder of the run, and where there is none the agents and a few
            strategies are compared now.
        episodes: Problems to evaluate on.
        split: ``train``, ``validation`` or ``test``.
        seed: Seeds sampling, never the problems.
        on_part: Called with the name of each part of the work that begins.
        on_start: As in ``evaluate``, for every agent.
        on_episode: See there.
        **env_kwargs: Arguments of ``UnmaskEnv``, before those of the run and the place where the agent was
            trained.

    Returns:
        Where the page is.

    Raises:
        ValueError: For a run or agent that is not there, or a comparison that is none.
    """
    training = run_named(str(run))
    folder = Path() if training is None else training["directory"]
    tell = on_part or (lambda _: None)
    if comparison is None and training is not None and (folder / _COMPARISON).is_file():
        comparison = folder / _COMPARISON
    rows = None if comparison is None else read_comparison(comparison)
    team = [as_agent(str(run)), *(as_agent(agent) for agent in agents)]
    trained = {} if training is None else training["environment"]
    environment = {**trained, **at_home(team, settle(env_kwargs, trained))}
    environment.pop("split", None)  # of the training
    results = []
    asked: dict[str, Any] = {"seed": seed, "on_start": on_start, "on_episode": on_episode, **environment}
    for agent in team:
        tell(f"decoding with {getattr(agent, 'label', agent)}")
        results.append(evaluate(agent, episodes, split, check_consistency=True, **asked))
    if rows is None:
        there = [getattr(agent, "label", "") for agent in team]
        rules = [rule for rule in sweep("short") if rule.label not in there]
        others = []
        for rule in rules:
            tell(f"comparing with {rule.label}")
            others.append(evaluate(rule, episodes, split, **asked))
        learned = [not isinstance(agent, Strategy) for agent in team]
        rows = Comparison([*results, *others], learned + [False] * len(others)).to_json()
    tell("filming episodes")
    films = (
        (problem, film(team, problem, split, seed=seed, **environment)) for problem in _samples(results[0])
    )
    data = _player_data(films)
    tell("drawing")
    profiles = [profile(result.recording) for result in results if result.recording is not None]
    page = _page(str(run), training, rows, results, profiles, data)
    return write_text(folder / "report.html" if output is None else output, page)


def read_comparison(path: str | Path) -> list[dict[str, Any]]:
    """What ``dllm-gym compare --json`` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is something else; names the result and the field.
    """
    rows = read_json(path)
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} is not what compare --json writes, a list of results")
    for at, row in enumerate(rows, start=1):
        place = f"{path}, result {at}"
        check_fields(row, _NEEDED, place)
        if "envelope_gap" in row:
            check_fields(row, _GAP, place)
    return rows


def run_named(text: str) -> dict[str, Any] | None:
    """What the folder of a training run says, see ``dllm_gym.plugins``; ``None`` for anything else."""
    for plugin in plugins():
        run: dict[str, Any] | None = plugin.read_run(text)
        if run is not None:
            return run
    return None


def _samples(result: EvaluationResult) -> list[int]:
    """The first problems that were solved, then the first that were not."""
    success = result.records.success == 1
    chosen = [np.flatnonzero(kind)[:_OF_EACH_KIND] for kind in (success, ~success)]
    problems: list[int] = result.records.problem[np.concatenate(chosen)].tolist()
    return problems


# The player's data ------------------------------------------------------------------------------------------


def _player_data(films: Iterable[tuple[int, Film]]) -> list[dict[str, Any]]:
    """As many films as there is room for."""
    data: list[dict[str, Any]] = []
    size = 0
    for problem, made in films:
        verdicts = ", ".join("right" if frame.correct else "wrong" for frame in made.frames[-1])
        entry = {
            "title": f"{problem}: {verdicts}",
            "prompt": made.frames[0][0].prompt,
            "runs": [
                _player_run([frames[at] for frames in made.frames], episode.reward, _css(at))
                for at, episode in enumerate(made.episodes)
            ],
        }
        size += len(_json_for_html(entry))
        if data and size > _MOST_DATA:
            break
        data.append(entry)
    return data


def _player_run(frames: Sequence[Frame], reward: float, own_colour: str) -> dict[str, Any]:
    """One agent's episode: ``confidence`` has, for every step, thousandths at the masked positions only.

    ``tokens`` are the last ones and ``revealed`` their steps; ``earlier`` has those that were taken back:
    their positions, the steps that revealed them and took them back, and the tokens.
    """
    last = frames[-1]
    length = len(last.tokens)
    revealed = np.zeros(length, dtype=np.int64)
    earlier: list[tuple[int, int, int, str]] = []
    for before, frame in pairwise(frames[: last.step + 1]):
        for position in filter(frame.was_taken_back, range(length)):
            stood = token_text(before.tokens[position])
            earlier.append((position, int(revealed[position]), frame.step, stood))
            revealed[position] = 0
        revealed[frame.just_revealed] = frame.step
    return {
        "agent": last.agent,
        "colour": own_colour,
        "columns": grid_columns(length),
        "edges": [position for position in range(length) if last.is_edge(position)],
        "tokens": [token_text(token) for token in last.tokens],
        "revealed": revealed.tolist(),
        "earlier": earlier,
        "confidence": [
            np.rint(1000 * frame.confidence[frame.masked]).astype(int).tolist()
            for frame in frames[: last.step + 1]
        ],
        "steps": last.step,
        "budget": last.max_steps,
        "right": last.correct,
        "score": last.score,
        "reward": reward,
    }


def _json_for_html(value: Any) -> str:
    """JSON that cannot end the ``<script>`` element it stands in, whatever texts it holds."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII only
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# The page ---------------------------------------------------------------------------------------------------


def _page(
    name: str,
    training: Mapping[str, Any] | None,
    rows: Sequence[Mapping[str, Any]],
    results: Sequence[EvaluationResult],
    profiles: Sequence[Profile],
    data: Sequence[Mapping[str, Any]],
) -> str:
    template = files("dllm_gym.looking").joinpath("report.html").read_text(encoding="utf-8")
    script = template.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    main, seen_in = results[0], results[0].environment
    low, high = main.accuracy_ci95
    summary = (
        f"{main.label} on {seen_in['task']} with {seen_in['backend']}: {100 * main.accuracy:.1f} % right "
        f"({100 * low:.1f} to {100 * high:.1f}) in {main.nfe_mean:.1f} steps; {main.episodes} "
        f"{seen_in['split']} problems"
    )
    after = [("learning", "Learning curves", _learning(training))] if training is not None else []
    after += [
        ("pareto", "Accuracy against steps", _pareto(rows, [result.label for result in results])),
        ("order", "What it reveals when", _order(profiles)),
        ("behaviour", "How it decodes", _panels(profiles)),
        ("configuration", "Configuration", _configuration(training, main)),
    ]
    links = [("episodes", "Episodes", ""), *after]
    values = {
        "script_hash": f"sha256-{digest}",
        "title": html.escape(f"{name}: report"),
        "heading": html.escape(name),
        "summary": html.escape(summary),
        "links": "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in links),
        "after": "\n".join(_section(*section) for section in after),
        "samples": html.escape(
            f"The first problems that {main.label} solved and the first that it did not, up to "
            f"{_OF_EACH_KIND} of each."
        ),
        "data": _json_for_html(data),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def _section(key: str, title: str, content: str) -> str:
    return f'<section id="{key}">\n<h2>{title}</h2>\n{content}\n</section>'


def _learning(training: Mapping[str, Any]) -> str:
    evaluations = training["evaluations"]
    if not evaluations:
        return '<p class="muted">There has been no evaluation yet.</p>'
    last = evaluations[-1]
    text = (
        f"{len(evaluations)} evaluations on validation problems in {last['timesteps']:,} environment steps, "
        f"{last['seconds'] / 60:.1f} minutes."
    )
    return f'<p class="muted">{text}</p>' + _figures(learning_figures(evaluations), "learning curve")


def _pareto(rows: Sequence[Mapping[str, Any]], team: Sequence[str]) -> str:
    # the plot reads the attributes that a result and its row of JSON have in common
    points: Any = [SimpleNamespace(**row, environment=row) for row in rows]
    colours = {label: COLOURS[at % len(COLOURS)] for at, label in enumerate(team)}
    figure = pareto_figure(points, [row["learned"] for row in rows], colours=colours)
    picture = _svg(figure, "accuracy against steps")
    head = ["agent", "accuracy", "95 % interval", "steps", "reward", "points over the strategies"]
    lines = []
    for row in rows:
        low, high = row["accuracy_ci95"]
        lines.append(
            [
                row["label"], f"{row['accuracy']:.3f}", f"{low:.3f} to {high:.3f}", f"{row['nfe_mean']:.1f}",
                f"{row['reward_mean']:.3f}", _gap(row),
            ]
        )  # fmt: skip
    text = f"{rows[0]['episodes']} problems. Points are over the best mixture of strategies at as many steps."
    table = _table(head, lines, ["learned" if row["learned"] else "" for row in rows])
    return f'<figure class="wide">{picture}</figure><p class="muted">{text}</p>{table}'


def _gap(row: Mapping[str, Any]) -> str:
    if "envelope_gap" not in row:
        return ""
    low, high = row["envelope_gap_ci95"]
    interval = "" if low is None else f" ({100 * low:+.1f} to {100 * high:+.1f})"
    return f"{100 * row['envelope_gap']:+.1f}{interval}"


def _order(profiles: Sequence[Profile]) -> str:
    figures = [heat_map_figure([one]) for one in profiles]
    text = "Share of the episodes in which a position is revealed in a step."
    return f'<p class="muted">{text}</p>' + _figures(figures, "which position is revealed in which step")


def _panels(profiles: Sequence[Profile]) -> str:
    errors = [
        f"{one.label} {one.kept_by_confidence.calibration_error:.3f}"
        for one in profiles
        if one.kept_by_confidence is not None
    ]
    text = html.escape(
        "To check a token, the dLLM is shown the finished text without it: would it write it again? Mean "
        f"distance between how often it does and its confidence (calibration error): {', '.join(errors)}."
    )
    return f'<p class="muted">{text}</p>{_legend(profiles)}' + _figures(
        panel_figures(profiles), "how it decodes"
    )


def _legend(profiles: Sequence[Profile]) -> str:
    names = "".join(
        f'<li><i class="swatch" style="background: {_css(at)}"></i>{html.escape(one.label)}</li>'
        for at, one in enumerate(profiles)
    )
    return f'<ul class="legend">{names}</ul>'


def _svg(figure: Any, description: str) -> str:
    """A figure whose agents have the page's colours, which are others in the dark."""
    element = svg_element(figure, description)
    for at, own in enumerate(COLOURS):
        element = element.replace(own.lower(), _css(at))
    return element


def _css(at: int) -> str:
    """The colour of the agent at a place of the list, as the style sheet has it."""
    return f"var(--agent-{at % len(COLOURS)})"


def _figures(figures: Sequence[Any], what: str) -> str:
    elements = []
    for figure in figures:
        axes, *_ = figure.axes  # and the bar of a heat map
        words = [what, axes.get_title(loc="left"), axes.get_ylabel(), axes.get_xlabel()]
        label = ", ".join(filter(None, words))
        elements.append(f"<figure>{_svg(figure, label)}</figure>")
    return f'<div class="figures">{"".join(elements)}</div>'


def _configuration(training: Mapping[str, Any] | None, result: EvaluationResult) -> str:
    tables = []
    if training is not None:
        lines = [[key, _text(value)] for key, value in training["settings"].items()]
        tables.append("<div><h3>Training</h3>" + _table(["field", "value"], lines) + "</div>")
    about = {**result.environment, "episodes": result.episodes, "seed": result.seed}
    lines = [[key, _text(value)] for key, value in about.items()]
    lines.append(["dllm_gym", dllm_gym.__version__])
    tables.append("<div><h3>Evaluated in</h3>" + _table(["argument", "value"], lines) + "</div>")
    command = ""
    if training is not None and training["command"]:
        command = f"<p>Trained with <code>{html.escape(training['command'])}</code></p>"
    return f'{command}<div class="tables">{"".join(tables)}</div>'


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]], classes: Sequence[str] = ()) -> str:
    """Everything escaped; columns of numbers are set right."""

    def row(cells: Sequence[str], tag: str, name: str = "") -> str:
        inner = "".join(
            f"<{tag}{' class=number' if at and len(cells) > 2 else ''}>{html.escape(cell)}</{tag}>"
            for at, cell in enumerate(cells)
        )
        return f"<tr{f' class={name}' if name else ''}>{inner}</tr>"

    body = "".join(row(line, "td", classes[at] if classes else "") for at, line in enumerate(lines))
    return f'<div class="scroll"><table><thead>{row(head, "th")}</thead><tbody>{body}</tbody></table></div>'
