"""How close environment steps come to the bare forward of the dLLM, over batch sizes, lengths and models.

    python benchmarks/limit.py                             # the embedded dLLM and LLaDA's shape, small
    python benchmarks/limit.py --model 8b --batch-sizes 1 16 --dtypes bfloat16 --output limit-8b.json
                                                           # wants a GPU with 40 GB or more

What is measured is defined in ``dllm_gym.bench``; ``dllm-gym bench`` does the same for one model. *embedded*
is tiny-arithmetic, the others have random weights in LLaDA's shape: *tiny* as small as that, *100m*
LLaDA-8B's 16 times narrower, with its vocabulary. On a CPU the large ones are left out where a forward
would take too long. The embedded one is compiled (unless ``--no-compile``) and compared with both forwards.

Writes ``benchmarks/results/limit.json`` and ``.md``, or what ``--output`` names.
"""

from __future__ import annotations

import argparse
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from random_weights import SHAPES, load_random

import dllm_gym
from dllm_gym.bench import Limit, limit_table, machine, measure_limit
from dllm_gym.files import write_json, write_text

RESULTS = Path(__file__).parent / "results"
EMBEDDED = "tiny-arithmetic"
LARGE = ("100m", "8b")
MOST_ON_A_CPU = 512  # rows times L of the large ones, whose forward would take minutes


def load(model: str, **kwargs: Any) -> Any:
    """The embedded dLLM, or one with random weights."""
    if model == "embedded":
        return dllm_gym.load_backend(EMBEDDED, **kwargs)
    return load_random(SHAPES[model], **kwargs)


def peak_memory(device: torch.device) -> float:
    """GiB, of the GPU or else of the process, from its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10  # getrusage counts KiB, on a Mac bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def measure(model: str, dtype: str | None, arguments: argparse.Namespace) -> dict[str, Any]:
    """The limits of one model in one dtype."""
    how = {"compile": "auto"} if arguments.compile and model == "embedded" else {}
    backend = load(model, dtype=dtype, device=arguments.device, **how)
    limits: list[Limit] = []
    for length in arguments.lengths:
        for batch_size in arguments.batch_sizes:
            if model in LARGE and backend.device.type == "cpu" and batch_size * length > MOST_ON_A_CPU:
                continue
            limits.append(
                measure_limit(
                    backend,
                    batch_size=batch_size,
                    completion_length=length,
                    rounds=arguments.rounds,
                    seconds=arguments.seconds,
                )
            )
            print(f"{model}: {limits[-1]}", file=sys.stderr, flush=True)
    return {
        "model": model,
        "parameters": sum(parameter.numel() for parameter in backend.model.parameters()),
        "vocabulary": backend.vocab_size,
        "device": str(backend.device),
        "peak_memory_gib": round(peak_memory(backend.device), 2),
        "limits": [limit.to_json() for limit in limits],
    }


def table(result: dict[str, Any]) -> str:
    """What was measured of one model, as Markdown."""
    heading = (
        f"{result['model']}: {result['parameters'] / 1e6:.1f} million parameters, "
        f"vocabulary of {result['vocabulary']}, on {result['device']}"
    )
    return f"{heading}\n\n{limit_table([Limit(**limit) for limit in result['limits']])}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", choices=["embedded", *SHAPES], default=["embedded", "100m"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 64, 256])
    parser.add_argument("--lengths", nargs="+", type=int, default=[48, 128, 256])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn, at least one episode")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--device", help="default: a GPU if there is one")
    parser.add_argument("--output", type=Path, default=RESULTS / "limit.json")
    arguments = parser.parse_args()
    results = [measure(model, dtype, arguments) for model in arguments.model for dtype in arguments.dtypes]
    write_json(arguments.output, {"machine": machine(), "results": results})
    text = "\n\n".join(map(table, results)) + f"\n\n`python benchmarks/limit.py`, {machine()}\n"
    write_text(arguments.output.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
