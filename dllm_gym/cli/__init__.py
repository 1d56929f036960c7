"""The ``dllm-gym`` command: a file for each group of commands, and what they share.

``options`` has the options, ``screen`` says what goes where, ``program`` is the program around the commands.
"""

from dllm_gym.cli import (  # noqa: F401  # the commands
    evaluation,
    generation,
    looking,
    models,
    names,
    offline,
    serving,
    sharing,
)
from dllm_gym.cli.program import app, main

__all__ = ["app", "main"]
