"""Episodes as data: recorded into Minari datasets, read back, and learned from."""

from __future__ import annotations

import json
import shutil
from itertools import product

import numpy as np
import pytest

import dllm_gym
from dllm_agents import load_policy, train
from dllm_agents.config import TrainConfig
from dllm_gym.cli import main

minari = pytest.importorskip("minari", reason="needs pip install 'dllm-gym[minari]'")
h5py = pytest.importorskip("h5py")

from dllm_gym.offline import (  # noqa: E402  # which needs Minari
    best_episodes,
    preference_pairs,
    read_dataset,
    record_dataset,
    write_pairs,
)

pytestmark = pytest.mark.usefixtures("toys")

TOY = {"task": "toy", "backend": "toy"}
RULES = ("random:k=2", "confidence:k=1", "fast-dllm:threshold=0.3")
ID = "dllm-gym/toy-v0"


@pytest.fixture(scope="module")
def datasets(tmp_path_factory, toys):
    """A folder of datasets with one in it."""
    folder = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        record_dataset(ID, RULES, 8, observe=("entropy",), **TOY)
        yield folder


@pytest.fixture(scope="module")
def episodes(datasets):
    return read_dataset(ID)


def test_what_is_read_is_what_was_recorded(episodes):
    """Scores, steps, rewards and texts are those of an evaluation, agent by agent."""
    for rule in RULES:
        result = dllm_gym.evaluate(rule, 8, split="train", **TOY)
        own = [one for one in range(len(episodes)) if episodes.agents[one] == result.label]
        assert len(own) == 8
        by_problem = sorted(own, key=lambda one: episodes.problems[one])
        assert episodes.problems[by_problem].tolist() == result.records.problem.tolist()
        assert episodes.lengths[by_problem].tolist() == result.records.nfe.tolist()
        assert episodes.scores[by_problem].tolist() == result.records.score.tolist()
        assert episodes.rewards[by_problem] == pytest.approx(result.records.reward)
        assert [episodes.completions[one] for one in by_problem] == result.records.completion
    assert {"confidence", "mask", "action_mask", "progress", "entropy"} == {*episodes.observations}


def test_minari_makes_the_environment_and_it_replays_every_episode(datasets):
    """The options of an episode and its actions lead to the same observations and rewards."""
    dataset = minari.load_dataset(ID)
    env = dataset.recover_environment()
    told = dataset.storage.get_episode_metadata(dataset.episode_indices)
    for episode, metadata in zip(dataset.iterate_episodes(), told, strict=True):
        options = {key: value.item() for key, value in metadata["options"].items()}
        observation, _ = env.reset(options=options)
        for step, action in enumerate(episode.actions):
            for key, value in observation.items():
                np.testing.assert_array_equal(value, episode.observations[key][step], err_msg=key)
            observation, reward, terminated, _, info = env.step(action)
            assert (reward, terminated) == (episode.rewards[step], episode.terminations[step])
        for key, value in observation.items():
            np.testing.assert_array_equal(value, episode.observations[key][-1], err_msg=key)
        assert info["score"] == metadata["score"]
        assert info["completion"] == metadata["completion"]


