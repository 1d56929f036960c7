"""Tiny random checkpoints of every family in its publisher's layout, and independent forwards for them.

Nothing here uses dllm_gym's loader or transformers' models. A reference takes one sequence without
padding and gives logits ``(T, V)`` of which row i is about token i.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from dream_reference import DREAM_FIELDS, DREAM_NAMES, rename
from llada_reference import (
    HEADS,
    LAYERS,
    MLP_WIDTH,
    PREFIX,
    WIDTH,
    ReferenceLLaDA,
    random_tensors,
    random_values,
)
from padded import LENGTH
from safetensors.torch import load_file, save_file
from torch import Tensor

from dllm_gym.backends.word_tokenizer import SpecialTokens, build_tokenizer, save_tokenizer
from dllm_gym.tasks import load_task

HEAD = 12  # width of a head where it is not the model's width over the number of heads
EXPERTS, EXPERT_WIDTH = 8, 24
WORDS = load_task("arithmetic").vocabulary
VOCABULARY = 5 + len(WORDS)

STOCK_NAMES = DREAM_NAMES | {
    "blocks.#.q_norm": "model.layers.#.self_attn.q_norm",
    "blocks.#.k_norm": "model.layers.#.self_attn.k_norm",
}


@dataclass(frozen=True)
class Case:
    """A family's checkpoint: how to write one, how to compute it, and what the backend should find in it."""

    write: Callable[[Path], Path]
    reference: Callable[[Path], Any]
    family: str
    attention_block: int | None = None


def write(
    directory: Path, config: dict[str, Any], tensors: dict[str, Tensor], special: SpecialTokens
) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_tokenizer(build_tokenizer(WORDS, special), directory)
    return directory


# Stock names ------------------------------------------------------------------------------------------------

QWEN = {"bos": "<|im_start|>", "eos": "<|endoftext|>", "eot": "<|im_end|>"}


def stock_config(model_type: str, architecture: str, **fields: Any) -> dict[str, Any]:
    """What the A2D, SDAR and Fast-dLLM v2 repositories share with Qwen's; no mask id among it."""
    return {
        "architectures": [architecture],
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": f"configuration_x.{architecture}",
            "AutoModelForCausalLM": f"modeling_x.{architecture}",
        },
        "bos_token_id": 1,
        "eos_token_id": 1,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": MLP_WIDTH,
        "max_position_embeddings": 256,
        "model_type": model_type,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 100.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.57.0",
        "use_cache": True,
        "vocab_size": VOCABULARY,
        **fields,
    }


def stock_tensors(
    seed: int, *, bias: bool = False, qk_norm: bool = False, tied: bool = False
) -> dict[str, Tensor]:
    """Weights under transformers' names for Llama, Qwen2 (``bias``) or Qwen3 (``qk_norm``, wider heads)."""
    tensors = random_tensors(seed, kv_heads=1)
    generator = torch.Generator().manual_seed(seed + 1)

    def add(name: str, *shape: int, scale: float = 1.0, mean: float = 0.0) -> None:
        tensors[name] = mean + scale * torch.randn(shape, generator=generator)

    for layer in range(LAYERS):
        block = f"blocks.{layer}."
        if bias:
            for part in "qkv":
                add(f"{block}{part}_proj.bias", len(tensors[f"{block}{part}_proj.weight"]))
        if qk_norm:
            for part, heads in (("q", HEADS), ("k", 1), ("v", 1)):
                add(f"{block}{part}_proj.weight", heads * HEAD, WIDTH, scale=1.5 / WIDTH**0.5)
            add(f"{block}attn_out.weight", WIDTH, HEADS * HEAD, scale=1.5 / (HEADS * HEAD) ** 0.5)
            for part in "qk":
                add(f"{block}{part}_norm.weight", HEAD, scale=0.3, mean=1.0)
    if tied:
        del tensors["ff_out.weight"]
    return {rename(name, STOCK_NAMES): tensor for name, tensor in tensors.items()}


