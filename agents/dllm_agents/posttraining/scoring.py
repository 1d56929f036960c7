"""How likely the dLLM finds what was written: log-likelihoods as sums over canvases, and a loss of them.

The likelihood of a whole decoding is a product over its steps and takes a forward for each. The methods
differ in what they put in its place, and that is all that they differ in: which canvases are shown to the
dLLM, and with which coefficients the log-probabilities of the tokens there add up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dllm_agents.posttraining.rollouts import Rollouts
from dllm_agents.sb3.updates import clipped_surrogate


@dataclass(frozen=True, eq=False)
class Scoring:
    """R times K canvases over some episodes, and what the tokens on them count.

    The log-likelihood of token l in line r is the sum over k of ``coefficients[r, k, l]`` times the
    log-probability of that token on canvas k.

    Attributes:
        episodes: ``(R,)`` int64, the episode that a line is about.
        hidden: ``(R, K, P + L)`` bool, where a canvas shows the mask token.
        coefficients: ``(R, K, L)`` float32, 0 where a token is not scored on a canvas.
        weights: ``(R, L)`` float32, of each token in the loss.
        temperature: Of the tokens' distribution.
    """

    episodes: NDArray[np.int64]
    hidden: NDArray[np.bool_]
    coefficients: NDArray[np.float32]
    weights: NDArray[np.float32]
    temperature: float = 1.0

    def lines(self, chosen: NDArray[Any]) -> Scoring:
        """Some of its lines, by number or by a bool for each."""
        return Scoring(
            self.episodes[chosen],
            self.hidden[chosen],
            self.coefficients[chosen],
            self.weights[chosen],
            self.temperature,
        )

    def pieces(self, size: int | None) -> Iterator[tuple[slice, Scoring]]:
        """It in parts of at most ``size`` canvases, but at least a line each, and where they stand."""
        lines, canvases = self.hidden.shape[:2]
        step = lines if size is None else max(size // canvases, 1)
        for first in range(0, lines, max(step, 1)):
            part = slice(first, first + step)
            yield part, self.lines(np.arange(lines)[part])


def log_likelihood(backend: Any, rollouts: Rollouts, scoring: Scoring) -> Tensor:
    """The log-likelihoods ``(R, L)`` of a scoring, float32, with gradients if they are enabled.

    Args:
        backend: A ``TransformersBackend``.
        rollouts: What was written.
        scoring: What to ask.
    """
    lines, canvases, width = scoring.hidden.shape
    length = rollouts.length
    sequences = rollouts.sequences[scoring.episodes][:, None]  # (R, 1, P + L)
    shown = np.where(scoring.hidden, backend.mask_token_id, sequences).reshape(-1, width)
    attention = np.repeat(rollouts.attention_mask[scoring.episodes], canvases, axis=0)
    coefficients = scoring.coefficients.reshape(-1, length)  # (R K, L)
    most = max(int((coefficients != 0).sum(1).max(initial=0)), 1)
    # of each canvas the positions that are scored there, and others up to the largest number of them
    positions = np.argsort(coefficients == 0, axis=1, kind="stable")[:, :most]  # (R K, M)
    targets = np.take_along_axis(
        np.repeat(rollouts.completions[scoring.episodes], canvases, axis=0), positions, axis=1
    )
    device = backend.device
    # padding that no line of these needs is not computed
    first = int(attention.argmax(1).min(initial=width - length))
    tokens, mask, columns = (
        torch.from_numpy(np.ascontiguousarray(part)).to(device)
        for part in (shown[:, first:], attention[:, first:], positions + width - length - first)
    )
    logits, _ = backend.forward(tokens, mask, columns)  # (R K, M, V)
    log_p = token_log_probabilities(
        logits, torch.from_numpy(targets).to(device), backend.mask_token_id, scoring.temperature
    )
    counted = torch.from_numpy(np.take_along_axis(coefficients, positions, axis=1)).to(device)
    # a token that a canvas does not score may be a mask, whose log-probability is minus infinity
    log_p = torch.where(counted == 0, 0.0, log_p) * counted
    at = torch.from_numpy(positions).to(device)
    spread = torch.zeros(len(at), length, device=device).scatter(1, at, log_p)
    return spread.view(lines, canvases, length).sum(1)


def token_log_probabilities(
    logits: Tensor, tokens: Tensor, mask_token_id: int, temperature: float = 1.0
) -> Tensor:
    """Log-probabilities ``(...)`` of tokens ``(...)`` as they are drawn: of the mask there is no chance.

    Args:
        logits: ``(..., V)``, any float dtype.
        tokens: ``(...)`` int64.
        mask_token_id: Left out of the distribution.
        temperature: Of the distribution.
    """
    mask = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    mask[mask_token_id] = True
    scaled = (logits.float() / temperature).masked_fill(mask, -torch.inf)
    return scaled.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


def policy_loss(
    log_p: Tensor,
    old: Tensor,
    advantages: Tensor,
    weights: Tensor,
    clip_range: float,
    reference: Tensor | None = None,
    kl_coef: float = 0.0,
) -> tuple[Tensor, dict[str, float]]:
    """The clipped loss, token by token, plus the distance from a reference; and what to log.

    Args:
        log_p: ``(R, L)`` log-likelihoods now.
        old: ``(R, L)`` those of the weights that wrote the tokens.
        advantages: ``(R,)``.
        weights: ``(R, L)``.
        clip_range: Epsilon.
        reference: ``(R, L)``, those of the reference.
        kl_coef: Weight of the estimator of arXiv 2402.03300, equation 4.
    """
    ratio = (log_p - old).exp()
    terms = -clipped_surrogate(ratio, advantages[:, None], clip_range)
    clipped = ((ratio.detach() - 1).abs() > clip_range) * weights
    facts = {"clip_fraction": float(clipped.sum())}
    if reference is not None:
        difference = reference - log_p
        divergence = difference.exp() - difference - 1
        terms = terms + kl_coef * divergence
        facts["reference_kl"] = float((divergence.detach() * weights).sum())
    loss = (terms * weights).sum()
    return loss, {"loss": float(loss.detach()), **facts}
