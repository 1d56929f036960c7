"""Mathematics of revealing together what depends on each other: positions give way to each other.

Independent bits cannot say "one of these two, not both". Here positions of a step are in order of their
logits, the most certain first, and whoever is revealed takes something off the logits of those behind it:

    b'_k = b_k - sum over j before k of u_j w_kj,

with the rivalry ``w_kj >= 0`` of two positions. The expectation of that, with u_j ~ Bernoulli(sigmoid(b'_j))
in the place of the bit, gives every position one logit again: a policy of independent bits whose
probabilities have settled who goes first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dllm_agents.distributions import masked_logits

ROUNDS = 8  # so long a chain of positions, each giving way to the one before it, is exact


def before(logits: Tensor, action_mask: Tensor) -> Tensor:
    """Whether j comes before k, ``(B, L, L)`` by ``[k, j]``: its logit is higher, or equal and j < k.

    Args:
        logits: b, ``(B, L)``.
        action_mask: ``(B, L)``, 1 at candidates; nothing else comes before anything.
    """
    b = masked_logits(logits, action_mask).detach()
    lower = torch.ones(b.shape[1], b.shape[1], dtype=torch.bool, device=b.device).tril(-1)  # j < k
    first = (b[:, None, :] > b[:, :, None]) | ((b[:, None, :] == b[:, :, None]) & lower)
    return first & (action_mask != 0)[:, None, :]


def beside(logits: Tensor, rivalry: Tensor, action_mask: Tensor, actions: Tensor) -> Tensor:
    """Logits b' of each position beside those that ``actions`` reveal before it, ``(B, L)``.

    Args:
        logits: b, ``(B, L)``.
        rivalry: w, ``(B, L, L)``.
        action_mask: ``(B, L)``, 1 at candidates.
        actions: u, ``(B, L)``.
    """
    weights = rivalry * before(logits, action_mask)
    return logits - (weights @ actions.to(logits.dtype)[..., None]).squeeze(-1)


def give_way(logits: Tensor, rivalry: Tensor, action_mask: Tensor) -> Tensor:
    """Logits b' with the probabilities of those before in the place of bits, ``(B, L)``.

    In rounds: after n of them the first n in order are what they remain; ``ROUNDS`` at most.

    Args:
        logits: b, ``(B, L)``.
        rivalry: w, ``(B, L, L)``.
        action_mask: ``(B, L)``, 1 at candidates.
    """
    weights = rivalry * before(logits, action_mask)
    rounds = ROUNDS
    if not torch.compiler.is_exporting() and len(logits):  # more than there are candidates change nothing
        rounds = min(rounds, int((action_mask != 0).sum(-1).max()))
    settled = logits
    for _ in range(rounds):
        settled = logits - (weights @ torch.sigmoid(settled)[..., None]).squeeze(-1)
    return settled
