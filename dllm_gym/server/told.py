"""Answers in OpenAI's format, and what they say beyond it: ``dllm``."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dllm_gym.server.scheduling import Step


@dataclass(frozen=True)
class Form:
    """How a kind of answer is written.

    Attributes:
        prefix: Of its id.
        whole: Its name.
        chunk: The name of a piece of it.
        is_chat: Whether texts are messages.
    """

    prefix: str
    whole: str
    chunk: str
    is_chat: bool

    def choice(self, text: str) -> dict[str, Any]:
        """A text."""
        return {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}

    def piece(self, text: str, first: bool = False) -> dict[str, Any]:
        """A piece of a text."""
        if not self.is_chat:
            return {"text": text}
        role = {"role": "assistant"} if first else {}
        return {"delta": {**role, **({"content": text} if text or first else {})}}


CHAT = Form("chatcmpl-", "chat.completion", "chat.completion.chunk", True)
TEXT = Form("cmpl-", "text_completion", "text_completion", False)


@dataclass(frozen=True)
class Reply:
    """The answer to one request.

    Attributes:
        form: How it is written.
        model: Who answers.
        seed: What it was drawn with.
    """

    form: Form
    model: str
    seed: int
    _identity: str = field(default_factory=lambda: uuid.uuid4().hex)
    _created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, ends: Sequence[Step], prompt_tokens: int) -> dict[str, Any]:
        """All choices at once, by the last step of each."""
        choices = [
            {"index": index, **self.form.choice(end.text), **self._end(end), "dllm": self._steps(end)}
            for index, end in enumerate(ends)
        ]
        return {**self._head(self.form.whole), "choices": choices, "usage": usage(ends, prompt_tokens)}

    def beginning(self, index: int) -> dict[str, Any]:
        """A choice begins."""
        return self._chunk([{"index": index, **self.form.piece("", first=True), **self._end(None)}])

    def step(self, index: int, step: Step) -> dict[str, Any]:
        """What a step added to a choice."""
        shown = {} if step.canvas is None else {"canvas": step.canvas}
        extension = {**self._steps(step), **shown}
        return self._chunk(
            [{"index": index, **self.form.piece(step.text), **self._end(step), "dllm": extension}]
        )

    def usage(self, ends: Sequence[Step], prompt_tokens: int) -> dict[str, Any]:
        """The last chunk of a stream, if it was asked for."""
        return {**self._chunk([]), "usage": usage(ends, prompt_tokens)}

    def _head(self, name: str) -> dict[str, Any]:
        identity = f"{self.form.prefix}{self._identity}"
        return {"id": identity, "object": name, "created": self._created, "model": self.model}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head(self.form.chunk), "choices": choices}

    def _end(self, step: Step | None) -> dict[str, Any]:
        return {"logprobs": None, "finish_reason": None if step is None else step.reason}

    def _steps(self, step: Step) -> dict[str, Any]:
        return {"steps": step.steps, "seed": self.seed}


def usage(ends: Sequence[Step], prompt_tokens: int) -> dict[str, int]:
    """How many tokens there were."""
    written = sum(end.tokens for end in ends)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": written,
        "total_tokens": prompt_tokens + written,
    }


def event(content: Mapping[str, Any] | str) -> bytes:
    """A server-sent event."""
    text = content if isinstance(content, str) else json.dumps(content)
    return f"data: {text}\n\n".encode()
