"""The program around the commands: how they are added, how it starts, and how wrong input ends."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

import dllm_gym
from dllm_gym.cli.screen import say

_HELP = "Learn which tokens a diffusion language model reveals next."
_USAGE_ERROR: Any = typer.BadParameter.__base__  # typer has its own copy of click, or click's, by version
# Where to put what is no option of its own, by the option that takes it.
_ELSEWHERE = {
    "--set": "every field of the configuration can be given as --set name=value, such as --set env.alpha=2",
    "--task-kwargs": "the task's own parameters go into --task-kwargs, as JSON",
    "--backend-kwargs": "those of the dLLM into --backend-kwargs",
    "--import": "a task of your own comes from --import my_tasks.py",
}

app = typer.Typer(name="dllm-gym", help=_HELP, no_args_is_help=True, pretty_exceptions_enable=False)


class Command(TyperCommand):
    """A command that says where things go that are no options of its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See click; a message about an unknown option goes on with the options that might take it."""
        try:
            return super().parse_args(ctx, args)
        except _USAGE_ERROR as error:
            if type(error).__name__ == "NoSuchOption":
                own = {name for parameter in self.params for name in parameter.opts}
                hints = [hint for option, hint in _ELSEWHERE.items() if option in own]
                error.message = "; ".join([error.message, *hints])
            raise


def command(name: str, to: typer.Typer = app) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds a function to the command line; its docstring is the help.

    Args:
        name: Of the command.
        to: The program.
    """

    def add(function: Callable[..., None]) -> Callable[..., None]:
        to.command(name, cls=Command)(_written_out(function))
        return function

    return add


def _written_out(function: Callable[..., None]) -> Callable[..., None]:
    """The function with an option for every field of its parameters that are dataclasses."""
    groups: dict[str, Any] = {}
    parameters = []
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        options = [(parameter.name, parameter.annotation, parameter.default)]
        if is_dataclass(parameter.annotation):
            groups[parameter.name] = group = parameter.annotation
            hints = get_type_hints(group, include_extras=True)
            options = [(field.name, hints[field.name], field.default) for field in fields(group)]
        parameters += [
            inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
            for option, annotation, default in options
        ]

    @wraps(function)
    def run(**given: Any) -> None:
        whole = {
            name: group(**{field.name: given.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        function(**given, **whole)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"dllm-gym {dllm_gym.__version__}")
        raise typer.Exit


@app.callback(help=_HELP)
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """What can be asked before any command."""


def main() -> None:
    """Entry point of the console script: wrong input ends in one line, not in a traceback."""
    from dllm_gym.files import check_text
    from dllm_gym.plugins import plugins

    for plugin in plugins():
        plugin.register_commands(app)
    try:
        for at, argument in enumerate(sys.argv[1:], start=1):
            check_text(argument, f"argument {at}")
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: say("warning", message)
            app()
    except (ValueError, OSError, ImportError) as error:
        say("error", error)
        sys.exit(1)
