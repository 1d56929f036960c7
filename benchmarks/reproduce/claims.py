"""The claims, one function each: which numbers decide it, and the verdict that follows from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.reproduce.experiments import BETAS, DECODINGS, TARGETS
from benchmarks.reproduce.inference import Estimate, Resampling, estimate, reward, success
from benchmarks.reproduce.work import Workshop
from dllm_gym.evaluation import EvaluationResult

REPRODUCED, PARTLY, NOT, NOT_RUN = "reproduced", "partly", "not reproduced", "not run yet"
EQUAL_WITHIN = 0.03  # rewards or accuracies closer than this count as equal
ALPHAS = ((0.3, "alpha-0.3"), (1.0, "full"), (10.0, "alpha-10"))


@dataclass(frozen=True)
class Finding:
    """What came out.

    Attributes:
        verdict: ``reproduced``, ``partly``, ``not reproduced`` or, while runs are missing, ``not run yet``.
        rule: When it counts as what.
        rows: A table, its header first.
    """

    verdict: str
    rule: str
    rows: list[list[str]] = field(repr=False)


@dataclass(frozen=True)
class Claim:
    """A claim and how it is tested.

    Attributes:
        number: As in the report.
        statement: What is claimed.
        test: Finds out; fails with ``FileNotFoundError`` if something was not run.
        runs: The trainings it is decided by; what these begin with counts, too.
    """

    number: int
    statement: str
    test: Callable[[Evidence], Finding]
    runs: tuple[str, ...]

    def find(self, evidence: Evidence) -> Finding:
        """The finding, as far as everything it takes was run."""
        try:
            return self.test(evidence)
        except FileNotFoundError:
            return Finding(
                NOT_RUN, "its runs are not complete", [["run"], ["`make reproduce` goes on with it"]]
            )


class Evidence:
    """The evaluations, with one resampling of problems per environment."""

    def __init__(self, workshop: Workshop, resamples: int = 2000) -> None:
        self.workshop, self._resamples = workshop, resamples
        self._resamplings: dict[str, Resampling] = {}
        self._rules: dict[str, list[EvaluationResult]] = {}

    def resampling(self, environment: str) -> Resampling:
        """The resamples of an environment's problems."""
        if environment not in self._resamplings:
            self._resamplings[environment] = Resampling(self.workshop.budget.problems, self._resamples)
        return self._resamplings[environment]

    def learned(self, run: str, options: str = "sample", environment: str = "full") -> list[EvaluationResult]:
        """A run's evaluations, one per seed."""
        return self.workshop.learned(
            environment, run, "dpls" if (run, options) == ("dpls", "sample") else options
        )

    def rules(self, environment: str = "full", only: str | None = None) -> list[EvaluationResult]:
        """The heuristics' evaluations, or those of one of them."""
        if environment not in self._rules:
            self._rules[environment] = self.workshop.heuristics(environment)
        return [r for r in self._rules[environment] if only in (None, r.agent)]

    def gap(
        self, results: Sequence[EvaluationResult], environment: str = "full", only: str | None = None
    ) -> Estimate:
        """Height over the heuristics' concave hull at equal NFE."""
        return estimate(self.resampling(environment).gaps(results, self.rules(environment, only)))

    def better(self, run: str, than: str) -> Estimate:
        """How much more reward (alpha 1, sampled) a run earns than another, in full diffusion."""
        at = self.resampling("full")
        return estimate(at.means(self.learned(run), reward) - at.means(self.learned(than), reward))


def _accuracy(results: Sequence[EvaluationResult]) -> float:
    return float(np.mean([r.accuracy for r in results]))


def _nfe(results: Sequence[EvaluationResult]) -> float:
    return float(np.mean([r.nfe_mean for r in results]))


def _at(results: Sequence[EvaluationResult]) -> str:
    return f"{_accuracy(results):.3f} @ {_nfe(results):.1f}"


