"""Episodes as data: recorded into Minari datasets, read back, and learned from."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import dllm_gym

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
    for number, rule in enumerate(RULES):
        result = dllm_gym.evaluate(rule, 8, split="train", **TOY)
        own = [one for one in range(len(episodes)) if episodes.agents[one] == result.label]
        assert own == list(range(8 * number, 8 * number + 8)) or len(own) == 8
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
