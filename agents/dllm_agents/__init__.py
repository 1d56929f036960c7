"""dllm_agents: learned unmasking policies for dllm_gym."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dllm_agents.checkpoint import load_policy, save_policy
    from dllm_agents.export import export_policy
    from dllm_agents.posttraining.running import posttrain
    from dllm_agents.sb3.env import make_sb3_env
    from dllm_agents.studies.running import study
    from dllm_agents.training import train

__all__ = ["export_policy", "load_policy", "make_sb3_env", "posttrain", "save_policy", "study", "train"]

_HOMES = {
    "export_policy": "dllm_agents.export",
    "load_policy": "dllm_agents.checkpoint",
    "save_policy": "dllm_agents.checkpoint",
    "make_sb3_env": "dllm_agents.sb3.env",
    "posttrain": "dllm_agents.posttraining.running",
    "study": "dllm_agents.studies.running",
    "train": "dllm_agents.training",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