def _each(results: Sequence[EvaluationResult]) -> str:
    return ", ".join(f"{r.accuracy:.3f} @ {r.nfe_mean:.1f}" for r in results)


def _verdict_above_zero(difference: Estimate) -> str:
    return REPRODUCED if difference.low > 0 else NOT if difference.high < 0 else PARTLY


def semi_autoregressive(evidence: Evidence) -> Finding:
    """Claim 1."""
    rows = [["decoding", "accuracy @ NFE per seed", "points over Fast-dLLM", "points over all heuristics"]]
    decisive = None
    for decoding in DECODINGS:
        results = evidence.learned("semi", decoding, "semi")
        fast = evidence.gap(results, "semi", "fast-dllm")
        rows.append([decoding, _each(results), fast.points(), evidence.gap(results, "semi").points()])
        decisive = decisive or fast
    assert decisive is not None
    verdict = REPRODUCED if decisive.high >= 0 else NOT
    rule = "reproduced if the interval of sampled decoding over Fast-dLLM contains or exceeds 0"
    return Finding(verdict, rule, rows)


def full_diffusion(evidence: Evidence) -> Finding:
    """Claim 2."""
    rows = [["decoding", "seed", "accuracy @ NFE", "points over all heuristics at that NFE"]]
    lows = {}
    for decoding in DECODINGS:
        results = evidence.learned("full", decoding)
        singles = [evidence.gap([result]) for result in results]
        for seed, result, gap in zip(evidence.workshop.budget.seeds, results, singles, strict=True):
            rows.append([decoding, str(seed), _at([result]), gap.points()])
        rows.append([decoding, "all", _at(results), evidence.gap(results).points()])
        lows[decoding] = [gap.low for gap in singles]
    above = {decoding: min(values) > 0 for decoding, values in lows.items()}
    verdict = REPRODUCED if all(above.values()) else PARTLY if any(above.values()) else NOT
    rule = "reproduced if every seed's interval lies above 0 in both decodings, partly if in one of them"
    return Finding(verdict, rule, rows)


def heuristics_degrade(evidence: Evidence) -> Finding:
    """Claim 3."""
    at = evidence.resampling("full")
    rows = [["NFE", "best heuristics, blocks of 8", "best heuristics, full", "points lost (paired)"]]
    lost = []
    for budget in (8.0, 12.0, 16.0, 24.0):
        semi = at.hull_at(evidence.rules("semi"), budget)
        full = at.hull_at(evidence.rules("full"), budget)
        lost.append(estimate(semi - full))
        rows.append([f"{budget:g}", f"{semi[0]:.3f}", f"{full[0]:.3f}", lost[-1].points()])
    for name in ("fast-dllm", "confidence", "eb-sampler"):
        semi, full = (
            at.hull_at(evidence.rules("semi", name), 16.0),
            at.hull_at(evidence.rules("full", name), 16.0),
        )
        rows.append([f"16, {name} only", f"{semi[0]:.3f}", f"{full[0]:.3f}", estimate(semi - full).points()])
    clear = [e.low > 0 for e in lost]
    verdict = REPRODUCED if all(clear) else PARTLY if any(clear) else NOT
    rule = "reproduced if the best heuristics lose at each of 8, 12, 16 and 24 steps, partly if at some"
    return Finding(verdict, rule, rows)


def additive_collapses(evidence: Evidence) -> Finding:
    """Claim 4."""
    rows = [["reward", "accuracy @ NFE per seed", "NFE"]]
    for run in ("base", "additive"):
        results = evidence.learned(run)
        rows.append(["multiplicative" if run == "base" else run, _each(results), f"{_nfe(results):.1f}"])
    steps = [r.nfe_mean for r in evidence.learned("additive")]
    collapsed = [value < 2 for value in steps]
    verdict = REPRODUCED if all(collapsed) else PARTLY if any(collapsed) else NOT
    rule = "reproduced if every seed ends below 2 steps, partly if some do"
    return Finding(verdict, rule, rows)


