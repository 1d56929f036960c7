"""The backend protocol: a frozen masked dLLM and its tokenizer behind one small interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Message = Mapping[str, str]

# What ``Backend.predict`` can compute besides token and confidence: of the logits alone, and at all.
FROM_LOGITS = ("entropy", "margin", "top_k", "best", "probabilities")
_GIVEN = ("hidden", "attention", "quality")  # by the model
STATISTICS = (*FROM_LOGITS, "written", *_GIVEN)

# So many logits are looked at together on a CPU. What they take as float32 has to stay below 32 MiB: larger
# blocks glibc maps anew each time, and their pages have to be zeroed first (see ``cpu.keep_freed_memory``).
_AT_A_TIME = 1 << 22


@dataclass(frozen=True)
class Prediction:
    """What the dLLM would write at K positions of B rows.

    Attributes:
        tokens: ``(B, K)`` int64, the token it would write; never the mask token.
        confidence: ``(B, K)`` float32 in [0, 1], the softmax probability of that token.
        statistics: The further statistics that were asked for, by name: ``entropy`` ``(B, K)`` float32
            in nats; ``margin`` ``(B, K)`` float32, largest minus second largest probability; ``top_k``
            ``(B, K, k)`` float32, the k largest probabilities in descending order; ``best`` ``(B, K)``
            int64, the most probable token, which is the one it would write but for token noise;
            ``probabilities`` ``(B, K, V)`` float32, those of all tokens, 0 for the mask token; ``written``
            ``(B, K)`` float32, the probability of the token that stands there, 0 where it is the mask token;
            ``hidden`` ``(B, K, H)`` float32, the state that the output head reads, after the last
            normalisation; ``attention`` ``(B, K, K)`` float32, how much of what predicts the first position
            is read at the second, a mean over heads and layers. A row sums to what is not read in the prompt;
            ``quality`` ``(B, K)`` float32, how likely the token that stands there is right, 0 where it is the
            mask token.
    """

    tokens: Tensor
    confidence: Tensor
    statistics: Mapping[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Backend(Protocol):
    """A frozen dLLM. Implement this to bring your own.

    A backend that can give the statistic ``hidden`` has the further attribute ``hidden_width``, its size H.
    One that can give ``attention`` has ``attention_layers``, the numbers of the layers it is the mean of.
    One that can give ``quality`` has ``quality_head``, whatever computes it.
    One whose predictions depend on earlier steps of an episode has the method ``memory``, called once per
    environment with the number of rows and positions; if it gives a ``Memory``, that predicts.
    One that attends in blocks has ``attention_block``, their length, and ``blocks_from``: ``sequence`` if
    they are counted from the first token of the prompt, ``completion`` if from the first one after it.

    Attributes:
        mask_token_id: Id of the mask token.
        eos_token_id: Id of the token that ends a completion.
        pad_token_id: Id used to fill up prompts of unequal length; hidden by the attention mask.
        vocab_size: Number of token ids.
        device: Where ``predict`` computes.
        tokenizer: The model's tokenizer.
    """

    mask_token_id: int
    eos_token_id: int
    pad_token_id: int
    vocab_size: int
    device: torch.device
    tokenizer: Any

    def encode_prompt(self, prompt: str | Sequence[Message]) -> list[int]:
        """Token ids of a prompt, given as the user's text or as chat messages."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a completion, cut at its first end token. Masks that are left stay visible."""
        ...

    def predict(
        self,
        tokens: Tensor,
        attention_mask: Tensor,
        positions: slice | Tensor,
        *,
        statistics: Sequence[str] = (),
        top_k: int = 8,
        temperature: float = 0.0,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Prediction:
        """What the dLLM would write at ``positions``. A row's result does not depend on the others.

        Args:
            tokens: ``(B, P + L)`` int64, left-padded prompts followed by completions.
            attention_mask: ``(B, P + L)`` int64, 0 at padding.
            positions: The columns to predict, a slice or ``(K,)`` int64. The first of them begins the
                completion, where a dLLM counts blocks from there.
            statistics: Names out of ``STATISTICS``.
            top_k: k of the statistic ``top_k``.
            temperature: 0 takes the most probable token. Above 0, tokens are drawn from the tempered
                distribution; confidence stays the untempered probability of the drawn token.
            generators: One per row, for the noise; required if ``temperature`` > 0.
        """
        ...


class Memory(Protocol):
    """What a dLLM carries from step to step, for the rows of one environment.

    Attributes:
        first_forwards: Forwards that an episode takes before its first step, which count in its ``nfe``.
    """

    first_forwards: int

    def forget(self, rows: NDArray[np.int64]) -> None:
        """New episodes begin in these rows."""
        ...

    def predict(
        self,
        rows: NDArray[np.int64],
        windows: NDArray[np.int64],
        tokens: Tensor,
        attention_mask: Tensor,
        *,
        statistics: Sequence[str] = (),
        top_k: int = 8,
        temperature: float = 0.0,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Prediction:
        """``Backend.predict`` at all L positions of the completions. What a row gets depends on what it got.

        Args:
            rows: ``(R,)``, the environment's rows that the tensors are about.
            windows: ``(R, 2)``, begin and end of each row's active block within the completion.
            tokens: ``(R, P + L)`` int64, see ``Backend.predict``, like the arguments that follow.
            attention_mask: See there.
            statistics: See there.
            top_k: See there.
            temperature: See there.
            generators: See there.
        """
        ...


def predict_from_logits(
    logits: Tensor,
    mask_token_id: int,
    *,
    statistics: Sequence[str] = (),
    top_k: int = 8,
    temperature: float = 0.0,
    generators: Sequence[torch.Generator] | None = None,
    standing: Tensor | None = None,
    given: Mapping[str, Tensor] | None = None,
) -> Prediction:
    """Turns logits into a ``Prediction``; the mathematics every backend shares.

    Token noise is the Gumbel-max trick of LLaDA's ``generate.py`` in float64 (arXiv 2409.02908: lower
    precision distorts it); confidence comes from the noise-free softmax, as there.

    Args:
        logits: ``(B, K, V)``, any float dtype; row i belongs to position i.
        mask_token_id: Never chosen.
        statistics: As in ``Backend.predict``, like the arguments that follow.
        top_k: See there.
        temperature: See there.
        generators: See there.
        standing: ``(B, K)`` int64, the tokens that stand there; what the statistic ``written`` is about.
        given: The statistics that only the model tells, by name, in any float dtype.

    Raises:
        ValueError: For NaN or infinite logits, an unknown statistic, a top_k out of range, a negative
            temperature, missing generators, standing tokens or given statistics.
    """
    unknown = set(statistics) - set(STATISTICS)
    if unknown:
        raise ValueError(f"unknown statistics {sorted(unknown)}; known: {', '.join(STATISTICS)}")
    if "top_k" in statistics and not 1 <= top_k <= logits.shape[-1]:
        raise ValueError(f"top_k must be 1 to {logits.shape[-1]}, the size of the vocabulary, got {top_k}")
    if "written" in statistics and standing is None:
        raise ValueError("the statistic 'written' was asked for, but this backend gives no standing tokens")
    own = given or {}
    missing = [name for name in statistics if name in _GIVEN and name not in own]
    if missing:
        raise ValueError(f"the statistic {missing[0]!r} was asked for, but this backend does not give it")
    drawn: Tensor | None = None
    if temperature > 0:
        drawn = _noisy(logits, mask_token_id, temperature, generators).argmax(-1)
    elif temperature != 0:  # NaN, too
        raise ValueError(f"temperature must not be negative, got {temperature}")
    options = (mask_token_id, statistics, top_k)
    at_a_time = max(1, _AT_A_TIME // logits.shape[-1])
    if logits.device.type != "cpu" or logits.shape[0] * logits.shape[1] <= at_a_time:
        found = _measure(logits, drawn, standing, *options)
    else:
        pieces = torch.split(logits.flatten(0, 1), at_a_time)
        tokens, there = (
            [None] * len(pieces) if ids is None else torch.split(ids.flatten(), at_a_time)
            for ids in (drawn, standing)
        )
        parts = [_measure(*piece, *options) for piece in zip(pieces, tokens, there, strict=True)]
        found = {
            name: torch.unflatten(torch.cat([part[name] for part in parts]), 0, logits.shape[:2])
            for name in parts[0]
        }
    confidence = found.pop("confidence")
    if confidence.isnan().any():
        rows = confidence.isnan().any(-1).nonzero().flatten().tolist()
        raise ValueError(f"the dLLM returned NaN or infinite logits in rows {rows} of the batch")
    found |= {name: own[name].float() for name in statistics if name in own}
    return Prediction(found.pop("tokens"), confidence, found)


def _measure(
    logits: Tensor,
    tokens: Tensor | None,
    standing: Tensor | None,
    mask_token_id: int,
    statistics: Sequence[str],
    top_k: int,
) -> dict[str, Tensor]:
    """Tokens, confidence and statistics ``(...)`` of logits ``(..., V)``; ``tokens`` if they are given.

    The confidence is NaN where the logits are NaN, infinite or all impossible.
    """
    logits = logits.to(torch.float32, copy=True)  # the caller's stay as they are
    logits.select(-1, mask_token_id).fill_(-torch.inf)
    found: dict[str, Tensor] = {}
    if tokens is None or "best" in statistics:
        best = logits.max(-1).indices  # not of the log-probabilities: near ones can become equal
        tokens = best if tokens is None else tokens
        found = {"best": best} if "best" in statistics else {}
    log_p = logits.log_softmax(-1)
    found["tokens"] = tokens
    found["confidence"] = log_p.gather(-1, tokens[..., None])[..., 0].exp().clamp(max=1.0)
    if "entropy" in statistics:
        found["entropy"] = torch.special.entr(log_p.exp()).sum(-1).clamp(min=0.0)
    if "margin" in statistics:
        top = log_p.topk(2, dim=-1).values.exp()
        found["margin"] = (top[..., 0] - top[..., 1]).clamp(0.0, 1.0)
    if "top_k" in statistics:
        found["top_k"] = log_p.topk(top_k, dim=-1).values.exp().clamp(max=1.0)
    if "probabilities" in statistics:
        found["probabilities"] = log_p.exp()
    if "written" in statistics and standing is not None:
        found["written"] = log_p.gather(-1, standing[..., None])[..., 0].exp().clamp(max=1.0)
    return found


def _noisy(
    logits: Tensor, mask_token_id: int, temperature: float, generators: Sequence[torch.Generator] | None
) -> Tensor:
    if generators is None or len(generators) != len(logits):
        raise ValueError(f"temperature {temperature} needs one generator for each of {len(logits)} rows")
    uniform = torch.stack(
        [
            torch.rand(logits.shape[1:], dtype=torch.float64, device=logits.device, generator=g)
            for g in generators
        ]
    )
    # argmax of exp(logit) / (-log u)^T, in logarithms
    noisy = logits.double() - temperature * torch.log(-torch.log(uniform))
    noisy.select(-1, mask_token_id).fill_(-torch.inf)
    return noisy
