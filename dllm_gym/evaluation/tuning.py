"""The best setting of every rule, found on validation problems: test problems then tell what it is worth."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dllm_gym.evaluation.comparison import compare
from dllm_gym.evaluation.results import EvaluationResult


def tuned(
    strategies: str | Iterable[Any] = "full",
    episodes: int = 1000,
    split: str = "validation",
    *,
    keep: str | Path | None = None,
    **kwargs: Any,
) -> dict[str, EvaluationResult]:
    """What every rule comes to at the setting that earns most.

    Args:
        strategies: As in ``compare``.
        episodes: Number of problems.
        split: Of these problems.
        keep: See ``compare``.
        **kwargs: Further arguments of ``compare``, those of ``UnmaskEnv`` among them.

    Returns:
        By the rule's name the result of its best setting, of equals the first: ``agent_text`` says who it is.
    """
    return best_settings(compare([], episodes, split, strategies=strategies, keep=keep, **kwargs).results)


def best_settings(results: Iterable[EvaluationResult]) -> dict[str, EvaluationResult]:
    """By the rule's name the result that earned most, of equals the first."""
    best: dict[str, EvaluationResult] = {}
    for result in results:
        if result.agent not in best or result.reward_mean > best[result.agent].reward_mean:
            best[result.agent] = result
    return best


def agent_text(result: EvaluationResult) -> str:
    """The rule and its parameters as ``as_agent`` takes them, such as ``fast-dllm:threshold=0.9``."""
    parameters = ",".join(f"{name}={value}" for name, value in result.parameters.items())
    return f"{result.agent}:{parameters}" if parameters else result.agent
