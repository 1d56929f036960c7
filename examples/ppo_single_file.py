"""PPO on the unmasking environment in one file: gymnasium and torch, no RL library.

What is special here is in three places: ``log_prob`` (an action is one draw of many bits, and only positions
that may be changed count), ``gae`` (no discount) and ``collect`` (autoreset mode SameStep: what follows the
end of an episode is the first observation of the next).

Run: ``python examples/ppo_single_file.py`` (a minute on one thread), then
``dllm-gym evaluate --task sudoku --agent runs/ppo_single_file``.
"""

import argparse
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dllm_gym  # noqa: F401  registers the environment
from dllm_agents import save_policy
from dllm_agents.networks import UnmaskTransformer, UnmaskTransformerConfig

Tensors = dict[str, Tensor]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--task", default="sudoku")
    add("--block-length", type=int, default=None, help="decode in blocks of this length, left to right")
    add("--alpha", type=float, default=1.0, help="price of steps")
    add("--actions", default="reveal", help="set-state: the policy may also take tokens back")
    add("--num-envs", type=int, default=64, help="episodes decoded at once, one forward for all")
    add("--num-steps", type=int, default=32, help="steps of every row per rollout; best more than an episode")
    add("--total-timesteps", type=int, default=60_000)
    add("--learning-rate", type=float, default=1e-3, help="falls to 0 in the course of the training")
    add("--epochs", type=int, default=4, help="passes over each rollout")
    add("--minibatch-size", type=int, default=512)
    add("--gae-lambda", type=float, default=0.95)
    add("--clip-range", type=float, default=0.2)
    add("--value-coef", type=float, default=0.5)
    add("--max-grad-norm", type=float, default=0.5)
    add("--width", type=int, default=32, help="of the policy network")
    add("--dtype", default="auto", help="of the dLLM: auto is bfloat16 where the processor computes in it")
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path("runs/ppo_single_file"), help="gets the policy")
    return parser.parse_args()


def log_prob(logits: Tensor, action_mask: Tensor, actions: Tensor) -> Tensor:
    """Of the whole action, ``(B,)``: bits are independent, those outside the mask are 0 with certainty."""
    signed = torch.where(actions != 0, logits, -logits)  # log(1 - sigmoid(b)) = logsigmoid(-b)
    return (F.logsigmoid(signed) * action_mask).sum(-1)


def sample(logits: Tensor, action_mask: Tensor) -> Tensor:
    """Draws one bit per position that may be changed; nothing at all may come out."""
    return ((torch.rand_like(logits) < logits.sigmoid()) & (action_mask != 0)).to(torch.int8)


def gae(rewards: Tensor, values: Tensor, ends: Tensor, last_value: Tensor, lam: float) -> Tensor:
    """Generalised advantage estimation (arXiv 1506.02438) without discount, all ``(T, N)``.

    The price of steps is inside the final reward already. Nothing is bootstrapped beyond an end: running out
    of steps is part of the task.
    """
    advantages = torch.zeros_like(rewards)
    advantage = torch.zeros_like(last_value)
    for t in reversed(range(len(rewards))):
        going_on = 1.0 - ends[t]
        delta = rewards[t] + going_on * last_value - values[t]
        advantages[t] = advantage = delta + lam * going_on * advantage
        last_value = values[t]
    return advantages


def tensors(observation: dict[str, np.ndarray]) -> Tensors:
    return {key: torch.from_numpy(values) for key, values in observation.items()}


@torch.no_grad()
def collect(
    envs: gym.vector.VectorEnv, network: UnmaskTransformer, observation: Tensors, num_steps: int
) -> tuple[Tensors, Tensors, list[tuple[float, bool, int]]]:
    """The steps ``(T, N, ...)``, the observation after them, and how episodes ended: reward, success, NFE."""
    steps, outcomes = [], []
    for _ in range(num_steps):
        logits, values = network.forward_actor_critic(observation)
        actions = sample(logits, observation["action_mask"])
        following, rewards, terminated, _, infos = envs.step(actions.numpy())
        steps.append(
            observation
            | {
                "action": actions,
                "log_prob": log_prob(logits, observation["action_mask"], actions),
                "value": values,
                "reward": torch.from_numpy(rewards).float(),
                "end": torch.from_numpy(terminated).float(),
            }
        )
        for row in np.flatnonzero(terminated):
            last = infos["final_info"]
            outcomes.append((rewards[row], last["is_success"][row], last["nfe"][row]))
        observation = tensors(following)
    return {key: torch.stack([step[key] for step in steps]) for key in steps[0]}, observation, outcomes


