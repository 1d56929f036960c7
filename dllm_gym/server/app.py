"""The routes: OpenAI's, and those of whoever runs the server."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from dllm_gym.files import parse_json
from dllm_gym.server import told
from dllm_gym.server.asked import Asked, read_chat, read_text
from dllm_gym.server.exchange import Exchange, Gone
from dllm_gym.server.refusals import INVALID, Refusal, refusal_of
from dllm_gym.server.scheduling import Step
from dllm_gym.server.service import Service

_PAGE = Path(__file__).parent / "page.html"
_MOST_BYTES = 1 << 22  # of a request
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


def make_app(service: Service) -> FastAPI:
    """The routes of a server; its scheduler runs as long as they are served."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.scheduler.start()
        yield
        await asyncio.to_thread(service.scheduler.close)

    async def check_key(request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        known = service.api_key
        if known is not None and not (
            scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), known.encode())
        ):
            message = "this server wants its API key: Authorization: Bearer KEY"
            raise Refusal(401, INVALID, message, code="invalid_api_key")

    async def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            error = Refusal(error.status_code, INVALID, f"{error.detail}: {request.url.path}")
        refusal = refusal_of(error)
        return JSONResponse(refusal.content(), refusal.status)

    app = FastAPI(
        title="dllm-gym",
        lifespan=lifespan,
        exception_handlers=dict.fromkeys((Refusal, HTTPException, Exception), refuse),
        openapi_url=None,  # what there is to say is in OpenAI's documentation; its pages load from elsewhere
    )
    router = APIRouter(prefix="/v1", dependencies=[Depends(check_key)])

    @router.post("/chat/completions")
    async def chat(request: Request) -> Response:
        return await _answer(service, request, read_chat, told.CHAT)

    @router.post("/completions")
    async def text(request: Request) -> Response:
        return await _answer(service, request, read_text, told.TEXT)

    @router.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [service.description()]}

    @router.get("/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        service.check_model(name)
        return service.description()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/")
    async def page() -> Response:
        text = _PAGE.read_text(encoding="utf-8")
        return HTMLResponse(text, headers={"Content-Security-Policy": _POLICY})

    app.include_router(router)
    return app


async def _answer(
    service: Service, request: Request, read: Callable[[Any], Asked], form: told.Form
) -> Response:
    exchange = None
    try:
        asked = read(await _body(request))
        # a number that every JSON reader keeps
        seed = secrets.randbelow(2**53) if asked.seed is None else asked.seed
        reply = told.Reply(form, service.model, seed)
        exchange = Exchange(request.receive)
        jobs = service.jobs(asked, seed, exchange)
        prompt_tokens = sum((await exchange.submit(service.scheduler, jobs))[:: asked.n])
        if asked.stream:
            events = _events(exchange, reply, asked, len(jobs), prompt_tokens)
            exchange = None  # theirs from here on
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            return StreamingResponse(events, media_type="text/event-stream", headers=headers)
        ends = {index: step async for index, step in exchange.steps()}
        return JSONResponse(reply.whole([ends[index] for index in range(len(jobs))], prompt_tokens))
    except Gone:
        return Response()  # nobody reads it
    except Exception as error:
        raise refusal_of(error) from error
    finally:
        if exchange is not None:
            exchange.close()


async def _events(
    exchange: Exchange, reply: told.Reply, asked: Asked, choices: int, prompt_tokens: int
) -> AsyncIterator[bytes]:
    """The answer as server-sent events; closes the exchange."""
    ends: list[Step] = []
    try:
        for index in range(choices):
            yield told.event(reply.beginning(index))
        async for index, step in exchange.steps():
            yield told.event(reply.step(index, step))
            if step.reason is not None:
                ends.append(step)
        if asked.usage:
            yield told.event(reply.usage(ends, prompt_tokens))
    except Gone:
        return
    except Exception as error:  # the status is out already
        yield told.event(refusal_of(error).content())
    finally:
        exchange.close()
    yield told.event("[DONE]")


async def _body(request: Request) -> Any:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # pages of other origins may send anything else unasked
        raise Refusal(415, INVALID, f"Content-Type must be application/json, got {kind!r:.100}")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_BYTES:
            raise Refusal(413, INVALID, f"a request may have at most {_MOST_BYTES} bytes")
    return parse_json(bytes(body), "the request")
