"""A dLLM checkpoint computed by transformers' own model classes; no remote code, ever."""

from __future__ import annotations

import importlib.util
import threading
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dllm_gym.backends import cpu
from dllm_gym.backends.attention import (
    block_causal_mask,
    block_numbers,
    gathered,
    layer_numbers,
    mean_attention,
    without_capturing_hooks,
)
from dllm_gym.backends.base import Memory, Message, Prediction, predict_from_logits
from dllm_gym.backends.chat import as_begun, prompt_text
from dllm_gym.backends.compiled import CompiledForward, compiled_forward
from dllm_gym.backends.families import Family, family_of
from dllm_gym.backends.loading import (
    load_model,
    max_length,
    read_config,
    read_generation_config,
    resolve_dtype,
)
from dllm_gym.backends.memory import (
    SOFT_MASK,
    STARTS,
    KeyValueMemory,
    Mix,
    ResidualMemory,
    residual_context,
    soft_mask,
)
from dllm_gym.backends.quality import QualityHead, read_quality_head
from dllm_gym.backends.token_ids import read_token_ids
from dllm_gym.backends.tokenizing import failures_of, load_tokenizer
from dllm_gym.fields import check_fields, number

# What shows how much is read where; others never have the whole of it.
_SHOWING = ("eager", cpu.ATTENTION)


