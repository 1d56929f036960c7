"""Trains a small dLLM from scratch on a task: ``dllm-gym pretrain``.

The objective is LLaDA's supervised fine-tuning loss (arXiv 2502.09992, section 2.3): the prompt stays
clean, every completion token is masked with probability t ~ U(0, 1), and the cross-entropy at the
masked positions is weighted by 1/t. Completions are padded with end tokens up to their full length,
and these count, so the model learns where to stop. In a layout with shifted logits the row before a
masked position answers for it.

With residual context the masked positions are fed with what was thought of them instead of with plain
masks: by a frozen reference (Residual Context Diffusion, arXiv 2601.22954, the second of its two stages), or
by the dLLM itself in a first pass, mixed by three numbers that are learned (soft masks, arXiv 2510.17206).
"""

from __future__ import annotations

import copy
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dllm_gym.backends import cpu, load_backend
from dllm_gym.backends.families import family_named
from dllm_gym.backends.memory import SOFT_MASK, Mix, residual_context, soft_mask
from dllm_gym.backends.saving import write_weights
from dllm_gym.backends.word_tokenizer import build_tokenizer, save_tokenizer
from dllm_gym.files import read_json, write_json, write_text
from dllm_gym.resumable import Training
from dllm_gym.tasks import GenerativeTask, load_task
from dllm_gym.trained import RECORD, record_of, variants

_RCD = "rcd"
# What the numbers of soft masks begin with, the share of the batches that have them, and the learning rate
# of the numbers: as published, but for the second steepness and for the scale, 0 here and almost 0 there.
_STEEPNESS = {"soft-mask": 10 / 1.5, "soft-mask-uncertain": -10 / 1.5}
_OFFSET = -0.75
_SOFT_SHARE = 0.8
_SOFT_RATE = 1e-2
_MIN_T = 1e-3  # LLaDA's epsilon: t is drawn from [1e-3, 1], so that 1/t stays bounded


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that determines a pretraining run.

    Attributes:
        task: A registered task that can write completions.
        task_kwargs: Its parameters. A list of them is a mixture: batches take turns between the variants.
        layout: Family whose checkpoints it writes: ``llada`` or ``dream``.
        width: Model width.
        layers: Number of blocks.
        heads: Attention heads.
        kv_heads: Heads of keys and values, each shared by a group of attention heads; ``None`` is one each.
        mlp_width: Width of the gated MLP.
        rope_theta: RoPE base; small, because sequences are short.
        steps: Optimiser steps.
        batch_size: Problems per step; each is masked twice, with complementary masks.
        learning_rate: Of Muon, for the matrices inside the blocks.
        adam_learning_rate: Of AdamW, for embedding, head and norms.
        warmup: Steps of linear warm-up.
        decay: Share of the steps, at the end, over which the rates fall linearly to zero.
        seed: Seeds weights, data and masks.
        init_from: Checkpoint directory, or name of an embedded dLLM, to take the first weights from, of the
            same shape; ``None`` starts from scratch.
        residual_context: Feed masked positions with what is thought of them: ``rcd``, by the frozen
            checkpoint ``init_from``, or ``soft-mask`` and ``soft-mask-uncertain``, by the dLLM itself in a
            first pass, in four batches of five. These two begin without any influence, and how much they
            get is learned; the one begins to feed back where the first pass was certain, the other where
            it was not. ``None`` feeds plain masks.
    """

    task: str = "arithmetic"
    task_kwargs: dict[str, Any] | list[dict[str, Any]] | None = None
    layout: str = "llada"
    width: int = 64
    layers: int = 6
    heads: int = 1
    kv_heads: int | None = None
    mlp_width: int = 192
    rope_theta: float = 100.0
    steps: int = 8000
    batch_size: int = 64
    learning_rate: float = 4e-3
    adam_learning_rate: float = 4e-3
    warmup: int = 100
    decay: float = 0.6
    seed: int = 0
    init_from: str | None = None
    residual_context: bool | str | None = None

    def __post_init__(self) -> None:
        # what means the same is the same, so that it resumes
        if isinstance(self.residual_context, bool):  # as written before there were several kinds
            object.__setattr__(self, "residual_context", _RCD if self.residual_context else None)
        object.__setattr__(self, "task_kwargs", self.task_kwargs or {})
        kv_heads = self.heads if self.kv_heads is None else self.kv_heads
        object.__setattr__(self, "kv_heads", kv_heads)
        family_named(self.layout)
        for name in ("width", "layers", "heads", "kv_heads", "mlp_width", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of twice the heads, {self.heads}")
        if self.heads % kv_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of the kv_heads, {kv_heads}")
        for name in ("learning_rate", "adam_learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        kinds = (_RCD, *_STEEPNESS)
        if self.residual_context not in (None, *kinds):
            raise ValueError(
                f"residual_context must be None or one of {', '.join(kinds)}, got {self.residual_context!r}"
            )
        if self.residual_context and self.init_from is None:
            raise ValueError("residual_context needs init_from: what a trained checkpoint thinks is fed back")
        if self.warmup < 0:
            raise ValueError(f"warmup must be at least 0, got {self.warmup}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay must be above 0 and at most 1, got {self.decay}")

    @property
    def variants(self) -> list[dict[str, Any]]:
        """The task's parameters, one per member of the mixture."""
        return variants(self.task_kwargs)


