"""``posttrain``: rounds of decoding and learning, evaluated and saved on the way."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from stable_baselines3.common.logger import Logger, configure

from dllm_agents import parallel
from dllm_agents.config import Dumper, plain
from dllm_agents.posttraining.card import write_card
from dllm_agents.posttraining.config import PosttrainConfig, load_posttrain_config
from dllm_agents.posttraining.joint import POLICY, PolicyLearner, network_of
from dllm_agents.posttraining.learning import Learner, learning_rate
from dllm_agents.posttraining.parameters import merged_state, trained_parameters
from dllm_agents.posttraining.rollouts import collect, draw_problems
from dllm_agents.run_folder import CONFIG, METRICS, STATE, check_folder
from dllm_agents.schedules import Pace
from dllm_gym.backends import own_backend
from dllm_gym.backends.families import Layout
from dllm_gym.backends.loading import read_config
from dllm_gym.backends.saving import copy_tokenizer, write_weights
from dllm_gym.backends.transformers_backend import TransformersBackend
from dllm_gym.envs.engine import Engine
from dllm_gym.evaluation import as_agent, evaluate
from dllm_gym.evaluation.home import at_home, at_play, dllm_of
from dllm_gym.fields import ANYTHING, check_fields, number, whole
from dllm_gym.files import read_state, remove_unfinished, write_json, write_state, write_text
from dllm_gym.states import check_like, check_optimizer

_STATE_FIELDS = {
    "parameters": ANYTHING,
    "optimizer": ANYTHING,
    "reference": ANYTHING,
    "policy": ANYTHING,
    "round": whole(),
    "updates": whole(),
    "best": ANYTHING,
    "history": ANYTHING,
    "seconds": number(0),
}


def posttrain(
    config: PosttrainConfig | str | Path,
    directory: str | Path,
    *,
    resume: bool = False,
    progress: bool = False,
    command: str = "",
    save_every: float = 60.0,
) -> Path:
    """Trains a dLLM on the rewards of a task, by reinforcement learning.

    Where torch's process group is initialised (``dllm_agents.parallel``), all its processes call this with
    the same arguments, each decodes its share of the groups, and the first evaluates and writes.

    Args:
        config: A configuration or the path of a YAML file.
        directory: Becomes a checkpoint in the layout of the dLLM that training began with: the weights that
            did best on validation problems, with a card; in ``policy/`` the policy as it was then, if it
            learned, too. It also gets ``config.yaml``, TensorBoard files, ``metrics.json`` and the training
            state.
        resume: Go on from the training state in ``directory``. The result is, to the last bit, that of a run
            that was never interrupted, unless ``max_minutes`` ends it.
        progress: Show a line per evaluation.
        command: Noted in the card.
        save_every: Seconds between two states, saved at the next end of a round; one is also saved after
            every evaluation.

    Returns:
        The directory; ``load_backend(directory)`` loads the result.

    Raises:
        ValueError: For a configuration out of range, a dLLM that cannot be written, an agent that cannot
            learn if it is to, or when resuming with another configuration.
        FileExistsError: If there is a run in ``directory`` and ``resume`` is not set.
        FileNotFoundError: If there is nothing to resume.
        ImportError: For ``lora`` without peft.
    """
    config = config if isinstance(config, PosttrainConfig) else load_posttrain_config(config)
    run = _Run(config, Path(directory), resume, progress, command, save_every)
    run.learn()
    return run.directory


class _Run:
    """One post-training run."""

    def __init__(
        self,
        config: PosttrainConfig,
        directory: Path,
        resume: bool,
        progress: bool,
        command: str,
        save_every: float,
    ) -> None:
        self.config, self.directory, self.command = config, directory, command
        self.is_first = parallel.rank() == 0
        self.progress = progress and self.is_first
        self._save_every = save_every
        self._plain = plain(config)
        check_folder(
            directory, STATE, resume, self._plain, lambda path: load_posttrain_config(path).to_dict()
        )
        state = None
        if resume:
            remove_unfinished(directory)
            state = check_fields(
                read_state(directory / STATE, _STATE_FIELDS), _STATE_FIELDS, str(directory / STATE)
            )
        self.method, joint = config.made_method(), config.made_joint()
        self.agent = as_agent(config.agent)
        learner = (
            None if joint is None else partial(PolicyLearner, network_of(self.agent, config.agent), joint)
        )
        reward = "correctness" if joint is None else "multiplicative"
        self.env = {"reward": reward, **at_play([self.agent], at_home([self.agent], config.env))}
        self.backend, self.layout = self._own_dllm()
        self.parameters = trained_parameters(self.backend.model, config.lora, config.seed)
        parallel.same_as_first(parameter.detach() for parameter in self.parameters.values())
        self.learner = Learner(
            self.backend, self.parameters, self.method, config.micro_batch_size, config.autocast
        )
        self.groups = parallel.share(config.groups_per_round)
        rows = min(parallel.share(config.num_envs), self.groups * self.method.group_size)
        self.engine = Engine(
            rows,
            split="train",
            temperature=self.method.temperature,
            **{**self.env, "backend": self.backend, "backend_kwargs": None, "observe": self._observed()},
        )
        if self.engine.moves.can_take_back:
            raise ValueError(
                f"what was taken back has no likelihood: env.actions must be 'reveal', "
                f"got {self.env['actions']!r}"
            )
        self.policy = None if learner is None else learner(self.engine, self.method.group_size)
        self.round, self.seconds = 0, 0.0
        self.best = float("-inf")
        self.history: list[dict[str, Any]] = []
        self._started = time.monotonic()
        self.pace = Pace(config.max_minutes, self._elapsed)
        if state is not None:
            self._restore(state)

    def _own_dllm(self) -> tuple[TransformersBackend, Layout]:
        name = dllm_of(self.env)
        backend = own_backend(name, **(self.env.get("backend_kwargs") or {}))
        if not isinstance(backend, TransformersBackend):
            raise ValueError(f"{name} is {type(backend).__name__}, which has no weights to train here")
        if not isinstance(backend.family, Layout):
            raise ValueError(
                f"{name} is of the family {backend.family.name}, whose checkpoints are only read here"
            )
        return backend, backend.family

    def _observed(self) -> tuple[str, ...]:
        return tuple(
            dict.fromkeys(("entropy", *self.env.get("observe", ()), *getattr(self.agent, "requires", ())))
        )

    def _elapsed(self) -> float:
        return self.seconds + time.monotonic() - self._started

    def learn(self) -> None:
        """Trains to the end, or to the deadline; writes the card."""
        config, self._started = self.config, time.monotonic()
        self.logger = configure(str(self.directory), ["tensorboard"]) if self.is_first else Logger(None, [])
        if self.round == 0 and not self.history:
            self._evaluate()
            self._save_state()  # before the configuration: what has one can be resumed
            if self.is_first:
                text = yaml.dump(self._plain, Dumper=Dumper, sort_keys=False)
                write_text(self.directory / CONFIG, text)
        saved = time.monotonic()
        while (done := self.pace.of_all(self.round / config.rounds)) < 1:
            self._one_round(done)
            over = self.pace.of_all(self.round / config.rounds) >= 1
            if over or self.round % config.eval_interval == 0:
                self._evaluate()
            elif time.monotonic() - saved < self._save_every:
                continue
            self._save_state()
            saved = time.monotonic()
        if self.is_first:
            write_json(self.directory / METRICS, {"command": self.command, "evaluations": self.history})
            self._write_card()
        self.logger.close()

    def _one_round(self, done: float) -> None:
        rng = np.random.default_rng([self.config.seed, self.round, parallel.rank()])
        began = time.monotonic()
        problems = draw_problems(self.engine, self.groups, rng)
        policy = self.policy
        agent, on_episode = (self.agent, None) if policy is None else (policy.player, policy.finish)
        with self.learner.precision():
            seed = int(rng.integers(2**32))
            rollouts = collect(agent, self.engine, problems, self.method.group_size, seed, on_episode)
        decoded = time.monotonic()
        reward = rollouts.rewards.mean()
        if policy is not None:  # it pays for the steps, and the dLLM does not
            rollouts = rollouts.unpriced()
        rate = learning_rate(self.method, done)
        facts = self.learner.learn(rollouts, rng, rate)
        if policy is not None:
            of_policy = policy.learn(rng, learning_rate(self.method, done, policy.constants.learning_rate))
            facts |= {f"policy_{name}": value for name, value in of_policy.items()}
        self.round += 1
        facts |= {"learning_rate": rate, "seconds_learning": time.monotonic() - decoded}
        found = {
            "reward": reward,
            "accuracy": (rollouts.scores >= 1).mean(),
            "nfe": rollouts.steps.mean(),
            "flat_groups": rollouts.flat_groups,
            "entropy": rollouts.entropy[rollouts.text].mean(),
            "seconds": decoded - began,
        }
        for name, value in {
            **{f"train/{name}": value for name, value in facts.items()},
            **{f"rollout/{name}": value for name, value in found.items()},
        }.items():
            self.logger.record(name, float(value))
        self.logger.dump(self.round)

    def _evaluate(self) -> None:
        """Decodes validation problems without noise, notes the result, and writes weights that did best."""
        if not self.is_first:
            return
        with self.learner.precision():
            result = evaluate(
                self.config.agent if self.policy is None else self.policy.agent,
                self.config.eval_episodes,
                "validation",
                batch_size=self.engine.num_rows,
                **{**self.env, "backend": self.backend, "backend_kwargs": None},
            )
        found = {"accuracy": result.accuracy, "nfe_mean": result.nfe_mean, "reward_mean": result.reward_mean}
        row = {
            "round": self.round, "updates": self.learner.updates, "seconds": round(self._elapsed(), 1),
            **found, "episodes": result.episodes,
        }  # fmt: skip
        self.history.append(row)
        for name, value in found.items():
            self.logger.record(f"eval/{name}", value)
        self.logger.dump(self.round)
        if self.progress:
            print(
                f"round {self.round} of {self.config.rounds}, {row['seconds']:.0f} s: "
                f"{result.accuracy:.3f} @ {result.nfe_mean:.1f} steps",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        if self.round > 0 and result.reward_mean > self.best:
            self.best = result.reward_mean
            self._write_checkpoint(row)

    def _write_checkpoint(self, row: Mapping[str, Any]) -> None:
        """The dLLM as it is, and the policy, if that learns; ``row`` is how they evaluated."""
        source = self.backend.source
        self.directory.mkdir(parents=True, exist_ok=True)
        write_weights(self.directory, self.layout, merged_state(self.backend.model), read_config(source))
        copy_tokenizer(source, self.directory)
        if self.policy is not None:
            at_home = {**self._plain, "env": {**self.env, "backend": str(self.directory)}}
            metadata = {"command": self.command, "config": at_home, "validation": {"sample": row}}
            self.policy.save(self.directory / POLICY, metadata)

    def _write_card(self) -> None:
        split, episodes = "test", self.config.test_episodes
        if episodes == 0:
            split, episodes = "validation", self.config.eval_episodes
        results = {}
        agent = self.config.agent if self.policy is None else str(self.directory / POLICY)
        pairs = {"before": (self.backend.source, self.config.agent), "after": (str(self.directory), agent)}
        for when, (place, decoder) in pairs.items():
            result = evaluate(
                decoder,
                episodes,
                split,
                batch_size=self.engine.num_rows,
                **{**self.env, "backend": place},
            )
            results[when] = {**result.to_json(), "backend": Path(place).name}
        model = self.backend.model
        trained = sum(parameter.numel() for parameter in self.parameters.values())
        everything = sum(tensor.numel() for tensor in merged_state(model).values())
        write_card(
            self.directory,
            source=self.backend.source,
            command=self.command or f"dllm-gym posttrain {self.config.method}",
            config=self._plain,
            parameters={"all": everything, "trained": trained},
            seconds=self._elapsed(),
            split=split,
            results=results,
        )

    def _save_state(self) -> None:
        if not self.is_first:
            return
        reference = self.learner.reference
        write_state(
            self.directory / STATE,
            {
                "parameters": {name: p.detach() for name, p in self.parameters.items()},
                "optimizer": self.learner.optimizer.state_dict(),
                "reference": None if reference is None else reference.tensors,
                "policy": None if self.policy is None else self.policy.state(),
                "round": self.round,
                "updates": self.learner.updates,
                "best": self.best,
                "history": self.history,
                "seconds": self._elapsed(),
            },
        )

    def _restore(self, state: Mapping[str, Any]) -> None:
        path, learner = self.directory / STATE, self.learner
        own = {name: parameter.detach() for name, parameter in self.parameters.items()}
        check_like(state["parameters"], own, f"{path}, parameters")
        check_optimizer(state["optimizer"], learner.optimizer, f"{path}, optimizer")
        for name, tensor in own.items():
            tensor.copy_(state["parameters"][name])
        learner.optimizer.load_state_dict(state["optimizer"])
        if learner.reference is not None:
            check_like(state["reference"], own, f"{path}, reference")
            for name, tensor in learner.reference.tensors.items():
                tensor.copy_(state["reference"][name])
        if self.policy is not None:
            self.policy.restore(state["policy"], f"{path}, policy")
        self.round, learner.updates = state["round"], state["updates"]
        self.best, self.history, self.seconds = state["best"], state["history"], state["seconds"]
