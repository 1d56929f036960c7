"""Who tells wrong tokens from right ones: a quality head, or the dLLM itself.

Rules that only reveal, hastily, decode test problems, and every canvas on the way is compared with all right
answers. A token is wrong if some right answer differs from the canvas in this token alone; the others on such
a canvas are right, and so are all on one that is part of a right answer. Canvases with more faults than one
are left out. How well the two are told apart is the area under the ROC curve: of ``quality``, of ``written``,
and of the dLLM's probability of the token were it masked (``unseen``), which takes a forward per token.

Run: ``python benchmarks/quality.py``; writes ``benchmarks/results/quality.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dllm_gym.envs.engine import Engine
from dllm_gym.evaluation.agents import as_agent
from dllm_gym.evaluation.decode import decode
from dllm_gym.evaluation.statistics import separation
from dllm_gym.files import write_json, write_text
from dllm_gym.tasks import Problem, grids

RESULTS = Path(__file__).parent / "results"
TASKS = {"tiny-lists": "lists", "tiny-latin": "latin-square"}
RULES = ("confidence:k=2", "confidence:k=4", "random:k=2")
TOLD = ("quality", "written", "unseen")
Tokens = NDArray[np.int64]
Faults = NDArray[np.bool_]


@cache
def squares(size: int) -> list[str]:
    """All Latin squares, row by row."""
    lines = ["".join(line) for line in itertools.permutations("123456789"[:size])]
    every = map("".join, itertools.product(lines, repeat=size))
    return [square for square in every if grids.is_valid(square, (1, size))]


def answers(task: Any, problem: Problem) -> set[str]:
    """All right answers to a problem."""
    asked = problem.metadata
    if task.name == "latin-square":
        return {square for square in squares(task.size) if grids.keeps(square, asked["clues"])}
    if asked["operation"] == "shuffle":
        return {" ".join(line) for line in itertools.permutations(asked["line"]) if line != asked["line"]}
    rng = np.random.default_rng(0)  # nine answers at most, each as likely as the others
    return {task.write(problem, rng) for _ in range(300)}


def faults(canvas: Tokens, right: Tokens, mask: int) -> Faults | None:
    """Which tokens of a canvas ``(L,)`` are wrong, given all right answers ``(A, L)``; ``None``: too many."""
    differs = (right != canvas) & (canvas != mask)
    number = differs.sum(axis=1)
    if number.min() > 1:
        return None
    wrong: Faults = differs[number == 1].any(axis=0) & (number.min() == 1)
    return wrong


def canvases(engine: Engine, rule: str, episodes: int) -> Iterator[tuple[int, Tokens]]:
    """Every canvas ``(L,)`` that a rule makes of the first problems, with the problem's number."""
    seen: list[tuple[int, Tokens]] = []

    def after_step(rows: Tokens, positions: Tokens) -> None:
        seen.extend(zip(positions.tolist(), engine.canvas.completions(rows), strict=True))

    for _ in decode(as_agent(rule), engine, range(episodes), 0, after_step):
        yield from seen
        seen.clear()


def say(engine: Engine, prompt: Sequence[int], canvas: Tokens) -> dict[str, NDArray[np.float32]]:
    """What is said of the tokens of a canvas ``(L,)``: ``quality``, ``written`` and ``unseen``."""
    backend, length = engine.backend, len(canvas)
    row = torch.tensor([[*prompt, *canvas.tolist()]])
    alone = row.repeat(length, 1)  # the n-th without its n-th token
    alone[:, -length:].fill_diagonal_(backend.mask_token_id)
    where = slice(-length, None)
    seen = backend.predict(row, torch.ones_like(row), where, statistics=("quality", "written")).statistics
    without = backend.predict(alone, torch.ones_like(alone), where, statistics=("probabilities",))
    number = torch.arange(length)
    unseen = without.statistics["probabilities"][number, number, torch.from_numpy(canvas)]
    return {
        "quality": seen["quality"][0].numpy(),
        "written": seen["written"][0].numpy(),
        "unseen": unseen.numpy(),
    }


def measure(dllm: str, rule: str, episodes: int) -> dict[str, Any]:
    """How well wrong tokens are told from right ones on the canvases of a rule."""
    engine = Engine(min(64, episodes), backend=dllm, task=TASKS[dllm], split="test")
    mask, tokenizer = engine.backend.mask_token_id, engine.backend.tokenizer
    right: dict[int, Tokens] = {}
    values: dict[str, list[NDArray[np.float32]]] = {name: [] for name in TOLD}
    labels: list[Faults] = []
    left_out = 0
    for index, canvas in canvases(engine, rule, episodes):
        if index not in right:
            written = [tokenizer.encode(text) for text in answers(engine.task, engine.task.problem(index))]
            end = [engine.backend.eos_token_id] * engine.length
            right[index] = np.array([[*ids, *end][: engine.length] for ids in written])
        wrong = faults(canvas, right[index], mask)
        if wrong is None:
            left_out += 1
            continue
        said, standing = say(engine, engine.prompt(index), canvas), canvas != mask
        labels.append(~wrong[standing])
        for name in TOLD:
            values[name].append(said[name][standing])
    true = np.concatenate(labels)
    areas = {name: round(separation(np.concatenate(values[name]), true), 4) for name in TOLD}
    return {
        "dllm": dllm,
        "rule": rule,
        "episodes": episodes,
        "canvases": len(labels),
        "left_out": left_out,
        "tokens": len(true),
        "wrong": int((~true).sum()),
        "areas": areas,
    }


def report(rows: Sequence[dict[str, Any]], command: str) -> str:
    """The measurements as Markdown."""
    lines = [
        f"`{command}`",
        "",
        "Area under the ROC curve with which right tokens are told from wrong ones on the canvases of rules",
        "that only reveal: by the quality head, by the dLLM that sees the token, and by the dLLM that does",
        "not see it.",
        "",
        "| dLLM | canvases of | canvases (left out) | tokens | wrong | `quality` | `written` | unseen |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        areas = " | ".join(f"{row['areas'][name]:.3f}" for name in TOLD)
        lines.append(
            f"| {row['dllm']} | `{row['rule']}` | {row['canvases']} ({row['left_out']}) "
            f"| {row['tokens']} | {row['wrong']} | {areas} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dllms", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--episodes", type=int, default=300, help="test problems")
    parser.add_argument("--output", type=Path, default=RESULTS / "quality")
    given = parser.parse_args(arguments)
    rows = [measure(dllm, rule, given.episodes) for dllm in given.dllms for rule in RULES]
    command = f"python benchmarks/quality.py --dllms {' '.join(given.dllms)} --episodes {given.episodes}"
    write_json(given.output.with_suffix(".json"), {"command": command, "rows": rows})
    write_text(given.output.with_suffix(".md"), report(rows, command))
    print(given.output.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