def masked_cross_entropy(logits: Tensor, targets: Tensor, masked: Tensor, probability: Tensor) -> Tensor:
    """LLaDA's loss: 1/t-weighted cross-entropy at masked positions, averaged over all positions.

    Args:
        logits: ``(M, V)``, for the masked positions of the batch in row-major order.
        targets: ``(B, L)`` clean tokens.
        masked: ``(B, L)`` bool, with M true entries.
        probability: ``(B,)`` the t with which each row was masked.
    """
    losses = F.cross_entropy(logits.float(), targets[masked], reduction="none")
    weights = (1 / probability)[:, None].expand(masked.shape)[masked]
    return (losses * weights).sum() / masked.numel()


def complementary_masks(batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Masks ``(2B, L)`` and their probabilities ``(2B,)``: row b + B is the complement of row b.

    t is stratified over the batch and every token is scored exactly once per pair, which lowers the
    variance of the gradient (coupled sampling, arXiv 2506.20639).
    """
    t = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    t = t.clamp(_MIN_T, 1 - _MIN_T)
    mask = torch.rand(batch, length, generator=generator) < t[:, None]
    return torch.cat([mask, ~mask]), torch.cat([t, 1 - t])


@dataclass(frozen=True)
class MaskedAnswers:
    """Right answers behind their prompts, each twice, with complementary masks.

    Attributes:
        tokens: ``(2 B, P + L)`` int64, the mask token where answers are masked.
        attention_mask: ``(2 B, P + L)`` int64, 0 at padding.
        answers: ``(2 B, L)`` int64, nothing masked.
        masked: ``(2 B, L)`` bool.
        probability: ``(2 B,)``, with which each token was masked.
    """

    tokens: Tensor
    attention_mask: Tensor
    answers: Tensor
    masked: Tensor
    probability: Tensor


class Examples:
    """Random access to tokenised (prompt, completion) pairs.

    Args:
        tasks: Whose problems; batches take turns between them.
        tokenizer: The dLLM's.
        seed: Of what the completions leave open.
        size: Problems per batch.
    """

    def __init__(self, tasks: Sequence[GenerativeTask], tokenizer: Any, seed: int, size: int) -> None:
        self.tasks, self.tokenizer, self.seed, self.size = tasks, tokenizer, seed, size

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Prompt ids ``(B, P)``, left-padded with -1, and completion ids ``(B, L)``, all of one task."""
        task, first = self.tasks[number % len(self.tasks)], number * self.size
        problems = [task.problem(first + i) for i in range(self.size)]
        rng = np.random.Generator(np.random.PCG64([self.seed, first]))
        prompts = self.tokenizer(
            [
                self.tokenizer.apply_chat_template([{"role": "user", "content": p.prompt}], tokenize=False)
                for p in problems
            ],
            add_special_tokens=False,
        )["input_ids"]
        answers = self.tokenizer([task.write(p, rng) for p in problems], add_special_tokens=False)
        width, eos = max(map(len, prompts)), self.tokenizer.eos_token_id
        length = task.completion_length
        return (
            torch.tensor([[-1] * (width - len(ids)) + ids for ids in prompts]),
            torch.tensor([ids + [eos] * (length - len(ids)) for ids in answers["input_ids"]]),
        )

    def masked(self, number: int, mask_token_id: int, generator: torch.Generator) -> MaskedAnswers:
        """Batch ``number`` as dLLMs are trained on it; ``generator`` draws the masks."""
        prompts, answers = self.batch(number)
        masked, probability = complementary_masks(len(answers), answers.shape[1], generator)
        prompts, answers = prompts.repeat(2, 1), answers.repeat(2, 1)
        real = torch.cat([prompts >= 0, torch.ones_like(answers, dtype=torch.bool)], dim=1)
        tokens = torch.cat([prompts.clamp(min=0), answers.masked_fill(masked, mask_token_id)], dim=1)
        return MaskedAnswers(tokens, real.long(), answers, masked, probability)


class SoftMask(nn.Module):
    """The numbers of ``dllm_gym.backends.memory.soft_mask``, to be learned; the scale begins at 0.

    Args:
        steepness: To begin with.
    """

    def __init__(self, steepness: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.0))
        self.steepness = nn.Parameter(torch.tensor(steepness))
        self.offset = nn.Parameter(torch.tensor(_OFFSET))

    def forward(self, probabilities: Tensor, embeddings: Tensor, mask_embedding: Tensor) -> Tensor:
        """See ``soft_mask``."""
        numbers = {name: getattr(self, name) for name in SOFT_MASK}
        return soft_mask(probabilities, embeddings, mask_embedding, **numbers)