def update(
    network: UnmaskTransformer,
    optimizer: torch.optim.Optimizer,
    rollout: Tensors,
    last_value: Tensor,
    arguments: argparse.Namespace,
) -> None:
    """A few passes of PPO's clipped objective (arXiv 1707.06347) over the rollout."""
    advantages = gae(rollout["reward"], rollout["value"], rollout["end"], last_value, arguments.gae_lambda)
    rollout |= {"advantage": advantages / (advantages.std() + 1e-8), "return": advantages + rollout["value"]}
    rollout = {key: value.flatten(0, 1) for key, value in rollout.items()}  # (T * N, ...)
    for _ in range(arguments.epochs):
        for rows in torch.randperm(len(rollout["action"])).split(arguments.minibatch_size):
            batch = {key: value[rows] for key, value in rollout.items()}
            logits, values = network.forward_actor_critic(batch)
            ratio = (log_prob(logits, batch["action_mask"], batch["action"]) - batch["log_prob"]).exp()
            clipped = ratio.clamp(1 - arguments.clip_range, 1 + arguments.clip_range)
            policy_loss = -torch.min(ratio * batch["advantage"], clipped * batch["advantage"]).mean()
            value_loss = F.mse_loss(values, batch["return"])
            optimizer.zero_grad()
            (policy_loss + arguments.value_coef * value_loss).backward()
            nn.utils.clip_grad_norm_(network.parameters(), arguments.max_grad_norm)
            optimizer.step()


def main() -> None:
    arguments = parse_arguments()
    torch.manual_seed(arguments.seed)
    place = {name: getattr(arguments, name) for name in ("task", "block_length", "alpha", "actions")}
    envs = gym.make_vec(
        "DLLMUnmask-v0",
        num_envs=arguments.num_envs,
        autoreset_mode="SameStep",
        **place,
        # A step that reveals nothing is lost; otherwise the policy leans on the environment's help.
        on_empty="noop",
        backend_kwargs={"dtype": arguments.dtype},
    )
    keep_prior = 5.0 if arguments.actions == "set-state" else None  # at first nearly everything stands
    network = UnmaskTransformer(
        UnmaskTransformerConfig(width=arguments.width, value_head=True, keep_prior=keep_prior)
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=arguments.learning_rate, eps=1e-5)
    observation = tensors(envs.reset(seed=arguments.seed)[0])
    per_update = arguments.num_envs * arguments.num_steps
    num_updates = -(-arguments.total_timesteps // per_update)
    started = time.monotonic()
    for index in range(num_updates):
        optimizer.param_groups[0]["lr"] = arguments.learning_rate * (1 - index / num_updates)
        rollout, observation, outcomes = collect(envs, network, observation, arguments.num_steps)
        with torch.no_grad():
            _, last_value = network.forward_actor_critic(observation)
        update(network, optimizer, rollout, last_value, arguments)
        reward, accuracy, nfe = np.mean(outcomes, axis=0) if outcomes else [float("nan")] * 3
        print(
            f"{(index + 1) * per_update:>9,} steps, {time.monotonic() - started:>4.0f} s: "
            f"reward {reward:.3f}, accuracy {accuracy:.3f} @ {nfe:.1f} steps over {len(outcomes)} episodes",
            flush=True,
        )
    envs.close()
    settings = {key: str(value) if key == "output" else value for key, value in vars(arguments).items()}
    told = {"arguments": settings, "config": {"env": place}}  # where it was trained, it decodes
    print(f"policy: {save_policy(arguments.output, network, told)}")


if __name__ == "__main__":
    main()
