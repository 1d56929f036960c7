"""How many positions a published loop reveals in a step, where the dLLM has no say in it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from dllm_gym.strategies.base import IntArray


@lru_cache(maxsize=64)
def dreams_masks(length: int, steps: int, eps: float) -> IntArray:
    """How many positions Dream's ``diffusion_generate`` leaves masked, after each step that reveals any.

    Time falls from 1 to ``eps`` in equal steps; a step from t to s reveals ``int(masked * (1 - s / t))``
    positions and the last step what is left. The first ones may reveal nothing: 4 positions in 5 steps are
    0, 0, 1, 1, 2. As nothing changes then, such steps are left out here.

    The numbers are float32 and ``torch.linspace`` makes them, as in the published code (arXiv 2508.15487,
    ``generation_utils.py``): in some cases rounding decides.

    Args:
        length: Positions of the completion, all masked at the beginning.
        steps: Its ``steps``.
        eps: Its ``eps``.

    Returns:
        Ascending, from 0; below ``length``.
    """
    import torch

    times = torch.linspace(1, eps, steps + 1).numpy()
    left, masked = length, []
    for share in (1 - times[1:-1] / times[:-2]).tolist():  # float32, which Python's float holds exactly
        revealed = int(np.float32(left) * np.float32(share))
        if revealed:
            left -= revealed
            masked.append(left)
    return np.array([0, *reversed(masked)])
