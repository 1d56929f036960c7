"""The loops that others build on, from LLaDA on: those that decide by confidence alone."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.canvases import LENGTH, Case, Loop
from benchmarks.peers.checkouts import bare_import, load_file

LLADA_MODEL = ("model", "model.modeling_llada")  # their own model class, which is not needed


def left_padded(prompts: list[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts of any length as ``(B, P)``, and the attention mask."""
    longest = max(map(len, prompts))
    rows = [[pad_id] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(rows), torch.tensor(mask)


def load_generate(checkout: Path, batches: bool) -> Loop:
    """The function ``generate`` of LLaDA and Fast-dLLM."""
    places = ("generate.py", "llada/generate.py", "v1/llada/generate.py")
    module = load_file(checkout, *places, without=LLADA_MODEL)

    def loop(model: Any, prompts: list[list[int]], case: Case, backend: Any) -> np.ndarray:
        tokens, mask = left_padded(prompts, backend.pad_token_id)
        options = {"gen_length": LENGTH, "block_length": case.block_length, "mask_id": backend.mask_token_id}
        if batches:
            options["attention_mask"] = mask
        output = module.generate(model, tokens, **options, **case.peer)
        output = output[0] if isinstance(output, tuple) else output  # Fast-dLLM returns its forwards as well
        completions: np.ndarray = output[:, -LENGTH:].numpy()
        return completions

    return loop


def load_dllm(checkout: Path) -> Loop:
    """The Fast-dLLM sampler of ZHZisZZ/dllm."""
    name = "dllm.pipelines.fastdllm.llada.sampler"
    sampler = bare_import(checkout, name, "dllm.core", "dllm.core.samplers").FastdLLMLLaDASampler

    def loop(model: Any, prompts: list[list[int]], case: Case, backend: Any) -> np.ndarray:
        names = ("mask_token_id", "bos_token_id", "eos_token_id")
        tokenizer = types.SimpleNamespace(**{name: getattr(backend, name, None) for name in names})
        made = sampler(model=model, tokenizer=tokenizer)
        options = {"max_new_tokens": LENGTH, "block_size": case.block_length, "return_dict": False}
        output = made.sample(prompts, **options, **case.peer)
        rows = zip(output, prompts, strict=True)
        return np.stack([row[len(prompt) : len(prompt) + LENGTH].numpy() for row, prompt in rows])

    return loop


def load_ml_rl_dllm(checkout: Path) -> Loop:
    """The loop of the paper's released code."""
    generate = bare_import(checkout, "common.generation.generation").generate_unified

    def loop(model: Any, prompts: list[list[int]], case: Case, backend: Any) -> np.ndarray:
        tokens, mask = left_padded(prompts, backend.pad_token_id)
        options = {"gen_length": LENGTH, "block_length": case.block_length, "mask_id": backend.mask_token_id}
        output = generate(model, tokens, attention_mask=mask, **options, **case.peer)
        completions: np.ndarray = output.sequences[:, -LENGTH:].numpy()
        return completions

    return loop
