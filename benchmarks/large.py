"""A dLLM of LLaDA's shape with random weights: rows per second, what the environment adds, peak memory.

    python benchmarks/large.py --shape 8b        # LLaDA-8B; wants a GPU with 40 GB or more
    python benchmarks/large.py --shape 100m      # the same, 16 times narrower: runs on a laptop

Weights cost no disk: the checkpoint that is written and loaded in the usual way is a sparse file of zeros,
and random numbers are filled in afterwards, in memory. 256 tokens, decoded in blocks of 32 and in full
diffusion, 8 tokens a step by confidence, in one ``UnmaskVectorEnv``. Of the time of ``agent.act`` and
``env.step``:

- ``outside_forward``: the share outside the model's forward, body and output head;
- ``outside_predict``: the share outside ``Backend.predict``, which besides the forward picks tokens and
  confidences out of the logits: what is left is the environment and the agent.

Writes ``benchmarks/results/large-<shape>.json``, or what ``--output`` names.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from throughput import RESULTS, Clock, machine, vector_round

import dllm_gym
from dllm_gym.backends.families import family_named
from dllm_gym.backends.word_tokenizer import build_tokenizer, save_tokenizer
from dllm_gym.files import write_json

LENGTH, BLOCKS, TOKENS_PER_STEP = 256, (32, 256), 8
TASK = "arithmetic"
SHAPES = {
    "8b": {"vocab_size": 126464, "width": 4096, "layers": 32, "heads": 32, "mlp_width": 12288},
    "100m": {"vocab_size": 126464, "width": 256, "layers": 32, "heads": 2, "mlp_width": 768},
    "tiny": {"vocab_size": 512, "width": 64, "layers": 2, "heads": 2, "mlp_width": 192},
}


def write_hollow_checkpoint(directory: Path, shape: dict[str, int]) -> None:
    """A checkpoint in LLaDA's layout whose bfloat16 tensors are a hole in a sparse file."""
    import transformers

    family: Any = family_named("llada")
    special = family.special_tokens
    tokenizer = build_tokenizer(dllm_gym.load_task(TASK).vocabulary, special)  # type: ignore[attr-defined]
    config = family.write_config(
        **shape,
        kv_heads=shape["heads"],
        rope_theta=500000.0,
        max_length=4096,
        mask_token_id=tokenizer.convert_tokens_to_ids(special.mask),
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.device("meta"):
        model = getattr(transformers, family.model_class)(family.translate(config))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in family.checkpoint_names(model.state_dict()).items():
        begin, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    write_json(directory / "config.json", config)
    save_tokenizer(tokenizer, directory)


def load_random(shape: dict[str, int], **kwargs: Any) -> Any:
    """The dLLM with random weights, on its device."""
    with tempfile.TemporaryDirectory() as directory:
        write_hollow_checkpoint(Path(directory), shape)
        backend: Any = dllm_gym.load_backend(directory, **kwargs)
        with torch.no_grad():
            for parameter in backend.model.parameters():
                if parameter.ndim == 1:
                    parameter.fill_(1.0)  # of a norm
                else:
                    parameter.normal_(0.0, 0.02)
    return backend


def measure(backend: Any, rows: int, steps: int, rounds: int) -> list[dict[str, Any]]:
    """For every block length, medians over rounds of ``steps`` steps of all rows."""
    agent = dllm_gym.make_strategy("confidence", k=TOKENS_PER_STEP)
    forward, predict, acting = clocks = [Clock() for _ in range(3)]
    for module in (backend.model.model, backend.model.get_output_embeddings()):
        module.forward = forward.around(module.forward)
    backend.predict = predict.around(backend.predict)
    agent.act = acting.around(agent.act)  # type: ignore[method-assign]
    results = []
    for block_length in BLOCKS:
        env = gym.make_vec(
            dllm_gym.ENV_ID,
            num_envs=rows,
            autoreset_mode="SameStep",
            task=TASK,
            backend=backend,
            completion_length=LENGTH,
            block_length=block_length,
        )
        vector_round(env, agent, 1)
        seconds, outside_forward, outside_predict = [], [], []
        for _ in range(rounds):
            total = vector_round(env, agent, steps, clocks) + acting.seconds
            seconds.append(total)
            outside_forward.append(1 - forward.seconds / total)
            outside_predict.append(1 - predict.seconds / total)
        results.append(
            {
                "block_length": block_length,
                "rows_per_second": round(rows * steps / statistics.median(seconds), 2),
                "outside_forward": round(statistics.median(outside_forward), 4),
                "outside_predict": round(statistics.median(outside_predict), 4),
            }
        )
    return results


def peak_memory(device: torch.device) -> float:
    """GiB, of the GPU or else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10  # getrusage counts KiB, on a Mac bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="100m")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", help="default: a GPU if there is one")
    parser.add_argument("--dtype", help="default: bfloat16 on a GPU that computes in it, float32 on a CPU")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    backend = load_random(SHAPES[arguments.shape], device=arguments.device, dtype=arguments.dtype)
    results = measure(backend, arguments.rows, arguments.steps, arguments.rounds)
    parameters = list(backend.model.parameters())
    report = {
        "machine": machine(),
        "shape": {"name": arguments.shape, **SHAPES[arguments.shape]},
        "parameters": sum(parameter.numel() for parameter in parameters),
        "dtype": str(parameters[0].dtype).removeprefix("torch."),
        "device": str(backend.device),
        "completion_length": LENGTH,
        "tokens_per_step": TOKENS_PER_STEP,
        "rows": arguments.rows,
        "steps": arguments.steps,
        "results": results,
        "peak_memory_gib": round(peak_memory(backend.device), 2),
    }
    write_json(arguments.output or RESULTS / f"large-{arguments.shape}.json", report)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
