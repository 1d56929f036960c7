"""The loops that take tokens back, from the repositories of their publishers."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.adapters import Answering, believe, driven
from benchmarks.peers.canvases import LENGTH, Case, Loop
from benchmarks.peers.checkouts import bare_import, load_file


def load_wino(checkout: Path, as_here: bool = True) -> Loop:
    """WINO.

    Args:
        checkout: Of its repository.
        as_here: Whether the second copy of the block is given what the first one predicts.
    """
    module = load_file(checkout, "LLaDA/decoding.py")

    def adapt(model: Any, prompt: Tensor, case: Case, backend: Any) -> Any:
        def answer(tokens: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Any:
            text, copy = tokens[:, : -case.block_length], position_ids[-case.block_length :]
            if as_here:
                output = model(text)
                output.logits = torch.cat([output.logits, output.logits[:, copy]], dim=1)
                return output
            hidden = torch.where(attention_mask, 0.0, torch.finfo(model.dtype).min)
            return model(tokens, hidden, position_ids=position_ids[None], canvas=text)

        return Answering(model, answer)

    return driven(module.decoding_wino, adapt)


def load_saber(checkout: Path, as_here: bool = True) -> Loop:
    """Saber.

    Args:
        checkout: Of its repository.
        as_here: Whether what it compares where a token stands is the probability of that token.
    """
    module = load_file(checkout, "decoding.py")

    def adapt(model: Any, prompt: Tensor, case: Case, backend: Any) -> Any:
        def answer(tokens: Tensor) -> Any:
            output = model(tokens)
            if as_here:
                believe(output, tokens, backend.mask_token_id)
            return output

        return Answering(model, answer)

    return driven(module.generate_with_saber, adapt)


def load_rcr(checkout: Path) -> Loop:
    """Running confidence remasking of MDPO."""
    return driven(bare_import(checkout, "src.mdlm_generation_utils").diffusion_generate)


def load_remedi(checkout: Path) -> Loop:
    """RemeDi. Its scores, which are logits, are log-probabilities; it sees the masks behind its block."""
    module = load_file(checkout, "inference.py", without=("remedi",))

    def loop(model: Any, prompts: list[list[int]], case: Case, backend: Any) -> np.ndarray:
        prompt = torch.tensor(prompts)
        finished: list[Tensor] = []  # what its cache keeps: the prompt and all blocks before

        def answer(tokens: Tensor, update_kv_cache: bool = False, **_: Any) -> Any:
            if update_kv_cache:
                finished.append(tokens)
                return None
            text = torch.cat([*finished, tokens], dim=1)
            behind = prompt.shape[1] + LENGTH - text.shape[1]
            output = model(torch.nn.functional.pad(text, (0, behind), value=backend.mask_token_id))
            output.logits = output.logits[:, text.shape[1] - tokens.shape[1] : text.shape[1]].log_softmax(-1)
            return output

        inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
        module.generate_block_diffusion(
            Answering(model, answer),
            None,
            MagicMock(return_value=inputs),
            "cpu",
            num_generations=1,
            max_length=LENGTH,
            block_size=case.block_length,
            mask_token_id=backend.mask_token_id,
            eos_id=-1,
            **case.peer,
        )
        completions: np.ndarray = torch.cat(finished[1:], dim=1).numpy()
        return completions

    return loop


def load_t2m(checkout: Path) -> Loop:
    """T2M, in the loop of LLaDA2. It knows of no prompt; its model sees that, and the masks behind."""
    theirs = bare_import(checkout, "remask.modeling_remask").LLaDA2MoeRemaskLM
    cache = MagicMock(get_seq_length=lambda: -1)  # every block begins without one

    def loop(model: Any, prompts: list[list[int]], case: Case, backend: Any) -> np.ndarray:
        prompt, before = torch.tensor(prompts), torch.zeros(1, 0, dtype=torch.long)

        def forward(_: Any, tokens: Tensor, positions: Tensor, mask: Any, known: Any, size: int) -> Any:
            nonlocal before
            if known is None:
                before = tokens[:, :-size].clone()
            text = torch.cat([prompt, before, tokens[:, -size:]], dim=1)
            behind = prompt.shape[1] + LENGTH - text.shape[1]
            output = model(torch.nn.functional.pad(text, (0, behind), value=backend.mask_token_id))
            return output.logits[:, text.shape[1] - size : text.shape[1]], cache

        own = {"device": torch.device("cpu"), "_forward_block": forward, "_truncate_kv_cache": MagicMock()}
        decoder = type("Decoder", (theirs,), {"__init__": torch.nn.Module.__init__, **own})()
        options = dict(case.peer)
        vars(decoder).update(
            remask_strategy=options.pop("strategy"),
            remask_threshold=options.pop("limit"),
            max_remask_per_pos=5,
            max_remask_ratio=0.25,
            _prev_logits=None,
            _remask_counts=None,
        )
        output = decoder.generate(
            torch.zeros(1, 0, dtype=torch.long),
            gen_length=LENGTH,
            block_length=case.block_length,
            mask_id=backend.mask_token_id,
            eos_id=-1,
            **options,
        )
        completions: np.ndarray = output.numpy()
        return completions

    return loop
