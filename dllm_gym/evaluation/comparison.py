"""Agents and strategies on the same problems: results, the gap between them, table and plot."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dllm_gym.envs.observations import NotShown
from dllm_gym.evaluation.agents import as_agent
from dllm_gym.evaluation.home import at_home
from dllm_gym.evaluation.kept import kept_file
from dllm_gym.evaluation.results import EvaluationResult
from dllm_gym.evaluation.running import evaluate
from dllm_gym.evaluation.statistics import Interval, envelope_gap, mean_interval, paired_share_interval
from dllm_gym.evaluation.sweeps import sweep
from dllm_gym.files import json_values, remove_unfinished
from dllm_gym.strategies.base import Strategy


@dataclass(frozen=True)
class Gap:
    """How far a learned policy lies above the strategies' envelope at its own number of steps.

    Attributes:
        label: The policy's.
        nfe_mean: Its mean steps.
        accuracy: Its accuracy.
        envelope: Accuracy of the best mixture of strategies with as many steps.
        difference: ``accuracy - envelope``.
        difference_ci95: Its 95 % interval; NaN if there was one problem only.
    """

    label: str
    nfe_mean: float
    accuracy: float
    envelope: float
    difference: float
    difference_ci95: Interval


@dataclass(frozen=True)
class Lead:
    """What the first of the agents that were to be compared has over another one, problem by problem.

    Every difference is first - other, with its 95 % interval; NaN where one problem does not tell how
    differences vary.

    Attributes:
        first: The label of the first.
        other: The label of the other.
        nfe_means: The mean steps of the two, at which the accuracies were reached.
        accuracy: Difference of accuracies.
        accuracy_ci95: Agresti and Min's interval.
        nfe: Difference of mean steps.
        nfe_ci95: Normal interval of paired differences.
        reward: Difference of mean rewards, in which both pay the same price for a step.
        reward_ci95: Normal interval of paired differences.
    """

    first: str
    other: str
    nfe_means: tuple[float, float]
    accuracy: float
    accuracy_ci95: Interval
    nfe: float
    nfe_ci95: Interval
    reward: float
    reward_ci95: Interval

    @classmethod
    def of(cls, first: EvaluationResult, other: EvaluationResult) -> Lead:
        """Of results on the same problems."""
        one, two = first.records, other.records
        return cls(
            first.label,
            other.label,
            (first.nfe_mean, other.nfe_mean),
            first.accuracy - other.accuracy,
            paired_share_interval(one.success, two.success),
            first.nfe_mean - other.nfe_mean,
            mean_interval(one.nfe - two.nfe),
            first.reward_mean - other.reward_mean,
            mean_interval(one.reward - two.reward),
        )

    def to_json(self) -> dict[str, Any]:
        """As fields of the other's row."""
        values = {"lead_of": self.first}
        for name in ("accuracy", "nfe", "reward"):
            values |= {
                f"lead_{name}": getattr(self, name),
                f"lead_{name}_ci95": getattr(self, f"{name}_ci95"),
            }
        flat: dict[str, Any] = json_values(values)
        return flat


