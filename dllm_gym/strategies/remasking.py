"""Rules that take tokens back: what they say about a position is whether it shall be revealed.

They play with ``actions="set-state"`` and judge all positions of the active block, masked or not. A finished
block is final, which the published loops without blocks know nothing of. Every step is one forward, whether
it reveals, takes back or both. w is the probability now of the token that stands (``written``); what is
common to all rules and the other letters are explained in ``topk``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from dllm_gym.strategies.base import (
    BoolArray,
    FloatArray,
    IntArray,
    best,
    check_integer,
    check_number,
    or_else,
    top_k,
)
from dllm_gym.strategies.draws import Draws
from dllm_gym.strategies.memory import Kept, Remembering

SCHEDULES = ("cap", "rescale", "conf", "loop")
SIGNALS = {
    "low-prob": 0.5,
    "t2t-remask": 0.9,
    "logit-diff": 0.3,
}  # of T2M, with the limits of its released code
_LOOP_BEGIN, _LOOP_END, _IN_LOOP = 0.55, 0.05, 0.9  # of ReMDM: times, and the share revealed between them


class RemaskingRule(Remembering):
    """A rule that remembers, and may take back: its ``candidates`` are all positions that may change.

    Those it selects are revealed or stand, the others are masked or stay so.
    """

    plays: ClassVar[Mapping[str, Any]] = {"actions": "set-state"}

    def masks(self, observation: Mapping[str, ArrayLike]) -> BoolArray:
        """``(B, L)``: where a mask stands."""
        masked: BoolArray = self.read(observation, "mask") != 0
        return masked

    def now(self, observation: Mapping[str, ArrayLike]) -> FloatArray:
        """C where a mask stands, w where a token does, ``(B, L)``."""
        confidence, written = self.read(observation, "confidence"), self.read(observation, "written")
        return np.where(self.masks(observation), confidence, written)

    def surer_of_another(self, observation: Mapping[str, ArrayLike], limit: float) -> BoolArray:
        """``(B, L)``: where the dLLM would write another token, of a probability > ``limit``."""
        predicted, tokens = (
            self.read_tokens(observation, "predicted"),
            self.read_tokens(observation, "tokens"),
        )
        surer = self.read(observation, "predicted_confidence") > np.float32(limit)
        another: BoolArray = surer & (predicted != tokens)
        return another


class WINO(RemaskingRule):
    """Reveals generously and takes back what the dLLM doubts.

    WINO (arXiv 2507.18578). *Draft*: all masked positions with c > ``threshold`` are revealed, at most
    0.7 of them, but not fewer than 5 nor more than 20, the surest first; the surest always. *Verify*: tokens
    with w < ``doubt`` are masked again if the draft has more than one. If they are as many as the draft of
    the step before (30 in the first step of a block), only the weakest of them, one fewer than that draft.
    So every step reveals at least one more on average.

    **What differs.** The released loop asks for w without showing the dLLM the token itself: a second, masked
    copy of the block sees everything but its own position, in a forward that is longer by a block. Here w is
    the ``written`` of the ordinary forward, in which the dLLM sees the token that it judges. That is not what
    it was trained for: with the published w ``tiny-arithmetic`` as trained is done in 0.6 to 0.9 times the
    forwards (``docs/strategies.md``).

    Args:
        threshold: A number in [0, 1] (tau 1; the paper takes 0.6 for GSM8K).
        doubt: A number in [0, 1] (tau 2).

    Raises:
        ValueError: For parameters out of range.
    """

    name = "wino"
    paper = "WINO, arXiv 2507.18578"
    requires = ("written",)

    def __init__(self, threshold: float = 0.7, doubt: float = 0.9) -> None:
        super().__init__(
            threshold=check_number("threshold", threshold, 0, 1), doubt=check_number("doubt", doubt, 0, 1)
        )

    def fresh(self, rows: int, length: int) -> Kept:
        """``drafted`` ``(B,)``: how many the step before revealed."""
        return {"drafted": np.zeros(rows, dtype=np.int64)}

    def choose(self, observation: Mapping[str, ArrayLike], candidates: BoolArray, kept: Kept) -> BoolArray:
        """The draft, and what stands verified."""
        sure = self.now(observation)  # (B, L)
        masked = candidates & self.masks(observation)
        passing = masked & (sure > np.float32(self.parameters["threshold"]))
        most = np.clip((0.7 * masked.sum(axis=-1)).astype(np.int64), 5, 20)
        few = top_k(-sure, passing, most[:, None]) & passing
        draft = or_else(few, masked, best(sure, masked) & masked)
        last = np.where(kept["block_steps"] == 0, 30, kept["drafted"])
        kept["drafted"] = draft.sum(axis=-1)
        doubted = candidates & ~masked & (sure < np.float32(self.parameters["doubt"]))
        doubted &= (kept["drafted"] > 1)[:, None]
        too_many = doubted.sum(axis=-1) >= last
        back = lowest(sure, doubted, np.where(too_many, last - 1, candidates.shape[-1]))
        return draft | (candidates & ~masked & ~back)


class ReMDM(RemaskingRule):
    """Takes tokens back at random, at the rate of a schedule.

    ReMDM (arXiv 2503.00307). A block takes ``steps`` steps. Step i goes from the share alpha_t = i / steps of
    revealed positions to alpha_s = (i + 1) / steps. Each token is taken back with probability sigma, each
    mask revealed with probability (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t). With
    sigma_max = min(1, (1 - alpha_s) / alpha_t) the schedules are

    - ``cap``: sigma = min(eta, sigma_max);
    - ``rescale``: sigma = eta sigma_max;
    - ``conf``: of each token eta sigma_max times its share in the softmax of -psi over the tokens that stand,
      psi the confidence when it was written; 0 for masks;
    - ``loop``: time t = 1 - i / steps falls; alpha rises to 0.9 until t = 0.55, stays there until t = 0.05
      with sigma = min(eta, sigma_max), and rises to 1 thereafter; sigma is 0 outside.

    Draws that change nothing are left out, and cost no forward: the dLLM would say the same once more. So a
    block takes at most ``steps`` forwards; an episode without enough of them ends with masks. What is
    written is the dLLM's best token, where the released code draws it.

    Args:
        steps: An integer >= 1.
        schedule: One of the four.
        eta: A number in [0, 1].
        seed: As in ``Draws``. It is no part of the rule, hence neither in ``parameters`` nor in ``label``.

    Raises:
        ValueError: For parameters out of range.
    """

    name = "remdm"
    paper = "ReMDM, arXiv 2503.00307"

    def __init__(self, steps: int = 16, schedule: str = "rescale", eta: float = 0.1, seed: int = 0) -> None:
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
        super().__init__(
            steps=check_integer("steps", steps, minimum=1),
            schedule=schedule,
            eta=check_number("eta", eta, 0, 1),
        )
        self._draws = Draws(seed)

    def seed(self, rows: Sequence[int] | IntArray, seeds: Sequence[int] | IntArray) -> None:
        """Starts new random generators, as ``Draws.seed``."""
        self._draws.seed(rows, seeds)

    def fresh(self, rows: int, length: int) -> Kept:
        """``drawn`` ``(B,)``: steps of the block that are over; ``sure`` ``(B, L)`` as in ``RCR``."""
        return {"drawn": np.zeros(rows, dtype=np.int64), "sure": np.zeros((rows, length))}

    def choose(self, observation: Mapping[str, ArrayLike], candidates: BoolArray, kept: Kept) -> BoolArray:
        """The next draw that changes anything."""
        masked = self.masks(observation)
        confidence = self.read(observation, "confidence", dtype=np.float64)  # (B, L)
        kept["sure"] = np.where(masked, confidence, kept["sure"])
        kept["drawn"] = np.where(kept["block_steps"] == 0, 0, kept["drawn"])
        selected = candidates & ~masked
        for row in np.flatnonzero(candidates.any(axis=-1)).tolist():
            standing, allowed = selected[row].copy(), candidates[row]
            while kept["drawn"][row] < self.parameters["steps"] and (selected[row] == standing).all():
                reveal, back = self._rates(int(kept["drawn"][row]), standing, kept["sure"][row])
                drawn = self._draws.uniform(np.array([row]), row + 1, len(standing))[row]
                selected[row] = allowed & np.where(standing, drawn >= back, drawn < reveal)
                kept["drawn"][row] += 1
        return selected

    def _rates(self, step: int, standing: BoolArray, sure: FloatArray) -> tuple[float, FloatArray]:
        """The probability that a mask is revealed, and of each position ``(L,)`` that it is taken back."""
        before, after = self._revealed(step), self._revealed(step + 1)
        most = min(1.0, (1 - after) / before) if before else 1.0
        eta, schedule = self.parameters["eta"], self.parameters["schedule"]
        sigma = eta * most if schedule in ("rescale", "conf") else min(eta, most)
        if schedule == "loop" and not before == after == _IN_LOOP:
            sigma = 0.0
        if schedule == "conf":
            weights = np.where(standing, np.exp(-sure), 0.0)
            return (after - before) / (1 - before), sigma * weights / max(weights.sum(), 1e-12)
        return (after - (1 - sigma) * before) / (1 - before), np.full(len(sure), sigma)

    def _revealed(self, step: int) -> float:
        """Alpha after so many steps."""
        time: float = 1 - step / self.parameters["steps"]
        if self.parameters["schedule"] != "loop":
            return 1 - time
        if time > _LOOP_BEGIN:
            return _IN_LOOP * (1 - time) / (1 - _LOOP_BEGIN)
        return _IN_LOOP if time > _LOOP_END else 1 - (1 - _IN_LOOP) * time / _LOOP_END


class Saber(RemaskingRule):
    """Reveals what is surer than what was revealed so far, and takes back what lost most.

    Saber (arXiv 2510.18165). All masked positions are revealed whose c is above the mean of the confidences
    with which positions were revealed in this episode, each as it was the last time, also if its token went
    back since. Where those are fewer than ``least`` (in the first step, that is), the ``least`` surest. Of
    all tokens then revealed in the block, the r whose probability changed least since the step before go
    back, that is fell most, with r = min(max(``least`` // 2, ceil(k / 8)), k - 1), k the number revealed in
    this step. In the first step the change is the probability itself. Once everything is revealed nothing
    goes back. Every step reveals at least one more.

    **What differs.** The probability at a token is w; the released code takes the largest one there, which is
    another where the dLLM would now write another token. What stands in finished blocks does not go back.

    Args:
        least: An integer >= 1 (n, 2 in the released code).

    Raises:
        ValueError: For parameters out of range.
    """

    name = "saber"
    paper = "Saber, arXiv 2510.18165"
    requires = ("written",)

    def __init__(self, least: int = 2) -> None:
        super().__init__(least=check_integer("least", least, minimum=1))

    def fresh(self, rows: int, length: int) -> Kept:
        """``accepted`` ``(B, L)``: c when it was revealed last, -1 if never; ``before``: the step before."""
        zeros = np.zeros((rows, length), dtype=np.float32)
        return {"accepted": zeros - 1, "before": zeros}

    def choose(self, observation: Mapping[str, ArrayLike], candidates: BoolArray, kept: Kept) -> BoolArray:
        """What is surer than usual, without what lost most."""
        sure, least = self.now(observation), self.parameters["least"]  # (B, L)
        masked = candidates & self.masks(observation)
        ever = kept["accepted"] >= 0
        total = np.where(ever, kept["accepted"], 0).sum(axis=-1, dtype=np.float64)
        usual = np.where(ever.any(axis=-1), total / np.maximum(ever.sum(axis=-1), 1), 1.0)
        passing = masked & (sure > usual[:, None])
        enough = passing.sum(axis=-1, keepdims=True) >= least
        new = masked & np.where(enough, passing, top_k(-sure, masked, least))
        number = new.sum(axis=-1)
        kept["accepted"] = np.where(new, sure, kept["accepted"])
        revealed = new | (candidates & ~masked)
        many = np.minimum(np.maximum(least // 2, -(-number // 8)), number - 1)
        many = np.where((revealed == candidates).all(axis=-1), 0, many)
        back = lowest(sure - kept["before"], revealed, many)
        kept["before"] = sure
        return revealed & ~back


class T2M(RemaskingRule):
    """The threshold rule, with tokens taken back that the dLLM has come to doubt.

    Token to mask (T2M, arXiv 2604.18738), in the loop of LLaDA2: all masked positions with c > ``threshold``
    are revealed, or else the surest. In the same step tokens that stood before go back by a ``signal``:

    - ``low-prob``: w < ``limit``, 0.5 if nothing is said;
    - ``t2t-remask``: another token would be written there, of a probability > ``limit``, 0.9;
    - ``logit-diff``: w fell by more than ``limit``, 0.3, since the step before. As in the released code
      nothing has fallen in the first step of a block that finds a token there.

    At most a quarter of those that stand goes back at once, but always one, those of the strongest signal
    first, and each at most ``times`` times. A full block is looked at until nothing goes back any more
    (``finish="confirm"``), which costs one forward at least.

    A block may take more steps than it has positions; an episode without enough of them ends with masks.

    Args:
        threshold: A number in [0, 1].
        signal: One of the three.
        limit: A number in [0, 1], or ``None``.
        times: An integer >= 1 (``max_remask_per_pos``, 5 in the released code).

    Raises:
        ValueError: For parameters out of range.
    """

    name = "t2m"
    paper = "T2M, arXiv 2604.18738"
    requires: tuple[str, ...] = ("written", "remasks")
    plays: ClassVar[Mapping[str, Any]] = {"actions": "set-state", "finish": "confirm"}

    def __init__(
        self, threshold: float = 0.7, signal: str = "low-prob", limit: float | None = None, times: int = 5
    ) -> None:
        if signal not in SIGNALS:
            raise ValueError(f"signal must be one of {', '.join(SIGNALS)}, got {signal!r}")
        super().__init__(
            threshold=check_number("threshold", threshold, 0, 1),
            signal=signal,
            limit=check_number("limit", SIGNALS[signal] if limit is None else limit, 0, 1),
            times=check_integer("times", times, minimum=1),
        )
        if signal == "t2t-remask":
            self.requires = (*self.requires, "tokens", "predicted", "predicted_confidence")

    def fresh(self, rows: int, length: int) -> Kept:
        """``before`` ``(B, L)``, the probabilities, and ``stood`` ``(B,)``, whether any token did."""
        return {
            "before": np.zeros((rows, length), dtype=np.float32),
            "stood": np.zeros(rows, dtype=np.bool_),
        }

    def choose(self, observation: Mapping[str, ArrayLike], candidates: BoolArray, kept: Kept) -> BoolArray:
        """What is sure, without what is doubted."""
        sure = self.now(observation)  # (B, L)
        masked = candidates & self.masks(observation)
        new = or_else(sure > np.float32(self.parameters["threshold"]), masked, best(sure, masked) & masked)
        standing = candidates & ~masked
        limit = np.float32(self.parameters["limit"])
        if self.parameters["signal"] == "low-prob":
            score, doubted = sure, standing & (sure < limit)
        elif self.parameters["signal"] == "t2t-remask":
            score = -self.read(observation, "predicted_confidence")
            doubted = standing & self.surer_of_another(observation, self.parameters["limit"])
        else:
            score = sure - kept["before"]
            known = kept["stood"] & (kept["block_steps"] > 0)
            doubted = standing & (-score > limit) & known[:, None]
        allowed = self.read(observation, "remasks") < self.parameters["times"]
        back = lowest(score, doubted & allowed, np.maximum(standing.sum(axis=-1) // 4, 1))
        kept |= {"before": sure, "stood": np.asarray(standing.any(axis=-1))}
        return new | (standing & ~back)


def lowest(score: FloatArray, among: BoolArray, number: IntArray) -> BoolArray:
    """The ``number`` ``(B,)`` positions of lowest score among some ``(B, L)``; none for 0 or less."""
    return top_k(score, among, number[:, None]) & among & (number > 0)[:, None]