class TransformersBackend:
    """A frozen masked dLLM loaded from a local directory or a hub id.

    Args:
        source: Directory with ``config.json``, safetensors weights and tokenizer files, or a hub id.
        device: Any torch device; ``None`` takes a GPU if there is one.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``auto``: bfloat16 where the device computes in
            it, else float32. ``None`` is ``auto`` on a GPU and float32 on a CPU, where results then
            agree between batch sizes to the last float bits.
        attn_implementation: As in transformers. ``None`` takes our own on a CPU, faster there for short
            sequences in a batch (``dllm_gym.backends.cpu``), and ``sdpa`` elsewhere; for encoders,
            transformers' choice.
        device_map: As in transformers, such as ``"auto"``, to spread a model over several devices
            (needs accelerate). Instead of ``device``.
        quantization: A transformers quantization config, as an object or as its dictionary, such as
            ``{"quant_method": "bitsandbytes", "load_in_4bit": True}``; needs accelerate and the package it
            names.
        compile: ``"auto"``: small dLLMs on a CPU take the fast forward, compiled once for the machine
            (``dllm_gym.backends.compiled``), others nothing. ``True``: the fast forward, or where it does
            not serve ``torch.compile``, whose arguments a dictionary may hold.
        attention_layers: The layers whose mean the statistic ``attention`` is: their numbers, negative ones
            counted from the last. ``None`` takes all.
        mask_token_id: The mask token, where a checkpoint does not say which it is.
        attention_block: Length of the blocks for families that attend block by block: a number, or
            ``"full"`` for attention in all directions. ``None`` takes what the checkpoint was published
            with.
        cache: Keys and values that are not computed in every step: ``block`` for families that attend
            block by block, which changes nothing inside the active block; for the others ``prefix`` or
            ``dual`` of Fast-dLLM, which are approximate, see ``dllm_gym.backends.memory``.
        residual_context: Predictions fed back, for checkpoints trained for it: masks carry what the last
            step thought of them, by Residual Context Diffusion or by soft masks, as the checkpoint says.
            ``True`` or ``cold`` to begin with plain masks, ``warm`` to begin with a further forward, which
            counts in ``nfe``.

    Attributes:
        source: As given.
        family: The row of ``dllm_gym.backends.families`` that says how it is computed.
        model: The transformers model.
        hidden_width: Size of what the output head's last layer reads.
        max_length: Number of tokens the model was made for.
        end_token_ids: Tokens after which a completion is over; contains ``eos_token_id``.
        attention_block: Length of the blocks, or ``None`` if every token sees every other.
        blocks_from: ``sequence`` if blocks are counted from the first token of the prompt,
            ``completion`` if from the first token after it.

    Raises:
        ValueError: For an unknown family, dtype or checkpoint with missing or unexpected tensors, and for
            token ids that are missing or contradict each other.
        OSError: If the files cannot be found.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | None = None,
        attn_implementation: str | None = None,
        device_map: str | Mapping[str, Any] | None = None,
        quantization: Any = None,
        compile: bool | str | Mapping[str, Any] = False,
        attention_layers: Sequence[int] | None = None,
        mask_token_id: int | None = None,
        attention_block: int | str | None = None,
        cache: str | None = None,
        residual_context: bool | str = False,
    ) -> None:
        if device is not None and device_map is not None:
            raise ValueError(f"give device or device_map, not both; got {device!r} and {device_map!r}")
        self.source = str(source)
        config = read_config(source)
        family = self.family = family_of(config, str(source))
        self.attention_block = _attention_block(family, config, str(source), attention_block)
        self.blocks_from = family.blocks_from
        self._cache = self._checked_cache(cache)
        self._residual_start = self._checked_start(residual_context)
        self._mix = self._trained_mix(config, str(source))
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        attention = attn_implementation or self._default_attention()
        if self.attention_block is not None and "flash" in str(attention):
            raise ValueError(
                f"attn_implementation {attention!r} takes no mask of blocks, which {family.name} needs; "
                "choose sdpa or eager"
            )
        options: dict[str, Any] = {
            "dtype": resolve_dtype(dtype, self.device),
            "attn_implementation": attention,
        }
        if quantization is not None:
            options["quantization_config"] = quantization
        if device_map is not None or quantization is not None:  # a quantized model cannot be moved
            if importlib.util.find_spec("accelerate") is None:
                raise ImportError(
                    "device_map and quantization need accelerate: pip install 'dllm-gym[large]'"
                )
            options["device_map"] = {"": self.device} if device_map is None else device_map
        self.tokenizer = load_tokenizer(source, family)
        self.model = load_model(source, family, config, **options)
        if "device_map" in options:
            self.device = self.model.device
        else:
            self.model.to(self.device)
        layers = getattr(self.model.config, "num_hidden_layers", 0)
        self._attention_layers = layer_numbers(attention_layers, layers)
        self.fast_forward = self._compiled(compile, str(source))
        self.vocab_size: int = self.model.config.vocab_size
        ids = read_token_ids(
            family,
            config,
            read_generation_config(source),
            self.tokenizer,
            self.vocab_size,
            str(source),
            mask_token_id,
        )
        self.mask_token_id, self.eos_token_id, self.pad_token_id = ids.mask, ids.eos, ids.pad
        self.end_token_ids = ids.end
        self._lm_head = self.model.get_output_embeddings()
        self.hidden_width: int = self._lm_head.in_features
        self.max_length = max_length(self.model)
        self._forwards = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> TransformersBackend:
        """Itself: the model is frozen, and Gymnasium deep-copies the keywords of an environment."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        without_capturing_hooks(self.model)
        return {name: value for name, value in self.__dict__.items() if name != "_forwards"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__ |= {**state, "_forwards": threading.Lock()}

    def _compiled(self, compile: bool | str | Mapping[str, Any], source: str) -> CompiledForward | None:
        """The fast forward, where it is wanted and serves; ``torch.compile`` changes the model in place."""
        if isinstance(compile, str) and compile != "auto":
            raise ValueError(
                f"compile must be True, False, 'auto' or arguments of torch.compile, got {compile!r}"
            )
        plain = self.attention_block is None and self._cache is None and self._residual_start is None
        if compile in (True, "auto") and plain:
            fast = compiled_forward(self.model, Path(source).name)
            if fast is not None:
                return fast
        if compile and compile != "auto":
            self.model.base_model.compile(**(compile if isinstance(compile, Mapping) else {}))
        return None

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """The numbers of the layers that the statistic ``attention`` is the mean of.

        Raises:
            AttributeError: If it cannot be had, because of how attention is computed.
        """
        chosen = self.model.config._attn_implementation
        if chosen not in _SHOWING:
            raise AttributeError(
                f"attn_implementation {chosen!r} computes attention without showing it; "
                "load the dLLM with attn_implementation='eager'"
            )
        return self._attention_layers

    @cached_property
    def quality_head(self) -> QualityHead:
        """What computes the statistic ``quality``; read when it is needed.

        Raises:
            AttributeError: If the checkpoint has none.
            ValueError: If what it has is damaged, or a head for other hidden states.
        """
        return read_quality_head(self.source, self.hidden_width).to(self.device)

    @cached_property
    def _fast_showing(self) -> CompiledForward | None:
        """The fast forward that shows attention, too, where the fast one serves; made when it is needed."""
        if self.fast_forward is None:
            return None
        return compiled_forward(self.model, Path(self.model.name_or_path).name, self.attention_layers)

    def _default_attention(self) -> str | None:
        if not self.family.rotary:
            return None  # encoders are too different; transformers knows what each can do
        if self.device.type != "cpu":
            return "sdpa"
        cpu.keep_freed_memory()
        cpu.register_attention()
        return cpu.ATTENTION

    def encode_prompt(self, prompt: str | Sequence[Message]) -> list[int]:
        """Token ids of a prompt, through the model's chat template.

        A base model without chat template gets the text of a single message as it is.

        Raises:
            ValueError: If the prompt holds words this model does not know, or its mask token, or several
                messages for a model without chat template; if the tokenizer or its chat template fails.
        """
        user: Message = {"role": "user", "content": str(prompt)}
        return self.encode_text(self.chat_text([user] if isinstance(prompt, str) else list(prompt)))

    def chat_text(self, messages: Sequence[Message], begun: bool = False) -> str:
        """What the model reads of a chat, by its chat template; without one, the text of a single message.

        Args:
            messages: With at least ``role`` and ``content``.
            begun: Whether the last message is the beginning of the answer, to be gone on with.

        Raises:
            ValueError: If the chat template fails, and for several messages without any.
        """
        return prompt_text(self.tokenizer, self.family, messages, begun)

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text as the model goes on with it, without chat template.

        Raises:
            ValueError: If it holds words this model does not know, or its mask token; if the tokenizer fails.
        """
        text = as_begun(self.tokenizer, self.family, text)
        with failures_of("the dLLM's tokenizer"):
            ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and unknown in ids:
            encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            spans = [span for i, span in zip(ids, encoding["offset_mapping"], strict=True) if i == unknown]
            words = ", ".join(sorted({text[start:end] for start, end in spans}))
            raise ValueError(f"the prompt {text!r:.200} has words this dLLM does not know: {words:.200}")
        if self.mask_token_id in ids:
            raise ValueError(f"the prompt {text!r:.200} contains the dLLM's mask token")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a completion, cut at its first end token. Masks that are left stay visible."""
        tokens = [int(token) for token in ids]
        end = next((at for at, token in enumerate(tokens) if token in self.end_token_ids), None)
        with failures_of("the dLLM's tokenizer"):
            text = str(self.tokenizer.decode(tokens[:end]))
        return text if self.family.end_text is None else text.split(self.family.end_text, 1)[0]

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
        """See ``Backend.predict``. Only ``positions`` reach the output head's last layer.

        Raises:
            ValueError: If a row is longer than ``max_length``, or for what ``predict_from_logits`` refuses.
        """
        padding = tokens.shape[1] - self.check_length(attention_mask)  # nobody needs it computed
        columns = torch.arange(-padding, tokens.shape[1] - padding)[positions].to(self.device)  # (K,)
        tokens, attention_mask = (part[:, padding:].to(self.device) for part in (tokens, attention_mask))
        logits, given = self.forward(tokens, attention_mask, columns, attention="attention" in statistics)
        return self.prediction(
            logits,
            given,
            tokens[:, columns],
            statistics=statistics,
            top_k=top_k,
            temperature=temperature,
            generators=generators,
        )

    def prediction(
        self,
        logits: Tensor,
        given: Mapping[str, Tensor],
        standing: Tensor,
        *,
        statistics: Sequence[str] = (),
        **options: Any,
    ) -> Prediction:
        """What a forward's results say.

        Args:
            logits: ``(B, K, V)``, of ``forward`` or ``forward_rows``, like ``given``.
            given: By name, the statistics that they do not tell.
            standing: ``(B, K)``, the tokens that stand there.
            statistics: As in ``predict``.
            **options: Further arguments of ``predict``.

        Raises:
            ValueError: For what ``predict_from_logits`` refuses.
        """
        if "quality" in statistics:
            quality = self.quality_head(given["hidden"]).sigmoid()
            given = {**given, "quality": quality.masked_fill(standing == self.mask_token_id, 0.0)}
        return predict_from_logits(
            logits, self.mask_token_id, statistics=statistics, standing=standing, given=given, **options
        )

    def memory(self, num_rows: int, length: int) -> Memory | None:
        """What ``cache`` or ``residual_context`` carries from step to step; ``None`` without them."""
        if self._cache is not None:
            return KeyValueMemory(self, self._cache, num_rows, length)
        if self._residual_start is not None:
            return ResidualMemory(self, self._mix, self._residual_start, num_rows, length)
        return None

    def _checked_cache(self, cache: str | None) -> str | None:
        if cache is None:
            return None
        if not self.family.rotary:
            raise ValueError(f"{self.family.name} works without cache only, got {cache!r}")
        fitting = ("prefix", "dual") if self.attention_block is None else ("block",)
        if cache not in fitting:
            attends = "in all directions" if self.attention_block is None else "block by block"
            raise ValueError(
                f"this dLLM attends {attends}: cache must be {' or '.join(fitting)}, got {cache!r}"
            )
        return cache

    def _checked_start(self, given: bool | str) -> str | None:
        if given is False:
            return None
        start = "cold" if given is True else given
        if start not in STARTS:
            raise ValueError(f"residual_context must be True, False, cold or warm, got {given!r}")
        if self._cache is not None or not self.family.rotary:
            raise ValueError("residual_context works without cache and for decoder layouts only")
        return start

    def _trained_mix(self, config: Mapping[str, Any], source: str) -> Mix:
        """How the checkpoint was trained to have its predictions fed back: as in RCD, or by soft masks."""
        trained = config.get("residual_context")
        if isinstance(trained, Mapping):
            fields = dict.fromkeys(SOFT_MASK, number())
            return partial(soft_mask, **check_fields(trained, fields, f"{source}, residual_context"))
        if self._residual_start is not None and not trained:
            warnings.warn(
                f"{source} was not trained with residual context, as far as its config.json says: "
                "expect it to write worse than without",
                stacklevel=3,
            )
        return residual_context

    def check_length(self, attention_mask: Tensor) -> int:
        """The length of the longest row of ``(B, T)``; refuses one longer than ``max_length``."""
        longest = int(attention_mask.sum(1).max())
        if longest > self.max_length:
            raise ValueError(f"prompt and completion take {longest} tokens; this dLLM has {self.max_length}")
        return longest

    def blocks(self, first: Tensor, length: int, completion: int | Tensor) -> Tensor:
        """The number ``(B, T)`` of the block that each column belongs to, for dLLMs that attend in blocks.

        Args:
            first: ``(B,)``, the column at which each sequence begins.
            length: T, number of columns.
            completion: The column at which the completions begin.
        """
        assert self.attention_block is not None
        origin = first if self.blocks_from == "sequence" else torch.zeros_like(first) + completion
        return block_numbers(origin, length, self.attention_block)

    def rows_about(self, columns: Tensor, first: Tensor) -> Tensor:
        """The rows of the output that predict the tokens at ``columns`` ``(K,)`` or ``(B, K)``.

        ``first`` ``(B,)`` is the column at which each sequence begins. The same shape as ``columns``, or
        ``(B, K)`` where that matters.
        """
        if not self.family.shift_logits:
            return columns
        # the first token of a sequence has no row before it and is predicted by its own
        return torch.maximum(columns - 1, first[:, None])

    def forward(
        self,
        tokens: Tensor,
        attention_mask: Tensor,
        columns: Tensor,
        embedded: Tensor | None = None,
        *,
        attention: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One pass over whole sequences.

        Args:
            tokens: ``(B, T)``.
            attention_mask: ``(B, T)``, 0 at padding.
            columns: ``(K,)`` int64, what to predict, or ``(B, K)`` where it differs from row to row.
            embedded: ``(B, T, H)``, fed to the model in place of the tokens' embeddings.
            attention: Whether the statistic ``attention`` is asked for.

        Returns:
            Logits ``(B, K, V)``, and by name the statistics that they do not tell; see ``forward_rows``.
        """
        first = attention_mask.argmax(1)  # (B,), of the sequence
        rows = self.rows_about(columns, first)  # (K,) or (B, K)
        read = columns if attention else None
        if not self.family.rotary:
            return self._forward_from_left(tokens, attention_mask, first, rows, read)
        fast = self._fast_showing if attention else self.fast_forward
        if fast is not None and embedded is None:
            logits, *others = fast(tokens, attention_mask, rows.expand(len(tokens), -1))
            given = dict(zip(("hidden", "attention"), others, strict=False))
            if attention:
                given["attention"] = given["attention"].index_select(2, columns)
            return logits, given
        length = tokens.shape[1]
        visible = None if attention_mask.all() else attention_mask
        if self.attention_block is not None:
            blocks = self.blocks(first, length, columns.min())
            visible = block_causal_mask(blocks, attention_mask, self.model.dtype)
        fed = {"input_ids": tokens} if embedded is None else {"inputs_embeds": embedded}
        return self.forward_rows(
            rows,
            read,
            **fed,
            attention_mask=visible,
            # Counted back from the end, where all rows are aligned. Counted from the front they would depend
            # on how long the neighbours' prompts are, and rotary embedding would round differently.
            position_ids=torch.arange(-length, 0, device=self.device)[None],
            use_cache=False,
        )

    def _forward_from_left(
        self, tokens: Tensor, attention_mask: Tensor, first: Tensor, rows: Tensor, read: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """For models with absolute positions: every row is turned until its padding is on the right."""
        length = tokens.shape[1]
        turned = (torch.arange(length, device=self.device) + first[:, None]) % length  # (B, T)
        return self.forward_rows(
            rows - first[:, None],
            None if read is None else read - first[:, None],
            input_ids=tokens.gather(1, turned),
            attention_mask=attention_mask.gather(1, turned),
        )

    def forward_rows(
        self, rows: Tensor, read: Tensor | None = None, **inputs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits ``(B, K, V)`` of some rows, and by name the statistics that they do not tell.

        Args:
            rows: ``(B, K)``, or ``(K,)`` for the same ones of all sequences.
            read: ``(B, J)`` or ``(J,)``, the columns at which it is asked how much is read there by those
                rows, which is the statistic ``attention`` ``(B, K, J)``; ``None`` asks for none.
            **inputs: Of the transformers model.

        Raises:
            ValueError: If attention is asked for and the model does not show that of every layer.
        """
        if read is not None:
            inputs["output_attentions"] = True
        if self.family.rotary:
            output = self.model.base_model(**inputs)
            kept = gathered(output.last_hidden_state, rows)
            logits = self._lm_head(kept)
            return logits.to(self.device), self._given(kept, output.get("attentions"), rows, read)
        # An encoder's head is more than one layer, and only its last one is large.
        seen: list[Tensor] = []

        def keep(layer: Any, arguments: tuple[Tensor]) -> tuple[Tensor]:
            seen.append(gathered(arguments[0], rows))
            return (seen[0],)

        with self._forwards:  # the layer is shared by all threads, what it is made to do is not
            hook = self._lm_head.register_forward_pre_hook(keep)
            try:
                output = self.model(**inputs)
            finally:
                hook.remove()
        # some see through windows, and what they show has other axes
        square = 2 * tuple(inputs["input_ids"].shape[1:])
        weights = [w for w in output.get("attentions") or () if w is not None and w.shape[2:] == square]
        return output.logits.to(self.device), self._given(seen[0], weights, rows, read)

    def _given(self, hidden: Tensor, weights: Any, rows: Tensor, read: Tensor | None) -> dict[str, Tensor]:
        given = {"hidden": hidden}
        if read is not None:
            given["attention"] = mean_attention(weights or (), self.attention_layers, rows, read)
        return {name: values.to(self.device) for name, values in given.items()}


def _attention_block(
    family: Family, config: Mapping[str, Any], source: str, given: int | str | None
) -> int | None:
    if given is None:
        # a hub id's name or a directory's
        return family.attention_block and family.attention_block(config, Path(source).name)
    if family.attention_block is None:
        raise ValueError(f"attention_block is for families that attend in blocks; {family.name} does not")
    if given == "full":
        return None
    if isinstance(given, str | bool) or given < 1:
        raise ValueError(f"attention_block must be a whole number of at least 1 or 'full', got {given!r}")
    return given
