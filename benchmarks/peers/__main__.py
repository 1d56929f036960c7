"""Published decoding loops beside ours, on the same dLLM and the same problems: what they write, how fast.

The loops are the publishers' own files, from checkouts you name; nothing of them is kept here, and the code
in them runs. Which repository is whose says ``--help``:

    git clone https://github.com/ML-GSAI/LLaDA && git clone https://github.com/shkim0116/KLASS
    python -m benchmarks.peers llada=LLaDA klass=KLASS

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

Some loops ask their model for what no observation tells, or see it where ours does not. They are given what
ours sees, so that the rule itself is compared, and a second time, *as published*, to see what that makes.
The loaders say what it is.

Then loops that ask for logits only are timed beside ours, in turns: problems per second one problem at a
time, and, for those that take several prompts of different length, in batches of 64 beside our 64 rows. A
loop that does not is timed one problem at a time there, too. *Same text* counts completions that are equal to
ours to the last token. Results of peers that are not named stay as they are.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import dllm_gym
from benchmarks.peers.canvases import BACKEND, Case, Loop, compare_canvases, softened
from benchmarks.peers.catalogue import PEERS, Peer
from benchmarks.peers.timing import time_both
from dllm_gym.bench import machine
from dllm_gym.files import read_json, write_json, write_text

RESULTS = Path(__file__).parents[1] / "results"


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
        "problems_per_second": (
            time_both(loop, peer.batches, case, trained, rounds) if rounds and peer.timed else {}
        ),
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
    return "\n".join([*written, "", *timed] if len(timed) > 2 else written)


def main() -> None:
    known = ", ".join(f"{name} ({peer.repository})" for name, peer in PEERS.items())
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peers", nargs="+", metavar="NAME=PATH", help=f"out of {known}")
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3, help="of the timing; 0 for none")
    parser.add_argument("--output", type=Path, default=RESULTS / "peers.json")
    arguments = parser.parse_args()
    results = read_json(arguments.output)["results"] if arguments.output.is_file() else {}
    for given in arguments.peers:
        name, _, checkout = given.partition("=")
        if name not in PEERS or not checkout:
            parser.error(f"give NAME=PATH with a name out of {', '.join(PEERS)}, got {given!r}")
        peer = PEERS[name]
        loop = peer.load(Path(checkout).resolve())
        results[name] = [
            compare(peer, loop, case, arguments.problems, arguments.rounds) for case in peer.cases
        ]
        write_json(arguments.output, {"machine": machine(), "results": results})
        text = "\n\n".join(table(name, rows) for name, rows in results.items())
        text += f"\n\n`python -m benchmarks.peers`, {machine()}\n"
        write_text(arguments.output.with_suffix(".md"), text)
        print(table(name, results[name]), flush=True)


if __name__ == "__main__":
    main()
