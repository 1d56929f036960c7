"""The loops that publish a rule of their own, from their repositories.

They write one completion at a time. What a loop asks of its own model class beyond logits, an adapter gives
it from the transformers model; what it thereby does not get as published is said there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.adapters import Answering, believe, driven
from benchmarks.peers.canvases import LENGTH, Case, Loop
from benchmarks.peers.checkouts import bare_import, load_file
from benchmarks.peers.loops import LLADA_MODEL

PLOTS = ("matplotlib", "matplotlib.pyplot", "seaborn")
KLASS_MASK = 126336  # that of LLaDA, whatever it is told


def load_klass(checkout: Path) -> Loop:
    """KLASS. Its mask token is LLaDA's, whatever it is told."""
    decode = load_file(checkout, "src/model/llada_klass.py").stable_confident_decode

    def adapt(model: Any, prompt: Tensor, case: Case, backend: Any) -> Any:
        return Answering(
            model, lambda tokens: model(torch.where(tokens == KLASS_MASK, backend.mask_token_id, tokens))
        )

    def generate(model: Any, prompt: Tensor, **options: Any) -> Any:
        return decode(model, None, prompt, **options)

    return driven(generate, adapt)


def read_by(output: Any) -> Tensor:
    """How much is read where, ``(B, T, T)``: the mean over heads and layers of ours."""
    return torch.stack([layer.mean(1) for layer in output.attentions]).mean(0)


def load_dawn(checkout: Path, as_here: bool = True) -> Loop:
    """DAWN, with LocalLeap beside it.

    Where candidates exclude one another, its loop writes position 0 as well, the first token of the prompt;
    its model is shown the prompt as it was.

    Args:
        checkout: Of its repository.
        as_here: Whether it sees what our observations show: nobody reads the prompt, and anchors are sure of
            the token that stands there.
    """
    places = ("llada/generate.py",)
    generate = load_file(checkout, *places, without=(*LLADA_MODEL, *PLOTS)).generate

    def adapt(model: Any, prompt: Tensor, case: Case, backend: Any) -> Any:
        def answer(tokens: Tensor, return_attn_scores: bool) -> Any:
            beyond = prompt.shape[1]
            tokens = torch.cat([prompt, tokens[:, beyond:]], dim=1)
            if not return_attn_scores:
                return model(tokens), None
            output = model(tokens, output_attentions=True)
            read = read_by(output)
            if as_here:
                believe(output, tokens, backend.mask_token_id)
                read[:, :, :beyond] = 0
                read[:, :beyond] = read[:, beyond:].mean(1, keepdim=True)  # its means are over these, too
            return output, read

        return Answering(model, answer)

    return driven(generate, adapt)


def _showing(model: Any, prompt: Tensor, case: Case, backend: Any) -> Any:
    def answer(tokens: Tensor, return_attn_scores: bool) -> Any:
        output = model(tokens, output_attentions=True)
        return output, read_by(output)

    return Answering(model, answer)


def load_dapd(checkout: Path) -> Loop:
    """DAPD, as CLAD's repository has it."""
    module = load_file(checkout, "llada/generate.py", without=(*LLADA_MODEL, *PLOTS))
    return driven(module.generate_dapd, _showing)


def load_clad(checkout: Path) -> Loop:
    """CLAD."""
    module = load_file(checkout, "llada/generate_clad.py", without=(*LLADA_MODEL, *PLOTS))
    return driven(module.generate_clad, _showing)


def load_pc_sampler(checkout: Path, function: str, names: tuple[str, ...]) -> Loop:
    """PC-Sampler, and what its repository compares with. All tokens are equally frequent, with -log f = 1."""
    module = load_file(checkout, "src/generate.py")

    def generate(model: Any, prompt: Tensor, **options: Any) -> Any:
        module.BASE_LINE = torch.full((model.config.vocab_size,), np.exp(-1.0) - 1e-9)
        return getattr(module, function)(model, prompt, **options)

    return driven(generate, names={name: name for name in names})


