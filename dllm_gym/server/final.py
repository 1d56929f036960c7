"""What of an answer is final while the rest of its canvas is still being written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from dllm_gym.envs.rows import BoolArray, IntArray

_BROKEN = "\ufffd"  # what a tokenizer makes of the first bytes of a character


class Answer:
    """The text of one completion, as it becomes final from the left.

    Text is final where nothing before it can change any more. Held back is what could still become another
    character, or the beginning of a text that ends the answer.

    Args:
        decode: Token ids to text, as the backend does it.
        end_token_ids: Tokens that end the answer; they are no part of it.
        limit: Most tokens it may have.
        stops: Texts that end it; no part of it either.
        end_text: What ``decode`` itself ends a text with, if anything.

    Attributes:
        text: What is final.
        tokens: How many tokens it was made of.
        reason: ``stop`` or ``length`` once it is over, else ``None``.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        end_token_ids: Collection[int],
        limit: int,
        stops: Sequence[str] = (),
        end_text: str | None = None,
    ) -> None:
        self._decode, self._ends, self._limit = decode, np.array(sorted(end_token_ids)), limit
        self._stops = tuple(stops)
        self._held = (*stops, *(() if end_text is None else (end_text,)))
        self.text, self.tokens = "", 0
        self.reason: str | None = None

    def grow(self, tokens: IntArray, changeable: BoolArray, over: bool) -> str:
        """Reads on; returns what became final now.

        Args:
            tokens: ``(L,)``, the completion.
            changeable: ``(L,)``, where it may still change.
            over: Whether nothing will.
        """
        final = tokens if over or not changeable.any() else tokens[: changeable.argmax()]
        final = final[: self._limit]
        ends = np.flatnonzero(np.isin(final, self._ends))
        if len(ends):
            final, self.reason = final[: ends[0]], "stop"
        elif over or len(final) == self._limit:
            self.reason = "length"
        elif len(final) == self.tokens:
            return ""
        self.tokens = len(final)
        text = self._decode(final.tolist())
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            text, self.reason = text[: min(found)], "stop"
        elif self.reason is None:
            text = text.rstrip(_BROKEN)
            text = text[: len(text) - max((_overlap(text, stop) for stop in self._held), default=0)]
        before = len(self.text)
        if len(text) <= before or not text.startswith(self.text):  # more of it will tell
            return ""
        self.text = text
        return text[before:]


def _overlap(text: str, stop: str) -> int:
    """With how many characters at its end a text begins to be ``stop``."""
    lengths = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)
