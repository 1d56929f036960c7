"""What a ``config.json`` says of rotary embedding (RoPE), in the form of transformers 4 or of transformers 5.

The older form has ``rope_theta`` and ``partial_rotary_factor`` beside the other fields and may have an object
``rope_scaling``. The newer one has everything in an object ``rope_parameters``. Both may be there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dllm_gym.files import is_finite

# The types whose angles depend on nothing but the distance of two tokens: what each needs besides its theta,
# and what it may have. They are computed by transformers' ``modeling_rope_utils``.
_FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), ()),
    "yarn": (
        ("factor",),
        ("original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
    ),
}
ROPE_TYPES = tuple(_FIELDS)
_FORMS = ("rope_parameters", "rope_scaling")
_BESIDE = ("rope_theta", "partial_rotary_factor")
# The others look at how long the longest row of a batch is.
_OF_THE_WHOLE_LENGTH = ("dynamic", "longrope")


def read_rope(
    family: str, config: Mapping[str, Any], types: Sequence[str] = ("default",), *, partial: bool = False
) -> dict[str, Any]:
    """The ``rope_parameters`` of a stock transformers config.

    Args:
        family: For messages.
        config: ``config.json``.
        types: What the family can do, out of ``ROPE_TYPES``.
        partial: Whether the family turns a part of each head, its ``partial_rotary_factor``, and not all.

    Raises:
        ValueError: For another type, for a field that is missing, unknown or no number above 0, and if two
            places contradict each other.
    """
    found = _merged(family, config)
    kind = found.setdefault("rope_type", "default")
    if kind not in types:
        said = ", ".join(f"{form}={config[form]!r}" for form in _FORMS if config.get(form))
        raise ValueError(
            f"{family} config has RoPE of type {kind!r}, {said}; only {' or '.join(types)} is supported"
        )
    needed, optional = _FIELDS[kind]
    needed = ("rope_theta", *needed, *(["partial_rotary_factor"] if partial else []))
    found |= {name: config[name] for name in needed if name not in found}  # which says that it is missing
    if not partial and found.pop("partial_rotary_factor", 1) != 1:
        raise ValueError(f"{family} config has a partial_rotary_factor; only 1 is supported")
    for name, value in found.items():
        if name not in ("rope_type", *needed, *optional):
            raise ValueError(
                f"{family} config has RoPE of type {kind!r} with {name}={value!r}; "
                f"only {', '.join((*needed, *optional))} are supported"
            )
        if name != "rope_type" and not (is_finite(value) and value > 0):
            raise ValueError(
                f"{family} config has RoPE with {name}={value!r}; only a number above 0 is supported"
            )
    return found


def _merged(family: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What either form says, under the names of the newer one."""
    found = {name: config[name] for name in _BESIDE if config.get(name) is not None}
    for form in filter(config.get, _FORMS):
        if not isinstance(config[form], Mapping):
            raise ValueError(f"{family} config has {form}={config[form]!r}; only an object is supported")
        for key, value in config[form].items():
            name = "rope_type" if key == "type" else key
            if value is not None and found.setdefault(name, value) != value:
                said = f"{found[name]!r} and, in {form}, {value!r}"
                raise ValueError(f"{family} config contradicts itself about {name}: {said}")
    return found


def check_native(family: str, parameters: Mapping[str, Any]) -> None:
    """Refuses what makes a row depend on its neighbours, for classes that read their config themselves.

    Args:
        family: For the message.
        parameters: ``rope_parameters``, or an object by kind of layer that holds such.

    Raises:
        ValueError: For a type that looks at the length of the whole batch.
    """
    for one in (parameters, *parameters.values()):
        if isinstance(one, Mapping) and one.get("rope_type") in _OF_THE_WHOLE_LENGTH:
            raise ValueError(
                f"{family} config has RoPE of type {one['rope_type']!r}, which looks at the longest row of a "
                "batch; only types that look at distances are supported"
            )
