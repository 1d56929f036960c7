"""An agent of your own against the built-in heuristics, on the same problems.

Run: ``python examples/own_agent.py``
"""

import argparse
from collections.abc import Mapping

import numpy as np

import dllm_gym


class WarmingUp:
    """Takes more risk as the episode goes on: the threshold falls from 0.99 to 0.6."""

    name = label = "warming-up"

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        threshold = 0.99 - 0.39 * np.minimum(observation["progress"] * 4, 1)  # (B, 1)
        return (observation["confidence"] >= threshold) & (observation["action_mask"] == 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=200)
    arguments = parser.parse_args()
    rivals = [dllm_gym.make_strategy("fast-dllm", threshold=t) for t in (0.7, 0.9, 0.99)]
    comparison = dllm_gym.compare([WarmingUp()], arguments.episodes, strategies=rivals)
    for result in comparison.results:
        print(f"{result.label:28} {result.accuracy:.3f} @ {result.nfe_mean:.1f} steps")
    for gap in comparison.gaps():
        low, high = gap.difference_ci95
        print(f"{gap.label} lies {gap.difference:+.3f} ({low:+.3f} to {high:+.3f}) above their envelope")


if __name__ == "__main__":
    main()
