"""How long the blocks of semi-autoregressive decoding are: alike in all episodes, or drawn by each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dllm_gym.envs.checks import positive
from dllm_gym.fields import Field, whole

BlockLength = int | None | Sequence[int | None]


def _is_block_length(value: Any) -> bool:
    if not isinstance(value, list):
        return whole(1).fits(value)
    return value != [] and all(one is None or whole(1).fits(one) for one in value)


BLOCK_LENGTH = Field("a whole number of at least 1, or a list of such numbers and nulls", _is_block_length)


def shown(block_length: int | Sequence[int]) -> str:
    """The block length of an environment, one or several, in a table or title."""
    return str(block_length) if isinstance(block_length, int) else ", ".join(map(str, block_length))


class Blocks:
    """The block lengths there are for episodes; they may change between episodes.

    Args:
        lengths: As the ``block_length`` of ``UnmaskEnv``: one, or several to draw from.
        completion_length: L.
        attention_block: Of a dLLM that attends block by block.

    Raises:
        ValueError: For what ``UnmaskEnv`` refuses; also if ``lengths`` is set to it.
    """

    __slots__ = ("_attention_block", "_choices", "_completion_length")  # and no misspelt ones

    def __init__(self, lengths: BlockLength, completion_length: int, attention_block: int | None) -> None:
        self._completion_length, self._attention_block = completion_length, attention_block
        self.lengths = lengths

    @property
    def choices(self) -> tuple[int, ...]:
        """All of them, each once, in rising order."""
        return self._choices

    @property
    def lengths(self) -> Any:
        """The block length: a number, or a tuple of those that each episode draws its own from."""
        return self._choices[0] if len(self._choices) == 1 else self._choices

    @lengths.setter
    def lengths(self, value: BlockLength) -> None:
        several = isinstance(value, Sequence) and not isinstance(value, str)
        given: Sequence[Any] = value if several else [value]  # type: ignore[assignment]
        if not given:
            raise ValueError(f"block_length must be a length or several to draw from, got {value!r}")
        self._choices = tuple(sorted({self.fitting(one) for one in given}))

    @property
    def full(self) -> int:
        """What ``None`` means: full diffusion, or the dLLM's own blocks."""
        return self._attention_block or self._completion_length

    def fitting(self, given: Any) -> int:
        """One block length, as far as it fits the completion and how the dLLM attends.

        Raises:
            ValueError: If it does not.
        """
        if given is None:
            return self.full
        length, block = positive("block_length", given), self._attention_block
        if length > self._completion_length:
            raise ValueError(f"block_length {length} exceeds completion_length {self._completion_length}")
        if block is not None and block % length:
            fitting = [size for size in range(1, block + 1) if block % size == 0]
            raise ValueError(
                f"block_length {length} does not fit this dLLM, which attends in blocks of {block} and "
                f"sees nothing behind the block it writes; choose one of {', '.join(map(str, fitting))}"
            )
        return length

    def at(self, place: float) -> int:
        """The block length at a number in [0, 1), all of them equally probable."""
        return self._choices[int(place * len(self._choices))]
