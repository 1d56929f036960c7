"""What there is: ``list``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from dllm_gym.cli.options import JsonOption
from dllm_gym.cli.program import command
from dllm_gym.cli.screen import show, write_json

if TYPE_CHECKING:
    from dllm_gym.suite import Measured


@command("list")
def list_(json_file: JsonOption = None) -> None:
    """List the suite, embedded dLLMs, datasets, tasks, strategies, policies and families of checkpoints."""
    from dllm_gym.backends import backend_names
    from dllm_gym.backends.families import FAMILIES
    from dllm_gym.offline import shipped_datasets
    from dllm_gym.plugins import plugins
    from dllm_gym.strategies import make_strategy, strategy_names
    from dllm_gym.suite import SUITE
    from dllm_gym.tasks import task_names

    content: dict[str, list[str]] = {
        "backends": backend_names(),
        "datasets": [*shipped_datasets()],
        "tasks": task_names(),
        "policies": [name for plugin in plugins() for name in plugin.agent_names()],
    }
    lines = [f"[bold]{kind}[/bold]: {escape(', '.join(names))}" for kind, names in content.items()]
    rules = [make_strategy(name) for name in strategy_names()]
    strategies = [{"name": rule.name, "label": rule.label, "paper": rule.paper} for rule in rules]
    lines.append("[bold]strategies[/bold], with their parameters, and where they come from:")
    lines += [escape(f"  {rule.label}: {rule.paper or 'your own'}") for rule in rules]
    families = [{"name": f.name, "published": f.published, "verified": f.verified} for f in FAMILIES]
    lines.append(
        "[bold]families[/bold] of checkpoints, by directory or hub id (no published weights were run):"
    )
    for family in families:
        published = f" ({', '.join(family['published'])})" if family["published"] else ""
        lines.append(escape(f"  {family['name']}{published}: {family['verified']}"))
    heading = "[bold]suite[/bold], for gym.make and --env; mean rewards on test problems:"
    show(json_file, heading, _suite_table(), *lines)
    suite = [
        {"id": one.id, **one.env, "figures": None if one.figures is None else asdict(one.figures)}
        for one in SUITE
    ]
    write_json({"suite": suite, **content, "strategies": strategies, "families": families}, json_file)


def _suite_table() -> Table:
    from dllm_gym.suite import SUITE

    table = Table(box=None)
    for name in ("", "L", "tokens", "oracle", "best rule", "trained agent"):
        table.add_column(name, justify="left" if name in ("", "best rule", "trained agent") else "right")
    for member in SUITE:
        figures = member.figures
        if figures is None:
            table.add_row(escape(member.id), "not measured yet")
            continue
        trained = "-"
        if figures.trained is not None:
            trained = f"{_told(figures.trained)}, score {member.normalized(figures.trained.reward):.2f}"
        sizes = str(figures.completion_length), str(figures.vocabulary)
        oracle = f"{figures.oracle.reward:.3f}"
        table.add_row(escape(member.id), *sizes, oracle, _told(figures.best_rule), trained)
    return table


def _told(measured: Measured) -> str:
    return f"{measured.reward:.3f} {escape(measured.label)}"
