"""A training run with RLlib: what ``train`` does for ``rllib-ppo``."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ray.rllib.algorithms import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dllm_agents.agent import LearnedPolicy
from dllm_agents.config import TrainConfig
from dllm_agents.networks import UnmaskTransformer
from dllm_agents.ray_cluster import ray_cluster
from dllm_agents.rllib.config import ppo_config
from dllm_agents.rllib.module import learned_network, set_network
from dllm_agents.rllib.runner import ENDS
from dllm_agents.run import Run, begin_with, refuse_unknown
from dllm_agents.run_folder import REPORTED, RLLIB_STATE, read_rllib_state
from dllm_agents.spaces import network_for
from dllm_gym.envs.unmask import UnmaskEnv
from dllm_gym.evaluation import EvaluationResult, evaluate
from dllm_gym.files import write_json

# What RLlib says of an update -> what it is called in TensorBoard, here as after training with SB3.
_UPDATE = {
    "policy_loss": "train/policy_gradient_loss",
    "vf_loss": "train/value_loss",
    "entropy": "train/entropy",
    "vf_explained_var": "train/explained_variance",
    "default_optimizer_learning_rate": "train/learning_rate",
    "gradients_default_optimizer_global_norm": "train/gradient_norm",
}
_OWN_OF_ENV = ("group_size", "render_mode")
_OWN_OF_POLICY = ("observation_space", "action_space", "critic")
_OWN_OF_ALGORITHM = ("self", "lr")
_TRIES = 3


class RLlibRun(Run):
    """One training run with RLlib.

    Its state is a checkpoint of Ray's, which is a pickle: reading it can run whatever its author wrote. A run
    reads only what it finds in its own directory; to hand on a policy, use ``best/`` or ``last/``.
    """

    STATE = RLLIB_STATE

    def __init__(
        self, config: TrainConfig, directory: Path, resume: bool, progress: bool, command: str
    ) -> None:
        super().__init__(config, directory, resume, progress, command)
        self._resumed = resume
        check_arguments(config)

    def learn(self) -> None:
        """Trains to the end, or to the deadline."""
        config, self._started = self.config, time.monotonic()
        rllib_config = _rllib_config(config)
        with _cluster(config.workers), _built(rllib_config) as algorithm:
            self.algorithm = algorithm
            if self._resumed:
                self._restore()
            else:
                self._begin()
            with SummaryWriter(self.directory) as writer:
                self._writer = writer
                self._iterate()
        self._write_metrics()

    @property
    def timesteps(self) -> int:
        """Environment steps so far, of all runners together."""
        return int(self.algorithm.metrics.peek(("env_runners", "num_env_steps_sampled_lifetime"), default=0))

    def _iterate(self) -> None:
        config = self.config
        deadline = float("inf") if config.max_minutes is None else 60 * config.max_minutes
        evaluated = self.timesteps
        with tqdm(total=config.total_timesteps, unit="step", disable=not self.progress) as bar:
            while self.timesteps < config.total_timesteps and self._elapsed() < deadline:
                self._log_iteration(self.algorithm.train())
                bar.update(self.timesteps - bar.n)
                if self.timesteps // config.eval_interval > evaluated // config.eval_interval:
                    evaluated = self.timesteps
                    self._evaluate()
        if evaluated < self.timesteps:
            self._evaluate()

    def _log_iteration(self, result: Mapping[str, Any]) -> None:
        sampled = result["env_runners"]
        scalars = {
            "rollout/ep_rew_mean": sampled.get("episode_return_mean"),
            "rollout/ep_len_mean": sampled.get("episode_len_mean"),
            "time/fps": sampled["num_env_steps_sampled"] / result["time_this_iter_s"],
            "time/env_runners": self.algorithm.env_runner_group.num_healthy_remote_workers(),
        }
        ends = sampled.get(ENDS)
        if ends is not None:
            scalars["unmask/accuracy"] = ends["is_success"] / ends["episodes"]
            scalars["unmask/nfe"] = ends["nfe"] / ends["episodes"]
            scalars["unmask/empty_action_rate"] = ends["empty_actions"] / ends["nfe"]
        learned = result.get("learners", {}).get(DEFAULT_MODULE_ID, {})
        scalars |= {tag: learned.get(name) for name, tag in _UPDATE.items()}
        self._write(scalars)

    def _evaluate(self) -> None:
        """On validation problems, sampled and deterministic; saves the policies and the state."""
        network = learned_network(self.algorithm)
        results = _on_a_runner(self.algorithm, network, self.config.eval_episodes)
        scalars: dict[str, Any] = {}
        for decoding, result in results.items():
            scalars[f"eval/accuracy_{decoding}"] = result.accuracy
            scalars[f"eval/nfe_{decoding}"] = result.nfe_mean
            scalars[f"eval/reward_{decoding}"] = result.reward_mean
        self._write(scalars)
        self._remember(results, self.timesteps, network)
        self._save_state()

    def _write(self, scalars: Mapping[str, Any]) -> None:
        for tag, value in scalars.items():
            if value is not None:
                self._writer.add_scalar(tag, float(value), self.timesteps)

    def _begin(self) -> None:
        if self.config.init_from is not None:
            network = learned_network(self.algorithm)
            begin_with(network, self.config.init_from)
            set_network(self.algorithm, network)
        self._save_state()  # before the configuration: what has one can be resumed
        self._write_config()

    def _save_state(self) -> None:
        """A new checkpoint first, then the note that names it, then the old ones go."""
        folder = (self.directory / "checkpoints").resolve()
        name = f"{self.timesteps:012}"
        self.algorithm.save_to_path(folder / name)
        state = {"checkpoint": name, "seconds": self._elapsed(), "history": self.history}
        write_json(self.directory / self.STATE, state)
        for old in folder.iterdir():
            if old.name != name:
                shutil.rmtree(old)

    def _restore(self) -> None:
        state = read_rllib_state(self.directory)
        name = Path(state["checkpoint"]).name  # of this directory, whatever the note says
        self.algorithm.restore_from_path((self.directory / "checkpoints" / name).resolve())
        self.seconds, self.history = state["seconds"], state["history"]
        rewards = [row["sample"]["reward_mean"] for row in self.history]
        self.best_reward = max(rewards, default=self.best_reward)


def check_arguments(config: TrainConfig) -> None:
    """Refuses names that nothing takes in a configuration of ``rllib-ppo``.

    Raises:
        ValueError: For such a name.
    """
    refuse_unknown("env", config.env, [UnmaskEnv], _OWN_OF_ENV)
    refuse_unknown("policy", config.policy, [network_for], _OWN_OF_POLICY)
    takers = [PPOConfig.training, AlgorithmConfig.training]
    refuse_unknown("algorithm_kwargs", config.algorithm_kwargs, takers, _OWN_OF_ALGORITHM)


def _rllib_config(config: TrainConfig) -> PPOConfig:
    workers = dict(config.workers)
    runners, learners = workers.pop("num_env_runners", 0), workers.pop("num_learners", 0)
    return ppo_config(
        config.env,
        policy=config.policy_arguments,
        num_envs=config.num_envs // max(runners, 1),
        num_env_runners=runners,
        num_learners=learners,
        resources=workers,
        seed=config.seed,
        lr=_learning_rate(config),
        **config.algorithm_kwargs,
    )


def _learning_rate(config: TrainConfig) -> list[list[float]]:
    """The points of RLlib's piecewise linear schedule: (environment steps, learning rate)."""
    top, end = config.learning_rate, config.final_learning_rate
    risen = round(config.warmup * config.total_timesteps)
    rise = [[0, 0.0], [risen, top]] if risen else [[0, top]]
    return [*rise, [config.total_timesteps, end]]


