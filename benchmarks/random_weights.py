"""dLLMs of LLaDA's layout with random weights, of any size, without a file of that size.

The checkpoint that is written and loaded in the usual way is a sparse file of zeros; random numbers are
filled in afterwards, in memory.
"""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import torch

import dllm_gym
from dllm_gym.backends.families import family_named
from dllm_gym.backends.word_tokenizer import build_tokenizer, save_tokenizer
from dllm_gym.files import write_json

TASK = "arithmetic"
SHAPES = {
    "8b": {"vocab_size": 126464, "width": 4096, "layers": 32, "heads": 32, "mlp_width": 12288},
    "100m": {"vocab_size": 126464, "width": 256, "layers": 32, "heads": 2, "mlp_width": 768},
    "tiny": {"vocab_size": 512, "width": 64, "layers": 2, "heads": 2, "mlp_width": 192},
}


def write_hollow_checkpoint(directory: Path, shape: dict[str, int]) -> None:
    """A checkpoint in LLaDA's layout whose bfloat16 tensors are a hole in a sparse file."""
    import transformers

    family: Any = family_named("llada")
    special = family.special_tokens
    tokenizer = build_tokenizer(dllm_gym.load_task(TASK).vocabulary, special)  # type: ignore[attr-defined]
    config = family.write_config(
        **shape,
        kv_heads=shape["heads"],
        rope_theta=500000.0,
        max_length=4096,
        mask_token_id=tokenizer.convert_tokens_to_ids(special.mask),
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.device("meta"):
        model = getattr(transformers, family.model_class)(family.translate(config))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in family.checkpoint_names(model.state_dict()).items():
        begin, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    write_json(directory / "config.json", config)
    save_tokenizer(tokenizer, directory)


def load_random(shape: dict[str, int], **kwargs: Any) -> Any:
    """The dLLM with random weights, on its device."""
    with tempfile.TemporaryDirectory() as directory:
        write_hollow_checkpoint(Path(directory), shape)
        backend: Any = dllm_gym.load_backend(directory, **kwargs)
        with torch.no_grad():
            for parameter in backend.model.parameters():
                if parameter.ndim == 1:
                    parameter.fill_(1.0)  # of a norm
                else:
                    parameter.normal_(0.0, 0.02)
    return backend
