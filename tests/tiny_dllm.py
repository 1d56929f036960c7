"""A LLaDA of a handful of words, small enough to add up over everything it can write; a task for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dllm_gym.backends.families import family_named
from dllm_gym.backends.word_tokenizer import build_tokenizer, save_tokenizer
from dllm_gym.tasks import Problem
from dllm_gym.tasks.base import check_split

WORDS = ("0", "1")


def write_tiny_dllm(directory: Path, layout: str = "llada", seed: int = 0) -> Path:
    """Random weights, so large that the tokens depend on each other."""
    import transformers

    family: Any = family_named(layout)
    special = family.special_tokens
    tokenizer = build_tokenizer(WORDS, special)
    config = family.write_config(
        vocab_size=len(tokenizer), width=8, layers=2, heads=2, kv_heads=1, mlp_width=16, rope_theta=100.0,
        max_length=64, mask_token_id=tokenizer.convert_tokens_to_ids(special.mask),
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = getattr(transformers, family.model_class)(family.translate(config))
    tensors = {
        name: (tensor if tensor.ndim == 1 else 25 * tensor).bfloat16().contiguous()
        for name, tensor in family.checkpoint_names(model.state_dict()).items()
    }
    directory.mkdir(parents=True)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_tokenizer(tokenizer, directory)
    return directory


class Ones:
    """The more ones, the better; the prompt is any number of zeros and does not matter."""

    name, completion_length, num_problems = "ones", 4, None

    def __init__(self, split: str = "train") -> None:
        self.split = check_split(split)

    def problem(self, index: int) -> Problem:
        return Problem(prompt="0 " * (1 + index % 3), reference="1 1 1 1", metadata={})

    def score(self, completion: str, problem: Problem) -> float:
        return completion.count("1") / self.completion_length

    def metrics(self, completion: str, problem: Problem) -> dict[str, float]:
        return {}
