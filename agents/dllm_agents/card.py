"""What a policy says about itself where it is shared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dllm_agents.checkpoint import DESCRIPTION, WEIGHTS, load_policy, read_description
from dllm_gym.sharing import Kind


def policy_card(directory: Path, repo_id: str, license: str) -> str:
    """The model card of a saved policy, with everything that is known of its training.

    Args:
        directory: The policy's.
        repo_id: ``owner/name`` of the repository it goes to.
        license: An identifier of the hub's.

    Returns:
        Markdown after a YAML header as the hub reads it.
    """
    network = load_policy(directory).network
    description = read_description(directory)
    metadata = description.get("metadata") or {}
    config = metadata.get("config") or {}
    name = repo_id.partition("/")[2]
    parts = [
        f"---\nlicense: {license}\nlibrary_name: dllm-gym\n"
        f"tags: [masked-diffusion, reinforcement-learning, unmasking-policy, dllm-gym]\n---",
        f"# {name}",
        "A policy that decides which masked positions a diffusion language model reveals next: "
        f"{network.num_parameters:,} parameters over {', '.join(network.config.features)}. "
        "It sees no tokens and writes none.",
        f"```console\ndllm-gym pull {repo_id} {name}\ndllm-gym evaluate --agent {name}\n```",
    ]
    if metadata.get("command"):
        parts.append(f"**Trained by** `{metadata['command']}`")
    seed = metadata.get("seed", config.get("seed"))
    if seed is not None:
        parts.append(f"**Seed** {seed}")
    rows = list(_metrics(metadata))
    if rows:
        head = "| problems | decoding | number | accuracy | steps |\n|---|---|---|---|---|\n"
        parts.append(head + "\n".join(rows))
    if config:
        parts.append(f"```json\n{json.dumps(config, indent=2, ensure_ascii=False)}\n```")
    return "\n\n".join(parts) + "\n"


def _metrics(metadata: Mapping[str, Any]) -> Iterator[str]:
    """A row per evaluation that ``train`` or a user noted."""
    for split in ("validation", "test"):
        for decoding, result in (metadata.get(split) or {}).items():
            if not isinstance(result, dict) or "accuracy" not in result:
                continue
            shown = f"{result['accuracy']:.3f}"
            if "accuracy_ci95" in result:
                shown += " ({:.3f} to {:.3f})".format(*result["accuracy_ci95"])
            steps = f"{result['nfe_mean']:.1f}" if "nfe_mean" in result else ""
            yield f"| {split} | {decoding} | {result.get('episodes', '')} | {shown} | {steps} |"


def _check(directory: Path) -> None:
    load_policy(directory)


POLICY = Kind("policy", (DESCRIPTION, WEIGHTS), (), _check, policy_card)
