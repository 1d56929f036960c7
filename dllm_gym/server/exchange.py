"""One request's jobs, seen from the event loop: what the scheduler's thread tells comes in here, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from dllm_gym.server.scheduling import Accepted, Event, Job, Scheduler, Step


class Gone(ConnectionError):
    """The client has hung up."""


class Exchange:
    """Waits for the jobs of a request, and cancels them when the client hangs up.

    Args:
        receive: ASGI's: tells when the client hangs up, once the request has been read.
    """

    def __init__(self, receive: Callable[[], Awaitable[Any]]) -> None:
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._jobs: Sequence[Job] = ()
        self._watch = self._loop.create_task(self._hang_up(receive))

    def listener(self, index: int) -> Callable[[Event], None]:
        """What the job with this index tells its events to, from whatever thread."""
        return lambda event: self._put(index, event)

    async def submit(self, scheduler: Scheduler, jobs: Sequence[Job]) -> list[int]:
        """Hands the jobs in; returns the number of tokens of each prompt once all are accepted.

        Raises:
            Busy: If too many wait.
            Closing: If the server is shutting down.
            ValueError: If a prompt is not accepted.
            Gone: If the client has hung up.
        """
        scheduler.submit(jobs)
        self._jobs = jobs
        tokens = []
        for _ in jobs:  # all are looked at before any takes a step
            _, event = await self._next()
            assert isinstance(event, Accepted)
            tokens.append(event.prompt_tokens)
        return tokens

    async def steps(self) -> AsyncIterator[tuple[int, Step]]:
        """Steps of all jobs with their indices, until the last is over.

        Raises:
            ValueError: If an agent's options do not fit.
            TimeoutError: If it took too long.
            Gone: If the client has hung up.
            Exception: Whatever a dLLM or an agent raises.
        """
        missing = len(self._jobs)
        while missing:
            index, event = await self._next()
            assert isinstance(event, Step)
            missing -= event.reason is not None
            yield index, event

    async def _next(self) -> tuple[int, Event]:
        index, event = await self._events.get()
        if isinstance(event, Exception):
            raise event
        return index, event

    def close(self) -> None:
        """Cancels what is not done."""
        self._watch.cancel()
        self._cancel()

    def _cancel(self) -> None:
        for job in self._jobs:
            job.cancelled = True

    def _put(self, index: int, event: Event) -> None:
        self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

    async def _hang_up(self, receive: Callable[[], Awaitable[Any]]) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._cancel()
        self._events.put_nowait((0, Gone("the client has hung up")))
