"""The configuration of a post-training: a YAML file and a dataclass, as for policies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dllm_agents.config import (
    CONFIG_FOLDERS,
    check_deadline_and_seed,
    check_mapping,
    check_whole,
    find_shipped,
    read_yaml,
)
from dllm_agents.posttraining.agrpo import AGRPO
from dllm_agents.posttraining.joint import Joint
from dllm_agents.posttraining.masked import CoupledGRPO, DiffuGRPO
from dllm_agents.posttraining.method import Method
from dllm_gym.arguments import call_named
from dllm_gym.suggestions import did_you_mean

METHODS: dict[str, type[Method]] = {method.name: method for method in (AGRPO, CoupledGRPO, DiffuGRPO)}

_EVALUATIONS = 10  # of a training, where nothing is said
_FIXED = ("compile", "cache", "residual_context")  # of a dLLM whose weights change


@dataclass(frozen=True)
class PosttrainConfig:
    """Everything that determines a post-training run.

    Attributes:
        method: ``agrpo``, ``coupled-grpo`` or ``diffu-grpo``.
        method_kwargs: Its constants, where they are not to be the published ones: ``learning_rate``,
            ``group_size``, ``temperature``, ``iterations``, ...
        env: Arguments of ``UnmaskEnv``: task, backend, block_length, ... The reward is ``correctness`` where
            nothing is said. A policy's own task, dLLM and block length hold where these are not given.
        agent: Who decodes: a strategy such as ``confidence:k=2``, or a policy.
        joint: Whether the policy that decodes learns from the same episodes; or how, as arguments of
            ``Joint``: ``{learning_rate: 3e-4}``. The policy learns from ``env.reward``, which is then
            ``multiplicative`` where nothing is said, and the dLLM from the task's score.
        num_envs: Rows decoded at once, by all processes together.
        groups_per_round: Problems per round, of all processes together; each is decoded ``group_size`` times.
        rounds: Rounds of decoding and learning.
        max_minutes: Stop after this time even if rounds are left; ``None`` for no limit. The learning rate
            follows whichever comes first; no two runs are then the same to the bit.
        lora: Arguments of peft's ``LoraConfig``, such as ``{r: 64, lora_alpha: 64}``, to train adapters
            only; ``None`` trains all weights. They are merged into what is written.
        autocast: Compute in bfloat16 what can be; weights stay as they are.
        micro_batch_size: So many canvases go through the dLLM at a time, and their gradients add up: the same
            update in less memory. ``None``: all at once.
        eval_every: Rounds between evaluations; ``None``: a tenth of ``rounds``.
        eval_episodes: Validation problems per evaluation.
        test_episodes: Test problems, before and after, for the card; 0, as for tasks without a test split,
            takes the validation problems.
        seed: Seeds problems, sampling and masks.
    """

    method: str = "agrpo"
    method_kwargs: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)
    agent: str = "confidence:k=1"
    joint: bool | Mapping[str, Any] = False
    num_envs: int = 64
    groups_per_round: int = 8
    rounds: int = 200
    max_minutes: float | None = None
    lora: Mapping[str, Any] | None = None
    autocast: bool = False
    micro_batch_size: int | None = None
    eval_every: int | None = None
    eval_episodes: int = 256
    test_episodes: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            hint = did_you_mean(self.method, METHODS)
            raise ValueError(f"unknown method {self.method!r}{hint}; choose one of {', '.join(METHODS)}")
        for name in ("num_envs", "groups_per_round", "rounds", "eval_episodes"):
            check_whole(name, getattr(self, name), 1)
        check_whole("test_episodes", self.test_episodes, 0)
        for name in ("micro_batch_size", "eval_every"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1)
        check_deadline_and_seed(self.max_minutes, self.seed)
        if not isinstance(self.autocast, bool):
            raise ValueError(f"autocast must be true or false, got {self.autocast!r}")
        for name in ("method_kwargs", "env"):
            check_mapping(name, getattr(self, name))
        if self.lora is not None and not isinstance(self.lora, Mapping):
            raise ValueError(f"lora must hold names and values, or be null, got {self.lora!r}")
        if not isinstance(self.agent, str):
            raise ValueError(f"agent must be a text, got {self.agent!r}")
        if not isinstance(self.joint, bool | Mapping):
            raise ValueError(f"joint must be true or false, or hold names and values, got {self.joint!r}")
        self._check_env()
        self.made_method()
        self.made_joint()

    def _check_env(self) -> None:
        if "temperature" in self.env:
            raise ValueError(
                f"the temperature of the tokens is one of method_kwargs, not of env, got "
                f"{self.env['temperature']!r}"
            )
        if "split" in self.env:
            raise ValueError(f"it trains on the split train, got {self.env['split']!r}")
        for name in _FIXED:
            if (self.env.get("backend_kwargs") or {}).get(name):
                raise ValueError(
                    f"the weights change with every update: backend_kwargs may not hold {name}, "
                    f"got {self.env['backend_kwargs'][name]!r}"
                )

    def made_method(self) -> Method:
        """The method with its constants."""
        made: Method = call_named(f"method {self.method!r}", METHODS[self.method], self.method_kwargs)
        return made

    def made_joint(self) -> Joint | None:
        """How the policy learns; ``None`` if it does not."""
        if self.joint is False:
            return None
        made: Joint = call_named("joint", Joint, {} if self.joint is True else self.joint)
        return made

    @property
    def eval_interval(self) -> int:
        """Rounds between evaluations."""
        return self.eval_every or math.ceil(self.rounds / _EVALUATIONS)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for YAML and JSON."""
        return asdict(self)


def find_posttrain_config(name: str | Path) -> Path:
    """The path of a configuration: a file, or the name of one in ``agents/configs/posttrain``.

    Raises:
        FileNotFoundError: If there is neither.
    """
    return find_shipped(name, "post-training", [folder / "posttrain" for folder in CONFIG_FOLDERS])


def load_posttrain_config(path: str | Path) -> PosttrainConfig:
    """Reads a configuration file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: What ``read_yaml`` raises, and for unknown fields or values out of range.
    """
    return posttrain_config(read_yaml(path))


def posttrain_config(content: Mapping[str, Any]) -> PosttrainConfig:
    """The configuration with some fields.

    Raises:
        ValueError: For unknown fields or values out of range.
    """
    known = [one.name for one in fields(PosttrainConfig)]
    unknown = [name for name in content if name not in known]
    if unknown:
        raise ValueError(f"unknown configuration fields {unknown}; known: {', '.join(known)}")
    return PosttrainConfig(**content)
