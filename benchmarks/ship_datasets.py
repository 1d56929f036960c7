"""Makes package data of recorded episodes, a small dataset per member of the suite (``Member.dataset``).

Run: ``python benchmarks/ship_datasets.py``, which is, for every member, ``dllm-gym record ID --env ENV
--no-compile --episodes N`` with the numbers below, packed. It takes minutes and needs the extra ``minari``.
On one machine it writes the same bytes again; another may compute confidences that differ in their last
bits. Where the episodes become others, raise the version in ``Member.dataset``: users keep what they have
unpacked.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from suite import add_members, chosen_members

from dllm_gym.files import write_bytes
from dllm_gym.offline import mixed_agents, record_dataset
from dllm_gym.offline.home import folder_of
from dllm_gym.offline.shipped import ENDING, PACKED, pack
from dllm_gym.suite import Member

# so many that a file has about 200 kB: a step of a long completion has more confidences
PROBLEMS = {
    "Arithmetic": 40,
    "Sudoku": 150,
    "Lists": 200,
    "LatinSquare4": 125,
    "LatinSquare5": 70,
    "Records": 45,
    "Overconfident": 15,
}


def ship(member: Member) -> Path:
    """Records and packs the dataset of a member; its file."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINARI_DATASETS_PATH"] = folder
        record_dataset(member.dataset, mixed_agents(member.trained), PROBLEMS[member.name], **member.env)
        packed = pack(folder_of(member.dataset))
    return write_bytes(PACKED / f"{member.dataset.rpartition('/')[2]}{ENDING}", packed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_members(parser)
    for member in chosen_members(parser, parser.parse_args().members):
        path = ship(member)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