def samplers_are_equal(evidence: Evidence) -> Finding:
    """Claim 5."""
    difference = evidence.better("dpls", "base")
    rows = [["sampler", "accuracy @ NFE per seed", "reward over Bernoulli"]]
    rows.append(["Bernoulli", _each(evidence.learned("base")), ""])
    rows.append(["DPLS", _each(evidence.learned("dpls")), difference.plain()])
    within = difference.low > -EQUAL_WITHIN and difference.high < EQUAL_WITHIN
    verdict = REPRODUCED if within else NOT if difference.low > 0 or difference.high < 0 else PARTLY
    rule = f"reproduced if the interval of the difference lies within {EQUAL_WITHIN}, not if it excludes 0"
    return Finding(verdict, rule, rows)


def more_input_does_not_help(evidence: Evidence) -> Finding:
    """Claim 6."""
    rows = [["input", "accuracy @ NFE per seed", "reward over confidence only"]]
    rows.append(["confidence", _each(evidence.learned("base")), ""])
    helps = []
    for run, name in (("top-k", "8 largest probabilities besides"), ("hidden", "last hidden state besides")):
        difference = evidence.better(run, "base")
        rows.append([name, _each(evidence.learned(run)), difference.plain()])
        helps.append(difference.low > 0)
    verdict = NOT if all(helps) else PARTLY if any(helps) else REPRODUCED
    rule = "not reproduced where an interval lies above 0; partly if only one does"
    return Finding(verdict, rule, rows)


def mask_matters_more_than_time(evidence: Evidence) -> Finding:
    """Claim 7."""
    rows = [["input left out", "accuracy @ NFE per seed", "reward over all inputs"]]
    rows.append(["none", _each(evidence.learned("base")), ""])
    for run, name in (("no-mask", "mask"), ("no-time", "time")):
        rows.append([name, _each(evidence.learned(run)), evidence.better(run, "base").plain()])
    difference = evidence.better("no-time", "no-mask")
    rows.append(["time instead of mask", "", difference.plain()])
    verdict = _verdict_above_zero(difference)
    rule = "reproduced if leaving out the mask costs more than leaving out the time (interval above 0)"
    return Finding(verdict, rule, rows)


def steering_helps(evidence: Evidence) -> Finding:
    """Claim 8."""
    difference = evidence.better("steered", "base")
    rows = [["training", "accuracy @ NFE per seed", "reward over plain GRPO"]]
    rows.append(["plain", _each(evidence.learned("base")), ""])
    rows.append(
        [
            "one Fast-dLLM(0.9, blocks of 8) episode per group",
            _each(evidence.learned("steered")),
            difference.plain(),
        ]
    )
    verdict = _verdict_above_zero(difference)
    rule = "reproduced if the interval lies above 0, not if below"
    return Finding(verdict, rule, rows)


def beta_is_smoother(evidence: Evidence) -> Finding:
    """Claim 9."""
    rows = [["knob", "accuracy @ NFE per seed", "NFE", "points over all heuristics"]]
    curves: dict[str, list[float]] = {"alpha": [], "beta": []}
    for alpha, run in ALPHAS:
        results = evidence.learned(run)
        curves["alpha"].append(_nfe(results))
        rows.append(
            [f"alpha {alpha:g}", _each(results), f"{_nfe(results):.1f}", evidence.gap(results).points()]
        )
    for beta in BETAS:
        results = evidence.learned("full", "sample" if beta == 1 else f"sample,beta={beta:g}")
        curves["beta"].append(_nfe(results))
        rows.append(
            [f"beta {beta:g}", _each(results), f"{_nfe(results):.1f}", evidence.gap(results).points()]
        )
    monotone = {name: bool(np.all(np.diff(values) < 0)) for name, values in curves.items()}
    span = {name: max(values) / min(values) for name, values in curves.items()}
    rows.append(["monotone", f"alpha {monotone['alpha']}, beta {monotone['beta']}", "", ""])
    rows.append(["largest over smallest NFE", f"alpha {span['alpha']:.2f}, beta {span['beta']:.2f}", "", ""])
    smoother = monotone["beta"] and not (monotone["alpha"] and span["alpha"] >= span["beta"])
    verdict = REPRODUCED if smoother else PARTLY if monotone["beta"] else NOT
    rule = (
        "reproduced if NFE falls strictly with beta, and alpha either does not order the speeds or spans "
        "less; partly if it merely falls with beta"
    )
    return Finding(verdict, rule, rows)


