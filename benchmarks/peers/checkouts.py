"""Modules of somebody else's checkout, without what they import at their top and their loops do not need."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch


def load_file(checkout: Path, *places: str, without: tuple[str, ...] = ()) -> Any:
    """A module by its file; it finds the files beside it.

    Args:
        checkout: Where it is.
        places: Where it may be in there; the first that exists is taken.
        without: Names of modules that it imports and shall not get.

    Raises:
        FileNotFoundError: If there is none of them.
    """
    file = next((checkout / place for place in places if (checkout / place).is_file()), None)
    if file is None:
        *others, last = places
        raise FileNotFoundError(f"{checkout} holds no {' or '.join(filter(None, [', '.join(others), last]))}")
    spec = importlib.util.spec_from_file_location(f"peer_{abs(hash(file))}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _visit(file.parent, without):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _visit(folder: Path, without: tuple[str, ...]) -> Iterator[None]:
    """Lets imports find the files of a folder, and nothing under some names; they forget both afterwards."""
    absent = {name: MagicMock() for name in without}
    known = {name: sys.modules[name] for name in absent if name in sys.modules}
    before = set(sys.modules)
    sys.modules.update(absent)
    try:
        with patch.object(sys, "path", [str(folder), *sys.path]):
            yield
    finally:
        for name in set(sys.modules) - before:
            if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(folder):
                del sys.modules[name]
        for name in absent:
            del sys.modules[name]
        sys.modules.update(known)


def bare_import(checkout: Path, name: str, *also: str) -> Any:
    """A module of a checkout by its name, without what the packages around it, or ``also``, import.

    Raises:
        FileNotFoundError: If one of these packages is not there.
    """
    parents = [*accumulate(name.split(".")[:-1], "{}.{}".format), *also]
    for parent in parents:
        package = types.ModuleType(parent)
        package.__path__ = [str(checkout.joinpath(*parent.split(".")))]
        if not Path(package.__path__[0]).is_dir():
            raise FileNotFoundError(f"{checkout} holds no {name}: {package.__path__[0]} is missing")
        sys.modules[parent] = package
    return importlib.import_module(name)
