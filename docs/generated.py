"""Writes the parts of pages that come from docstrings, which so read well everywhere and cannot go stale.

Run: ``python docs/generated.py``; a test compares the pages with what it would write.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from dllm_agents.config import TrainConfig
from dllm_agents.networks import UnmaskTransformerConfig
from dllm_agents.posttraining.config import PosttrainConfig
from dllm_agents.posttraining.joint import Joint
from dllm_agents.sb3.grpo import GRPO
from dllm_agents.sb3.policy import UnmaskPolicy
from dllm_agents.sb3.success import SuccessModel
from dllm_gym.envs.unmask import UnmaskEnv

DOCS = Path(__file__).parent
PART = re.compile(
    r"(<!-- from the docstring of (\w+) by docs/generated\.py -->\n).*?(<!-- end -->)", re.DOTALL
)
# of Stable-Baselines3, or in other fields of a configuration
ELSEWHERE = {
    *("policy", "env", "learning_rate", "policy_kwargs", "tensorboard_log", "verbose", "seed", "device"),
    *("stats_window_size", "expert", "expert_block_length"),
    *("observation_space", "action_space", "lr_schedule", "use_sde"),
}


def described(documented: Any) -> Iterator[tuple[str, str]]:
    """Names and descriptions in the section ``Args`` or ``Attributes`` of a docstring."""
    text = inspect.getdoc(documented) or ""
    section = re.search(r"^(?:Args|Attributes):\n((?:    .*\n?|\n)+)", text, re.MULTILINE)
    assert section is not None, documented
    for name, description in re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section[1], re.MULTILINE):
        yield name, " ".join(description.split())


def table(documented: Any) -> str:
    """Every argument with its default and what it means, as Markdown."""
    parameters = inspect.signature(documented).parameters
    sizes = dict(described(UnmaskTransformerConfig))
    lines = ["| field | default | meaning |", "|---|---|---|"]
    for name, description in described(documented):
        if name in ELSEWHERE and documented not in (TrainConfig, PosttrainConfig, Joint):
            continue
        if documented is UnmaskPolicy and name in sizes:  # where the policy says: see there
            description = sizes[name]
        cells = f"`{name}`", f"`{_as_yaml(parameters[name].default)}`", _in_yaml(description)
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines)


def _as_yaml(default: Any) -> str:
    """A default as it would stand in a configuration."""
    if default is None:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple | list):
        return f"[{', '.join(map(str, default))}]"
    if isinstance(default, type):
        return default.__name__
    is_plain = isinstance(default, int | float | str)
    return str(default) if is_plain else "{}"  # a factory, as dataclasses have for dictionaries


def _in_yaml(description: str) -> str:
    return re.sub(r"\bNone\b", "null", description.replace("``", "`"))


PARTS: dict[str, Callable[[], str]] = {
    "UnmaskEnv": lambda: inspect.getdoc(UnmaskEnv) or "",
    **{
        one.__name__: partial(table, one)
        for one in (TrainConfig, PosttrainConfig, Joint, GRPO, SuccessModel, UnmaskPolicy)
    },
}


def written(text: str) -> str:
    """A page with its generated parts as they should be."""
    return PART.sub(lambda part: f"{part[1]}{PARTS[part[2]]()}\n{part[3]}", text)


def main() -> None:
    """Brings all pages up to date."""
    for path in sorted(DOCS.glob("*.md")):
        before = path.read_text(encoding="utf-8")
        after = written(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(path)


if __name__ == "__main__":
    main()