def policies_transfer(evidence: Evidence) -> Finding:
    """Claim 10."""
    rows = [
        [
            "from tiny-arithmetic, L = 48, to",
            "decoding",
            "accuracy @ NFE per seed",
            "points over the strong heuristics there",
        ]
    ]
    names = {
        "full": "itself",
        "dream": "another dLLM",
        "long": "that dLLM, longer problems",
        "sudoku": "another task and its dLLM",
    }
    gaps: dict[str, Estimate] = {}
    for environment, name in names.items():
        for decoding in DECODINGS:
            results = evidence.learned("full", decoding, environment)
            gap = evidence.gap(results, environment)
            gaps.setdefault(environment, gap)  # of sampled decoding
            rows.append([name, decoding, _each(results), gap.points()])
    for decoding in DECODINGS:
        results = evidence.learned("sudoku", decoding, "sudoku")
        rows.append(
            ["(trained on sudoku)", decoding, _each(results), evidence.gap(results, "sudoku").points()]
        )
    works = [gaps[environment].low > 0 for environment in ("dream", "long")]
    less = gaps["sudoku"].value < min(gaps["dream"].value, gaps["long"].value)
    verdict = REPRODUCED if all(works) and less else PARTLY if any(works) else NOT
    rule = (
        "reproduced if sampled policies lie above all heuristics on the other dLLM and on longer problems, "
        "and gain less on the other task; partly if one of the first two holds"
    )
    return Finding(verdict, rule, rows)


def algorithms(evidence: Evidence) -> Finding:
    """Claim 11."""
    rows = [["algorithm", "accuracy @ NFE per seed", "reward over GRPO", "training per seed, s"]]
    losses = []
    names = {"start": "the success model all begin with", "grpo": "GRPO", "ppo": "PPO", "a2c": "A2C"}
    for run, name in names.items():
        difference = evidence.better(run, "grpo")
        cell = "" if run == "grpo" else difference.plain()
        rows.append([name, _each(evidence.learned(run)), cell, evidence.workshop.seconds(run)])
        if run in ("ppo", "a2c"):
            losses.append(difference.high < 0)
    verdict = REPRODUCED if all(losses) else PARTLY if any(losses) else NOT
    rule = "reproduced if both earn less than GRPO at equal environment steps, partly if one does"
    return Finding(verdict, rule, rows)


def answer_only_corrupts(evidence: Evidence) -> Finding:
    """Claim 12."""
    at = evidence.resampling("full")
    rows = [
        [
            "rewarded",
            "accuracy @ NFE per seed (whole chain)",
            "answer right",
            "chain wrong although answer right",
        ]
    ]
    corrupted = {}
    for run, name in (("base", "whole chain"), ("answer-only", "answer only")):
        results = evidence.learned(run)
        answer = at.means(results, lambda r: r.records.metrics["answer_correct"])
        chain = at.means(results, success)
        corrupted[run] = (answer - chain) / answer
        rows.append([name, _each(results), f"{answer[0]:.3f}", f"{100 * corrupted[run][0]:.1f} %"])
    difference = estimate(corrupted["answer-only"] - corrupted["base"])
    rows.append(["difference in points", "", "", difference.points()])
    verdict = _verdict_above_zero(difference)
    rule = "reproduced if rewarding the answer alone leaves more wrong chains under right answers"
    return Finding(verdict, rule, rows)


