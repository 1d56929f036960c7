"""Checkpoints as their families publish them: what training writes, and loading reads."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dllm_gym.backends.families import Layout
from dllm_gym.backends.loading import WEIGHTS, optional_file
from dllm_gym.files import write_atomically, write_json

# whatever of these a checkpoint has; what else lies beside them is code, or about other weights
_BESIDE = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"),
    *("vocab.json", "merges.txt", "added_tokens.json", "generation_config.json"),
)


def write_weights(
    directory: Path, layout: Layout, state: Mapping[str, Tensor], config: Mapping[str, Any]
) -> None:
    """Writes weights, bfloat16 like the published ones, and ``config.json``.

    Args:
        directory: Where to.
        layout: The family's.
        state: Tensors under transformers' names.
        config: The content of ``config.json``.
    """
    from safetensors.torch import save_file

    tensors = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in layout.checkpoint_names(state).items()
    }
    write_atomically(directory / WEIGHTS, lambda path: save_file(tensors, path, {"format": "pt"}))
    write_json(directory / "config.json", config)


def copy_tokenizer(source: str | Path, directory: Path) -> None:
    """Copies the files of a checkpoint, a directory or hub id, that say how text becomes tokens and back."""
    for name in _BESIDE:
        found = optional_file(source, name)
        if found is not None:
            write_atomically(directory / name, partial(shutil.copyfile, found))
