"""RLlib's PPO, configured for the unmasking environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from dllm_agents.networks import DEFAULT_FEATURES, observed_by
from dllm_agents.rllib.module import UnmaskModule
from dllm_agents.rllib.runner import WholeEpisodeRunner
from dllm_gym.registration import ENV_ID


def ppo_config(
    env: Mapping[str, Any] | None = None,
    *,
    policy: Mapping[str, Any] | None = None,
    num_envs: int = 64,
    num_env_runners: int = 0,
    num_learners: int = 0,
    resources: Mapping[str, float] | None = None,
    seed: int = 0,
    **training: Any,
) -> PPOConfig:
    """A configuration to build from, or to change further as any of RLlib's.

    Args:
        env: Arguments of ``UnmaskEnv``. Every process that samples makes an environment of its own, with a
            dLLM of its own on the device Ray gave it.
        policy: Arguments of ``dllm_agents.spaces.network_for``: features, width, heads, ... What the features
            read is observed automatically.
        num_envs: Rows of one environment, decoded at once: of each runner.
        num_env_runners: Processes that sample; 0 samples in this process.
        num_learners: Processes that learn, each from a batch of its own; 0 learns in this process.
        resources: What one process may use: ``num_cpus_per_env_runner`` (1), ``num_gpus_per_env_runner`` (0),
            ``num_cpus_per_learner``, ``num_gpus_per_learner`` (0).
        seed: Seeds weights, problems and sampling.
        **training: Arguments of ``PPOConfig.training``. ``gamma`` and ``lambda_`` are 1 (the price of steps
            is inside the final reward), and there is no KL penalty.

    Raises:
        TypeError: For a resource or an argument that RLlib does not know.
    """
    settings = {"gamma": 1.0, "lambda_": 1.0, "use_kl_loss": False, **training}
    policy = dict(policy or {})
    observe = observed_by(policy.get("features", DEFAULT_FEATURES))
    resources = dict(resources or {})
    of_learners = {name: resources.pop(name) for name in list(resources) if name.endswith("_per_learner")}
    return (
        PPOConfig()
        # The name tells processes that have not imported dllm_gym where to find it.
        .environment(f"dllm_gym:{ENV_ID}", env_config={"split": "train", "observe": observe, **(env or {})})
        .env_runners(
            env_runner_cls=WholeEpisodeRunner,
            batch_mode="truncate_episodes",  # see there: its episodes are whole
            episodes_to_numpy=False,
            num_env_runners=num_env_runners,
            num_envs_per_env_runner=num_envs,
            gym_env_vectorize_mode="vector_entry_point",  # one forward for all rows
            sample_timeout_s=None,  # a large dLLM takes its time
            **resources,
        )
        .learners(num_learners=num_learners, **of_learners)
        .rl_module(rl_module_spec=RLModuleSpec(module_class=UnmaskModule, model_config={"network": policy}))
        .training(**settings)
        .debugging(seed=seed)
        .fault_tolerance(restart_failed_env_runners=True)
    )
