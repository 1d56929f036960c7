"""Rules that say which positions come first; how many of them a step reveals is settled beforehand.

Common to these and all other rules: every row is decided on its own, ties go to the lowest index, only
candidates (positions with ``action_mask`` 1) are ranked, and a row with candidates reveals at least one. c is
the confidence, H the entropy in nats, n a rank counted from 1, L the number of positions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from dllm_gym.strategies.base import (
    BoolArray,
    FloatArray,
    IntArray,
    Strategy,
    check_integer,
    check_number,
    top_k,
)
from dllm_gym.strategies.draws import Draws
from dllm_gym.strategies.schedules import dreams_masks


class TopK(Strategy):
    """Reveals the k candidates of lowest cost; a rule of this family says what a position costs.

    Args:
        k: Positions to reveal per step, an integer >= 1; ``None`` is 1. A row with fewer candidates reveals
            all of them.
        steps_per_block: Instead of ``k``: every block is revealed in so many steps, at most its length. Where
            the division is uneven the first steps reveal one more, the schedule of LLaDA's ``generate.py``
            (``get_num_transfer_tokens``; its ``steps`` are those of all blocks together). 10 positions in 4
            steps are 3, 3, 2, 2.
        dream_steps: Instead of ``k``, in full diffusion: the schedule of Dream's ``diffusion_generate`` with
            so many ``steps`` (see ``schedules.dreams_masks``). 10 positions in 4 steps are 2, 2, 2, 4. Steps
            that would reveal nothing are left out.
        eps: Where the time of that schedule ends, above 0 and at most 1; ``None`` is Dream's 0.001.

    Raises:
        ValueError: For numbers of steps or positions that are no integer >= 1, for more than one of them, for
            an ``eps`` out of range or without ``dream_steps``, or (in ``act``, at the first step of an
            episode) for more ``steps_per_block`` than a block has positions, or ``dream_steps`` in blocks.
    """

    def __init__(
        self,
        k: int | None = None,
        *,
        steps_per_block: int | None = None,
        dream_steps: int | None = None,
        eps: float | None = None,
    ) -> None:
        numbers = {"k": k, "steps_per_block": steps_per_block, "dream_steps": dream_steps}
        given = {name: value for name, value in numbers.items() if value is not None} or {"k": 1}
        if len(given) > 1:
            said = " and ".join(map(repr, given.values()))
            raise ValueError(f"give {' or '.join(given)}, not both; got {said}")
        if eps is not None and "dream_steps" not in given:
            raise ValueError(f"eps {eps!r} is for dream_steps, which is not given")
        parameters: dict[str, int | float] = {
            name: check_integer(name, value, minimum=1) for name, value in given.items()
        }
        if "dream_steps" in given:
            parameters["eps"] = check_number("eps", 1e-3 if eps is None else eps, 0, 1, exclusive=True)
        super().__init__(**parameters)

    def select(self, observation: Mapping[str, ArrayLike], candidates: BoolArray) -> BoolArray:
        """The k candidates of lowest cost."""
        k = self.parameters["k"] if "k" in self.parameters else self._scheduled(observation, candidates)
        return top_k(self.cost(observation, candidates), candidates, k)

    def _scheduled(self, observation: Mapping[str, ArrayLike], candidates: BoolArray) -> IntArray:
        """Positions to reveal in this step, ``(B, 1)``."""
        used = self.steps_used(observation, candidates.shape[-1])  # (B, 1)
        left = candidates.sum(axis=-1, keepdims=True)  # (B, 1)
        if "dream_steps" in self.parameters:
            return self._as_dream(used, left, candidates.shape[-1])
        return self._as_llada(used, left)

    def _as_llada(self, used: IntArray, left: IntArray) -> IntArray:
        """What is left over the steps left, rounded up.

        As every block takes the same number of steps, the steps used say how many are left in this one.
        """
        steps = self.parameters["steps_per_block"]
        short = (used == 0) & (left > 0) & (left < steps)
        if short.any():
            raise ValueError(f"steps_per_block {steps} exceeds the {left[short][0]} positions of a block")
        k: IntArray = -(-left // (steps - used % steps))
        return k

    def _as_dream(self, used: IntArray, left: IntArray, length: int) -> IntArray:
        """What is masked above the schedule's next number."""
        blocks = (used == 0) & (left > 0) & (left < length)
        if blocks.any():
            raise ValueError(
                f"dream_steps is the schedule of a whole completion, {length} positions; a block of "
                f"{left[blocks][0]} takes steps_per_block"
            )
        masked = dreams_masks(length, self.parameters["dream_steps"], self.parameters["eps"])
        below = np.maximum(np.searchsorted(masked, left) - 1, 0)  # nothing is left of a row that is done
        k: IntArray = left - masked[below]
        return k

    @abstractmethod
    def cost(self, observation: Mapping[str, ArrayLike], candidates: BoolArray) -> FloatArray | IntArray:
        """What revealing each position costs, ``(B, L)``; ignored outside ``candidates``."""


