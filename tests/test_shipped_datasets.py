"""The small datasets that come with the package, and how they get into Minari's folder."""

from __future__ import annotations

import io
import json
import lzma
import sys
import tarfile
import zlib

import gymnasium as gym
import numpy as np
import pytest

import dllm_gym
from dllm_agents import load_policy
from dllm_gym.cli import main
from dllm_gym.evaluation import as_agent
from dllm_gym.offline import mixed_agents, read_dataset, record_dataset, shipped_datasets
from dllm_gym.offline.shipped import LARGEST, unpack

FILES = ("metadata.json", "main_data.hdf5")
QUICK = ("Records", "Overconfident")  # to read: they have few episodes
SUDOKU, ARITHMETIC = "dllm-gym/sudoku-mixed-v0", "dllm-gym/arithmetic-mixed-v0"


@pytest.fixture
def minari(tmp_path, monkeypatch):
    """Minari, with an empty folder of datasets."""
    pytest.importorskip("h5py")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return pytest.importorskip("minari", reason="needs pip install 'dllm-gym[minari]'")


def test_every_member_of_the_suite_has_one_and_they_are_small():
    sizes = {id: path.stat().st_size for id, path in shipped_datasets().items()}
    assert set(sizes) == {member.dataset for member in dllm_gym.SUITE}
    assert max(sizes.values()) <= 300_000
    assert sum(sizes.values()) <= 1_500_000


@pytest.mark.parametrize("id", shipped_datasets())
def test_what_is_unpacked_is_a_dataset_of_that_name_and_nothing_else(id, tmp_path, capsys):
    target = tmp_path / "datasets" / id
    unpack(shipped_datasets()[id], target)
    assert {path.name for path in target.parent.iterdir()} == {target.name}  # no scratch stays
    assert {str(path.relative_to(target)) for path in target.rglob("*")} == {
        "data", *(f"data/{name}" for name in FILES)
    }  # fmt: skip
    assert json.loads((target / "data" / "metadata.json").read_text())["dataset_id"] == id
    assert capsys.readouterr().err.splitlines() == [
        f"unpacked the dataset that comes with the package into {target}"
    ]


def test_a_dataset_that_is_there_meanwhile_stays(tmp_path, capsys):
    target = tmp_path / "mine-v0"
    (target / "data").mkdir(parents=True)
    (target / "data" / "metadata.json").write_text("mine")
    unpack(shipped_datasets()[SUDOKU], target)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine-v0", "data", "metadata.json"]
    assert (target / "data" / "metadata.json").read_text() == "mine"
    assert capsys.readouterr().err == ""


# What is no packed dataset --------------------------------------------------------------------------------


