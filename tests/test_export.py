"""An exported policy computes what the policy does, at any size and without this package."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from dllm_agents import export_policy
from dllm_agents.agent import LearnedPolicy
from dllm_agents.distributions import bernoulli_mode
from dllm_agents.networks import UnmaskTransformer, UnmaskTransformerConfig

FEATURES = (
    *("confidence", "log_confidence_gap", "mask", "top_k", "hidden", "attention", "progress"),
    "target_steps",
)


def make_policy(features, pair_width=None, **options):
    torch.manual_seed(0)
    hidden_width = 5 if "hidden" in features else None
    network = UnmaskTransformer(
        UnmaskTransformerConfig(
            features, width=8, hidden_width=hidden_width, top_k=3, value_head=True, pair_width=pair_width
        )
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return LearnedPolicy(network, decoding="deterministic", **options)


def observe(batch, length, seed):
    rng = np.random.default_rng(seed)
    return {
        "confidence": rng.random((batch, length), dtype=np.float32),
        "mask": rng.integers(0, 2, (batch, length), dtype=np.int8),
        "action_mask": rng.integers(0, 2, (batch, length), dtype=np.int8),
        "progress": rng.random((batch, 1), dtype=np.float32),
        "target_steps": 1 + 9 * rng.random((batch, 1), dtype=np.float32),
        "top_k": rng.random((batch, length, 3), dtype=np.float32),
        "hidden": rng.standard_normal((batch, length, 5), dtype=np.float32),
        "attention": rng.random((batch, length, length), dtype=np.float32) / length,
        "predicted": rng.integers(0, 3, (batch, length)),
    }


@pytest.mark.parametrize(
    ("features", "options"),
    [
        (("confidence", "mask", "progress", "target_steps"), {}),
        (("confidence", "attention", "same_token", "position", "token"), {"pair_width": 4, "caution": -1.0}),
        (FEATURES, {"beta": 2.0, "temperature": 0.5, "caution": 1.5, "knobs": {"target_steps": 4.0}}),
    ],
)
def test_it_decides_as_the_policy_does_at_any_size(tmp_path, features, options):
    policy = make_policy(features, **options)
    program = torch.export.load(export_policy(policy, tmp_path / "policy.pt2")).module()
    for seed, (batch, length) in enumerate([(1, 1), (1, 48), (7, 5), (2, 80)]):
        observation = observe(batch, length, seed)
        inputs = {key: torch.from_numpy(observation[key]) for key in policy.requires}
        logits = program(inputs)
        assert (logits.shape, logits.dtype) == ((batch, length), torch.float32)
        candidates = inputs["action_mask"] == 1
        assert (logits[~candidates] == -1e8).all()
        clear = (logits.abs() > 1e-4) | ~candidates  # rounding decides the others
        decided = bernoulli_mode(logits, inputs["action_mask"])
        assert torch.equal(decided[clear], torch.from_numpy(policy.act(observation))[clear])


@pytest.mark.parametrize(
    ("features", "options"),
    [
        (("confidence", "mask", "progress", "target_steps"), {}),
        (("confidence", "attention", "same_token", "position", "token"), {"pair_width": 4, "caution": -1.0}),
        (FEATURES, {"beta": 2.0, "temperature": 0.5, "caution": 1.5, "knobs": {"target_steps": 4.0}}),
    ],
)
def test_onnx_computes_what_the_policy_does_at_any_size(tmp_path, features, options):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    policy = make_policy(features, **options)
    path = export_policy(policy, tmp_path / "policy.onnx")
    assert b"networks.py" not in path.read_bytes()  # torch notes where on this machine every line was
    session = onnxruntime.InferenceSession(path)
    assert {given.name for given in session.get_inputs()} == set(policy.requires)
    assert [path.name for path in tmp_path.iterdir()] == ["policy.onnx"]
    for seed, (batch, length) in enumerate([(1, 1), (1, 48), (7, 5), (2, 80)]):
        observation = observe(batch, length, seed)
        (logits,) = session.run(["logits"], {key: observation[key] for key in policy.requires})
        assert (logits.shape, logits.dtype) == ((batch, length), np.float32)
        candidates = observation["action_mask"] == 1
        assert (logits[~candidates] == -1e8).all()
        probability = reveal_probability(policy, observation)
        difference = 1 / (1 + np.exp(-logits[candidates])) - probability[candidates]
        assert np.abs(difference).max(initial=0) < 1e-4


def reveal_probability(policy, observation):
    """min(1, beta sigmoid(b / temperature - caution)), from the network itself."""
    inputs = {key: torch.from_numpy(value) for key, value in observation.items()}
    for key, value in policy.knobs.items():
        inputs[key] = torch.full((len(inputs["mask"]), 1), value)
    with torch.no_grad():
        logits = policy.network(inputs, -policy.caution * policy.temperature)
    return (policy.beta * torch.sigmoid(logits / policy.temperature)).clamp(max=1).numpy()


def test_onnx_without_its_packages_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'dllm-gym\[onnx\]'"):
        export_policy(make_policy(("confidence",)), tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_it_runs_without_this_package(tmp_path):
    policy = make_policy(("confidence", "mask", "progress"))
    path = export_policy(policy, tmp_path / "policy.pt2")
    observation = {key: torch.from_numpy(observe(3, 6, 0)[key]) for key in policy.requires}
    torch.save(observation, tmp_path / "observation.pt")
    code = (
        "import sys, torch; sys.modules['dllm_agents'] = sys.modules['dllm_gym'] = None;"
        "program = torch.export.load(sys.argv[1]).module();"
        "print(program(torch.load(sys.argv[2], weights_only=True)).tolist())"
    )
    arguments = [sys.executable, "-c", code, path, tmp_path / "observation.pt"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = torch.export.load(path).module()(observation)
    assert np.array(json.loads(done.stdout)) == pytest.approx(expected.numpy(), rel=1e-5)


def test_what_cannot_be_exported_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"an exported policy is a .pt2 or .onnx file, got .*policy.pt"):
        export_policy(make_policy(("confidence",)), tmp_path / "policy.pt")
    policy = LearnedPolicy(make_policy(("confidence",)).network, decoding="dpls")
    with pytest.raises(ValueError, match="decoding 'dpls' cannot be exported"):
        export_policy(policy, tmp_path / "policy.pt2")
