"""The masked Bernoulli: independent reveal decisions over the positions that may be revealed now.

Symbols are the paper's (arXiv 2512.09106): b^k is the logit of position k, C the set of candidates
(``action_mask`` = 1), u the action. All tensors are ``(B, L)`` unless stated otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Finite, because -inf turns log-probability, entropy and gradient into NaN. At -1e8 the float32 sigmoid is
# exactly 0, and so are entropy and gradient.
EXCLUDED_LOGIT = -1e8


def masked_logits(logits: Tensor, action_mask: Tensor) -> Tensor:
    """b^k for k in C, ``EXCLUDED_LOGIT`` elsewhere; no gradient reaches excluded positions."""
    return logits.masked_fill(action_mask == 0, EXCLUDED_LOGIT)


def bernoulli_log_prob(logits: Tensor, action_mask: Tensor, actions: Tensor) -> Tensor:
    """Joint log-probability of the action, ``(B,)``.

    log pi(u) = sum over k in C of u^k log sigmoid(b^k) + (1 - u^k) log sigmoid(-b^k).
    Exact: no clamp that would kill the gradient of saturated probabilities. Bits outside C don't count.
    """
    signed = torch.where(actions != 0, logits, -logits)
    return F.logsigmoid(signed.masked_fill(action_mask == 0, -EXCLUDED_LOGIT)).sum(-1)


def bernoulli_entropy(logits: Tensor, action_mask: Tensor) -> Tensor:
    """Joint entropy in nats, ``(B,)``.

    H = sum over k in C of softplus(-|b^k|) + |b^k| sigmoid(-|b^k|).
    This form of -s log s - (1 - s) log(1 - s), s = sigmoid(b^k), cancels nothing when s saturates.
    """
    magnitude = masked_logits(logits, action_mask).abs()
    return (F.softplus(-magnitude) + magnitude * torch.sigmoid(-magnitude)).sum(-1)


def sample_bernoulli(
    logits: Tensor,
    action_mask: Tensor,
    *,
    generator: torch.Generator | None = None,
    uniforms: Tensor | None = None,
) -> Tensor:
    """Draws u^k ~ Bernoulli(sigmoid(b^k)) for k in C, int8; the draw may be empty.

    Args:
        logits: b.
        action_mask: 1 for k in C.
        generator: Source of randomness; None is torch's global one.
        uniforms: Numbers in [0, 1) to use instead of drawing: u^k = 1 where uniform^k < sigmoid(b^k).
    """
    if uniforms is None:
        uniforms = torch.rand(logits.shape, device=logits.device, generator=generator)
    return (uniforms < torch.sigmoid(masked_logits(logits, action_mask))).to(torch.int8)


def with_argmax_fallback(actions: Tensor, logits: Tensor, action_mask: Tensor) -> Tensor:
    """The paper's Bernoulli-argmax: rows where ``actions`` reveals nothing reveal the argmax of b over C.

    A row without candidates stays empty.
    """
    candidates = action_mask != 0
    empty = candidates.any(-1, keepdim=True) & ~((actions != 0) & candidates).any(-1, keepdim=True)
    best = masked_logits(logits, action_mask).argmax(-1, keepdim=True)
    return actions.scatter(-1, best, actions.gather(-1, best) | empty.to(actions.dtype))


def bernoulli_mode(logits: Tensor, action_mask: Tensor) -> Tensor:
    """u^k = 1 where sigmoid(b^k) > 0.5, k in C, with the argmax fallback so that no step is wasted; int8."""
    chosen = (masked_logits(logits, action_mask) > 0).to(torch.int8)
    return with_argmax_fallback(chosen, logits, action_mask)
