"""Reads episodes out of a Minari dataset, which is somebody else's file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dllm_gym.envs.observations import ALWAYS_OBSERVED
from dllm_gym.fields import OBJECT, SHARE, TEXT, Field, check_fields, whole
from dllm_gym.files import parse_json, read_json
from dllm_gym.offline.home import folder_of
from dllm_gym.offline.shipped import shipped_datasets, unpack

_DATASET = {
    "data_format": Field("'hdf5', the format that is read here", lambda value: value == "hdf5"),
    # without one of these Minari would make the environment that the file names, whatever code that is
    "observation_space": TEXT,
    "action_space": TEXT,
    "total_episodes": whole(1),
}
_EPISODE = {"score": SHARE, "completion": TEXT, "agent": TEXT, "options": OBJECT}


@dataclass(frozen=True, eq=False)
class Episodes:
    """E episodes with S steps in all, those of an episode one after another.

    Attributes:
        id: The dataset they are from.
        environment: Arguments of ``UnmaskEnv``, as the dataset tells them; nothing if it does not.
        observation_space: Of one step.
        observations: ``(S, ...)`` by key, what was seen before each step.
        actions: ``(S, L)`` int8, what the agents said.
        revealed: ``(S, L)`` int8, what was revealed by it: less where bits were ignored, more where nothing
            was chosen.
        lengths: ``(E,)`` int64, steps per episode.
        rewards: ``(E,)`` float64.
        scores: ``(E,)`` float64 in [0, 1], 1 is right.
        problems: ``(E,)`` int64, the problem's index in its task.
        completions: E texts.
        agents: E labels, who decoded it.
    """

    id: str
    environment: Mapping[str, Any]
    observation_space: spaces.Dict
    observations: Mapping[str, NDArray[Any]]
    actions: NDArray[np.int8]
    revealed: NDArray[np.int8]
    lengths: NDArray[np.int64]
    rewards: NDArray[np.float64]
    scores: NDArray[np.float64]
    problems: NDArray[np.int64]
    completions: Sequence[str]
    agents: Sequence[str]

    def __len__(self) -> int:
        """E."""
        return len(self.lengths)

    def steps_of(self, episodes: Iterable[int]) -> NDArray[np.int64]:
        """``(s,)``: where the steps of some episodes are, one episode after another."""
        ends = np.cumsum(self.lengths)
        ranges = [np.arange(ends[one] - self.lengths[one], ends[one]) for one in episodes]
        return np.concatenate([np.zeros(0, dtype=np.int64), *ranges])


def read_dataset(id: str) -> Episodes:
    """The episodes of a Minari dataset of this environment, recorded by ``record_dataset`` or likewise.

    The file is checked before Minari reads it: no code that it names is run, no other file that it links to
    is opened. Every array has the shape, the dtype and the range that its space says.

    One of ``shipped_datasets()`` is unpacked into Minari's folder first, unless something of that name lies
    there.

    Args:
        id: Such as ``dllm-gym/sudoku-mixed-v0``; ``minari download ID`` gets one from Minari's servers.

    Raises:
        FileNotFoundError: If there is none here.
        ImportError: Without Minari.
        OSError: If one that comes with the package cannot be unpacked there.
        ValueError: If it is no dataset of this environment, and says why.
    """
    folder = folder_of(id)
    packed = shipped_datasets().get(id)
    if packed is not None and not folder.parent.exists():
        unpack(packed, folder.parent)
    if not (folder / "metadata.json").is_file():
        raise FileNotFoundError(f"there is no dataset {id} in {folder.parent}")
    content = read_json(folder / "metadata.json")
    check_fields(content, _DATASET, f"the metadata of {id}")
    spec = content.get("env_spec")
    told = parse_json(spec, f"the env_spec of {id}") if isinstance(spec, str) else {}
    try:
        _refuse_what_lies_elsewhere(folder / "main_data.hdf5")
        return _read(id, folder, told.get("kwargs") or {})
    except Exception as error:  # of any kind: HDF5, Minari and its spaces have their own
        reason = str(error) or type(error).__name__
        raise ValueError(f"{id} holds no episodes of this environment: {reason}") from error


def _refuse_what_lies_elsewhere(path: Path) -> None:
    """Of HDF5's arts only arrays in this file, all of whose bytes are there."""
    import h5py

    def strange_link(name: str, link: Any) -> str | None:  # what is returned ends the visit
        return None if isinstance(link, h5py.HardLink) else f"{name} is a link to somewhere else"

    def strange_data(name: str, item: Any) -> str | None:
        if not isinstance(item, h5py.Dataset):
            return None
        if item.external or item.is_virtual:
            return f"the data of {name} lie in another file"
        stored = item.id.get_storage_size()
        if stored < item.nbytes:  # a few bytes could unfold to terabytes
            return f"{name} has {item.nbytes} bytes and stores {stored} of them"
        return None

    with h5py.File(path, "r") as file:
        strange = file.visititems_links(strange_link) or file.visititems(strange_data)
    if strange:
        raise ValueError(strange)


