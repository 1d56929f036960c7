"""A policy as a decoder of dInfer, which serves LLaDA, LLaDA-MoE and LLaDA2.

The interface is that of inclusionAI/dInfer, ``python/dinfer/decoding/parallel_strategy.py``, at commit
fce4e32804103baa5d55230dff0352da0cdd6ceb.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from dllm_agents.serving.blocks import BlockWriter

try:
    from dinfer.decoding.parallel_strategy import ParallelDecoder
except ImportError as error:
    raise ImportError(
        f"this module is for use with dInfer, from github.com/inclusionAI/dInfer: {error}"
    ) from error


class PolicyDecoder(ParallelDecoder):  # type: ignore[misc]
    """Reveals what an agent says; give it to ``BlockWiseDiffusionLLM`` and its kin as the ``decoder``.

    Those that lower a threshold from step to step (``IterSmooth...``) have no use for it.

    Args:
        agent: See ``BlockWriter``, like the last two.
        mask_id: The model's mask token.
        eos_id: Its end token, at which dInfer stops.
        revealed_confidence: See there.
        top_k: See there.
    """

    def __init__(
        self,
        agent: Any,
        *,
        mask_id: int,
        eos_id: int,
        revealed_confidence: str = "one",
        top_k: int = 8,
    ) -> None:
        super().__init__(temperature=0.0, mask_id=mask_id)
        self.eos_id = eos_id
        self._writer = BlockWriter(agent, mask_id, revealed_confidence=revealed_confidence, top_k=top_k)

    def block_init(self, block_x: Tensor, block_id: int) -> None:
        """Called when dInfer begins with a block, ``(B, n)``."""
        self._steps = np.zeros(len(block_x), dtype=np.int64)

    def decode(self, logits: Tensor, block_start: int, block_end: int, x: Any) -> None:
        """Writes into the columns ``block_start`` to ``block_end`` of ``x``.

        Args:
            logits: ``(B, n, V)`` of these columns.
            block_start: The first of them.
            block_end: The one behind the last.
            x: dInfer's ``TokenArray`` or a tensor, ``(B, T)`` int64.
        """
        tokens = x[:, block_start:block_end]
        masked = tokens == self.mask_id
        x[:, block_start:block_end] = self._writer.write(logits, tokens, masked, self._steps)
        self._steps += masked.any(dim=1).cpu().numpy()
