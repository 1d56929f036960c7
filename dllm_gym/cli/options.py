"""The options that commands share, each once, and what they mean together."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

# Names for the shell to complete ----------------------------------------------------------------------------


def complete_task(incomplete: str) -> list[str]:
    """Tasks whose names begin so."""
    from dllm_gym.tasks import task_names

    return _beginning(incomplete, task_names())


def complete_dllm(incomplete: str) -> list[str]:
    """Names of dLLMs that begin so."""
    from dllm_gym.backends import backend_names

    return _beginning(incomplete, backend_names())


def complete_agent(incomplete: str) -> list[str]:
    """Strategies and shipped policies whose names begin so."""
    from dllm_gym.plugins import plugins
    from dllm_gym.strategies import strategy_names

    names = strategy_names()
    if incomplete and ("policy:".startswith(incomplete) or incomplete.startswith("policy:")):
        names += [name for plugin in plugins() for name in plugin.agent_names()]  # imports torch
    return _beginning(incomplete, names)


def complete_member(incomplete: str) -> list[str]:
    """Members of the suite whose ids begin so."""
    from dllm_gym.suite import SUITE

    return _beginning(incomplete, [member.id for member in SUITE])


def complete_split(incomplete: str) -> list[str]:
    """Splits whose names begin so."""
    from dllm_gym.tasks import SPLITS

    return _beginning(incomplete, SPLITS)


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


# Options ----------------------------------------------------------------------------------------------------

JsonOption = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write the results as JSON; - for standard output."),
]
AgentOption = Annotated[
    str,
    typer.Option(
        help="Strategy (fast-dllm:threshold=0.8), policy:NAME, or path of a policy.",
        autocompletion=complete_agent,
    ),
]
AgentsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--agent",
        help="Strategy, policy:NAME, or path of a policy or run; may be given several times.",
        autocompletion=complete_agent,
    ),
]
EnvOption = Annotated[
    str | None,
    typer.Option(
        "--env",
        metavar="ID",
        help="Member of the suite, such as DLLMUnmask/Sudoku-v0 (dllm-gym list): its task, dLLM and blocks.",
        autocompletion=complete_member,
    ),
]
TaskOption = Annotated[
    str | None,
    typer.Option(
        help="Registered task; default: the policy's own, or arithmetic.", autocompletion=complete_task
    ),
]
TaskKwargsOption = Annotated[str | None, typer.Option(help="The task's parameters as JSON.")]
BackendOption = Annotated[
    str | None,
    typer.Option(
        help="Name, checkpoint directory or hub id; default: the policy's own, or the task's embedded dLLM.",
        autocompletion=complete_dllm,
    ),
]
BackendKwargsOption = Annotated[
    str | None,
    typer.Option(help='The dLLM\'s keywords as JSON, such as \'{"device": "cuda:1", "cache": "dual"}\'.'),
]
DtypeOption = Annotated[
    str | None, typer.Option(help="float32, bfloat16, float16 or auto; default: float32 on a CPU.")
]
CompileOption = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Compile the dLLM's forward, once per machine; default: for embedded dLLMs on a CPU.",
        show_default=False,
    ),
]
BlockOption = Annotated[
    str | None,
    typer.Option(
        help="Block length, or 'full' for full diffusion; 4,8,full: drawn anew for every problem; "
        "default: the policy's own, or full."
    ),
]
CompletionOption = Annotated[
    int | None, typer.Option(min=1, help="Positions to write in; default: the dLLM's own, or 256.")
]
TemperatureOption = Annotated[float, typer.Option(min=0.0, help="Of the tokens; 0 takes the best.")]
ForbidRemaskOption = Annotated[
    bool, typer.Option("--forbid-remask", help="Agents that take tokens back may not.")
]
AlphaOption = Annotated[
    float | None, typer.Option(min=0.0, help="Exponent of the step price; default: 1, in a report the run's.")
]
EpisodesOption = Annotated[int, typer.Option(min=1, help="Number of problems.")]
SplitOption = Annotated[str, typer.Option(help="train, validation or test.", autocompletion=complete_split)]
SeedOption = Annotated[int, typer.Option(help="Seeds sampling, never the problems.")]
ImportOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--import",
        metavar="FILE",
        help="Python file of yours that registers tasks, dLLMs or strategies; it is run.",
    ),
]


@dataclass(frozen=True)
class Dllm:
    """A dLLM, as far as it is given."""

    backend: BackendOption = None
    dtype: DtypeOption = None
    backend_kwargs: BackendKwargsOption = None

    def arguments(self) -> dict[str, Any]:
        """``backend`` and ``backend_kwargs`` of the environment, those that were given."""
        keywords = {} if self.backend_kwargs is None else _json_object(
            "--backend-kwargs", self.backend_kwargs, '{"cache": "dual"}'
        )  # fmt: skip
        if self.dtype is not None:
            keywords = {**keywords, "dtype": self.dtype}
        given = {"backend": self.backend, "backend_kwargs": keywords or None}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Place(Dllm):
    """Where agents decode, as far as it is given."""

    env: EnvOption = None
    task: TaskOption = None
    task_kwargs: TaskKwargsOption = None
    block_length: BlockOption = None
    alpha: AlphaOption = None
    forbid_remask: ForbidRemaskOption = False
    imports: ImportOption = None

    def arguments(self) -> dict[str, Any]:
        """Arguments of the environment, those that were given; files of the user's own are run."""
        run_files(self.imports)
        given = {
            "task": self.task,
            "task_kwargs": None if self.task_kwargs is None else read_task_kwargs(self.task_kwargs),
            "alpha": self.alpha,
            "forbid_remask": self.forbid_remask or None,
        }
        told = {name: value for name, value in given.items() if value is not None}
        if self.block_length is not None:
            told["block_length"] = read_block_length(self.block_length)
        place = {} if self.env is None else env_arguments(self.env, self.task)
        return {**place, **super().arguments(), **told}


