"""How the threads of torch wait for each other, decided before torch is loaded.

Small dLLMs on a CPU make thousands of short parallel regions per second. By default OpenMP's threads spin
between them, each on a core of its own. On a busy machine a thread that spins takes the core from the one
that all wait for, and everything takes ten times as long. Threads that sleep at once are as fast on an idle
machine, and lose no more than their share beside others.
"""

from __future__ import annotations

import os
import sys

# by which a user says how threads wait, in GNU's and LLVM's OpenMP
CHOSEN_BY = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def sleep_while_waiting() -> bool:
    """Sets ``OMP_WAIT_POLICY=PASSIVE`` for this process and those it starts.

    Returns:
        Whether it was set: not where a user chose, by any variable in ``CHOSEN_BY``, nor once torch is
        loaded, when OpenMP has read its settings.
    """
    if "torch" in sys.modules or any(name in os.environ for name in CHOSEN_BY):
        return False
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    return True
