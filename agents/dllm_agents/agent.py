"""A learned policy as an agent: observations in, actions out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dllm_agents.distributions import bernoulli_mode, sample_bernoulli, with_argmax_fallback
from dllm_agents.networks import UnmaskTransformer

DECODINGS = ("sample", "deterministic")


class LearnedPolicy:
    """Acts with an ``UnmaskTransformer``; every step of a row that has candidates reveals something.

    Each row of the batch has its own random generator, so its draws depend neither on its neighbours nor
    on the batch size.

    Args:
        network: The policy network; it is used as it is, so its current weights count.
        decoding: ``"sample"`` draws from the masked Bernoulli, and takes the largest logit if nothing was
            drawn (the paper's Bernoulli-argmax); ``"deterministic"`` reveals what has probability > 0.5,
            with the same fallback.
        name: Shown in tables and plots.
        seed: Row r draws from ``default_rng([seed, r])`` unless ``seed(rows, seeds)`` says otherwise.

    Attributes:
        label: Name and decoding, for legends.
        parameters: What distinguishes this agent from others of the same name, JSON-able.
        requires: The observation keys ``act`` reads.

    Raises:
        ValueError: For an unknown decoding.
    """

    def __init__(
        self, network: UnmaskTransformer, *, decoding: str = "sample", name: str = "policy", seed: int = 0
    ) -> None:
        if decoding not in DECODINGS:
            raise ValueError(f"unknown decoding {decoding!r}; known: {', '.join(DECODINGS)}")
        self.network = network
        self.decoding = decoding
        self.name = name
        self.label = f"{name} ({decoding})"
        self.parameters: dict[str, Any] = {"decoding": decoding}
        self.requires = tuple(dict.fromkeys((*network.config.requires, "action_mask")))
        self._seed = seed
        self._generators: dict[int, np.random.Generator] = {}

    def seed(self, rows: Sequence[int], seeds: Sequence[int | Sequence[int]]) -> None:
        """Gives each of ``rows`` a fresh generator from the seed at the same place in ``seeds``."""
        for row, seed in zip(rows, seeds, strict=True):
            self._generators[int(row)] = np.random.default_rng(seed)

    @torch.inference_mode()
    def act(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.int8]:
        """Actions, int8, for a batch ``(B, L)`` or a single observation ``(L,)``.

        Raises:
            ValueError: If an observation key is missing or the network returns NaN.
        """
        missing = [key for key in self.requires if key not in observation]
        if missing:
            raise ValueError(f"the observation lacks {missing}; the policy reads {', '.join(self.requires)}")
        device = self.network.output_proj.weight.device
        single = np.ndim(observation["action_mask"]) == 1
        inputs = {key: torch.tensor(observation[key], device=device) for key in self.requires}
        if single:
            inputs = {key: value[None] for key, value in inputs.items()}
        logits, action_mask = self.network(inputs), inputs["action_mask"]
        if logits.isnan().any():
            raise ValueError(
                "the policy network returned NaN logits; its weights or its observation are broken"
            )
        if self.decoding == "deterministic":
            actions = bernoulli_mode(logits, action_mask)
        else:
            uniforms = torch.as_tensor(self._uniforms(action_mask.cpu().numpy()), device=device)
            actions = sample_bernoulli(logits, action_mask, uniforms=uniforms)
            actions = with_argmax_fallback(actions, logits, action_mask)
        array: NDArray[np.int8] = actions.cpu().numpy()
        return array[0] if single else array

    def _uniforms(self, action_mask: NDArray[Any]) -> NDArray[np.float32]:
        uniforms = np.zeros(action_mask.shape, dtype=np.float32)
        for row in np.flatnonzero(action_mask.any(axis=1)).tolist():
            generator = self._generators.get(row)
            if generator is None:
                generator = self._generators[row] = np.random.default_rng([self._seed, row])
            generator.random(dtype=np.float32, out=uniforms[row])
        return uniforms
