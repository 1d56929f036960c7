"""What a peer's loop writes and what ours does, step by step from the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import torch

import dllm_gym
from dllm_gym.backends import ASSETS
from dllm_gym.backends.transformers_backend import TransformersBackend
from dllm_gym.evaluation import as_agent

BACKEND, TASK = "tiny-arithmetic", "arithmetic"
LENGTH = 48  # of the embedded model's completions
CLOSE = 1e-5
SOFTENED = 4.0  # what logits are divided by


@dataclass(frozen=True)
class Case:
    """One setting of a peer's loop and the strategy that is to do the same.

    Attributes:
        agent: The strategy.
        block_length: That of the environment, and of the loop.
        peer: What the loop is told besides.
        threshold: What confidences are compared with; one that close to it may fall on either side.
        env: What our environment is told besides.
    """

    agent: str
    block_length: int
    peer: Mapping[str, Any]
    threshold: float | None = None
    env: Mapping[str, Any] = field(default_factory=dict)


Loop = Callable[[Any, list[list[int]], Case, Any], np.ndarray]
"""Takes model, B prompts, case and backend; gives the completions ``(B, L)``."""


class Recorded:
    """A dLLM as the peers' loops call one; remembers the first row's canvas ``(L,)`` of every call.

    Args:
        model: The transformers model.
        length: L.
        excluded: Tokens kept from having any probability.
    """

    def __init__(self, model: Any, length: int, excluded: list[int]) -> None:
        self.device, self.dtype, self.config, self._model = model.device, model.dtype, model.config, model
        self._length, self._excluded = length, excluded
        self.canvases: list[np.ndarray] = []

    def __call__(
        self,
        tokens: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        canvas: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        output_attentions: bool = False,
        **_: Any,
    ) -> Any:
        """The model's output, with ``logits``, and ``attentions`` where they are asked for.

        What is remembered is the end of ``tokens``, or of ``canvas`` where they are more than the text.
        """
        self.canvases.append((tokens if canvas is None else canvas)[0, -self._length :].numpy().copy())
        asked = {"position_ids": position_ids, "output_attentions": output_attentions}
        asked = {name: value for name, value in asked.items() if value is not None and value is not False}
        output = self._model(tokens, attention_mask=attention_mask, **asked)
        output.logits[..., self._excluded] = -torch.inf
        return output


def run_ours(env: Any, agent: Any, problem: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The canvases ``(L,)`` of our episode, the last one included, and the confidences before every step.

    Where a token stands, that is its probability if the agent observes it, and else what it was written with.
    """
    observation, _ = env.reset(options={"problem": problem})
    canvases, confidences, terminated = [observation["tokens"]], [observation["confidence"]], False
    while not terminated:
        standing = observation.get("written", confidences[-1])
        confidences.append(np.where(observation["mask"] != 0, observation["confidence"], standing))
        observation, _, terminated, _, _ = env.step(agent.act(observation))
        canvases.append(observation["tokens"])
    return canvases, confidences[1:]


@contextmanager
def our_draws(seed: int, length: int) -> Iterator[None]:
    """Gives ``torch.rand`` the draws of our strategy ``random``, turned round: a peer reveals the largest."""
    generator = np.random.default_rng(seed)

    def rand(*size: Any, **_: Any) -> torch.Tensor:
        rows, columns = size if len(size) == 2 else size[0]
        drawn = torch.zeros(rows, columns, dtype=torch.float64)
        drawn[:, -length:] = torch.from_numpy(1 - generator.random(length))
        return drawn

    with patch.object(torch, "rand", rand):
        yield


def judge(
    theirs: list[np.ndarray], ours: list[np.ndarray], confidences: list[np.ndarray], threshold: float | None
) -> str:
    """``same``, ``tie`` or ``difference``, by the first step at which the canvases part."""
    for at, (one, other) in enumerate(zip(theirs[1:], ours[1:], strict=False)):
        if not np.array_equal(one, other):
            confidence, before = confidences[at], ours[at]
            only_one = confidence[(one != before) & (other == before)]
            only_other = confidence[(other != before) & (one == before)]
            decisive, mask = np.concatenate([only_one, only_other]), ours[0]
            swapped = len(decisive) > 1 and (one == mask).sum() == (other == mask).sum()
            close = swapped and np.ptp(decisive) < CLOSE
            if threshold is not None:
                close |= bool(len(decisive)) and np.abs(decisive - threshold).max() < CLOSE
            return "tie" if close else "difference"
    return "same" if len(theirs) == len(ours) else "difference"


def softened() -> TransformersBackend:
    """The embedded dLLM with its logits divided."""
    backend = TransformersBackend(ASSETS / BACKEND, dtype="float32", device="cpu")
    with torch.no_grad():
        backend.model.get_output_embeddings().weight.div_(SOFTENED)
    return backend


def compare_canvases(
    loop: Loop, case: Case, backend: Any, problems: int, excluded: list[int]
) -> dict[str, Any]:
    """How often the peer's loop and ours write the same canvases, and in how many forwards."""
    agent: Any = as_agent(case.agent)
    env: Any = gym.make(
        dllm_gym.ENV_ID,
        task=TASK,
        split="test",
        backend=backend,
        block_length=case.block_length,
        observe=(*agent.requires, "tokens"),
        **agent.plays,
        **case.env,
    )
    engine = env.unwrapped.engine
    model = Recorded(backend.model, engine.length, excluded)
    counts = dict.fromkeys(("same", "tie", "difference", "same_text"), 0)
    forwards = {"peer": 0, "ours": 0}
    for index in range(problems):
        model.canvases.clear()
        prompt = backend.encode_prompt(engine.task.problem(index).prompt)
        with our_draws(index, engine.length):
            (completion,) = loop(model, [prompt], case, backend)
        theirs = [*model.canvases, completion]
        if hasattr(agent, "seed"):
            agent.seed([0], [index])
        ours, confidences = run_ours(env, agent, index)
        counts[judge(theirs, ours, confidences, case.threshold)] += 1
        counts["same_text"] += np.array_equal(theirs[-1], ours[-1])
        forwards["peer"] += len(theirs) - 1
        forwards["ours"] += len(ours) - 1
    return {**counts, "forwards_per_problem": {name: total / problems for name, total in forwards.items()}}
