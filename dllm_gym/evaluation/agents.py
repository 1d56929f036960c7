"""Anything that can choose positions, as an agent: one interface for evaluation and plots."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dllm_gym.evaluation.oracle import Oracle
from dllm_gym.plugins import plugins
from dllm_gym.strategies import make_strategy, strategy_names
from dllm_gym.suggestions import did_you_mean

_NUMBER, _WORD = r"-?[\d.]+(?:e-?\d+)?", r"[A-Za-z./~_][^\s=]*"  # a word may be a path

Observation = Mapping[str, NDArray[Any]]


@runtime_checkable
class Agent(Protocol):
    """Chooses positions to reveal, for a batch of rows.

    Besides ``act`` an agent may have ``requires`` (names of further observations it reads), ``label``,
    ``name`` and ``parameters`` (for tables), ``reset(rows)`` (called when rows start an episode, if it
    keeps state), ``seed(rows, seeds)`` (called likewise, if it draws random numbers; one seed per
    episode makes results independent of the batch size), ``prepare(engine, decoded)`` (called once
    before an evaluation, if it may know more than observations), ``attach(engine)`` (called before it
    decodes, if it looks ahead), ``fingerprint`` (a text that tells it from every other agent, if its results
    may be kept), ``trained_in`` (the arguments of ``UnmaskEnv`` it was trained with: it decodes there where
    nothing else is said, and elsewhere there is a warning), ``plays`` (``{"actions": "set-state"}``, if it
    takes tokens back) and ``with_options(**options)`` (the agent with other parameters, if those who ask a
    server may choose them).
    """

    def act(self, observation: Observation) -> NDArray[Any]:
        """Actions ``(B, L)`` for observations with a leading batch axis."""
        ...


class FunctionAgent:
    """A plain function from observation to action."""

    parameters: Mapping[str, Any] = {}

    def __init__(self, function: Callable[[Observation], NDArray[Any]]) -> None:
        self.act = function
        self.name = self.label = getattr(function, "__name__", type(function).__name__)


class PredictAgent:
    """A model of Stable-Baselines3's, or of anybody who has its ``predict``.

    Observations go through the model's ``VecNormalize``, if it was trained with one. What a recurrent model
    remembers is kept per row and forgotten when a row starts an episode.

    Args:
        model: Has ``predict(observation, state=, episode_start=, deterministic=)``, which returns actions and
            the next state, and ``observation_space``, as far as it is to get only the observations in there.
        deterministic: Whether to take the model's most probable actions, or to draw from torch's global
            generator.
    """

    def __init__(self, model: Any, deterministic: bool = True) -> None:
        self._model, self._deterministic = model, deterministic
        self._keys = tuple(getattr(getattr(model, "observation_space", None), "spaces", ()))
        self.requires = self._keys
        normalizer = getattr(model, "get_vec_normalize_env", lambda: None)()
        self._normalize = (lambda known: known) if normalizer is None else normalizer.normalize_obs
        self._state: Any = None
        self._rows = 0
        self._starting: set[int] = set()
        decoding = "deterministic" if deterministic else "sample"
        self.name = type(model).__name__
        self.label = f"{self.name} ({decoding})"
        self.parameters = {"decoding": decoding}

    def reset(self, rows: Sequence[int]) -> None:
        """Forgets what was remembered of ``rows``, which start an episode."""
        self._starting.update(int(row) for row in rows)

    def act(self, observation: Observation) -> NDArray[Any]:
        """The model's actions; it gets only the observations it was trained with."""
        known = {key: observation[key] for key in self._keys} if self._keys else dict(observation)
        rows = len(observation["action_mask"])
        if rows != self._rows:  # another batch
            self._state, self._rows = None, rows
        starts = np.isin(np.arange(rows), list(self._starting))
        self._starting.clear()
        actions, self._state = self._model.predict(
            self._normalize(known), state=self._state, episode_start=starts, deterministic=self._deterministic
        )
        return np.asarray(actions)


def as_agent(agent: Any) -> Agent:
    """Makes an agent of what a user has at hand.

    Args:
        agent: An object with ``act``; a strategy by name, parameters after a colon
            (``"fast-dllm:threshold=0.8"``); the path of a saved policy or training run; a
            Stable-Baselines3 model; or a function from observation to action.

    Raises:
        ValueError: For a name that is none of these.
        TypeError: For an object that is none of these.
    """
    if isinstance(agent, str | Path):
        return _agent_by_name(str(agent))
    if hasattr(agent, "act"):
        return agent  # type: ignore[no-any-return]
    if hasattr(agent, "predict"):
        return PredictAgent(agent)
    if callable(agent):
        return FunctionAgent(agent)
    raise TypeError(
        f"{agent!r} is no agent: give an object with act(observation), a function, a strategy's name, "
        "a policy's path or a Stable-Baselines3 model"
    )


def _agent_by_name(text: str) -> Agent:
    name, _, parameters = text.partition(":")
    if name in strategy_names():
        return make_strategy(name, **_parse_parameters(parameters))
    if name == Oracle.name:
        return Oracle(**_parse_parameters(parameters))  # type: ignore[arg-type]  # checked in there
    for plugin in plugins():
        agent = plugin.load_agent(text)
        if agent is not None:
            return agent  # type: ignore[no-any-return]
    raise ValueError(_no_agent(text))


def _no_agent(text: str) -> str:
    """What is wrong with a text that names no agent: a path leads nowhere, or a name is misspelt."""
    bare = text.rpartition(":")[0] or text  # options may follow
    for place in filter(None, (text, bare)):
        if Path(place).exists():
            return f"{place} holds no policy: there is no policy.json in it, nor in its folder best"
    if len(Path(bare).parts) > 1:
        return f"there is no folder {bare}"
    known = [name for plugin in plugins() for name in plugin.agent_names()]
    hint = did_you_mean(text.partition(":")[0], [*strategy_names(), Oracle.name])
    hint = hint or did_you_mean(text, known) or did_you_mean(bare, known)
    return (
        f"{text!r} is neither a strategy nor the path of a saved policy{hint}; "
        f"strategies: {', '.join(strategy_names())}; {Oracle.name}"
    )


def _parse_parameters(text: str) -> dict[str, float | int | str]:
    parameters: dict[str, float | int | str] = {}
    for part in filter(None, text.split(",")):
        match = re.fullmatch(rf"\s*(\w+)\s*=\s*(?:({_NUMBER})|({_WORD}))\s*", part)
        if match is None:
            raise ValueError(f"cannot read the parameter {part!r}; write name=value, such as k=2")
        key, number, word = match.groups()
        try:
            parameters[key] = word or (int(number) if re.fullmatch(r"-?\d+", number) else float(number))
        except ValueError:
            raise ValueError(f"{number!r} in {part!r} is no number") from None
    return parameters
