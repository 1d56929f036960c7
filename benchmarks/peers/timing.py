"""How fast a peer's loop and ours are, in turns on the same machine."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

import dllm_gym
from benchmarks.peers.canvases import TASK, Case, Loop
from dllm_gym.evaluation import evaluate

ROWS = 64


def time_both(loop: Loop, batches: bool, case: Case, backend: Any, rounds: int) -> dict[str, Any]:
    """For 1 row and ``ROWS``: problems per second of both, medians of rounds in turns, and their ratio.

    A problem's time begins when it is drawn and ends when its answer is text; ours is also scored.
    """
    task = dllm_gym.load_task(TASK, split="test")

    def write(first: int, last: int) -> list[np.ndarray]:
        prompts = [backend.encode_prompt(task.problem(index).prompt) for index in range(first, last)]
        completions = loop(backend.model, prompts, case, backend)
        for completion in completions:
            backend.decode(completion)
        return list(completions)

    settings = {"task": TASK, "backend": backend, "block_length": case.block_length}
    found = {}
    for rows in (1, ROWS):
        size = rows if batches else 1
        problems = 8 * ROWS if rows > 1 else ROWS // 2  # one at a time takes long
        theirs, ours, ratios = [], [], []
        for _ in range(rounds):
            started = time.perf_counter()
            texts = [text for first in range(0, problems, size) for text in write(first, first + size)]
            between = time.perf_counter()
            evaluate(case.agent, problems, "test", batch_size=rows, **settings)
            theirs.append(problems / (between - started))
            ours.append(problems / (time.perf_counter() - between))
            ratios.append(ours[-1] / theirs[-1])
        recorded = evaluate(case.agent, problems, "test", batch_size=rows, record=True, **settings)
        tokens: Any = recorded.recording and recorded.recording.tokens
        same = sum(np.array_equal(one, other) for one, other in zip(texts, tokens, strict=True))
        found[f"{rows} rows"] = {
            "peer": round(statistics.median(theirs), 2),
            "ours": round(statistics.median(ours), 2),
            "ratio": round(statistics.median(ratios), 2),
            "same_text": same / problems,
        }
    return found
