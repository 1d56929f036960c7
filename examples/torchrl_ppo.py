"""PPO on the unmasking environment with TorchRL: its collector, advantage module and loss, our network.

Needs ``pip install 'dllm-gym[torchrl]'``.

Run: ``python examples/torchrl_ppo.py`` (a minute or two on one thread), then
``dllm-gym evaluate --task sudoku --agent runs/torchrl_ppo``.
"""

import argparse
from pathlib import Path

import gymnasium as gym
import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent
from torchrl.collectors import Collector
from torchrl.envs import GymWrapper
from torchrl.modules import ProbabilisticActor
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

import dllm_gym  # noqa: F401  registers the environment
from dllm_agents import save_policy
from dllm_agents.networks import UnmaskTransformer, UnmaskTransformerConfig

KEYS = ("confidence", "mask", "action_mask", "progress")  # what the network reads


class MaskedBernoulli(Independent):
    """Independent bits, those outside the mask 0 with certainty; one log-probability for the whole action.

    A finite number takes the place of minus infinity, which would make gradients NaN.
    """

    def __init__(self, logits: Tensor, action_mask: Tensor) -> None:
        super().__init__(Bernoulli(logits=logits.masked_fill(action_mask == 0, -1e8)), 1)

    @property
    def deterministic_sample(self) -> Tensor:
        return (self.base_dist.probs > 0.5).float()


class OnTensors(nn.Module):
    """The network as TorchRL calls a module: with a tensor per key, of any number of leading axes.

    A network with a value head is a critic: state values ``(..., 1)`` come out, not logits ``(..., L)``.
    """

    def __init__(self, network: UnmaskTransformer) -> None:
        super().__init__()
        self.network = network

    def forward(self, *observation: Tensor) -> Tensor:
        batch = observation[0].shape[:-1]  # (N,), (N, T), ...
        flat = {key: value.flatten(0, -2) for key, value in zip(KEYS, observation, strict=True)}
        if self.network.value_head is None:
            output = self.network(flat)  # (B, L)
        else:
            output = self.network.forward_actor_critic(flat)[1][:, None]  # (B, 1)
        return output.unflatten(0, batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--task", default="sudoku")
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--num-steps", type=int, default=32, help="steps of every row per rollout")
    parser.add_argument("--total-timesteps", type=int, default=61_440)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/torchrl_ppo"), help="gets the policy")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)

    env = GymWrapper(
        gym.make_vec(
            "DLLMUnmask-v0",
            num_envs=arguments.num_envs,
            autoreset_mode="Disabled",  # TorchRL resets the rows that have finished
            task=arguments.task,
            # A step that reveals nothing is lost; otherwise the policy leans on the environment's help.
            on_empty="noop",
        )
    )
    env.set_seed(arguments.seed)
    network = UnmaskTransformer(UnmaskTransformerConfig(width=32))
    actor = ProbabilisticActor(
        TensorDictModule(OnTensors(network), in_keys=list(KEYS), out_keys=["logits"]),
        in_keys=["logits", "action_mask"],
        distribution_class=MaskedBernoulli,
        return_log_prob=True,
    )
    critic_network = UnmaskTransformer(UnmaskTransformerConfig(width=32, value_head=True))
    critic = TensorDictModule(OnTensors(critic_network), in_keys=list(KEYS), out_keys=["state_value"])
    # The price of steps is inside the final reward already: no discount.
    advantage = GAE(gamma=1.0, lmbda=0.95, value_network=critic, deactivate_vmap=True)
    loss_module = ClipPPOLoss(
        actor, critic, clip_epsilon=0.2, entropy_bonus=False, critic_coeff=0.5, loss_critic_type="l2"
    )
    optimizer = torch.optim.Adam(loss_module.parameters(), lr=arguments.learning_rate)
    collector = Collector(
        env,
        actor,
        frames_per_batch=arguments.num_envs * arguments.num_steps,
        total_frames=arguments.total_timesteps,
        auto_register_policy_transforms=False,  # they are for policies that keep a state
    )
    steps = 0
    for rollout in collector:  # (num_envs, num_steps)
        with torch.no_grad():
            advantage(rollout)
        rollout["advantage"] /= rollout["advantage"].std() + 1e-8
        flat = rollout.reshape(-1)
        for _ in range(4):
            for rows in torch.randperm(len(flat)).split(512):
                losses = loss_module(flat[rows])
                optimizer.zero_grad()
                (losses["loss_objective"] + losses["loss_critic"]).backward()
                nn.utils.clip_grad_norm_(loss_module.parameters(), 0.5)
                optimizer.step()
        steps += len(flat)
        rewards = rollout["next", "reward"][rollout["next", "done"]]
        print(f"{steps:>9,} steps: reward {rewards.mean():.3f} over {len(rewards)} episodes", flush=True)
    collector.shutdown()
    print(f"policy: {save_policy(arguments.output, network, {'library': 'torchrl'})}")


if __name__ == "__main__":
    main()
