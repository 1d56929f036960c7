"""The weights that are trained: all of a dLLM's, or adapters; where they began, and how they are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def trained_parameters(model: Any, lora: Mapping[str, Any] | None, seed: int) -> dict[str, Any]:
    """Chooses what is trained of a transformers model, in place; the parameters by their names.

    Args:
        model: Frozen, as a backend has it.
        lora: Arguments of peft's ``LoraConfig``; ``None``: all.
        seed: Of the adapters' first weights.

    Raises:
        ImportError: If adapters are asked for and peft is not installed.
        ValueError: For arguments that peft does not take, or a model without the modules they name.
    """
    if lora is None:
        model.requires_grad_(True)
    else:
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise ImportError("lora needs peft: pip install 'dllm-gym[lora]'") from error
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(LoraConfig(**lora), model)
        except (TypeError, ValueError) as error:
            raise ValueError(f"lora does not fit: {error}") from error
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def merged_state(model: Any) -> dict[str, Tensor]:
    """The state dict of a model without adapters that computes what this one does, which stays as it is."""
    deltas = {
        f"{name}.base_layer.weight": module.get_delta_weight
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    merged = {}
    for name, tensor in model.state_dict().items():
        if ".lora_" in name:
            continue
        if name in deltas:
            tensor = (tensor.float() + deltas[name]("default").float()).to(tensor.dtype)
        merged[name.replace(".base_layer.", ".")] = tensor
    return merged


class Reference:
    """Where the weights were when training began, and to compute with them.

    Args:
        parameters: What is trained, by name.
    """

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self._parameters = parameters
        self.tensors = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model has these weights; no copy of the model is needed."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.data, self.tensors[name] = self.tensors[name], parameter.data

    def approach(self, share: float = 0.6) -> None:
        """Moves towards the weights as they are: the synchronisation of TRL, with its share."""
        for name, parameter in self._parameters.items():
            self.tensors[name].lerp_(parameter.detach(), share)
