"""Text from a dLLM, with any agent deciding what is revealed when: for people who just want text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from dllm_gym.envs.engine import Engine
from dllm_gym.evaluation.agents import as_agent
from dllm_gym.evaluation.decode import decode
from dllm_gym.evaluation.home import at_home, at_play, dllm_of
from dllm_gym.evaluation.kept import Lines, lines_of
from dllm_gym.prompts import Prompt, PromptTask, check_prompts, is_one_prompt
from dllm_gym.trained import trained_length

if TYPE_CHECKING:
    from dllm_gym.backends.base import Backend, Message

MASK_SIGN = "░"  # how a mask looks in a text that is being written
_LENGTH = 256  # of a completion, where nothing says what the dLLM was trained for


@dataclass(frozen=True)
class Generation:
    """A text and what it took.

    Attributes:
        prompt: What it answers, as it was given.
        text: What the dLLM wrote.
        tokens: The text's token ids: everything before the first end token.
        steps: Forwards of the dLLM that this row took part in (NFE).
    """

    prompt: Prompt
    text: str
    tokens: tuple[int, ...]
    steps: int

    @property
    def tokens_per_step(self) -> float:
        """Tokens of the text per forward; writing one after the other has at most 1."""
        return len(self.tokens) / self.steps

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {**asdict(self), "tokens": list(self.tokens), "tokens_per_step": self.tokens_per_step}


@overload
def generate(
    prompts: str | Sequence[Message],
    agent: Any = ...,
    backend: str | Path | Backend | None = ...,
    **options: Any,
) -> Generation: ...


@overload
def generate(
    prompts: Iterable[Prompt], agent: Any = ..., backend: str | Path | Backend | None = ..., **options: Any
) -> list[Generation]: ...


def generate(  # type: ignore[misc]  # the overloads leave the options to this one
    prompts: str | Sequence[Message] | Iterable[Prompt],
    agent: Any = "fast-dllm:threshold=0.9",
    backend: str | Path | Backend | None = None,
    *,
    completion_length: int | None = None,
    block_length: int | str | None = "own",
    temperature: float = 0.0,
    stop_at_eos: bool = True,
    revealed_confidence: str = "one",
    view: str = "completion",
    top_k: int = 8,
    seed: int = 0,
    batch_size: int = 64,
    backend_kwargs: Mapping[str, Any] | None = None,
    on_step: Callable[[int, str, int], None] | None = None,
    on_text: Callable[[int, Generation], None] | None = None,
    output: str | Path | None = None,
) -> Generation | list[Generation]:
    """Writes a text for every prompt.

    A row of the batch that has finished takes the next prompt, so that no forward is spent on it. With the
    same prompts, completion length and seed the texts are those of ``dllm_gym.evaluate``.

    Args:
        prompts: A text, the messages of a chat (``[{"role": "user", "content": "..."}]``), token ids, which
            no chat template is put around, or any iterable of these.
        agent: Whatever ``as_agent`` takes: a strategy or its name, a saved policy's path, ``policy:NAME``, an
            object with ``act``, a function.
        backend: What ``load_backend`` takes, or a backend; ``None`` is the dLLM that the agent was trained
            with, or ``tiny-arithmetic``.
        completion_length: Positions to write in. ``None`` takes the longest completion a dLLM from
            ``dllm-gym pretrain`` was trained on, and for others 256.
        block_length: Width of the semi-autoregressive window; ``None`` is full diffusion, or the dLLM's own
            block if it attends in blocks; ``"own"`` is what the agent was trained with, or ``None``. An
            agent that was trained with several has to be told one of them.
        temperature: 0 writes the most probable tokens; above, tokens are drawn.
        stop_at_eos: End a row as soon as an end token and everything before it are revealed.
        revealed_confidence: What the agent sees, as in ``UnmaskEnv``, like what follows: a policy wants what
            it was trained with.
        view: See there.
        top_k: See there.
        seed: Seeds the agent's draws and the token noise, per place in ``prompts``.
        batch_size: Rows decoded at once. Changes the speed, not the result.
        backend_kwargs: Further arguments of ``load_backend``, such as ``{"dtype": "auto"}``.
        on_step: Called after every step of every row with the prompt's index, the text so far, in which
            ``MASK_SIGN`` stands for a mask, and the number of the step.
        on_text: Called with every finished text and its prompt's index, in the order they finish.
        output: A file of JSON lines that gets every text as soon as it is finished. Texts that are there are
            not written again, so that interrupted work goes on; a dLLM is known by its name or path only.

    Returns:
        One ``Generation`` for a single prompt; else a list of them in the order of the prompts.

    Raises:
        ValueError: For arguments out of range, prompts the dLLM cannot read or has no room for, or an
            ``output`` that holds something else; before anything is written.
    """
    resolved = as_agent(agent)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    one = is_one_prompt(prompts)
    asked = check_prompts([prompts] if one else prompts)
    if not asked:
        return []
    engine = writing_engine(
        resolved,
        min(batch_size, len(asked)),
        asked,
        backend,
        completion_length=completion_length,
        block_length=block_length,
        backend_kwargs=backend_kwargs,
        temperature=temperature,
        stop_at_eos=stop_at_eos,
        revealed_confidence=revealed_confidence,
        view=view,
        top_k=top_k,
    )
    for index, prompt in enumerate(asked):  # what would otherwise stop the work half-way
        check_room(engine, index, f"prompt {index + 1}", prompt)
    generations: list[Generation | None] = [None] * len(asked)
    lines = None if output is None else lines_of(output, engine, resolved, seed)
    for index, generation in texts_found(lines, asked).items() if lines is not None else ():
        generations[index] = generation
    missing = [index for index, generation in enumerate(generations) if generation is None]
    after_step = None if on_step is None else _reporter(on_step, engine, missing)
    for episode in decode(resolved, engine, missing, seed, after_step):
        index = missing[episode.position]
        ends = np.flatnonzero(np.isin(episode.tokens, list(engine.end_token_ids)))
        tokens = episode.tokens[: ends[0]] if len(ends) else episode.tokens
        generation = Generation(
            asked[index], episode.info["completion"], tuple(tokens.tolist()), episode.info["nfe"]
        )
        generations[index] = generation
        if lines is not None:
            lines.add(index, generation.to_json())
        if on_text is not None:
            on_text(index, generation)
    finished = [generation for generation in generations if generation is not None]
    return finished[0] if one else finished


def texts_found(lines: Lines, asked: Sequence[Prompt]) -> dict[int, Generation]:
    """The texts that were there, by the index of their prompts.

    Raises:
        ValueError: If there is anything else.
    """
    return {
        index: _text(content, asked, index, f"{lines.path}, index {index}")
        for index, content in lines.found.items()
    }


def _text(content: Mapping[str, Any], asked: Sequence[Prompt], index: int, place: str) -> Generation:
    prompt, text, tokens, steps = (content.get(name) for name in ("prompt", "text", "tokens", "steps"))
    if not 0 <= index < len(asked) or prompt != json.loads(json.dumps(asked[index])):
        raise ValueError(f"{place} answers another prompt: {prompt!r:.80}; give another file")
    if not isinstance(text, str) or not _is_count(steps) or not isinstance(tokens, list):
        raise ValueError(f"{place} is no text of this kind; give another file")
    if not steps or not all(map(_is_count, tokens)):
        raise ValueError(f"{place} has impossible steps or tokens; give another file")
    return Generation(asked[index], text, tuple(tokens), int(steps))


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def writing_engine(
    agent: Any,
    rows: int,
    prompts: Sequence[Prompt] | Mapping[int, Prompt],
    backend: str | Path | Backend | None,
    *,
    completion_length: int | None,
    block_length: int | str | None,
    **options: Any,
) -> Engine:
    """An engine that answers prompts, where its agent is at home unless told otherwise.

    Args:
        agent: As ``as_agent`` gives it.
        rows: At once.
        prompts: By their indices; one of them at least is there from the beginning.
        backend: As in ``generate``, like what follows.
        completion_length: See there.
        block_length: See there.
        **options: Further arguments of ``UnmaskEnv``.

    Raises:
        ValueError: For arguments out of range.
    """
    if isinstance(block_length, str) and block_length != "own":
        raise ValueError(f"block_length must be a whole number, None or 'own', got {block_length!r}")
    told = {"backend": backend, "block_length": block_length}
    untold = {"backend": None, "block_length": "own"}
    home = at_home([agent], {key: value for key, value in told.items() if value != untold[key]})
    backend, block_length = dllm_of(home), home.get("block_length")
    if isinstance(block_length, Sequence):
        raise ValueError(f"block_length must be one for all texts, got {block_length!r}: choose one of them")
    source = str(backend) if isinstance(backend, Path) else backend
    return Engine(
        rows,
        backend=source,
        task=PromptTask(prompts, _length_of(source) if completion_length is None else completion_length),
        block_length=block_length,
        observe=tuple(getattr(agent, "requires", ())),
        **at_play([agent], {}),
        **options,
    )


def check_room(engine: Engine, index: int, name: str, prompt: Prompt) -> int:
    """The number of tokens of a prompt; ``name`` is for the message.

    Raises:
        ValueError: If the dLLM has no words or no room for it.
    """
    room, taken = getattr(engine.backend, "max_length", None), len(engine.prompt(index))
    if room is not None and taken + engine.length > room:
        raise ValueError(
            f"{name} takes {taken} tokens, which with completion_length {engine.length} is more "
            f"than this dLLM's {room}: {prompt!r}"
        )
    return taken


def _length_of(backend: str | Backend) -> int:
    """The longest completion the dLLM was trained on, as far as that is known."""
    if not isinstance(backend, str):
        return _LENGTH
    return trained_length(backend) or _LENGTH


def _reporter(
    on_step: Callable[[int, str, int], None], engine: Engine, asked: Sequence[int]
) -> Callable[[NDArray[np.int64], NDArray[np.int64]], None]:
    backend = engine.backend
    mask = backend.decode([backend.mask_token_id]).strip()

    def report(rows: NDArray[np.int64], positions: NDArray[np.int64]) -> None:
        completions, steps = engine.canvas.completions(rows), engine.canvas.steps[rows]
        for position, completion, step in zip(
            positions.tolist(), completions.tolist(), steps.tolist(), strict=True
        ):
            text = backend.decode(completion)
            on_step(asked[position], text.replace(mask, MASK_SIGN) if mask else text, step)

    return report
