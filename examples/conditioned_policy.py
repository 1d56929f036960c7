"""One policy for every speed: the shipped ``arithmetic-hidden-any`` is told how many steps to take.

Run: ``python examples/conditioned_policy.py``
"""

import argparse

import dllm_gym


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--target-steps", type=int, nargs="+", default=[3, 5, 8, 12, 20])
    arguments = parser.parse_args()
    question = "Sam has 20 coins, finds 4, loses 9. Total?"
    for target in arguments.target_steps:
        agent = f"policy:arithmetic-hidden-any:target_steps={target}"
        result = dllm_gym.evaluate(agent, arguments.episodes, task="arithmetic")
        one = dllm_gym.generate(question, agent)
        print(
            f"told {target:2}: {result.nfe_mean:4.1f} steps, {result.accuracy:.2f} right | "
            f"{one.steps:2} steps: {one.text}"
        )


if __name__ == "__main__":
    main()