class Pretrainer(Training):
    """One resumable pretraining run in a directory.

    Args:
        config: What to train.
        directory: Where the training state and, at the end, the checkpoint go.

    Raises:
        ValueError: If the task cannot write completions, or the directory holds another run's state.
    """

    state_name = "training_state.pt"
    config: PretrainConfig

    def __init__(self, config: PretrainConfig, directory: str | Path) -> None:
        import transformers

        self.tasks = [_generative_task(config.task, variant) for variant in config.variants]
        self.family = family_named(config.layout)
        special = self.family.special_tokens
        self.tokenizer = build_tokenizer([word for task in self.tasks for word in task.vocabulary], special)
        self.mask_token_id = self.tokenizer.convert_tokens_to_ids(special.mask)
        self.model_config = self.family.write_config(
            vocab_size=len(self.tokenizer),
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            kv_heads=config.kv_heads,
            mlp_width=config.mlp_width,
            rope_theta=config.rope_theta,
            max_length=1024,
            mask_token_id=self.mask_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
        )
        torch.manual_seed(config.seed)
        self.model = getattr(transformers, self.family.model_class)(self.family.translate(self.model_config))
        cpu.keep_freed_memory()
        cpu.register_attention()
        self.model.set_attn_implementation(cpu.ATTENTION)  # more than twice as fast to train on a CPU as sdpa
        if config.init_from is not None:
            self.model.load_state_dict(_weights_of(config.init_from))
        self.reference: Any = None
        if config.residual_context == _RCD:
            self.reference = copy.deepcopy(self.model).requires_grad_(False)
        self.examples = Examples(self.tasks, self.tokenizer, config.seed, config.batch_size)
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and ".layers." in n]
        others = [p for n, p in self.model.named_parameters() if p.ndim != 2 or ".layers." not in n]
        optimizers = [
            torch.optim.Muon(matrices, lr=config.learning_rate, weight_decay=0.0),
            torch.optim.AdamW(others, lr=config.adam_learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.soft_mask: SoftMask | None = None
        if config.residual_context in _STEEPNESS:
            # of the model, so that it is saved, clipped and resumed like the rest of it
            self.soft_mask = self.model.soft_mask = SoftMask(_STEEPNESS[config.residual_context])
            optimizers.append(torch.optim.AdamW(self.soft_mask.parameters(), lr=_SOFT_RATE, weight_decay=0.0))
        super().__init__(config, directory, self.model, optimizers)

    def loss(self) -> Tensor:
        """The objective, for the problems of the next step."""
        batch = self.examples.masked(self.step, self.mask_token_id, self.generator)
        attention, masked = batch.attention_mask, batch.masked
        with torch.autocast("cpu", torch.bfloat16):
            embedded = self.model.get_input_embeddings()(batch.tokens)
            if self.reference is not None:
                embedded = self._with_context(self.reference, residual_context, embedded, batch)
            elif self.soft_mask is not None and self._soft():
                embedded = self._with_context(self.model, self.soft_mask, embedded, batch)
            logits = self._logits(self.model, embedded, attention, masked)
        return masked_cross_entropy(logits, batch.answers, masked, batch.probability)

    def _logits(self, model: Any, embedded: Tensor, attention: Tensor, masked: Tensor) -> Tensor:
        """Logits ``(M, V)`` where ``masked`` ``(B, L)``; ``embedded`` ``(B, T, H)`` ends with these L."""
        hidden = model.model(inputs_embeds=embedded, attention_mask=attention).last_hidden_state
        length = masked.shape[1]
        first = embedded.shape[1] - length - self.family.shift_logits  # of the rows about the completion
        logits: Tensor = model.lm_head(hidden[:, first : first + length][masked])
        return logits

    def _soft(self) -> bool:
        """Whether the next batch has soft masks; drawn apart, so that data and masks are those without."""
        rng = np.random.Generator(np.random.PCG64([self.config.seed, self.step]))
        return bool(rng.random() < _SOFT_SHARE)

    def _with_context(self, thinking: Any, mix: Mix, embedded: Tensor, batch: MaskedAnswers) -> Tensor:
        """``embedded`` ``(2 B, T, H)`` with a mix of what a model thinks in the place of plain masks."""
        with torch.no_grad():
            seen = thinking.get_input_embeddings()(batch.tokens)
            logits = self._logits(thinking, seen, batch.attention_mask, batch.masked).float()
            logits[:, self.mask_token_id] = -torch.inf
            probabilities = logits.softmax(-1)  # (M, V)
        table = self.model.get_input_embeddings().weight
        context = mix(probabilities, table, table[self.mask_token_id])
        where = F.pad(batch.masked, (embedded.shape[1] - batch.masked.shape[1], 0))  # (2 B, T)
        return embedded.masked_scatter(where[..., None], context.to(embedded))

    def save_checkpoint(self) -> Path:
        """Writes a complete checkpoint in its family's layout, bfloat16 like the published ones."""
        state, config = self.model.state_dict(), dict(self.model_config)
        if self.soft_mask is not None:
            numbers = {name: float(state.pop(f"soft_mask.{name}")) for name in SOFT_MASK}
            config["residual_context"] = numbers
        elif self.config.residual_context:
            config["residual_context"] = True
        write_weights(self.directory, self.family, state, config)
        save_tokenizer(self.tokenizer, self.directory)
        return self.directory

    def write_model_card(self, metrics: list[dict[str, Any]]) -> None:
        """Writes ``README.md`` and ``pretraining.json``: configuration, data, seed, time, accuracy."""
        config = asdict(self.config)
        parameters = sum(p.numel() for p in self.model.parameters())
        record = {
            "config": config,
            "parameters": parameters,
            "stages": _stages(self.config, self.directory.name, self.seconds),
            "torch": torch.__version__,
            "metrics": metrics,
        }
        write_json(self.directory / RECORD, record)
        write_text(self.directory / "README.md", _model_card(self.directory.name, record))


def _generative_task(name: str, kwargs: dict[str, Any]) -> GenerativeTask:
    task: Any = load_task(name, split="train", **kwargs)
    if not hasattr(task, "write") or not hasattr(task, "vocabulary"):
        raise ValueError(f"task {name!r} cannot write completions, so no dLLM can be trained on it")
    return task  # type: ignore[no-any-return]


def _weights_of(checkpoint: str) -> dict[str, Tensor]:
    backend: Any = load_backend(checkpoint, dtype="float32")
    return {name: tensor.clone() for name, tensor in backend.model.state_dict().items()}


def _stages(config: PretrainConfig, name: str, seconds: float) -> list[dict[str, Any]]:
    """What was trained in which order: the stages of the checkpoint this one began with, and this one."""
    values = asdict(config)
    options = {key: values[key] for key in _FLAGS}
    if config.task_kwargs:
        options["task_kwargs"] = shlex.quote(json.dumps(config.task_kwargs))
    earlier: list[dict[str, Any]] = []
    if config.init_from is not None:
        options["init_from"] = shlex.quote(config.init_from)
        if config.residual_context:
            options["residual_context"] = config.residual_context
        parent = record_of(config.init_from)
        if parent.is_file():
            earlier = read_json(parent)["stages"]
    flags = " ".join(f"--{key.replace('_', '-')} {value}".strip() for key, value in options.items())
    stage = {
        "command": f"dllm-gym pretrain {flags} --output {name}",
        "seconds": round(seconds),
        "threads": torch.get_num_threads(),
    }
    return [*earlier, stage]


def _model_card(name: str, record: dict[str, Any]) -> str:
    config = record["config"]
    stages = "\n".join(
        f"{at}. `{stage['command']}`: {stage['seconds']} s on {stage['threads']} thread(s)"
        for at, stage in enumerate(record["stages"], start=1)
    )
    rows = "\n".join(
        f"| {json.dumps(m['task_kwargs'])} | {m['agent']} | {m['completion_length']} | {m['block_length']} "
        f"| {m['episodes']} | {m['accuracy']:.3f} "
        f"({m['accuracy_ci95'][0]:.3f} to {m['accuracy_ci95'][1]:.3f}) |"
        for m in record["metrics"]
    )
    settings = "\n".join(f"| {key} | {value} |" for key, value in config.items())
    return f"""---
license: apache-2.0
library_name: dllm-gym
tags: [masked-diffusion, {config["layout"]}, dllm-gym]
---
# {name}

A small masked diffusion language model in the layout of {family_named(config["layout"]).published[0]}:
{record["parameters"]:,} parameters, trained on the task `{config["task"]}` of dllm_gym. It answers problems
of that task and nothing else.

- **Data**: the task's `train` split, generated on the fly; no problem of `validation` or `test` is in it.
- **Objective**: LLaDA's supervised fine-tuning loss (arXiv 2502.09992), end-token padding included.
- **Training**, from scratch, torch {record["torch"]} on a CPU:

{stages}

| task parameters | decoding | length | block length | test problems | accuracy (95 % interval) |
|---|---|---|---|---|---|
{rows}

| setting | value |
|---|---|
{settings}
"""


_FLAGS = (
    *("task", "layout", "width", "layers", "heads", "kv_heads", "mlp_width"),
    *("steps", "batch_size", "learning_rate", "seed"),
)
