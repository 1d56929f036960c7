"""Builds the tokenizer of an embedded dLLM: whole words, single digits, its family's special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dllm_gym.files import write_json, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

UNKNOWN = "<|unknown|>"


@dataclass(frozen=True)
class SpecialTokens:
    """How a family spells its special tokens: begin and end of text, end of a turn, mask."""

    bos: str
    eos: str
    eot: str
    mask: str


def _chat_template(special: SpecialTokens) -> str:
    # One user turn is all these models know. Unlike the publishers' templates there are no role headers:
    # they would only make every forward longer.
    return (
        "{% if messages | length != 1 or messages[0]['role'] != 'user' %}"
        "{{ raise_exception('this model answers a single user message') }}{% endif %}"
        "{{ '" + special.bos + "' + messages[0]['content'] | trim + '" + special.eot + "' }}"
    )


def build_tokenizer(words: Sequence[str], special: SpecialTokens) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over ``words`` whose ``decode`` writes digits together again."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = [special.bos, special.eos, special.eot, UNKNOWN, *dict.fromkeys(words), special.mask]
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token=UNKNOWN)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(r"####|[A-Za-z]+|[0-9]|[^A-Za-z0-9\s]"), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="##no-prefix##", cleanup=False),  # joins with single spaces
            decoders.Fuse(),
            decoders.Replace(Regex(r"(?<=\d) (?=\d)"), ""),
            decoders.Replace(Regex(r" (?=[.,?])"), ""),
        ]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=special.bos,
        eos_token=special.eos,
        pad_token=special.eos,
        unk_token=UNKNOWN,
        additional_special_tokens=[special.eot, special.mask],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = _chat_template(special)
    return fast


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Writes the tokenizer files in the form of LLaDA's repository, which transformers 4 reads too."""
    write_text(directory / "tokenizer.json", tokenizer.backend_tokenizer.to_str(pretty=True) + "\n")
    roles, extra = tokenizer.special_tokens_map, tokenizer.extra_special_tokens
    write_json(directory / "special_tokens_map.json", {**roles, "additional_special_tokens": extra})
    write_json(
        directory / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_eos_token": False,
            "additional_special_tokens": extra,
            **roles,
            "chat_template": tokenizer.chat_template,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1000000000000000019884624838656,
            "padding_side": "left",
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