@dataclass(frozen=True)
class Comparison:
    """Several agents on the same problems.

    Attributes:
        results: One per agent.
        learned: Which of them are not rule-based strategies.
        agents: How many of them, the last ones, were to be compared; those before are there to compare with.
    """

    results: Sequence[EvaluationResult]
    learned: Sequence[bool]
    agents: int = 0

    def leads(self) -> list[Lead]:
        """The first of the agents against each of the others, paired by problem."""
        agents = self.results[len(self.results) - self.agents :]
        return [Lead.of(agents[0], other) for other in agents[1:]]

    def gaps(self) -> list[Gap]:
        """Every learned agent against the upper envelope of the strategies, paired by problem."""
        rules = [r for r, learned in zip(self.results, self.learned, strict=True) if not learned]
        if not rules:
            return []
        correct = np.stack([r.records.success for r in rules])
        nfe = np.stack([r.records.nfe for r in rules])
        gaps = []
        for result, learned in zip(self.results, self.learned, strict=True):
            if learned:
                gap, interval = envelope_gap(result.records.success, result.records.nfe, correct, nfe)
                gaps.append(
                    Gap(result.label, result.nfe_mean, result.accuracy, result.accuracy - gap, gap, interval)
                )
        return gaps

    def to_json(self) -> list[dict[str, Any]]:
        """A list of flat JSON objects, one per agent; learned ones tell their gap to the envelope.

        From the second of the agents on they tell the first one's lead over them.
        """
        gaps = iter(self.gaps())
        rows = []
        for result, learned in zip(self.results, self.learned, strict=True):
            row = {**result.to_json(), "learned": learned}
            gap = next(gaps, None) if learned else None
            if gap is not None:
                row |= {
                    "envelope_accuracy": gap.envelope,
                    "envelope_gap": gap.difference,
                    "envelope_gap_ci95": json_values(gap.difference_ci95),
                }
            rows.append(row)
        leads = self.leads()
        for row, lead in zip(rows[len(rows) - len(leads) :], leads, strict=True):
            row |= lead.to_json()
        return rows

    def plot(self, path: str | Path | None = None) -> Any:
        """Accuracy against steps, a line per strategy and a star per learned agent.

        Args:
            path: Where to write the picture (PNG, PDF, ...); ``None`` writes nothing.

        Returns:
            The matplotlib ``Figure``.
        """
        from dllm_gym.evaluation.figures import save_figure
        from dllm_gym.evaluation.plots import pareto_figure

        figure = pareto_figure(self.results, self.learned)
        if path is not None:
            save_figure(figure, path)
        return figure


def compare(
    agents: Iterable[Any],
    episodes: int = 1000,
    split: str = "test",
    *,
    strategies: str | Iterable[Any] = "full",
    on_result: Callable[[EvaluationResult], None] | None = None,
    keep: str | Path | None = None,
    **kwargs: Any,
) -> Comparison:
    """Evaluates agents and strategies on the same problems.

    Args:
        agents: Whatever ``as_agent`` takes, any number.
        episodes: As in ``evaluate``, like the arguments that follow.
        split: See there.
        strategies: Rule-based strategies to compare with; learned agents are measured by their envelope.
            ``full`` is every rule over its main parameter; ``short`` eight settings of two rules; ``none``
            none; or give strategies, or names of them. Those that read what the dLLM does not show are left
            out, with a warning, and so are those that look ahead where it remembers earlier steps.
        on_result: Called with every result as soon as it is there.
        keep: A directory that gets every episode as soon as it is finished, and every result. What is there
            of the same agent under the same arguments is taken instead of evaluating again: an interrupted
            comparison goes on. A dLLM is known by its name or path only. Agents without ``fingerprint`` are
            always evaluated.
        **kwargs: Further arguments of ``evaluate``; all decode in one place, that of the first policy among
            the agents where nothing is said.

    Returns:
        All results, the gaps between learned agents and the strategies' envelope, the first agent's leads
        over the others, table and plot.

    Raises:
        ValueError: For nobody to compare or unknown strategies; if results are to be kept with a recording
            or under arguments that are more than plain values; and what ``evaluate`` raises.
    """
    rules = sweep(strategies) if isinstance(strategies, str) else [as_agent(rule) for rule in strategies]
    asked = [as_agent(agent) for agent in agents]
    everyone = [*rules, *asked]
    if not everyone:
        raise ValueError("nobody to compare: give at least one agent, or strategies")
    kwargs = at_home(asked, kwargs)
    results = []
    if keep is not None:
        remove_unfinished(keep)
    unable: dict[str, list[str]] = {}
    present = []
    for agent in everyone:
        file = None if keep is None else kept_file(Path(keep), agent, episodes, split, kwargs)
        unfinished = None if file is None else file.with_suffix(".jsonl")
        if file is not None and file.is_file():
            result = EvaluationResult.load(file)
        else:
            try:
                result = evaluate(agent, episodes, split, output=unfinished, **kwargs)
            except NotShown as error:
                if any(agent is one for one in asked):
                    raise
                unable.setdefault(str(error), []).append(agent.label)
                continue
            if file is not None:
                result.save(file)
        if unfinished is not None:  # a kill may have left it beside the result
            unfinished.unlink(missing_ok=True)
        results.append(result)
        present.append(agent)
        if on_result is not None:
            on_result(result)
    for reason, labels in unable.items():
        warnings.warn(f"not compared with {', '.join(labels)}: {reason}", stacklevel=2)
    learned = [not isinstance(agent, Strategy) for agent in present]
    return Comparison(results, learned, len(asked))
