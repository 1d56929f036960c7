"""Policies on disk: a directory of ``policy.safetensors`` (weights) and ``policy.json`` (everything else).

Nothing in it is executed when it is loaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from dllm_agents.agent import KNOBS, LearnedPolicy
from dllm_agents.harm import HarmScale
from dllm_agents.networks import UnmaskTransformer, UnmaskTransformerConfig
from dllm_agents.released import read_released_policy
from dllm_gym.files import is_finite, read_json, write_bytes, write_json
from dllm_gym.tensors import check_tensors, read_tensors, shapes_of

FORMAT = "dllm_agents.policy"
FORMAT_VERSION = 1
WEIGHTS = "policy.safetensors"
DESCRIPTION = "policy.json"
SHIPPED = Path(__file__).parent / "policies"


def save_policy(
    path: str | Path,
    network: UnmaskTransformer,
    metadata: Mapping[str, Any] | None = None,
    *,
    decoding: str = "sample",
    harm: HarmScale | None = None,
) -> Path:
    """Writes ``network`` into the directory ``path``, replacing what a former call wrote there.

    Args:
        path: The directory; created if needed.
        network: The policy network, its value head included.
        metadata: JSON-able facts about the policy: training command, seed, metrics.
        decoding: What it was trained to do, the default when it is loaded: ``sample`` or ``dpls``.
        harm: Of a success model, how its logits read as harm.

    Returns:
        The directory.
    """
    directory = Path(path)
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "network": dataclasses.asdict(network.config),
        "decoding": decoding,
        **({} if harm is None else {"harm": dataclasses.asdict(harm)}),
        "metadata": dict(metadata or {}),
    }
    # The description goes first: metadata that JSON cannot hold fails before anything is written.
    write_json(directory / DESCRIPTION, description)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_bytes(directory / WEIGHTS, save(tensors, {"format": "pt"}))
    return directory


def load_policy(
    path: str | Path,
    *,
    format: str = "dllm_agents",
    time_period: float | None = None,
    decoding: str | None = None,
    name: str = "policy",
    seed: int = 0,
    **options: Any,
) -> LearnedPolicy:
    """Reads a policy that ``save_policy`` wrote, or one trained with the released code of arXiv 2512.09106.

    The ``network`` of the latter maps an observation with the keys ``mask``, ``confidence`` and
    ``progress`` (steps used / L) to the logits it gave there; ``confidence`` is ``top_k`` if it was trained
    on several per position. In training it saw the dLLM's own confidence at revealed positions: make the
    environment with ``revealed_confidence="model"``. If it was trained with ``policy_full_context=False``
    it attended to the active block alone, as our network does not: then its logits are the same only with
    one block.

    Args:
        path: The directory, one of the two files in it, or the name of a shipped policy; for
            ``"ml-rl-dllm"`` the ``model.safetensors`` or its directory, where it may be in parts.
        format: ``"dllm_agents"`` or ``"ml-rl-dllm"``.
        time_period: Only for ``"ml-rl-dllm"``, whose files do not hold it: the ``policy_time_period`` of
            the training run. None is 1, which all configurations shipped with that code have.
        decoding: See ``LearnedPolicy``; None is what the policy was trained to do.
        name: See there, like the arguments that follow.
        **options: ``temperature``, ``beta``, ``caution``, ``budget`` and ``knobs``.
        seed: See there.

    Raises:
        FileNotFoundError: If there is no policy.
        ValueError: If the files are damaged, come from another format, or don't fit together; for an
            unknown format, or a ``time_period`` where the file holds it.
    """
    if format == "ml-rl-dllm":
        network = read_released_policy(path, 1.0 if time_period is None else time_period)
    elif format != "dllm_agents":
        raise ValueError(f"unknown format {format!r}; known: dllm_agents, ml-rl-dllm")
    elif time_period is not None:
        raise ValueError(f"time_period {time_period} is for format='ml-rl-dllm'; our own files hold it")
    else:
        directory = _directory_of(path)
        network = _read_own_policy(directory)
        description = read_description(directory)
        # files from before there was a choice do not say
        decoding = decoding or description.get("decoding")
        options["trained_in"] = trained_in = _trained_in(description)
        options["ranges"] = _trained_ranges(trained_in)
        options["harm"] = _harm(description, directory / DESCRIPTION)
    network.eval()
    return LearnedPolicy(network, decoding=decoding or "sample", name=name, seed=seed, **options)


def _trained_in(description: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the environment that a policy was trained in, if ``train`` saved it."""
    env: Any = description
    for key in ("metadata", "config", "env"):
        env = env.get(key) if isinstance(env, dict) else None
    return env if isinstance(env, dict) else {}


def _trained_ranges(env: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Between which values each knob was drawn."""
    ranges = {}
    for knob in KNOBS:
        ends = env.get(knob)
        if isinstance(ends, list) and len(ends) == 2 and all(map(is_finite, ends)):
            ranges[knob] = (float(ends[0]), float(ends[1]))
    return ranges


def _harm(description: Mapping[str, Any], path: Path) -> HarmScale | None:
    fields = description.get("harm")
    if fields is None:
        return None
    try:
        return HarmScale(**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: 'harm' must hold sharpness and threshold: {error}") from error


def shipped_policies() -> dict[str, Path]:
    """The policies that come with the package, by name, and their directories."""
    return {path.parent.name: path.parent for path in sorted(SHIPPED.glob(f"*/{DESCRIPTION}"))}


def _directory_of(path: str | Path) -> Path:
    if str(path) in shipped_policies():
        return shipped_policies()[str(path)]
    directory = Path(path)
    return directory.parent if directory.name in (WEIGHTS, DESCRIPTION) else directory


def _read_own_policy(directory: Path) -> UnmaskTransformer:
    path = directory / DESCRIPTION
    config = _config(read_description(directory), path)
    tensors = read_tensors(directory / WEIGHTS)
    _refuse_larger(config, tensors, directory)
    check_tensors(directory / WEIGHTS, tensors, shapes_of(path, lambda: UnmaskTransformer(config)))
    network = UnmaskTransformer(config)
    network.load_state_dict(tensors)
    return network


def _refuse_larger(config: UnmaskTransformerConfig, tensors: Mapping[str, Tensor], directory: Path) -> None:
    """Nothing is allocated for sizes that the weights do not have: the description may be a stranger's."""
    longest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    names = ("width", "mlp_width", "hidden_width", "time_width")
    sizes = {name: getattr(config, name) for name in names}
    limits = {**dict.fromkeys(sizes, longest), "layers": len(tensors), "inputs": longest}
    for name, size in {**sizes, "layers": config.layers, "inputs": config.num_columns}.items():
        if size is not None and size > limits[name]:
            raise ValueError(
                f"{directory / DESCRIPTION}: {name} {size} does not fit "
                f"the {len(tensors)} tensors of {WEIGHTS}"
            )


def read_description(directory: str | Path) -> dict[str, Any]:
    """The content of ``policy.json``: ``network`` is the configuration, ``metadata`` what was saved with it.

    Raises:
        FileNotFoundError: If there is no policy.
        ValueError: If the file is damaged or comes from another format.
    """
    path = Path(directory) / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(f"no policy at {directory}: {path} is missing")
    description = read_json(path)
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