class Random(TopK):
    """Reveals k candidates drawn uniformly, as the random remasking of LLaDA (arXiv 2502.09992).

    Every batch row draws from its own generator and only while it has candidates, so what a row draws
    never depends on its neighbours. Whoever drives the episodes calls ``seed`` when a row starts one.

    The positions revealed are those of the smallest numbers. The released loop takes the largest of its own
    draws, and draws for the prompt as well.

    Args:
        k: As in ``TopK``.
        seed: Row r draws from a generator seeded with ``[seed, r]`` until ``seed()`` gives it another. It
            is no part of the rule, hence neither in ``parameters`` nor in ``label``.
        steps_per_block: As in ``TopK``, like what follows.
        dream_steps: See there.
        eps: See there.

    Raises:
        ValueError: As ``TopK``, and for a seed that is no integer >= 0.
    """

    name = "random"
    paper = "LLaDA, arXiv 2502.09992"

    def __init__(
        self,
        k: int | None = None,
        seed: int = 0,
        *,
        steps_per_block: int | None = None,
        dream_steps: int | None = None,
        eps: float | None = None,
    ) -> None:
        super().__init__(k, steps_per_block=steps_per_block, dream_steps=dream_steps, eps=eps)
        self._draws = Draws(seed)

    def seed(self, rows: Sequence[int] | IntArray, seeds: Sequence[int] | IntArray) -> None:
        """Starts new random generators, as ``Draws.seed``."""
        self._draws.seed(rows, seeds)

    def cost(self, observation: Mapping[str, ArrayLike], candidates: BoolArray) -> FloatArray:
        """L uniform numbers for each row with candidates, from that row's generator."""
        rows, length = candidates.shape
        return self._draws.uniform(np.flatnonzero(candidates.any(axis=-1)), rows, length)


class Confidence(TopK):
    """Reveals the k most confident candidates, as MaskGIT (arXiv 2202.04200).

    LLaDA calls it low-confidence remasking, and ``steps_per_block`` gives its schedule. Two things differ
    from the released ``generate.py``: of equal confidences (float32 has many close to 1) the lowest index
    comes first, where the order of ``torch.topk`` is undefined; and the mask token, never written here, has
    no part in the softmax.
    """

    name = "confidence"
    paper = "MaskGIT, arXiv 2202.04200"

    def cost(self, observation: Mapping[str, ArrayLike], candidates: BoolArray) -> FloatArray:
        """-c."""
        return -self.read(observation, "confidence")


class Margin(TopK):
    """Reveals the k candidates with the largest top probability margin (arXiv 2502.06768).

    The margin is the largest minus the second largest probability over the vocabulary.
    """

    name = "margin"
    paper = "arXiv 2502.06768"
    requires = ("margin",)

    def cost(self, observation: Mapping[str, ArrayLike], candidates: BoolArray) -> FloatArray:
        """The negative margin."""
        return -self.read(observation, "margin")


class Entropy(TopK):
    """Reveals the k candidates of lowest entropy, as Dream's ``entropy`` (arXiv 2508.15487).

    This is the rule at ``alg_temp`` none: nothing is drawn.
    """

    name = "entropy"
    paper = "Dream, arXiv 2508.15487"
    requires = ("entropy",)

    def cost(self, observation: Mapping[str, ArrayLike], candidates: BoolArray) -> FloatArray:
        """H."""
        return self.read(observation, "entropy")


class LeftToRight(TopK):
    """Reveals the k leftmost candidates: d2Cache's ``ar`` (arXiv 2509.23094), SDAR's ``sequential``
    (arXiv 2510.06303).
    """

    name = "left-to-right"
    paper = "d2Cache, arXiv 2509.23094"

    def cost(self, observation: Mapping[str, ArrayLike], candidates: BoolArray) -> IntArray:
        """The position's index."""
        return np.broadcast_to(np.arange(candidates.shape[-1]), candidates.shape)


class Ascending(Strategy):
    """Reveals the ``growth ** i`` most confident candidates in step i = 0, 1, ..., and soon all the others.

    ASS, the ascending step size of arXiv 2509.23924, in full diffusion: with S the largest number for which
    ``growth ** S <= L``, step S - 1 reveals everything that is left. 8 positions take 1, 2, 5; 48 take
    1, 2, 4, 8, 33. This is ``ass_generate`` of the released code with one block; its split into blocks of one
    power of 2 each is not there.

    Args:
        growth: A number > 1; the paper's is 2. What is no whole number is rounded down.

    Raises:
        ValueError: For any other growth.
    """

    name = "ass"
    paper = "EOSER/ASS, arXiv 2509.23924"

    def __init__(self, growth: float = 2.0) -> None:
        super().__init__(growth=check_number("growth", growth, 1, exclusive=True))

    def select(self, observation: Mapping[str, ArrayLike], candidates: BoolArray) -> BoolArray:
        """As many of the most confident as the step says."""
        length = candidates.shape[-1]
        sizes = []  # of the steps before the last one
        power = self.parameters["growth"]
        while power * self.parameters["growth"] <= length:
            sizes.append(int(power / self.parameters["growth"]))
            power *= self.parameters["growth"]
        step = np.minimum(self.steps_used(observation, length), len(sizes))  # (B, 1)
        k = np.array([*sizes, length])[step]
        return top_k(-self.read(observation, "confidence"), candidates, k)
