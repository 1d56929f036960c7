"""Measures the figures of the suite: oracle, best rule and trained agent of every member.

Rules are tuned on validation problems, each over its parameters; the best of them, the oracle and the trained
agent that comes with the package then decode the test problems. The oracle's careful decoding is the better
one of two: in blocks of 8, and without.

Run: ``python benchmarks/suite.py``. An interrupted run goes on. It writes ``dllm_gym/assets/suite.json``;
members that are not asked for keep their figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dllm_gym.backends import load_backend
from dllm_gym.evaluation import compare
from dllm_gym.evaluation.tuning import agent_text, tuned
from dllm_gym.files import read_json, write_json
from dllm_gym.suite import FIGURES, SUITE, Member

SCRIPT = "benchmarks/suite.py"
ORACLES = ("oracle", "oracle:block_length=0")
COMPILED = {"compile": "auto"}


def measure(member: Member, episodes: int, strategies: str, keep: Path) -> dict[str, Any]:
    """The figures of one member, as ``dllm_gym.suite`` reads them; what ``keep`` has of them is taken."""
    env = {**member.env, "backend_kwargs": COMPILED}
    rules = tuned(strategies, episodes, keep=keep / member.name, **env)
    best = agent_text(max(rules.values(), key=lambda result: result.reward_mean))
    groups = {"oracle": ORACLES, "best_rule": (best,)}
    if member.trained is not None:
        groups["trained"] = (member.trained,)
    found: dict[str, Any] = {"trained": None}
    for name, agents in groups.items():
        results = compare(agents, episodes, strategies=[], keep=keep / member.name, **env).results
        agent, result = max(zip(agents, results, strict=True), key=lambda pair: pair[1].reward_mean)
        found[name] = {
            "agent": agent,
            "label": result.label,
            "reward": round(result.reward_mean, 5),
            "accuracy": result.accuracy,
            "nfe": round(result.nfe_mean, 3),
        }
    return {
        "completion_length": result.environment["completion_length"],
        "vocabulary": load_backend(member.backend, **COMPILED).vocab_size,
        "episodes": result.episodes,
        "env": member.env,
        "command": f"python {SCRIPT} {member.name} --episodes {episodes} --strategies {strategies}",
        **found,
    }


def add_members(parser: argparse.ArgumentParser, default: Sequence[str] = ()) -> None:
    """The argument ``members``; by default it is ``default``, or all of them if that is empty."""
    every = ", ".join(member.name for member in SUITE)
    told = f"of {every}; default: {', '.join(default) or 'all'}"
    parser.add_argument("members", nargs="*", default=list(default), metavar="MEMBER", help=told)


def chosen_members(parser: argparse.ArgumentParser, given: Sequence[str]) -> list[Member]:
    """Members of these names, all if there are none, in the suite's order; unknown ones are an error."""
    names = [member.name for member in SUITE]
    unknown = set(given) - set(names)
    if unknown:
        parser.error(f"unknown members {', '.join(sorted(unknown))}; known: {', '.join(names)}")
    return [member for member in SUITE if not given or member.name in given]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_members(parser)
    parser.add_argument("--episodes", type=int, default=1000, help="validation problems, and test problems")
    parser.add_argument("--strategies", default="full", help="short, or full: every setting of every rule")
    parser.add_argument("--keep", type=Path, default=Path("runs/suite"), help="results, to go on with")
    parser.add_argument("--output", type=Path, default=FIGURES)
    given = parser.parse_args(arguments)
    chosen = chosen_members(parser, given.members)
    known = read_json(given.output)["members"] if given.output.is_file() else {}
    for member in SUITE:
        if member in chosen:
            known[member.id] = measure(member, given.episodes, given.strategies, given.keep)
        print(member.id, known.get(member.id))
        ordered = {one.id: known[one.id] for one in SUITE if one.id in known}
        write_json(given.output, {"members": ordered})


if __name__ == "__main__":
    main()
