"""Where rules end an answer too early: an over-confident dLLM at several block lengths, at equal steps.

Every rule reveals the same number of positions per step at every block length, so that only the order is
another. Written down: the share of right answers, and for each tenth of the steps which share of the reveals
were end tokens, how sure the dLLM was of them, and how often the rule took the leftmost mask.

Run: ``python benchmarks/end_tokens.py``; writes ``benchmarks/results/end_tokens.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from limit import RESULTS
from suite import COMPILED

from dllm_gym.evaluation import evaluate
from dllm_gym.evaluation.profiles import profile
from dllm_gym.evaluation.recording import Recording
from dllm_gym.files import write_json, write_text
from dllm_gym.suite import member

RULES = ("confidence", "eoser")
BLOCKS = (8, 32, None)
PARTS = 10


def by_tenth(recording: Recording) -> dict[str, list[float | None]]:
    """For each tenth of the steps: end tokens' share of the reveals and their mean confidence.

    End tokens are the positions from the first one on; ``None`` where a tenth revealed none of them.
    """
    if recording.text_length is None:
        raise ValueError("the recording does not know where texts end")
    behind = np.arange(recording.length) >= recording.text_length[:, None]  # (N, L)
    tenth = (recording.reveal_step - 1) * PARTS // recording.steps[:, None]  # (N, L)
    shares: list[float | None] = []
    sure: list[float | None] = []
    for part in range(PARTS):
        now = tenth == part
        ends = now & behind
        shares.append(round(float(ends.sum() / now.sum()), 3) if now.any() else None)
        sure.append(round(float(recording.confidence[ends].mean()), 3) if ends.any() else None)
    return {"end_tokens": shares, "confidence": sure}


def measure(
    rule: str, per_step: int, block_length: int | None, episodes: int, env: dict[str, Any]
) -> dict[str, Any]:
    """One rule at one block length."""
    agent = f"{rule}:k={per_step}"
    result = evaluate(agent, episodes, **{**env, "block_length": block_length}, record=True)
    recording = result.recording
    assert recording is not None
    assert recording.text_length is not None
    found = profile(recording)
    return {
        "rule": rule,
        "per_step": per_step,
        "block_length": block_length,
        "accuracy": result.accuracy,
        "accuracy_ci95": [round(float(end), 4) for end in result.accuracy_ci95],
        "steps": round(result.nfe_mean, 2),
        "text_length": round(float(recording.text_length.mean()), 2),
        "local_ar_ness": round(float(found.local_ar_ness[0]), 3),
        "global_ar_ness": round(float(found.global_ar_ness[0]), 3),
        **by_tenth(recording),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """A line per rule, a column per block length; then, for the first rule, a line per tenth of the steps."""
    blocks = list(dict.fromkeys(row["block_length"] for row in rows))
    names = ["full" if block is None else f"B = {block}" for block in blocks]
    lines = [f"| right | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for rule in dict.fromkeys(row["rule"] for row in rows):
        cells = [f"{row['accuracy']:.3f}" for row in rows if row["rule"] == rule]
        lines.append(f"| `{rule}` | {' | '.join(cells)} |")
    first = [row for row in rows if row["rule"] == rows[0]["rule"]]
    lines += ["", f"| tenth of the steps, `{rows[0]['rule']}` | {' | '.join(names)} |", lines[1]]
    for part in range(PARTS):
        cells = [_told(row["end_tokens"][part], row["confidence"][part]) for row in first]
        lines.append(f"| {part + 1} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _told(share: float | None, confidence: float | None) -> str:
    if not share:
        return "0"
    return f"{share:.2f} at {confidence:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env", default="DLLMUnmask/Overconfident-v0", help="a member of the suite")
    parser.add_argument("--per-step", type=int, default=4, help="positions revealed in a step")
    parser.add_argument("--rules", nargs="+", default=list(RULES))
    parser.add_argument("--episodes", type=int, default=100, help="test problems")
    parser.add_argument("--output", type=Path, default=RESULTS / "end_tokens.json")
    arguments = parser.parse_args()
    env = {**member(arguments.env).env, "backend_kwargs": COMPILED}
    rows = [
        measure(rule, arguments.per_step, block, arguments.episodes, env)
        for rule in arguments.rules
        for block in BLOCKS
    ]
    write(rows, arguments.env, arguments.episodes, arguments.output)


def write(rows: list[dict[str, Any]], env: str, episodes: int, output: Path) -> None:
    """The results as JSON, and as tables beside it."""
    write_json(output, {"env": env, "episodes": episodes, "results": rows})
    text = (
        f"{env}, {rows[0]['per_step']} positions per step, {episodes} test problems. "
        f"Second table: share of the reveals that were end tokens, and their mean confidence.\n\n"
        f"{table(rows)}\n\n`python benchmarks/end_tokens.py`\n"
    )
    write_text(output.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
