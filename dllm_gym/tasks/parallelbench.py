"""ParallelBench: lists and puzzles that suffer from being written in parallel, from its own files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from string import Formatter
from typing import Any

from dllm_gym.files import parse_json
from dllm_gym.suggestions import did_you_mean
from dllm_gym.tasks.base import Problem, check_index
from dllm_gym.tasks.data import HUB, Row, read_rows, text_in
from dllm_gym.tasks.scoring.answers import before_end
from dllm_gym.tasks.scoring.parallelbench import SCORERS
from dllm_gym.yaml_files import read_yaml

# Metrics that are refused, and why.
REFUSED = {
    "sentence_to_words_score": "it asks LanguageTool, a Java server, about the grammar",
    "summary_score": "it asks LanguageTool, a Java server, about the grammar, and ROUGE",
    "paraphrase_score": "it asks LanguageTool, a Java server, about the grammar, and BERTScore, a model",
}
# Tokens to answer in, as in the paper's runs
_LENGTHS = {"waiting_line": 32, "waiting_line_n15": 128}
_LENGTH = 64
# Where ``GROUP/NAME.jsonl`` may lie: in a checkout, in what ``pb data`` wrote, in the folder itself
_PLACES = ("dataset/parallel_bench/data/output/test/", "test/", "")
_SETTINGS = "task_config.yaml"  # prompts and metrics of the files beside it
_LARGEST_SETTINGS = 2**23  # bytes


class ParallelBenchTask:
    """A task of furiosa-ai/ParallelBench (arXiv 2510.04767), by name: ``parallelbench:waiting_line/copy``.

    Prompts come from its files, scores are the published ones, so that figures can be compared. The
    solved example of a file is asked and answered before the question, in a chat: the dLLM must have a chat
    template. Tasks whose score asks a server or another model are refused (``REFUSED`` says why).

    Args:
        split: ``test``; there is no other.
        dataset: Name of the task, the part after the colon.
        data: Path of a checkout of the repository, of a folder that its ``pb data`` has written, or of a
            ``.jsonl`` file in one, beside its ``task_config.yaml``; ``"hub"`` for furiosa-ai/ParallelBench.

    Raises:
        ValueError: For another split, an unknown or refused task, or a malformed file.
        FileNotFoundError: If there is no data.
    """

    def __init__(self, split: str = "test", dataset: str = "", data: str | Path | None = None) -> None:
        if split != "test":
            raise ValueError(f"ParallelBench has test problems only; use split='test' instead of {split!r}")
        if not re.fullmatch(r"[\w-]+/[\w-]+", dataset):
            raise ValueError(
                f"unknown task {dataset!r} of ParallelBench; name one as in parallelbench:waiting_line/copy"
            )
        self.split = split
        self.name = f"parallelbench:{dataset}"
        self.completion_length = _LENGTHS.get(dataset.partition("/")[0], _LENGTH)
        self._problems = _read(self.name, dataset, data)
        self.num_problems = len(self._problems)

    def problem(self, index: int) -> Problem:
        """Problem ``index``, by file order.

        ``reference`` is the right answer, or one of them. ``metadata``: ``metric``, the published name of
        the score, and ``answer``, what it compares with.
        """
        return self._problems[check_index(index, self.num_problems)]

    def score(self, completion: str, problem: Problem) -> float:
        """The published ``score``, 1.0 or 0.0, of the text before the end token."""
        return self._score(completion, problem, strict=False)

    def metrics(self, completion: str, problem: Problem) -> dict[str, float]:
        """``score_strict``: the published one, which wants nothing around the answer and names in quotes."""
        return {"score_strict": self._score(completion, problem, strict=True)}

    def _score(self, completion: str, problem: Problem, strict: bool) -> float:
        right = SCORERS[problem.metadata["metric"]]
        return float(right(before_end(completion), problem.metadata["answer"], strict))


def _read(task: str, dataset: str, data: str | Path | None) -> list[Problem]:
    config = dataset.replace("/", "-", 1)  # the hub's name
    files, on_hub = [f"{place}{dataset}.jsonl" for place in _PLACES], f"{config}/test*.parquet"
    settings: Mapping[str, Any] = {}
    if data is not None and data != HUB:
        path = Path(data).expanduser()
        data = next((file for name in files if (file := path / name).is_file()), path)
        if data.is_file():
            settings = _settings(data.with_name(_SETTINGS), dataset)
        elif not any(path.glob(on_hub)) and (known := _known(path)):
            hint = did_you_mean(dataset, known)
            raise ValueError(f"{path} has no task {dataset!r}{hint}; it has {', '.join(known)}")
    return read_rows(
        task,
        data,
        partial(_parse, settings),
        hub="furiosa-ai/ParallelBench",
        hub_config=config,
        hub_split="test",
        files=[*files, on_hub],
    )


def _known(folder: Path) -> list[str]:
    found = (file for place in _PLACES for file in (folder / place).glob("*/*.jsonl"))
    return sorted({f"{file.parent.name}/{file.stem}" for file in found})


def _settings(path: Path, dataset: str) -> dict[str, Any]:
    """Prompt and metric of a task; of a file from the hub, beside which nothing lies, every row has them."""
    if not path.is_file():
        return {}
    tasks = read_yaml(path, "list of tasks", _LARGEST_SETTINGS)
    found = tasks.get(dataset)
    if not isinstance(found, Mapping) or not {"prompt", "metric"} <= found.keys():
        raise ValueError(
            f"{path} has no prompt and metric for {dataset!r}; it is about {', '.join(map(str, tasks))}"
        )
    return {"prompt": found["prompt"], "metric": found["metric"]}


def _parse(settings: Mapping[str, Any], row: Row) -> Problem:
    row = {**row, **settings}
    metric, form = text_in(row, "metric"), text_in(row, "prompt")
    if metric not in SCORERS:
        raise ValueError(
            f"its metric {metric!r} is refused: {REFUSED.get(metric, 'it is not known here')}; scored are "
            f"{', '.join(SCORERS)}, those of waiting_line, waiting_line_n15 and the puzzles"
        )
    asked, answer = _object(row["input"]), _object(row["answer"])
    if not isinstance(asked, Mapping):
        raise ValueError(f"column 'input' must hold an object, got {asked!r:.80}")
    reference = _written(answer)
    if not _is_right(metric, reference, answer):
        raise ValueError(f"by {metric} the answer {answer!r:.80} is not right itself")
    turns: list[Mapping[str, str]] = []
    for example in asked.get("icl_examples") or ():
        turns.append({"role": "user", "content": _filled(form, example["input"])})
        turns.append({"role": "assistant", "content": _written(example["answer"])})
    return Problem(_filled(form, asked), reference, {"metric": metric, "answer": answer}, turns=tuple(turns))


def _object(value: Any) -> Any:
    """A value of a row; on the hub objects are written as JSON."""
    return parse_json(value, "a column") if isinstance(value, str) and value.startswith("{") else value


def _is_right(metric: str, reference: str, answer: Any) -> bool:
    try:
        return SCORERS[metric](reference, answer, False)
    except (LookupError, TypeError, AttributeError):  # an answer for another metric
        return False


def _written(answer: Any) -> str:
    """An answer as it is written: its text, or the example of a right one."""
    return answer if isinstance(answer, str) else text_in(answer, "example")


def _filled(form: str, values: Mapping[str, Any]) -> str:
    """A prompt with its values in place of ``{name}``: not ``str.format``, which does more than that."""
    pieces = []
    for text, name, spec, conversion in Formatter().parse(form):
        pieces.append(text)
        if name is None:
            continue
        value = values.get(name)
        if spec or conversion or not isinstance(value, str | int):
            raise ValueError(
                f"the prompt asks for {{{name}}} as a text or number; there is {', '.join(values)}"
            )
        pieces.append(str(value))
    return "".join(pieces).replace("\\n", "\n")
