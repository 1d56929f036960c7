"""One cell of a study: its training, then its last policy on test problems; a process of its own.

``python -m dllm_agents.studies.cell DIRECTORY NAME`` is what a study's workers run.
"""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dllm_agents.config import load_config, plain
from dllm_agents.run_folder import CONFIG, METRICS
from dllm_agents.studies.grid import STUDY, Cell, Study, load_study
from dllm_agents.training import train
from dllm_gym.evaluation import EvaluationResult, compare
from dllm_gym.files import read_json, remove_unfinished, write_json

RECORD = "cell.json"  # written last: what has one is finished
_LOCK = "lock"


def cell_directory(directory: Path, cell: Cell) -> Path:
    """Where a cell's training run, tests and record lie."""
    return directory / "cells" / cell.name


def read_record(directory: Path, study: Study, cell: Cell) -> dict[str, Any] | None:
    """What a finished cell has to say; ``None`` while there is anything to do.

    Returns:
        ``evaluations``, those on validation problems as in ``metrics.json``, and ``tests`` by decoding, each
        with ``accuracy``, ``nfe_mean``, ``reward_mean`` and ``tokens_per_forward``.
    """
    path = cell_directory(directory, cell) / RECORD
    if not path.is_file():
        return None
    record: dict[str, Any] = read_json(path)
    asked = record["episodes"], tuple(record["tests"])
    return record if asked == (study.episodes, study.decodings) else None


def check_directory(directory: Path, study: Study) -> None:
    """Refuses to go on with trainings of another study.

    Raises:
        ValueError: If a cell has begun with another configuration.
    """
    for cell in study.cells:
        path = cell_directory(directory, cell) / CONFIG
        if path.is_file() and load_config(path).to_dict() != plain(cell.config):
            before, now = load_config(path).settings(), cell.config.settings()
            changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
            raise ValueError(
                f"{path} differs from the study in {', '.join(changed)}; "
                "choose another directory, or remove that cell's"
            )


def run_cell(directory: Path, study: Study, cell: Cell) -> None:
    """Does what is missing in a cell; what is there is not done again."""
    place = cell_directory(directory, cell)
    with _alone(place):
        if read_record(directory, study, cell) is not None:
            return
        remove_unfinished(place)  # what a kill left beside a finished training
        if not (place / METRICS).is_file():  # written at the end of a training
            command = f"dllm-gym study {directory / STUDY} --output {directory}"
            train(cell.config, place, resume=(place / CONFIG).is_file(), command=command)
        tests = {decoding: _numbers(_test(place, study, cell, decoding)) for decoding in study.decodings}
        evaluations = read_json(place / METRICS)["evaluations"]
        record = {"episodes": study.episodes, "tests": tests, "evaluations": evaluations}
        write_json(place / RECORD, record)


def _test(place: Path, study: Study, cell: Cell, decoding: str) -> EvaluationResult:
    """On test problems; episodes and results are kept below ``test/``."""
    environment = {name: value for name, value in cell.config.env.items() if name != "split"}
    (result,) = compare(
        [f"{place / 'last'}:{decoding}"],
        study.episodes,
        "test",
        strategies=[],
        keep=place / "test",
        seed=cell.seed,
        **environment,
    ).results
    return result


def _numbers(result: EvaluationResult) -> Mapping[str, float]:
    return {
        "accuracy": result.accuracy,
        "nfe_mean": result.nfe_mean,
        "reward_mean": result.reward_mean,
        "tokens_per_forward": result.environment["completion_length"] / result.nfe_mean,
    }


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Waits while another process works in a cell: of a study started twice, or one not quite dead yet."""
    place.mkdir(parents=True, exist_ok=True)
    with (place / _LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # goes with the process
        yield


def main() -> None:
    """See the module's text."""
    directory, name = Path(sys.argv[1]), sys.argv[2]
    study = load_study(directory / STUDY)
    run_cell(directory, study, next(cell for cell in study.cells if cell.name == name))


if __name__ == "__main__":
    main()
