"""Text for people who just want text: ``generate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.live import Live
from rich.text import Text

from dllm_gym.cli import screen
from dllm_gym.cli.options import (
    AgentOption,
    BlockOption,
    CompileOption,
    CompletionOption,
    Dllm,
    ImportOption,
    JsonOption,
    SeedOption,
    TemperatureOption,
    dllm_arguments,
    run_files,
)
from dllm_gym.cli.program import command
from dllm_gym.cli.screen import progress, write_json

if TYPE_CHECKING:
    from dllm_gym.prompts import Prompt


@command("generate")
def generate(
    dllm: Dllm,
    prompt: Annotated[
        list[str] | None, typer.Argument(metavar="[PROMPT]...", help="Texts to answer.", show_default=False)
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Prompts: .txt, one per line; .jsonl, objects with prompt or messages; - for stdin.",
        ),
    ] = None,
    agent: AgentOption = "fast-dllm:threshold=0.9",
    completion_length: CompletionOption = None,
    block_length: BlockOption = None,
    temperature: TemperatureOption = 0.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows decoded at once.")] = 64,
    seed: SeedOption = 0,
    compile: CompileOption = None,
    imports: ImportOption = None,
    stream: Annotated[bool, typer.Option("--stream", help="Show how one text is written.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Append every finished text here (.jsonl): interrupted work goes on."),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Write a text for every prompt: texts to standard output, everything else to standard error."""
    from dllm_gym.evaluation import as_agent
    from dllm_gym.generation import generate as run
    from dllm_gym.prompts import read_prompts

    if (file is None) == (not prompt):
        raise ValueError("give either prompts or --file")
    prompts = read_prompts(file) if file is not None else list(prompt or [])
    if not prompts:
        raise ValueError(f"{file} holds no prompts")
    if stream and len(prompts) != 1:
        raise ValueError(f"--stream shows one text being written, got {len(prompts)} prompts")
    run_files(imports)
    one = as_agent(agent)
    options: dict[str, Any] = {
        **dllm_arguments(one, dllm, block_length, compile),
        "completion_length": completion_length,
        "temperature": temperature,
        "seed": seed,
        "batch_size": batch_size,
        "output": output,
    }
    if stream:
        with Live(console=screen.console, transient=True) as live:
            generations = run(
                prompts,
                one,
                on_step=lambda _, text, step: live.update(Text(f"{step:4}  {text}"), refresh=True),
                **options,
            )
    else:
        with progress(agent, len(prompts)) as bar:
            generations = run(prompts, one, on_text=bar.advance, **options)
    for generation in generations if json_file != "-" else ():
        if len(generations) > 1:
            screen.console.print(Text(_shown(generation.prompt), style="dim"), soft_wrap=True)
        print(generation.text, flush=True)
    tokens = sum(len(generation.tokens) for generation in generations)
    steps = sum(generation.steps for generation in generations)
    screen.console.print(
        f"{tokens} tokens in {steps} steps: {tokens / steps:.1f} tokens per forward", highlight=False
    )
    write_json([generation.to_json() for generation in generations], json_file)


def _shown(prompt: Prompt) -> str:
    """A prompt, or what was last said in a chat."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]  # type: ignore[index]
