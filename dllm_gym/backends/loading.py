"""From a directory or hub id to a transformers model and tokenizer: nothing executed, nothing left out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dllm_gym.backends.families import Family
from dllm_gym.files import read_json
from dllm_gym.hub import ask_once

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # which tensor is in which of several files

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Fields(dict[str, Any]):
    """The fields of a ``config.json``. Asking for one that is not there raises ``ValueError``."""

    def __init__(self, path: Path) -> None:
        super().__init__(_read_object(path))
        self._path = path

    def __missing__(self, name: str) -> Any:
        raise ValueError(f"{self._path} lacks the field {name!r}")


def read_config(source: str | Path) -> Fields:
    """``config.json`` of a checkpoint.

    Raises:
        FileNotFoundError: If a directory has none, or there is neither a directory nor a model on the hub.
        ValueError: If it holds no JSON object, or if there is a LoRA adapter, beside a model or alone.
    """
    with _hub(source):
        if not Path(source).is_dir():
            ask_once(str(source), "config.json")
        adapter = optional_file(source, "adapter_config.json")
    if adapter is not None:
        raise ValueError(
            f"{source} holds a LoRA adapter (adapter_config.json), which is not applied here: merge it into "
            "its model by peft's merge_and_unload(), save that by save_pretrained() and load the result"
        )
    path = Path(source) / "config.json"
    if Path(source).is_dir() and not path.is_file():
        hint = instead_of("config.json", Path(source))
        raise FileNotFoundError(f"{source} is no checkpoint directory: it has no config.json{hint}")
    if not path.is_file():
        from huggingface_hub import hf_hub_download

        with _hub(source):
            path = Path(hf_hub_download(str(source), "config.json"))
    return Fields(path)


@contextmanager
def _hub(source: str | Path) -> Iterator[None]:
    """What cannot be had from a hub may have been meant as a directory."""
    try:
        yield
    except (OSError, ValueError) as error:
        if Path(source).is_dir():
            raise
        reason = str(error).partition("\n")[0]
        raise FileNotFoundError(
            f"there is no directory {source} here, nor does a hub give a dLLM of that name: {reason}"
        ) from error


def read_generation_config(source: str | Path) -> dict[str, Any]:
    """``generation_config.json`` of a checkpoint; empty where there is none."""
    path = optional_file(source, "generation_config.json")
    return {} if path is None else _read_object(path)


def optional_file(source: str | Path, name: str) -> Path | None:
    """The file of that name of a directory or hub id; ``None`` if it has none."""
    from transformers.utils import cached_file

    path = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    return None if path is None else Path(path)


def shard_names(index: Path) -> list[str]:
    """The files that an ``INDEX`` says the tensors are in.

    Raises:
        ValueError: If it is none, or names anything but safetensors beside it: a path elsewhere, a pickle.
    """
    content = _read_object(index)
    where = content.get("weight_map")
    if not isinstance(where, dict) or not isinstance(content.get("metadata"), dict):
        raise ValueError(f"{index} must hold the objects weight_map and metadata, got {sorted(content)}")
    for name in where.values():
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise ValueError(f"{index} names the file {name!r}; only *.safetensors beside it are read")
    return sorted(set(where.values()))


def instead_of(name: str, directory: Path) -> str:
    """What a directory has in place of a file that it lacks, to go on with a message."""
    inside = sorted({found.parent.name for found in directory.glob(f"*/{name}")}, key=_by_number)
    pickles = sorted(path.name for path in directory.iterdir() if path.suffix == ".bin")
    hints = {
        "; give one of the directories in it that have one": inside,
        "; pickles are not looked at, save them as safetensors where you trust them": pickles,
    }
    return "".join(f"{hint}: {', '.join(found)}" for hint, found in hints.items() if found)


def _by_number(name: str) -> tuple[int, str]:
    number = re.search(r"\d+$", name)
    return int(number[0]) if number else -1, name


def _check_weights(source: str | Path, config: Mapping[str, Any]) -> None:
    """Refuses weights that are not in ``WEIGHTS`` or in the safetensors of an ``INDEX``."""
    if config.get("transformers_weights") is not None:
        raise ValueError(
            f"{source} has its weights in {config['transformers_weights']!r}, says its config.json; only "
            f"{WEIGHTS} and the files of {INDEX} are read"
        )
    index = optional_file(source, INDEX)
    if index is not None:
        shard_names(index)
    elif Path(source).is_dir() and not (Path(source) / WEIGHTS).is_file():
        hint = instead_of(WEIGHTS, Path(source))
        raise FileNotFoundError(f"{source} has neither {WEIGHTS} nor {INDEX}{hint}")


def _read_object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content


def load_model(source: str | Path, family: Family, config: Mapping[str, Any], **options: Any) -> Any:
    """The transformers model of a checkpoint, in evaluation mode and frozen.

    Args:
        source: Directory or hub id.
        family: The checkpoint's family.
        config: Its ``config.json``.
        **options: Further arguments of ``from_pretrained``.

    Raises:
        FileNotFoundError: If a directory has no safetensors.
        ValueError: If any tensor is missing, unexpected or of another shape, or weights are elsewhere.
    """
    import transformers

    _check_weights(source, config)

    translated = family.translate(config)
    if family.conversions is not None:
        from transformers.conversion_mapping import register_checkpoint_conversion_mapping

        register_checkpoint_conversion_mapping(translated.model_type, family.conversions(), overwrite=True)
    with _no_progress_bar():
        try:
            model, loading = getattr(transformers, family.model_class).from_pretrained(
                source,
                config=translated,
                key_mapping=dict(family.key_mapping),
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # reported instead, and refused below with everything else
                output_loading_info=True,
                **options,
            )
        except RuntimeError as error:  # of experts that are merged while loading; the names are in its report
            if "conversion" not in str(error):
                raise
            raise ValueError(
                f"{source} did not load completely: tensors to be merged are missing or of other shapes"
            ) from error
    _refuse_partial_loading(loading, family.unused, str(source))
    return model.eval().requires_grad_(False)


def max_length(model: Any) -> int:
    """The number of tokens a transformers model takes.

    RoBERTa and its kin give the first token the position behind that of their padding token.
    """
    longest: int = model.config.max_position_embeddings
    words = model.get_input_embeddings()
    unused = [
        table.padding_idx + 1
        for table in model.modules()
        if isinstance(table, torch.nn.Embedding) and table is not words
        if table.num_embeddings == longest and table.padding_idx is not None
    ]
    return longest - max(unused, default=0)


def resolve_dtype(dtype: str | None, device: torch.device) -> torch.dtype:
    """The type that ``TransformersBackend``'s ``dtype`` means on a device."""
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


def _refuse_partial_loading(loading: Mapping[str, Any], unused: tuple[str, ...], source: str) -> None:
    # transformers initialises what is missing and only prints a report
    problems = {}
    for kind, names in loading.items():
        wanted = [str(name) for name in names]
        if kind == "unexpected_keys":
            wanted = [name for name in wanted if not any(re.search(pattern, name) for pattern in unused)]
        if wanted:
            problems[kind] = sorted(wanted)
    if problems:
        text = "; ".join(f"{kind}: {', '.join(names[:5])}" for kind, names in problems.items())
        raise ValueError(f"{source} did not load completely: {text}")