def one_policy_for_all(evidence: Evidence) -> Finding:
    """Claim 13."""
    at = evidence.resampling("full")
    separate = [evidence.learned(run) for _, run in ALPHAS]
    betas = [evidence.learned("full", "sample" if b == 1 else f"sample,beta={b:g}") for b in BETAS]
    fastest = min(_nfe(results) for results in separate)

    def over(results: Sequence[EvaluationResult], others: Sequence[Sequence[EvaluationResult]]) -> Estimate:
        """Height over the hull of other policies of the same seed, mean over seeds."""
        same_seed = zip(results, zip(*others, strict=True), strict=True)
        return estimate(np.mean([at.gaps([result], rivals) for result, rivals in same_seed], axis=0))

    rows = [[
        "told", "decoding", "accuracy @ NFE per seed", "NFE", "points over all heuristics",
        "points over separate policies", "points over beta scaling",
    ]]  # fmt: skip
    steps, compared = [], []
    for decoding in DECODINGS:
        for target in TARGETS:
            results = evidence.learned("any", f"{decoding},target_steps={target}")
            above, own_steps = over(results, separate), _nfe(results)
            rows.append([
                str(target), decoding, _each(results), f"{own_steps:.1f}", evidence.gap(results).points(),
                above.points() if own_steps >= fastest else "faster than all of them",
                over(results, betas).points(),
            ])  # fmt: skip
            if decoding == "sample":
                steps.append(own_steps)
                compared += [above.value] if own_steps >= fastest else []
    monotone = bool(np.all(np.diff(steps) > 0))
    covers = min(steps) <= 4 and max(steps) >= 16
    good = bool(compared) and min(compared) >= -EQUAL_WITHIN  # all may be faster after a short training
    verdict = REPRODUCED if monotone and covers and good else PARTLY if monotone else NOT
    rule = (
        "reproduced if NFE (sampled) rises with the knob over at least 4 to 16 and no setting lies more than "
        "3 points below separately trained policies of the same seed at its NFE; partly if NFE merely rises"
    )
    return Finding(verdict, rule, rows)


CLAIMS = (
    Claim(1, "Semi-autoregressive: learned policies match Fast-dLLM", semi_autoregressive, ("semi",)),
    Claim(2, "Full diffusion: they beat every heuristic at equal steps", full_diffusion, ("full",)),
    Claim(3, "Heuristics degrade from semi-autoregressive to full diffusion", heuristics_degrade, ()),
    Claim(4, "The additive reward collapses to one step", additive_collapses, ("base", "additive")),
    Claim(5, "Bernoulli and Dynamic Plackett-Luce are equal", samplers_are_equal, ("base", "dpls")),
    Claim(
        6,
        "Top-k confidences and hidden states don't help",
        more_input_does_not_help,
        ("base", "top-k", "hidden"),
    ),
    Claim(
        7,
        "Dropping the mask hurts more than dropping time",
        mask_matters_more_than_time,
        ("base", "no-mask", "no-time"),
    ),
    Claim(8, "Expert steering helps in full diffusion", steering_helps, ("base", "steered")),
    Claim(
        9,
        "Beta scaling gives a smoother frontier than alpha",
        beta_is_smoother,
        tuple(run for _, run in ALPHAS),
    ),
    Claim(
        10,
        "Policies transfer to another dLLM, to longer completions, less to another task",
        policies_transfer,
        ("full", "sudoku"),
    ),
    Claim(
        11,
        "GRPO against PPO and A2C at equal environment steps: GRPO is best",
        algorithms,
        ("start", "grpo", "ppo", "a2c"),
    ),
    Claim(
        12,
        "An answer-only reward corrupts the written chain, a whole-chain reward doesn't",
        answer_only_corrupts,
        ("base", "answer-only"),
    ),
    Claim(
        13,
        "Ours: one conditioned policy covers the frontier",
        one_policy_for_all,
        ("any", *(run for _, run in ALPHAS)),
    ),
)
