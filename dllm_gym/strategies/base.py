"""What every strategy is, and the ranking helpers and parameter checks the rules share."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, SupportsFloat, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dllm_gym.arguments import call_named

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]


class Strategy(ABC):
    """A rule that maps an observation of ``DLLMUnmask-v0`` to the positions to reveal.

    ``act`` is what environments, evaluation and generation call. A new rule writes ``select``, in which
    observations always come as a batch and every row is decided on its own. Where tokens could be taken back,
    it lets them stand; rules that do take back are ``dllm_gym.strategies.remasking.RemaskingRule``.

    Args:
        **parameters: What distinguishes this strategy from others of its rule; JSON-able values.

    Attributes:
        name: The rule's registered name.
        paper: Where it comes from, such as ``Fast-dLLM, arXiv 2505.22618``; empty for a rule of your own.
        requires: Observation keys the rule reads that the environment gives only on request, with
            ``observe=requires``.
        plays: The arguments of ``UnmaskEnv`` that say by which rules it plays; none of one that only reveals.
        parameters: The parameter values.
    """

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    requires: tuple[str, ...] = ()
    plays: ClassVar[Mapping[str, Any]] = {}
    parameters: dict[str, Any]

    def __init__(self, **parameters: Any) -> None:
        self.parameters = parameters

    @property
    def label(self) -> str:
        """Name and parameters for tables and plots, such as ``fast-dllm(threshold=0.9)``."""
        values = ", ".join(f"{name}={value!r}" for name, value in self.parameters.items())
        return f"{self.name}({values})"

    @property
    def fingerprint(self) -> str:
        """What tells this strategy from every other one, for results that are kept."""
        return self.label

    def __repr__(self) -> str:
        return self.label

    def with_options(self, **options: Any) -> Strategy:
        """The same rule with other parameters; those that are not given stay as they are.

        Raises:
            ValueError: For parameters the rule does not take, or values out of range.
        """
        strategy: Strategy = call_named(f"strategy {self.name!r}", type(self), {**self.parameters, **options})
        return strategy

    def act(self, observation: Mapping[str, ArrayLike]) -> NDArray[np.int8]:
        """The positions to reveal next.

        Args:
            observation: Arrays by key, ``(B, L)`` each, or ``(L,)`` for a single environment. Positions
                with ``action_mask`` 1 are the candidates, as far as they are masked or the rule takes back;
                the rule reads further keys.

        Returns:
            int8 in the shape of ``action_mask``: 1 at candidates to reveal, at least one in every row that
            has a candidate, and at revealed positions in ``action_mask`` that stand; 0 elsewhere.

        Raises:
            ValueError: For a missing key or arrays of the wrong shape.
        """
        action_mask = np.asarray(self._lookup(observation, "action_mask"))
        if action_mask.ndim not in (1, 2):
            raise ValueError(
                f"observation['action_mask'] has shape {action_mask.shape}; accepted are (L,) and (B, L)"
            )
        allowed = np.atleast_2d(action_mask != 0)  # (B, L)
        # without a mask, every position that may be chosen is masked
        masked = np.atleast_2d(np.asarray(observation.get("mask", action_mask)) != 0)
        candidates = allowed if self.plays else allowed & masked
        selected = (self.select(observation, candidates) & candidates) | (allowed & ~candidates)
        action: NDArray[np.int8] = selected.astype(np.int8).reshape(action_mask.shape)
        return action

    @abstractmethod
    def select(self, observation: Mapping[str, ArrayLike], candidates: BoolArray) -> BoolArray:
        """The rule itself.

        Args:
            observation: As given to ``act``; take arrays from it with ``self.read``.
            candidates: ``(B, L)`` bool.

        Returns:
            ``(B, L)`` bool, at least one candidate per row that has any; what lies outside ``candidates``
            is dropped by ``act``.
        """

    def read(
        self,
        observation: Mapping[str, ArrayLike],
        key: str,
        *,
        axes: int = 0,
        dtype: type[np.floating[Any]] = np.float32,
    ) -> FloatArray:
        """``observation[key]`` as a batch, also if the observation is a single one.

        Args:
            observation: As given to ``act``.
            key: Which array.
            axes: How many axes it has behind that of the positions: 1 for ``top_k`` and ``attention``.
            dtype: What to make of it.

        Returns:
            ``(B, L)``, or ``(B, L, ...)`` with further axes.

        Raises:
            ValueError: If the key is missing or its array has another shape than ``action_mask``.
        """
        return self._batched(observation, key, np.asarray(self._lookup(observation, key), dtype), axes)

    def read_tokens(self, observation: Mapping[str, ArrayLike], key: str) -> IntArray:
        """Token ids ``(B, L)`` int64, such as ``predicted``; otherwise as ``read``."""
        return self._batched(observation, key, np.asarray(self._lookup(observation, key), np.int64), 0)

    def _batched(
        self, observation: Mapping[str, ArrayLike], key: str, values: NDArray[Any], axes: int
    ) -> NDArray[Any]:
        expected = np.shape(observation["action_mask"])
        if values.shape[: values.ndim - axes] != expected:
            more = f" and {axes} more" if axes else ""
            raise ValueError(
                f"observation[{key!r}] has shape {values.shape}; accepted is that of action_mask, "
                f"{expected}{more}"
            )
        return values if len(expected) == 2 else values[None]

    def steps_used(self, observation: Mapping[str, ArrayLike], length: int) -> IntArray:
        """The steps each row has taken, ``(B, 1)``, in an environment of L = ``length`` positions."""
        progress = np.asarray(self._lookup(observation, "progress"), dtype=np.float64).reshape(-1, 1)
        return np.rint(progress * length).astype(np.int64)

    def _lookup(self, observation: Mapping[str, ArrayLike], key: str) -> ArrayLike:
        if key in observation:
            return observation[key]
        if key in self.requires:
            remedy = f"make the environment with observe={self.requires!r}"
        else:
            remedy = f"the observation has only {sorted(observation)}"
        raise ValueError(f"strategy {self.name!r} reads observation[{key!r}]; {remedy}")


class InBlocks:
    """Confines an agent to one block after another, whatever the environment would allow.

    In full diffusion this decodes semi-autoregressively: only the first block that still has a candidate is
    shown as selectable.

    Args:
        agent: Anything with ``act``.
        block_length: Positions per block, an integer >= 1.
    """

    def __init__(self, agent: Any, block_length: int) -> None:
        self.agent, self.block_length = agent, check_integer("block_length", block_length, minimum=1)
        self.name = agent.name
        self.label = f"{agent.label} in blocks of {block_length}"
        self.parameters = {**agent.parameters, "in_blocks_of": block_length}
        self.requires = tuple(getattr(agent, "requires", ()))
        self.plays = dict(getattr(agent, "plays", {}))
        for method in ("seed", "reset", "attach"):
            if hasattr(agent, method):
                setattr(self, method, getattr(agent, method))

    def act(self, observation: Mapping[str, ArrayLike]) -> NDArray[np.int8]:
        """The agent's action where all candidates outside the active block are hidden from it.

        What was revealed outside of it stands, also where it could be taken back, and so does a full canvas.
        """
        allowed = np.asarray(observation["action_mask"]) != 0  # (B, L)
        candidates = allowed & (np.asarray(observation.get("mask", allowed)) != 0)
        inside = allowed & first_block(candidates, self.block_length)
        action: NDArray[np.int8] = self.agent.act({**observation, "action_mask": inside.astype(np.int8)})
        standing = allowed & ~inside & ~candidates
        return np.where(standing, np.int8(1), action) if standing.any() else action


def first_block(candidates: BoolArray, block_length: int) -> BoolArray:
    """The first block of ``block_length`` positions that has a candidate ``(..., L)``; none if none has."""
    block = np.arange(candidates.shape[-1]) // block_length
    first: BoolArray = block == block[candidates.argmax(axis=-1)][..., None]
    return first & candidates.any(axis=-1, keepdims=True)


def best(score: FloatArray, candidates: BoolArray) -> BoolArray:
    """Selects the candidate of highest score in each row ``(B, L)``; of several the lowest index."""
    selected = np.zeros(candidates.shape, dtype=np.bool_)
    if selected.size:
        at = np.where(candidates, score, -np.inf).argmax(axis=-1)
        selected[np.arange(len(at)), at] = True
    return selected


def or_else(selected: BoolArray, candidates: BoolArray, instead: BoolArray) -> BoolArray:
    """``selected`` ``(B, L)`` in the rows in which it has a candidate, ``instead`` in the others."""
    chosen = selected & candidates
    return np.where(chosen.any(axis=-1, keepdims=True), chosen, instead)


def rank(cost: FloatArray | IntArray, candidates: BoolArray) -> IntArray:
    """Positions in the order a rule takes them: candidates by ascending cost, then all others.

    Ties go to the lowest index, and a candidate of whatever cost comes before all non-candidates.

    Args:
        cost: ``(B, L)``.
        candidates: ``(B, L)`` bool.

    Returns:
        ``(B, L)`` position indices, best first.
    """
    return np.lexsort((cost, ~candidates), axis=-1)


def prefix(order: IntArray, passes: BoolArray) -> BoolArray:
    """Selects the leading ranks up to the first that fails; rank 1 always passes.

    Args:
        order: ``(B, L)`` positions, best first, from ``rank``.
        passes: Bool by rank, ``(B, L)``, or ``(L,)`` if it is the same for all rows.

    Returns:
        ``(B, L)`` bool by position. It may reach past the candidates; ``Strategy.act`` drops those.
    """
    rank_one = np.arange(order.shape[-1]) == 0
    leading = np.logical_and.accumulate(passes | rank_one, axis=-1)
    selected = np.zeros(order.shape, dtype=np.bool_)
    selected[np.arange(len(order))[:, None], order] = leading
    return selected


def top_k(cost: FloatArray | IntArray, candidates: BoolArray, k: int | IntArray) -> BoolArray:
    """Selects the k candidates of lowest cost in each row, or all if there are fewer.

    Shapes and ties as in ``rank`` and ``prefix``; k may differ between rows, ``(B, 1)``.
    """
    return prefix(rank(cost, candidates), np.arange(candidates.shape[-1]) < k)


def check_integer(name: str, value: SupportsIndex, minimum: int) -> int:
    """Returns ``value`` as an int or raises ``ValueError`` saying what is accepted."""
    # bool has an __index__ too, but k=True is a mistake
    if not isinstance(value, bool | np.bool_) and hasattr(value, "__index__"):
        number = operator.index(value)
        if number >= minimum:
            return number
    raise ValueError(f"{name} must be an integer >= {minimum}, got {value!r}")


def check_number(
    name: str, value: SupportsFloat, minimum: float, maximum: float | None = None, *, exclusive: bool = False
) -> float:
    """Returns ``value`` as a float or raises ``ValueError`` saying what is accepted.

    Args:
        name: The parameter, for the message.
        value: What the user gave.
        minimum: Smallest value accepted.
        maximum: Largest value accepted; ``None`` accepts every number that float32 can hold.
        exclusive: Whether ``minimum`` itself is refused.
    """
    upper = float(np.finfo(np.float32).max) if maximum is None else maximum
    number = value.item() if isinstance(value, np.generic) else value
    if isinstance(number, int | float) and not isinstance(number, bool):
        above = minimum < number if exclusive else minimum <= number
        if above and number <= upper:  # NaN fails both
            return float(number)
    if maximum is None:
        bounds = f"{'>' if exclusive else '>='} {minimum}"
    else:
        bounds = f"in {'(' if exclusive else '['}{minimum}, {maximum}]"
    raise ValueError(f"{name} must be a finite number {bounds}, got {value!r}")
