"""Feeds the loaders damaged files: nothing may run, hang, grow, or fail without saying what is wrong.

Every loader gets changed copies of good files for some minutes, chosen by coverage (atheris, libFuzzer's
Python side; ``pip install 'dllm-gym[fuzz]'``). A finding is any exception but ValueError and OSError, or one
without a message; ten seconds or two gigabytes for one file; a crash of the process; and any attempt to start
a program, to open a connection or to write a file, which an audit hook sees.

Run: ``python -m benchmarks.fuzz --minutes 10``; writes ``benchmarks/results/fuzz.json`` and ``.md``. What was
found is replayed by ``tests/test_fuzz.py``.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
_SECONDS, _MEGABYTES = 10, 2048  # for one file

Load = Callable[[Path, bytes], Any]


@dataclasses.dataclass(frozen=True)
class Loader:
    """What is fuzzed: ways to read a file, chosen by the input's first byte, and good contents for each."""

    reads: tuple[Load, ...]
    good: Callable[[Path], list[bytes]]

    def __call__(self, folder: Path, data: bytes) -> None:
        """Reads ``data`` in ``folder``.

        Raises:
            Exception: Whatever is a finding.
        """
        if not data:
            return
        try:
            self.reads[data[0] % len(self.reads)](folder, data[1:])
        except (ValueError, OSError) as error:
            if not str(error).strip():
                raise AssertionError(f"{type(error).__name__} without a message") from error

    def seeds(self, folder: Path) -> list[bytes]:
        """A good input for every way to read."""
        return [bytes([at]) + content for at, content in enumerate(self.good(folder))]


# Policies --------------------------------------------------------------------------------------------------


def _network() -> Any:
    from dllm_agents.networks import UnmaskTransformer, UnmaskTransformerConfig

    return UnmaskTransformer(UnmaskTransformerConfig(width=4, heads=1, mlp_width=4))


def _policy(folder: Path) -> tuple[bytes, bytes]:
    from dllm_agents.checkpoint import save_policy

    directory = save_policy(folder / "policy", _network(), {"config": {"env": {"alpha": [1, 2]}}})
    return (directory / "policy.safetensors").read_bytes(), (directory / "policy.json").read_bytes()


def _read_policy(folder: Path, name: str, content: bytes) -> None:
    from dllm_agents.checkpoint import load_policy

    if not (folder / "policy").is_dir():
        _policy(folder)
    good = (folder / "policy" / name).read_bytes()
    (folder / "policy" / name).write_bytes(content)
    try:
        load_policy(folder / "policy")
    finally:
        (folder / "policy" / name).write_bytes(good)


def _released(folder: Path) -> bytes:
    import torch
    from safetensors.torch import save

    block = {
        **{f"{name}.weight": torch.zeros(4, 4) for name in ("q_proj", "k_proj", "v_proj", "out_proj")},
        **{f"{name}.bias": torch.zeros(4) for name in ("q_proj", "k_proj", "v_proj", "out_proj")},
        "inv_freq": 10000.0 ** (-torch.arange(0, 4, 2) / 4),
        "linear1.weight": torch.zeros(8, 4),
    }
    tensors = {f"transformer_blocks.0.{name}": tensor for name, tensor in block.items()}
    sizes = {"confidence_proj.weight": torch.zeros(4, 1), "time_mlp.0.weight": torch.zeros(4, 4)}
    return save({**tensors, **sizes})


def _read_released(folder: Path, content: bytes) -> None:
    from dllm_agents.checkpoint import load_policy

    (folder / "model.safetensors").write_bytes(content)
    load_policy(folder, format="ml-rl-dllm")


# Everything else -------------------------------------------------------------------------------------------


def _configs(folder: Path) -> list[bytes]:
    shipped = Path(__file__).parents[1] / "agents" / "configs"
    return [(shipped / "grpo-any.yaml").read_bytes()]


def _read_config(folder: Path, content: bytes) -> None:
    from dllm_agents.config import load_config

    (folder / "config.yaml").write_bytes(content)
    load_config(folder / "config.yaml")


