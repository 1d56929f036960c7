"""Mathematics of the success model: what each reveal puts at risk, and how much risk a step may take.

An episode succeeds if no reveal did harm, so with the harm ``h_i(s)`` of revealing position i in state s

    P(success) = product over steps t and positions i revealed there of (1 - h_i(s_t)),

the noisy-or of Bayesian networks (Pearl 1988, section 4.3.2) with reveals as causes of failure. A network
that is trained to predict successes so finds out which reveals do harm although only whole episodes are
scored: failed ones blame the reveals that successful ones do without.

Harm and reveal probabilities are two readings of the same logits:
``b = sharpness (logit threshold - logit h)`` reveals with probability 1/2 what has harm ``threshold``. So the
success model is a policy as it stands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dllm_gym.files import is_finite


@dataclass(frozen=True)
class HarmScale:
    """How a policy's logits read as harm.

    Attributes:
        sharpness: How steeply the reveal probability falls with the logit of the harm.
        threshold: The harm that is revealed with probability 1/2.

    Raises:
        ValueError: For a sharpness that is not positive or a threshold outside (0, 1).
    """

    sharpness: float
    threshold: float

    def __post_init__(self) -> None:
        if not (is_finite(self.sharpness) and self.sharpness > 0):
            raise ValueError(f"sharpness must be positive and finite, got {self.sharpness!r}")
        if not (is_finite(self.threshold) and 0 < self.threshold < 1):
            raise ValueError(f"threshold must lie between 0 and 1, got {self.threshold!r}")


def logit(probability: float) -> float:
    """log(p / (1 - p)) for p in (0, 1)."""
    return math.log(probability) - math.log1p(-probability)


def harm_logits(logits: Tensor, scale: HarmScale) -> Tensor:
    """Logits of the harm h of a policy's logits b, of any shape: ``logit threshold - b / sharpness``."""
    return logit(scale.threshold) - logits / scale.sharpness


def risk(harm: Tensor) -> Tensor:
    """-log(1 - h) of harm logits, of any shape: what a reveal takes from the logarithm of success."""
    return F.softplus(harm)


def success_loss(risks: Tensor, scores: Tensor) -> Tensor:
    """Cross-entropy of the scores y of episodes and the success P = exp(-risk) that is predicted, ``(E,)``.

    ``- [ y log P + (1 - y) log(1 - P) ]``

    Args:
        risks: ``(E,)``, the sum of ``risk`` over an episode's reveals.
        scores: ``(E,)`` in [0, 1].
    """
    # an episode whose reveals are all harmless cannot fail: its gradient would be infinite
    risks = risks.clamp(min=1e-6)
    return scores * risks - (1 - scores) * torch.log(-torch.expm1(-risks))


def within_budget(harm: Tensor, action_mask: Tensor, budget: float) -> Tensor:
    """The largest set of candidates whose risks add up to at most ``budget``, and at least one; int8.

    Args:
        harm: ``(B, L)``, harm logits.
        action_mask: ``(B, L)``, 1 at candidates.
        budget: Of -log P(success), per step.
    """
    risks = risk(harm).masked_fill(action_mask == 0, torch.inf)
    ordered, order = risks.sort(dim=-1, stable=True)
    chosen = ordered.cumsum(-1) <= budget
    chosen[:, 0] = True
    bits = torch.zeros_like(risks, dtype=torch.bool).scatter(-1, order, chosen)
    return (bits & (action_mask != 0)).to(torch.int8)
