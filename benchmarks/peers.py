"""Published decoding loops beside ours, on the same dLLM and the same problems: what they write, how fast.

The loops are the publishers' own files, from checkouts you name; nothing of them is kept here:

    git clone https://github.com/ML-GSAI/LLaDA && git clone https://github.com/NVlabs/Fast-dLLM
    python benchmarks/peers.py --peer llada=LLaDA --peer fast-dllm=Fast-dLLM

Every row of a peer drives its loop and our strategy from the same prompts with the same transformers model
in float32 and compares the canvas before every forward: the same tokens, at the same places, in the same
number of steps. Where the two part, the first step at which they do is judged: a *tie* if the confidences
that decide (of the positions that one reveals and the other does not) lie within 1e-5 of each other or of
the threshold, a *difference* otherwise. With ``random`` the peer is given our draws.

Everything is compared twice. *As trained*, the embedded model is so sure of itself that many confidences
differ from 1 by less than float32 holds; their order is rounding then, in the peer's loop as in ours.
*Softened*, its logits are divided by 4, which leaves every best token in place and pulls the confidences
apart. What the model gives to the mask token then no longer vanishes, and the loops count it where we do not,
as it is never written; so the peer's model is kept from it.

Then both are timed, in turns: problems per second of the peer's loop, one problem at a time as it is made
for, and of ours with 1 and with 64 rows.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import torch
from limit import RESULTS

import dllm_gym
from dllm_gym.backends import ASSETS
from dllm_gym.backends.transformers_backend import TransformersBackend
from dllm_gym.bench import machine
from dllm_gym.evaluation import as_agent, evaluate
from dllm_gym.files import write_json, write_text

BACKEND, TASK = "tiny-arithmetic", "arithmetic"
ROWS = 64
CLOSE = 1e-5
SOFTENED = 4.0  # what logits are divided by


@dataclass(frozen=True)
class Case:
    """One setting of a peer's loop and the strategy that is to do the same."""

    agent: str
    block_length: int
    steps_per_block: int  # the loops want it even where it decides nothing
    peer: dict[str, Any] = field(default_factory=dict)


LLADA = (
    Case("confidence:k=1", 8, 8),
    Case("confidence:k=2", 48, 24),
    Case("confidence:steps_per_block=3", 8, 3),
    Case("confidence:steps_per_block=7", 16, 7),
    Case("confidence:steps_per_block=13", 48, 13),
    Case("random:k=1", 8, 8, {"remasking": "random"}),
    Case("random:steps_per_block=7", 16, 7, {"remasking": "random"}),
    Case("random:steps_per_block=13", 48, 13, {"remasking": "random"}),
)
FAST_DLLM = (
    Case("confidence:steps_per_block=7", 16, 7),
    Case("fast-dllm:threshold=0.9", 8, 8, {"threshold": 0.9}),
    Case("fast-dllm:threshold=0.6", 16, 16, {"threshold": 0.6}),
    Case("fast-dllm:threshold=0.99", 48, 48, {"threshold": 0.99}),
    Case("fast-dllm-factor-released:factor=1", 8, 8, {"factor": 1.0}),
    Case("fast-dllm-factor-released:factor=0.5", 16, 16, {"factor": 0.5}),
    Case("fast-dllm-factor-released:factor=1.5", 48, 48, {"factor": 1.5}),
)
PEERS = {"llada": LLADA, "fast-dllm": FAST_DLLM}


