"""Whether a training state tells of episodes in flight that this run can be in the middle of."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor

from dllm_agents.sb3.groups import GroupRolloutBuffer
from dllm_agents.sb3.history import Episode
from dllm_agents.sb3.success import EpisodeBuffer
from dllm_gym.fields import (
    FLAG,
    OBJECT,
    SHARE,
    Field,
    check,
    check_fields,
    list_of,
    number,
    of_type,
    whole,
)
from dllm_gym.states import check_keys, check_like, check_range

_ENDLESS = 2**62


def check_flight(model: OnPolicyAlgorithm, flight: Any, pattern: Any, place: str) -> None:
    """Checks kinds, shapes and ranges of everything in a flight.

    Args:
        model: Who is to go on with it.
        flight: Of ``episodes_in_flight``, as it was read.
        pattern: The state of the environment now, as tensors; ``None`` if it cannot tell.
        place: Where it was found, for the message.

    Raises:
        ValueError: For the first thing that does not fit.
    """
    env: Any = model.env
    tickets = getattr(env, "tickets", None)
    buffer: Any = model.rollout_buffer
    keeps_steps = isinstance(buffer, GroupRolloutBuffer | EpisodeBuffer)
    names = {"env", "episode_starts"}
    names |= ({"current"} if tickets is not None else set()) | ({"steps"} if keeps_steps else set())
    check_keys(flight, sorted(names), place)
    rows = torch.zeros(env.num_envs, dtype=torch.int64)
    check_like(flight["episode_starts"], rows.bool(), f"{place}, episode_starts")
    _check_env(model, flight["env"], pattern, f"{place}, env")
    if tickets is not None:
        check_like(flight["current"], rows, f"{place}, current")
        check_range(flight["current"], 0, tickets.next, f"{place}, current")
    steps = flight.get("steps")
    if isinstance(buffer, GroupRolloutBuffer):
        observed: Any = model.observation_space
        check_keys(steps, ("history", "groups"), f"{place}, steps")
        needed = {*observed, "actions", "values", "log_probs"}
        first, end = _check_history(model, steps["history"], needed, f"{place}, steps, history")
        _check_groups(steps["groups"], env.num_envs, first, end, f"{place}, steps, groups")
    elif isinstance(buffer, EpisodeBuffer):
        check_keys(steps, ("history", "rounds", "behaviour", "harm", "champion"), f"{place}, steps")
        _check_history(model, steps["history"], {"action_mask", "_bits"}, f"{place}, steps, history")
        _check_rounds(steps["rounds"], f"{place}, steps, rounds")
        check_like(steps["behaviour"], [rows.float()] * 4, f"{place}, steps, behaviour")
        check_like(steps["harm"], [1.0, 0.5], f"{place}, steps, harm")
        if steps["champion"] is not None:
            network: Any = model.policy.network
            like = {"reward": 0.0, "harm": [1.0, 0.5], "weights": dict(network.state_dict())}
            check_like(steps["champion"], like, f"{place}, steps, champion")


def _check_env(model: OnPolicyAlgorithm, state: Any, pattern: Any, place: str) -> None:
    env: Any = model.env
    engine = env.unwrapped.env.unwrapped.engine
    if pattern is None:
        raise ValueError(f"{place} is told, but this environment cannot go on in the middle of episodes")
    check_like(state, _fitted(pattern, state), place)
    below = {
        **dict.fromkeys(("prompts", "completions", "tokens", "predicted", "best"), engine.backend.vocab_size),
        "block_of": engine.length,
        "block_lengths": engine.length + 1,
        **dict.fromkeys(("steps", "remasked"), engine.moves.max_steps + 1),
        "indices": engine.task.num_problems or _ENDLESS,
    }
    for name, tensor in _whole_numbers(state):
        least = int(name == "block_lengths")
        check_range(tensor, least, below.get(name, _ENDLESS), f"{place}, {name}")


def _fitted(pattern: Any, state: Any, name: str = "") -> Any:
    """A pattern with what differs from run to run taken from the state: how long prompts are."""
    if isinstance(pattern, dict):
        inside = state if isinstance(state, dict) else {}
        return {key: _fitted(own, inside.get(key), key) for key, own in pattern.items()}
    if isinstance(pattern, list) and isinstance(state, list) and len(state) == len(pattern):
        return [_fitted(own, one, name) for own, one in zip(pattern, state, strict=True)]
    is_prompt = name == "prompts" and isinstance(state, Tensor) and state.ndim == 1
    return state.to(pattern.dtype) if is_prompt else pattern


def _check_history(model: OnPolicyAlgorithm, state: Any, needed: set[str], place: str) -> tuple[int, int]:
    """What ``History.restore`` takes; returns the first step that is there, and the first that is not."""
    rows = model.n_envs
    fields = {"steps": OBJECT, "forgotten": whole(), "started": of_type(Tensor, "a tensor")}
    steps, forgotten, started = check_fields(state, fields, place).values()
    missing = needed - steps.keys() if steps else set()
    if missing or not all(isinstance(one, Tensor) and one.ndim for one in steps.values()):
        raise ValueError(f"{place}, steps must hold tensors by the names {', '.join(sorted(needed))}")
    lengths = {len(one) for one in steps.values()} or {0}
    if len(lengths) > 1:
        raise ValueError(f"{place}, steps must be as many for every key, got {sorted(lengths)}")
    (count,) = lengths
    for key, tensor in steps.items():
        check_like(tensor, _pattern(model, key, tensor, count), f"{place}, steps, {key}")
    check_like(started, torch.zeros(rows, dtype=torch.int64), f"{place}, started")
    check_range(started, forgotten, forgotten + count + 1, f"{place}, started")
    return forgotten, forgotten + count


def _check_groups(groups: Any, rows: int, first: int, end: int, place: str) -> None:
    """Finished episodes of unfinished groups, as ``GroupRolloutBuffer`` tells of them."""
    check(groups, of_type(list, "a list"), place)
    is_group = Field(
        "a number and a list",
        lambda v: isinstance(v, list) and len(v) == 2 and whole().fits(v[0]) and isinstance(v[1], list),
    )
    names = [field.name for field in dataclasses.fields(Episode)]
    for group in groups:
        check(group, is_group, f"{place}: each")
        for values in group[1]:
            if not isinstance(values, list) or len(values) != len(names):
                raise ValueError(f"{place}, {group[0]} must hold episodes: {', '.join(names)}")
            episode = dict(zip(names, values, strict=True))
            of_episode = f"{place}, {group[0]}"
            check_fields(episode, {"row": whole(below=rows), "first": whole(first, end)}, of_episode)
            last = whole(episode["first"], end)
            check_fields(
                episode, {"last": last, "reward": number(), "score": SHARE, "expert": FLAG}, of_episode
            )


def _check_rounds(rounds: Any, place: str) -> None:
    """The episodes that ``SuccessModel`` learns from."""
    check(rounds, list_of(OBJECT), place)
    for at, part in enumerate(rounds):
        of_part = f"{place}, {at}"
        tensor = of_type(Tensor, "a tensor")
        lengths, scores = check_fields(part, {"_length": tensor, "_score": tensor}, of_part).values()
        count = lengths.numel()
        check_like(lengths, torch.zeros(count, dtype=torch.int64), f"{of_part}, _length")
        check_like(scores, torch.zeros(count), f"{of_part}, _score")
        check_range(lengths, 1, _ENDLESS, f"{of_part}, _length")
        for key in part.keys() - {"_length", "_score"}:
            check(part[key], tensor, f"{of_part}, {key}")
            if not part[key].ndim or len(part[key]) != int(lengths.sum()):
                raise ValueError(f"{of_part}, {key} must have the {int(lengths.sum())} steps of its episodes")
            check_like(part[key], part[key], f"{of_part}, {key}")  # nothing NaN


def _pattern(model: OnPolicyAlgorithm, key: str, tensor: Tensor, count: int) -> Tensor:
    """What so many steps of all rows must look like; of further keys the algorithm alone knows more."""
    spaces: Any = model.observation_space
    if key in spaces:
        one = torch.from_numpy(np.zeros(spaces[key].shape, spaces[key].dtype))
    elif key == "values" or (key == "log_probs" and tensor.ndim == 2):
        one = torch.zeros((), dtype=torch.float32)
    else:
        shape = model.action_space.shape if key == "actions" else tensor.shape[2:]
        one = torch.zeros(shape or (), dtype=tensor.dtype)
    return one.expand(count, model.n_envs, *one.shape)


def _whole_numbers(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of whole numbers and the name it has."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _whole_numbers(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _whole_numbers(inner, name)
    elif isinstance(value, Tensor) and value.dtype == torch.int64:
        yield name, value