def _results(folder: Path) -> list[bytes]:
    from dllm_gym.evaluation import EpisodeRecords, EvaluationResult, Recording
    from dllm_gym.generation import Generation

    column = np.array([0.0, 1.0])
    records = EpisodeRecords(np.arange(2), column, column, column + 1, column, {"m": column}, ["a", "b"])
    seen_in = {"task": "arithmetic", "backend": "tiny-arithmetic", "completion_length": 3, "block_length": 3}
    result = EvaluationResult("agent", {"k": 1}, "agent(k=1)", seen_in, 2, 0, records)
    whole = np.ones((2, 3), dtype=np.int64)
    recording = Recording("agent", whole, whole, whole[:, 0], column, whole[:, 0], 3, environment={"a": 1})
    texts = [Generation(prompt, "3", (7,), 2).to_json() for prompt in _PROMPTS]
    episode = {"problem": 0, "score": 1.0, "is_success": True, "nfe": 3, "completion": "3", "reward": 0.9}
    return [
        result.save(folder / "good.json").read_bytes(),
        recording.save(folder / "good.npz").read_bytes(),
        *(
            b"".join(
                json.dumps({"index": at, "run": "r", **content}).encode() + b"\n"
                for at, content in enumerate(contents)
            )
            for contents in (texts, [episode, {**episode, "problem": 1}])
        ),
    ]


def _read_result(folder: Path, content: bytes) -> None:
    from dllm_gym.evaluation import EvaluationResult

    (folder / "result.json").write_bytes(content)
    EvaluationResult.load(folder / "result.json").to_json()


def _read_recording(folder: Path, content: bytes) -> None:
    from dllm_gym.evaluation import Recording, profile

    (folder / "recording.npz").write_bytes(content)
    recording = Recording.load(folder / "recording.npz")
    if recording.reveal_step.size < 10_000:
        profile(recording)


_PROMPTS: list[Any] = ["1 + 2?", [{"role": "user", "content": "2"}]]


def _read_episodes(folder: Path, content: bytes) -> None:
    from dllm_gym.evaluation.kept import Lines, episodes_found

    (folder / "episodes.jsonl").write_bytes(content)
    episodes_found(Lines(folder / "episodes.jsonl", "r"), ())


def _read_texts(folder: Path, content: bytes) -> None:
    from dllm_gym.evaluation.kept import Lines
    from dllm_gym.generation import texts_found

    (folder / "texts.jsonl").write_bytes(content)
    texts_found(Lines(folder / "texts.jsonl", "r"), _PROMPTS)


_ROWS = [{"question": "1 + 2?", "answer": "3\n#### 3"}, {"question": "ü", "answer": "#### -4.5"}]


def _data(folder: Path) -> list[bytes]:
    import pyarrow
    from pyarrow import parquet

    lines = "".join(json.dumps(row) + "\n" for row in _ROWS).encode()
    parquet.write_table(pyarrow.Table.from_pylist(_ROWS), folder / "good.parquet")
    return [
        lines,
        json.dumps(_ROWS).encode(),
        b'question,answer\n"1, 2","#### 3"\n',
        gzip.compress(lines),
        (folder / "good.parquet").read_bytes(),
        b'{"prompt": "1 + 2?"}\n{"messages": [{"role": "user", "content": "2"}]}\n',
    ]


def _read_data(kind: str) -> Load:
    def read(folder: Path, content: bytes) -> None:
        from dllm_gym.tasks import load_task

        path = folder / f"test.{kind}"
        path.write_bytes(content)
        task = load_task("gsm8k", split="test", data=str(path), prompt="d1")
        task.score("#### 3", task.problem(0))

    return read


def _read_prompts(folder: Path, content: bytes) -> None:
    from dllm_gym.prompts import read_prompts

    (folder / "prompts.jsonl").write_bytes(content)
    read_prompts(folder / "prompts.jsonl")


def _states(folder: Path) -> list[bytes]:
    import torch

    from dllm_gym.files import write_state

    network = _network()
    optimizer = torch.optim.Adam(network.parameters())
    state = {"policy": network.state_dict(), "optimizer": optimizer.state_dict(), "timesteps": 3}
    return [write_state(folder / "good.pt", state).read_bytes()]


def _read_state(folder: Path, content: bytes) -> None:
    from dllm_gym.files import read_state

    (folder / "state.pt").write_bytes(content)
    read_state(folder / "state.pt", ("policy", "optimizer", "timesteps"))


