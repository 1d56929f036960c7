"""Frozen dLLMs by registered name, local directory or hub id, built once per process."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm_gym.arguments import call_named

if TYPE_CHECKING:
    from dllm_gym.backends.base import Backend, Prediction
    from dllm_gym.backends.callable_backend import CallableBackend

__all__ = ["Backend", "CallableBackend", "Prediction", "backend_names", "load_backend", "register_backend"]

ASSETS = Path(__file__).parent.parent / "assets"

_factories: dict[str, Callable[..., Backend]] = {}
_loaded: dict[tuple[str, str], Backend] = {}
_loading = threading.RLock()  # two threads that ask for the same dLLM get one; a factory may ask for another


def __getattr__(name: str) -> Any:
    # the protocol needs torch, which importing this package must not
    if name in ("Backend", "Prediction"):
        from dllm_gym.backends import base

        return getattr(base, name)
    if name == "CallableBackend":
        from dllm_gym.backends.callable_backend import CallableBackend

        return CallableBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register_backend(name: str, factory: Callable[..., Backend]) -> None:
    """Makes ``load_backend(name, **kwargs)`` call ``factory(**kwargs)``, once per process and kwargs."""
    _factories[name] = factory
    for key in [key for key in _loaded if key[0] == name]:
        del _loaded[key]


def embedded_names() -> list[str]:
    """The dLLMs that ship with the package."""
    return sorted(path.parent.name for path in ASSETS.glob("*/config.json"))


def backend_names() -> list[str]:
    """The names ``load_backend`` knows; local directories and hub ids work besides."""
    return sorted({*embedded_names(), *_factories})


def load_backend(name_or_path: str | Path, **kwargs: Any) -> Backend:
    """Loads a frozen dLLM; a second call with the same arguments returns the same object.

    Args:
        name_or_path: A name from ``backend_names()``, a local checkpoint directory, or a hub id
            ``owner/name``. Only a hub id touches the network.
        **kwargs: For embedded and transformers models: ``device``, ``dtype``, ``attn_implementation``,
            ``device_map``, ``quantization``, ``compile``, ``cache`` and more (see ``TransformersBackend``).

    Returns:
        The backend; ``.model`` is the transformers model, ``.tokenizer`` its tokenizer.

    Raises:
        ValueError: For an unknown name, an unsupported checkpoint or one that does not load completely.
    """
    name = str(name_or_path)
    key = (name, json.dumps(kwargs, sort_keys=True, default=str))
    with _loading:
        if key not in _loaded:
            _loaded[key] = _build(name, kwargs)
        return _loaded[key]


def _build(name: str, kwargs: dict[str, Any]) -> Backend:
    if name in _factories:
        registered: Backend = call_named(f"backend {name!r}", _factories[name], kwargs)
        return registered
    is_source = Path(name).is_dir() or re.fullmatch(r"[\w.-]+/[\w.-]+", name)
    if name not in embedded_names() and not is_source:
        raise ValueError(
            f"unknown backend {name!r}; known: {', '.join(backend_names())}; "
            "or give a checkpoint directory or a hub id such as GSAI-ML/LLaDA-8B-Instruct"
        )
    from dllm_gym.backends.transformers_backend import TransformersBackend

    source = ASSETS / name if name in embedded_names() else name
    loaded: Backend = call_named(f"backend {name!r}", TransformersBackend, {"source": source, **kwargs})
    return loaded
