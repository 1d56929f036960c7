"""Running programs that a model wrote, in processes with as few rights as the Linux kernel can leave them."""

from dllm_gym.sandbox.base import GUARANTEES, LAYERS, Job, Limits, Outcome, SandboxError
from dllm_gym.sandbox.sandbox import Sandbox

__all__ = ["GUARANTEES", "LAYERS", "Job", "Limits", "Outcome", "Sandbox", "SandboxError"]
