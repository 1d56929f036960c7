"""Policies trained with the released code of arXiv 2512.09106, read into our network.

Its policy of type ``dit_confidence`` (apple/ml-rl-dllm, ``common/models/policy_layers.py``) is the one our
network was modelled on. What differs is the names of the tensors, and that queries, keys and values have a
projection each. Its modulation has the order of ours: scale, shift and gate of the attention, then those of
the feed-forward branch. Its rotary embedding turns interleaved pairs, as ours does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dllm_agents.networks import UnmaskTransformer, UnmaskTransformerConfig
from dllm_gym.backends.loading import INDEX, WEIGHTS, instead_of, shard_names
from dllm_gym.tensors import check_tensors, read_tensors, shapes_of

# Of the whole model, of training on several GPUs and of torch.compile; some files have none.
_PREFIXES = ("base_policy.", "module.", "_orig_mod.")

# Our module -> theirs.
_MODULES = {
    "input_proj": "confidence_proj",
    "mask_embedding": "mask_embedding",
    "time_embedding.mlp.0": "time_mlp.0",
    "time_embedding.mlp.2": "time_mlp.2",
    "final_norm": "final_norm",
    "output_proj": "output_proj",
}
# Our module within a block -> theirs, to be stacked in this order.
_BLOCK_MODULES = {
    "modulation": ("ada_conditioning",),
    "attention_norm": ("norm1",),
    "attention.qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "attention.out_proj": ("out_proj",),
    "mlp_norm": ("norm2",),
    "mlp.0": ("linear1",),
    "mlp.2": ("linear2",),
}


def read_released_policy(path: str | Path, time_period: float = 1.0) -> UnmaskTransformer:
    """Builds the network that a file of the released code describes, and fills it.

    Width, number of blocks and heads, of confidences and of sinusoids follow from the tensors' shapes. With
    one confidence per position the network reads the observation ``confidence``; with more, ``top_k``.

    Args:
        path: A safetensors file, or the directory with its ``model.safetensors``, which may come in parts.
        time_period: The ``policy_time_period`` of the training run. The file does not hold it.

    Raises:
        FileNotFoundError: If there is no such file; says what is there instead.
        ValueError: If tensors are missing, unexpected, of a wrong shape, or hold what they should not.
    """
    file, tensors = _read(Path(path))
    while prefix := next((one for one in _PREFIXES if all(name.startswith(one) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    config = _config(file, tensors, time_period)
    shapes = shapes_of(file, lambda: UnmaskTransformer(config))
    sources = {name: _sources(name) for name in shapes}
    _check(file, tensors, config, shapes, sources)
    network = UnmaskTransformer(config)
    network.load_state_dict(
        {name: torch.cat([tensors[source].float() for source in parts]) for name, parts in sources.items()}
    )
    return network


def _read(path: Path) -> tuple[Path, dict[str, Tensor]]:
    """All tensors, of which there are some, and the file to name in messages."""
    file = path / WEIGHTS if path.is_dir() else path
    parts = [file]
    if path.is_dir() and not file.is_file():
        if not (path / INDEX).is_file():
            raise FileNotFoundError(f"{file} is missing{instead_of(WEIGHTS, path)}")
        file = path / INDEX
        parts = [path / name for name in shard_names(file)]
    tensors = {name: tensor for part in parts for name, tensor in read_tensors(part).items()}
    if not tensors:
        raise ValueError(f"{file} holds no tensors")
    return file, tensors


def _sources(name: str) -> list[str]:
    """The names of the tensors that our tensor ``name`` is stacked from."""
    module, _, kind = name.rpartition(".")
    in_block = re.fullmatch(r"blocks\.(\d+)\.(.+)", module)
    if in_block is None:
        return [f"{_MODULES[module]}.{kind}"]
    return [f"transformer_blocks.{in_block[1]}.{part}.{kind}" for part in _BLOCK_MODULES[in_block[2]]]


def _config(file: Path, tensors: Mapping[str, Tensor], time_period: float) -> UnmaskTransformerConfig:
    blocks = {match[1] for name in tensors if (match := re.match(r"transformer_blocks\.(\d+)\.", name))}
    telling = {
        "confidence_proj.weight": 2,
        "transformer_blocks.0.linear1.weight": 2,
        "transformer_blocks.0.inv_freq": 1,
    }
    for name, dimensions in telling.items():
        if name not in tensors:
            raise ValueError(f"{file} is no policy of type dit_confidence: missing {name!r}")
        if tensors[name].dim() != dimensions or not tensors[name].numel():
            raise ValueError(
                f"{file}: tensor {name!r} has shape {tuple(tensors[name].shape)}, "
                f"expected {dimensions} dimension(s), none of them empty"
            )
    width, confidences = tensors["confidence_proj.weight"].shape
    time = tensors.get("time_mlp.0.weight")
    head_width = 2 * len(tensors["transformer_blocks.0.inv_freq"])
    if width % head_width:
        raise ValueError(f"{file}: inv_freq is of heads of width {head_width}, the width is {width}")
    return UnmaskTransformerConfig(
        features=("confidence" if confidences == 1 else "top_k", "mask", "progress"),
        width=width,
        heads=width // head_width,
        mlp_width=len(tensors["transformer_blocks.0.linear1.weight"]),
        layers=len(blocks),
        time_period=time_period,
        time_width=time.shape[1] if time is not None and time.dim() == 2 else None,  # else refused below
        round_time=True,
        top_k=confidences,
    )


def _check(
    file: Path,
    tensors: Mapping[str, Tensor],
    config: UnmaskTransformerConfig,
    shapes: Mapping[str, tuple[int, ...]],
    sources: Mapping[str, list[str]],
) -> None:
    expected: dict[str, tuple[int, ...]] = {}
    for name, (rows, *rest) in shapes.items():
        expected |= {source: (rows // len(sources[name]), *rest) for source in sources[name]}
    head_width = config.width // config.heads
    frequencies = 10000.0 ** (-torch.arange(0, head_width, 2) / head_width)
    buffers = [f"transformer_blocks.{block}.inv_freq" for block in range(config.layers)]
    expected |= {name: tuple(frequencies.shape) for name in buffers}
    check_tensors(file, tensors, expected)
    for name in buffers:  # ours are computed, so theirs need only be the same ones, in whatever precision
        if not torch.allclose(tensors[name].float(), frequencies, rtol=1e-2, atol=0.0):
            raise ValueError(
                f"{file}: {name!r} must hold the rotary frequencies 10000 ** (-2j / {head_width})"
            )
