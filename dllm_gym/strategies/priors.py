"""Rules that correct the confidence by what is known beforehand: of positions, of end tokens, of a corpus.

What is common to all rules and the letters are explained in ``topk``.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dllm_gym.fields import check, list_of, number
from dllm_gym.files import read_json
from dllm_gym.strategies.base import BoolArray, FloatArray, check_number
from dllm_gym.strategies.topk import TopK


class EosDamping(TopK):
    """Reveals the k most confident candidates, where end tokens count for less while much is masked.

    EOSER (arXiv 2509.23924): a dLLM is sure of the padding behind its answer before it has one. The
    confidence of a position that would become an end token is multiplied by a factor that rises evenly from
    ``damping`` at the first step to 1 at the last.

    The factor is ``damping + (1 - damping) * revealed / (L - k)``, ``revealed`` the number of positions
    revealed so far: the paper's ``step / (steps - 1)``; ``steps_per_block`` counts as k = 1. The released
    loop counts ``step`` anew in every block and ``steps`` over all of them, so that the damping never ends
    where there are several.

    Args:
        damping: A number in [0, 1]; 1 is ``confidence``.
        k: As in ``TopK``.
        steps_per_block: As in ``TopK``.

    Raises:
        ValueError: As ``TopK``, and for any other damping.
    """

    name = "eoser"
    paper = "EOSER/ASS, arXiv 2509.23924"
    requires = ("ends",)

    def __init__(
        self, damping: float = 0.4, k: int | None = None, *, steps_per_block: int | None = None
    ) -> None:
        super().__init__(k, steps_per_block=steps_per_block)
        self.parameters = {"damping": check_number("damping", damping, 0, 1), **self.parameters}

    def cost(self, observation: Mapping[str, ArrayLike], candidates: BoolArray) -> FloatArray:
        """-c, damped, in float64."""
        damping = self.parameters["damping"]
        revealed = (self.read(observation, "mask") == 0).sum(axis=-1, keepdims=True)  # (B, 1)
        before_last = candidates.shape[-1] - self.parameters.get("k", 1)
        share = np.minimum(revealed / before_last, 1.0) if before_last > 0 else 1.0
        ends = self.read(observation, "ends") != 0
        factor = np.where(ends, damping + (1 - damping) * share, 1.0)
        cost: FloatArray = -self.read(observation, "confidence", dtype=np.float64) * factor
        return cost


class PCSampler(TopK):
    """Reveals the k candidates that are sure, informative and near the beginning.

    PC-Sampler (arXiv 2508.13021): the score is ``exp(-decay * i) * min(-c * log(f + 1e-9), cap)``, i the
    position counted from 0 and f how frequent the token that would be written is in a corpus. Counted from
    the first position of a block, as in the released code, the order within the block is the same.

    Args:
        decay: A number >= 0; the paper takes 0.25 for most tasks, 0 for sudoku, 0.5 for countdown.
        k: As in ``TopK``.
        steps_per_block: As in ``TopK``.
        cap: A number > 0.
        frequencies: A JSON file with a list of numbers >= 0, how often each token id occurs; ids that are
            not there or never occur count as occurring once. Without it all tokens are alike: -log f is 1.

    Raises:
        ValueError: As ``TopK``, and for parameters out of range or a file that holds anything else.
        OSError: If the file cannot be read.
    """

    name = "pc-sampler"
    paper = "PC-Sampler, arXiv 2508.13021"

    def __init__(
        self,
        decay: float = 0.25,
        k: int | None = None,
        *,
        steps_per_block: int | None = None,
        cap: float = 10.0,
        frequencies: str | Path | None = None,
    ) -> None:
        super().__init__(k, steps_per_block=steps_per_block)
        own: dict[str, Any] = {
            "decay": check_number("decay", decay, 0),
            "cap": check_number("cap", cap, 0, exclusive=True),
        }
        self._information: FloatArray | None = None
        if frequencies is not None:
            own["frequencies"] = str(frequencies)
            self._information = _information(frequencies)
            self.requires = ("predicted",)
        self.parameters = {**own, **self.parameters}

    @property
    def fingerprint(self) -> str:
        """The label, and what the file of frequencies says."""
        if self._information is None:
            return self.label
        return f"{self.label} {sha256(self._information.tobytes()).hexdigest()}"

    def cost(self, observation: Mapping[str, ArrayLike], candidates: BoolArray) -> FloatArray:
        """The negative score, in float64."""
        confidence = self.read(observation, "confidence", dtype=np.float64)
        information = np.ones_like(confidence)
        if self._information is not None:
            tokens = self.read_tokens(observation, "predicted")
            information = self._information[np.minimum(tokens, len(self._information) - 1)]
        early = np.exp(-self.parameters["decay"] * np.arange(candidates.shape[-1]))
        cost: FloatArray = -early * np.minimum(confidence * information, self.parameters["cap"])
        return cost


def _information(file: str | Path) -> FloatArray:
    """-log(f + 1e-9) of every token id ``(V + 1,)``; the last one is that of ids beyond the file's."""
    counts = read_json(file)
    check(counts, list_of(number(0)), str(file))
    occurrences = np.array([*counts, 0.0])
    total = max(occurrences.sum(), 1.0)
    information: FloatArray = -np.log(np.maximum(occurrences, 1.0) / total + 1e-9)
    return information
