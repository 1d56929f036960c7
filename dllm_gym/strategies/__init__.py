"""Strategies by name: rule-based agents, from observations to actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dllm_gym.arguments import call_named
from dllm_gym.strategies.base import InBlocks, Strategy
from dllm_gym.strategies.blocks import AdaBlock, MultiBlock, SlowFast
from dllm_gym.strategies.commit import Prophet, SchED
from dllm_gym.strategies.dependence import CLAD, DAPD, DAWN
from dllm_gym.strategies.editing import JointThreshold
from dllm_gym.strategies.growing import PRISM, RCR, RemeDi
from dllm_gym.strategies.memory import Remembering
from dllm_gym.strategies.priors import EosDamping, PCSampler
from dllm_gym.strategies.remasking import T2M, WINO, ReMDM, Saber
from dllm_gym.strategies.search import LookUM, LoPA
from dllm_gym.strategies.temporal import KLASS, LESS, Credit
from dllm_gym.strategies.thresholds import (
    EBSampler,
    FastDLLM,
    FastDLLMFactor,
    FastDLLMFactorReleased,
    LocalLeap,
)
from dllm_gym.strategies.topk import (
    Ascending,
    Confidence,
    Entropy,
    LeftToRight,
    Margin,
    Random,
)
from dllm_gym.suggestions import did_you_mean

__all__ = ["InBlocks", "Remembering", "Strategy", "make_strategy", "register_strategy", "strategy_names"]

_RULES = (
    *(Random, Confidence, Margin, Entropy, LeftToRight, Ascending, EosDamping, PCSampler),
    *(FastDLLM, FastDLLMFactor, FastDLLMFactorReleased, EBSampler, LocalLeap),
    *(Prophet, SchED),
    *(KLASS, Credit, LESS),
    *(DAPD, DAWN, CLAD),
    *(MultiBlock, AdaBlock, SlowFast),
    *(LoPA, LookUM),
    *(RCR, RemeDi, PRISM, WINO, ReMDM, Saber, T2M, JointThreshold),
)
_STRATEGIES: dict[str, Callable[..., Strategy]] = {rule.name: rule for rule in _RULES}


def register_strategy(name: str, factory: Callable[..., Strategy]) -> None:
    """Makes ``make_strategy(name, **parameters)`` call ``factory(**parameters)``."""
    _STRATEGIES[name] = factory


def strategy_names() -> list[str]:
    """The registered strategies."""
    return sorted(_STRATEGIES)


def make_strategy(name: str, **parameters: Any) -> Strategy:
    """Builds a strategy by name.

    Args:
        name: A registered strategy (``strategy_names()``).
        **parameters: The rule's own parameters.

    Raises:
        ValueError: For an unknown name, an unknown or missing parameter, or a parameter value out of range.
    """
    if name not in _STRATEGIES:
        hint, known = did_you_mean(name, _STRATEGIES), ", ".join(strategy_names())
        raise ValueError(f"unknown strategy {name!r}{hint}; known strategies: {known}")
    strategy: Strategy = call_named(f"strategy {name!r}", _STRATEGIES[name], parameters)
    return strategy
