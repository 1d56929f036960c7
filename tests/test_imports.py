"""Who imports whom among the backends, for type checkers or in earnest; which packages are installed."""

from __future__ import annotations

import ast
import graphlib
import tomllib
from pathlib import Path

import dllm_gym.backends

ROOT = Path(__file__).parents[1]
FOLDER = Path(dllm_gym.backends.__file__).parent


def test_the_backends_import_each_other_one_way():
    graph = {}
    for path in FOLDER.glob("*.py"):
        if path.stem == "__init__":
            continue  # the front door, which loads what it is asked for
        imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        within = [node for node in imports if (node.module or "").startswith("dllm_gym.backends")]
        named = {alias.name for node in within if node.module == "dllm_gym.backends" for alias in node.names}
        graph[path.stem] = named | {str(node.module).rpartition(".")[2] for node in within} - {"backends"}
    assert "families" in graph["transformers_backend"]
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names one


def test_every_package_is_in_the_wheel():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = {
        ".".join(path.parent.relative_to(place).parts)
        for place, top in ((ROOT, "dllm_gym"), (ROOT / "agents", "dllm_agents"))
        for path in (place / top).rglob("*.py")
    }
    assert found <= set(setuptools["packages"])  # others hold data
