"""The fast forward of small dLLMs on CPUs: few passes over memory, compiled ahead of time.

In a small model the time goes into passes over activations, not into products of matrices. Here projections
of the same input are one product, norms' weights are part of them, the last layer computes only what is asked
for, and torch's compiler fuses everything between products. It is compiled once for all numbers of rows and
columns, kept on disk, and loaded in a second from then on.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dllm_gym.files import write_bytes

# hidden size up to which compiling pays: beyond, products dominate, and they are as fast without
LARGEST = 512
# model types with Llama's layers: root mean square norms, rotary embedding by halves, a gated SiLU
_LLAMA_LIKE = ("llama", "qwen2")

_log = logging.getLogger(__name__)


def can_compile(model: Any) -> str | None:
    """Why the fast forward does not serve a transformers model; ``None`` where it does."""
    config, device = model.config, model.device
    if device.type != "cpu":
        return f"it is for CPUs, the model is on {device}"
    if config.model_type not in _LLAMA_LIKE:
        return f"it is for {' and '.join(_LLAMA_LIKE)} layers, the model's are {config.model_type}"
    if config.hidden_size > LARGEST:
        return f"it is for hidden sizes up to {LARGEST}, the model's is {config.hidden_size}"
    rotary = model.base_model.rotary_emb
    if getattr(rotary, "rope_type", "default") != "default" or rotary.attention_scaling != 1:
        return f"it is for plain rotary embedding, the model's is {rotary.rope_type}"
    if config.hidden_act != "silu":
        return f"it is for silu, the model has {config.hidden_act}"
    if getattr(config, "use_sliding_window", False):
        return "it is for attention without a window"
    if shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
        return "there is no C++ compiler (g++ or clang++) on this machine"
    return None


class FastForward(nn.Module):
    """The forward of a Llama-like model, in all directions, with few passes over memory.

    Args:
        model: The transformers model; its weights are copied.
        showing: The numbers of the layers whose attention is shown.
    """

    def __init__(self, model: Any, showing: Sequence[int] = ()) -> None:
        super().__init__()
        config, base = model.config, model.base_model
        self.showing = tuple(showing)
        self.heads, self.groups = (
            config.num_key_value_heads,
            (config.num_attention_heads // config.num_key_value_heads),
        )
        self.head_width = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        self.epsilon: float = config.rms_norm_eps
        self.embedding = base.embed_tokens.weight.detach().clone()  # (V, D)
        self.frequencies = base.rotary_emb.inv_freq.detach().float()  # (d / 2,)
        self.layers = [self._packed(layer) for layer in base.layers]
        self.norm = base.norm.weight.detach().clone()
        head = model.get_output_embeddings()
        self.head = head.weight.detach().t().contiguous()  # (D, V)
        self.head_bias = None if head.bias is None else head.bias.detach().clone()

    def _packed(self, layer: Any) -> dict[str, Tensor]:
        """A layer's weights, transposed: queries, keys and values in one; gate and up in one."""
        attention, mlp = layer.self_attn, layer.mlp
        scale = self.head_width**-0.5
        projections = ((attention.q_proj, scale), (attention.k_proj, 1.0), (attention.v_proj, 1.0))
        weights = [projection.weight.float() * factor for projection, factor in projections]
        packed = {
            "qkv": torch.cat(weights) * layer.input_layernorm.weight.float(),
            "out": attention.o_proj.weight,
            "gate_up": torch.cat([mlp.gate_proj.weight.float(), mlp.up_proj.weight.float()])
            * layer.post_attention_layernorm.weight.float(),
            "down": mlp.down_proj.weight,
        }
        packed = {
            name: weight.detach().to(self.embedding.dtype).t().contiguous() for name, weight in packed.items()
        }
        if attention.q_proj.bias is not None:
            biases = [projection.bias.float() * factor for projection, factor in projections]
            packed["qkv_bias"] = torch.cat(biases).detach().to(self.embedding.dtype)
        return packed

    def forward(self, tokens: Tensor, attention_mask: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        """Logits ``(B, K, V)`` and the hidden states ``(B, K, D)`` they are made of.

        Where layers are ``showing``, also their attention: ``(B, K, T)`` float32, the mean over them and all
        heads.

        Args:
            tokens: ``(B, T)`` int64.
            attention_mask: ``(B, T)`` int64, 0 at padding.
            rows: ``(B, K)`` int64, the columns whose output is wanted.
        """
        x = F.embedding(tokens, self.embedding)  # (B, T, D)
        length, dtype = tokens.shape[1], x.dtype
        hidden = torch.where(attention_mask[:, None, None, :] != 0, 0.0, torch.finfo(torch.float32).min)
        hidden = hidden.to(dtype)  # (B, 1, 1, T), to be added to scores
        # counted back from the end, where all rows are aligned: independent of the neighbours' lengths
        angles = torch.outer(torch.arange(-length, 0, dtype=torch.float32), self.frequencies)  # (T, d / 2)
        cos, sin = angles.cos(), angles.sin()
        shown = []
        for number, layer in enumerate(self.layers):
            last = number == len(self.layers) - 1
            x, weights = self._attend(x, layer, hidden, cos, sin, rows if last else None)
            if number in self.showing:
                mean = weights.mean(1, dtype=torch.float32)  # (B, K or T, T)
                shown.append(mean if last else mean.gather(1, rows[..., None].expand(-1, -1, length)))
            gate, up = _product(self._normed(x), layer["gate_up"]).chunk(2, dim=-1)
            x = x + _product(F.silu(gate) * up, layer["down"])
        state = self._normed(x) * self.norm  # (B, K, D)
        outputs = _product(state, self.head, self.head_bias), state
        return (*outputs, torch.stack(shown).mean(0)) if shown else outputs

    def _attend(
        self,
        x: Tensor,
        layer: dict[str, Tensor],
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        rows: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        batch, length, width = x.shape
        qkv = _product(self._normed(x), layer["qkv"], layer.get("qkv_bias"))
        qkv = qkv.view(batch, length, -1, self.head_width).transpose(1, 2)  # (B, all heads, T, d)
        queries = self.heads * self.groups
        q, k, v = torch.split(qkv, [queries, self.heads, self.heads], dim=1)
        q, k = _turned(q, cos, sin), _turned(k, cos, sin)
        if rows is not None:
            q = q.gather(2, rows[:, None, :, None].expand(-1, queries, -1, self.head_width))
            x = x.gather(1, rows[..., None].expand(-1, -1, width))
        if self.groups > 1:
            k, v = (z.repeat_interleave(self.groups, dim=1) for z in (k, v))
        weights = torch.softmax(q @ k.transpose(2, 3) + hidden, dim=-1)  # (B, H, K or T, T)
        attended = (weights @ v).transpose(1, 2).reshape(batch, x.shape[1], -1)
        return x + _product(attended, layer["out"]), weights

    def _normed(self, x: Tensor) -> Tensor:
        """Divided by the root mean square of the last dimension, computed in float32."""
        y = x.float()
        return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.epsilon)).to(x.dtype)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``(B, T, D)`` times ``(D, E)``, as one product of matrices."""
    flat = x.reshape(-1, x.shape[-1])
    y = flat @ weight if bias is None else torch.addmm(bias, flat, weight)
    return y.view(*x.shape[:-1], weight.shape[1])


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding by halves of ``(B, H, T, d)``, computed in float32."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


class CompiledForward:
    """A ``FastForward`` that was compiled, from its file.

    Args:
        path: Of the file, which is this user's own: it holds machine code.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._run = torch._inductor.aoti_load_package(str(path))

    def __call__(self, tokens: Tensor, attention_mask: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        """See ``FastForward.forward``."""
        return tuple(self._run(tokens, attention_mask, rows.contiguous()))

    def __reduce__(self) -> tuple[Any, ...]:
        return CompiledForward, (self.path,)


def compiled_forward(model: Any, name: str, showing: Sequence[int] = ()) -> CompiledForward | None:
    """The fast forward of a model, compiled now or before; ``None``, and a line in the log, if there is none.

    Args:
        model: A transformers model.
        name: Of the dLLM, for the status line.
        showing: See ``FastForward``.
    """
    reason = can_compile(model)
    if reason is not None:
        _log.info("%s is computed without the fast forward: %s", name, reason)
        return None
    with torch.no_grad():
        fast = FastForward(model, showing).eval()
    path = _folder() / f"{_key(fast)}.pt2"
    try:
        if not path.is_file():
            _compile(fast, path, name)
        return CompiledForward(path)
    except Exception as error:  # whatever a compiler or an old machine may have: it works without
        _log.warning("%s is computed without the fast forward: %s", name, str(error).partition("\n")[0])
        return None


def _folder() -> Path:
    """Where compiled code is kept: ``DLLM_GYM_CACHE``, or the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("DLLM_GYM_CACHE") or Path(home) / "dllm_gym") / "compiled"


def _key(fast: FastForward) -> str:
    """What the compiled code depends on: weights, this file, torch, and the processor."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    facts = (torch.__version__, torch.backends.cpu.get_cpu_capability(), sys.platform, fast.embedding.dtype)
    digest.update(
        repr((*facts, fast.heads, fast.groups, fast.head_width, fast.epsilon, fast.showing)).encode()
    )
    tensors = [fast.embedding, fast.frequencies, *(t for layer in fast.layers for t in layer.values())]
    bias = [] if fast.head_bias is None else [fast.head_bias]
    for tensor in (*tensors, fast.norm, fast.head, *bias):
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def _compile(fast: FastForward, path: Path, name: str) -> None:
    """Compiles for all numbers of rows and columns, and writes the file; says so, for it takes a while."""
    from filelock import FileLock
    from torch.export import Dim, export

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if path.is_file():  # another process was faster
            return
        print(
            f"compiling the forward of {name}, once for this machine ...", end="", file=sys.stderr, flush=True
        )
        started = time.monotonic()
        example = (
            torch.zeros(4, 12, dtype=torch.int64),
            torch.ones(4, 12, dtype=torch.int64),
            torch.arange(8).repeat(4, 1),
        )
        batch, length, wanted = Dim("batch", min=1), Dim("length", min=2), Dim("wanted", min=1)
        shapes = ({0: batch, 1: length}, {0: batch, 1: length}, {0: batch, 1: wanted})
        unfinished = path.with_suffix(f".{os.getpid()}.pt2")
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's own, of what it will do differently one day
                program = export(fast, example, dynamic_shapes=shapes)
                torch._inductor.aoti_compile_and_package(
                    program,
                    package_path=str(unfinished),
                    # threads are counted when it runs
                    inductor_configs={"cpp.dynamic_threads": True},
                )
            write_bytes(path, unfinished.read_bytes())
        finally:
            unfinished.unlink(missing_ok=True)
            print(f" {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