def load_eoser(checkout: Path, function: str, names: tuple[str, ...]) -> Loop:
    """EOSER and ASS."""
    module = load_file(checkout, "eval/generate.py")

    def loop(model: Any, prompts: list[list[int]], case: Case, backend: Any) -> np.ndarray:
        def generate(model: Any, prompt: Tensor, **options: Any) -> Any:
            with patch.object(module.dist, "get_rank", lambda: 1):
                return getattr(module, function)(model, prompt, backend.tokenizer, **options)

        return driven(generate, names={name: name for name in names})(model, prompts, case, backend)

    return loop


def load_adablock(checkout: Path) -> Loop:
    """AdaBlock."""
    module = load_file(checkout, "llada/generate_adablock.py", without=LLADA_MODEL)
    return driven(module.generate_adablock, names={"gen_length": "gen_length", "mask_id": "mask_id"})


def load_slow_fast(checkout: Path) -> Loop:
    """SlowFast. What lies behind its cycle is computed anew in every step, as here."""
    module = load_file(
        checkout,
        "slow-fast-sampling/sampling_utils/generate_slow_fast_sampling.py",
        without=(
            *PLOTS,
            "dllm_cache",
            "transformers.tokenization_utils",
            "sampling_utils",
            "sampling_utils.plot_confidence_map",
        ),
    )

    def adapt(model: Any, prompt: Tensor, case: Case, backend: Any) -> Any:
        behind = torch.full((1, LENGTH), backend.mask_token_id)

        def answer(tokens: Tensor, attention_mask: Any) -> Any:
            nonlocal behind
            given = tokens.shape[1]
            whole = torch.cat([tokens, behind[:, given - prompt.shape[1] :]], dim=1)
            behind = whole[:, prompt.shape[1] :].clone()
            output = model(whole)
            output.logits = output.logits[:, :given]
            return output

        return Answering(model, answer)

    def generate(model: Any, prompt: Tensor, **options: Any) -> Any:
        return module.generate_slow_fast_sampling(prompt, None, model, **options)

    return driven(generate, adapt)


def load_multi_block(checkout: Path) -> Loop:
    """The multi-block decoding of d3LLM, without its cache."""
    theirs = (
        "utils",
        "utils.utils_LLaDA",
        "utils.utils_LLaDA.model",
        "utils.utils_LLaDA.model.modeling_llada",
    )
    module = load_file(checkout, "d3llm/d3llm_LLaDA/d3llm_llada_generate_util.py", without=theirs)
    return driven(module.generate_multi_block, names={"gen_length": "max_new_tokens", "mask_id": "mask_id"})


def load_credit(checkout: Path, as_here: bool = True) -> Loop:
    """CreditDecoding: the decoder of dInfer, in the plainest loop about it.

    Args:
        checkout: Of its repository.
        as_here: Whether a token that is no longer the best loses its credit.
    """
    with patch.object(torch, "compile", lambda **_: lambda function: function):
        module = bare_import(checkout / "python", "dinfer.decoding.parallel_strategy")

    def generate(
        model: Any, prompt: Tensor, *, gen_length: int, block_length: int, mask_id: int, **options: Any
    ) -> Any:
        decoder = module.CreditThresholdParallelDecoder(temperature=0.0, mask_id=mask_id, **options)
        text = torch.cat([prompt, torch.full((1, gen_length), mask_id)], dim=1)
        for first in range(prompt.shape[1], text.shape[1], block_length):
            last = first + block_length
            while (text[:, first:last] == mask_id).any():
                logits = model(text).logits[:, first:last]
                credit = decoder._credit_mats.get((first, last))
                if as_here and credit is not None:
                    best = logits.argmax(-1, keepdim=True)
                    credit.copy_(torch.zeros_like(credit).scatter(-1, best, credit.gather(-1, best)))
                decoder.decode(logits, first, last, text)
        return text

    return driven(generate)


def load_sched(checkout: Path) -> Loop:
    """SchED. Its model is Dream's, which predicts a token at the position before."""
    module = load_file(checkout, "dream_sampling/sched.py")

    def adapt(model: Any, prompt: Tensor, case: Case, backend: Any) -> Any:
        def answer(tokens: Tensor) -> Any:
            output = model(tokens)
            output.logits = output.logits.roll(-1, dims=1)
            return output

        return Answering(model, answer)

    names = {"gen_length": "max_new_tokens", "mask_id": "mask_token_id"}
    return driven(module.diffusion_generate_schedule, adapt, names)