class Recorded:
    """A dLLM as the peers' loops call one; remembers the canvas ``(L,)`` of every call.

    Args:
        model: The transformers model.
        length: L.
        excluded: Tokens kept from having any probability.
    """

    def __init__(self, model: Any, length: int, excluded: list[int]) -> None:
        self.device, self._model, self._length, self._excluded = model.device, model, length, excluded
        self.canvases: list[np.ndarray] = []

    def __call__(self, tokens: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Any:
        """The model's output, with ``logits``."""
        self.canvases.append(tokens[0, -self._length :].numpy().copy())
        output = self._model(tokens, attention_mask=attention_mask)
        output.logits[..., self._excluded] = -torch.inf
        return output


def load_loop(checkout: Path) -> Any:
    """The function ``generate`` of a checkout; its own model class is not needed and stays out."""
    for place in ("generate.py", "llada/generate.py", "v1/llada/generate.py"):
        if (checkout / place).is_file():
            spec = importlib.util.spec_from_file_location(f"peer_{abs(hash(checkout))}", checkout / place)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            model, modeling = types.ModuleType("model"), types.ModuleType("model.modeling_llada")
            modeling.LLaDAModelLM = None  # type: ignore[attr-defined]
            with patch.dict(sys.modules, {"model": model, "model.modeling_llada": modeling}):
                spec.loader.exec_module(module)
            return module.generate
    raise FileNotFoundError(f"{checkout} holds no generate.py, llada/generate.py or v1/llada/generate.py")


def run_peer(loop: Any, case: Case, model: Any, prompt: list[int], length: int, mask_id: int) -> np.ndarray:
    """The completion ``(L,)`` that the peer's loop writes."""
    output = loop(
        model,
        torch.tensor([prompt]),
        steps=case.steps_per_block * (length // case.block_length),
        gen_length=length,
        block_length=case.block_length,
        mask_id=mask_id,
        **case.peer,
    )
    tokens = output[0] if isinstance(output, tuple) else output  # Fast-dLLM returns its forwards as well
    completion: np.ndarray = tokens[0, -length:].numpy()
    return completion


def run_ours(env: Any, agent: Any, problem: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The canvases ``(L,)`` of our episode, the last one included, and the confidences before every step."""
    observation, _ = env.reset(options={"problem": problem})
    canvases, confidences, terminated = [observation["tokens"]], [], False
    while not terminated:
        confidences.append(observation["confidence"])
        observation, _, terminated, _, _ = env.step(agent.act(observation))
        canvases.append(observation["tokens"])
    return canvases, confidences


@contextmanager
def our_draws(seed: int, length: int) -> Iterator[None]:
    """Gives ``torch.rand`` the draws of our strategy ``random``, turned round: a peer reveals the largest."""
    generator = np.random.default_rng(seed)

    def rand(*size: Any, **_: Any) -> torch.Tensor:
        rows, columns = size if len(size) == 2 else size[0]
        drawn = torch.zeros(rows, columns, dtype=torch.float64)
        drawn[:, -length:] = torch.from_numpy(1 - generator.random(length))
        return drawn

    with patch.object(torch, "rand", rand):
        yield


def judge(
    theirs: list[np.ndarray], ours: list[np.ndarray], confidences: list[np.ndarray], threshold: float | None
) -> str:
    """``same``, ``tie`` or ``difference``, by the first step at which the canvases part."""
    for at, (one, other) in enumerate(zip(theirs[1:], ours[1:], strict=False)):
        if not np.array_equal(one, other):
            confidence, before = confidences[at], ours[at]
            only_one = confidence[(one != before) & (other == before)]
            only_other = confidence[(other != before) & (one == before)]
            decisive = np.concatenate([only_one, only_other, [] if threshold is None else [threshold]])
            return "tie" if len(decisive) > 1 and np.ptp(decisive) < CLOSE else "difference"
    return "same" if len(theirs) == len(ours) else "difference"


def softened() -> TransformersBackend:
    """The embedded dLLM with its logits divided."""
    backend = TransformersBackend(ASSETS / BACKEND, dtype="float32", device="cpu")
    with torch.no_grad():
        backend.model.get_output_embeddings().weight.div_(SOFTENED)
    return backend


def compare_canvases(
    loop: Any, case: Case, backend: Any, problems: int, excluded: list[int]
) -> dict[str, Any]:
    """How often the peer's loop and ours write the same canvases, and in how many forwards."""
    env: Any = gym.make(
        dllm_gym.ENV_ID,
        task=TASK,
        split="test",
        backend=backend,
        block_length=case.block_length,
        observe=("tokens",),
    )
    engine = env.unwrapped.engine
    agent: Any = as_agent(case.agent)
    model = Recorded(backend.model, engine.length, excluded)
    counts = dict.fromkeys(("same", "tie", "difference", "same_text"), 0)
    forwards = {"peer": 0, "ours": 0}
    for index in range(problems):
        model.canvases.clear()
        prompt = backend.encode_prompt(engine.task.problem(index).prompt)
        with our_draws(index, engine.length):
            completion = run_peer(loop, case, model, prompt, engine.length, backend.mask_token_id)
        theirs = [*model.canvases, completion]
        if hasattr(agent, "seed"):
            agent.seed([0], [index])
        ours, confidences = run_ours(env, agent, index)
        counts[judge(theirs, ours, confidences, case.peer.get("threshold"))] += 1
        counts["same_text"] += np.array_equal(theirs[-1], ours[-1])
        forwards["peer"] += len(theirs) - 1
        forwards["ours"] += len(ours) - 1
    return {**counts, "forwards_per_problem": {name: total / problems for name, total in forwards.items()}}


def time_both(loop: Any, case: Case, backend: Any, problems: int, rounds: int) -> dict[str, float]:
    """Problems per second, medians of rounds taken in turns."""
    task = dllm_gym.load_task(TASK, split="test")
    prompts = [backend.encode_prompt(task.problem(index).prompt) for index in range(problems)]
    settings = {"task": TASK, "backend": backend, "block_length": case.block_length}
    seconds: dict[str, list[float]] = {"peer": [], "ours, 1 row": [], f"ours, {ROWS} rows": []}
    for _ in range(rounds):
        started = time.perf_counter()
        for prompt in prompts:
            run_peer(loop, case, backend.model, prompt, task.completion_length, backend.mask_token_id)
        seconds["peer"].append(time.perf_counter() - started)
        for name, rows in (("ours, 1 row", 1), (f"ours, {ROWS} rows", ROWS)):
            started = time.perf_counter()
            evaluate(case.agent, problems, "test", batch_size=rows, **settings)
            seconds[name].append(time.perf_counter() - started)
    return {name: round(problems / statistics.median(times), 2) for name, times in seconds.items() if times}


def compare(loop: Any, case: Case, problems: int, rounds: int) -> dict[str, Any]:
    """One row of the table."""
    trained: Any = dllm_gym.load_backend(BACKEND, dtype="float32", device="cpu")
    return {
        "agent": case.agent,
        "block_length": case.block_length,
        "problems": problems,
        "canvases": {
            "as trained": compare_canvases(loop, case, trained, problems, []),
            "softened": compare_canvases(loop, case, softened(), problems, [trained.mask_token_id]),
        },
        "problems_per_second": time_both(loop, case, trained, problems, rounds),
    }


def table(peer: str, rows: list[dict[str, Any]]) -> str:
    """A peer's rows as Markdown."""
    kinds = ("same", "tie", "difference", "same_text")
    lines = [
        f"| {peer}'s loop as | block | model | same | tie | difference | same text | forwards: peer | ours "
        f"| problems/s: peer | ours, 1 row | ours, {ROWS} rows |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        speeds = [str(value) for value in row["problems_per_second"].values()] or ["-"] * 3
        for model, found in row["canvases"].items():
            forwards = [f"{value:.2f}" for value in found["forwards_per_problem"].values()]
            cells = [f"`{row['agent']}`", row["block_length"], model]
            cells += [found[kind] for kind in kinds] + forwards + speeds
            lines.append(f"| {' | '.join(map(str, cells))} |")
            speeds = [""] * 3  # the times are those of the model as it is
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", action="append", required=True, metavar="NAME=PATH")
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3, help="of the timing; 0 for none")
    parser.add_argument("--output", type=Path, default=RESULTS / "peers.json")
    arguments = parser.parse_args()
    results = {}
    for text in arguments.peer:
        name, _, checkout = text.partition("=")
        if name not in PEERS or not checkout:
            parser.error(f"--peer wants NAME=PATH with a name out of {', '.join(PEERS)}, got {text!r}")
        loop = load_loop(Path(checkout))
        results[name] = [compare(loop, case, arguments.problems, arguments.rounds) for case in PEERS[name]]
    write_json(arguments.output, {"machine": machine(), "results": results})
    text = "\n\n".join(table(name, rows) for name, rows in results.items())
    text += f"\n\n`python benchmarks/peers.py`, {machine()}\n"
    write_text(arguments.output.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
