"""Puts the claims of arXiv 2512.09106, and ours, to the test: trains, evaluates, writes ``docs/results.md``.

Run: ``make reproduce`` or ``python -m benchmarks.reproduce``; ``--quick`` for a rehearsal of ten minutes
that writes ``runs/reproduce/quick/results.md`` instead. What was done stays in ``runs/reproduce``: an
interrupted command goes on where it was.
"""

import argparse
import os
from pathlib import Path

from benchmarks.reproduce.experiments import FULL, QUICK, RUNS, TINY
from benchmarks.reproduce.report import write_report
from benchmarks.reproduce.ship import ship
from benchmarks.reproduce.work import ROOT, Workshop

_BUDGETS = {budget.name: budget for budget in (FULL, QUICK, TINY)}


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a rehearsal: one seed, few steps, few problems")
    parser.add_argument("--budget", choices=list(_BUDGETS), default="full", help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help="where work is kept; default: runs/reproduce/<budget>")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument(
        "--only", nargs="+", choices=list(RUNS), help="train these runs and what they begin with, and stop"
    )
    parser.add_argument("--no-training", action="store_true", help="evaluate and report what is trained")
    parser.add_argument("--report", action="store_true", help="report what is evaluated and stop")
    parser.add_argument("--ship", action="store_true", help="make package data of the best policies and stop")
    parser.add_argument("--train", nargs=2, metavar=("RUN", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument("--evaluate", nargs=3, metavar=("ENV", "KIND", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    budget = QUICK if arguments.quick else _BUDGETS[arguments.budget]
    workshop = Workshop(
        budget, (arguments.directory or ROOT / "runs" / "reproduce" / budget.name).resolve(), arguments.jobs
    )
    if arguments.train:
        run, seed = arguments.train
        workshop.train_here(run, int(seed))
        return
    if arguments.evaluate:
        environment, kind, seed = arguments.evaluate
        workshop.evaluate_here(environment, kind, int(seed))
        return
    if arguments.ship:
        print("shipped:", *ship(workshop))
        return
    if not arguments.report:
        if not arguments.no_training:
            workshop.train(arguments.only or list(RUNS))
        if arguments.only:
            return
        workshop.evaluate()
    target = ROOT / "docs" if budget is FULL else workshop.directory
    print(f"results: {write_report(workshop, target)}")


if __name__ == "__main__":
    main()
