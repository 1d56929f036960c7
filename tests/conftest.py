"""What all tests share: one thread, no network, no display, no deadlines."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from hypothesis import settings
from toy_backend import ScriptedBackend, ToyBackend, ToyTask

import dllm_gym.backends
import dllm_gym.strategies
import dllm_gym.tasks

torch.set_num_threads(1)
settings.register_profile("dllm_gym", parent=settings(), deadline=None)
settings.load_profile("dllm_gym")


@pytest.fixture(scope="module")
def toys():
    """The task ``toy`` and two dLLMs by name: ``toy``, and ``always-right``, which solves every problem of it
    whatever is revealed when, so that only steps cost.
    """
    backends = {"toy": ToyBackend, "always-right": lambda: ScriptedBackend([4, 0, 0, 0, 0, 0])}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(dllm_gym.tasks._TASKS, "toy", ToyTask)
        for name, make in backends.items():
            patch.setitem(dllm_gym.backends._factories, name, make)
        yield
    for key in [key for key in dllm_gym.backends._loaded if key[0] in backends]:
        del dllm_gym.backends._loaded[key]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The built package, made of the source distribution and nothing else, as for a release."""
    root, folder = Path(__file__).parents[1], tmp_path_factory.mktemp("built")
    checkout = folder / "checkout"
    passing = shutil.ignore_patterns(".*", "build", "dist", "runs", "__pycache__", "*.egg-info")
    shutil.copytree(root, checkout, ignore=passing)  # what builds leave behind would get into the next one
    build = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
    for what, source in (("build_sdist", checkout), ("build_wheel", folder / "sdist")):
        command = [sys.executable, "-c", build, what, str(folder)]
        subprocess.run(command, cwd=source, check=True, capture_output=True)
        if what == "build_sdist":
            (sdist,) = folder.glob("*.tar.gz")
            shutil.unpack_archive(sdist, folder, filter="data")
            (folder / sdist.name.removesuffix(".tar.gz")).rename(folder / "sdist")
    return next(folder.glob("*.whl"))


@pytest.fixture
def registries(monkeypatch):
    """What is registered in a test does not stay."""
    for module, name in (
        (dllm_gym.tasks, "_TASKS"),
        (dllm_gym.strategies, "_STRATEGIES"),
        (dllm_gym.backends, "_factories"),
        (dllm_gym.backends, "_loaded"),
    ):
        monkeypatch.setattr(module, name, dict(getattr(module, name)))
