"""Makes a server of an agent and a dLLM, and runs it."""

from __future__ import annotations

import contextlib
import ipaddress
import math
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm_gym.envs.checks import positive
from dllm_gym.evaluation.agents import as_agent
from dllm_gym.evaluation.home import warn_if_abroad
from dllm_gym.generation import writing_engine
from dllm_gym.prompts import Prompt

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from dllm_gym.backends.base import Backend


def make_app(
    agent: Any = "fast-dllm:threshold=0.9",
    backend: str | Path | Backend | None = None,
    *,
    completion_length: int | None = None,
    block_length: int | str | None = "own",
    temperature: float = 0.0,
    batch_size: int = 64,
    backend_kwargs: Mapping[str, Any] | None = None,
    model: str | None = None,
    api_key: str | None = None,
    most_waiting: int = 256,
    most_prompt_tokens: int | None = None,
    seconds: float = 600.0,
    **options: Any,
) -> FastAPI:
    """An ASGI application that answers in OpenAI's format.

    Args:
        agent: As in ``generate``, like the arguments up to ``backend_kwargs``. Requests may give it other
            options if it has ``with_options``, as strategies and learned policies do.
        backend: See there.
        completion_length: See there; of every answer.
        block_length: See there.
        temperature: See there; of every answer.
        batch_size: Completions that are written at once.
        backend_kwargs: See there.
        model: What the dLLM is called; ``None`` is its name or directory.
        api_key: What clients must send, if anything.
        most_waiting: Completions that may wait for a row; beyond that requests are refused.
        most_prompt_tokens: Tokens that a prompt may have; ``None``: what the dLLM has room for.
        seconds: That a completion may take, waiting included.
        **options: ``revealed_confidence``, ``view`` and ``top_k`` of ``generate``.

    Raises:
        ImportError: If FastAPI or prometheus_client are missing.
        ValueError: For arguments out of range, and an agent that must see all problems beforehand.
    """
    with _extra():
        from dllm_gym.server import app
        from dllm_gym.server.metrics import Metrics
        from dllm_gym.server.scheduling import Scheduler
        from dllm_gym.server.service import Service

    resolved = as_agent(agent)
    if hasattr(resolved, "prepare"):
        raise ValueError(f"{agent!r} must see every problem beforehand: it cannot serve")
    if api_key is not None and not (api_key and api_key.isascii() and api_key == api_key.strip()):
        raise ValueError("an API key must be ASCII text without spaces around it, and not empty")
    if most_waiting < 0 or not seconds > 0:
        got = f"{most_waiting} and {seconds}"
        raise ValueError(f"most_waiting must be at least 0 and seconds above 0, got {got}")
    prompts: dict[int, Prompt] = {0: ""}
    engine = writing_engine(
        resolved,
        positive("batch_size", batch_size),
        prompts,
        backend,
        completion_length=completion_length,
        block_length=block_length,
        temperature=temperature,
        backend_kwargs=backend_kwargs,
        stop_at_eos=True,
        **options,
    )
    warn_if_abroad(resolved, engine)
    metrics = Metrics()
    scheduler = Scheduler(
        engine,
        prompts,
        most_waiting=most_waiting,
        most_prompt_tokens=most_prompt_tokens,
        seconds=seconds,
        metrics=metrics,
    )
    name = engine.backend_name if model is None else model
    return app.make_app(Service(name, engine, resolved, scheduler, metrics, api_key))


def serve(
    app: FastAPI,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    grace: float = 30.0,
    on_start: Callable[[str], None] | None = None,
) -> None:
    """Serves an application until the process is told to end (SIGTERM, SIGINT).

    Then no connections are taken any more, and what was accepted is finished.

    Args:
        app: From ``make_app``.
        host: The address to listen at; 127.0.0.1 is this machine alone.
        port: 0 takes a free one.
        grace: Seconds to finish in; what is not done then is cut.
        on_start: Called with the address of the server once it answers.

    Raises:
        OSError: If it cannot listen there.
        ValueError: For a negative grace.
    """
    if grace < 0:
        raise ValueError(f"grace must be at least 0 seconds, got {grace}")
    with _listening(host, port) as listener, contextlib.suppress(KeyboardInterrupt):
        _server(app, grace, lambda: on_start and on_start(_address(listener))).run([listener])


@contextlib.contextmanager
def running(app: FastAPI, *, grace: float = 30.0) -> Iterator[str]:
    """Serves on this machine, on a thread of this process, as long as the context lasts; gives the address.

    Args:
        app: From ``make_app``.
        grace: As in ``serve``.
    """
    started = threading.Event()
    with _listening("127.0.0.1", 0) as listener:
        server = _server(app, grace, started.set)
        thread = threading.Thread(target=server.run, args=([listener],), name="dllm-gym-server")
        thread.start()
        started.wait()
        try:
            yield _address(listener)
        finally:
            server.should_exit = True
            thread.join()


def check_address(host: str, port: int) -> None:
    """Raises an OSError if it cannot listen there, which is better known before a dLLM is loaded."""
    _listening(host, port).close()


def is_local(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(f"cannot listen at {host}, port {port}: {error.strerror or error}") from None


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _server(app: FastAPI, grace: float, on_start: Callable[[], object]) -> uvicorn.Server:
    with _extra():
        import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            on_start()

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=math.ceil(grace),
    )
    return Server(config)


@contextlib.contextmanager
def _extra() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        missing = "a server needs fastapi, uvicorn and prometheus_client: pip install 'dllm-gym[serve]'"
        raise ImportError(missing) from error
