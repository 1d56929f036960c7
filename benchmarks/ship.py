"""Makes package data of a trained policy: ``python -m benchmarks.ship RUN NAME``.

The best policy of a training run is tested where it was trained, on the first 1,000 test problems, sampled,
deterministic and with a caution of 1, or as asked; it is then ``policy:NAME``, and its file says how it was
trained and what it came to.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dllm_agents.checkpoint import SHIPPED, load_policy, read_description, save_policy
from dllm_gym.evaluation import EvaluationResult, compare

DECODINGS = ("sample", "deterministic", "deterministic,caution=1")


def ship(
    name: str, saved: Path, results: Mapping[str, EvaluationResult], command: str, config: Mapping[str, Any]
) -> Path:
    """Saves a policy under a name, with what it came to on test problems by decoding; its directory."""
    test = {
        decoding: {
            "accuracy": result.accuracy,
            "accuracy_ci95": result.accuracy_ci95,
            "nfe_mean": result.nfe_mean,
            "episodes": result.episodes,
        }
        for decoding, result in results.items()
    }
    metadata = {
        "command": command,
        "config": dict(config),
        "seed": config["seed"],
        "validation": read_description(saved)["metadata"]["validation"],
        "test": test,
    }
    policy = load_policy(saved)
    return save_policy(SHIPPED / name, policy.network, metadata, decoding=policy.decoding)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="directory of a training run")
    parser.add_argument("name")
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--decodings", nargs="+", default=DECODINGS, help="options of the policy to test")
    given = parser.parse_args()
    saved = given.run / "best"
    metadata = read_description(saved)["metadata"]
    where = {name: value for name, value in metadata["config"]["env"].items() if name != "split"}
    agents = [f"{saved}:{one}" for one in given.decodings]
    results = compare(agents, given.episodes, strategies=[], **where).results
    command = re.sub(r" --output \S+", "", metadata["command"])  # wherever it lay
    tested = dict(zip(given.decodings, results, strict=True))
    print(ship(given.name, saved, tested, command, metadata["config"]))


if __name__ == "__main__":
    main()
