"""rl_zoo3's training script on the batched environment: one forward of the dLLM for all rows of a step.

Needs rl_zoo3, see docs/libraries.md. It takes the arguments of ``python -m rl_zoo3.train``.

Run: ``python examples/rl_zoo3_train.py --env DLLMUnmask-v0 --conf-file examples/rl_zoo3_ppo.yml``
"""

import rl_zoo3.train
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.vec_env import VecEnv

from dllm_agents import make_sb3_env


class BatchedExperimentManager(ExperimentManager):
    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        env_kwargs = self.eval_env_kwargs if eval_env else self.env_kwargs
        return make_sb3_env(n_envs, seed=self.seed, **env_kwargs)


if __name__ == "__main__":
    rl_zoo3.train.ExperimentManager = BatchedExperimentManager
    rl_zoo3.train.train()