def broken(datasets, tmp_path, monkeypatch):
    """A copy of the dataset to break, and its file."""
    shutil.copytree(datasets, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path / ID / "data"


def test_no_code_that_a_dataset_names_is_run(datasets, tmp_path, monkeypatch):
    """Without its spaces Minari would make the environment that the file names."""
    folder = broken(datasets, tmp_path, monkeypatch)
    metadata = json.loads((folder / "metadata.json").read_text())
    spec = json.loads(metadata["env_spec"])
    spec |= {"entry_point": "builtins:exit", "kwargs": {}}
    del metadata["observation_space"]
    (folder / "metadata.json").write_text(json.dumps({**metadata, "env_spec": json.dumps(spec)}))
    with pytest.raises(ValueError, match="lacks observation_space"):
        read_dataset(ID)


def elsewhere(file):
    del file["episode_0/actions"]
    file["episode_0/actions"] = h5py.ExternalLink("other.hdf5", "/actions")


def in_another_file(file):
    del file["episode_0/actions"]
    file["episode_0"].create_dataset("actions", (2, 6), "i1", external=[("/etc/hostname", 0, 12)])


def bomb(file):
    del file["episode_0/actions"]
    file["episode_0"].create_dataset("actions", (2**40, 6), "i1", chunks=(1, 6))


def set_values(name, value):
    def change(file):
        file[f"episode_0/{name}"][...] = value

    return change


def without_score(file):
    del file["episode_0"].attrs["score"]


def shorter(file):
    data = file["episode_0/observations/mask"]
    data.resize((data.shape[0] - 1, data.shape[1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (elsewhere, "a link to somewhere else"),
        (in_another_file, "lie in another file"),
        (bomb, "stores 0 of them"),
        (set_values("observations/confidence", np.nan), "episode 0: confidence must lie in"),
        (set_values("observations/confidence", 1.5), "episode 0: confidence must lie in"),
        (set_values("actions", 2), "episode 0: actions must lie in"),
        (set_values("rewards", np.inf), "rewards must be finite"),
        (set_values("terminations", False), "episode 0 does not end"),
        (without_score, "episode 0 lacks score"),
        (shorter, "mask must be numbers of the shape"),
    ],
)
def test_what_is_no_dataset_of_ours_is_refused(change, message, datasets, tmp_path, monkeypatch):
    folder = broken(datasets, tmp_path, monkeypatch)
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        change(file)
    with pytest.raises(ValueError, match=message):
        read_dataset(ID)


def test_a_file_that_is_cut_is_refused(datasets, tmp_path, monkeypatch):
    path = broken(datasets, tmp_path, monkeypatch) / "main_data.hdf5"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=f"{ID} holds no episodes of this environment"):
        read_dataset(ID)


def test_names(datasets):
    with pytest.raises(FileExistsError, match="give another version"):
        record_dataset(ID, RULES, 1, **TOY)
    with pytest.raises(FileNotFoundError, match="no dataset dllm-gym/other-v0"):
        read_dataset("dllm-gym/other-v0")
    for id in ("../../toy-v0", "toy", ""):
        with pytest.raises(ValueError, match="a dataset is called like"):
            read_dataset(id)
    with pytest.raises(ValueError, match="a dataset names its task"):
        record_dataset("own-v0", RULES, 1, task=dllm_gym.load_task("toy"), backend="toy")


def test_pairs_are_all_of_right_answers_of_different_speed(episodes, tmp_path):
    number = range(len(episodes))
    wanted = {
        (a, b)
        for a, b in product(number, number)
        if episodes.problems[a] == episodes.problems[b]
        and episodes.scores[a] == episodes.scores[b] == 1
        and episodes.lengths[a] < episodes.lengths[b]
    }
    pairs = preference_pairs(episodes)
    assert wanted
    assert {(pair.chosen.episode, pair.rejected.episode) for pair in pairs} == wanted
    assert len(pairs) == len(wanted)
    lines = write_pairs(pairs, tmp_path / "pairs.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert len(lines) == len(pairs)
    assert first["chosen"]["steps"] < first["rejected"]["steps"]
    assert first["chosen"]["agent"] == episodes.agents[first["chosen"]["episode"]]


def test_the_best_episode_of_a_problem(episodes):
    best = best_episodes(episodes).tolist()
    right = episodes.scores == 1
    assert episodes.problems[best].tolist() == sorted({*episodes.problems[right].tolist()})
    for one in best:
        of_problem = right & (episodes.problems == episodes.problems[one])
        assert right[one]
        assert episodes.rewards[one] == episodes.rewards[of_problem].max()


def offline(**changes):
    base = {
        "algorithm": "success",
        "env": TOY,
        "num_envs": 4,
        "group_size": 1,
        "total_timesteps": 40,
        "eval_episodes": 4,
        "policy": {"width": 8, "critic": False},
        "dataset": ID,
    }
    return TrainConfig().updated(**{**base, **changes})


@pytest.fixture
def quick_pictures(monkeypatch):
    monkeypatch.setattr("dllm_agents.sb3.callbacks.evaluation_figures", lambda *_: {})


@pytest.mark.usefixtures("datasets", "quick_pictures")
def test_a_success_model_from_a_dataset_alone(episodes, tmp_path, monkeypatch):
    """Nothing is decoded for it, and what it fits are the reveals and scores that are recorded."""
    from dllm_agents.sb3.success import SuccessModel

    seen = []
    original = SuccessModel._update

    def update(self, batch, whose, scores):
        seen.append((int(batch["_bits"].sum()), scores))
        return original(self, batch, whose, scores)

    monkeypatch.setattr(SuccessModel, "_update", update)
    monkeypatch.setattr(SuccessModel, "collect_rollouts", None)
    run = train(offline(algorithm_kwargs={"n_epochs": 1, "batch_size": 5}), tmp_path / "run")
    assert sum(bits for bits, _ in seen) == episodes.revealed.sum() == 6 * len(episodes)
    assert sorted(np.concatenate([scores for _, scores in seen])) == sorted(episodes.scores.tolist())
    assert load_policy(run / "last").harm is not None


@pytest.mark.usefixtures("datasets", "quick_pictures")
def test_cloning_makes_the_best_episodes_likely(episodes, tmp_path):
    import torch

    def unlikelihood(steps):
        run = train(
            offline(
                algorithm="ppo", imitation_steps=steps, total_timesteps=steps, learning_rate=1e-2, warmup=0.5,
                algorithm_kwargs={"n_steps": 4, "batch_size": 16},
            ),
            tmp_path / str(steps),
        )  # fmt: skip
        network = load_policy(run / "last").network
        steps_of_best = episodes.steps_of(best_episodes(episodes))
        seen = {key: torch.as_tensor(array[steps_of_best]) for key, array in episodes.observations.items()}
        with torch.no_grad():
            logits = network.candidate_logits(seen)
        actions = torch.as_tensor(episodes.actions[steps_of_best]).float()
        candidates = seen["action_mask"] != 0
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, actions, reduction="none")[
            candidates
        ].mean()

    assert unlikelihood(1600) < 0.7 * unlikelihood(16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"env": {**TOY, "backend": "always-right"}},
            "was recorded with .*'toy'}, and this training is with .*'always-right'}",
        ),
        ({"policy": {"width": 8, "features": ["margin", "mask"]}}, "lacks margin, which the policy reads"),
        ({"env": {**TOY, "completion_length": 8}}, r"has the shape \(6,\) in .*, \(8,\) in this environment"),
    ],
)
@pytest.mark.usefixtures("datasets")
def test_a_dataset_of_elsewhere(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(offline(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "ppo"}, "a dataset is for success, or for imitation_steps"),
        ({"imitation_steps": 8}, "a dataset is for success, or for imitation_steps"),
        ({"algorithm": "ppo", "imitation_steps": 8, "expert": "confidence"}, "imitated is the dataset"),
        ({"dataset": 3}, "dataset must be a text or null, got 3"),
    ],
)
def test_configurations_that_say_two_things(changes, message):
    with pytest.raises(ValueError, match=message):
        offline(**changes)


def test_the_commands(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    output = tmp_path / "pairs.jsonl"
    agents = [part for rule in RULES for part in ("--agent", rule)]
    monkeypatch.setattr(
        "sys.argv",
        ["dllm-gym", "record", ID, *agents, "--task", "toy", "--backend", "toy", "--episodes", "4"],
    )
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    assert read_dataset(ID).agents[0] == "random(k=2)"
    monkeypatch.setattr("sys.argv", ["dllm-gym", "pairs", ID, "--output", str(output)])
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    assert len(output.read_text().splitlines()) == len(preference_pairs(read_dataset(ID)))
