"""What a post-trained dLLM says about itself: its record, and the card that people read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dllm_agents.config import Dumper
from dllm_gym.files import read_json, write_json, write_text
from dllm_gym.trained import RECORD

POSTTRAINING = "posttraining.json"


def write_card(
    directory: Path,
    *,
    source: str,
    command: str,
    config: Mapping[str, Any],
    parameters: Mapping[str, int],
    seconds: float,
    split: str,
    results: Mapping[str, Mapping[str, Any]],
) -> None:
    """Writes ``README.md`` and the records beside a checkpoint.

    Args:
        directory: The checkpoint's.
        source: The dLLM that training began with: a directory or hub id.
        command: That trained it.
        config: The configuration, plain values.
        parameters: How many weights it has (``all``), and how many were ``trained``.
        seconds: Of training.
        split: Of the problems it was tried on.
        results: On them (``EvaluationResult.to_json``), ``before`` and ``after``.
    """
    record = {
        "source": Path(source).name,
        "command": command,
        "config": config,
        "parameters": parameters,
        "seconds": round(seconds),
        "split": split,
        "results": results,
    }
    write_json(directory / POSTTRAINING, record)
    stages: Sequence[Mapping[str, Any]] = ()
    earlier = Path(source) / RECORD
    if earlier.is_file():  # then it is known by what it was pretrained on, wherever it goes
        known = read_json(earlier)
        stages = known["stages"]
        stage = {"command": command, "seconds": round(seconds), "threads": _threads()}
        after = {
            **results["after"],
            "backend": directory.name,
            "task_kwargs": config["env"].get("task_kwargs") or {},
        }
        write_json(directory / RECORD, {**known, "stages": [*stages, stage], "metrics": [after]})
    write_text(directory / "README.md", _card(directory.name, record, stages))


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _card(name: str, record: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> str:
    config, results, parameters = record["config"], record["results"], record["parameters"]
    rows = "\n".join(
        f"| {when} | {test['episodes']} | {test['accuracy']:.3f} "
        f"({test['accuracy_ci95'][0]:.3f} to {test['accuracy_ci95'][1]:.3f}) | {test['nfe_mean']:.1f} |"
        for when, test in results.items()
    )
    learned = (
        "" if config["joint"] is False else ", in the end by the policy in `policy/`, which learned, too"
    )
    earlier = "".join(f"\n   - before: `{stage['command']}`" for stage in stages)
    written = yaml.dump(dict(config), Dumper=Dumper, sort_keys=False)
    return f"""---
license: apache-2.0
library_name: dllm-gym
tags: [masked-diffusion, reinforcement-learning, dllm-gym]
---
# {name}

The masked diffusion language model `{record["source"]}`, {parameters["all"]:,} parameters, trained on by
reinforcement learning ({config["method"]}) on the rewards of a task. It loads as the one it was made of.

- **Task**: `{results["after"]["task"]}`.
- **Trained**: {parameters["trained"]:,} weights, {record["seconds"]} s; adapters are merged into the rest.
- **Command**: `{record["command"]}`{earlier}
- **Problems**: those of `train`. These weights are the run's best on problems of `validation`.
- **Decoded** by `{config["agent"]}`{learned}:

| | {record["split"]} problems | accuracy (95 % interval) | steps |
|---|---|---|---|
{rows}

```yaml
{written}```
"""