LOADERS: dict[str, Loader] = {
    "policy": Loader(
        (
            lambda folder, content: _read_policy(folder, "policy.safetensors", content),
            lambda folder, content: _read_policy(folder, "policy.json", content),
            _read_released,
        ),
        lambda folder: [*_policy(folder), _released(folder)],
    ),
    "config": Loader((_read_config,), _configs),
    "result": Loader((_read_result, _read_recording, _read_texts, _read_episodes), _results),
    "data": Loader(
        (*map(_read_data, ("jsonl", "json", "csv", "jsonl.gz", "parquet")), _read_prompts),
        _data,
    ),
    "state": Loader((_read_state,), _states),
}


# Watching --------------------------------------------------------------------------------------------------

_FORBIDDEN = (
    "subprocess.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "socket.connect",
    "os.remove",
)


def forbid(folder: Path) -> Callable[[], None]:
    """From the call of what is returned on, starting programs, connecting and writing elsewhere raise."""
    armed = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not armed:
            return
        if event.startswith(_FORBIDDEN):
            raise AssertionError(f"a file made its loader call {event}{arguments!r:.200}")
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            name = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes) else ""
            if name and not name.startswith(str(folder)) and name != "/dev/null":
                raise AssertionError(f"a file made its loader write {name}")

    def arm() -> None:
        nonlocal armed
        armed = True

    sys.addaudithook(hook)
    return arm


_MODULES = (
    *("yaml", "dllm_agents.checkpoint", "dllm_agents.config", "dllm_gym.evaluation", "dllm_gym.generation"),
    *("dllm_gym.prompts", "dllm_gym.tasks.gsm8k"),
)


def fuzz_here(name: str, minutes: float, corpus: Path) -> None:
    """Fuzzes one loader in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(
        include=["dllm_gym", "dllm_agents", "yaml", "json", "zipfile", "csv", "numpy.lib", "safetensors"]
    ):
        for module in _MODULES:
            importlib.import_module(module)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    loader = LOADERS[name]
    for at, seed in enumerate(loader.seeds(folder)):
        (corpus / f"seed-{at}").write_bytes(seed)
        loader(folder, seed)  # imports what it needs before the watch begins
    arm = forbid(folder)

    def one(data: bytes) -> None:
        loader(folder, data)

    options = [
        f"-max_total_time={round(60 * minutes)}",
        f"-timeout={_SECONDS}",
        f"-rss_limit_mb={_MEGABYTES}",
    ]
    options += ["-max_len=8192", "-print_final_stats=1", f"-artifact_prefix={corpus.parent}/{name}-finding-"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    arm()
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="for each loader")
    parser.add_argument("--loaders", nargs="+", choices=list(LOADERS), default=list(LOADERS))
    parser.add_argument("--directory", type=Path, default=Path("runs/fuzz"), help="corpus and findings")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    corpora: Path = arguments.directory.resolve()
    if arguments.here:
        fuzz_here(arguments.here, arguments.minutes, corpora / arguments.here)
        return
    from dllm_gym.bench import machine
    from dllm_gym.files import write_json, write_text

    target = RESULTS / "fuzz.json"
    before = json.loads(target.read_text(encoding="utf-8"))["results"] if target.is_file() else []
    found = {row["loader"]: row for row in before}  # of loaders that are not run now
    for name in arguments.loaders:
        (corpora / name).mkdir(parents=True, exist_ok=True)
        command = ["--here", name, "--minutes", str(arguments.minutes), "--directory", str(corpora)]
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.fuzz", *command],
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        (corpora / f"{name}.log").write_text(done.stderr)
        runs = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
        found[name] = {
            "loader": name,
            "minutes": round((time.monotonic() - started) / 60, 1),
            "files": int(runs[1]) if runs else 0,
            "findings": sorted(path.name for path in corpora.glob(f"{name}-finding-*")),
            "status": done.returncode,
        }
        print(found[name], flush=True)
    rows = [found[name] for name in LOADERS if name in found]
    lines = ["| loader | minutes | files read | findings |", "|---|---|---|---|"]
    lines += [f"| {r['loader']} | {r['minutes']} | {r['files']:,} | {len(r['findings'])} |" for r in rows]
    command_line = f"`python -m benchmarks.fuzz --minutes {arguments.minutes:g}`"
    write_json(target, {"machine": machine(), "results": rows})
    write_text(RESULTS / "fuzz.md", "\n".join(lines) + f"\n\n{command_line}, {machine()}\n")


if __name__ == "__main__":
    main()
