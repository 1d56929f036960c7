"""Published decoding loops beside ours, on the same dLLM and the same problems: what they write, how fast.

The loops are the publishers' own files, from checkouts you name; nothing of them is kept here:

    git clone https://github.com/ML-GSAI/LLaDA && git clone https://github.com/NVlabs/Fast-dLLM
    git clone https://github.com/ZHZisZZ/dllm && git clone https://github.com/apple/ml-rl-dllm
    python benchmarks/peers.py llada=LLaDA fast-dllm=Fast-dLLM dllm=dllm ml-rl-dllm=ml-rl-dllm

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

Then both are timed, in turns: problems per second one problem at a time, and, for loops that take several
prompts of different length, in batches of 64 beside our 64 rows. A loop that does not is timed one problem
at a time there, too. *Same text* counts completions that are equal to ours to the last token.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
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
    peer: dict[str, Any]


def _steps(agent: str, block_length: int, steps: int, **peer: Any) -> Case:
    """For loops that are told how many steps a block of the completion takes."""
    return Case(agent, block_length, {"steps": steps * (LENGTH // block_length), **peer})


LENGTH = 48  # of the embedded model's completions
LLADA = (
    _steps("confidence:k=1", 8, 8),
    _steps("confidence:k=2", 48, 24),
    _steps("confidence:steps_per_block=3", 8, 3),
    _steps("confidence:steps_per_block=7", 16, 7),
    _steps("confidence:steps_per_block=13", 48, 13),
    _steps("random:k=1", 8, 8, remasking="random"),
    _steps("random:steps_per_block=7", 16, 7, remasking="random"),
    _steps("random:steps_per_block=13", 48, 13, remasking="random"),
)
FAST_DLLM = (
    _steps("confidence:steps_per_block=7", 16, 7),
    _steps("fast-dllm:threshold=0.9", 8, 8, threshold=0.9),
    _steps("fast-dllm:threshold=0.9", 48, 48, threshold=0.9),
    _steps("fast-dllm:threshold=0.6", 16, 16, threshold=0.6),
)
FAST_DLLM_FACTOR = (  # in newer versions only
    _steps("fast-dllm-factor-released:factor=1", 8, 8, factor=1.0),
    _steps("fast-dllm-factor-released:factor=0.5", 16, 16, factor=0.5),
    _steps("fast-dllm-factor-released:factor=1.5", 48, 48, factor=1.5),
)
DLLM = (
    Case("fast-dllm:threshold=0.9", 8, {"steps": 48, "threshold": 0.9}),
    Case("fast-dllm:threshold=0.9", 48, {"steps": 48, "threshold": 0.9}),
)
ML_RL_DLLM = (
    Case("fast-dllm:threshold=0.9", 8, {"remasking": "fastdllm", "thres": 0.9}),
    Case("fast-dllm:threshold=0.9", 48, {"remasking": "fastdllm", "thres": 0.9}),
    Case("confidence:k=2", 48, {"remasking": "low_confidence", "steps": 24}),
)

Loop = Callable[[Any, list[list[int]], Case, Any], np.ndarray]
"""Takes model, B prompts, case and backend; gives the completions ``(B, L)``."""


@dataclass(frozen=True)
class Peer:
    """A published loop: how it is loaded from a checkout, whether it takes batches, what is compared."""

    load: Callable[[Path], Loop]
    batches: bool
    cases: tuple[Case, ...]


class Recorded:
    """A dLLM as the peers' loops call one; remembers the first row's canvas ``(L,)`` of every call.

    Args:
        model: The transformers model.
        length: L.
        excluded: Tokens kept from having any probability.
    """

    def __init__(self, model: Any, length: int, excluded: list[int]) -> None:
        self.device, self.dtype, self._model = model.device, model.dtype, model
        self._length, self._excluded = length, excluded
        self.canvases: list[np.ndarray] = []

    def __call__(self, tokens: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any) -> Any:
        """The model's output, with ``logits``."""
        self.canvases.append(tokens[0, -self._length :].numpy().copy())
        output = self._model(tokens, attention_mask=attention_mask)
        output.logits[..., self._excluded] = -torch.inf
        return output


