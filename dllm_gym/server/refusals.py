"""What clients are told of errors, in OpenAI's format."""

from __future__ import annotations

from typing import Any

from dllm_gym.server.asked import BadField
from dllm_gym.server.scheduling import Busy, Closing

INVALID = "invalid_request_error"
_MOST_CHARACTERS = 500  # of a message: it may quote a prompt


class Refusal(Exception):
    """An answer that is an error, in OpenAI's format."""

    def __init__(
        self, status: int, kind: str, message: str, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param, self.code = status, kind, param, code

    def content(self) -> dict[str, Any]:
        """As JSON."""
        message = str(self)
        if len(message) > _MOST_CHARACTERS:
            message = f"{message[:_MOST_CHARACTERS]}..."
        return {"error": {"message": message, "type": self.kind, "param": self.param, "code": self.code}}


def refusal_of(error: Exception) -> Refusal:
    """What a client is told of an error."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, BadField):
        return Refusal(400, INVALID, str(error), param=error.name or None)
    if isinstance(error, ValueError):
        return Refusal(400, INVALID, str(error))
    if isinstance(error, Busy):
        return Refusal(429, "rate_limit_error", str(error), code="queue_full")
    if isinstance(error, Closing):
        return Refusal(503, "server_error", str(error), code="shutting_down")
    if isinstance(error, TimeoutError):
        return Refusal(504, "server_error", str(error), code="timeout")
    return Refusal(500, "server_error", str(error) or type(error).__name__)
