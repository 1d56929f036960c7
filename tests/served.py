"""SGLang and dInfer as far as a decoding algorithm sees them.

What is called ``published`` is written from what these call and hand over: sglang 0.5.23
(``srt/dllm/algorithm/base.py``) and inclusionAI/dInfer at fce4e32804103baa5d55230dff0352da0cdd6ceb
(``python/dinfer/decoding/generate_uniform.py``). ``checkout`` is their own code: ``DLLM_GYM_SGLANG`` and
``DLLM_GYM_DINFER`` say in which folder the packages ``sglang`` and ``dinfer`` lie. Only what drives an
algorithm is run; what it imports for the sake of names alone (the model runner, the server's arguments) is
left out.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch


def checkout(variable: str) -> Path:
    if variable not in os.environ:
        pytest.skip(f"{variable} does not say where the published code is")
    return Path(os.environ[variable])


def install(patch: pytest.MonkeyPatch, name: str, path: Path | None = None, **content: Any) -> ModuleType:
    """A module or, with a path, a package of that name."""
    module = ModuleType(name)
    if path is not None:
        module.__path__ = [str(path)]
    vars(module).update(content)
    patch.setitem(sys.modules, name, module)
    return module


def forget(patch: pytest.MonkeyPatch, package: str) -> None:
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        patch.delitem(sys.modules, name)


class DllmAlgorithm:
    """The base class: it owns the loops and asks ``step`` after every forward."""

    def __init__(self, config: Any) -> None:
        self.block_size, self.mask_id = config.block_size, config.mask_id
        self.fdfo = config.first_done_first_out_mode

    def max_steps(self, block_size: int) -> int:
        return block_size + 1

    def run(self, model_runner: Any, forward_batch: Any, algo_states: Any = None) -> Any:
        batch = forward_batch.batch_size
        blocks = forward_batch.input_ids.view(batch, self.block_size)
        if self.fdfo:  # one step per call; what is not done comes again with its state
            fresh = self.init_step_state(forward_batch)
            states = [new if old is None else old for new, old in zip(fresh, algo_states, strict=True)]
            out = model_runner.forward(forward_batch, pp_proxy_tensors=None)
            done = self.step(forward_batch, out.logits_output.full_logits, states)
            lengths = [self.block_size * int(one) for one in done]
            kept = [None if one else state for one, state in zip(done, states, strict=True)]
            return out.logits_output, blocks.tolist(), lengths, kept, out.can_run_graph
        begins = (blocks != self.mask_id).sum(dim=1).tolist()
        states = self.init_step_state(forward_batch)
        out = model_runner.forward(forward_batch, pp_proxy_tensors=None)
        for _ in range(self.max_steps(self.block_size)):
            if all(self.step(forward_batch, out.logits_output.full_logits, states)):
                break
            out = model_runner.forward(forward_batch, pp_proxy_tensors=None)
        written = [row[begin:] for row, begin in zip(blocks, begins, strict=True)]
        return out.logits_output, written, None, None, out.can_run_graph


def published_sglang(patch: pytest.MonkeyPatch, _: Path) -> Any:
    """``make(algorithm_config, block_size, mask_id, fdfo)``: the algorithm as SGLang makes it."""
    for name in ("sglang", "sglang.srt", "sglang.srt.dllm", "sglang.srt.dllm.algorithm"):
        install(patch, name, Path("nowhere"))
    install(patch, "sglang.srt.dllm.algorithm.base", DllmAlgorithm=DllmAlgorithm)
    forget(patch, "dllm_agents.serving.sglang")
    module = importlib.import_module("dllm_agents.serving.sglang")

    def make(algorithm_config: dict[str, Any], block_size: int, mask_id: int, fdfo: bool = False) -> Any:
        config = SimpleNamespace(
            algorithm_config=algorithm_config,
            block_size=block_size,
            mask_id=mask_id,
            first_done_first_out_mode=fdfo,
        )
        return module.Algorithm(config)

    return make


def checkout_sglang(patch: pytest.MonkeyPatch, scratch: Path) -> Any:
    """The same from SGLang's own registry, into which a file of one line has put the algorithm."""
    source = checkout("DLLM_GYM_SGLANG") / "sglang" / "srt" / "dllm"
    shutil.copytree(source, scratch / "dllm")
    line = "from dllm_agents.serving.sglang import Algorithm\n"
    (scratch / "dllm" / "algorithm" / "unmasking_policy.py").write_text(line)
    for name in (
        *("sglang", "sglang.srt", "sglang.srt.arg_groups", "sglang.srt.configs", "sglang.srt.layers"),
        *("sglang.srt.model_executor", "sglang.srt.managers"),
    ):
        install(patch, name, Path("nowhere"))
    install(patch, "sglang.srt.dllm", scratch / "dllm")
    for name, content in {
        "arg_groups.overrides": "resolving_view",
        "configs.model_config": "ModelConfig",
        "layers.logits_processor": "LogitsProcessorOutput",
        "model_executor.forward_batch_info": "ForwardBatch",
        "model_executor.model_runner": "ModelRunner",
        "server_args": "ServerArgs",
    }.items():
        install(patch, f"sglang.srt.{name}", **{content: object})
    install(patch, "sglang.srt.utils", is_npu=lambda: False)
    forget(patch, "dllm_agents.serving.sglang")
    algorithms = importlib.import_module("sglang.srt.dllm.algorithm")
    config = importlib.import_module("sglang.srt.dllm.config")

    def make(algorithm_config: dict[str, Any], block_size: int, mask_id: int, fdfo: bool = False) -> Any:
        options = {"max_running_requests": 4, "first_done_first_out_mode": fdfo}
        return algorithms.get_algorithm(
            config.DllmConfig("UnmaskingPolicy", algorithm_config, block_size, mask_id, **options)
        )

    return make


