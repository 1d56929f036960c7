"""Trains PPO and A2C from the shipped configurations and plots both learning curves.

Run: ``python examples/ppo_against_a2c.py`` (a few minutes each), or with ``--total-timesteps 20000`` for a
first look.
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

from dllm_agents import train
from dllm_agents.config import find_config, load_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--total-timesteps", type=int, default=None)
    parser.add_argument("--output", type=Path, default=Path("runs/ppo_against_a2c"))
    arguments = parser.parse_args()
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="environment steps", ylabel="validation reward")
    for algorithm in ("ppo", "a2c"):
        config = load_config(find_config(f"{algorithm}-full"))
        if arguments.total_timesteps is not None:
            config = config.updated(total_timesteps=arguments.total_timesteps)
        run = train(config, arguments.output / algorithm, progress=True)
        evaluations = json.loads((run / "metrics.json").read_text())["evaluations"]
        axes.plot(
            [row["timesteps"] for row in evaluations],
            [row["sample"]["reward_mean"] for row in evaluations],
            label=algorithm.upper(),
        )
    axes.legend()
    figure.savefig(arguments.output / "curves.png", dpi=150)
    print(arguments.output / "curves.png")


if __name__ == "__main__":
    main()
