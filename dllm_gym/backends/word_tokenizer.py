"""Builds the tokenizer of an embedded dLLM: whole words, single digits, LLaDA's special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dllm_gym.files import write_json, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS, EOS, EOT, MASK = "<|startoftext|>", "<|endoftext|>", "<|eot_id|>", "<|mdm_mask|>"
UNKNOWN = "<|unknown|>"

# One user turn is all these models know. Unlike LLaDA's template there are no role headers: they
# would only make every forward longer.
CHAT_TEMPLATE = (
    "{% if messages | length != 1 or messages[0]['role'] != 'user' %}"
    "{{ raise_exception('this model answers a single user message') }}{% endif %}"
    "{{ '" + BOS + "' + messages[0]['content'] | trim + '" + EOT + "' }}"
)


def build_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over ``words`` whose ``decode`` writes digits together again."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = [BOS, EOS, EOT, UNKNOWN, *dict.fromkeys(words), MASK]
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
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=[EOT, MASK],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Writes the tokenizer files in the form of LLaDA's repository, which transformers 4 reads too."""
    write_text(directory / "tokenizer.json", tokenizer.backend_tokenizer.to_str(pretty=True) + "\n")
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS, "unk_token": UNKNOWN}
    extra = [EOT, MASK]
    write_json(directory / "special_tokens_map.json", {**special, "additional_special_tokens": extra})
    write_json(
        directory / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_eos_token": False,
            "additional_special_tokens": extra,
            **special,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1000000000000000019884624838656,
            "padding_side": "left",
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
