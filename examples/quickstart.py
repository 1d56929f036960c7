"""One episode in the terminal: reveal whatever the model is sure of.

Run: ``python examples/quickstart.py``
"""

import gymnasium as gym

import dllm_gym  # noqa: F401  registers the environment


def main() -> None:
    env = gym.make("DLLMUnmask-v0", block_length=8, render_mode="ansi", split="test")
    observation, _ = env.reset(options={"problem": 0})
    terminated = False
    while not terminated:
        print(env.render())
        action = (observation["confidence"] > 0.9) & (observation["action_mask"] == 1)
        observation, reward, terminated, _, _ = env.step(action)
    print(env.render())
    print(f"reward {reward:.3f}")


if __name__ == "__main__":
    main()
