"""Policies of the released code: the same logits as a plain implementation written from its tensor table."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import dllm_agents
from dllm_agents.released import read_released_policy

PREFIX = "base_policy."


def released_state(
    width: int = 128,
    heads: int = 2,
    hidden: int | None = None,
    layers: int = 1,
    confidences: int = 1,
    seed: int = 0,
    prefix: str = PREFIX,
    time_width: int | None = None,
) -> dict[str, Tensor]:
    """A state with every weight random and of its usual size, so that no two can be swapped unnoticed."""
    hidden = hidden or 4 * width
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "time_mlp.0": (width, time_width or width),
        "time_mlp.2": (width, width),
        "confidence_proj": (width, confidences),
        "final_norm": (width,),
        "output_proj": (1, width),
    }
    for layer in range(layers):
        block = f"transformer_blocks.{layer}."
        shapes |= {f"{block}{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
        shapes |= {
            f"{block}linear1": (hidden, width),
            f"{block}linear2": (width, hidden),
            f"{block}ada_conditioning": (6 * width, width),
            f"{block}norm1": (width,),
            f"{block}norm2": (width,),
        }

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    state = {f"{name}.weight": noise(*shape) / shape[-1] ** 0.5 for name, shape in shapes.items()}
    state |= {f"{name}.bias": 0.3 * noise(shape[0]) for name, shape in shapes.items()}
    state |= {f"{name}.weight": 1 + 0.3 * noise(width) for name in shapes if "norm" in name}
    state["mask_embedding.weight"] = noise(2, width)
    size = width // heads
    for layer in range(layers):
        frequencies = [10000 ** (-2 * j / size) for j in range(size // 2)]
        state[f"transformer_blocks.{layer}.inv_freq"] = torch.tensor(frequencies)
    return {prefix + name: tensor for name, tensor in state.items()}


class ReleasedPolicy:
    """The forward of the table, in float64 but for the embedding of time, one row and one head at a time."""

    def __init__(self, state: dict[str, Tensor], period: float = 1.0, rounded: bool = True) -> None:
        bare = {re.sub(r"^(module\.|_orig_mod\.|base_policy\.)*", "", name): name for name in state}
        self.state = {name: state[whole].double() for name, whole in bare.items()}
        self.period = period
        self.rounded = rounded

    def __call__(self, mask: Tensor, confidence: Tensor, progress: Tensor) -> Tensor:
        """Logits ``(B, L)`` of ``(B, L)``, ``(B, L, top_p)`` and ``(B, 1)``."""
        return torch.stack(
            [self.row(m.long(), c.double(), t) for m, c, t in zip(mask, confidence, progress, strict=True)]
        )

    def row(self, mask: Tensor, confidence: Tensor, t: Tensor) -> Tensor:
        x = self.linear("confidence_proj", confidence)  # (L, D)
        condition = self.state["mask_embedding.weight"][mask] + self.time(t)
        layers = sum(name.endswith("inv_freq") for name in self.state)
        for layer in range(layers):
            block = f"transformer_blocks.{layer}."
            modulation = self.linear(block + "ada_conditioning", condition)
            scale1, shift1, gate1, scale2, shift2, gate2 = modulation.chunk(6, dim=-1)
            x = x + (1 + gate1) * self.attention(block, self.norm(block + "norm1", x) * (1 + scale1) + shift1)
            x = x + (1 + gate2) * self.ffn(block, self.norm(block + "norm2", x) * (1 + scale2) + shift2)
        return self.linear("output_proj", self.norm("final_norm", x))[:, 0]

    def time(self, t: Tensor) -> Tensor:
        half = self.state["time_mlp.0.weight"].shape[1] // 2
        angles = t.float() * torch.tensor([self.period ** (-j / half) for j in range(half)])
        embedding = torch.cat([torch.cos(angles), torch.sin(angles)])
        if self.rounded:
            embedding = embedding.to(torch.bfloat16)
        h = self.linear("time_mlp.0", embedding.double())
        return self.linear("time_mlp.2", h / (1 + torch.exp(-h)))

    def attention(self, block: str, x: Tensor) -> Tensor:
        frequencies = self.state[block + "inv_freq"]
        size = 2 * len(frequencies)
        q, k, v = (self.linear(f"{block}{name}_proj", x) for name in "qkv")
        outputs = []
        for start in range(0, x.shape[1], size):
            own = slice(start, start + size)
            scores = rotate(q[:, own], frequencies) @ rotate(k[:, own], frequencies).T / math.sqrt(size)
            weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
            outputs.append(weights @ v[:, own])
        return self.linear(block + "out_proj", torch.cat(outputs, dim=-1))

    def ffn(self, block: str, x: Tensor) -> Tensor:
        h = self.linear(block + "linear1", x)
        return self.linear(block + "linear2", h * 0.5 * (1 + torch.erf(h / math.sqrt(2))))

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[name + ".weight"].T + self.state[name + ".bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5)
        return scaled * self.state[name + ".weight"] + self.state[name + ".bias"]


def rotate(x: Tensor, frequencies: Tensor) -> Tensor:
    """Turns the pair (2j, 2j + 1) at position p by the angle p * frequencies[j]."""
    turned = torch.empty_like(x)
    for j, frequency in enumerate(frequencies):
        angles = frequency * torch.arange(len(x))
        a, b = x[:, 2 * j], x[:, 2 * j + 1]
        turned[:, 2 * j] = a * angles.cos() - b * angles.sin()
        turned[:, 2 * j + 1] = a * angles.sin() + b * angles.cos()
    return turned


def inputs(length: int, confidences: int = 1, batch: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(batch, length, generator=generator) < 0.6).to(torch.int8)
    confidence = torch.rand(batch, length, confidences, generator=generator).sort(-1, descending=True).values
    steps = torch.randint(0, length + 1, (batch, 1), generator=generator)
    return mask, confidence, steps / length


def write(state, path):
    save_file(state, path, metadata={"format": "pt"})
    return path


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("released") / "model.safetensors"


def test_the_papers_policy(scratch):
    state = released_state()
    buffers = sum(tensor.numel() for name, tensor in state.items() if "inv_freq" in name)
    assert sum(tensor.numel() for tensor in state.values()) - buffers == 331_265
    policy = dllm_agents.load_policy(write(state, scratch), format="ml-rl-dllm")
    network = policy.network
    assert network.num_parameters == 331_265
    assert (network.config.width, network.config.heads, network.config.mlp_width) == (128, 2, 512)
    assert policy.requires == ("confidence", "mask", "progress", "action_mask")
    assert not network.training
    mask, confidence, progress = inputs(64)
    logits = network({"mask": mask, "confidence": confidence[..., 0], "progress": progress})
    expected = ReleasedPolicy(state)(mask, confidence, progress)
    assert expected.std() > 0.3  # so that 1e-5 says something
    torch.testing.assert_close(logits.double(), expected, atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_logits_of_any_size(scratch, data):
    heads, pairs = data.draw(st.integers(1, 3), "heads"), data.draw(st.integers(2, 4), "pairs")
    confidences = data.draw(st.sampled_from([1, 2, 5]), "confidences")
    state = released_state(
        width=2 * pairs * heads,
        heads=heads,
        hidden=data.draw(st.integers(1, 20), "hidden"),
        layers=data.draw(st.integers(1, 3), "layers"),
        confidences=confidences,
        seed=data.draw(st.integers(0, 999), "seed"),
        prefix=data.draw(st.sampled_from(["", PREFIX, f"module.{PREFIX}", f"{PREFIX}module."]), "prefix"),
        time_width=data.draw(st.sampled_from([None, 2, 10, 64]), "time_width"),
    )
    period = data.draw(st.sampled_from([1.0, 0.01, 100.0]), "period")
    length = data.draw(st.integers(1, 20), "length")
    network = dllm_agents.load_policy(write(state, scratch), format="ml-rl-dllm", time_period=period).network
    mask, confidence, progress = inputs(length, confidences)
    observation = {"mask": mask, "progress": progress}
    observation |= {"confidence": confidence[..., 0]} if confidences == 1 else {"top_k": confidence}
    assert set(network.config.requires) == set(observation)
    # a sinusoid between two bfloat16 numbers falls to either, by float32's last bit: compared before that
    network.time_embedding.rounded = False
    expected = ReleasedPolicy(state, period, rounded=False)(mask, confidence, progress)
    # the reference is in float64; norms over few channels magnify float32's rounding
    torch.testing.assert_close(network(observation).double(), expected, atol=2e-4, rtol=1e-3)


def test_the_released_codes_default_is_a_wider_time(scratch, tmp_path):
    """256 sinusoids beside a width of 128; and what is loaded can be saved and loaded again."""
    state = released_state(time_width=256)
    policy = dllm_agents.load_policy(write(state, scratch), format="ml-rl-dllm", time_period=0.01)
    assert (policy.network.config.width, policy.network.config.time_width) == (128, 256)
    again = dllm_agents.load_policy(dllm_agents.save_policy(tmp_path / "ours", policy.network)).network
    mask, confidence, progress = inputs(64)
    observation = {"mask": mask, "confidence": confidence[..., 0], "progress": progress}
    logits = policy.network(observation)
    assert torch.equal(again(observation), logits)
    for network in (policy.network, again):
        network.time_embedding.rounded = False
    expected = ReleasedPolicy(state, 0.01, rounded=False)(mask, confidence, progress)
    torch.testing.assert_close(again(observation).double(), expected, atol=1e-5, rtol=0)
    narrow = ReleasedPolicy(released_state(), 0.01, rounded=False)(mask, confidence, progress)
    assert (narrow - expected).abs().max() > 1e-2


@pytest.mark.parametrize(
    "prefix", ["module.", "module.base_policy.", "_orig_mod.base_policy.", "module.module."]
)
def test_wrappers_leave_their_names(scratch, prefix):
    mask, confidence, progress = inputs(9)
    observation = {"mask": mask, "confidence": confidence[..., 0], "progress": progress}
    plain, wrapped = (
        read_released_policy(write(released_state(width=16, prefix=p), scratch))(observation)
        for p in (PREFIX, prefix)
    )
    assert torch.equal(plain, wrapped)


def test_a_policy_in_parts(tmp_path):
    state = released_state(width=16)
    whole = read_released_policy(write(state, tmp_path / "whole.safetensors"))
    where = {}
    for part in (0, 1):
        names = sorted(state)[part::2]
        write({name: state[name] for name in names}, tmp_path / f"model-0000{part}-of-00002.safetensors")
        where |= dict.fromkeys(names, f"model-0000{part}-of-00002.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    parts = read_released_policy(tmp_path)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name])
    index.write_text(json.dumps({"metadata": {}, "weight_map": {**where, "x": "../whole.safetensors"}}))
    with pytest.raises(
        ValueError, match=r"names the file '\.\./whole\.safetensors'; only \*\.safetensors beside"
    ):
        read_released_policy(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    with pytest.raises(FileNotFoundError, match=r"model-00001-of-00002\.safetensors is missing"):
        read_released_policy(tmp_path)


def test_what_is_there_instead_is_said(tmp_path):
    for number in (9200, 500):
        (tmp_path / f"checkpoint-{number}").mkdir()
        write(released_state(width=16), tmp_path / f"checkpoint-{number}" / "model.safetensors")
    said = r"model\.safetensors is missing; give one of .*: checkpoint-500, checkpoint-9200$"
    with pytest.raises(FileNotFoundError, match=said):
        dllm_agents.load_policy(tmp_path, format="ml-rl-dllm")
    (tmp_path / "checkpoint-500" / "model.safetensors").rename(
        tmp_path / "checkpoint-500" / "pytorch_model.bin"
    )
    said = r"missing; pickles are not looked at, save them as safetensors .*: pytorch_model\.bin$"
    with pytest.raises(FileNotFoundError, match=said):
        dllm_agents.load_policy(tmp_path / "checkpoint-500", format="ml-rl-dllm")
    write({}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors holds no tensors"):
        dllm_agents.load_policy(tmp_path, format="ml-rl-dllm")


def test_time_is_rounded(scratch):
    """Without it the logits would be others: the option of the network is what makes them equal."""
    state = released_state(width=16)
    network = read_released_policy(write(state, scratch))
    mask, confidence, progress = inputs(20)
    observation = {"mask": mask, "confidence": confidence[..., 0], "progress": progress}
    rounded = network(observation)
    assert network.config.round_time
    assert network.config.time_period == 1.0
    network.time_embedding.rounded = False
    assert (network(observation) - rounded).abs().max() > 1e-4


def test_directories_and_what_becomes_of_a_policy(scratch, tmp_path):
    """An imported policy acts, and is saved and loaded like one of ours."""
    write(released_state(width=16), scratch)
    policy = dllm_agents.load_policy(
        scratch.parent, format="ml-rl-dllm", decoding="deterministic", name="them"
    )
    assert policy.label == "them (deterministic)"
    rng = np.random.default_rng(0)
    mask = (rng.random((4, 12)) < 0.7).astype(np.int8)
    observation = {
        "mask": mask,
        "action_mask": mask,
        "confidence": rng.random((4, 12), dtype=np.float32),
        "progress": rng.random((4, 1), dtype=np.float32),
    }
    actions = policy.act(observation)
    assert (actions.sum(1) >= 1).all()
    ours = dllm_agents.load_policy(
        dllm_agents.save_policy(tmp_path / "ours", policy.network), decoding="deterministic"
    )
    assert ours.network.config == policy.network.config
    assert np.array_equal(ours.act(observation), actions)


def test_half_precision_files(scratch):
    state = {name: tensor.to(torch.bfloat16) for name, tensor in released_state(width=16).items()}
    network = read_released_policy(write(state, scratch))
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    mask, confidence, progress = inputs(9)
    logits = network({"mask": mask, "confidence": confidence[..., 0], "progress": progress})
    state |= {name: tensor for name, tensor in released_state(width=16).items() if "inv_freq" in name}
    expected = ReleasedPolicy(state)(
        mask, confidence, progress
    )  # computed angles are better than stored ones
    torch.testing.assert_close(logits.double(), expected, atol=1e-5, rtol=1e-5)


BLOCK = "base_policy.transformer_blocks.0."


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("base_policy.final_norm.bias", None, r"missing \['final_norm.bias'\], unexpected \[\]"),
        ("base_policy.confidence_proj.weight", None, "dit_confidence: missing 'confidence_proj.weight'"),
        (f"{BLOCK}inv_freq", None, "missing 'transformer_blocks.0.inv_freq'"),
        (f"{BLOCK}k_proj.bias", None, r"missing \['transformer_blocks.0.k_proj.bias'\]"),
        ("base_policy.stop_logit", torch.zeros(1), r"unexpected \['stop_logit'\]"),
        (
            "value.weight",
            torch.zeros(1),
            r"no policy of type dit_confidence: missing",
        ),  # only some are prefixed
        (
            f"{BLOCK.replace('0', '2')}norm1.weight",
            torch.ones(16),
            r"unexpected \['transformer_blocks.2.norm1",
        ),
        (
            "base_policy.output_proj.weight",
            torch.ones(16),
            r"'output_proj.weight' has shape \(16,\), expected",
        ),
        ("base_policy.time_mlp.0.weight", torch.ones(8, 32), r"\(8, 32\), expected \(16, 32\)"),
        ("base_policy.time_mlp.0.weight", torch.ones(16, 31), "time_width must be even .* got 31"),
        ("base_policy.time_mlp.0.weight", torch.ones(16), r"shape \(16,\), expected \(16, 16\)"),
        ("base_policy.time_mlp.0.weight", None, r"missing \['time_mlp.0.weight'\]"),
        (
            f"{BLOCK}v_proj.weight",
            torch.ones(8, 16),
            r"v_proj.weight' has shape \(8, 16\), expected \(16, 16\)",
        ),
        (f"{BLOCK}inv_freq", torch.ones(3), "inv_freq is of heads of width 6, the width is 16"),
        (f"{BLOCK}inv_freq", torch.ones(4), r"rotary frequencies 10000 \*\* \(-2j / 8\)"),
        (f"{BLOCK}inv_freq", torch.ones(4, 1), r"inv_freq' has shape \(4, 1\), expected 1 dim"),
        (f"{BLOCK}inv_freq", torch.ones(0), r"inv_freq' has shape \(0,\), expected 1 dim"),
        ("base_policy.confidence_proj.weight", torch.ones(16), r"has shape \(16,\), expected 2 dim"),
        (f"{BLOCK}linear1.bias", torch.full((64,), torch.nan), "linear1.bias' holds NaN or infinite"),
        (f"{BLOCK}inv_freq", torch.full((4,), torch.inf), "inv_freq' holds NaN or infinite"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, name, tensor, message):
    state = released_state(width=16)
    state[name] = tensor
    write({key: value for key, value in state.items() if value is not None}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        dllm_agents.load_policy(tmp_path, format="ml-rl-dllm")


def test_files_and_formats(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        dllm_agents.load_policy(tmp_path, format="ml-rl-dllm")
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="not a safetensors file"):
        dllm_agents.load_policy(tmp_path, format="ml-rl-dllm")
    with pytest.raises(ValueError, match="unknown format 'sb3'; known: dllm_agents, ml-rl-dllm"):
        dllm_agents.load_policy(tmp_path, format="sb3")
    with pytest.raises(ValueError, match=r"time_period 1.0 is for format='ml-rl-dllm'"):
        dllm_agents.load_policy(tmp_path, time_period=1.0)
    path = write(released_state(width=16), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"time_period must be positive and finite, got 0"):
        dllm_agents.load_policy(path, format="ml-rl-dllm", time_period=0.0)
