"""One of the two processes of test_parallel.py: ``python parallel_worker.py FOLDER RANK`` writes
``FOLDER/RANK.json``.
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.logger import Logger
from toy_backend import ToyBackend, ToyTask

import dllm_agents.sb3.callbacks
import dllm_gym
from dllm_agents import parallel, train
from dllm_agents.config import TrainConfig
from dllm_agents.sb3 import UnmaskPolicy
from dllm_agents.sb3.env import make_sb3_env
from dllm_agents.sb3.grpo import GRPO

LENGTH, GROUP = 6, 4
TOY = {"task": "toy", "backend": "toy"}
UPDATES: dict[str, dict[str, Any]] = {
    "paper": {},
    "batch-step": {"scale": "batch", "loss_average": "step"},
    "micro": {"micro_batch_size": 7},
    "entropy-kl": {"ent_coef": 0.05, "kl_coef": 0.1},
}


def groups() -> list[list[dict[str, Any]]]:
    """Three groups of episodes of unequal lengths and rewards; the third is all of the same reward."""
    rng = np.random.default_rng(7)
    made = []
    for number in range(3):
        group = []
        for _ in range(GROUP):
            steps = [
                {
                    "action_mask": (rng.random(LENGTH) < 0.7).astype(np.int8),
                    "confidence": rng.random(LENGTH, dtype=np.float32),
                    "mask": np.ones(LENGTH, dtype=np.int8),
                    "progress": rng.random(1, dtype=np.float32),
                }
                for _ in range(rng.integers(1, LENGTH + 1))
            ]
            for step in steps:
                step["actions"] = step["action_mask"] * (rng.random(LENGTH) < 0.5).astype(np.int8)
                step["values"], step["log_probs"] = np.float32(0), np.float32(-rng.random() * 3 - 1)
            group.append({"steps": steps, "reward": 0.5 if number == 2 else float(rng.random())})
        made.append(group)
    return made


def feed(buffer: Any, given: list[list[dict[str, Any]]]) -> None:
    """Hands the groups to a rollout buffer, one row per episode; a row that has ended repeats itself."""
    episodes = [(ticket, episode) for ticket, episode in enumerate(e for group in given for e in group)]
    for at in range(LENGTH):
        rows = [episode["steps"][min(at, len(episode["steps"]) - 1)] for _, episode in episodes]
        buffer.add({key: np.stack([row[key] for row in rows]) for key in rows[0]})
        for row, (ticket, episode) in enumerate(episodes):
            if at == len(episode["steps"]) - 1:
                buffer.finish(row, ticket, episode["reward"])
    buffer.complete()


def updated_weights(own: list[list[dict[str, Any]]], **kwargs: Any) -> list[float]:
    """The policy's weights after a model has learned from some groups."""
    env = make_sb3_env(GROUP * len(own), group_size=GROUP, **TOY)
    model = GRPO(
        UnmaskPolicy, env, policy_kwargs={"width": 16, "critic": False},
        **{"batch_size": None, "max_grad_norm": 0.1, "device": "cpu", "seed": 0, **kwargs},
    )  # fmt: skip
    model._setup_learn(1)
    model.set_logger(Logger(None, []))
    feed(model.rollout_buffer, own)
    model.train()
    return torch.cat([parameter.detach().flatten() for parameter in model.policy.parameters()]).tolist()


def whole_run(directory: Path) -> dict[str, Any]:
    """A training run from beginning to end."""
    config = TrainConfig(
        env=TOY, num_envs=16, group_size=GROUP, total_timesteps=10_000, policy={"width": 16, "critic": False},
        algorithm_kwargs={"n_steps": 1, "groups_per_rollout": 4, "total_rounds": 3, "batch_size": 16},
        eval_every=10**6, eval_episodes=4, learning_rate=1e-2,
    )  # fmt: skip
    seen: list[int] = []
    start = ToyTask.problem
    ToyTask.problem = lambda self, index: seen.append(index) or start(self, index)  # type: ignore[method-assign]
    models: list[Any] = []
    learn = GRPO.learn
    GRPO.learn = lambda self, *a, **k: models.append(self) or learn(self, *a, **k)  # type: ignore[method-assign]
    dllm_agents.sb3.callbacks.evaluation_figures = lambda *_: {}  # drawing takes longest
    train(config, directory)
    GRPO.learn, ToyTask.problem = learn, start  # type: ignore[method-assign]
    model = models[0]
    return {
        "weights": torch.cat([p.detach().flatten() for p in model.policy.parameters()]).tolist(),
        "timesteps": model.num_timesteps,
        "rounds": model.rounds,
        "rows": model.n_envs,
        "problems": seen[:8],
        "draw": torch.rand(1).item(),
    }


def updates(own: list[list[dict[str, Any]]]) -> dict[str, list[float]]:
    """The weights after every kind of update on some groups."""
    return {name: updated_weights(own, **kwargs) for name, kwargs in UPDATES.items()}


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    dllm_gym.register_task("toy", ToyTask)
    dllm_gym.register_backend("toy", ToyBackend)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2,
        timeout=datetime.timedelta(minutes=2),
    )  # fmt: skip
    assert (parallel.rank(), parallel.count()) == (rank, 2)
    own = [groups()[:2], groups()[2:]][rank]
    found: dict[str, Any] = updates(own)
    found["minibatches"] = updated_weights(own, batch_size=6, scale="batch")
    found["run"] = whole_run(folder / "run")
    (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
