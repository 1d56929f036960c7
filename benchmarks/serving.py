"""Completions per second of the server: 64 clients at once against one after the other, in one run.

The same problems of `arithmetic`, asked over HTTP of one server that runs in a process of its own; in turns,
medians of several rounds. The ratio is what matters; the figures are the machine's.

Run: ``python benchmarks/serving.py``; writes ``benchmarks/results/serving.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from threading import local
from typing import Any

from dllm_gym.bench import machine
from dllm_gym.files import write_json, write_text
from dllm_gym.tasks import load_task

RESULTS = Path(__file__).parent / "results"


@contextmanager
def server(backend: str, agent: str) -> Iterator[tuple[str, int]]:
    """Host and port of a server."""
    command = [sys.executable, "-m", "dllm_gym", "serve", "--backend", backend, "--agent", agent]
    with subprocess.Popen([*command, "--port", "0"], stderr=subprocess.PIPE, text=True) as process:
        try:
            told = ""
            while (found := re.search(r"http://([\d.]+):(\d+)", told)) is None:
                if not (told := process.stderr.readline() if process.stderr else ""):
                    raise RuntimeError("the server did not start")
            yield found[1], int(found[2])
        finally:
            process.terminate()


def ask_all(
    place: tuple[str, int], model: str, prompts: Sequence[str], clients: int
) -> tuple[float, list[str]]:
    """Seconds for all prompts with so many clients, and the texts."""
    own = local()

    def ask(prompt: str) -> str:
        if not hasattr(own, "connection"):
            own.connection = connections.enter_context(closing(HTTPConnection(*place, timeout=600)))
        body = json.dumps({"model": model, "prompt": prompt, "seed": 0})
        own.connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        answer = json.loads(own.connection.getresponse().read())
        text: str = answer["choices"][0]["text"]
        return text

    with ExitStack() as connections, ThreadPoolExecutor(clients) as pool:
        started = time.perf_counter()
        texts = list(pool.map(ask, prompts))
        return time.perf_counter() - started, texts


def measure(backend: str, agent: str, clients: int, problems: int, rounds: int) -> dict[str, Any]:
    """Completions per second with one client and with many; the ratio is the median of the rounds'."""
    task = load_task("arithmetic", split="test")
    prompts = [str(task.problem(index).prompt) for index in range(problems)]
    few = prompts[: max(1, problems // 8)]
    one: list[float] = []
    many: list[float] = []
    with server(backend, agent) as place:
        ask_all(place, backend, prompts[:clients], clients)
        for _ in range(rounds):
            seconds, texts = ask_all(place, backend, few, 1)
            one.append(len(few) / seconds)
            seconds, together = ask_all(place, backend, prompts, clients)
            many.append(len(prompts) / seconds)
            if together[: len(few)] != texts:
                raise RuntimeError("texts depend on who else is asking")
    return {
        "backend": backend,
        "agent": agent,
        "clients": clients,
        "one_at_a_time": round(statistics.median(one), 2),
        "at_once": round(statistics.median(many), 2),
        "ratio": round(statistics.median(b / a for a, b in zip(one, many, strict=True)), 2),
    }


def table(result: dict[str, Any]) -> str:
    """The measurement as Markdown."""
    return "\n".join(
        [
            f"| completions/s | one at a time | {result['clients']} clients | ratio |",
            "|---|---|---|---|",
            f"| {result['backend']}, {result['agent']} | {result['one_at_a_time']} | {result['at_once']} "
            f"| {result['ratio']} |",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", default="tiny-arithmetic")
    parser.add_argument("--agent", default="fast-dllm:threshold=0.9")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--problems", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "serving.json")
    given = parser.parse_args()
    result = measure(given.backend, given.agent, given.clients, given.problems, given.rounds)
    write_json(given.output, {"machine": machine(), **result})
    text = f"{table(result)}\n\n`python benchmarks/serving.py`, {machine()}\n"
    write_text(given.output.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