class TokenArray:
    """Prompts ``(B, P)`` and as many masks as are to be written, to be read and written like a tensor."""

    def __init__(self, prompt: torch.Tensor, length: int, mask_id: int) -> None:
        self.data = torch.cat([prompt, torch.full((len(prompt), length), mask_id)], dim=1)

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.data[index]

    def __setitem__(self, index: Any, values: torch.Tensor) -> None:
        self.data[index] = values


class ParallelDecoder:
    """The base class."""

    def __init__(self, temperature: float, remasking: str = "low_confidence", mask_id: int = 126336) -> None:
        self.temperature, self.remasking, self.mask_id = temperature, remasking, mask_id


def published_dinfer(patch: pytest.MonkeyPatch, _: Path) -> Any:
    """``generate(model, decoder, prompt, length, block_length)`` and the class of the decoder."""
    for name in ("dinfer", "dinfer.decoding"):
        install(patch, name, Path("nowhere"))
    install(patch, "dinfer.decoding.parallel_strategy", ParallelDecoder=ParallelDecoder)
    forget(patch, "dllm_agents.serving.dinfer")
    module = importlib.import_module("dllm_agents.serving.dinfer")

    def generate(model: Any, decoder: Any, prompt: torch.Tensor, length: int, block_length: int) -> Any:
        x = TokenArray(prompt, length, decoder.mask_id)
        for number, start in enumerate(range(prompt.shape[1], x.data.shape[1], block_length)):
            end = start + block_length
            block = x[:, start:end]  # a view: whether it is done is read off it
            decoder.block_init(block, number)
            while (masks := int((block == decoder.mask_id).sum())) > 0:
                for _ in range(max(min(masks // 8, 4), 1)):  # up to four forwards between two looks
                    decoder.decode(model(x.data).logits[:, start:end], start, end, x)
        return x.data

    return SimpleNamespace(generate=generate, Decoder=module.PolicyDecoder)


def checkout_dinfer(patch: pytest.MonkeyPatch, _: Path) -> Any:
    """The same with dInfer's own ``BlockWiseDiffusionLLM``."""
    source = checkout("DLLM_GYM_DINFER") / "dinfer"
    install(patch, "dinfer", source)
    install(patch, "dinfer.decoding", source / "decoding")
    forget(patch, "dllm_agents.serving.dinfer")
    module = importlib.import_module("dllm_agents.serving.dinfer")
    loops = importlib.import_module("dinfer.decoding.generate_uniform")
    utils = importlib.import_module("dinfer.decoding.utils")

    def generate(model: Any, decoder: Any, prompt: torch.Tensor, length: int, block_length: int) -> Any:
        dllm = loops.BlockWiseDiffusionLLM(model, decoder, utils.BlockIteratorFactory(), early_stop=False)
        return dllm.generate(prompt, gen_length=length, block_length=block_length)

    return SimpleNamespace(generate=generate, Decoder=module.PolicyDecoder)
