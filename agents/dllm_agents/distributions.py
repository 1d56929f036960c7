"""Distributions over unmask actions: the masked Bernoulli and Dynamic Plackett-Luce (DPLS).

The Bernoulli decides independently for every position that may be revealed now; DPLS draws an ordered
list of them, at least one, until a STOP item comes up.

Symbols are the paper's (arXiv 2512.09106): b^k is the logit of position k, C the set of candidates
(``action_mask`` = 1), u the action. All tensors are ``(B, L)`` unless stated otherwise. Where tokens can be
taken back there are revealed positions in C, too; ``mask`` then says which are masked, and u^k = 1 is to let
the token stand. Likelihood and entropy are the same for both kinds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# Finite, because -inf turns log-probability, entropy and gradient into NaN. At -1e8 the float32 sigmoid is
# exactly 0, and so are entropy and gradient.
EXCLUDED_LOGIT = -1e8


def masked_logits(logits: Tensor, action_mask: Tensor) -> Tensor:
    """b^k for k in C, ``EXCLUDED_LOGIT`` elsewhere; no gradient reaches excluded positions."""
    return logits.masked_fill(action_mask == 0, EXCLUDED_LOGIT)


def bernoulli_bit_log_probs(logits: Tensor, action_mask: Tensor, actions: Tensor) -> Tensor:
    """Log-probability of every bit, ``(B, L)``; 0 outside C.

    log sigmoid(b^k) of a 1 and log sigmoid(-b^k) of a 0.
    Exact: no clamp that would kill the gradient of saturated probabilities.
    """
    signed = torch.where(actions != 0, logits, -logits)
    return F.logsigmoid(signed.masked_fill(action_mask == 0, -EXCLUDED_LOGIT))


def bernoulli_log_prob(logits: Tensor, action_mask: Tensor, actions: Tensor) -> Tensor:
    """Joint log-probability of the action, ``(B,)``.

    log pi(u) = sum over k in C of u^k log sigmoid(b^k) + (1 - u^k) log sigmoid(-b^k).
    """
    return bernoulli_bit_log_probs(logits, action_mask, actions).sum(-1)


def bernoulli_entropy(logits: Tensor, action_mask: Tensor) -> Tensor:
    """Joint entropy in nats, ``(B,)``.

    ``H = sum over k in C of softplus(-|b^k|) + |b^k| sigmoid(-|b^k|)``.
    This form of -s log s - (1 - s) log(1 - s), s = sigmoid(b^k), cancels nothing when s saturates.
    """
    magnitude = masked_logits(logits, action_mask).abs()
    return (F.softplus(-magnitude) + magnitude * torch.sigmoid(-magnitude)).sum(-1)


def bernoulli_kl(logits: Tensor, others: Tensor, action_mask: Tensor) -> Tensor:
    """KL divergence from the actions of b = ``logits`` to those of c = ``others``, in nats, ``(B,)``.

    D = sum over k in C of s (log s - log t) + (1 - s) (log (1 - s) - log (1 - t)), s = sigmoid(b^k), t =
    sigmoid(c^k).
    """
    logits, others = masked_logits(logits, action_mask), masked_logits(others, action_mask)
    chosen = torch.sigmoid(logits) * (F.logsigmoid(logits) - F.logsigmoid(others))
    left = torch.sigmoid(-logits) * (F.logsigmoid(-logits) - F.logsigmoid(-others))
    return (chosen + left).sum(-1)


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


def with_argmax_fallback(
    actions: Tensor, logits: Tensor, action_mask: Tensor, mask: Tensor | None = None
) -> Tensor:
    """The paper's Bernoulli-argmax: rows where ``actions`` changes nothing reveal the argmax of b over C.

    A row without masked candidates stays as it is.

    Args:
        actions: u.
        logits: b.
        action_mask: 1 for k in C.
        mask: 1 where masked; ``None``: all of C is.
    """
    allowed = action_mask != 0
    masked = allowed if mask is None else mask != 0
    candidates = allowed & masked
    changes = (allowed & ((actions != 0) == masked)).any(-1, keepdim=True)
    idle = candidates.any(-1, keepdim=True) & ~changes
    best = masked_logits(logits, candidates).argmax(-1, keepdim=True)
    return actions.scatter(-1, best, actions.gather(-1, best) | idle.to(actions.dtype))


def bernoulli_mode(logits: Tensor, action_mask: Tensor, mask: Tensor | None = None) -> Tensor:
    """u^k = 1 where sigmoid(b^k) > 0.5, k in C, with the argmax fallback so that no step is wasted; int8."""
    chosen = (masked_logits(logits, action_mask) > 0).to(torch.int8)
    return with_argmax_fallback(chosen, logits, action_mask, mask)


def adjust_logits(
    logits: Tensor,
    temperature: float = 1.0,
    beta: float = 1.0,
    mask: Tensor | None = None,
    caution: float = 0.0,
) -> Tensor:
    """Logits of the reveal probability s' = min(1, beta sigmoid(b / temperature - caution)).

    Policy temperature and beta scaling are test-time knobs (arXiv 2512.09106): a low temperature sharpens
    decisions, beta above 1 reveals more per step, below 1 less. Caution divides the odds of every reveal by
    its exponential. Where ``mask`` is 0 a token stands, of which beta and caution say nothing.
    """
    logits = logits / temperature
    adjusted = logits - caution if caution else logits
    if beta != 1.0:
        log_p = (F.logsigmoid(adjusted) + math.log(beta)).clamp(max=-1e-6)
        adjusted = log_p - torch.log(-torch.expm1(log_p))
    return adjusted if mask is None else torch.where(mask != 0, adjusted, logits)


def sample_dpls(
    logits: Tensor, action_mask: Tensor, stop_logit: float = 0.0, *, uniforms: Tensor | None = None
) -> Tensor:
    """Draws an ordered selection from Dynamic Plackett-Luce (arXiv 2512.09106, appendix).

    The first pick is drawn from softmax(b) over C; then picks go on without replacement from the rest and
    a STOP item of logit ``stop_logit``, until STOP comes up. Drawn as a race: k arrives at an exponential
    time of rate exp(b^k), and STOP starts when the first has arrived, because exponential times have no
    memory.

    Args:
        logits: b.
        action_mask: 1 for k in C.
        stop_logit: Logit of STOP.
        uniforms: ``(B, L + 1)`` numbers in [0, 1) to use instead of drawing, the last column for STOP.

    Returns:
        ``(B, L)`` int16: 0 where nothing is revealed, j at the j-th pick. The order is part of the action,
        because its probability depends on it.
    """
    batch, length = logits.shape
    if uniforms is None:
        uniforms = torch.rand(batch, length + 1, device=logits.device)
    waiting = -torch.log1p(-uniforms)  # (B, L + 1), exponential with rate 1
    candidates = action_mask != 0
    log_times = (waiting[:, :-1].clamp(min=1e-30).log() - logits).masked_fill(~candidates, torch.inf)
    first = log_times.amin(-1, keepdim=True)
    stop = torch.logaddexp(first, waiting[:, -1:].clamp(min=1e-30).log() - stop_logit)
    picked = candidates & ((log_times < stop) | (log_times == first))
    ranks = log_times.argsort(-1).argsort(-1) + 1
    return torch.where(picked, ranks, 0).to(torch.int16)


def dpls_log_prob(logits: Tensor, action_mask: Tensor, ranks: Tensor, stop_logit: float = 0.0) -> Tensor:
    """Exact log-probability ``(B,)`` of ordered selections as ``sample_dpls`` returns them.

    log pi = [b_s1 - lse(C)] + sum over j = 2..m of [b_sj - lse(C_j + STOP)] + [b_stop - lse(C_m+1 + STOP)],
    C_j being C without the first j - 1 picks and lse log-sum-exp; 0 for a row without candidates.
    """
    ranks = ranks.long()
    length = logits.shape[-1]
    order = torch.where(ranks > 0, ranks, length + 1).argsort(dim=-1, stable=True)  # picks first, in order
    b = masked_logits(logits, action_mask).gather(-1, order)  # (B, L) by rank
    rest = b.flip(-1).logcumsumexp(-1).flip(-1)  # lse of everything from this rank on
    stop = torch.full_like(rest[:, :1], stop_logit)
    with_stop = torch.logaddexp(rest, stop)
    count = (ranks > 0).sum(-1, keepdim=True)  # (B, 1)
    rank = torch.arange(length, device=logits.device)
    denominator = torch.where(rank == 0, rest, with_stop)
    picks = torch.where(rank < count, b - denominator, 0.0).sum(-1)
    # nothing is left after the last rank: STOP is certain there
    after = torch.cat([with_stop, stop], dim=-1).gather(-1, count).squeeze(-1)
    return torch.where(count.squeeze(-1) > 0, picks + stop_logit - after, 0.0)
