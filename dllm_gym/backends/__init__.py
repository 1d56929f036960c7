"""Frozen dLLMs by registered name, local directory or hub id, built once per process."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm_gym.arguments import call_named
from dllm_gym.suggestions import did_you_mean

if TYPE_CHECKING:
    from dllm_gym.backends.base import Backend, Prediction
    from dllm_gym.backends.callable_backend import CallableBackend

__all__ = ["Backend", "CallableBackend", "Prediction", "backend_names", "load_backend", "register_backend"]

ASSETS = Path(__file__).parent.parent / "assets"

_factories: dict[str, Callable[..., Backend]] = {}
# By source and keywords: what was built, and a fingerprint of the files it was built of.
_loaded: dict[tuple[str, Hashable], tuple[Hashable, Backend]] = {}
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

    Of a directory this holds as long as its files stay what they are. Objects among the keywords are the same
    if they are equal and can be hashed, or are one and the same object.

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
    with _loading:
        source = _source(name)
        key, files = (source, _frozen(kwargs)), _fingerprint(source)
        if key not in _loaded or _loaded[key][0] != files:
            _loaded.pop(key, None)  # or two were in memory
            _loaded[key] = files, _build(name, source, kwargs)
        return _loaded[key][1]


def own_backend(name_or_path: str | Path, **kwargs: Any) -> Backend:
    """Loads a dLLM that nobody else holds, so that its weights may be changed: see ``load_backend``."""
    name = str(name_or_path)
    return _build(name, _source(name), kwargs)


def _source(name: str) -> str:
    """A registered name, the absolute path of a directory, or a hub id."""
    if name in _factories:
        return name
    directory = ASSETS / name if name in embedded_names() else Path(name)
    if directory.is_dir():
        return str(directory.absolute())  # what a relative path means changes with the working directory
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        known = backend_names()
        raise ValueError(
            f"unknown backend {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}; "
            "or give a checkpoint directory or a hub id such as GSAI-ML/LLaDA-8B-Instruct"
        )
    return name


def _build(name: str, source: str, kwargs: dict[str, Any]) -> Backend:
    if name in _factories:
        registered: Backend = call_named(f"backend {name!r}", _factories[name], kwargs)
        return registered
    from dllm_gym.backends.transformers_backend import TransformersBackend

    loaded: Backend = call_named(f"backend {name!r}", TransformersBackend, {"source": source, **kwargs})
    return loaded


def _fingerprint(source: str) -> Hashable:
    """Tells the files of a directory from what they were before; empty for a name or hub id."""
    if source in _factories or not Path(source).is_dir():
        return ()
    files = [(path.name, path.stat()) for path in sorted(Path(source).glob("[!.]*")) if path.is_file()]
    # the time of the last change of any kind, which a tool that sets the other times cannot set
    return tuple((name, found.st_ino, found.st_size, found.st_ctime_ns) for name, found in files)


def _frozen(value: Any) -> Hashable:
    """Something to be equal and hashed by, for any keyword. It keeps what it stands for alive."""
    if isinstance(value, Mapping):
        return tuple(sorted((str(key), _frozen(one)) for key, one in value.items()))
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    if dataclasses.is_dataclass(value) and type(value).__hash__ is None:  # a quantization config
        return type(value), _frozen(vars(value))
    try:
        hash(value)
    except TypeError:
        return _Itself(value)
    return type(value), value


class _Itself:
    """Equal to nothing but what holds the very same object."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)
