"""dllm_gym: reinforcement-learning environments around masked diffusion language models.

Importing this registers ``DLLMUnmask-v0`` and the suite, sees to forked processes and waiting threads, and
nothing more: torch and transformers are imported when the first environment or backend is made.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dllm_gym import (
    forks,  # noqa: F401  # from here on forked processes work
    threads,
)
from dllm_gym.registration import ENV_ID, register_envs
from dllm_gym.suite import SUITE

if TYPE_CHECKING:
    from dllm_gym.backends import load_backend, register_backend
    from dllm_gym.envs.wrappers import (
        FullInfo,
        MultiBinaryToMultiDiscrete,
        VectorFlattenObservation,
        VectorMultiBinaryToMultiDiscrete,
    )
    from dllm_gym.evaluation import Recording, analyze, compare, evaluate
    from dllm_gym.generation import generate
    from dllm_gym.sharing import pull, push
    from dllm_gym.strategies import make_strategy, register_strategy
    from dllm_gym.tasks import load_task, register_task

__version__ = "0.2.0"
__all__ = [
    "ENV_ID",
    "SUITE",
    "FullInfo",
    "MultiBinaryToMultiDiscrete",
    "Recording",
    "VectorFlattenObservation",
    "VectorMultiBinaryToMultiDiscrete",
    "analyze",
    "compare",
    "evaluate",
    "generate",
    "load_backend",
    "load_task",
    "make_strategy",
    "pull",
    "push",
    "register_backend",
    "register_strategy",
    "register_task",
]

_HOMES = {
    "FullInfo": "dllm_gym.envs.wrappers",
    "MultiBinaryToMultiDiscrete": "dllm_gym.envs.wrappers",
    "VectorFlattenObservation": "dllm_gym.envs.wrappers",
    "VectorMultiBinaryToMultiDiscrete": "dllm_gym.envs.wrappers",
    "Recording": "dllm_gym.evaluation",
    "analyze": "dllm_gym.evaluation",
    "compare": "dllm_gym.evaluation",
    "evaluate": "dllm_gym.evaluation",
    "generate": "dllm_gym.generation",
    "pull": "dllm_gym.sharing",
    "push": "dllm_gym.sharing",
    "load_backend": "dllm_gym.backends",
    "register_backend": "dllm_gym.backends",
    "load_task": "dllm_gym.tasks",
    "register_task": "dllm_gym.tasks",
    "make_strategy": "dllm_gym.strategies",
    "register_strategy": "dllm_gym.strategies",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


threads.sleep_while_waiting()
register_envs()
