"""Policies on disk, and the agent that comes out of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dllm_agents.agent import LearnedPolicy
from dllm_agents.checkpoint import load_policy, read_description, save_policy
from dllm_agents.networks import UnmaskTransformer, UnmaskTransformerConfig


def make_network(seed: int = 0, **fields: object) -> UnmaskTransformer:
    torch.manual_seed(seed)
    return UnmaskTransformer(UnmaskTransformerConfig(**{"width": 16, **fields}))  # type: ignore[arg-type]


def make_observation(batch: int = 4, length: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask = (rng.random((batch, length)) < 0.7).astype(np.int8)
    return {
        "confidence": np.where(mask == 1, rng.random((batch, length)), 1).astype(np.float32),
        "mask": mask,
        "action_mask": mask.copy(),
        "progress": rng.random((batch, 1)).astype(np.float32),
    }


def rows(observation: dict[str, np.ndarray], which: object) -> dict[str, np.ndarray]:
    return {key: value[which] for key, value in observation.items()}


@pytest.mark.parametrize("decoding", ["sample", "deterministic"])
@pytest.mark.parametrize(
    "fields", [{}, {"value_head": True, "features": ("mask", "confidence"), "layers": 2}]
)
def test_round_trip_gives_equal_actions(tmp_path, decoding, fields):
    network = make_network(**fields)
    metadata = {"command": "train --seed 1", "seed": 1, "metrics": {"reward": 0.5}}
    directory = save_policy(tmp_path / "run" / "best", network, metadata)
    assert sorted(path.name for path in directory.iterdir()) == ["policy.json", "policy.safetensors"]
    assert read_description(directory)["metadata"] == metadata
    loaded = load_policy(directory, decoding=decoding)
    assert loaded.network.config == network.config
    assert not loaded.network.training
    fresh = LearnedPolicy(network, decoding=decoding)
    for seed in range(5):
        observation = make_observation(seed=seed)
        assert np.array_equal(loaded.act(observation), fresh.act(observation))


def test_either_file_names_the_policy_and_saving_replaces_it(tmp_path):
    save_policy(tmp_path, make_network(0))
    save_policy(tmp_path, make_network(1, width=32))
    assert len(list(tmp_path.iterdir())) == 2
    for path in (tmp_path, tmp_path / "policy.json", str(tmp_path / "policy.safetensors")):
        assert load_policy(path).network.config.width == 32


def test_metadata_that_json_cannot_hold_leaves_nothing_behind(tmp_path):
    with pytest.raises(TypeError):
        save_policy(tmp_path, make_network(), {"reward": torch.ones(1)})
    assert list(tmp_path.iterdir()) == []


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"policy\.json is missing"):
        load_policy(tmp_path / "nowhere")
    save_policy(tmp_path, make_network())
    (tmp_path / "policy.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"policy\.safetensors is missing"):
        load_policy(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "'format' must be 'dllm_agents.policy'"),
        ({"format_version": 2}, "format version 2; this version of dllm_agents reads 1"),
        ({"network": None}, "'network' must hold"),
        (
            {"network": {"width": 16, "dropout": 0.1}},
            r"unknown configuration fields \['dropout'\]; known: features",
        ),
        ({"network": {"features": ["mask", "smell"]}}, r"policy.json: unknown features \['smell'\]"),
        ({"network": {"width": "wide", "mlp_width": 64}}, "width must be a positive integer, got 'wide'"),
        ({"network": {"width": 8}}, "shape .*, expected"),
        ({"network": {"width": 512}}, "width 512 does not fit the 25 tensors"),
        ({"network": {"width": 16, "value_head": True}}, r"missing \['value_head"),
        ({"network": {"width": 16, "features": ["mask", "confidence"]}}, r"unexpected \['time_embedding"),
    ],
)
def test_descriptions_that_do_not_fit(tmp_path, change, message):
    save_policy(tmp_path, make_network())
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        load_policy(tmp_path)


def test_damaged_files(tmp_path):
    save_policy(tmp_path, make_network())
    weights = tmp_path / "policy.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "output_proj.bias": torch.tensor([torch.nan])}, weights)
    with pytest.raises(ValueError, match=r"'output_proj.bias' holds NaN"):
        load_policy(tmp_path)
    weights.write_bytes(b"not tensors")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_policy(tmp_path)
    (tmp_path / "policy.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_policy(tmp_path)


def test_describes_itself():
    agent = LearnedPolicy(
        make_network(features=("log_confidence_gap", "mask")), decoding="deterministic", name="ours"
    )
    assert agent.name == "ours"
    assert agent.label == "ours (deterministic)"
    assert agent.parameters == {"decoding": "deterministic"}
    assert agent.requires == ("confidence", "mask", "action_mask")
    with pytest.raises(ValueError, match="unknown decoding 'greedy'; known: sample, deterministic"):
        LearnedPolicy(make_network(), decoding="greedy")


@pytest.mark.parametrize("decoding", ["sample", "deterministic"])
def test_every_step_reveals_candidates_only(decoding):
    agent = LearnedPolicy(make_network(initial_bias=-9.0), decoding=decoding)  # practically never draws a bit
    observation = make_observation(6)
    observation["action_mask"][0] = 0
    actions = agent.act(observation)
    assert actions.dtype == np.int8
    assert actions.sum(1).tolist() == [0, 1, 1, 1, 1, 1]
    assert (actions <= observation["action_mask"]).all()


def test_a_rows_draws_do_not_depend_on_its_neighbours():
    observation = make_observation(4, 40)
    together = LearnedPolicy(make_network(initial_bias=0.0))
    together.seed(range(4), [7, 8, 9, 10])
    first, second = together.act(observation), together.act(observation)
    assert not np.array_equal(first, second)
    for row, seed in enumerate([7, 8, 9, 10]):
        alone = LearnedPolicy(make_network(initial_bias=0.0), seed=123)
        alone.seed([0], [seed])
        only = rows(observation, slice(row, row + 1))
        assert np.array_equal(alone.act(only)[0], first[row])
        assert np.array_equal(alone.act(only)[0], second[row])


def test_a_row_without_candidates_draws_nothing():
    observation = make_observation(2, 40)
    done = {**observation, "action_mask": np.zeros_like(observation["action_mask"])}
    pausing, steady = LearnedPolicy(make_network()), LearnedPolicy(make_network())
    assert pausing.act(done).sum() == 0
    assert np.array_equal(pausing.act(observation), steady.act(observation))


def test_seeds_of_unseeded_rows():
    observation = make_observation(2, 40)
    twins = rows(observation, [0, 0])
    network = make_network(initial_bias=0.0)
    actions = LearnedPolicy(network, seed=1).act(twins)
    assert not np.array_equal(actions[0], actions[1])
    assert np.array_equal(actions, LearnedPolicy(network, seed=1).act(twins))
    assert not np.array_equal(actions, LearnedPolicy(network, seed=2).act(twins))


def test_single_observations():
    observation = make_observation(3)
    batch = LearnedPolicy(make_network()).act(observation)
    single = LearnedPolicy(make_network()).act(rows(observation, 0))
    assert single.shape == (8,)
    assert np.array_equal(single, batch[0])


def test_uses_the_networks_current_weights_and_leaves_it_trainable():
    network, observation = make_network(), make_observation()
    agent = LearnedPolicy(network, decoding="deterministic")
    assert (agent.act(observation).sum(1) == 1).all()
    with torch.no_grad():
        network.output_proj.bias.fill_(9.0)
    assert np.array_equal(agent.act(observation), observation["action_mask"])
    network({key: torch.as_tensor(value) for key, value in observation.items()}).sum().backward()


def test_read_only_arrays_and_errors():
    network, observation = make_network(), make_observation()
    for value in observation.values():
        value.flags.writeable = False
    agent = LearnedPolicy(network)
    agent.act({**observation, "extra": np.zeros(1)})
    with pytest.raises(ValueError, match=r"lacks \['progress'\]; the policy reads confidence"):
        agent.act({key: value for key, value in observation.items() if key != "progress"})
    with torch.no_grad():
        network.output_proj.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN logits"):
        agent.act(observation)