def left_padded(prompts: list[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts of any length as ``(B, P)``, and the attention mask."""
    longest = max(map(len, prompts))
    rows = [[pad_id] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(rows), torch.tensor(mask)


def load_generate(checkout: Path, batches: bool) -> Loop:
    """The function ``generate`` of LLaDA and Fast-dLLM; their own model class is not needed and stays out."""
    for place in ("generate.py", "llada/generate.py", "v1/llada/generate.py"):
        if (checkout / place).is_file():
            break
    else:
        raise FileNotFoundError(f"{checkout} holds no generate.py, llada/generate.py or v1/llada/generate.py")
    spec = importlib.util.spec_from_file_location(f"peer_{abs(hash(checkout))}", checkout / place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    model, modeling = types.ModuleType("model"), types.ModuleType("model.modeling_llada")
    modeling.LLaDAModelLM = None  # type: ignore[attr-defined]
    with patch.dict(sys.modules, {"model": model, "model.modeling_llada": modeling}):
        spec.loader.exec_module(module)

    def loop(model: Any, prompts: list[list[int]], case: Case, backend: Any) -> np.ndarray:
        tokens, mask = left_padded(prompts, backend.pad_token_id)
        options = {"gen_length": LENGTH, "block_length": case.block_length, "mask_id": backend.mask_token_id}
        if batches:
            options["attention_mask"] = mask
        output = module.generate(model, tokens, **options, **case.peer)
        output = output[0] if isinstance(output, tuple) else output  # Fast-dLLM returns its forwards as well
        completions: np.ndarray = output[:, -LENGTH:].numpy()
        return completions

    return loop


def bare_import(checkout: Path, name: str, *also: str) -> Any:
    """A module of a checkout, without what the packages around it, or ``also``, import at their top."""
    parents = [*accumulate(name.split(".")[:-1], "{}.{}".format), *also]
    for parent in parents:
        package = types.ModuleType(parent)
        package.__path__ = [str(checkout.joinpath(*parent.split(".")))]
        if not Path(package.__path__[0]).is_dir():
            raise FileNotFoundError(f"{checkout} holds no {name}: {package.__path__[0]} is missing")
        sys.modules[parent] = package
    return importlib.import_module(name)


def load_dllm(checkout: Path) -> Loop:
    """The Fast-dLLM sampler of ZHZisZZ/dllm."""
    name = "dllm.pipelines.fastdllm.llada.sampler"
    sampler = bare_import(checkout, name, "dllm.core", "dllm.core.samplers").FastdLLMLLaDASampler

    def loop(model: Any, prompts: list[list[int]], case: Case, backend: Any) -> np.ndarray:
        names = ("mask_token_id", "bos_token_id", "eos_token_id")
        tokenizer = types.SimpleNamespace(**{name: getattr(backend, name, None) for name in names})
        made = sampler(model=model, tokenizer=tokenizer)
        options = {"max_new_tokens": LENGTH, "block_size": case.block_length, "return_dict": False}
        output = made.sample(prompts, **options, **case.peer)
        rows = zip(output, prompts, strict=True)
        return np.stack([row[len(prompt) : len(prompt) + LENGTH].numpy() for row, prompt in rows])

    return loop


def load_ml_rl_dllm(checkout: Path) -> Loop:
    """The loop of the paper's released code."""
    generate = bare_import(checkout, "common.generation.generation").generate_unified

    def loop(model: Any, prompts: list[list[int]], case: Case, backend: Any) -> np.ndarray:
        tokens, mask = left_padded(prompts, backend.pad_token_id)
        options = {"gen_length": LENGTH, "block_length": case.block_length, "mask_id": backend.mask_token_id}
        output = generate(model, tokens, attention_mask=mask, **options, **case.peer)
        completions: np.ndarray = output.sequences[:, -LENGTH:].numpy()
        return completions

    return loop


PEERS = {
    "llada": Peer(partial(load_generate, batches=True), True, LLADA),
    "fast-dllm": Peer(partial(load_generate, batches=False), False, FAST_DLLM),
    "fast-dllm-factor": Peer(partial(load_generate, batches=False), False, FAST_DLLM_FACTOR),
    "dllm": Peer(load_dllm, True, DLLM),
    "ml-rl-dllm": Peer(load_ml_rl_dllm, True, ML_RL_DLLM),
}


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
    loop: Loop, case: Case, backend: Any, problems: int, excluded: list[int]
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
            (completion,) = loop(model, [prompt], case, backend)
        theirs = [*model.canvases, completion]
        if hasattr(agent, "seed"):
            agent.seed([0], [index])
        ours, confidences = run_ours(env, agent, index)
        counts[judge(theirs, ours, confidences, case.peer.get("threshold", case.peer.get("thres")))] += 1
        counts["same_text"] += np.array_equal(theirs[-1], ours[-1])
        forwards["peer"] += len(theirs) - 1
        forwards["ours"] += len(ours) - 1
    return {**counts, "forwards_per_problem": {name: total / problems for name, total in forwards.items()}}


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


def compare(peer: Peer, loop: Loop, case: Case, problems: int, rounds: int) -> dict[str, Any]:
    """What both write, and how fast."""
    trained: Any = dllm_gym.load_backend(BACKEND, dtype="float32", device="cpu")
    return {
        "agent": case.agent,
        "block_length": case.block_length,
        "problems": problems,
        "canvases": {
            "as trained": compare_canvases(loop, case, trained, problems, []),
            "softened": compare_canvases(loop, case, softened(), problems, [trained.mask_token_id]),
        },
        "batches": peer.batches,
        "problems_per_second": time_both(loop, peer.batches, case, trained, rounds) if rounds else {},
    }


def table(peer: str, rows: list[dict[str, Any]]) -> str:
    """A peer's rows as Markdown: what is written, then how fast."""
    kinds = ("same", "tie", "difference", "same_text")
    written = [
        f"| {peer}'s loop as | block | model | same | tie | difference | same text | forwards: peer | ours |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    timed = [
        f"| {peer}'s loop as | block | our rows | peer, problems/s | ours | times as fast | same text |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        setting = f"| `{row['agent']}` | {row['block_length']}"
        for model, found in row["canvases"].items():
            forwards = [f"{value:.2f}" for value in found["forwards_per_problem"].values()]
            cells = [model, *(found[kind] for kind in kinds), *forwards]
            written.append(f"{setting} | {' | '.join(map(str, cells))} |")
        for number, found in row["problems_per_second"].items():
            alone = "" if row["batches"] or number == "1 rows" else ", peer one by one"
            cells = [found["peer"], found["ours"], f"**{found['ratio']}**", f"{found['same_text']:.1%}"]
            timed.append(f"{setting} | {number}{alone} | {' | '.join(map(str, cells))} |")
    return "\n".join([*written, "", *timed])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peers", nargs="+", metavar="NAME=PATH", help=f"out of {', '.join(PEERS)}")
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3, help="of the timing; 0 for none")
    parser.add_argument("--output", type=Path, default=RESULTS / "peers.json")
    arguments = parser.parse_args()
    results = {}
    for text in arguments.peers:
        name, _, checkout = text.partition("=")
        if name not in PEERS or not checkout:
            parser.error(f"give NAME=PATH with a name out of {', '.join(PEERS)}, got {text!r}")
        peer = PEERS[name]
        loop = peer.load(Path(checkout).resolve())
        results[name] = [
            compare(peer, loop, case, arguments.problems, arguments.rounds) for case in peer.cases
        ]
    write_json(arguments.output, {"machine": machine(), "results": results})
    text = "\n\n".join(table(name, rows) for name, rows in results.items())
    text += f"\n\n`python benchmarks/peers.py`, {machine()}\n"
    write_text(arguments.output.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
