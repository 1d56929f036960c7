"""What there is: ``list``."""

from __future__ import annotations

from rich.markup import escape

from dllm_gym.cli.options import JsonOption
from dllm_gym.cli.program import command
from dllm_gym.cli.screen import show, write_json


@command("list")
def list_(json_file: JsonOption = None) -> None:
    """List embedded dLLMs, tasks, strategies, learned policies and families of checkpoints."""
    from dllm_gym.backends import backend_names
    from dllm_gym.backends.families import FAMILIES
    from dllm_gym.plugins import plugins
    from dllm_gym.strategies import make_strategy, strategy_names
    from dllm_gym.tasks import task_names

    content: dict[str, list[str]] = {
        "backends": backend_names(),
        "tasks": task_names(),
        "strategies": [make_strategy(name).label for name in strategy_names()],
        "policies": [name for plugin in plugins() for name in plugin.agent_names()],
    }
    lines = [f"[bold]{kind}[/bold]: {escape(', '.join(names))}" for kind, names in content.items()]
    families = [{"name": f.name, "published": f.published, "verified": f.verified} for f in FAMILIES]
    lines.append(
        "[bold]families[/bold] of checkpoints, by directory or hub id (no published weights were run):"
    )
    for family in families:
        published = f" ({', '.join(family['published'])})" if family["published"] else ""
        lines.append(escape(f"  {family['name']}{published}: {family['verified']}"))
    show(json_file, *lines)
    write_json({**content, "families": families}, json_file)
