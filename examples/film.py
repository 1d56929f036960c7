"""Makes a GIF of one episode, decoded by any agent.

Run: ``python examples/film.py --agent fast-dllm:threshold=0.9 --problem 3 --output film.gif``
"""

import argparse
from pathlib import Path

import gymnasium as gym

import dllm_gym
from dllm_gym.envs.rendering import save_gif
from dllm_gym.evaluation import as_agent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agent", default="fast-dllm:threshold=0.9", help="a strategy or a policy's path")
    parser.add_argument("--task", default="arithmetic")
    parser.add_argument("--block-length", type=int, default=None)
    parser.add_argument("--problem", type=int, default=3, help="index in the test split")
    parser.add_argument("--output", type=Path, default=Path("film.gif"))
    arguments = parser.parse_args()
    agent = as_agent(arguments.agent)
    env = gym.make(
        dllm_gym.ENV_ID,
        task=arguments.task,
        block_length=arguments.block_length,
        split="test",
        observe=getattr(agent, "requires", ()),
        render_mode="rgb_array",
    )
    observation, _ = env.reset(options={"problem": arguments.problem})
    frames = [env.render()]
    terminated, info = False, {}
    while not terminated:
        observation, _, terminated, _, info = env.step(agent.act(observation))
        frames.append(env.render())
    save_gif(frames, arguments.output, fps=2, hold_last=3)
    verdict = "right" if info["is_success"] else "wrong"
    print(f"{info['completion']}: {verdict} in {info['nfe']} steps; {arguments.output}")


if __name__ == "__main__":
    main()
