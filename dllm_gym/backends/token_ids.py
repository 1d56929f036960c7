"""Which tokens are mask, end and padding: read from the checkpoint's files, checked against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dllm_gym.backends.families import Family


@dataclass(frozen=True)
class TokenIds:
    """The tokens a dLLM is steered by.

    Attributes:
        mask: Stands where nothing is revealed yet.
        eos: Ends a completion.
        pad: Fills up short prompts.
        end: All tokens that end a completion, ``eos`` among them.
    """

    mask: int
    eos: int
    pad: int
    end: frozenset[int]


def read_token_ids(
    family: Family,
    config: Mapping[str, Any],
    generation_config: Mapping[str, Any],
    tokenizer: Any,
    vocab_size: int,
    source: str,
    mask_token_id: int | None = None,
) -> TokenIds:
    """Reads the ids from a checkpoint's files; see ``docs/backends.md`` for the order.

    Args:
        family: The checkpoint's family, for what its files leave out.
        config: Its ``config.json``.
        generation_config: Its ``generation_config.json``, empty if there is none.
        tokenizer: Its tokenizer.
        vocab_size: Number of rows of the embedding.
        source: For messages.
        mask_token_id: The user's word on the mask, which overrides the files.

    Raises:
        ValueError: If there is no mask or no end token, if the files disagree about the mask, or if an id
            is impossible; the message says where was looked.
    """
    eos_found = [
        *_as_list(config.get("eos_token_id")),
        *_as_list(generation_config.get("eos_token_id")),
        *_roles(tokenizer, family.end_roles),
    ]
    if not eos_found:
        roles = ", ".join(family.end_roles)
        raise ValueError(
            f"{source} has no end token: looked for eos_token_id in config.json and generation_config.json "
            f"and for {roles} in the tokenizer"
        )
    eos = eos_found[0]
    special = family.special_tokens
    end = {*eos_found, *_spelled(tokenizer, None if special is None else special.eot)}
    pad = [*_as_list(config.get("pad_token_id")), *_roles(tokenizer, ("pad_token_id",)), eos][0]
    mask = _mask(family, config, generation_config, tokenizer, vocab_size, source, mask_token_id)
    for name, value in (("end", eos), ("pad", pad), ("mask", mask)):
        if not 0 <= value < vocab_size:
            raise ValueError(f"{source} has the {name} token {value}, outside its {vocab_size} tokens")
    if mask in (*end, pad):
        raise ValueError(
            f"{source} has the mask token {mask}, which is also one of its end tokens {sorted(end)} "
            f"or its padding {pad}; give the right one with mask_token_id="
        )
    return TokenIds(mask, eos, pad, frozenset(end))


def _mask(
    family: Family,
    config: Mapping[str, Any],
    generation_config: Mapping[str, Any],
    tokenizer: Any,
    vocab_size: int,
    source: str,
    given: int | None,
) -> int:
    if given is not None:
        return given
    spelling = None if family.special_tokens is None else family.special_tokens.mask
    places: dict[str, list[int]] = {
        "mask_token_id of config.json": _as_list(config.get("mask_token_id")),
        "mask_token_id of generation_config.json": _as_list(generation_config.get("mask_token_id")),
        "the tokenizer's mask_token": _roles(tokenizer, ("mask_token_id",)),
        f"the tokenizer's {spelling}": _spelled(tokenizer, spelling),
    }
    found = {place: ids[0] for place, ids in places.items() if ids}
    if len(set(found.values())) > 1:
        said = ", ".join(f"{place} is {value}" for place, value in found.items())
        raise ValueError(f"{source} contradicts itself about the mask token: {said}; give mask_token_id=")
    if found:
        return next(iter(found.values()))
    # the publisher's word, if this is the publisher's vocabulary
    published = family.mask_token_id
    if published is not None and published < vocab_size:
        return published
    if spelling is None:
        places.pop(f"the tokenizer's {spelling}")
    fallback = f" and the published id {published} is outside its {vocab_size} tokens" if published else ""
    raise ValueError(
        f"{source} does not say which token is the mask: looked for {', '.join(places)}{fallback}; "
        "give mask_token_id="
    )


def _as_list(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [value for value in values if value is not None]


def _roles(tokenizer: Any, roles: tuple[str, ...]) -> list[int]:
    return [value for role in roles if (value := getattr(tokenizer, role, None)) is not None]


def _spelled(tokenizer: Any, token: str | None) -> list[int]:
    known = tokenizer.get_vocab()
    return [known[token]] if token is not None and token in known else []
