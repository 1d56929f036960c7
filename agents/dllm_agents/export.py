"""A policy as one file that runs without this package: wherever torch does, or wherever ONNX does."""

from __future__ import annotations

import copy
import os
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from dllm_agents.agent import LearnedPolicy, adjusted
from dllm_agents.distributions import masked_logits
from dllm_agents.networks import Observation
from dllm_gym.envs.observations import SETTINGS
from dllm_gym.files import write_atomically

SUFFIXES = (".pt2", ".onnx")
_MASKS = ("mask", "action_mask")
_PER_ROW = ("progress", *SETTINGS)
_AXES_OF_POSITIONS: dict[str, tuple[int, ...]] = {**dict.fromkeys(_PER_ROW, ()), "attention": (1, 2)}


def export_policy(policy: LearnedPolicy, path: str | Path) -> Path:
    """Writes what a policy computes as a program of ``torch.export`` or of ONNX, by the ending of the file.

    ``torch.export.load("policy.pt2").module()(observation)`` takes a dictionary of what ``policy.requires``
    names, for any B and L: ``(B, L)``, ``(B, L, k)``, ``(B, L, L)`` or ``(B, 1)`` as the environment has it,
    int8 for ``mask`` and ``action_mask``, int64 for ``predicted``, float32 for all others, on the device the
    policy was on. It returns logits ``(B, L)`` float32, with temperature, beta, caution and knobs built in:
    position k is revealed with probability sigmoid(logit), or deterministically where the logit is above 0;
    if that is nowhere, then where the logit is largest. Positions that must not be revealed have -1e8.

    ``onnxruntime.InferenceSession("policy.onnx").run(["logits"], observation)`` takes the same arrays by the
    same names and gives the same logits.

    Args:
        policy: The policy.
        path: The file, ending in ``.pt2`` or ``.onnx``.

    Returns:
        The file.

    Raises:
        ValueError: For another ending, or for a policy that draws from Dynamic Plackett-Luce, whose logits
            mean something else.
        ImportError: For ``.onnx`` without the packages of the extra ``onnx``.
    """
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise ValueError(f"an exported policy is a {' or '.join(SUFFIXES)} file, got {path}")
    if policy.decoding == "dpls":
        raise ValueError("decoding 'dpls' cannot be exported; load the policy with another decoding")
    observation = {key: _example(key, policy) for key in policy.requires}
    batch, length = torch.export.Dim("B", max=2**20), torch.export.Dim("L", max=2**20)
    shapes = {
        key: {0: batch} | dict.fromkeys(_AXES_OF_POSITIONS.get(key, (1,)), length) for key in observation
    }
    program = torch.export.export(_Decision(policy).eval(), (observation,), dynamic_shapes=(shapes,))
    write = _write_onnx if suffix == ".onnx" else torch.export.save
    return write_atomically(path, lambda temporary: write(program, os.fspath(temporary)))


def _write_onnx(program: torch.export.ExportedProgram, path: str) -> None:
    try:
        import onnxscript  # noqa: F401  (torch's exporter imports it, and says less if it is missing)
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    except ImportError as error:
        raise ImportError("ONNX needs further packages: pip install 'dllm-gym[onnx]'") from error

    names = [name.removeprefix("observation_") for name in program.graph_signature.user_inputs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch about itself
        converted = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=names, output_names=["logits"]
        )
    assert converted is not None
    ClearMetadataAndDocStringPass()(converted.model)  # where on this machine every line of code was
    converted.save(path, external_data=False)


class _Decision(nn.Module):
    """What ``LearnedPolicy`` computes before it draws."""

    def __init__(self, policy: LearnedPolicy) -> None:
        super().__init__()
        self.network = copy.deepcopy(policy.network).requires_grad_(False)  # users want numbers, not graphs
        self._knobs = policy.knobs
        self._temperature, self._beta, self._caution = policy.temperature, policy.beta, policy.caution

    def forward(self, observation: Observation) -> Tensor:
        action_mask = observation["action_mask"]
        knobs = {
            key: action_mask.new_full((action_mask.shape[0], 1), value, dtype=torch.float32)
            for key, value in self._knobs.items()
        }
        told = {**observation, **knobs}
        logits = adjusted(self.network, told, self._temperature, self._beta, self._caution)
        return masked_logits(logits, action_mask)


def _example(key: str, policy: LearnedPolicy) -> Tensor:
    """Two rows of three positions: sizes of 1 would be taken for constants."""
    config, device = policy.network.config, policy.network.output_proj.weight.device
    if key in _MASKS:
        return torch.ones(2, 3, dtype=torch.int8, device=device)
    if key == "predicted":
        return torch.ones(2, 3, dtype=torch.int64, device=device)
    widths = {"top_k": (3, config.top_k), "hidden": (3, config.hidden_width or 0), "attention": (3, 3)}
    shape = (1,) if key in _PER_ROW else widths.get(key, (3,))
    return torch.full((2, *shape), 0.5, device=device)
