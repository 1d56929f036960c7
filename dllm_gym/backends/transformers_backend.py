"""A dLLM checkpoint computed by transformers' own model classes; no remote code, ever."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dllm_gym.backends import cpu
from dllm_gym.backends.base import Message, Prediction, predict_from_logits
from dllm_gym.backends.families import Family, family_of

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TransformersBackend:
    """A frozen masked dLLM loaded from a local directory or a hub id.

    Args:
        source: Directory with ``config.json``, safetensors weights and tokenizer files, or a hub id.
        device: Any torch device; ``None`` takes a GPU if there is one.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``auto``: bfloat16 where the device computes in
            it, else float32. ``None`` is ``auto`` on a GPU and float32 on a CPU, where results then
            agree between batch sizes to the last float bits.
        attn_implementation: As in transformers. ``None`` takes our own on a CPU, faster there for short
            sequences in a batch (``dllm_gym.backends.cpu``), and ``sdpa`` elsewhere.

    Attributes:
        model: The transformers model.
        hidden_width: Size of the model's hidden state.
        end_token_ids: Tokens after which a completion is over; contains ``eos_token_id``.

    Raises:
        ValueError: For an unknown family, dtype or checkpoint with missing or unexpected tensors.
        OSError: If the files cannot be found.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | None = None,
        attn_implementation: str | None = None,
    ) -> None:
        import transformers

        config = _read_config(source)
        family = family_of(config, str(source))
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        on_cpu = self.device.type == "cpu"
        if on_cpu:
            cpu.keep_freed_memory()
            cpu.register_attention()
        with _no_progress_bar():
            model, loading = getattr(transformers, family.model_class).from_pretrained(
                source,
                config=family.translate(config),
                key_mapping=dict(family.key_mapping),
                dtype=_resolve_dtype(dtype, self.device),
                attn_implementation=attn_implementation or (cpu.ATTENTION if on_cpu else "sdpa"),
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # reported instead, and refused below with everything else
                output_loading_info=True,
            )
        _refuse_partial_loading(loading, str(source))
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.tokenizer = _load_tokenizer(source, family)
        self.mask_token_id: int = config["mask_token_id"]
        self.eos_token_id: int = config["eos_token_id"]
        self.pad_token_id: int = config["pad_token_id"]
        self.vocab_size: int = model.config.vocab_size
        self.hidden_width: int = model.config.hidden_size
        self.max_length: int = model.config.max_position_embeddings
        end_of_turn = self.tokenizer.get_vocab().get(family.special_tokens.eot, self.eos_token_id)
        self.end_token_ids = frozenset([self.eos_token_id, end_of_turn])
        self._shift_logits = family.shift_logits
        self._lm_head = self.model.get_output_embeddings()

    def __deepcopy__(self, memo: dict[int, Any]) -> TransformersBackend:
        """Itself: the model is frozen, and Gymnasium deep-copies the keywords of an environment."""
        return self

    def encode_prompt(self, prompt: str | Sequence[Message]) -> list[int]:
        """Token ids of a prompt, through the model's chat template.

        Raises:
            ValueError: If the prompt holds words this model does not know, or its mask token.
        """
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = encoding["input_ids"]
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and unknown in ids:
            spans = [span for i, span in zip(ids, encoding["offset_mapping"], strict=True) if i == unknown]
            words = sorted({text[start:end] for start, end in spans})
            raise ValueError(f"the prompt {prompt!r} has words this dLLM does not know: {', '.join(words)}")
        if self.mask_token_id in ids:
            raise ValueError(f"the prompt {prompt!r} contains the dLLM's mask token")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a completion, cut at its first end token. Masks that are left stay visible."""
        kept = []
        for token in ids:
            if int(token) in self.end_token_ids:
                break
            kept.append(int(token))
        return str(self.tokenizer.decode(kept))

    @torch.inference_mode()
    def predict(
        self,
        tokens: Tensor,
        attention_mask: Tensor,
        positions: slice | Tensor,
        *,
        statistics: Sequence[str] = (),
        top_k: int = 8,
        temperature: float = 0.0,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Prediction:
        """See ``Backend.predict``. Only ``positions`` reach the output head."""
        if tokens.shape[1] > self.max_length:
            raise ValueError(
                f"prompt and completion take {tokens.shape[1]} tokens; this dLLM has {self.max_length}"
            )
        hidden = self.model.model(
            input_ids=tokens.to(self.device),
            attention_mask=attention_mask.to(self.device),
            # Counted back from the end, where all rows are aligned. Counted from the front they would depend
            # on how long the neighbours' prompts are, and rotary embedding would round differently.
            position_ids=torch.arange(-tokens.shape[1], 0, device=self.device)[None],
            use_cache=False,
        ).last_hidden_state
        hidden = self._rows_about(hidden, attention_mask, positions)
        return predict_from_logits(
            self._lm_head(hidden),
            self.mask_token_id,
            statistics=statistics,
            top_k=top_k,
            temperature=temperature,
            generators=generators,
            hidden=hidden,
        )

    def _rows_about(self, hidden: Tensor, attention_mask: Tensor, positions: slice | Tensor) -> Tensor:
        """The rows ``(B, K, D)`` of ``hidden`` ``(B, T, D)`` that predict the tokens at ``positions``."""
        if not self._shift_logits:
            return hidden[:, positions]
        columns = torch.arange(hidden.shape[1], device=self.device)[positions]  # (K,)
        # the first token of a sequence has no row before it and is predicted by its own
        first = attention_mask.to(self.device).argmax(1)  # (B,)
        rows = torch.maximum(columns[None] - 1, first[:, None])  # (B, K)
        return hidden[torch.arange(len(hidden), device=self.device)[:, None], rows]


def _read_config(source: str | Path) -> dict[str, Any]:
    path = Path(source) / "config.json"
    if Path(source).is_dir() and not path.is_file():
        raise FileNotFoundError(f"{source} is no checkpoint directory: it has no config.json")
    if not path.is_file():
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(str(source), "config.json"))
    config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no JSON object")
    return config


def _load_tokenizer(source: str | Path, family: Family) -> Any:
    import transformers
    from transformers.utils import cached_file

    try:
        cached_file(source, "tokenizer.json")
        name = "PreTrainedTokenizerFast"
    except OSError:  # Dream publishes Qwen2's vocabulary and merges instead
        name = family.tokenizer_class
    return getattr(transformers, name).from_pretrained(source)


def _resolve_dtype(dtype: str | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        dtype = "float32" if device.type == "cpu" else "auto"
    if dtype == "auto":
        return torch.bfloat16 if _computes_bfloat16(device) else torch.float32
    if dtype not in _DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; choose one of {', '.join(_DTYPES)}, auto")
    return _DTYPES[dtype]


def _computes_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is computed by the hardware rather than emulated."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _refuse_partial_loading(loading: dict[str, Any], source: str) -> None:
    # transformers initialises what is missing and only prints a report
    problems = {kind: sorted(map(str, names)) for kind, names in loading.items() if names}
    if problems:
        text = "; ".join(f"{kind}: {', '.join(names[:5])}" for kind, names in problems.items())
        raise ValueError(f"{source} did not load completely: {text}")
