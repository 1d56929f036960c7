"""Text for programs: ``serve``."""

from __future__ import annotations

from typing import Annotated

import typer

from dllm_gym.cli.options import (
    AgentOption,
    BlockOption,
    CompileOption,
    CompletionOption,
    Dllm,
    ImportOption,
    TemperatureOption,
    dllm_arguments,
    run_files,
)
from dllm_gym.cli.program import command
from dllm_gym.cli.screen import say


@command("serve")
def serve(
    dllm: Dllm,
    agent: AgentOption = "fast-dllm:threshold=0.9",
    completion_length: CompletionOption = None,
    block_length: BlockOption = None,
    temperature: TemperatureOption = 0.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Completions written at once.")] = 64,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0: all there are.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="DLLM_GYM_API_KEY", show_envvar=True, help="What clients must send."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Its name for clients; default: the dLLM's.")] = None,
    most_waiting: Annotated[int, typer.Option(min=0, help="Completions that may wait for a row.")] = 256,
    most_prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of a prompt; default: what the dLLM has room for.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="That a completion may take, waiting included.")] = 600.0,
    grace: Annotated[float, typer.Option(min=0.0, help="Seconds to finish in at the end.")] = 30.0,
    compile: CompileOption = None,
    imports: ImportOption = None,
) -> None:
    """Answer over HTTP as OpenAI's API does, with chat and text completions."""
    from dllm_gym.evaluation import as_agent
    from dllm_gym.server import make_app
    from dllm_gym.server import serve as run
    from dllm_gym.server.serving import check_address, is_local

    if not is_local(host) and api_key is None:
        say("warning", f"whoever reaches {host} can use this server: give --api-key")
    check_address(host, port)
    run_files(imports)
    one = as_agent(agent)
    app = make_app(
        one,
        completion_length=completion_length,
        temperature=temperature,
        batch_size=batch_size,
        model=model,
        api_key=api_key,
        most_waiting=most_waiting,
        most_prompt_tokens=most_prompt_tokens,
        seconds=seconds,
        **dllm_arguments(one, dllm, block_length, compile),
    )

    def tell(address: str) -> None:
        say("serving", f"{address}/v1")
        say("page", f"{address}/")

    run(app, host, port, grace=grace, on_start=tell)
