"""A policy as a decoding algorithm of SGLang, which serves LLaDA2 and SDAR.

SGLang finds its algorithms as modules of ``sglang.srt.dllm.algorithm`` that have an ``Algorithm``, and calls
it by the name of the class. The interface is that of sglang 0.5.23 (``srt/dllm/algorithm/base.py``).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dllm_agents.serving.blocks import BlockWriter
from dllm_gym.arguments import call_named

try:
    from sglang.srt.dllm.algorithm.base import DllmAlgorithm
except ImportError as error:
    raise ImportError(f"this module is for use inside SGLang 0.5.23 or newer: {error}") from error


class UnmaskingPolicy(DllmAlgorithm):  # type: ignore[misc]
    """Reveals what an agent says.

    Args:
        config: SGLang's ``DllmConfig``. Its ``algorithm_config``, the file given as
            ``--dllm-algorithm-config``, holds the arguments of ``BlockWriter`` but for ``mask_id``, and
            ``block_size`` if SGLang shall use another than the model's.

    Raises:
        ValueError: For unknown or missing arguments.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        options = {name: value for name, value in config.algorithm_config.items() if name != "block_size"}
        keywords = {**options, "mask_id": config.mask_id}
        self._writer: BlockWriter = call_named("the dLLM algorithm's configuration", BlockWriter, keywords)

    def init_step_state(self, forward_batch: Any) -> list[Any]:
        """What SGLang keeps of each block while it is written."""
        return [{"steps": 0} for _ in range(forward_batch.batch_size)]

    def step(self, forward_batch: Any, full_logits: Tensor, states: list[Any]) -> list[bool]:
        """Writes into the blocks that hold masks; says which were complete already.

        Args:
            forward_batch: Its ``input_ids`` ``(B * n,)`` int64 are changed in place.
            full_logits: ``(B * n, V)``.
            states: Those of ``init_step_state``, changed in place.

        Returns:
            B values: whether the forward that gave the logits saw the finished block. SGLang keeps the keys
            and values of the last forward, so a block is not done in the step that completes it.
        """
        tokens = forward_batch.input_ids.view(forward_batch.batch_size, self.block_size)
        masked = tokens == self.mask_id
        if forward_batch.dllm_prompt_mask is not None:  # a prompt may hold the mask token
            masked &= ~forward_batch.dllm_prompt_mask
        logits = full_logits.view(*tokens.shape, -1)
        written = self._writer.write(logits, tokens, masked, [state["steps"] for state in states])
        forward_batch.input_ids.copy_(written.view(-1))
        unfinished: list[bool] = masked.any(dim=1).tolist()
        for state, stepped in zip(states, unfinished, strict=True):
            state["steps"] += stepped
        return [not stepped for stepped in unfinished]


Algorithm = UnmaskingPolicy
