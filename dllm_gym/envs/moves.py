"""What an action may do to the canvas, and how long: revealing only, or taking back and replacing as well."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dllm_gym.envs.checks import one_of, positive
from dllm_gym.envs.rows import BoolArray

ACTIONS = ("reveal", "set-state", "edit")
FINISH = ("full", "confirm")
SURE, DOUBTED = 0.5, 0.2  # above and below which probabilities a token has drifted


@dataclass(frozen=True)
class Moves:
    """The rules of a game, as ``UnmaskEnv`` documents them.

    Attributes:
        actions: ``reveal``, ``set-state`` or ``edit``.
        max_steps: The budget of steps.
        max_remasks: How often a position may be taken back; ``None`` is without end.
        forbid_remask: Whether nothing may be taken back although the actions could.
        finish: ``full`` or ``confirm``.
    """

    actions: str
    max_steps: int
    max_remasks: int | None
    forbid_remask: bool
    finish: str

    @classmethod
    def checked(
        cls, length: int, actions: str, max_steps: Any, max_remasks: Any, forbid_remask: bool, finish: str
    ) -> Moves:
        """The rules for completions of L positions.

        Raises:
            ValueError: For values out of range, or rules of taking back where nothing can be.
        """
        moves = cls(
            one_of("actions", actions, ACTIONS),
            length if max_steps is None else positive("max_steps", max_steps),
            None if max_remasks is None else positive("max_remasks", max_remasks),
            bool(forbid_remask),
            one_of("finish", finish, FINISH),
        )
        if actions == "reveal" and (max_remasks is not None or finish != "full"):
            raise ValueError(
                "max_remasks and finish='confirm' are for actions='set-state' and 'edit'; got "
                f"{max_remasks!r} and {finish!r} with actions='reveal'"
            )
        return moves

    def description(self, length: int) -> dict[str, Any]:
        """The rules as JSON values; none if they are the plain ones: reveal, within L steps."""
        plain = self.actions == "reveal" and self.max_steps == length
        return {} if plain else asdict(self)

    @property
    def can_take_back(self) -> bool:
        """Whether there are actions that take tokens back, allowed or not."""
        return self.actions != "reveal"

    @property
    def replaces(self) -> bool:
        """Whether what is taken back is written anew in the same step."""
        return self.actions == "edit"

    @property
    def remasks(self) -> int:
        """How often a position may be taken back."""
        if not self.can_take_back or self.forbid_remask:
            return 0
        return self.max_steps if self.max_remasks is None else self.max_remasks


def commit_drift(
    when_written: NDArray[np.float32], in_the_end: NDArray[np.float32], revealed: BoolArray
) -> NDArray[np.float64]:
    """Share of revealed tokens that the dLLM was sure of when it wrote them, and doubts in the end.

    It bounds what taking back can repair from above, as far as the dLLM itself can tell: a token counts if
    its probability was above 0.5 when it was written and is below 0.2 given the whole text.

    Args:
        when_written: ``(R, L)``.
        in_the_end: ``(R, L)``.
        revealed: ``(R, L)``; what is masked has no part.

    Returns:
        ``(R,)``, 0 where nothing is revealed.
    """
    drifted = revealed & (when_written > SURE) & (in_the_end < DOUBTED)
    share: NDArray[np.float64] = drifted.sum(axis=1) / np.maximum(revealed.sum(axis=1), 1)
    return share