def _cluster(workers: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Ray as it already runs in this program; else at RAY_ADDRESS; else for this run alone."""
    runners, learners = workers.get("num_env_runners", 0), workers.get("num_learners", 0)
    gpus_of_learner = workers.get("num_gpus_per_learner", 0)
    cpus_of_learner = workers.get("num_cpus_per_learner", 0 if gpus_of_learner else 1)
    cpus = runners * workers.get("num_cpus_per_env_runner", 1) + learners * cpus_of_learner
    return ray_cluster(
        os.environ.get("RAY_ADDRESS"),
        local_cpus=max(os.cpu_count() or 1, int(cpus + 1)),  # sampling and learning take turns anyway
        cpus=cpus,
        gpus=runners * workers.get("num_gpus_per_env_runner", 0) + learners * gpus_of_learner,
        who=f"the workers {dict(workers)}",
    )


@contextmanager
def _built(config: PPOConfig) -> Iterator[Algorithm]:
    algorithm = config.build_algo()
    shutil.rmtree(algorithm.logdir)  # an empty folder in ~/ray_results, which only Tune would fill
    try:
        yield algorithm
    finally:
        algorithm.stop()


def _on_a_runner(
    algorithm: Algorithm, network: UnmaskTransformer, episodes: int
) -> dict[str, EvaluationResult]:
    """Our evaluation, where a dLLM is loaded already and has a device: in a process that samples."""
    job = partial(_report, network=network, episodes=episodes)
    group = algorithm.env_runner_group
    if group.num_remote_workers() == 0:
        return job(group.local_env_runner)
    for _ in range(_TRIES):
        chosen = group.healthy_worker_ids()[:1]
        found = group.foreach_env_runner(job, local_env_runner=False, remote_worker_ids=chosen)
        if found:
            results: dict[str, EvaluationResult] = found[0]
            return results
        algorithm.restore_env_runners(group)
    raise RuntimeError(f"no process that samples lived long enough to evaluate, in {_TRIES} attempts")


def _report(runner: Any, *, network: UnmaskTransformer, episodes: int) -> dict[str, EvaluationResult]:
    env = {key: value for key, value in runner.config.env_config.items() if key != "split"}
    return {
        decoding: evaluate(LearnedPolicy(network, decoding=decoding), episodes, "validation", **env)
        for decoding in REPORTED
    }
