"""The machinery behind docs/results.md: intervals, verdicts and the report, on made-up evaluations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.reproduce.claims import CLAIMS, NOT, NOT_RUN, PARTLY, REPRODUCED, Evidence
from benchmarks.reproduce.experiments import (
    BETAS,
    ENVIRONMENTS,
    FULL,
    QUICK,
    RUNS,
    TARGETS,
    Budget,
    evaluations,
    heuristics,
    run_config,
)
from benchmarks.reproduce.inference import Resampling, estimate, nfe, success
from benchmarks.reproduce.report import write_report
from benchmarks.reproduce.work import ROOT, Workshop
from dllm_gym.evaluation import EpisodeRecords, EvaluationResult
from dllm_gym.evaluation.statistics import envelope_gap
from dllm_gym.files import write_json

PROBLEMS = 300
ENVIRONMENT = {
    "task": "arithmetic",
    "backend": "tiny-arithmetic",
    "block_length": 48,
    "completion_length": 48,
}
SMALL = Budget("small", (0, 1), 100, 100, 100, 100, 100, 100, 100, 8, PROBLEMS)


def result(accuracy, steps, *, seed=0, chain=1.0, agent="policy"):
    """An evaluation with given accuracy and mean NFE; hard problems are hard for everyone."""
    rng = np.random.default_rng(seed)
    easy = np.random.default_rng(99).permutation(PROBLEMS) < accuracy * PROBLEMS
    flipped = rng.random(PROBLEMS) < 0.05
    right = np.where(flipped, rng.random(PROBLEMS) < accuracy, easy).astype(float)
    used = np.maximum(1.0, steps + rng.integers(-1, 2, PROBLEMS))
    answer = np.maximum(right, rng.random(PROBLEMS) < 1 - chain)
    records = EpisodeRecords(
        problem=np.arange(PROBLEMS),
        score=right,
        success=right,
        nfe=np.rint(used).clip(1),
        reward=right * (49 - used) / 48,
        metrics={"answer_correct": answer},
        completion=(),
    )
    return EvaluationResult(agent, {}, agent, ENVIRONMENT, PROBLEMS, 0, records)


# Intervals --------------------------------------------------------------------------------------------------


def test_the_first_row_of_every_statistic_is_the_data():
    results = [result(0.8, 10, seed=s) for s in range(3)]
    means = Resampling(PROBLEMS).means(results, success)
    assert means[0] == pytest.approx(np.mean([r.accuracy for r in results]))
    assert Resampling(PROBLEMS).means(results, nfe)[0] == pytest.approx(
        np.mean([r.nfe_mean for r in results])
    )


def test_a_single_seeds_gap_is_that_of_the_evaluation():
    others = [result(0.5, 5, seed=1), result(0.8, 12, seed=2), result(0.9, 30, seed=3)]
    one = result(0.85, 9, seed=4)
    mine = estimate(Resampling(PROBLEMS).gaps([one], others))
    value, (low, high) = envelope_gap(
        one.records.success,
        one.records.nfe,
        np.stack([r.records.success for r in others]),
        np.stack([r.records.nfe for r in others]),
    )
    assert mine.value == pytest.approx(value)
    assert mine.low == pytest.approx(low, abs=0.01)
    assert mine.high == pytest.approx(high, abs=0.01)


def test_seeds_that_disagree_widen_the_interval():
    agree = [result(0.8, 10, seed=s) for s in range(3)]
    differ = [result(a, 10, seed=s) for s, a in enumerate((0.7, 0.8, 0.9))]
    at = Resampling(PROBLEMS)
    narrow, wide = estimate(at.means(agree, success)), estimate(at.means(differ, success))
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_coverage_of_a_difference_that_is_zero():
    inside = 0
    for trial in range(40):
        rng = np.random.default_rng(trial)
        pair = []
        for _ in range(2):
            r = result(0.5, 10)
            pair.append(
                [EvaluationResult(**{**vars(r), "records": _with_success(r, rng.random(PROBLEMS) < 0.6)})]
            )
        at = Resampling(PROBLEMS, resamples=400, seed=trial)
        e = estimate(at.means(pair[0], success) - at.means(pair[1], success))
        inside += e.low <= 0 <= e.high
        assert (e.p < 0.05) == (not e.low <= 0 <= e.high) or abs(e.p - 0.05) < 0.03
    assert inside >= 34


def _with_success(r, values):
    return EpisodeRecords(**{**vars(r.records), "success": values.astype(float)})


# Tables -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [FULL, QUICK], ids=["full", "quick"])
@pytest.mark.parametrize("name", list(RUNS))
def test_every_run_has_a_valid_configuration(name, budget):
    config = run_config(name, budget.seeds[0], budget)
    assert config.total_timesteps == getattr(budget, RUNS[name].steps)
    first = RUNS[name].begins_with
    assert first is None or list(RUNS).index(first) < list(RUNS).index(name)


def test_everything_evaluated_exists():
    for environment, run, _ in evaluations():
        assert environment in ENVIRONMENTS
        assert run in RUNS
    assert len(set(evaluations())) == len(evaluations())


def test_a_training_begins_with_its_ancestor_and_is_resumed_once_it_has_begun(tmp_path, monkeypatch):
    """The configuration is written last: before it is there, a killed run has not begun."""
    trained = []
    monkeypatch.setattr(
        "dllm_agents.training.train",
        lambda config, directory, *, resume, command: trained.append((config, directory, resume)),
    )
    workshop = Workshop(SMALL, tmp_path, 1)
    target, first = workshop.policy("any-first", 1), workshop.policy("full", 1)
    target.mkdir(parents=True)
    (target / "training_state.pt").write_bytes(b"")
    workshop.train_here("any-first", 1)
    (target / "config.yaml").write_text("")
    workshop.train_here("any-first", 1)
    assert [(directory, resume) for _, directory, resume in trained] == [(target, False), (target, True)]
    config = trained[0][0]
    assert (ROOT / config.init_from).resolve() == (first / "best").resolve()
    assert config == run_config("any-first", 1, SMALL).updated(init_from=config.init_from)


def test_failures_are_named_when_the_rest_is_done(tmp_path):
    workshop = Workshop(replace(SMALL, name="tiny"), tmp_path, 2)
    with pytest.raises(RuntimeError, match=r"bad ended with status 2; .*bad\.log ends with: .*--nonsense"):
        workshop._run([("bad", ["--nonsense"]), ("good", ["--help"])])
    assert "--no-training" in (tmp_path / "logs" / "good.log").read_text()


@pytest.mark.parametrize(
    ("asked", "trained"), [(list(RUNS), set(RUNS)), (["any"], {"full", "any-first", "any"})]
)
def test_what_a_run_begins_with_is_trained_before_it(tmp_path, monkeypatch, asked, trained):
    rounds = []
    monkeypatch.setattr(
        Workshop, "_run", lambda self, commands: rounds.append([name for name, _ in commands])
    )
    Workshop(SMALL, tmp_path, 2).train(asked)
    place = {name: number for number, names in enumerate(rounds) for name in names}
    assert set(place) == {f"{run}-{seed}" for run in trained for seed in SMALL.seeds}
    for run, seed in ((run, seed) for run in trained for seed in SMALL.seeds):
        first = RUNS[run].begins_with
        assert first is None or place[f"{first}-{seed}"] < place[f"{run}-{seed}"]


def test_a_changed_configuration_is_another_run(tmp_path, monkeypatch):
    workshop = Workshop(SMALL, tmp_path, 1)
    before = workshop.policy("base", 0)
    monkeypatch.setitem(RUNS, "base", RUNS["alpha-10"])
    assert workshop.policy("base", 0) != before != workshop.policy("base", 1)


# Verdicts ---------------------------------------------------------------------------------------------------


def fill(directory: Path, **changes: tuple[float, float]) -> Workshop:
    """A workshop whose evaluations say what the paper says, but for ``changes`` (run -> accuracy, NFE)."""
    workshop = Workshop(SMALL, directory, 1)
    for environment in ENVIRONMENTS:
        home = 0.1 if environment == "semi" else 0.0
        for at, strategy in enumerate(heuristics(environment)):
            steps = 2.0 + at
            made = result(min(0.95, 0.3 + 0.02 * steps + home), steps, seed=at, agent=strategy.name)
            replace(made, label=strategy.label).save(workshop._file(environment, strategy.label))
    said = {
        "semi": (0.97, 10.0),
        "additive": (0.0, 1.0),
        "no-mask": (0.5, 12.0),
        "steered": (0.9, 8.0),
        "ppo": (0.6, 12.0),
        "a2c": (0.5, 12.0),
        "alpha-0.3": (0.85, 10.0),
        "alpha-10": (0.8, 9.0),
        **changes,
    }
    for environment, run, options in evaluations():
        for seed in SMALL.seeds:
            accuracy, steps = said.get(run, (0.8, 10.0))
            if environment == "sudoku" and run == "full":
                accuracy = 0.4
            if "beta=" in options:
                steps = 10.0 / float(options.split("=")[1])
            if "target_steps=" in options:
                steps = 1.0 + 0.8 * float(options.split("=")[1])
                accuracy = min(0.98, 0.8 + 0.01 * steps)
            made = result(accuracy, steps, seed=seed, chain=0.5 if run == "answer-only" else 1.0)
            name = f"{workshop.policy(run, seed).name}:{options}"
            replace(made, label=name).save(workshop._file(environment, name))
    for run in RUNS:
        for seed in SMALL.seeds:
            write_json(workshop.policy(run, seed) / "metrics.json", {"evaluations": [{"seconds": 12.0}]})
    return workshop


def test_what_agrees_with_the_paper_is_reproduced(tmp_path):
    evidence = Evidence(fill(tmp_path), resamples=100)
    assert [claim.number for claim in CLAIMS] == list(range(1, 14))
    found = {claim.number: claim.find(evidence).verdict for claim in CLAIMS}
    assert {number for number, verdict in found.items() if verdict != REPRODUCED} == set()


@pytest.mark.parametrize(
    ("number", "changes", "verdict"),
    [
        (1, {"semi": (0.3, 10.0)}, NOT),
        (2, {"full": (0.2, 10.0)}, NOT),
        (4, {"additive": (0.8, 10.0)}, NOT),
        (5, {"dpls": (0.95, 10.0)}, NOT),
        (6, {"hidden": (0.95, 10.0)}, PARTLY),
        (7, {"no-mask": (0.8, 10.0), "no-time": (0.4, 10.0)}, NOT),
        (8, {"steered": (0.4, 10.0)}, NOT),
        (11, {"ppo": (0.95, 8.0), "a2c": (0.95, 8.0)}, NOT),
        (13, {"full": (0.8, 30.0), "alpha-0.3": (0.8, 30.0), "alpha-10": (0.8, 30.0)}, PARTLY),
    ],
)
def test_what_disagrees_is_not(tmp_path, number, changes, verdict):
    assert CLAIMS[number - 1].find(Evidence(fill(tmp_path, **changes), resamples=100)).verdict == verdict


def test_what_was_not_run_says_so(tmp_path):
    workshop = fill(tmp_path)
    name = f"{workshop.policy('steered', 1).name}:sample"
    workshop._file("full", name).unlink()
    evidence = Evidence(workshop, resamples=20)
    assert CLAIMS[7].find(evidence).verdict == NOT_RUN
    assert CLAIMS[3].find(evidence).verdict == REPRODUCED


def test_the_report(tmp_path):
    workshop = fill(tmp_path / "work")
    path = write_report(workshop, tmp_path / "docs", resamples=50)
    text = path.read_text(encoding="utf-8")
    for number in range(1, 14):
        assert f"## Claim {number}" in text
    for picture in ("full.png", "semi.png", "frontier.png"):
        assert f"results/{picture}" in text
        assert (tmp_path / "docs" / "results" / picture).stat().st_size > 10_000
    claims = json.loads((tmp_path / "docs" / "results" / "claims.json").read_text(encoding="utf-8"))
    assert [claim["number"] for claim in claims] == list(range(1, 14))
    assert str(tmp_path) not in text


def test_a_claim_whose_trainings_are_elsewhere_keeps_what_was_found(tmp_path, monkeypatch):
    docs = tmp_path / "docs"
    numbers = docs / "results" / "claims.json"
    workshop = fill(tmp_path / "work")
    before = write_report(workshop, docs, resamples=50)
    whole, found = before.read_text(encoding="utf-8"), json.loads(numbers.read_text(encoding="utf-8"))
    elsewhere = Workshop(SMALL, tmp_path / "elsewhere", 1)
    assert write_report(elsewhere, docs, resamples=50).read_text(encoding="utf-8") == whole
    monkeypatch.setitem(RUNS, "steered", RUNS["base"])  # another training: what was found says nothing of it
    write_report(elsewhere, docs, resamples=50)
    now = json.loads(numbers.read_text(encoding="utf-8"))
    assert [one["verdict"] == NOT_RUN for one in now] == [one["number"] == 8 for one in now]
    assert [one for one in now if one["number"] != 8] == [one for one in found if one["number"] != 8]
    monkeypatch.setitem(
        RUNS, "start", replace(RUNS["start"], shipped="scratch/grpo")
    )  # what others begin with
    write_report(elsewhere, docs, resamples=50)
    now = json.loads(numbers.read_text(encoding="utf-8"))
    assert {one["number"] for one in now if one["verdict"] == NOT_RUN} == {4, 5, 6, 7, 8, 11, 12}


def test_knobs_are_in_order():
    assert list(BETAS) == sorted(BETAS)
    assert list(TARGETS) == sorted(TARGETS)
    assert 1 in BETAS
