"""LLaDA in plain torch, written from its description alone, and random checkpoints in its layout.

Nothing here uses dllm_gym's loader or transformers' models. The reference takes one sequence without
padding, so it needs no attention mask: a padded batch must give what its rows give alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dllm_gym.backends.families import family_named
from dllm_gym.backends.word_tokenizer import build_tokenizer, save_tokenizer
from dllm_gym.tasks import load_task

PREFIX = "model.transformer."
WIDTH, MLP_WIDTH, LAYERS, HEADS = 16, 32, 2, 2  # of the random checkpoints


def write_checkpoint(directory: Path, seed: int = 0, kv_heads: int = 2, **changes: Any) -> Path:
    """Writes a LLaDA of two layers, width 16 and two heads, with random weights and arithmetic's words."""
    tensors = random_tensors(seed, kv_heads)
    return write_files(
        directory, "llada", {PREFIX + name: tensor for name, tensor in tensors.items()}, kv_heads, changes
    )


def random_tensors(seed: int, kv_heads: int) -> dict[str, Tensor]:
    """Weights under LLaDA's names without their prefix.

    They are large and the norms not all ones, so that confidences differ clearly between positions and
    no two tensors can be swapped unnoticed.
    """
    vocabulary = 5 + len(load_task("arithmetic").vocabulary)  # and the special tokens
    shapes: dict[str, tuple[int, ...]] = {
        "wte": (vocabulary, WIDTH),
        "ln_f": (WIDTH,),
        "ff_out": (vocabulary, WIDTH),
    }
    for layer in range(LAYERS):
        shapes |= {
            f"blocks.{layer}.attn_norm": (WIDTH,),
            f"blocks.{layer}.ff_norm": (WIDTH,),
            f"blocks.{layer}.q_proj": (WIDTH, WIDTH),
            f"blocks.{layer}.k_proj": (WIDTH * kv_heads // HEADS, WIDTH),
            f"blocks.{layer}.v_proj": (WIDTH * kv_heads // HEADS, WIDTH),
            f"blocks.{layer}.attn_out": (WIDTH, WIDTH),
            f"blocks.{layer}.ff_proj": (MLP_WIDTH, WIDTH),
            f"blocks.{layer}.up_proj": (MLP_WIDTH, WIDTH),
            f"blocks.{layer}.ff_out": (WIDTH, MLP_WIDTH),
        }
    return random_values(shapes, seed)


def random_values(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Weights of these shapes, ``.weight`` added to their names; one dimension is a norm's."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        tensors[f"{name}.weight"] = (
            1 + 0.3 * noise if len(shape) == 1 else noise if name == "wte" else 1.5 * noise / shape[-1] ** 0.5
        )
    return tensors


def write_files(
    directory: Path, layout: str, tensors: dict[str, Tensor], kv_heads: int, changes: dict[str, Any]
) -> Path:
    """Writes tensors, ``config.json`` with changed fields, and the tokenizer of arithmetic's words."""
    family = family_named(layout)
    tokenizer = build_tokenizer(load_task("arithmetic").vocabulary, family.special_tokens)
    config = family.write_config(
        vocab_size=len(tokenizer),
        width=WIDTH,
        layers=LAYERS,
        heads=HEADS,
        kv_heads=kv_heads,
        mlp_width=MLP_WIDTH,
        rope_theta=100.0,
        max_length=256,
        mask_token_id=tokenizer.convert_tokens_to_ids(family.special_tokens.mask),
        eos_token_id=tokenizer.eos_token_id,
    )
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    save_tokenizer(tokenizer, directory)
    return directory


class ReferenceLLaDA:
    """Logits ``(T, V)`` of one unpadded sequence, in float32, from LLaDA's own tensor names.

    Other families are written as their differences from it: they rename their tensors and fields to
    these, and override what they compute otherwise.
    """

    def __init__(self, directory: Path) -> None:
        self.config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        stored = load_file(directory / "model.safetensors")
        self.weights = {name.removeprefix(PREFIX): tensor.float() for name, tensor in stored.items()}

    def __call__(self, tokens: list[int]) -> Tensor:
        tied = "ff_out.weight" not in self.weights
        return self._linear("wte" if tied else "ff_out", self.hidden(tokens))

    def hidden(self, tokens: list[int]) -> Tensor:
        """What the output head reads, ``(T, D)``."""
        x = self.weights["wte.weight"][torch.tensor(tokens)]  # (T, D)
        for layer in range(self.config["n_layers"]):
            block = f"blocks.{layer}."
            x = x + self._attention(block, self._norm(block + "attn_norm", x))
            x = x + self._feed_forward(block, self._norm(block + "ff_norm", x))
        return self._norm("ln_f", x)

    def sees(self, length: int) -> Tensor:
        """``(T, T)`` bool: whether the token of the row sees the token of the column."""
        return torch.ones(length, length, dtype=torch.bool)

    def _feed_forward(self, block: str, h: Tensor) -> Tensor:
        gate = self._linear(block + "ff_proj", h)
        return self._linear(block + "ff_out", gate * gate.sigmoid() * self._linear(block + "up_proj", h))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[name + ".weight"].T + self.weights.get(name + ".bias", 0.0)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        mean_square = (x * x).mean(-1, keepdim=True)
        return x / (mean_square + self.config["rms_norm_eps"]).sqrt() * self.weights[name + ".weight"]

    def _attention(self, block: str, x: Tensor) -> Tensor:
        heads, kv_heads = self.config["n_heads"], self.config["n_kv_heads"]
        size = self.config.get("head_dim") or self.config["d_model"] // heads
        hidden = ~self.sees(len(x))
        outputs = []
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            shared = head // (heads // kv_heads)  # consecutive query heads share a key and value head
            theirs = slice(shared * size, (shared + 1) * size)
            q = self._rotate(self._head_norm(block + "q_norm", self._linear(block + "q_proj", x)[:, own]))
            k = self._rotate(self._head_norm(block + "k_norm", self._linear(block + "k_proj", x)[:, theirs]))
            v = self._linear(block + "v_proj", x)[:, theirs]
            scores = (q @ k.T / size**0.5).masked_fill(hidden, -torch.inf)
            outputs.append(torch.softmax(scores, dim=-1) @ v)
        return self._linear(block + "attn_out", torch.cat(outputs, dim=-1))

    def _head_norm(self, name: str, x: Tensor) -> Tensor:
        """Queries or keys of one head; normalised if there are weights for it."""
        return self._norm(name, x) if name + ".weight" in self.weights else x

    def _frequencies(self, size: int) -> Tensor:
        """theta ** (-2 i / size), ``(size / 2,)`` float64."""
        exponents = torch.arange(0, size, 2, dtype=torch.float64) / size
        frequencies: Tensor = self.config["rope_theta"] ** -exponents
        return frequencies

    def _rotate(self, x: Tensor) -> Tensor:
        """Turns the pair (i, i + size / 2) at position t by t times the frequency i.

        With a ``partial_rotary_factor`` only that part of a head, from its beginning, is turned.
        """
        size = int(x.shape[-1] * self.config.get("partial_rotary_factor", 1))
        angles = torch.outer(torch.arange(len(x), dtype=torch.float64), self._frequencies(size)).float()
        first, second = x[:, : size // 2], x[:, size // 2 : size]
        return torch.cat(
            [
                first * angles.cos() - second * angles.sin(),
                second * angles.cos() + first * angles.sin(),
                x[:, size:],
            ],
            dim=-1,
        )
