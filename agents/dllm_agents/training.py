"""One entry for every algorithm: ``train(config, directory)`` and ``dllm-gym train``."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecMonitor

from dllm_agents import parallel
from dllm_agents.config import TrainConfig, load_config
from dllm_agents.networks import DEFAULT_FEATURES, observed_by
from dllm_agents.run import Run, begin_with, refuse_unknown
from dllm_agents.run_folder import STATE, check_evaluations
from dllm_agents.sb3.callbacks import Deadline, Evaluation, Progress, RolloutMetrics, Saving
from dllm_agents.sb3.env import make_sb3_env
from dllm_agents.sb3.flight import episodes_in_flight, random_state, restore_episodes, restore_random_state
from dllm_agents.sb3.given import check_fits
from dllm_agents.sb3.grouped import GroupA2C, GroupedRollouts, GroupPPO
from dllm_agents.sb3.grpo import GRPO, expert_agent
from dllm_agents.sb3.imitation import clone, hindsight, imitate
from dllm_agents.sb3.policy import UnmaskPolicy
from dllm_agents.sb3.success import SuccessModel
from dllm_agents.schedules import Pace, learning_rate
from dllm_gym.envs.unmask import UnmaskEnv
from dllm_gym.evaluation import EvaluationResult
from dllm_gym.fields import ANYTHING, FLAG, SHARE, Field, check_fields, number, whole
from dllm_gym.files import is_finite, read_state, remove_unfinished, write_state
from dllm_gym.offline import Episodes, read_dataset
from dllm_gym.states import check_like, check_optimizer

_STATE_FIELDS = {
    "policy": ANYTHING,
    "reference": ANYTHING,
    "optimizer": ANYTHING,
    "timesteps": whole(),
    "updates": whole(),
    "best_reward": Field("a number, or minus infinity", lambda value: is_finite(value) or value == -math.inf),
    "history": ANYTHING,
    "seconds": number(0),
    "next_ticket": whole(),
    "random": ANYTHING,
    "episodes": ANYTHING,
    "warming": FLAG,
    "begun": SHARE,
}

# (algorithm, whether in groups) -> class
_CLASSES: dict[tuple[str, bool], type[OnPolicyAlgorithm]] = {
    ("grpo", True): GRPO,
    ("ppo", False): PPO,
    ("ppo", True): GroupPPO,
    ("a2c", False): A2C,
    ("a2c", True): GroupA2C,
    ("success", False): SuccessModel,
    ("success", True): SuccessModel,
}


def train(
    config: TrainConfig | str | Path,
    directory: str | Path,
    *,
    resume: bool = False,
    progress: bool = False,
    command: str = "",
    save_every: float = 60.0,
) -> Path:
    """Trains an unmasking policy.

    Where torch's process group is initialised (``dllm_agents.parallel``), all its processes call this with
    the same arguments and train one policy; the first evaluates and writes. ``rllib-ppo`` starts processes of
    its own, through Ray.

    Args:
        config: A configuration or the path of a YAML file.
        directory: Gets ``config.yaml``, TensorBoard files, the policies ``last/`` and ``best/`` (highest
            reward of sampled decoding on validation problems), ``metrics.json`` and the training state
            (of ``rllib-ppo``: pickles of Ray's; resume only runs of your own).
        resume: Go on from the training state in ``directory``. In one process the result is, to the last bit,
            that of a run that was never interrupted, unless ``max_minutes`` ends it (``docs/robustness.md``).
        progress: Show a progress bar and a line per evaluation.
        command: Noted in the saved policies.
        save_every: Seconds between two states, saved at the next end of a rollout; one is also saved after
            every evaluation. ``rllib-ppo`` saves one after every evaluation alone.

    Returns:
        The directory; ``load_policy(directory / "best")`` loads the result.

    Raises:
        ValueError: For a configuration out of range, or when resuming with another one.
        FileExistsError: If there is a run in ``directory`` and ``resume`` is not set.
        FileNotFoundError: If there is nothing to resume.
        ImportError: For ``rllib-ppo`` without Ray.
    """
    config = config if isinstance(config, TrainConfig) else load_config(config)
    run: Run
    if config.algorithm == "rllib-ppo":
        from dllm_agents.rllib.training import RLlibRun

        run = RLlibRun(config, Path(directory), resume, progress, command)
    else:
        run = _Run(config, Path(directory), resume, progress, command, save_every)
    run.learn()
    return run.directory


# Arguments that are set from other fields of the configuration, or by Stable-Baselines3.
_OWN_OF_ENV = ("group_size", "num_experts", "render_mode")
_OWN_OF_WARM_START = ("policy", "env", "policy_kwargs", "seed", "device", "_init_setup_model")
_OWN_OF_HINDSIGHT = ("model", "total_timesteps")
_OWN_OF_POLICY = ("observation_space", "action_space", "lr_schedule")
_OWN_OF_ALGORITHM = (
    "policy", "env", "learning_rate", "policy_kwargs", "seed", "device", "_init_setup_model",
    "rollout_buffer_class", "rollout_buffer_kwargs", "expert", "expert_block_length",
)  # fmt: skip


class _Run(Run):
    """One training run with Stable-Baselines3: perhaps a warm start, then the algorithm."""

    STATE = STATE

    def __init__(
        self,
        config: TrainConfig,
        directory: Path,
        resume: bool,
        progress: bool,
        command: str,
        save_every: float,
    ) -> None:
        self.is_first = parallel.rank() == 0
        super().__init__(config, directory, resume, progress and self.is_first, command)
        self._save_every = save_every
        state = None
        if resume:
            remove_unfinished(directory)
            state = read_state(directory / STATE, _STATE_FIELDS)
            check_fields(state, _STATE_FIELDS, str(directory / STATE))
        check_arguments(config)
        self.pace = Pace(config.max_minutes, self._elapsed)
        self.env = self._make_env()
        self.main = self._build()
        self.warm = self._build_warm_start()
        self._episodes = self._read_dataset()
        self.env.seed(self._env_seed())  # Stable-Baselines3 gave it its own, the same in every process
        self.model: OnPolicyAlgorithm = self.main if self.warm is None else self.warm
        if state is None:  # only now: a configuration that does not work leaves nothing behind
            self._begin_with_a_saved_policy()
            self._seed_other_processes()  # which waits until all have seen that there was no run
            self._save_state()  # before the configuration: what has one can be resumed
            if self.is_first:
                self._write_config()
        else:
            self._restore(state)
            self._seed_other_processes()

    def _seed_other_processes(self) -> None:
        """The same policy everywhere, but draws of their own in all processes after the first."""
        parallel.same_as_first(parameter.detach() for parameter in self.model.policy.parameters())
        if not self.is_first:
            words = [self.config.seed, parallel.rank(), self.model.num_timesteps]
            torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))

    def _begin_with_a_saved_policy(self) -> None:
        if self.config.init_from is not None:
            network: Any = self.model.policy.network
            begin_with(network, self.config.init_from)

    def learn(self) -> None:
        """Trains to the end, or to the deadline."""
        config, self._started = self.config, time.monotonic()
        self._logger = configure(str(self.directory), ["tensorboard"]) if self.is_first else Logger(None, [])
        self._saving = Saving(self._save_state, self._save_every)
        begun_at = self.model.num_timesteps
        if begun_at < self._given_steps:
            self._learn_from_others()
            self._saving.due = True
        evaluation = Evaluation(
            config.env,
            config.eval_interval,
            config.eval_episodes,
            self._note,
            self.history,
            config.settings(),
        )
        callbacks: list[BaseCallback] = []
        if self.is_first:
            callbacks += [RolloutMetrics(), evaluation, self._saving]  # a state has the evaluation in it
        if config.max_minutes is not None:
            callbacks.append(Deadline(config.max_minutes - self._elapsed() / 60))
        if self.progress:
            callbacks.append(Progress(config.total_timesteps))
        rounds, total_rounds = (getattr(self.model, name, None) for name in ("rounds", "total_rounds"))
        if begun_at < config.total_timesteps and (total_rounds is None or rounds < total_rounds):
            if self.model is self.warm:
                self._go_on(config.warm_steps, callbacks)
                if self.warm.num_timesteps >= config.warm_steps:  # no deadline was first
                    self._end_warm_start()
            if self.model is self.main:
                self._go_on(config.total_timesteps, callbacks)
            if self.is_first:
                evaluation.evaluate()
                self._save_state()
        if self.is_first:
            self._write_metrics()
        self._logger.close()

    @property
    def _given_steps(self) -> int:
        """How many of the steps are others', before the algorithm's own."""
        if self.config.warm_start == "hindsight":
            return self.config.warm_steps
        fitted = self.config.dataset is not None and self.config.algorithm == "success"
        return self.config.total_timesteps if fitted else self.config.imitation_steps

    def _learn_from_others(self) -> None:
        rate = self.config.learning_rate  # not where the schedule begins: that may be a rise from 0
        if self.config.warm_start == "hindsight":
            hindsight(self.model, self._given_steps, **self.config.warm_start_kwargs)
        elif self._episodes is None:
            imitate(self.model, self._expert, self._given_steps, rate)
        elif isinstance(self.model, SuccessModel):
            self.model.set_logger(self._logger)
            self.model.fit(self._episodes)
            self.model.num_timesteps = self._given_steps
        else:
            clone(self.model, self._episodes, self._given_steps, rate)

    def _go_on(self, until: int, callbacks: list[BaseCallback]) -> None:
        """Trains the model of this phase to so many environment steps in all, or to the deadline."""
        self.model.set_logger(self._logger)
        remaining = max(until - self.model.num_timesteps, 0)  # 0 after mere imitation
        self.model.learn(remaining, CallbackList(callbacks), reset_num_timesteps=False)

    def _end_warm_start(self) -> None:
        """The algorithm begins with the success model's policy, and all rows with new episodes."""
        self.main.policy.load_state_dict(self.model.policy.state_dict())
        self.main.num_timesteps = self.model.num_timesteps
        by_steps = self.main.num_timesteps / self.config.total_timesteps
        # a schedule of rounds knows nothing of the steps before
        in_rounds = getattr(self.main, "total_rounds", None) is not None
        self.pace.begun = self.pace.of_all(0.0 if in_rounds else by_steps)
        self.model = self.main
        self._saving.due = True

    def _read_dataset(self) -> Episodes | None:
        if self.config.dataset is None:
            return None
        episodes = read_dataset(self.config.dataset)
        network: Any = self.main.policy.network
        keys = (*network.config.requires, "mask", "action_mask")
        check_fits(episodes, self.config.env, self.env.observation_space, keys)  # type: ignore[arg-type]
        return episodes

    def _env_seed(self) -> int:
        return self.config.seed + parallel.rank() * _rows_of_one_process(self.config)

    def _make_env(self) -> VecMonitor:
        config = self.config
        self._expert: Any = None
        if config.expert is not None:
            self._expert = expert_agent(config.expert, config.expert_block_length)
        return make_sb3_env(
            _rows_of_one_process(config),
            seed=self._env_seed(),
            group_size=config.group_size,
            num_experts=config.num_experts,
            **{"split": "train", "observe": self._observed(), **config.env},
        )

    def _build_warm_start(self) -> SuccessModel | None:
        config = self.config
        if config.warm_start != "success":
            return None
        policy = {**config.policy_arguments, "sampler": "bernoulli", "optimizer_class": "AdamW"}
        return SuccessModel(
            UnmaskPolicy,
            self.env,
            policy_kwargs=_with_optimizer(policy),
            seed=config.seed,
            device=self.main.device,
            **config.warm_start_kwargs,
        )

    def _build(self) -> OnPolicyAlgorithm:
        config = self.config
        steering: dict[str, Any] = {}
        if config.num_experts:
            steering = {"expert": config.expert, "expert_block_length": config.expert_block_length}
        return _CLASSES[config.algorithm, config.group_size > 1](
            UnmaskPolicy,
            self.env,
            learning_rate=learning_rate(config, self.pace),
            policy_kwargs=_with_optimizer(config.policy_arguments),
            seed=config.seed,
            device="cpu" if not torch.cuda.is_available() else "auto",
            **steering,
            **config.algorithm_kwargs,
        )

    def _observed(self) -> tuple[str, ...]:
        """What the policy's features and the expert read besides the observations that are always there."""
        features = self.config.policy.get("features", DEFAULT_FEATURES)
        return tuple(dict.fromkeys((*observed_by(features), *getattr(self._expert, "requires", ()))))

    def _note(self, results: Mapping[str, EvaluationResult]) -> None:
        """Remembers an evaluation and saves the last policy and the best one; the state follows."""
        policy: Any = self.model.policy
        harm = self.model.harm if isinstance(self.model, SuccessModel) else None
        self._remember(results, self.model.num_timesteps, policy.network, policy.decoding, harm)
        self._saving.due = True

    def _save_state(self) -> None:
        if not self.is_first:
            return
        tickets = getattr(self.model.env, "tickets", None)
        reference = getattr(self.model, "_reference", None)
        state = {
            "policy": self.model.policy.state_dict(),
            "reference": None if reference is None else reference.state_dict(),
            "optimizer": self.model.policy.optimizer.state_dict(),
            "timesteps": self.model.num_timesteps,
            "updates": self.model._n_updates,
            "best_reward": self.best_reward,
            "history": self.history,
            "seconds": self._elapsed(),
            "next_ticket": tickets.next if tickets else 0,
            "random": random_state(),
            # of several processes each would have its own: there all rows begin anew
            "episodes": episodes_in_flight(self.model) if parallel.count() == 1 else None,
            "warming": self.model is self.warm,
            "begun": self.pace.begun,
        }
        write_state(self.directory / STATE, state)

    def _restore(self, state: Mapping[str, Any]) -> None:
        if not state["warming"]:
            self.model = self.main
        elif self.warm is None:
            raise ValueError(f"{self.directory / STATE} is of a warm start, which this run has none of")
        self.pace.begun = state["begun"]
        model, path = self.model, self.directory / STATE
        check_evaluations(state["history"], f"{path}, history")
        own = model.policy.state_dict()
        check_like(state["policy"], own, f"{path}, policy")
        check_optimizer(state["optimizer"], model.policy.optimizer, f"{path}, optimizer")
        if state["reference"] is not None:
            check_like(state["reference"], own, f"{path}, reference")
            model.policy.load_state_dict(state["reference"])
            model._reference = copy.deepcopy(model.policy)  # type: ignore[attr-defined]
        model.policy.load_state_dict(state["policy"])
        model.policy.optimizer.load_state_dict(state["optimizer"])
        model.num_timesteps, model._n_updates = state["timesteps"], state["updates"]
        self.best_reward, self.history = state["best_reward"], state["history"]
        self.seconds = state["seconds"]
        restore_random_state(state["random"], f"{path}, random")
        tickets = getattr(model.env, "tickets", None)
        if tickets:
            tickets.next = state["next_ticket"]
        if state["episodes"] is not None and parallel.count() == 1:
            restore_episodes(model, state["episodes"], f"{path}, episodes")


def check_arguments(config: TrainConfig) -> None:
    """Refuses names that nothing takes in a configuration, without building anything.

    Raises:
        ValueError: For such a name.
        ImportError: For ``rllib-ppo`` without Ray.
    """
    if config.algorithm == "rllib-ppo":
        from dllm_agents.rllib import training as rllib

        rllib.check_arguments(config)
        return
    algorithm = _CLASSES[config.algorithm, config.group_size > 1]
    takers = [algorithm, *(algorithm.__bases__ if issubclass(algorithm, GroupedRollouts) else ())]
    refuse_unknown("env", config.env, [UnmaskEnv], _OWN_OF_ENV)
    refuse_unknown("policy", config.policy, [UnmaskPolicy, ActorCriticPolicy], _OWN_OF_POLICY)
    refuse_unknown("algorithm_kwargs", config.algorithm_kwargs, takers, _OWN_OF_ALGORITHM)
    if config.warm_start == "hindsight":
        refuse_unknown("warm_start_kwargs", config.warm_start_kwargs, [hindsight], _OWN_OF_HINDSIGHT)
    else:
        refuse_unknown("warm_start_kwargs", config.warm_start_kwargs, [SuccessModel], _OWN_OF_WARM_START)


def _rows_of_one_process(config: TrainConfig) -> int:
    processes = parallel.count()
    alone = config.imitation_steps or config.warm_start == "hindsight"
    if processes > 1 and (config.algorithm != "grpo" or alone):
        raise ValueError(
            "several processes train grpo, without imitation_steps or hindsight; "
            f"got {config.algorithm} with imitation_steps {config.imitation_steps} "
            f"and warm_start {config.warm_start} in {processes} processes"
        )
    rows, rest = divmod(config.num_envs, processes)
    if rest or rows < config.group_size:
        raise ValueError(
            f"num_envs {config.num_envs} must be a multiple of the {processes} processes, "
            f"at least {processes * config.group_size} for groups of {config.group_size}"
        )
    return rows


def _with_optimizer(policy: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the policy with the optimiser's class in the place of its name."""
    if "optimizer_class" not in policy:
        return dict(policy)
    name = policy["optimizer_class"]
    found = getattr(torch.optim, name, None) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise ValueError(f"unknown optimizer_class {name!r}; give a name out of torch.optim, such as AdamW")
    return {**policy, "optimizer_class": found}
