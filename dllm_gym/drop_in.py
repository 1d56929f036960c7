"""Decoders that take the place of LLaDA's and Dream's own in a script that has the model already.

Token ids in, token ids out, for the user's own model object; any agent decides what is revealed when. With
``from dllm_gym.drop_in import llada_generate as generate`` a script that used LLaDA's ``generate.py`` runs as
before, and ``agent="runs/mine"`` in the call makes a policy decode. Who has no model object yet takes
``dllm_gym.generate``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dllm_gym.backends.callable_backend import CallableBackend
from dllm_gym.envs.engine import Engine
from dllm_gym.evaluation.agents import FunctionAgent, as_agent
from dllm_gym.evaluation.decode import decode
from dllm_gym.evaluation.home import at_play
from dllm_gym.prompts import PromptTask
from dllm_gym.strategies.base import prefix, rank

Logits = Callable[[Tensor, Tensor], Tensor]


def llada_generate(
    model: Any,
    prompt: Tensor,
    attention_mask: Tensor | None = None,
    steps: int = 128,
    gen_length: int = 128,
    block_length: int = 128,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    remasking: str = "low_confidence",
    mask_id: int = 126336,
    *,
    agent: Any = None,
    eos_token_id: int | None = None,
    shift_logits: bool = False,
    seed: int | None = None,
    revealed_confidence: str = "one",
    view: str = "completion",
) -> Tensor:
    """``generate`` of LLaDA's ``generate.py`` (ML-GSAI/LLaDA), with any agent in place of its rule.

    What differs from the original without an agent: probabilities are computed in float32 whatever the
    model's dtype, the mask token is never written, and ``logits_eos_inf`` and ``confidence_eos_eot_inf`` are
    not there.

    Args:
        model: Anything where ``model(ids, attention_mask=mask).logits`` is ``(B, T, V)``. Without padding it
            gets ``attention_mask=None``.
        prompt: ``(B, P)`` int64.
        attention_mask: ``(B, P)``, 0 at padding, on whichever side; ``None`` means no padding.
        steps: Steps of LLaDA's rule, spread over the blocks. An agent takes as many as it needs.
        gen_length: L, positions to write in.
        block_length: Width of the semi-autoregressive window; LLaDA's rule wants a divisor of ``gen_length``.
        temperature: 0 writes the most probable tokens; above, tokens are drawn by the Gumbel-max trick.
        cfg_scale: Above 0, classifier-free guidance: every row is computed again with its prompt masked.
        remasking: Of LLaDA's rule, only ``low_confidence``; for ``random`` give ``agent="random:k=1"``.
        mask_id: The mask token.
        agent: Whatever ``as_agent`` takes; ``None`` is LLaDA's rule.
        eos_token_id: If given, a row ends once this token and everything before it are revealed, and the rest
            is filled with it.
        shift_logits: Whether row i - 1 of the logits is about token i.
        seed: Of the agent's draws and the token noise; ``None`` takes it from torch's global generator.
        revealed_confidence: What the agent sees, as in ``UnmaskEnv``, like what follows: a policy wants what
            it was trained with.
        view: See there.

    Returns:
        ``(B, P + L)`` int64 on the model's device: the prompts as they came, and the completions.

    Raises:
        ValueError: For arguments that contradict each other or are out of range.
    """
    if agent is None:
        agent = _llada_rule(steps, gen_length, block_length, remasking)

    def logits(tokens: Tensor, real: Tensor) -> Tensor:
        if cfg_scale > 0:
            blind = tokens.clone()
            blind[:, :-gen_length] = mask_id
            tokens, real = torch.cat([tokens, blind]), torch.cat([real, real])
        rows: Tensor = model(tokens, attention_mask=None if real.all() else real).logits
        if cfg_scale > 0:
            informed, uninformed = rows.chunk(2)
            rows = uninformed + (cfg_scale + 1) * (informed - uninformed)
        return _shifted(rows) if shift_logits else rows

    return _write(
        logits,
        prompt.to(getattr(model, "device", prompt.device)),
        attention_mask,
        agent,
        gen_length,
        block_length,
        temperature,
        mask_id,
        eos_token_id,
        seed,
        revealed_confidence=revealed_confidence,
        view=view,
    )


def dream_generate(
    model: Any,
    inputs: Tensor,
    attention_mask: Tensor | None = None,
    *,
    agent: Any,
    max_new_tokens: int,
    block_length: int | None = None,
    temperature: float = 0.0,
    mask_token_id: int = 151666,
    eos_token_id: int | None = None,
    seed: int | None = None,
    revealed_confidence: str = "one",
    view: str = "completion",
) -> Tensor:
    """``model.diffusion_generate(inputs, ...)`` of Dream (arXiv 2508.15487), with any agent.

    The agent stands for Dream's ``steps``, ``alg``, ``alg_temp``, ``top_p`` and ``top_k``.

    Args:
        model: Called as Dream's own sampler calls it: ``model(ids, attention_mask, position_ids).logits``,
            ``(B, T, V)``, where row i - 1 is about token i. With padding the mask is ``(B, 1, T, T)`` bool
            and positions count real tokens; without, they are ``"full"`` and ``None``.
        inputs: ``(B, P)`` int64.
        attention_mask: ``(B, P)``, 0 at padding, on whichever side; ``None`` means no padding.
        agent: Whatever ``as_agent`` takes.
        max_new_tokens: L, positions to write in.
        block_length: Width of the semi-autoregressive window; ``None`` is full diffusion, as in Dream.
        temperature: 0 writes the most probable tokens; above, tokens are drawn.
        mask_token_id: The mask token.
        eos_token_id: As in ``llada_generate``.
        seed: See there, like what follows.
        revealed_confidence: See there.
        view: See there.

    Returns:
        ``(B, P + L)`` int64 on the model's device: what Dream calls ``sequences``.

    Raises:
        ValueError: For arguments out of range.
    """

    def logits(tokens: Tensor, real: Tensor) -> Tensor:
        if real.all():
            return _shifted(model(tokens, "full", None).logits)
        positions = (real.cumsum(-1) - 1).masked_fill(real == 0, 1)
        pairs = (real[:, None, :] * real[:, :, None]).bool()[:, None]  # (B, 1, T, T)
        return _shifted(model(tokens, pairs, positions).logits)

    return _write(
        logits,
        inputs.to(getattr(model, "device", inputs.device)),
        attention_mask,
        agent,
        max_new_tokens,
        block_length,
        temperature,
        mask_token_id,
        eos_token_id,
        seed,
        revealed_confidence=revealed_confidence,
        view=view,
    )


class _Ids:
    """Text is token ids in decimal."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


