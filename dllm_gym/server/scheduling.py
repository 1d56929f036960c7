"""Who is decoded when: jobs wait, join the engine's rows at its next forward, and leave as they are done."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dllm_gym.envs.engine import Engine
from dllm_gym.evaluation.agents import Agent
from dllm_gym.evaluation.decode import Rows
from dllm_gym.generation import check_room
from dllm_gym.prompts import Prompt
from dllm_gym.server.final import Answer
from dllm_gym.server.metrics import Metrics
from dllm_gym.server.team import Team

_log = logging.getLogger(__name__)


class Busy(RuntimeError):
    """As many jobs wait as may wait."""


class Closing(RuntimeError):
    """No new jobs are taken."""


@dataclass(frozen=True)
class Accepted:
    """A job waits for a row; its prompt has so many tokens."""

    prompt_tokens: int


@dataclass(frozen=True)
class Step:
    """A step of a job.

    Attributes:
        text: What became final with it; with the only step that is told, everything.
        steps: The number of the step.
        tokens: Tokens of all text that is final.
        reason: Why the answer is over, ``stop`` or ``length``, if it is.
        canvas: The text at every position, ``None`` where there is a mask; if that was asked for.
    """

    text: str
    steps: int
    tokens: int
    reason: str | None
    canvas: tuple[str | None, ...] | None


Event = Accepted | Step | Exception


@dataclass(eq=False)
class Job:
    """One completion that somebody waits for.

    Attributes:
        prompt: What it answers.
        agent: Decides what is revealed.
        seed: Of the episode.
        tell: Called on the scheduler's thread with what happens: ``Accepted``, then steps to the one with a
            reason; or an exception, after which nothing comes: ``ValueError`` for what cannot be decoded,
            ``TimeoutError``, anything else if the dLLM fails.
        streams: Whether to tell steps with new text; otherwise only the last one, with all of it.
        limit: Most tokens of the answer, if fewer than the completion has.
        stops: Texts that end it.
        shows_canvas: Whether to tell every step, with its canvas.
        cancelled: Whether nobody waits any more.
    """

    prompt: Prompt
    agent: Agent
    seed: int
    tell: Callable[[Event], None]
    streams: bool = False
    limit: int | None = None
    stops: Sequence[str] = ()
    shows_canvas: bool = False
    cancelled: bool = False
    arrived: float = field(default_factory=time.monotonic)
    number: int = 0
    answer: Answer | None = None
    canvas: list[str | None] = field(default_factory=list)


class Scheduler:
    """Decodes jobs in the rows of an engine, on a thread of its own: nothing else may use engine and dLLM.

    Args:
        engine: Its task gives ``prompts``.
        prompts: The prompts of the engine's task by number, which come and go.
        most_waiting: Jobs that may wait for a row; more are refused.
        most_prompt_tokens: Tokens a prompt may have; ``None``: as many as the dLLM has room for.
        seconds: That a job may take, from its arrival to its end.
        metrics: Counts.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: dict[int, Prompt],
        *,
        most_waiting: int,
        most_prompt_tokens: int | None,
        seconds: float,
        metrics: Metrics,
    ) -> None:
        self._engine, self._prompts = engine, prompts
        self._most = engine.num_rows + most_waiting
        self._most_prompt_tokens, self._seconds, self._metrics = most_prompt_tokens, seconds, metrics
        self._team = Team(engine.num_rows)
        self._rows = Rows(self._team, engine)
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()  # guards what follows up to the thread
        self._arrived: deque[Job] = deque()
        self._outstanding = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="dllm-gym-scheduler", daemon=True)
        self._waiting: deque[Job] = deque()  # the thread's own, like what follows
        self._running: dict[int, Job] = {}  # by row

    def start(self) -> None:
        """Begins to decode."""
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Takes all of some jobs, or none.

        Raises:
            Busy: If too many would wait.
            Closing: After ``close``.
        """
        with self._changed:
            if self._closing:
                raise Closing("the server is shutting down")
            if self._outstanding + len(jobs) > self._most:
                raise Busy(f"{self._outstanding} completions are being written or wait; try again later")
            self._outstanding += len(jobs)
            self._count()
            self._arrived.extend(jobs)
            self._changed.notify()

    def close(self) -> None:
        """Takes no more jobs; returns when those it has are done or cancelled."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._await_work():
            try:
                self._pass()
            except Exception as error:  # a dLLM may be anybody's: who waits is told, and others may come
                _log.exception("decoding failed")
                for job in [*self._running.values(), *self._waiting]:
                    self._end(job, "failed", RuntimeError(f"decoding failed: {error}"))

    def _await_work(self) -> bool:
        """Waits for something to do; whether there will be any."""
        with self._changed:
            while not self._outstanding:
                if self._closing:
                    return False
                self._changed.wait()
            arrived = [self._arrived.popleft() for _ in range(len(self._arrived))]
        for job in arrived:
            self._accept(job)
        return True

    def _pass(self) -> None:
        """Lets go who is done waiting, fills the rows, and takes one step in all of them."""
        now = time.monotonic()
        for job in [*self._running.values(), *self._waiting]:
            if job.cancelled:
                self._end(job, "cancelled")
            elif now - job.arrived > self._seconds:
                self._end(job, "timeout", TimeoutError(f"not done after {self._seconds:g} seconds"))
        self._fill()
        if self._running:
            self._step()

    def _accept(self, job: Job) -> None:
        job.number = next(self._numbers)
        self._prompts[job.number] = job.prompt
        self._waiting.append(job)
        try:
            tokens = check_room(self._engine, job.number, "the prompt", job.prompt)
            if self._most_prompt_tokens is not None and tokens > self._most_prompt_tokens:
                raise ValueError(f"the prompt takes {tokens} tokens, accepted are {self._most_prompt_tokens}")
        except Exception as error:  # a tokenizer's or template's, too
            self._end(job, "refused", ValueError(str(error)))
            return
        self._metrics.prompt_tokens.inc(tokens)
        self._tell(job, Accepted(tokens))

    def _count(self) -> None:
        self._metrics.running.set(len(self._running))
        self._metrics.waiting.set(self._outstanding - len(self._running))

    def _fill(self) -> None:
        free = [row for row in range(self._engine.num_rows) if row not in self._running]
        joining = {row: self._waiting.popleft() for row in free[: len(self._waiting)]}
        if not joining:
            return
        self._running |= joining
        self._count()
        backend, rows = self._engine.backend, np.array(list(joining))
        end_text = getattr(getattr(backend, "family", None), "end_text", None)
        for job in joining.values():
            limit = self._engine.length if job.limit is None else min(job.limit, self._engine.length)
            job.answer = Answer(backend.decode, self._engine.end_token_ids, limit, job.stops, end_text)
            job.canvas = [None] * self._engine.length
            self._metrics.waited.observe(time.monotonic() - job.arrived)
        self._team.give(rows, [job.agent for job in joining.values()])
        self._rows.start(
            rows, [job.number for job in joining.values()], [job.seed for job in joining.values()]
        )

    def _step(self) -> None:
        stepped = self._rows.step()
        self._metrics.forwards.inc()
        self._metrics.steps.inc(len(stepped))
        canvas = self._engine.canvas
        finished, completions, changeable = canvas.finished(), canvas.completions(), canvas.changeable()
        for row in stepped.tolist():
            job, error = self._running[row], self._team.broken.get(row)
            if error is not None:
                refused = isinstance(error, ValueError)
                if not refused:
                    _log.error("an agent failed", exc_info=error)
                self._end(job, "refused" if refused else "failed", error)
                continue
            assert job.answer is not None
            text = job.answer.grow(completions[row], changeable[row], bool(finished[row]))
            reason = job.answer.reason
            if reason is None and not (job.shows_canvas or (job.streams and text)):
                continue
            if job.shows_canvas:
                for at in np.flatnonzero(canvas.just_remasked[row]).tolist():
                    job.canvas[at] = None
                for at in np.flatnonzero(canvas.just_revealed[row]).tolist():
                    job.canvas[at] = self._engine.backend.tokenizer.decode([int(completions[row, at])])
            shown = tuple(job.canvas) if job.shows_canvas else None
            text = text if job.streams else job.answer.text
            step = Step(text, int(canvas.steps[row]), job.answer.tokens, reason, shown)
            if reason is None:
                self._tell(job, step)
            else:
                self._metrics.completion_tokens.inc(job.answer.tokens)
                self._end(job, reason, step)

    def _end(self, job: Job, outcome: str, event: Event | None = None) -> None:
        """Lets a job go, and tells it why if it asks."""
        row = next((row for row, running in self._running.items() if running is job), None)
        if row is None:
            self._waiting.remove(job)
        else:
            del self._running[row]
            self._rows.stop(np.array([row]))
            self._team.give(np.array([row]), [None])
        del self._prompts[job.number]
        with self._changed:
            self._outstanding -= 1
            self._count()
        self._metrics.completions.labels(outcome).inc()
        self._metrics.seconds.observe(time.monotonic() - job.arrived)
        if event is not None:
            self._tell(job, event)

    def _tell(self, job: Job, event: Event) -> None:
        try:
            job.tell(event)
        except Exception:  # who listened is gone
            job.cancelled = True
