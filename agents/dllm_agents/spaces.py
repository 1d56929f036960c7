"""The policy network that fits an environment: what every RL library needs to know of the spaces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gymnasium import spaces

from dllm_agents.networks import DEFAULT_FEATURES, UnmaskTransformerConfig


def network_for(
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    *,
    features: Sequence[str] = DEFAULT_FEATURES,
    width: int = 32,
    heads: int = 2,
    mlp_width: int | None = None,
    layers: int = 1,
    initial_bias: float = -2.0,
    keep_prior: float | None = None,
    pair_width: int | None = None,
    critic: bool = True,
) -> UnmaskTransformerConfig:
    """The configuration of a network for these spaces.

    Args:
        observation_space: Dict with ``action_mask`` and what the features read.
        action_space: MultiBinary, one bit per position.
        features: See ``UnmaskTransformerConfig``, like the arguments that follow.
        width: See there.
        heads: See there.
        mlp_width: See there.
        layers: See there.
        initial_bias: See there. The sizes of the features ``top_k`` and ``hidden`` follow from the space.
        keep_prior: See there; for ``actions="set-state"`` or ``"edit"``.
        pair_width: See there.
        critic: Whether there is a value head.

    Raises:
        ValueError: For spaces of another kind, or without what the features read.
    """
    config = UnmaskTransformerConfig(
        features=tuple(features),
        width=width,
        heads=heads,
        mlp_width=mlp_width,
        layers=layers,
        initial_bias=initial_bias,
        keep_prior=keep_prior,
        pair_width=pair_width,
        value_head=critic,
        top_k=_last_axis(observation_space, "top_k") if "top_k" in features else 8,
        hidden_width=_last_axis(observation_space, "hidden") if "hidden" in features else None,
    )
    _check_spaces(observation_space, action_space, (*config.requires, "action_mask"))
    return config


def _last_axis(space: spaces.Space[Any], key: str) -> int:
    part = space.spaces.get(key) if isinstance(space, spaces.Dict) else None
    if part is None or part.shape is None:
        raise ValueError(f"the feature {key!r} needs the observation {key!r}: observe=({key!r},)")
    return int(part.shape[-1])


def _check_spaces(
    observation_space: spaces.Space[Any], action_space: spaces.Space[Any], keys: Sequence[str]
) -> None:
    if not isinstance(observation_space, spaces.Dict):
        raise ValueError(
            f"the observation space must be a Dict with {', '.join(keys)}; got {observation_space}"
        )
    missing = [key for key in dict.fromkeys(keys) if key not in observation_space.spaces]
    if missing:
        raise ValueError(
            f"the observation space lacks {missing}; it has {', '.join(observation_space.spaces)}"
        )
    if not isinstance(action_space, spaces.MultiBinary) or len(action_space.shape) != 1:
        raise ValueError(f"the action space must be MultiBinary(L), one bit per position; got {action_space}")
