"""Trainings of weights in a directory, which go on where they were interrupted."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dllm_gym.fields import ANYTHING, OBJECT, Field, check, check_fields, number, whole
from dllm_gym.files import read_state, remove_unfinished, write_state
from dllm_gym.states import check_like, check_optimizer, restoring


class Training(ABC):
    """One resumable training in a directory. A new kind of it writes ``loss``.

    Args:
        config: A frozen dataclass, all of which determines the training. What is read here are ``steps``,
            ``warmup``, steps of linear warm-up, ``decay``, the share of the steps, at the end, over which the
            rates fall linearly to zero, and ``seed``.
        directory: Where the training state goes, and goes on from.
        model: Whose weights are trained.
        optimizers: Of these weights; the rates they have are the highest.

    Attributes:
        state_name: The file that the state is kept in.
        generator: What the losses draw from.
        step: Steps that are done.
        seconds: Time they took.

    Raises:
        ValueError: If the directory holds another run's state, or a damaged one.
    """

    state_name: ClassVar[str]

    def __init__(
        self,
        config: Any,
        directory: str | Path,
        model: Any,
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:
        self.config, self.directory = config, Path(directory)
        self.model, self.optimizers = model, list(optimizers)
        self._rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
        self.generator = torch.Generator().manual_seed(config.seed)
        self.step = 0
        self.seconds = 0.0
        if (self.directory / self.state_name).exists():
            self._resume()

    @abstractmethod
    def loss(self) -> Tensor:
        """What the next step, number ``step``, makes smaller."""

    def train(self, save_every: float = 60.0) -> Iterator[tuple[int, float]]:
        """Trains to the end, saving the state every ``save_every`` seconds; yields (step, loss)."""
        self.model.train()
        saved = started = time.monotonic()
        while self.step < self.config.steps:
            loss = self._step()
            self.step += 1
            now = time.monotonic()
            if now - saved > save_every:
                self.seconds, started = self.seconds + now - started, now
                self._save_state()
                saved = time.monotonic()
            yield self.step, loss
        self.seconds += time.monotonic() - started
        self._save_state()

    def _step(self) -> float:
        scale = self._rate_scale()
        for optimizer, rate in zip(self.optimizers, self._rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
        loss = self.loss()
        self.model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        return float(loss.detach())

    def _rate_scale(self) -> float:
        steps, warmup = self.config.steps, self.config.warmup
        left = (steps - self.step) / (steps * self.config.decay)
        return float(min(1.0, (self.step + 1) / max(warmup, 1), left))

    @property
    def _fields(self) -> dict[str, Field]:
        count = len(self.optimizers)
        return {
            "config": OBJECT,
            "step": whole(),
            "seconds": number(0),
            "model": ANYTHING,
            "optimizers": Field(
                f"a list of {count}", lambda value: isinstance(value, list) and len(value) == count
            ),
            "generator": ANYTHING,
        }

    def _save_state(self) -> None:
        state = {
            "config": asdict(self.config),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "generator": self.generator.get_state(),
        }
        write_state(self.directory / self.state_name, state)

    def _resume(self) -> None:
        remove_unfinished(self.directory)
        path = self.directory / self.state_name
        state: dict[str, Any] = read_state(path, self._fields)
        check_fields(state, self._fields, str(path))
        try:
            before = asdict(type(self.config)(**state["config"]))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: config is none of this version: {error}") from None
        now = asdict(self.config)
        different = [name for name, value in now.items() if before[name] != value]
        if different:
            raise ValueError(
                f"{self.directory} holds a run with another configuration ({', '.join(different)}); "
                "choose another directory or the same configuration"
            )
        check(state["step"], whole(below=self.config.steps + 1), f"{path}: step")
        check_like(state["model"], self.model.state_dict(), f"{path}, model")
        for at, (optimizer, saved) in enumerate(zip(self.optimizers, state["optimizers"], strict=True)):
            check_optimizer(saved, optimizer, f"{path}, optimizers, {at}")
            optimizer.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]
        self.model.load_state_dict(state["model"])
        with restoring(f"{path}, generator"):
            self.generator.set_state(state["generator"])
