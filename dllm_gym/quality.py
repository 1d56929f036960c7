"""Trains a quality head on a dLLM: ``dllm-gym quality-head``.

PRISM's recipe (arXiv 2510.01384): every token of a right answer is masked with probability t ~ U(0, 1), the
dLLM writes a few of the masks, at drawn positions and with drawn tokens, and the head is asked of each of
these, given the canvas on which they stand, whether it is the answer's. Trained by cross-entropy it learns
how likely a token is given all others: what the dLLM would say of it if it did not see it.

What differs: the released code trains the dLLM along, on this loss and that of pretraining together. Here the
dLLM is frozen, so that whatever is known of it stays true and the head is a file beside its weights.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dllm_gym.backends import load_backend
from dllm_gym.backends.quality import QualityHead, write_quality_head
from dllm_gym.backends.transformers_backend import TransformersBackend
from dllm_gym.evaluation.statistics import separation
from dllm_gym.files import write_atomically, write_json, write_text
from dllm_gym.pretrain import Examples
from dllm_gym.resumable import Training
from dllm_gym.sharing import CARD, DLLM
from dllm_gym.trained import trained_tasks

RECORD = "quality_head.json"
_HEADING = "\n## Quality head\n"


@dataclass(frozen=True)
class QualityConfig:
    """Everything that determines the training of a quality head.

    Attributes:
        dllm: Name or directory of a dLLM from ``dllm-gym pretrain``; the tasks are those it was trained on.
        reveal: How many masks of a canvas the dLLM writes.
        steps: Optimiser steps.
        batch_size: Problems per step; each is masked twice, with complementary masks.
        learning_rate: Of AdamW.
        warmup: Steps of linear warm-up.
        decay: Share of the steps, at the end, over which the rate falls linearly to zero.
        seed: Seeds weights, data, masks and what the dLLM writes.
    """

    dllm: str
    reveal: int = 4
    steps: int = 1000
    batch_size: int = 32
    learning_rate: float = 3e-3
    warmup: int = 50
    decay: float = 0.6
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("reveal", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if self.warmup < 0:
            raise ValueError(f"warmup must be at least 0, got {self.warmup}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay must be above 0 and at most 1, got {self.decay}")


@dataclass(frozen=True)
class Judged:
    """Canvases on which a dLLM wrote some of the masks of right answers.

    Attributes:
        tokens: ``(B, P + L)`` int64.
        attention_mask: ``(B, P + L)`` int64, 0 at padding.
        written: ``(B, L)`` bool, where the dLLM wrote.
        right: ``(M,)`` bool, of these M tokens in row-major order: whether they are the answer's.
    """

    tokens: Tensor
    attention_mask: Tensor
    written: Tensor
    right: Tensor


def judged_canvases(
    backend: TransformersBackend, examples: Examples, number: int, reveal: int, generator: torch.Generator
) -> Judged:
    """PRISM's samples: masked answers, and ``reveal`` masks of each, or all, written by the dLLM.

    Args:
        backend: The dLLM.
        examples: Where the answers are from.
        number: Of the batch.
        reveal: Most tokens to write on one canvas.
        generator: What masks, positions and tokens are drawn from.
    """
    batch = examples.masked(number, backend.mask_token_id, generator)
    tokens, attention_mask, answers = batch.tokens, batch.attention_mask, batch.answers
    written = drawn_among(batch.masked, reveal, generator)
    (probabilities,) = _asked(backend, tokens, attention_mask, answers.shape[1], "probabilities")
    drawn = torch.multinomial(probabilities[written], 1, generator=generator)[:, 0]  # (M,)
    tokens[:, -answers.shape[1] :][written] = drawn
    return Judged(tokens, attention_mask, written, drawn == answers[written])


def drawn_among(among: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """``number`` positions of every row ``(B, L)`` drawn uniformly among some; all where there are fewer."""
    draws = torch.rand(among.shape, generator=generator).masked_fill(~among, 2.0)
    ranks = draws.argsort(dim=1).argsort(dim=1)
    return among & (ranks < number)


def _asked(
    backend: TransformersBackend, tokens: Tensor, attention_mask: Tensor, length: int, *statistics: str
) -> list[Tensor]:
    """Statistics ``(B, L, ...)`` of canvases that end with L positions, on the CPU."""
    said = backend.predict(tokens, attention_mask, slice(-length, None), statistics=statistics)
    return [said.statistics[name].cpu().clone() for name in statistics]  # copies can have gradients


class QualityTrainer(Training):
    """One resumable training of a quality head in a directory.

    Args:
        config: What to train.
        directory: Where the training state and, at the end, the checkpoint with its head go. It may be the
            checkpoint's own.

    Raises:
        ValueError: If the dLLM is none from ``dllm-gym pretrain``, or the directory holds another run's
            state.
    """

    state_name = "quality_state.pt"
    config: QualityConfig

    def __init__(self, config: QualityConfig, directory: str | Path) -> None:
        backend = load_backend(config.dllm)
        tasks = trained_tasks(config.dllm, "train")
        if not isinstance(backend, TransformersBackend) or not tasks:
            raise ValueError(
                f"a quality head is trained on what its dLLM was trained on, and {config.dllm} does not say: "
                "give an embedded dLLM, or the directory of one from dllm-gym pretrain"
            )
        self.backend = backend
        self.examples = Examples(tasks, backend.tokenizer, config.seed, config.batch_size)
        torch.manual_seed(config.seed)
        head = QualityHead(backend.hidden_width)
        optimizer = torch.optim.AdamW(head.parameters(), lr=config.learning_rate, weight_decay=0.0)
        super().__init__(config, directory, head, [optimizer])

    def loss(self) -> Tensor:
        """Binary cross-entropy over the tokens that the dLLM wrote."""
        judged = judged_canvases(self.backend, self.examples, self.step, self.config.reveal, self.generator)
        length = judged.written.shape[1]
        (hidden,) = _asked(self.backend, judged.tokens, judged.attention_mask, length, "hidden")
        log_odds = self.model(hidden[judged.written])
        return F.binary_cross_entropy_with_logits(log_odds, judged.right.to(log_odds.dtype))

    def measure(self, problems: int) -> dict[str, float]:
        """How well right tokens are told from wrong ones on test problems: areas under the ROC curve.

        ``quality`` is that of the head, ``written`` that of the dLLM's probability of the token it sees, and
        ``unseen`` that of its probability were the token masked, which takes a forward per token.
        ``right`` is the share of right tokens.
        """
        size, length = self.config.batch_size, 0
        tasks = trained_tasks(self.config.dllm, "test")
        examples = Examples(tasks, self.backend.tokenizer, self.config.seed, size)
        generator = torch.Generator().manual_seed(self.config.seed)
        found: dict[str, list[Tensor]] = {"quality": [], "written": [], "unseen": [], "right": []}
        for number in range(-(-problems // size)):
            judged = judged_canvases(self.backend, examples, number, self.config.reveal, generator)
            length, at = judged.written.shape[1], judged.written
            hidden, seen = _asked(
                self.backend, judged.tokens, judged.attention_mask, length, "hidden", "written"
            )
            found["quality"].append(self.model(hidden[at]).detach())
            found["written"].append(seen[at])
            found["unseen"].append(self._unseen(judged))
            found["right"].append(judged.right)
        values = {name: torch.cat(parts).numpy() for name, parts in found.items()}
        right = values.pop("right")
        areas = {name: round(separation(each, right), 4) for name, each in values.items()}
        return {**areas, "right": round(float(right.mean()), 4)}

    def _unseen(self, judged: Judged) -> Tensor:
        """The dLLM's probability ``(M,)`` of each token that was written, on the canvas without it."""
        rows, positions = judged.written.nonzero(as_tuple=True)
        length = judged.written.shape[1]
        tokens, attention_mask = judged.tokens[rows], judged.attention_mask[rows]
        number = torch.arange(len(rows))
        standing = tokens[:, -length:][number, positions]
        tokens[:, -length:][number, positions] = self.backend.mask_token_id
        (probabilities,) = _asked(self.backend, tokens, attention_mask, length, "probabilities")
        return probabilities[number, positions, standing]

    def save(self, areas: dict[str, float]) -> Path:
        """Writes the head, a record of its training, and a section of the card; the checkpoint, elsewhere.

        Args:
            areas: What ``measure`` found.
        """
        source = Path(self.backend.source)
        if source.resolve() != self.directory.resolve():
            for name in DLLM.files:
                if (source / name).is_file():
                    write_atomically(self.directory / name, partial(shutil.copyfile, source / name))
        write_quality_head(self.directory, self.model)
        record = {
            "config": asdict(self.config),
            "command": _command(self.config, self.directory.name),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "seconds": round(self.seconds),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "areas": areas,
        }
        write_json(self.directory / RECORD, record)
        card = self.directory / CARD
        before = card.read_text(encoding="utf-8") if card.is_file() else f"# {self.directory.name}\n"
        write_text(card, before.partition(_HEADING)[0] + _section(record))
        return self.directory


def _command(config: QualityConfig, name: str) -> str:
    values = asdict(config)
    flags = " ".join(f"--{key.replace('_', '-')} {values[key]}" for key in _FLAGS)
    return f"dllm-gym quality-head --backend {shlex.quote(config.dllm)} {flags} --output {name}"


def _section(record: dict[str, Any]) -> str:
    areas = record["areas"]
    return f"""{_HEADING}
PRISM's (arXiv 2510.01384), {record["parameters"]:,} parameters, trained on the frozen dLLM:
`{record["command"]}`: {record["seconds"]} s on {record["threads"]} thread(s), torch {record["torch"]}.
Of tokens that the dLLM drew on test problems {areas["right"]:.1%} are right. Area under the ROC curve with
which they are told from the others: {areas["quality"]:.3f}. The dLLM's own probability of the token has
{areas["written"]:.3f}, and {areas["unseen"]:.3f} if the token is masked, which takes a forward per token.
"""


_FLAGS: Sequence[str] = ("reveal", "steps", "batch_size", "learning_rate", "seed")