def packed(*entries):
    """A file as they are packed, with these entries: names, or entries with a name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for entry in entries:
            archive.addfile(tarfile.TarInfo(entry) if isinstance(entry, str) else entry)
    return lzma.compress(buffer.getvalue())


def a(kind, name, target=""):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


def sparse():
    """A file of a terabyte, of which the archive has nothing."""
    entry = tarfile.TarInfo(FILES[1])
    entry.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.size": str(2**40), "GNU.sparse.map": "0,0"}
    return entry


def greedy():
    """A sound file which says that unpacking it takes 4 GB of memory."""
    content = bytearray(packed(*FILES))
    content[16] = 40  # the size of the dictionary, in the header of the block, which has a checksum
    content[20:24] = zlib.crc32(content[12:20]).to_bytes(4, "little")
    return bytes(content)


def damaged(change):
    content = bytearray(shipped_datasets()[ARITHMETIC].read_bytes())
    change(content)
    return bytes(content)


def cut(content):
    del content[len(content) // 2 :]


def flip(content):
    content[len(content) // 2] ^= 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: b"", "it is cut"),
        (lambda: b"PK\3\4" * 10, "format not supported"),
        (lambda: damaged(cut), "it is cut"),
        (lambda: damaged(flip), "Corrupt input data"),
        (lambda: lzma.compress(b"nothing of that kind" * 100), ""),
        (lambda: lzma.compress(bytes(LARGEST + 1)), f"unfolds to more than {LARGEST} bytes"),
        (greedy, "Memory usage limit"),
        (packed, "got nothing"),
        (lambda: packed(FILES[0]), "got metadata.json"),
        (lambda: packed(*FILES, "more"), r"must hold the files .*, got metadata.json, main_data.hdf5, more"),
        (lambda: packed(*FILES, a(tarfile.DIRTYPE, "more")), "got .*, more"),
        (lambda: packed(FILES[0], "../main_data.hdf5"), "must hold the files"),
        (lambda: packed(FILES[0], "/main_data.hdf5"), "must hold the files"),
        (lambda: packed(FILES[0], a(tarfile.SYMTYPE, FILES[1], "/etc/hostname")), "must hold the files"),
        (lambda: packed(FILES[0], a(tarfile.LNKTYPE, FILES[1], FILES[0])), "must hold the files"),
        (lambda: packed(FILES[0], sparse()), "must hold the files"),
    ],
)
def test_it_is_refused_and_nothing_is_written(make, message, tmp_path):
    path = tmp_path / "some.tar.xz"
    path.write_bytes(make())
    with pytest.raises(ValueError, match=f"some.tar.xz is damaged or no packed dataset: .*{message}"):
        unpack(path, tmp_path / "datasets" / "some-v0")
    assert not (tmp_path / "datasets").exists()


# With Minari ----------------------------------------------------------------------------------------------


def test_without_minari_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "minari.dataset.minari_dataset", None)
    with pytest.raises(ImportError, match=r"datasets need Minari: pip install 'dllm-gym\[minari\]'"):
        read_dataset(SUDOKU)


@pytest.mark.parametrize(
    "member",
    [
        pytest.param(member, id=member.name, marks=[] if member.name in QUICK else pytest.mark.slow)
        for member in dllm_gym.SUITE
    ],
)
def test_they_are_of_their_member(member, minari):
    """The spaces are its environment's, the agents the mixed ones, each on the same first problems."""
    episodes = read_dataset(member.dataset)
    env = gym.make(member.id)
    assert episodes.observation_space == env.observation_space
    assert episodes.actions.shape == (episodes.lengths.sum(), env.action_space.n)
    labels = [as_agent(agent).label for agent in mixed_agents(member.trained)]
    assert list(dict.fromkeys(episodes.agents)) == labels
    agents = np.array(episodes.agents)
    problems = len(episodes) // len(labels)
    for label in labels:
        assert sorted(episodes.problems[agents == label]) == list(range(problems))
    assert member.dataset in minari.list_local_datasets()


def test_replaying_an_episode_scores_as_recorded(minari):
    """The dLLM that comes with the package is the one that was recorded."""
    read_dataset(ARITHMETIC)
    dataset = minari.load_dataset(ARITHMETIC)
    env = dataset.recover_environment()
    (metadata,) = dataset.storage.get_episode_metadata([80])  # the first of fast-dllm
    (episode,) = dataset.iterate_episodes([80])
    options = {key: value.item() for key, value in metadata["options"].items()}
    env.reset(options=options)
    for action in episode.actions:
        observation, reward, *_, info = env.step(action)
    np.testing.assert_allclose(observation["confidence"], episode.observations["confidence"][-1], atol=1e-4)
    assert (reward, info["score"]) == (episode.rewards[-1], metadata["score"])
    assert info["completion"] == metadata["completion"]


@pytest.mark.usefixtures("toys")
def test_one_that_was_recorded_wins(minari, capsys):
    record_dataset(SUDOKU, ["confidence:k=1"], 2, task="toy", backend="toy")
    assert read_dataset(SUDOKU).environment["task"] == "toy"
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("toys")
def test_others_can_be_recorded_beside_an_unpacked_one(minari):
    read_dataset(ARITHMETIC)
    record_dataset("dllm-gym/own-v0", ["confidence:k=1"], 2, task="toy", backend="toy")
    assert set(minari.list_local_datasets()) == {ARITHMETIC, "dllm-gym/own-v0"}
    with pytest.raises(FileExistsError, match="give another version"):
        record_dataset(ARITHMETIC, ["confidence:k=1"], 2, task="toy", backend="toy")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        ("success", ("algorithm_kwargs.n_epochs=1",)),
        (
            "ppo",
            ("warm_start=null", "imitation_steps=64", "total_timesteps=64"),
        ),
    ],
)
def test_a_training_needs_no_recording(algorithm, settings, minari, tmp_path, monkeypatch):
    monkeypatch.setattr("dllm_agents.sb3.callbacks.evaluation_figures", lambda *_: {})
    quick = "policy.features=[confidence, mask]", "policy.width=8", "eval_episodes=4", "env.backend_kwargs={}"
    chosen = [part for one in (*quick, *settings) for part in ("--set", one)]
    where = ("--dataset", ARITHMETIC, "--env", "DLLMUnmask/Arithmetic-v0")
    run = tmp_path / "run"
    monkeypatch.setattr("sys.argv", ["dllm-gym", "train", algorithm, *where, *chosen, "--output", str(run)])
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    assert load_policy(run / "last").label
    assert ARITHMETIC in minari.list_local_datasets()