def _write(
    logits: Logits,
    prompt: Tensor,
    attention_mask: Tensor | None,
    agent: Any,
    length: int,
    block_length: int | None,
    temperature: float,
    mask_id: int,
    eos_token_id: int | None,
    seed: int | None,
    **shown: Any,
) -> Tensor:
    """Prompts ``(B, P)`` with completions ``(B, L)`` behind them."""
    if prompt.dim() != 2 or not len(prompt):
        raise ValueError(f"prompts must be of shape (B, P) with B at least 1, got {tuple(prompt.shape)}")
    real = torch.ones_like(prompt) if attention_mask is None else attention_mask.to(prompt.device)
    if real.shape != prompt.shape:
        raise ValueError(
            f"attention_mask must be of the prompts' shape {tuple(prompt.shape)}, got {tuple(real.shape)}"
        )
    resolved = as_agent(agent)
    with torch.inference_mode():
        probe = torch.full((1, 1), mask_id, device=prompt.device)
        vocabulary = logits(probe, torch.ones_like(probe)).shape[-1]
    backend = CallableBackend(
        logits,
        _Ids(),
        mask_token_id=mask_id,
        # the engine wants one; without ``stop_at_eos`` it means nothing
        eos_token_id=int(mask_id == 0) if eos_token_id is None else eos_token_id,
        vocab_size=vocabulary,
        device=prompt.device,
    )
    texts = [_Ids().decode(ids[own > 0].tolist()) for ids, own in zip(prompt, real, strict=True)]
    engine = Engine(
        len(prompt),
        backend=backend,
        task=PromptTask(texts, length),
        block_length=block_length,
        temperature=temperature,
        observe=tuple(getattr(resolved, "requires", ())),
        stop_at_eos=eos_token_id is not None,
        **shown,
        **at_play([resolved], {}),
    )
    completions = np.empty((len(prompt), engine.length), dtype=np.int64)
    if seed is None:
        seed = int(torch.randint(2**31, ()))
    for episode in decode(resolved, engine, range(len(prompt)), seed):
        completions[episode.position] = episode.tokens
    if eos_token_id is not None:
        completions[np.logical_or.accumulate(completions == eos_token_id, axis=1)] = eos_token_id
    return torch.cat([prompt, torch.from_numpy(completions).to(prompt.device)], dim=1)


def _shifted(logits: Tensor) -> Tensor:
    """Row i about token i, where it was about token i + 1; the first token is predicted by its own."""
    return torch.cat([logits[:, :1], logits[:, :-1]], dim=1)


def _llada_rule(steps: int, length: int, block_length: int, remasking: str) -> FunctionAgent:
    """The most confident positions, as many in a step as LLaDA's linear noise schedule says.

    ``get_num_transfer_tokens`` of LLaDA's ``generate.py``: a block's positions are spread evenly over its
    share of the steps, and the first of these take what is left over. Steps in which the original would do
    nothing are left out, because ``prefix`` always takes one.
    """
    if remasking != "low_confidence":
        raise ValueError(f"remasking must be 'low_confidence', got {remasking!r}; or give an agent")
    blocks, rest = divmod(length, block_length) if block_length > 0 else (0, 0)
    if rest or blocks < 1 or steps < 1 or steps % blocks:
        raise ValueError(
            f"block_length must divide gen_length, and steps must be a multiple of the number of blocks; "
            f"got steps {steps}, gen_length {length}, block_length {block_length}"
        )
    steps_per_block = steps // blocks
    each, left_over = divmod(block_length, steps_per_block)

    def act(observation: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        used = np.rint(observation["progress"] * length).astype(int)  # (B, 1)
        count = each + (used % steps_per_block < left_over)
        order = rank(-observation["confidence"], observation["action_mask"] == 1)  # (B, L)
        return prefix(order, np.arange(length) < count)

    return FunctionAgent(act)
