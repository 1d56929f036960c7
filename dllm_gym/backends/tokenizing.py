"""A checkpoint's tokenizer: loaded by transformers' own classes, its failures told as what they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dllm_gym.backends.families import Family
from dllm_gym.backends.loading import optional_file


def load_tokenizer(source: str | Path, family: Family) -> Any:
    """The checkpoint's tokenizer.

    Raises:
        ValueError: If there is none, or it does not load.
    """
    import transformers

    name = "PreTrainedTokenizerFast"
    if optional_file(source, "tokenizer.json") is None:
        name = family.tokenizer_class  # Dream publishes Qwen2's vocabulary and merges instead
        _check_vocabulary(source, getattr(transformers, name))
    with failures_of(f"the tokenizer of {source}"):
        tokenizer = getattr(transformers, name).from_pretrained(source)
    if name == "AutoTokenizer":
        _check_vocabulary(source, type(tokenizer))
    return tokenizer


@contextmanager
def failures_of(what: str) -> Iterator[None]:
    """Tells whatever a tokenizer's files bring its parser to as ``ValueError``.

    Some of it is a panic of the library ``tokenizers``, which is no ``Exception``.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(f"{what} fails: {reason or type(error).__name__}") from error


def _check_vocabulary(source: str | Path, tokenizer_class: Any) -> None:
    # where its files are missing a class makes a tokenizer that knows no words
    files: dict[str, str] = getattr(tokenizer_class, "vocab_files_names", {})  # AutoTokenizer has none
    needed = [file for role, file in files.items() if role != "tokenizer_file"]
    if files and (not needed or any(optional_file(source, file) is None for file in needed)):
        other = f", nor {' and '.join(needed)}" if needed else ""
        raise ValueError(f"{source} has no tokenizer: no tokenizer.json{other}")