class ReferenceStock(ReferenceLLaDA):
    """Llama, Qwen2 and Qwen3 under their own names; in blocks of ``block``, if given.

    Args:
        directory: The checkpoint.
        block: Length of the blocks that see themselves and what is left of them.
        from_completion: Whether blocks are counted from the completion or from the first token.
        shifted: Whether the output's row i - 1 is about token i.
    """

    def __init__(
        self, directory: Path, block: int | None = None, from_completion: bool = False, shifted: bool = False
    ) -> None:
        super().__init__(directory)
        published = self.config
        self.config = {llada: published[stock] for llada, stock in DREAM_FIELDS.items()}
        self.config |= {
            key: published[key] for key in ("head_dim", "partial_rotary_factor") if key in published
        }
        self.published = published
        self.weights = self._renamed(self.weights)
        self.block, self.from_completion, self.shifted = block, from_completion, shifted

    def _renamed(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        names = {stock: llada for llada, stock in STOCK_NAMES.items()}
        return {rename(name, names): tensor for name, tensor in weights.items()}

    def sees(self, length: int) -> Tensor:
        if self.block is None:
            return super().sees(length)
        origin = length - LENGTH if self.from_completion else 0
        blocks = [(at - origin) // self.block for at in range(length)]  # rounds down, below zero too
        return torch.tensor([[theirs <= own for theirs in blocks] for own in blocks])

    def hidden(self, tokens: list[int]) -> Tensor:
        rows = super().hidden(tokens)
        return torch.cat([rows[:1], rows[:-1]]) if self.shifted else rows


def write_a2d_llama(directory: Path) -> Path:
    # converted by a newer transformers, which writes rope_parameters
    config = stock_config(
        "a2d-llama",
        "A2DLlamaLMHeadModel",
        attention_bias=False,
        head_dim=WIDTH // HEADS,
        mlp_bias=False,
        pretraining_tp=1,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )
    return write(
        directory, config, stock_tensors(1), SpecialTokens(**QWEN | {"eot": "<|eot_id|>"}, mask="<|mask|>")
    )


def write_a2d_qwen2(directory: Path) -> Path:
    config = stock_config(
        "a2d-qwen2",
        "A2DQwen2LMHeadModel",
        layer_types=["full_attention"] * LAYERS,
        max_window_layers=LAYERS,
        pad_token_id=1,
        sliding_window=None,
        tie_word_embeddings=True,
        use_sliding_window=False,
    )
    tensors = stock_tensors(2, bias=True, tied=True)
    return write(directory, config, tensors, SpecialTokens(**QWEN, mask="<|mask|>"))


def qwen3_fields(**fields: Any) -> dict[str, Any]:
    return {
        "attention_bias": False,
        "head_dim": HEAD,
        "max_window_layers": LAYERS,
        "sliding_window": None,
        "use_sliding_window": False,
        **fields,
    }


def write_a2d_qwen3(directory: Path) -> Path:
    config = stock_config("a2d-qwen3", "A2DQwen3LMHeadModel", **qwen3_fields(tie_word_embeddings=True))
    tensors = stock_tensors(3, qk_norm=True, tied=True)
    return write(directory, config, tensors, SpecialTokens(**QWEN, mask="<|mask|>"))


def write_sdar(directory: Path) -> Path:
    config = stock_config("sdar", "SDARForCausalLM", **qwen3_fields(fuse_cross_entropy=True))
    return write(directory, config, stock_tensors(4, qk_norm=True), SpecialTokens(**QWEN, mask="<|MASK|>"))


def write_fast_dllm(directory: Path) -> Path:
    config = stock_config(
        "Fast_dLLM_Qwen",
        "Fast_dLLM_QwenForCausalLM",
        bd_size=8,
        max_window_layers=LAYERS,
        sliding_window=None,
        use_sliding_window=False,
    )
    return write(directory, config, stock_tensors(5, bias=True), SpecialTokens(**QWEN, mask="|<MASK>|"))


def write_stable_diffcoder(directory: Path) -> Path:
    config = stock_config(
        "llama", "StableDiffcoderForCausalLM", attention_bias=False, mlp_bias=False, pretraining_tp=1
    )
    special = SpecialTokens(
        bos="<[begin▁of▁sentence]>", eos="<[end▁of▁sentence]>", eot="<[SEP▁TOKEN]>", mask="<[MASK_TOKEN]>"
    )
    return write(directory, config, stock_tensors(13), special)


# Dense LLaDA with grouped heads and one matrix for embedding and head ---------------------------------------


def write_illada(directory: Path) -> Path:
    from llada_reference import write_checkpoint

    write_checkpoint(directory, seed=6, kv_heads=1, weight_tying=True)
    tensors = load_file(directory / "model.safetensors")
    del tensors[PREFIX + "ff_out.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


# Mixtures of experts ----------------------------------------------------------------------------------------

ANT = {"bos": "<|startoftext|>", "eos": "<|endoftext|>", "eot": "<|role_end|>", "mask": "<|mask|>"}


def expert_shapes(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}gate_proj": (width, WIDTH),
        f"{prefix}up_proj": (width, WIDTH),
        f"{prefix}down_proj": (WIDTH, width),
    }


def mixture_tensors(seed: int, dense_layers: int) -> dict[str, Tensor]:
    """The tensors of LLaDA-MoE and SDAR-MoE: Qwen3's attention, experts one by one."""
    tensors = {
        name: tensor
        for name, tensor in stock_tensors(seed, qk_norm=True).items()
        if "mlp" not in name or int(name.split(".")[2]) < dense_layers
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(dense_layers, LAYERS):
        mlp = f"model.layers.{layer}.mlp."
        shapes[f"{mlp}gate"] = (EXPERTS, WIDTH)
        for expert in range(EXPERTS):
            shapes |= expert_shapes(f"{mlp}experts.{expert}.", EXPERT_WIDTH)
    return tensors | random_values(shapes, seed + 2)


def narrow_heads(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Heads as wide as the model's width over their number, as in LLaDA-MoE."""
    size = WIDTH // HEADS
    narrowed = dict(tensors)
    for name, tensor in tensors.items():
        if re.search(r"[qkv]_proj", name):
            narrowed[name] = tensor[: len(tensor) // HEAD * size]
        elif "o_proj" in name:
            narrowed[name] = tensor[:, : HEADS * size]
        elif "q_norm" in name or "k_norm" in name:
            narrowed[name] = tensor[:size]
    return narrowed


def write_llada_moe(directory: Path) -> Path:
    config = stock_config(
        "llada",
        "LLaDAMoEModelLM",
        attention_bias=False,
        clip_qkv=None,
        dense_intermediate_size=MLP_WIDTH,
        expert_intermediate_size=EXPERT_WIDTH,
        moe_layer_freq=[0, 1],
        moe_router_enable_expert_bias=False,
        moe_router_score_function="softmax",
        norm_topk_prob=None,
        num_experts=EXPERTS,
        num_experts_per_tok=3,
        output_router_logits=False,
        pad_token_id=1,
        partial_rotary_factor=1,
        qk_layernorm=True,
        rms_norm_eps=1e-05,
        routed_scaling_factor=1,
        router_num_group=None,
        router_topk_group=None,
        shared_expert_intermediate_size=None,
        use_cache=False,
    )
    del config["intermediate_size"], config["bos_token_id"]
    tensors = narrow_heads(mixture_tensors(7, dense_layers=1))
    return write(directory, config, tensors, SpecialTokens(**ANT))


def write_sdar_moe(directory: Path) -> Path:
    config = stock_config(
        "sdar_moe",
        "SDARMoeForCausalLM",
        **qwen3_fields(
            block_size=8,
            decoder_sparse_step=1,
            mlp_only_layers=[],
            moe_intermediate_size=EXPERT_WIDTH,
            norm_topk_prob=True,
            num_experts=EXPERTS,
            num_experts_per_tok=3,
            output_router_logits=False,
            router_aux_loss_coef=0.001,
        ),
    )
    return write(
        directory, config, mixture_tensors(8, dense_layers=0), SpecialTokens(**QWEN, mask="<|MASK|>")
    )


class ReferenceMixture(ReferenceStock):
    """Experts, of which each token takes the ``k`` that a softmax likes best."""

    def _renamed(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        mixture = {name for name in weights if re.search(r"mlp\.(gate\.|experts|shared)", name)}
        stock = super()._renamed({n: tensor for n, tensor in weights.items() if n not in mixture})
        layers = {name: name.replace("model.layers.", "blocks.").replace("mlp.", "") for name in mixture}
        return stock | {layers[name]: weights[name] for name in mixture}

    def _feed_forward(self, block: str, h: Tensor) -> Tensor:
        if block + "gate.weight" not in self.weights:
            return super()._feed_forward(block, h)
        return torch.stack([self._mixture(block, token) for token in h])

    def _mixture(self, block: str, token: Tensor) -> Tensor:
        probability = torch.softmax(self._linear(block + "gate", token), -1)
        chosen = probability.argsort(descending=True)[: self.published["num_experts_per_tok"]]
        weights = probability[chosen]
        if self.published["norm_topk_prob"]:
            weights = weights / weights.sum()
        return self._weighted(block, token, chosen, weights)

    def _weighted(self, block: str, token: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        outputs = [self._expert(f"{block}experts.{int(at)}.", token) for at in chosen]
        return (torch.stack(outputs) * weights[:, None]).sum(0)

    def _expert(self, prefix: str, x: Tensor) -> Tensor:
        gate = self._linear(prefix + "gate_proj", x)
        up = self._linear(prefix + "up_proj", x)
        return self._linear(prefix + "down_proj", gate * gate.sigmoid() * up)


LLADA2_NAMES = {
    "model.embed_tokens": "model.word_embeddings",
    "self_attn.o_proj": "attention.dense",
    "self_attn.q_norm": "attention.query_layernorm",
    "self_attn.k_norm": "attention.key_layernorm",
}


def write_llada2(directory: Path) -> Path:
    config = stock_config(
        "llada2_moe",
        "LLaDA2MoeModelLM",
        block_size=8,
        embedding_dropout=0.0,
        first_k_dense_replace=1,
        head_dim=HEAD,
        moe_intermediate_size=EXPERT_WIDTH,
        moe_router_enable_expert_bias=True,
        n_group=4,
        norm_head=False,
        norm_topk_prob=True,
        num_experts=EXPERTS,
        num_experts_per_tok=3,
        num_shared_experts=1,
        output_dropout=0.0,
        output_router_logits=False,
        pad_token_id=1,
        partial_rotary_factor=0.5,
        routed_scaling_factor=2.5,
        router_dtype="fp32",
        score_function="sigmoid",
        topk_group=2,
        use_bias=False,
        use_qk_norm=True,
        use_qkv_bias=False,
        use_rmsnorm=True,
        use_sliding_window=False,
    )
    del config["bos_token_id"], config["eos_token_id"]
    tensors = mixture_tensors(9, dense_layers=1)
    generator = torch.Generator().manual_seed(10)
    for layer in range(LAYERS):
        attention = f"model.layers.{layer}.self_attn."
        parts = [tensors.pop(f"{attention}{part}_proj.weight") for part in "qkv"]
        tensors[f"model.layers.{layer}.attention.query_key_value.weight"] = torch.cat(parts)
    shared = {
        k: v
        for at in range(1, LAYERS)
        for k, v in expert_shapes(f"model.layers.{at}.mlp.shared_experts.", EXPERT_WIDTH).items()
    }
    tensors |= random_values(shared, 11)
    for layer in range(1, LAYERS):
        # large enough to change the choice, some so low that their scores fall below zero
        bias = torch.randn(EXPERTS, generator=generator)
        tensors[f"model.layers.{layer}.mlp.gate.expert_bias"] = bias
    named = {}
    for name, tensor in tensors.items():
        for stock, published in LLADA2_NAMES.items():
            name = name.replace(stock, published)
        named[name] = tensor
    return write(directory, config, named, SpecialTokens(**ANT))


class ReferenceLLaDA2(ReferenceMixture):
    """Groups of experts by the sum of their two best scores; sigmoid weights; one expert for all."""

    def _renamed(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        stock = {}
        sizes = [self.published_heads * HEAD, self.published_kv * HEAD, self.published_kv * HEAD]
        for name, tensor in weights.items():
            for ours, published in LLADA2_NAMES.items():
                name = name.replace(published, ours)
            if "query_key_value" in name:
                for part, rows in zip("qkv", tensor.split(sizes), strict=True):
                    stock[name.replace("attention.query_key_value", f"self_attn.{part}_proj")] = rows
            else:
                stock[name] = tensor
        return super()._renamed(stock)

    published_heads, published_kv = HEADS, 1

    def _mixture(self, block: str, token: Tensor) -> Tensor:
        config = self.published
        scores = 1 / (1 + torch.exp(-self._linear(block + "gate", token)))  # (E,)
        preference = (scores + self.weights[block + "gate.expert_bias"]).view(config["n_group"], -1)
        groups = preference.sort(descending=True).values[:, :2].sum(1).argsort(descending=True)
        for group in groups[config["topk_group"] :]:
            preference[group] = -torch.inf
        chosen = preference.flatten().argsort(descending=True)[: config["num_experts_per_tok"]]
        weights = config["routed_scaling_factor"] * scores[chosen] / scores[chosen].sum()
        routed = self._weighted(block, token, chosen, weights)
        return routed + self._expert(block + "shared_experts.", token)


# Encoders ---------------------------------------------------------------------------------------------------

BERT_TOKENS = SpecialTokens(bos="[CLS]", eos="[SEP]", eot="[unused0]", mask="[MASK]")
WINDOW = 8  # of ModernBERT's local attention: four tokens on either side


def write_encoder(directory: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """Writes an encoder; its tokenizer has BERT's roles, of which only the mask matters here."""
    write(directory, config, tensors, BERT_TOKENS)
    path = directory / "tokenizer_config.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer |= {"mask_token": "[MASK]", "sep_token": "[SEP]", "pad_token": "[unused0]"}
    del tokenizer["eos_token"]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    return directory


def write_modernbert(directory: Path) -> Path:
    layers = 4  # the first and the last see everything, as every third does
    config = {
        "architectures": ["ModernBertForMaskedLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "classifier_activation": "gelu",
        "classifier_bias": False,
        "cls_token_id": 0,
        "decoder_bias": True,
        "deterministic_flash_attn": False,
        "embedding_dropout": 0.0,
        "eos_token_id": 1,
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 160000.0,
        "hidden_activation": "gelu",
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": MLP_WIDTH,
        "layer_norm_eps": 1e-05,
        "local_attention": WINDOW,
        "local_rope_theta": 10000.0,
        "max_position_embeddings": 256,
        "mlp_bias": False,
        "mlp_dropout": 0.0,
        "model_type": "modernbert",
        "norm_bias": False,
        "norm_eps": 1e-05,
        "num_attention_heads": HEADS,
        "num_hidden_layers": layers,
        "pad_token_id": 2,
        "position_embedding_type": "absolute",
        "sep_token_id": 1,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "transformers_version": "4.57.0",
        "vocab_size": VOCABULARY,
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embeddings.tok_embeddings": (VOCABULARY, WIDTH),
        "model.embeddings.norm": (WIDTH,),
        "model.final_norm": (WIDTH,),
        "head.dense": (WIDTH, WIDTH),
        "head.norm": (WIDTH,),
    }
    for layer in range(layers):
        block = f"model.layers.{layer}."
        if layer:
            shapes[f"{block}attn_norm"] = (WIDTH,)
        shapes |= {
            f"{block}attn.Wqkv": (3 * WIDTH, WIDTH),
            f"{block}attn.Wo": (WIDTH, WIDTH),
            f"{block}mlp_norm": (WIDTH,),
            f"{block}mlp.Wi": (2 * MLP_WIDTH, WIDTH),
            f"{block}mlp.Wo": (WIDTH, MLP_WIDTH),
        }
    tensors = random_values(shapes, 12)
    tensors["decoder.bias"] = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(13))
    return write_encoder(directory, config, tensors)


class ReferenceModernBERT:
    """Pre-norm encoder with gated GELU, rotary positions, and windows in two layers of three."""

    def __init__(self, directory: Path) -> None:
        self.config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        self.weights = load_file(directory / "model.safetensors")

    def __call__(self, tokens: list[int]) -> Tensor:
        weights = self.weights
        x = self._norm("model.embeddings.norm", weights["model.embeddings.tok_embeddings.weight"][tokens])
        for layer in range(self.config["num_hidden_layers"]):
            block = f"model.layers.{layer}."
            h = self._norm(block + "attn_norm", x) if layer else x  # the embedding was normalised just now
            x = x + self._attention(block, h, everywhere=layer % 3 == 0)
            gated, gate = self._linear(block + "mlp.Wi", self._norm(block + "mlp_norm", x)).chunk(2, dim=-1)
            x = x + self._linear(block + "mlp.Wo", F.gelu(gated) * gate)
        x = self._norm("model.final_norm", x)
        x = self._norm("head.norm", F.gelu(self._linear("head.dense", x)))
        return x @ weights["model.embeddings.tok_embeddings.weight"].T + weights["decoder.bias"]

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[name + ".weight"].T

    def _norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = (centred * centred).mean(-1, keepdim=True)
        return centred / (variance + self.config["norm_eps"]).sqrt() * self.weights[name + ".weight"]

    def _attention(self, block: str, x: Tensor, everywhere: bool) -> Tensor:
        size = WIDTH // HEADS
        theta = self.config["global_rope_theta" if everywhere else "local_rope_theta"]
        angles = torch.outer(torch.arange(len(x)), theta ** (-torch.arange(0, size, 2) / size))  # (T, size/2)
        at = torch.arange(len(x))
        far = (at[:, None] - at[None]).abs() > WINDOW // 2
        queries, keys, values = self._linear(block + "attn.Wqkv", x).chunk(3, dim=-1)
        outputs = []
        for head in range(HEADS):
            own = slice(head * size, (head + 1) * size)
            q, k = (self._rotate(part[:, own], angles) for part in (queries, keys))
            scores = q @ k.T / size**0.5
            if not everywhere:
                scores = scores.masked_fill(far, -torch.inf)
            outputs.append(torch.softmax(scores, -1) @ values[:, own])
        return self._linear(block + "attn.Wo", torch.cat(outputs, -1))

    @staticmethod
    def _rotate(x: Tensor, angles: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def write_bert(directory: Path) -> Path:
    config = {
        "architectures": ["BertForMaskedLM"],
        "attention_probs_dropout_prob": 0.1,
        "gradient_checkpointing": False,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": MLP_WIDTH,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 64,
        "model_type": "bert",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "pad_token_id": 2,
        "position_embedding_type": "absolute",
        "transformers_version": "4.6.0",
        "type_vocab_size": 2,
        "use_cache": True,
        "vocab_size": VOCABULARY,
    }
    shapes: dict[str, tuple[int, ...]] = {
        "bert.embeddings.word_embeddings": (VOCABULARY, WIDTH),
        "bert.embeddings.position_embeddings": (64, WIDTH),
        "bert.embeddings.token_type_embeddings": (2, WIDTH),
        "bert.embeddings.LayerNorm": (WIDTH,),
        "cls.predictions.transform.dense": (WIDTH, WIDTH),
        "cls.predictions.transform.LayerNorm": (WIDTH,),
        "cls.seq_relationship": (2, WIDTH),
        "bert.pooler.dense": (WIDTH, WIDTH),
    }
    for layer in range(LAYERS):
        block = f"bert.encoder.layer.{layer}."
        shapes |= {f"{block}attention.self.{part}": (WIDTH, WIDTH) for part in ("query", "key", "value")}
        shapes |= {
            f"{block}attention.output.dense": (WIDTH, WIDTH),
            f"{block}attention.output.LayerNorm": (WIDTH,),
            f"{block}intermediate.dense": (MLP_WIDTH, WIDTH),
            f"{block}output.dense": (WIDTH, MLP_WIDTH),
            f"{block}output.LayerNorm": (WIDTH,),
        }
    tensors = random_values(shapes, 14)
    generator = torch.Generator().manual_seed(15)
    for name in [name for name in tensors if "embeddings." not in name or "LayerNorm" in name]:
        tensors[name.replace("weight", "bias")] = torch.randn(len(tensors[name]), generator=generator)
    tensors["cls.predictions.bias"] = torch.randn(VOCABULARY, generator=generator)
    return write_encoder(directory, config, tensors)


class ReferenceBERT:
    """Post-norm encoder with learned positions, counted from the first token."""

    def __init__(self, directory: Path) -> None:
        self.weights = load_file(directory / "model.safetensors")

    def __call__(self, tokens: list[int]) -> Tensor:
        embeddings = {
            kind: self.weights[f"bert.embeddings.{kind}_embeddings.weight"]
            for kind in ("word", "position", "token_type")
        }
        x = embeddings["word"][tokens] + embeddings["position"][: len(tokens)] + embeddings["token_type"][0]
        x = self._norm("bert.embeddings.LayerNorm", x)
        for layer in range(LAYERS):
            block = f"bert.encoder.layer.{layer}."
            mixed = self._linear(block + "attention.output.dense", self._attention(block, x))
            x = self._norm(block + "attention.output.LayerNorm", x + mixed)
            h = F.gelu(self._linear(block + "intermediate.dense", x))
            x = self._norm(block + "output.LayerNorm", x + self._linear(block + "output.dense", h))
        head = "cls.predictions."
        x = self._norm(head + "transform.LayerNorm", F.gelu(self._linear(head + "transform.dense", x)))
        return x @ embeddings["word"].T + self.weights[head + "bias"]

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[name + ".weight"].T + self.weights[name + ".bias"]

    def _norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = ((centred * centred).mean(-1, keepdim=True) + 1e-12).sqrt()
        return centred / scale * self.weights[name + ".weight"] + self.weights[name + ".bias"]

    def _attention(self, block: str, x: Tensor) -> Tensor:
        size = WIDTH // HEADS
        q, k, v = (self._linear(f"{block}attention.self.{part}", x) for part in ("query", "key", "value"))
        heads = [slice(head * size, (head + 1) * size) for head in range(HEADS)]
        return torch.cat(
            [torch.softmax(q[:, own] @ k[:, own].T / size**0.5, -1) @ v[:, own] for own in heads], -1
        )


def in_blocks(reference: type[ReferenceStock], block: int, **how: bool) -> Callable[[Path], Any]:
    return lambda directory: reference(directory, block, **how)


# By the name of the directory, which some families read.
CASES = {
    "iLLaDA-8B-Base": Case(write_illada, ReferenceLLaDA, "iLLaDA"),
    "LLaDA-MoE-7B-A1B-Base": Case(write_llada_moe, ReferenceMixture, "LLaDA-MoE"),
    "LLaDA2.0-mini": Case(write_llada2, in_blocks(ReferenceLLaDA2, 8), "LLaDA2", 8),
    "Llama-diffusion-mdlm": Case(write_a2d_llama, ReferenceStock, "A2D-Llama"),
    "Qwen2.5-diffusion-mdlm-v0.1": Case(write_a2d_qwen2, ReferenceStock, "A2D-Qwen2"),
    "Qwen3-0.6B-diffusion-mdlm-v0.1": Case(write_a2d_qwen3, ReferenceStock, "A2D-Qwen3"),
    "Qwen3-0.6B-diffusion-bd3lm-v0.1": Case(
        write_a2d_qwen3, in_blocks(ReferenceStock, 32, from_completion=True), "A2D-Qwen3", 32
    ),
    "SDAR-1.7B-Chat": Case(write_sdar, in_blocks(ReferenceStock, 4), "SDAR", 4),
    "SDAR-8B-Chat-b16": Case(write_sdar, in_blocks(ReferenceStock, 16), "SDAR", 16),
    "SDAR-30B-A3B-Chat": Case(write_sdar_moe, in_blocks(ReferenceMixture, 8), "SDAR-MoE", 8),
    "Fast_dLLM_v2_7B": Case(write_fast_dllm, in_blocks(ReferenceStock, 8, shifted=True), "Fast-dLLM-v2", 8),
    "Stable-DiffCoder-8B-Instruct": Case(
        write_stable_diffcoder, in_blocks(ReferenceStock, 4), "Stable-DiffCoder", 4
    ),
    "ModernBERT-base-chat-v0.1": Case(write_modernbert, ReferenceModernBERT, "ModernBERT-chat"),
    "bert-base": Case(write_bert, ReferenceBERT, "MaskedLM"),
}
