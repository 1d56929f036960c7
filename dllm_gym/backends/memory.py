"""What a dLLM carries from one step of an episode to the next: keys and values, or residual context.

A plain dLLM is a function of the tokens on the canvas, which is what makes it an environment. What is
here trades that for speed or quality: a prediction then depends on the steps before, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import Cache

from dllm_gym.backends.attention import block_causal_mask
from dllm_gym.backends.base import Prediction
from dllm_gym.backends.families import Family

STARTS = ("cold", "warm")
SOFT_MASK = ("scale", "steepness", "offset")  # the numbers of ``soft_mask`` that a checkpoint has

_NOTHING = -(2**31)  # no column is so far from the end
_LIKELIEST = 3  # tokens of a soft mask, as published

Mix = Callable[[Tensor, Tensor, Tensor], Tensor]  # of probabilities, embeddings and the mask's, see below


class Computing(Protocol):
    """What a memory asks of the backend whose model computes; see ``TransformersBackend``."""

    family: Family
    model: Any
    device: torch.device
    mask_token_id: int
    attention_block: int | None

    def check_length(self, attention_mask: Tensor) -> int:
        """See there, like what follows."""
        ...

    def blocks(self, first: Tensor, length: int, completion: int | Tensor) -> Tensor:
        """See there."""
        ...

    def rows_about(self, columns: Tensor, first: Tensor) -> Tensor:
        """See there."""
        ...

    def forward(
        self,
        tokens: Tensor,
        attention_mask: Tensor,
        columns: Tensor,
        embedded: Tensor | None = None,
        *,
        attention: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See there."""
        ...

    def forward_rows(
        self, rows: Tensor, read: Tensor | None = None, **inputs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See there."""
        ...

    def prediction(
        self,
        logits: Tensor,
        given: Mapping[str, Tensor],
        standing: Tensor,
        *,
        statistics: Sequence[str] = (),
        **options: Any,
    ) -> Prediction:
        """See there."""
        ...


class KeyValueMemory:
    """Keys and values of columns that are not computed again in every step.

    Before a block is begun nothing of a row is known, and all of it is computed. After that:

    - ``prefix`` computes the active block and what follows it (Fast-dLLM's prefix cache).
    - ``dual`` computes the active block alone (its dual cache).
    - ``block`` computes the active block and, once, the block before it, which is now complete. For dLLMs
      that attend block by block this is exact, since nothing that was kept can change any more. What
      follows the block is not computed at all: confidence 0 there.

    In a shifted layout the column before the block is computed again as well, because it predicts the
    block's first token.

    Source: arXiv 2505.22618, NVlabs/Fast-dLLM, ``llada/generate.py``.

    Args:
        backend: Whose model computes.
        kind: ``prefix``, ``dual`` or ``block``.
        num_rows: N, number of episodes.
        length: L, number of positions of a completion.
    """

    first_forwards = 0

    def __init__(self, backend: Computing, kind: str, num_rows: int, length: int) -> None:
        self.backend, self.kind, self.length = backend, kind, length
        self._store = _Store(num_rows)
        # columns are counted back from the end, where all rows are aligned
        self._known_to = np.full(num_rows, _NOTHING)
        self._last: dict[str, Tensor] = {}

    @torch.inference_mode()
    def forget(self, rows: NDArray[np.int64]) -> None:
        """Nothing is known of these rows any more: their episodes begin."""
        self._known_to[rows] = _NOTHING
        for values in self._last.values():
            values[rows] = 0

    @torch.inference_mode()
    def predict(
        self,
        rows: NDArray[np.int64],
        windows: NDArray[np.int64],
        tokens: Tensor,
        attention_mask: Tensor,
        *,
        statistics: Sequence[str] = (),
        generators: Sequence[torch.Generator] | None = None,
        **options: Any,
    ) -> Prediction:
        """See ``Memory.predict``; what is not computed is as it was when it last was."""
        backend = self.backend
        backend.check_length(attention_mask)  # before it moves: a device would have to be waited for
        tokens, attention_mask = tokens.to(backend.device), attention_mask.to(backend.device)
        width = tokens.shape[1]
        completion = width - self.length
        first = attention_mask.argmax(1)  # (R,)
        if backend.attention_block is None:  # everybody sees everybody
            blocks = first.new_zeros(len(first), width)  # (R, T)
        else:
            blocks = backend.blocks(first, width, completion)
        begin, end = self._window(windows + completion, blocks)
        known = self._known_to[rows] + width
        shift = int(backend.family.shift_logits)
        if self.kind == "block":
            start = np.maximum(np.minimum(known, begin - shift), 0)
            stop, asked = end, np.maximum(begin, completion)
        else:
            refresh = known != begin
            start = np.where(refresh, 0, np.maximum(begin - shift, 0))
            stop = end if self.kind == "dual" else np.full_like(end, width)
            stop = np.where(refresh, width, stop)
            asked = np.where(refresh, completion, begin)
        self._known_to[rows] = begin - width
        # one forward for all rows with as much to compute
        sizes = np.stack([stop - start, stop - asked], axis=1)
        read = torch.arange(completion, width) if "attention" in statistics else None
        for size in np.unique(sizes, axis=0):
            group = np.flatnonzero((sizes == size).all(axis=1))
            at = torch.as_tensor(group, device=backend.device)

            def ranges(begin: NDArray[np.int64], count: int, group: Any = group) -> Tensor:
                columns = begin[group, None] + np.arange(count)
                return torch.as_tensor(columns, device=backend.device)

            columns, positions = ranges(start, size[0]), ranges(asked, size[1])
            self._store.select(rows[group], columns, width)
            logits, given = backend.forward_rows(
                backend.rows_about(positions, first[at]) - columns[:, :1],
                read,
                input_ids=tokens[at].gather(1, columns),
                attention_mask=block_causal_mask(
                    blocks[at], attention_mask[at], backend.model.dtype, columns
                ),
                position_ids=columns - width,
                past_key_values=self._store,
                use_cache=True,
            )
            prediction = backend.prediction(
                logits,
                given,
                tokens[at].gather(1, positions),
                statistics=statistics,
                generators=None if generators is None else [generators[i] for i in group.tolist()],
                **options,
            )
            self._remember(rows[group], positions - completion, prediction)
        found = {name: values[rows] for name, values in self._last.items()}
        return Prediction(found.pop("tokens"), found.pop("confidence"), found)

    def _window(
        self, windows: NDArray[np.int64], blocks: Tensor
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Begin and end ``(R,)`` of the columns that are computed in every step."""
        if self.kind != "block":
            return windows[:, 0], windows[:, 1]
        numbers = blocks.cpu().numpy()
        active = numbers == np.take_along_axis(numbers, windows[:, :1], axis=1)  # (R, T)
        return active.argmax(axis=1), active.shape[1] - active[:, ::-1].argmax(axis=1)

    def _remember(self, rows: NDArray[np.int64], positions: Tensor, prediction: Prediction) -> None:
        found = {
            "tokens": prediction.tokens, "confidence": prediction.confidence, **prediction.statistics,
        }  # fmt: skip
        where = torch.as_tensor(rows, device=positions.device)[:, None]  # (G, 1)
        for name, values in found.items():
            if name not in self._last:
                shape = (self._store.num_rows, self.length, *values.shape[2:])
                self._last[name] = values.new_zeros(shape)
            self._last[name][where, positions] = values


class _Store(Cache):  # type: ignore[misc]  # transformers is not typed
    """Keys and values of every row and column; columns are counted from the right.

    A forward computes some columns of some rows, says so by ``select``, and attends to all of them.
    """

    def __init__(self, num_rows: int) -> None:
        super().__init__(layers=[])
        self.num_rows = num_rows
        self._kept: list[tuple[Tensor, Tensor]] = []  # per layer, each (N, T, heads, d)

    def select(self, rows: NDArray[np.int64], columns: Tensor, width: int) -> None:
        """Says what the next forward computes: ``columns`` ``(R, W)`` out of ``width``."""
        self._rows = torch.as_tensor(rows)
        self._columns, self._width = columns, width

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Takes what was computed, ``(R, heads, W, d)``, and gives all there is, ``(R, heads, T, d)``."""
        if layer_idx == len(self._kept):
            shape = (self.num_rows, self._width, key_states.shape[1], key_states.shape[3])
            self._kept.append((key_states.new_zeros(shape), key_states.new_zeros(shape)))
        missing = self._width - self._kept[layer_idx][0].shape[1]
        if missing > 0:
            key, value = self._kept[layer_idx]
            padding = (0, 0, 0, 0, missing, 0)
            self._kept[layer_idx] = F.pad(key, padding), F.pad(value, padding)
        key, value = (
            self._exchange(kept, new)
            for kept, new in zip(self._kept[layer_idx], (key_states, value_states), strict=True)
        )
        return key, value

    def _exchange(self, kept: Tensor, new: Tensor) -> Tensor:
        rows = self._rows.to(kept.device)
        columns = self._columns.to(kept.device) - self._width + kept.shape[1]
        kept[rows[:, None], columns] = new.transpose(1, 2)  # (R, W, heads, d)
        return kept[rows, kept.shape[1] - self._width :].transpose(1, 2)


def residual_context(probabilities: Tensor, embeddings: Tensor, mask_embedding: Tensor) -> Tensor:
    """What a masked position is fed with in the next step of Residual Context Diffusion.

    ``(1 - a) E[mask] + a sum_j p_j E_j`` with ``a = H(p) / log V``: the less certain the last step was,
    the more of what it thought is passed on.

    Source: arXiv 2601.22954.

    Args:
        probabilities: ``(..., V)``, each summing to 1.
        embeddings: ``(V, H)``, the model's input embeddings.
        mask_embedding: ``(H,)``.

    Returns:
        ``(..., H)``.
    """
    entropy: Tensor = torch.special.entr(probabilities).sum(-1, keepdim=True)  # (..., 1), nats
    share = entropy / math.log(probabilities.shape[-1])
    return (1 - share) * mask_embedding + share * (probabilities @ embeddings)


def soft_mask(
    probabilities: Tensor,
    embeddings: Tensor,
    mask_embedding: Tensor,
    *,
    scale: Tensor | float,
    steepness: Tensor | float,
    offset: Tensor | float,
) -> Tensor:
    """What a masked position is fed with in the next step of a dLLM with soft masks.

    ``(1 - a) E[mask] + a sum_j p_j E_j`` over the three likeliest tokens, whose probabilities are scaled to
    sum to 1, with ``a = scale * sigmoid(steepness * (-H(p) - offset))`` and H in nats. With a positive
    steepness the certain positions pass on more, with a negative one the uncertain ones, as in
    ``residual_context``. The three numbers are learned with the dLLM.

    Source: arXiv 2510.17206, IBM/soft-masked-diffusion-language-models, ``language/transparency_head.py``.

    Args:
        probabilities: ``(..., V)``, each summing to 1.
        embeddings: ``(V, H)``, the model's input embeddings.
        mask_embedding: ``(H,)``.
        scale: The largest share; with 0 there are plain masks.
        steepness: Per nat.
        offset: Nats; below 0, as it stands beside a negative entropy.

    Returns:
        ``(..., H)``.
    """
    entropy = torch.special.entr(probabilities).sum(-1, keepdim=True)  # (..., 1), nats
    share = scale * torch.sigmoid(steepness * (-entropy - offset))
    likeliest, tokens = probabilities.topk(min(_LIKELIEST, probabilities.shape[-1]))  # (..., 3)
    likeliest = likeliest / likeliest.sum(-1, keepdim=True)
    expected = (likeliest[..., None] * embeddings[tokens]).sum(-2)  # (..., H)
    return (1 - share) * mask_embedding + share * expected


class ResidualMemory:
    """Masked positions are fed with what the last step thought of them.

    A step on an unchanged canvas is not computed, so nothing is thought of twice.

    Args:
        backend: Whose model computes.
        mix: ``residual_context`` (Residual Context Diffusion), or ``soft_mask`` with its numbers.
        start: What an episode begins with: ``cold``, plain masks, or ``warm``, what a further forward on
            plain masks thinks of them.
        num_rows: N, number of episodes.
        length: L, number of positions of a completion.
    """

    def __init__(self, backend: Computing, mix: Mix, start: str, num_rows: int, length: int) -> None:
        self.backend, self.mix, self.start, self.length = backend, mix, start, length
        self._context = self._mask.repeat(num_rows, length, 1)  # (N, L, H)
        self._begun = np.zeros(num_rows, dtype=bool)
        self.first_forwards = int(start == "warm")

    @property
    def _embeddings(self) -> Any:  # the model's: copies of an environment do not copy them
        return self.backend.model.get_input_embeddings()

    @property
    def _mask(self) -> Tensor:  # (H,)
        mask: Tensor = self._embeddings.weight[self.backend.mask_token_id]
        return mask.detach()

    @torch.inference_mode()
    def forget(self, rows: NDArray[np.int64]) -> None:
        """The episodes of these rows begin."""
        self._context[rows] = self._mask
        self._begun[rows] = False

    @torch.inference_mode()
    def predict(
        self,
        rows: NDArray[np.int64],
        windows: NDArray[np.int64],
        tokens: Tensor,
        attention_mask: Tensor,
        *,
        statistics: Sequence[str] = (),
        **options: Any,
    ) -> Prediction:
        """See ``Memory.predict``."""
        backend = self.backend
        backend.check_length(attention_mask)
        tokens, attention_mask = tokens.to(backend.device), attention_mask.to(backend.device)
        new = np.flatnonzero(~self._begun[rows])
        if self.start == "warm" and len(new):
            self._forward(rows[new], tokens[new], attention_mask[new])
        self._begun[rows] = True
        logits, given = self._forward(rows, tokens, attention_mask, attention="attention" in statistics)
        return backend.prediction(logits, given, tokens[:, -self.length :], statistics=statistics, **options)

    def _forward(
        self, rows: NDArray[np.int64], tokens: Tensor, attention_mask: Tensor, *, attention: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        backend = self.backend
        embedded = self._embeddings(tokens)  # (R, T, H)
        masked = tokens[:, -self.length :, None] == backend.mask_token_id
        inside = embedded[:, -self.length :]
        embedded = torch.cat(
            [embedded[:, : -self.length], torch.where(masked, self._context[rows].to(embedded), inside)],
            dim=1,
        )
        positions = torch.arange(tokens.shape[1] - self.length, tokens.shape[1], device=backend.device)
        logits, given = backend.forward(tokens, attention_mask, positions, embedded, attention=attention)
        logits = logits.float()
        logits[..., backend.mask_token_id] = -torch.inf
        self._context[rows] = self.mix(
            logits.softmax(-1), self._embeddings.weight.float(), self._mask.float()
        ).to(self._context)
        return logits, given
