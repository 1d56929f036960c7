"""What the adapters share: from the logits of a block to the tokens that stand in it after a step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from dllm_gym.backends.base import FROM_LOGITS, predict_from_logits
from dllm_gym.envs.checks import as_bits
from dllm_gym.envs.engine import select_best_where_empty
from dllm_gym.envs.observations import ALWAYS_OBSERVED, REVEALED_CONFIDENCE
from dllm_gym.envs.statistics import STATISTICS, Sizes, Statistics
from dllm_gym.evaluation.agents import as_agent

# what a server's logits tell; its rows change their requests, so that nothing is known of the step before
TOLD = tuple(
    name
    for name, one in STATISTICS.items()
    if set(one.needs) <= {*FROM_LOGITS, "written"} and not one.remembers
)


class BlockWriter:
    """Lets an agent write into blocks of a server's token buffer.

    A server shows the logits of one block and nothing else, so the agent sees that block as an episode of
    its own: what it observes, and what becomes of its action, is as in an environment whose completion is
    the block (``completion_length`` n, ``on_empty="best"``). With one block per completion that is the
    environment it was trained in.

    Args:
        agent: Whatever ``as_agent`` takes, such as ``"runs/mine:deterministic"``.
        mask_id: The mask token; it is never written.
        revealed_confidence: As in ``UnmaskEnv``.
        top_k: k of the observation ``top_k``.

    Raises:
        ValueError: For an agent that keeps state from step to step or reads what logits don't tell.
    """

    def __init__(self, agent: Any, mask_id: int, *, revealed_confidence: str = "one", top_k: int = 8) -> None:
        self._agent = as_agent(agent)
        if hasattr(self._agent, "reset"):
            raise ValueError(
                f"{agent!r} keeps state from step to step; a server's rows change their requests"
            )
        if revealed_confidence not in REVEALED_CONFIDENCE:
            accepted = ", ".join(REVEALED_CONFIDENCE)
            raise ValueError(f"unknown revealed_confidence {revealed_confidence!r}; choose one of {accepted}")
        wanted = tuple(getattr(self._agent, "requires", ()))
        unknown = [key for key in wanted if key not in (*ALWAYS_OBSERVED, *TOLD)]
        if unknown:
            raise ValueError(
                f"{agent!r} reads {', '.join(unknown)}, which a server does not tell; what a conditioned "
                "policy is told can be said when it is named, as in policy:arithmetic-any:target_steps=8"
            )
        self._statistics = tuple(key for key in wanted if key in TOLD and key not in ALWAYS_OBSERVED)
        self._mask_id, self._top_k = mask_id, top_k
        self._shows_revealed = revealed_confidence == "model"

    @torch.no_grad()
    def write(self, logits: Tensor, tokens: Tensor, masked: Tensor, steps: ArrayLike) -> Tensor:
        """The block after the agent's next action.

        Args:
            logits: ``(B, n, V)``, any float dtype; row i is about token i.
            tokens: ``(B, n)`` int64, the block as it stands.
            masked: ``(B, n)`` bool, where something may be written.
            steps: B numbers, the steps each row has used in this block.

        Returns:
            ``(B, n)`` int64: ``tokens`` with the dLLM's choices at one or more masked positions of every row
            that has one.

        Raises:
            ValueError: For logits that are NaN or infinite, or an action of another shape or of no bits.
        """
        if not masked.any():
            return tokens
        rows, length, vocabulary = logits.shape
        sizes = Sizes(length, vocabulary, self._mask_id, self._top_k)
        statistics = Statistics(rows, sizes, self._statistics)
        prediction = predict_from_logits(
            logits, self._mask_id, statistics=statistics.needs, top_k=self._top_k, standing=tokens
        )
        statistics.take(np.arange(rows), prediction)
        candidates = masked.cpu().numpy()
        shown = np.ones_like(candidates) if self._shows_revealed else candidates
        used = np.asarray(steps, dtype=np.float32)[:, None]
        observation = {
            "action_mask": candidates.astype(np.int8),
            "mask": candidates.astype(np.int8),
            "progress": used / np.float32(candidates.shape[1]),
            **statistics.observation(shown),
        }
        selected = as_bits(self._agent.act(observation), candidates.shape) & candidates
        select_best_where_empty(selected, candidates, observation["confidence"])
        return torch.where(torch.from_numpy(selected).to(tokens.device), prediction.tokens, tokens)