def _read(id: str, folder: Path, environment: Any) -> Episodes:
    import minari

    dataset = minari.MinariDataset(str(folder))
    space, action_space = dataset.observation_space, dataset.action_space
    if not isinstance(space, spaces.Dict) or not {*ALWAYS_OBSERVED} <= {*space.spaces}:
        raise ValueError(f"observations must be a Dict with {', '.join(ALWAYS_OBSERVED)}, got {space}")
    if not isinstance(action_space, spaces.MultiBinary) or action_space.shape != space["mask"].shape:
        raise ValueError(f"actions must be bits, one per position, got {action_space}")
    if not isinstance(environment, dict):
        raise ValueError(f"env_spec must have arguments by name, got {environment!r}")
    observations: dict[str, list[NDArray[Any]]] = {key: [] for key in space.spaces}
    actions, revealed, rewards, facts = [], [], [], []
    told = dataset.storage.get_episode_metadata(dataset.episode_indices)
    for episode, metadata in zip(dataset.iterate_episodes(), told, strict=True):
        place = f"episode {episode.id}"
        facts.append(_facts(metadata, place))
        steps = len(episode.rewards)
        done = _checked(episode.actions, action_space, steps, f"{place}: actions")
        for key, part in space.spaces.items():
            seen = _checked(episode.observations[key], part, steps + 1, f"{place}: {key}")
            observations[key].append(seen[:-1])
            if key == "mask":
                revealed.append(((seen[:-1] == 1) & (seen[1:] == 0)).astype(np.int8))
        if steps < 1 or not episode.terminations[-1]:
            raise ValueError(f"{place} does not end")
        if not np.isfinite(np.asarray(episode.rewards, dtype=np.float64)).all():
            raise ValueError(f"{place}: rewards must be finite")
        actions.append(done)
        rewards.append(float(np.sum(episode.rewards)))
    return Episodes(
        id=id,
        environment=environment,
        observation_space=space,
        observations={key: np.concatenate(parts) for key, parts in observations.items()},
        actions=np.concatenate(actions),
        revealed=np.concatenate(revealed),
        lengths=np.array([len(one) for one in actions], dtype=np.int64),
        rewards=np.array(rewards),
        scores=np.array([one["score"] for one in facts], dtype=np.float64),
        problems=np.array([one["problem"] for one in facts], dtype=np.int64),
        completions=[one["completion"] for one in facts],
        agents=[one["agent"] for one in facts],
    )


def _facts(metadata: Mapping[str, Any], place: str) -> dict[str, Any]:
    """What is known of an episode as a whole."""
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in metadata.items()}
    known = check_fields(plain, _EPISODE, place)
    options = {
        key: getattr(value, "item", lambda value=value: value)() for key, value in known["options"].items()
    }
    return {**known, **check_fields(options, {"problem": whole()}, f"{place}: options")}


def _checked(values: Any, space: spaces.Space[Any], steps: int, place: str) -> NDArray[Any]:
    """The values ``(steps, ...)`` of a space, in its dtype."""
    array = np.asarray(values)
    shape, dtype = (steps, *(space.shape or ())), space.dtype
    if array.shape != shape or array.dtype.kind not in "biuf" or dtype is None or dtype.kind not in "iuf":
        raise ValueError(f"{place} must be numbers of the shape {shape}, got {array.dtype} of {array.shape}")
    low, high = (space.low, space.high) if isinstance(space, spaces.Box) else (0, 1)
    inside = (array >= low) & (array <= high)  # NaN is not
    if isinstance(space, spaces.MultiBinary):
        inside &= (array == 0) | (array == 1)
    elif not isinstance(space, spaces.Box):
        raise ValueError(f"{place} must be of a Box or of bits, got {space}")
    if not inside.all():
        raise ValueError(f"{place} must lie in {space}, got {array[~inside][0]}")
    return array.astype(dtype)
