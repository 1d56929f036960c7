"""What a forked process needs, such as a worker of Gymnasium's ``AsyncVectorEnv``."""

from __future__ import annotations

import os
import sys

if hasattr(os, "register_at_fork"):

    def _one_thread() -> None:
        """Else torch would wait for ever for its parent's threads, which did not come along."""
        torch = sys.modules.get("torch")
        if hasattr(torch, "set_num_threads"):
            torch.set_num_threads(1)  # type: ignore[union-attr]

    os.register_at_fork(after_in_child=_one_thread)
