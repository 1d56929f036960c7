"""PPO on the unmasking environment with RLlib: two processes sample, this one learns; our network.

Needs ``pip install 'dllm-gym[rllib]'`` in an environment of its own, because Ray pins its Gymnasium.

Run: ``python examples/rllib_ppo.py`` (two cores), then
``dllm-gym evaluate --task sudoku --agent runs/rllib_ppo``.
"""

import argparse
from pathlib import Path

import ray

from dllm_agents import save_policy
from dllm_agents.rllib import learned_network, ppo_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--task", default="sudoku")
    parser.add_argument("--num-env-runners", type=int, default=2, help="processes that sample")
    parser.add_argument("--iterations", type=int, default=20, help="of 2048 steps each")
    parser.add_argument("--output", type=Path, default=Path("runs/rllib_ppo"), help="gets the policy")
    arguments = parser.parse_args()

    ray.init(include_dashboard=False, logging_level="error")
    config = ppo_config(
        # A step that reveals nothing is lost; otherwise the policy leans on the environment's help.
        {"task": arguments.task, "on_empty": "noop"},
        policy={"width": 32},
        num_envs=32,  # rows of each process
        num_env_runners=arguments.num_env_runners,
        lr=1e-3,
        train_batch_size_per_learner=2048,
        minibatch_size=512,
        num_epochs=4,
        clip_param=0.2,
        vf_loss_coeff=0.5,
        grad_clip=0.5,
    )
    # It is RLlib's own PPOConfig: whatever RLlib has can be set here.
    algorithm = config.build_algo()
    for _ in range(arguments.iterations):
        sampled = algorithm.train()["env_runners"]
        reward, steps = sampled["episode_return_mean"], sampled["num_env_steps_sampled_lifetime"]
        print(f"{steps:>9,.0f} steps: reward {reward:.3f}", flush=True)
    print(f"policy: {save_policy(arguments.output, learned_network(algorithm), {'library': 'rllib'})}")
    algorithm.stop()


if __name__ == "__main__":
    main()
