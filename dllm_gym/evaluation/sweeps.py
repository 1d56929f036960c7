"""Rule-based strategies over their parameters: with whom agents are compared."""

from __future__ import annotations

from collections.abc import Mapping

from dllm_gym.strategies import make_strategy
from dllm_gym.strategies.base import Strategy

Sweep = Mapping[str, tuple[str, tuple[float, ...]]]  # rule -> parameter and its values

# Every rule over its main parameter, from careful to hasty: those that results were measured against from the
# beginning at many values, the others at two, so that nobody waits for long.
FULL: Sweep = {
    "random": ("k", (1, 2, 4, 8)),
    "left-to-right": ("k", (1, 2, 4, 8)),
    "confidence": ("k", (1, 2, 3, 4, 6, 8, 12)),
    "margin": ("k", (1, 2, 3, 4, 6, 8, 12)),
    "entropy": ("k", (1, 2, 3, 4, 6, 8, 12)),
    "fast-dllm": ("threshold", (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)),
    "fast-dllm-factor": ("factor", (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)),
    "eb-sampler": ("gamma", (0.001, 0.01, 0.05, 0.1, 0.3, 1.0, 2.0)),
    "local-leap": ("relaxed", (0.5, 0.75)),
    "ass": ("growth", (1.5, 2.0)),
    "eoser": ("k", (2, 4)),
    "pc-sampler": ("k", (2, 4)),
    "prophet": ("threshold", (3.0, 7.5)),
    "sched": ("high", (5.0, 7.5)),
    "klass": ("threshold", (0.6, 0.9)),
    "credit": ("threshold", (0.8, 0.95)),
    "less": ("threshold", (0.5, 0.8)),
    "dapd": ("high", (0.01, 0.05)),
    "dawn": ("apart", (0.75, 0.9)),
    "clad": ("threshold", (0.7, 0.9)),
    "multi-block": ("entropy", (0.1, 0.5)),
    "adablock": ("threshold", (0.7, 0.9)),
    "slow-fast": ("threshold", (0.7, 0.9)),
    "lopa": ("k", (2, 3)),
    "lookum": ("size", (2, 6)),
    "rcr": ("k", (2, 4)),
    "remedi": ("k", (2, 4)),
    "prism": ("k", (2, 4)),
    "wino": ("threshold", (0.7, 0.9)),
    "remdm": ("steps", (8, 16)),
    "saber": ("least", (2, 4)),
    "t2m": ("threshold", (0.7, 0.9)),
    "joint-threshold": ("threshold", (0.5, 0.7)),
}

# A few of them, for where there is no time for more.
SHORT: Sweep = {
    "confidence": ("k", (1, 2, 4, 8)),
    "fast-dllm": ("threshold", (0.5, 0.7, 0.9, 0.99)),
}

SWEEPS: dict[str, Sweep] = {"none": {}, "short": SHORT, "full": FULL}


def sweep(name: str) -> list[Strategy]:
    """The strategies of a sweep by its name: ``none``, ``short`` or ``full``.

    Raises:
        ValueError: For another name.
    """
    if name not in SWEEPS:
        raise ValueError(f"unknown strategies {name!r}; choose one of {', '.join(SWEEPS)}")
    return strategies_of(SWEEPS[name])


def strategies_of(table: Sweep) -> list[Strategy]:
    """The strategies of a table that maps a rule's name to a parameter and its values."""
    return [
        make_strategy(name, **{parameter: value})
        for name, (parameter, values) in table.items()
        for value in values
    ]
