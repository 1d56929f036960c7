"""Policies on disk: a directory of ``policy.safetensors`` (weights) and ``policy.json`` (everything else).

Nothing in it is executed when it is loaded.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dllm_agents.agent import LearnedPolicy
from dllm_agents.networks import UnmaskTransformer, UnmaskTransformerConfig
from dllm_gym.files import write_atomically, write_json

FORMAT = "dllm_agents.policy"
FORMAT_VERSION = 1
WEIGHTS = "policy.safetensors"
DESCRIPTION = "policy.json"


def save_policy(
    path: str | Path, network: UnmaskTransformer, metadata: Mapping[str, Any] | None = None
) -> Path:
    """Writes ``network`` into the directory ``path``, replacing what a former call wrote there.

    Args:
        path: The directory; created if needed.
        network: The policy network, its value head included.
        metadata: JSON-able facts about the policy: training command, seed, metrics.

    Returns:
        The directory.
    """
    directory = Path(path)
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "network": dataclasses.asdict(network.config),
        "metadata": dict(metadata or {}),
    }
    # The description goes first: metadata that JSON cannot hold fails before anything is written.
    write_json(directory / DESCRIPTION, description)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_atomically(directory / WEIGHTS, lambda temporary: save_file(tensors, temporary, {"format": "pt"}))
    return directory


def load_policy(
    path: str | Path, *, decoding: str = "sample", name: str = "policy", seed: int = 0
) -> LearnedPolicy:
    """Reads a policy that ``save_policy`` wrote.

    Args:
        path: The directory, or one of the two files in it.
        decoding: See ``LearnedPolicy``, like the arguments that follow.
        name: See there.
        seed: See there.

    Raises:
        FileNotFoundError: If there is no policy.
        ValueError: If the files are damaged, come from another format, or don't fit together.
    """
    directory = Path(path)
    if directory.name in (WEIGHTS, DESCRIPTION):
        directory = directory.parent
    network = UnmaskTransformer(_config(read_description(directory), directory / DESCRIPTION))
    network.load_state_dict(_weights(directory / WEIGHTS, network.state_dict()))
    network.eval()
    return LearnedPolicy(network, decoding=decoding, name=name, seed=seed)


def read_description(directory: str | Path) -> dict[str, Any]:
    """The content of ``policy.json``: ``network`` is the configuration, ``metadata`` what was saved with it.

    Raises:
        FileNotFoundError: If there is no policy.
        ValueError: If the file is damaged or comes from another format.
    """
    path = Path(directory) / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(f"no policy at {directory}: {path} is missing")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(f"{path} does not describe a policy: 'format' must be {FORMAT!r}")
    version = description.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version!r}; this version of dllm_agents reads {FORMAT_VERSION}"
        )
    return description


def _config(description: Mapping[str, Any], path: Path) -> UnmaskTransformerConfig:
    fields = description.get("network")
    if not isinstance(fields, dict):
        raise ValueError(
            f"{path}: 'network' must hold the fields of the network's configuration, got {fields!r}"
        )
    known = [field.name for field in dataclasses.fields(UnmaskTransformerConfig)]
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise ValueError(f"{path}: unknown configuration fields {unknown}; known: {', '.join(known)}")
    try:
        return UnmaskTransformerConfig(**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _weights(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    missing, unexpected = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or unexpected:
        raise ValueError(f"{path} does not fit its configuration: missing {missing}, unexpected {unexpected}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)}, expected {tuple(expected[name].shape)}"
            raise ValueError(f"{path}: tensor {name!r} has shape {shapes}")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: tensor {name!r} holds NaN or infinite values")
    return tensors
