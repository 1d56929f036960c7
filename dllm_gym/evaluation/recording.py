"""Recorded episodes: when each position was revealed, how sure the dLLM was, what it wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray

from dllm_gym.envs.engine import Engine
from dllm_gym.files import parse_json, write_atomically

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Recording:
    """N episodes of one decoder, from here or from anywhere else.

    Attributes:
        label: Shown in tables and plots.
        reveal_step: ``(N, L)`` int64, the step that revealed each position: 1 is the first, 0 means never. Of
            a token that was taken back it is the step that revealed the next one, 0 if there was none.
        confidence: ``(N, L)`` float32 in [0, 1], the dLLM's confidence when it revealed the position; what
            stands at positions never revealed is ignored.
        steps: ``(N,)`` int64, steps used, those that revealed nothing included.
        score: ``(N,)`` float64, the task's score in [0, 1], 1 is success; NaN if unknown.
        problem: ``(N,)`` int64, which problem of the task it was.
        block_length: Width of the semi-autoregressive window; L means full diffusion. ``(N,)`` int64 where it
            differs from episode to episode.
        block_offset: ``(N,)`` int64, by how many positions the first block is shorter than the others, where
            blocks are counted from the start of the prompt; ``None`` if it is not.
        tokens: ``(N, L)`` int64, the completion; ``None`` if unknown.
        text_length: ``(N,)`` int64, positions before the first end token; ``None`` if unknown.
        remasks: ``(N, L)`` int64, how often a token was taken back there; ``None`` if nothing could be.
        rewritten: ``(N, L)`` bool, whether the last token there is another than the first; likewise.
        kept: ``(N, L)`` bool, whether the dLLM, shown the finished completion with only that position masked,
            would write the same token again (see ``self_consistency``); ``None`` if it was not asked.
        environment: What the episodes were decoded in, JSON values.

    Raises:
        ValueError: For arrays whose shapes disagree or values out of range.
    """

    label: str
    reveal_step: IntArray
    confidence: NDArray[np.float32]
    steps: IntArray
    score: FloatArray
    problem: IntArray
    block_length: int | IntArray
    block_offset: IntArray | None = None
    tokens: IntArray | None = None
    text_length: IntArray | None = None
    remasks: IntArray | None = None
    rewritten: BoolArray | None = None
    kept: BoolArray | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)

    _DTYPES: ClassVar[dict[str, Any]] = {
        "reveal_step": np.int64,
        "confidence": np.float32,
        "steps": np.int64,
        "score": np.float64,
        "problem": np.int64,
        "block_offset": np.int64,
        "tokens": np.int64,
        "text_length": np.int64,
        "remasks": np.int64,
        "rewritten": np.bool_,
        "kept": np.bool_,
    }

    def __post_init__(self) -> None:
        for name, dtype in self._DTYPES.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, np.asarray(value, dtype=dtype))
        if self.reveal_step.ndim != 2 or 0 in self.reveal_step.shape:
            raise ValueError(
                f"reveal_step must have the shape (episodes, positions), both at least 1, "
                f"got {self.reveal_step.shape}"
            )
        episodes, length = self.reveal_step.shape
        for name in self._DTYPES:
            value = getattr(self, name)
            expected = (episodes, length) if name in _PER_POSITION else (episodes,)
            if value is not None and value.shape != expected:
                raise ValueError(f"{name} must have the shape {expected}, got {value.shape}")
        block = np.asarray(self.block_length)
        if block.dtype.kind not in "iu" or block.shape not in ((), (episodes,)):
            raise ValueError(
                f"block_length must be a whole number or {episodes} of them, got {self.block_length!r}"
            )
        if not ((block >= 1) & (block <= length)).all():
            raise ValueError(f"block_length must be 1 to {length}, got {self.block_length}")
        object.__setattr__(self, "block_length", block.astype(np.int64) if block.ndim else int(block))
        offset = self.block_offset
        if offset is not None and not ((offset >= 0) & (offset < block)).all():
            raise ValueError(f"block_offset must be 0 to {int(block.max()) - 1}, and within its block")
        if (self.steps < 1).any():
            raise ValueError(f"steps must be at least 1, got {int(self.steps.min())}")
        if ((self.reveal_step < 0) | (self.reveal_step > self.steps[:, None])).any():
            raise ValueError("reveal_step must be 0 (never) or 1 to the episode's number of steps")
        sure = self.confidence[self.revealed]
        if not ((sure >= 0) & (sure <= 1)).all():  # NaN is out of range too
            raise ValueError("confidence must be 0 to 1 at every position revealed")
        if not (((self.score >= 0) & (self.score <= 1)) | np.isnan(self.score)).all():
            raise ValueError("score must be 0 to 1, or NaN where it is unknown")
        if (
            self.text_length is not None
            and not ((self.text_length >= 0) & (self.text_length <= length)).all()
        ):
            raise ValueError(f"text_length must be 0 to {length}")

    @property
    def episodes(self) -> int:
        """N."""
        return int(self.reveal_step.shape[0])

    @property
    def length(self) -> int:
        """L, positions per completion."""
        return int(self.reveal_step.shape[1])

    @property
    def revealed(self) -> BoolArray:
        """``(N, L)``: revealed at some step."""
        revealed: BoolArray = self.reveal_step > 0
        return revealed

    def text_only(self) -> Recording:
        """The same episodes without the positions from the first end token on, as if never revealed.

        Raises:
            ValueError: If it is unknown how long the texts are.
        """
        if self.text_length is None:
            raise ValueError(f"{self.label!r} was recorded without text_length, how long its texts are")
        text = np.arange(self.length) < self.text_length[:, None]
        return replace(self, reveal_step=np.where(text, self.reveal_step, 0))

    def save(self, path: str | Path) -> Path:
        """Writes an ``.npz`` file (arrays and JSON text, no pickle), atomically."""
        content = {name: getattr(self, name) for name in _SAVED if getattr(self, name) is not None}
        content["environment"] = json.dumps(dict(self.environment), ensure_ascii=False)

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:  # given a path, numpy would append its own suffix
                np.savez_compressed(file, **content)

        return write_atomically(path, write)

    @classmethod
    def load(cls, path: str | Path) -> Recording:
        """Reads what ``save`` wrote. Nothing in the file is executed.

        Raises:
            ValueError: If the file holds no recording.
            OSError: If it cannot be read.
        """
        with Path(path).open("rb") as opened:
            if opened.read(4) != b"PK\x03\x04":  # of a zip file; numpy reads other kinds, too
                raise ValueError(f"{path} holds no recording of episodes: it is no .npz file")
            opened.seek(0)
            return cls._read(opened, path)

    @classmethod
    def _read(cls, opened: BinaryIO, path: str | Path) -> Recording:
        try:
            with np.load(opened, allow_pickle=False) as file:
                content = {name: file[name] for name in _SAVED if name in file}
                return cls(
                    **{name: content[name] for name in cls._DTYPES if name in content},
                    label=str(content["label"]),
                    block_length=content["block_length"],
                    environment=parse_json(str(content["environment"]), "environment"),
                )
        except Exception as error:  # of any kind: zip, its compressions and numpy's header have their own
            reason = str(error) or type(error).__name__
            raise ValueError(f"{path} holds no recording of episodes: {reason}") from error


_PER_POSITION = ("reveal_step", "confidence", "tokens", "remasks", "rewritten", "kept")
_SAVED = tuple(field.name for field in fields(Recording))


class Recorder:
    """Watches the decode loop and keeps what a ``Recording`` is made of.

    Args:
        engine: The engine that decodes.
        episodes: Number of episodes.
    """

    def __init__(self, engine: Engine, episodes: int) -> None:
        self._engine = engine
        shape = (episodes, engine.length)
        self._steps = np.zeros(episodes, dtype=np.int64)
        self._reveal_step = np.zeros(shape, dtype=np.int64)
        self._confidence = np.full(shape, np.nan, dtype=np.float32)
        self._tokens = np.zeros(shape, dtype=np.int64)
        self._first = np.full(shape, -1)  # the first token that was written
        self._remasks = np.zeros(shape, dtype=np.int64)
        self._block_offset = np.zeros(episodes, dtype=np.int64)
        self._block_length = np.ones(episodes, dtype=np.int64)

    def after_step(self, rows: IntArray, episodes: IntArray) -> None:
        """Notes what the last action revealed; call it before the dLLM predicts again.

        Args:
            rows: ``(R,)`` rows of the engine that took a step.
            episodes: ``(R,)`` which episodes they are at.
        """
        canvas = self._engine.canvas
        new = canvas.just_revealed[rows]  # (R, L)
        tokens = canvas.completions(rows)
        self._steps[episodes] = canvas.steps[rows]
        steps = np.where(new, canvas.steps[rows, None], self._reveal_step[episodes])
        self._reveal_step[episodes] = np.where(canvas.masked[rows], 0, steps)
        self._confidence[episodes] = np.where(new, self._engine.confidence[rows], self._confidence[episodes])
        self._first[episodes] = np.where(new & (self._first[episodes] < 0), tokens, self._first[episodes])
        self._remasks[episodes] = canvas.remasked[rows]
        self._tokens[episodes] = tokens
        self._block_offset[episodes] = canvas.block_offsets(rows)
        self._block_length[episodes] = canvas.block_lengths[rows]

    def recording(self, label: str, score: FloatArray, problem: IntArray) -> Recording:
        """Everything seen so far, with what is known about episodes only at their ends."""
        choices, back = self._engine.blocks.choices, self._engine.moves.can_take_back
        return Recording(
            label=label,
            reveal_step=self._reveal_step,
            confidence=self._confidence,
            steps=self._steps,
            score=score,
            problem=problem,
            block_length=self._block_length if len(choices) > 1 else choices[0],
            block_offset=self._block_offset,
            tokens=self._tokens,
            text_length=_first(np.isin(self._tokens, list(self._engine.end_token_ids))),
            remasks=self._remasks if back else None,
            rewritten=(self._remasks > 0) & (self._tokens != self._first) if back else None,
            environment=self._engine.description(),
        )


def self_consistency(recording: Recording, engine: Engine, batch_size: int = 64) -> Recording:
    """Asks the dLLM about every token of the finished completions: would it write the same again?

    Each position is masked alone, and kept if the most probable token there, given all the others, is the one
    that stands there (a dLLM that attends in blocks sees those up to its own block). A token that is not kept
    was revealed too early: what came later speaks against it. The reverse does not hold: a consistent text
    can be wrong. Costs one row of a forward per position; caches are not used.

    Args:
        recording: Episodes of the engine's task and dLLM, with tokens.
        engine: Gives the prompts and the dLLM.
        batch_size: Rows per forward.

    Returns:
        The recording with ``kept``.

    Raises:
        ValueError: If the recording has no tokens.
    """
    if recording.tokens is None:
        raise ValueError(f"the recording {recording.label!r} has no tokens")
    import torch

    backend = engine.backend
    kept = np.zeros(recording.tokens.shape, dtype=bool)
    for episode, (problem, completion) in enumerate(zip(recording.problem, recording.tokens, strict=True)):
        prompt = engine.prompt(problem)
        canvas = np.concatenate([prompt, completion]).astype(np.int64)  # (P + L,)
        for positions in np.array_split(np.arange(recording.length), -(-recording.length // batch_size)):
            rows = np.arange(len(positions))
            tokens = np.tile(canvas, (len(positions), 1))  # (R, P + L), row i hides position i of the chunk
            tokens[rows, len(prompt) + positions] = backend.mask_token_id
            prediction = backend.predict(
                torch.from_numpy(tokens),
                torch.ones(tokens.shape, dtype=torch.int64),
                slice(len(prompt), None),
            )
            written = prediction.tokens.cpu().numpy()[rows, positions]  # (R,)
            kept[episode, positions] = written == completion[positions]
    return replace(recording, kept=kept)


def _first(true: BoolArray) -> IntArray:
    """``(N,)``: the first true column of ``(N, L)``, L if there is none."""
    first: IntArray = np.where(true.any(axis=1), true.argmax(axis=1), true.shape[1])
    return first