@dataclass(frozen=True)
class Chance:
    """Which problems there are, and the seed of what is drawn."""

    split: SplitOption = "test"
    seed: SeedOption = 0


@dataclass(frozen=True)
class Problems(Chance):
    """How many problems, for results."""

    episodes: EpisodesOption = 1000


@dataclass(frozen=True)
class FewProblems(Chance):
    """How many problems, for pictures."""

    episodes: EpisodesOption = 200


# What they mean ---------------------------------------------------------------------------------------------


def environment(agents: Sequence[Any], told: dict[str, Any], compile: bool | None) -> dict[str, Any]:
    """Arguments of the environment for agents that decode in it.

    Args:
        agents: They know where they are at home.
        told: The arguments that were given.
        compile: Whether to compile the dLLM; ``None`` compiles embedded ones where it pays.
    """
    from dllm_gym.evaluation.home import at_home, dllm_of

    arguments = at_home(agents, told)
    if how := how_to_compile(dllm_of(arguments), compile):
        arguments["backend_kwargs"] = {"compile": how, **arguments.get("backend_kwargs", {})}
    return arguments


def how_to_compile(dllm: Any, compile: bool | None) -> bool | str:
    """The backend's option ``compile`` for a dLLM, where the command line says ``compile`` or nothing."""
    from dllm_gym.backends import embedded_names

    embedded = "auto" if dllm in embedded_names() else False
    return embedded if compile is None else compile


def env_arguments(id: str, task: str | None) -> dict[str, Any]:
    """What ``--env`` says, as arguments of the environment.

    Raises:
        ValueError: For an unknown id, or a ``--task`` beside it.
    """
    from dllm_gym.suite import member

    if task is not None:
        raise ValueError(f"--env {id} has a task: give --env or --task {task}, not both")
    return member(id).env


def dllm_arguments(agent: Any, dllm: Dllm, block_length: str | None, compile: bool | None) -> dict[str, Any]:
    """Arguments of ``generate`` that say what an agent decodes with; the rest is like ``environment``."""
    told = dllm.arguments()
    if block_length is not None:
        told["block_length"] = read_block_length(block_length)
    arguments = environment([agent], told, compile)
    names = ("backend", "backend_kwargs", "block_length")  # prompts are no task
    return {name: arguments[name] for name in names if name in arguments}


def run_files(paths: Iterable[Path] | None) -> None:
    """Runs Python files that the user named, as modules of their names.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If it is no Python file, or has the name of another module.
    """
    for path in paths or ():
        path = path.absolute()
        taken = getattr(sys.modules.get(path.stem), "__file__", str(path))
        if taken != str(path):
            raise ImportError(f"--import {path.name}: there is a module {path.stem} already; rename the file")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"--import takes Python files such as my_tasks.py, got {path}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # pickling and dataclasses look there
        spec.loader.exec_module(module)


def read_task_kwargs(text: str, mixture: bool = False) -> Any:
    """``--task-kwargs``: an object, or with ``mixture`` also a list of them."""
    return _json_object("--task-kwargs", text, '{"size": 6}', or_list=mixture)


def read_block_length(text: str) -> int | list[int | None] | None:
    """``--block-length``: a number, or ``None`` for full diffusion; several of them, if there are commas."""
    lengths: list[int | None] = []
    for part in text.split(","):
        if part != "full" and not part.isdigit():
            raise ValueError(f"block length must be a whole number or 'full', got {part!r}")
        lengths.append(None if part == "full" else int(part))
    return lengths if len(lengths) > 1 else lengths[0]


def _json_object(option: str, text: str, example: str, or_list: bool = False) -> Any:
    from dllm_gym.files import parse_json

    try:
        value = parse_json(text, option)
    except ValueError:
        value = None
    objects = value if or_list and isinstance(value, list) else [value]
    if not objects or not all(isinstance(one, dict) for one in objects):
        kind = "JSON object, or a list of them," if or_list else "JSON object"
        raise ValueError(f"{option} must be a {kind} such as '{example}', got {text!r}")
    return value
