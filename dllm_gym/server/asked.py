"""Requests in OpenAI's format, read with suspicion: they are somebody else's."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dllm_gym.fields import FLAG, OBJECT, TEXT, Field, check, list_of, number, whole
from dllm_gym.files import is_finite
from dllm_gym.prompts import Prompt, check_prompts, is_one_prompt
from dllm_gym.suggestions import did_you_mean

MOST_CHOICES = 128  # in one request
_MOST_STOPS = 16
_FAR = 1e6  # no option of an agent is larger; some are sizes of what it makes


class BadField(ValueError):
    """A field of a request that is not accepted.

    Attributes:
        name: Of the field.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True)
class Asked:
    """What a request asks for.

    Attributes:
        model: Name of the dLLM.
        prompts: What to answer.
        n: Answers to each.
        limit: Most tokens of an answer; ``None``: as many as there are positions.
        stops: Texts that end it.
        seed: Of everything that is drawn; ``None``: the server draws one.
        temperature: Of the tokens; ``None``: the server's.
        stream: Whether to tell what is final while the rest is being written.
        usage: Whether a stream ends with the number of tokens.
        canvas: Whether a stream shows the canvas of every step.
        options: Of the agent, for this request.
    """

    model: str
    prompts: list[Prompt]
    n: int = 1
    limit: int | None = None
    stops: tuple[str, ...] = ()
    seed: int | None = None
    temperature: float | None = None
    stream: bool = False
    usage: bool = False
    canvas: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def _is_option(value: Any) -> bool:
    small = is_finite(value) and abs(value) <= _FAR
    return value is None or isinstance(value, bool) or small or (isinstance(value, str) and len(value) < 100)


_FIELDS: dict[str, Field] = {
    "model": TEXT,
    "n": whole(1, MOST_CHOICES + 1),
    "max_tokens": whole(1),
    "max_completion_tokens": whole(1),
    "stop": Field(
        f"a text, or a list of at most {_MOST_STOPS} texts, none of them empty",
        lambda value: list_of(TEXT).fits(stops := _stops(value)) and all(stops) and len(stops) <= _MOST_STOPS,
    ),
    "seed": whole(-(2**63)),
    "temperature": number(0, 2),
    "stream": FLAG,
    "stream_options": OBJECT,
    "canvas": FLAG,
    "agent": Field(
        'an object of options, such as {"threshold": 0.8}: texts, numbers up to a million, null',
        lambda value: OBJECT.fits(value) and all(map(_is_option, value.values())),
    ),
}
# What a dLLM has none of: accepted where it says so.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_p": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
}
_WITHOUT_EFFECT = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")


def read_chat(body: Any) -> Asked:
    """A request to ``/v1/chat/completions``.

    Raises:
        BadField: For a field that is missing, unknown or has another value than it may have.
    """
    return _read(body, "messages", lambda messages: [[_message(one) for one in _listed(messages)]])


def read_text(body: Any) -> Asked:
    """A request to ``/v1/completions``.

    Raises:
        BadField: See ``read_chat``.
    """
    return _read(body, "prompt", lambda prompt: [prompt] if is_one_prompt(prompt) else _listed(prompt))


def _read(body: Any, asks: str, prompts_of: Callable[[Any], list[Any]]) -> Asked:
    if not isinstance(body, dict):
        raise BadField("", f"a request must be a JSON object, got {reprlib.repr(body)}")
    given = {name: value for name, value in body.items() if value is not None}
    for name, value in given.items():
        if name in _FIELDS:
            with _of(name):
                check(value, _FIELDS[name], name)
        elif name in _NEUTRAL:
            if not any(_same(value, one) for one in _NEUTRAL[name]):
                accepted = " or ".join(map(repr, _NEUTRAL[name]))
                raise BadField(
                    name, f"{name} is not supported: leave it out, or {accepted}; got {reprlib.repr(value)}"
                )
        elif name != asks and name not in _WITHOUT_EFFECT:
            known = [asks, *_FIELDS, *_NEUTRAL]
            raise BadField(name, f"unknown field {name!r:.100}{did_you_mean(name[:100], known)}")
    for name in ("model", asks):
        if name not in given:
            raise BadField(name, f"the request lacks {name}")
    with _of(asks):
        prompts = check_prompts(prompts_of(given[asks]))
    n = given.get("n", 1)
    if not prompts or len(prompts) * n > MOST_CHOICES:
        asked = f"{len(prompts)} prompts times {n} were asked for"
        raise BadField(asks, f"a request has 1 to {MOST_CHOICES} answers, {asked}")
    limits = [given[name] for name in ("max_tokens", "max_completion_tokens") if name in given]
    usage = given.get("stream_options", {}).get("include_usage", False)
    return Asked(
        model=given["model"],
        prompts=prompts,
        n=n,
        limit=min(limits, default=None),
        stops=tuple(_stops(given.get("stop", []))),
        seed=given.get("seed"),
        temperature=given.get("temperature"),
        stream=given.get("stream", False),
        usage=bool(usage),
        canvas=given.get("canvas", False),
        options=given.get("agent", {}),
    )


@contextmanager
def _of(name: str) -> Iterator[None]:
    """Whatever is wrong is wrong with this field."""
    try:
        yield
    except ValueError as error:
        raise BadField(name, str(error)) from None


def _same(value: Any, other: Any) -> bool:
    """Whether both are the same JSON: 1 and 1.0 are, 1 and true are not."""
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)


def _stops(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else list(value) if isinstance(value, list) else [""]


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list, got {reprlib.repr(value)}")
    return value


def _message(message: Any) -> Any:
    """A message with its content as one text: clients may send it in parts."""
    if not isinstance(message, dict):
        return message
    content = message.get("content")
    if isinstance(content, list):
        parts = [
            part.get("text")
            for part in content
            if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        ]
        if len(parts) < len(content):
            raise ValueError(f"only parts of type text are understood, got {reprlib.repr(content)}")
        content = "".join(map(str, parts))
    return {name: value for name, value in {**message, "content": content}.items() if value is not None}
