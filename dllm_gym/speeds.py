"""What a rule saves on this machine: completions per second, beside those of a plain decoding loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from dllm_gym.backends import Backend, load_backend
from dllm_gym.bench import now
from dllm_gym.envs.canvas import block_numbers
from dllm_gym.envs.engine import Engine
from dllm_gym.evaluation import evaluate

PLAIN_LOOP = "plain loop"
RULES = ("fast-dllm:threshold=0.9", "eb-sampler:gamma=0.1")  # compared with it where nothing is said


@dataclass(frozen=True)
class Speed:
    """How fast problems were answered, and how well.

    Attributes:
        label: The agent's, or ``plain loop``.
        batch_size: Rows at once.
        completions_per_second: From the problem that is drawn to the answer that is scored.
        steps: Forwards per completion, mean.
        accuracy: Share of the problems that were solved.
    """

    label: str
    batch_size: int
    completions_per_second: float
    steps: float
    accuracy: float

    def to_json(self) -> dict[str, Any]:
        """As a dictionary, rounded."""
        return {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


def measure_speeds(
    backend: str | Backend,
    agents: Sequence[Any] = RULES,
    *,
    batch_size: int = 64,
    problems: int | None = None,
    backend_kwargs: Mapping[str, Any] | None = None,
    **env_kwargs: Any,
) -> Iterator[Speed]:
    """Measures a plain loop, then agents on the same problems, each when the next one is asked for.

    The loop is what a script does: a batch to its end, the surest token of the block per step, so as many
    forwards as positions.

    Args:
        backend: A name, directory or hub id, or a loaded backend.
        agents: What ``evaluate`` takes.
        batch_size: Rows decoded at once, by the loop and by the agents.
        problems: Test problems that each of them answers; ``None``: two batches, and 8 at least.
        backend_kwargs: For loading the backend.
        **env_kwargs: Further arguments of ``UnmaskEnv``, such as ``task`` and ``block_length``.

    Yields:
        The plain loop's speed, then the agents' in their order.

    Raises:
        ValueError: For sizes below 1, and for what ``evaluate`` refuses.
    """
    asked = max(2 * batch_size, 8) if problems is None else problems
    if batch_size < 1 or asked < 1:
        raise ValueError(f"batch_size and problems must be at least 1, got {batch_size} and {asked}")
    loaded: Any = load_backend(backend, **(backend_kwargs or {})) if isinstance(backend, str) else backend
    env_kwargs = {**env_kwargs, "backend": loaded}
    engine = Engine(batch_size, split="test", **env_kwargs)
    indices = np.arange(min(asked, engine.task.num_problems or asked))
    batches = np.split(indices, range(batch_size, len(indices), batch_size))
    _decode_plainly(engine, batches[0], steps=2)  # the first forwards take longer
    started = now()
    scores = [score for batch in batches for score in _decode_plainly(engine, batch, engine.length)]
    speed = len(indices) / (now() - started)
    yield Speed(PLAIN_LOOP, batch_size, speed, float(engine.length), float(np.mean(np.equal(scores, 1))))
    for agent in agents:
        started = now()
        result = evaluate(agent, len(indices), "test", batch_size=batch_size, **env_kwargs)
        speed = len(indices) / (now() - started)
        yield Speed(result.label, batch_size, speed, result.nfe_mean, result.accuracy)


@torch.inference_mode()
def _decode_plainly(engine: Engine, problems: np.ndarray, steps: int) -> list[float]:
    """Scores of some problems after so many steps. The engine only says what the first canvas is."""
    backend = engine.backend
    rows = np.arange(len(problems))
    engine.start(rows, problems)
    canvas = engine.canvas
    arrays = canvas.model_input(rows)
    blocks = block_numbers(engine.length, canvas.block_lengths[rows], canvas.block_offsets(rows))
    tokens, real, block_of = (torch.from_numpy(array).to(backend.device) for array in (*arrays, blocks))
    completion = tokens[:, -engine.length :]  # (B, L), a view
    masked = torch.ones_like(completion, dtype=torch.bool)
    for _ in range(steps):
        found = backend.predict(tokens, real, slice(tokens.shape[1] - engine.length, None))
        active = block_of.masked_fill(~masked, engine.length).amin(1, keepdim=True)  # (B, 1)
        surest = found.confidence.masked_fill(~masked | (block_of != active), -1.0).argmax(1, keepdim=True)
        completion.scatter_(1, surest, found.tokens.gather(1, surest))
        masked.scatter_(1, surest, False)
    texts = map(backend.decode, completion.tolist())
    return [
        engine.task.score(text, engine.task.problem(int(index)))
        for text, index in zip(texts, problems, strict=True)
    ]
