"""Prompts as users have them, in memory or in a file, and as the task that the engine decodes."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm_gym.files import check_text, parse_json
from dllm_gym.tasks import Problem

if TYPE_CHECKING:
    from dllm_gym.backends.base import Message

Prompt = str | Sequence["Message"] | Sequence[int]  # a text, the messages of a chat, or token ids


class PromptTask:
    """Prompts as a task, for which nothing is scored.

    Args:
        prompts: By the indices of their problems; there may come and go some.
        completion_length: Positions to answer in.
    """

    name, split = "prompts", "test"

    def __init__(self, prompts: Sequence[Prompt] | Mapping[int, Prompt], completion_length: int) -> None:
        self._prompts = prompts
        self.num_problems: int | None = len(prompts)
        self.completion_length = completion_length

    def problem(self, index: int) -> Problem:
        """The prompt with this index."""
        return Problem(prompt=self._prompts[index], reference="")  # type: ignore[arg-type]  # or another prompt

    def score(self, completion: str, problem: Problem) -> float:
        """0: nobody knows the right answer."""
        return 0.0

    def metrics(self, completion: str, problem: Problem) -> dict[str, float]:
        """None."""
        return {}


def is_one_prompt(prompts: Any) -> bool:
    """Whether this is a single prompt, a text, the messages of one chat or token ids, not several of them."""
    if isinstance(prompts, str):
        return True
    messages = isinstance(prompts, Sequence) and len(prompts) > 0 and isinstance(prompts[0], Mapping)
    return messages or is_token_ids(prompts)


def check_prompts(prompts: Iterable[Any]) -> list[Prompt]:
    """The prompts as a list.

    Raises:
        ValueError: If they are no iterable of texts, chats and lists of token ids, or hold what no text can
            (``check_text``); names the first such prompt.
    """
    if isinstance(prompts, Mapping) or not isinstance(prompts, Iterable):
        raise ValueError(
            "prompts must be a text, a list of chat messages or of token ids, or an iterable of such, "
            f"got {prompts!r}"
        )
    checked = list(prompts)
    for number, prompt in enumerate(checked, start=1):
        if is_token_ids(prompt):
            continue
        if not isinstance(prompt, str) and not _is_chat(prompt):
            raise ValueError(
                f"prompt {number} must be a text, a list of chat messages such as "
                f"{{'role': 'user', 'content': '...'}}, or a list of token ids, got {prompt!r}"
            )
        messages = [{"content": prompt}] if isinstance(prompt, str) else prompt
        for text in (text for message in messages for text in message.values() if isinstance(text, str)):
            check_text(text, f"prompt {number}")
    return checked


def read_prompts(path: str | Path) -> list[Prompt]:
    """Prompts from a file, or from standard input.

    Args:
        path: A ``.txt`` file with a prompt per line, a ``.jsonl`` file with an object per line that has
            ``prompt`` (a text) or ``messages`` (those of a chat), or ``-``: standard input, a prompt per
            line. Empty lines are left out.

    Raises:
        OSError: If it cannot be read.
        ValueError: For another kind of file, or for a line that holds no prompt or is no UTF-8, naming it.
    """
    suffix = Path(path).suffix
    if str(path) != "-" and suffix not in (".txt", ".jsonl"):
        raise ValueError(f"prompts come from .txt and .jsonl files and from - (standard input), got {path}")
    # what is no UTF-8 is kept until its line is known
    if str(path) == "-":
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")
        text, name = sys.stdin.read(), "standard input"
    else:
        text, name = Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape"), str(path)
    # not splitlines: a text inside JSON may hold what that takes for the end of a line
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if suffix == ".jsonl":
        return [_prompt_from_json(line, f"{name}, line {number}") for number, line in lines]
    return [check_text(line, f"{name}, line {number}") for number, line in lines]


def _prompt_from_json(line: str, where: str) -> Prompt:
    value = parse_json(line, where)
    if isinstance(value, dict):
        if isinstance(value.get("prompt"), str) and "messages" not in value:
            return str(value["prompt"])
        if _is_chat(value.get("messages")) and "prompt" not in value:
            return list(value["messages"])
    raise ValueError(
        f"{where}: expected an object with either prompt (a text) or messages (a list of objects with role "
        f"and content), got {line}"
    )


def is_token_ids(value: Any) -> bool:
    """Whether this is a prompt of token ids, which nothing is put around."""
    return isinstance(value, list | tuple) and len(value) > 0 and all(type(one) is int for one in value)


def _is_chat(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and len(value) > 0
        and all(
            isinstance(message, Mapping)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
            for message in value
        )
    )
