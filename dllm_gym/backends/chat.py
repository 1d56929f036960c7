"""Chats as the text a model was trained on, by a template that is a program of somebody else's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, TypeVar

from dllm_gym.backends.base import Message
from dllm_gym.backends.families import Family

Result = TypeVar("Result")

_MAX_LINES = 10_000_000  # of Python, into which templates are translated; a message takes some hundred


def prompt_text(tokenizer: Any, family: Family, messages: Sequence[Message], begun: bool = False) -> str:
    """The text of a chat up to where the answer goes on, by the tokenizer's template or the family's.

    Without any template the text of a single message is the prompt. With ``begun`` the last message is the
    beginning of the answer.

    Raises:
        ValueError: If there are several templates and none is the default, if it fails or does not end, and
            for several messages without any.
    """
    template = template_of(tokenizer, family)
    if template is None:
        if len(messages) != 1:
            raise ValueError(f"this dLLM has no chat template; give one text instead of {messages!r}")
        return messages[0]["content"]

    def render() -> str:
        return str(
            tokenizer.apply_chat_template(
                messages,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=not begun,
                continue_final_message=begun,
                **family.chat_options,
            )
        )

    try:
        return _bounded(render)
    except Exception as error:  # it is a program
        raise ValueError(
            f"the dLLM's chat template fails on {messages!r:.200}: {error or type(error).__name__}"
        ) from error


def as_begun(tokenizer: Any, family: Family, text: str) -> str:
    """A text with the first token before it, for models without chat template that are used to that."""
    first = tokenizer.bos_token or ""
    if not family.bos_without_chat or template_of(tokenizer, family) is not None or text.startswith(first):
        return text
    return str(first + text)


def template_of(tokenizer: Any, family: Family) -> str | None:
    """The chat template: the tokenizer's, or the family's."""
    return _default(tokenizer.chat_template) or family.chat_template


def _default(templates: str | dict[str, str] | None) -> str | None:
    """The one that transformers takes, too, where there are several by name."""
    if not isinstance(templates, dict):
        return templates
    if "default" not in templates:
        raise ValueError(
            f"this dLLM has the chat templates {', '.join(templates)}, none of them named default: "
            "set backend.tokenizer.chat_template to one of them"
        )
    return templates["default"]


def _bounded(function: Callable[[], Result]) -> Result:
    """What a function returns, if it takes no more than ``_MAX_LINES`` of Python.

    Counted, not timed: what a busy machine does to a template is not the template's fault.
    """
    left = _MAX_LINES

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise RuntimeError("it does not end")
        return count

    before = sys.gettrace()  # a debugger's
    sys.settrace(count)
    try:
        return function()
    finally:
        sys.settrace(before)
