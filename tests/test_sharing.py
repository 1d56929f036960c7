"""Push and pull, against a hub on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from hub_server import TOKEN, running_hub
from test_docs import SNIPPET, read_page

import dllm_gym
from dllm_agents import load_policy, save_policy
from dllm_agents.checkpoint import SHIPPED
from dllm_agents.networks import UnmaskTransformer, UnmaskTransformerConfig
from dllm_gym import sharing
from dllm_gym.backends import ASSETS
from dllm_gym.backends.transformers_backend import TransformersBackend

# huggingface_hub's own upload of large files says so
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

POLICY = SHIPPED / "arithmetic-full"
DLLM = ASSETS / "tiny-arithmetic"
POLICY_FILES = {"README.md", "policy.json", "policy.safetensors"}


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # or large files go elsewhere
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with running_hub() as hub:
        yield hub


def files_of(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def small(tmp_path):
    """A policy of a few kilobytes, which travels as a regular file; the shipped ones are large files."""
    network = UnmaskTransformer(UnmaskTransformerConfig(width=4, heads=1))
    return save_policy(tmp_path / "run" / "best", network, {"command": "dllm-gym train grpo", "seed": 7})


def test_a_policy_pulled_elsewhere_gives_the_same_logits(hub, tmp_path):
    address = dllm_gym.push(POLICY, "me/mine", license="mit", endpoint=hub.url)
    sha = dllm_gym.pull("me/mine", tmp_path / "pulled", endpoint=hub.url)
    assert address == f"{hub.url}/me/mine/commit/{sha}"
    assert set(files_of(tmp_path / "pulled")) == POLICY_FILES
    assert [path.name for path in tmp_path.iterdir()] == ["pulled"]
    ours, theirs = load_policy(POLICY), load_policy(tmp_path / "pulled")
    rng = np.random.default_rng(0)
    observation = {
        "confidence": torch.from_numpy(rng.random((3, 12), dtype=np.float32)),
        "mask": torch.ones(3, 12),
        "action_mask": torch.ones(3, 12),
        "progress": torch.zeros(3, 1),
    }
    with torch.no_grad():
        assert torch.equal(ours.network(observation), theirs.network(observation))
    assert len(hub.large) == 1  # the weights; everything else is text
    assert hub.private == set()


def test_the_card_says_what_is_known(hub):
    dllm_gym.push(POLICY, "me/mine", license="cc-by-4.0", endpoint=hub.url)
    card = hub.repositories["me/mine"][-1][1]["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1]) == {
        "license": "cc-by-4.0",
        "library_name": "dllm-gym",
        "tags": ["masked-diffusion", "reinforcement-learning", "unmasking-policy", "dllm-gym"],
    }
    described = json.loads((POLICY / "policy.json").read_text())["metadata"]
    assert f"`{described['command']}`" in card
    assert f"**Seed** {described['seed']}" in card
    test, validation = described["test"]["deterministic"], described["validation"]["sample"]
    low, high = test["accuracy_ci95"]
    said = f"{test['accuracy']:.3f} ({low:.3f} to {high:.3f}) | {test['nfe_mean']:.1f}"
    assert f"| test | deterministic | 1000 | {said} |" in card
    assert (
        f"| validation | sample | 256 | {validation['accuracy']:.3f} | {validation['nfe_mean']:.1f} |" in card
    )
    assert "dllm-gym pull me/mine mine" in card
    assert json.loads(card.split("```json\n")[1].split("```")[0]) == described["config"]


def test_a_run_pushes_its_best_policy_and_a_card_of_its_own_stays(hub, small, tmp_path):
    (small.parent / "training_state.pt").write_bytes(b"secret")
    (small / "notes.txt").write_text("secret")
    card = "---\nlicense: mit\nlibrary_name: dllm-gym\ntags: [mine]\n---\nMy words.\n"
    (small / "README.md").write_text(card)
    dllm_gym.push(small.parent, "me/mine", endpoint=hub.url)
    uploaded = hub.repositories["me/mine"][-1][1]
    assert set(uploaded) == {".gitattributes", *POLICY_FILES}
    assert uploaded["README.md"].decode() == card
    with pytest.raises(ValueError, match=r"README\.md is the card, so the licence goes in there, not 'mit'"):
        dllm_gym.push(small, "me/mine", license="mit", endpoint=hub.url)


def test_a_dllm_pulled_elsewhere_predicts_the_same(hub, tmp_path):
    dllm_gym.push(DLLM, "me/tiny", private=True, endpoint=hub.url)
    dllm_gym.pull("me/tiny", tmp_path / "tiny", token=TOKEN, endpoint=hub.url)
    assert files_of(tmp_path / "tiny") == files_of(DLLM)
    ours, theirs = TransformersBackend(DLLM), TransformersBackend(tmp_path / "tiny")
    ids = torch.tensor([ours.encode_prompt("Sam has 20 coins, finds 4, loses 9. Total?")])
    tokens = torch.cat([ids, torch.full((1, 48), ours.mask_token_id)], dim=1)
    both = [one.predict(tokens, torch.ones_like(tokens), slice(-48, None)) for one in (ours, theirs)]
    assert torch.equal(both[0].tokens, both[1].tokens)
    assert torch.equal(both[0].confidence, both[1].confidence)


@pytest.mark.parametrize("name", ["tiny-arithmetic-dream", "tiny-sudoku"])
def test_every_layout_of_pretrain_can_be_shared(name):
    sharing._check_dllm(ASSETS / name)


def test_a_revision_can_be_pinned(hub, small, tmp_path):
    dllm_gym.push(small, "me/mine", license="mit", endpoint=hub.url)
    first = dllm_gym.pull("me/mine", tmp_path / "first", endpoint=hub.url)
    save_policy(small, UnmaskTransformer(UnmaskTransformerConfig(width=8, heads=1)))
    dllm_gym.push(small, "me/mine", license="mit", endpoint=hub.url)
    assert dllm_gym.pull("me/mine", tmp_path / "newest", endpoint=hub.url) != first
    assert dllm_gym.pull("me/mine", tmp_path / "again", revision=first, endpoint=hub.url) == first
    assert load_policy(tmp_path / "newest").network.config.width == 8
    assert files_of(tmp_path / "first") == files_of(tmp_path / "again")
    with pytest.raises(ValueError, match="me/mine has no revision 'v9'"):
        dllm_gym.pull("me/mine", tmp_path / "none", revision="v9", endpoint=hub.url)


def test_a_repository_with_more_in_it(hub, tmp_path):
    hostile = {
        "../../outside.json": b"{}",
        "sub/policy.json": b"{}",
        "pytorch_model.bin": b"\x80\x04pickle",
        "policy.pkl": b"\x80\x04pickle",
        "modeling.py": b"raise SystemExit",
        "README.md": b"read me",
    }
    hub.add("they/mixed", files_of(POLICY) | hostile)
    (tmp_path / "a" / "pulled").mkdir(parents=True)  # empty: welcome
    dllm_gym.pull("they/mixed", tmp_path / "a" / "pulled", endpoint=hub.url)
    assert hub.fetched() == POLICY_FILES
    assert set(files_of(tmp_path / "a" / "pulled")) == POLICY_FILES
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def changed(directory, name, **changes):
    """The files of a directory with other values in one of its JSON files."""
    files = files_of(directory)
    return files | {name: json.dumps(json.loads(files[name]) | changes).encode()}


def other_network(**sizes):
    described = json.loads((POLICY / "policy.json").read_text())["network"]
    return changed(POLICY, "policy.json", network=described | sizes)


HOSTILE = {
    "a pickle instead": ({"policy.pkl": b"\x80\x04"}, "they/bad holds nothing to pull .*it has 'policy.pkl'"),
    "no files": ({}, "it has no files"),
    "another model": ({"config.json": b"{}", "model.safetensors": b""}, "holds nothing to pull"),
    "a pickle by the name": (
        files_of(POLICY) | {"policy.safetensors": b"\x80\x04pickle"},
        "does not load: .* is not a safetensors file",
    ),
    "a wide policy": (other_network(width=2**40), "does not load: .*width 1099511627776 does not fit"),
    "a deep policy": (other_network(layers=10**9), "does not load: .*layers 1000000000 does not fit"),
    "many inputs": (
        other_network(features=["top_k"], top_k=10**12),
        "does not load: .*inputs 1000000000000 does not fit",
    ),
    "nested JSON": (files_of(POLICY) | {"policy.json": b"[" * 10**6}, "does not load"),
    "a wide dLLM": (changed(DLLM, "config.json", d_model=2**20), "asks for [0-9]+ weights, there are 328000"),
    "a deep dLLM": (changed(DLLM, "config.json", n_layers=10**9), "asks for inf weights, there are 328000"),
    "a family of code": (changed(DLLM, "config.json", model_type="x", architectures=["X"]), "does not load"),
    "a bad record": (changed(DLLM, "pretraining.json", config={"task": 1, "boom": 2}), "does not load"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_does_not_load_does_not_arrive(hub, tmp_path, name):
    files, message = HOSTILE[name]
    hub.add("they/bad", files)
    with pytest.raises(ValueError, match=message):
        dllm_gym.pull("they/bad", tmp_path / "pulled", endpoint=hub.url)
    assert list(tmp_path.iterdir()) == []


def test_too_large_is_not_even_fetched(hub, tmp_path):
    hub.add("they/large", files_of(POLICY))
    for name, size in (
        ("policy.json", sharing.MAX_TEXT_BYTES + 1),
        ("policy.safetensors", sharing.MAX_BYTES + 1),
    ):
        hub.claimed_sizes = {name: size}
        with pytest.raises(ValueError, match=f"{name} of they/large has {size} bytes; at most {size - 1}"):
            dllm_gym.pull("they/large", tmp_path / "pulled", endpoint=hub.url)
    assert hub.fetched() == set()


def test_a_strangers_record_builds_no_other_task(tmp_path, monkeypatch):
    for name, content in changed(DLLM, "pretraining.json", config={"task": "gsm8k"}).items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr("dllm_gym.trained.load_task", lambda *_, **__: pytest.fail("a task was built"))
    sharing._check_dllm(tmp_path)


def test_errors_at_the_door(hub, small, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"a dLLM has config.json.*; a policy has policy.json"):
        dllm_gym.push(tmp_path, "me/mine", license="mit", endpoint=hub.url)
    for wrong in ("mine", "a/b/c", "me/"):
        with pytest.raises(ValueError, match="a repository is named owner/name, got"):
            dllm_gym.push(small, wrong, license="mit", endpoint=hub.url)
        with pytest.raises(ValueError, match="a repository is named owner/name, got"):
            dllm_gym.pull(wrong, tmp_path / "pulled", endpoint=hub.url)
    for wrong in (None, "MIT licence"):
        with pytest.raises(ValueError, match="say under which licence"):
            dllm_gym.push(small, "me/mine", license=wrong, endpoint=hub.url)
    with pytest.raises(FileExistsError, match="is not empty"):
        dllm_gym.pull("me/mine", small, endpoint=hub.url)
    monkeypatch.setattr(sharing, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match=r"policy.safetensors of .*best has \d+ bytes; at most 100"):
        dllm_gym.push(small, "me/mine", license="mit", endpoint=hub.url)
    monkeypatch.undo()
    assert hub.requests == []


def test_errors_of_the_hub(hub, small, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="the hub shows no model 'they/none'"):
        dllm_gym.pull("they/none", tmp_path / "pulled", endpoint=hub.url)
    hub.add("me/dllm", files_of(DLLM))
    with pytest.raises(ValueError, match=r"me/dllm holds something else than a policy: 'README\.md'"):
        dllm_gym.push(small, "me/dllm", license="mit", endpoint=hub.url)
    assert len(hub.repositories["me/dllm"]) == 1
    with pytest.raises(OSError, match="401"):
        dllm_gym.push(small, "me/mine", license="mit", token="hf_wrong", endpoint=hub.url)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ValueError, match="pushing needs a token"):
        dllm_gym.push(small, "me/mine", license="mit", endpoint=hub.url)
    with pytest.raises(ConnectionError, match="cannot be reached"):
        dllm_gym.pull("they/none", tmp_path / "pulled", endpoint="http://127.0.0.1:9")
    assert not (tmp_path / "pulled").exists()


def test_what_does_not_load_is_not_pushed(hub, small):
    (small / "policy.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="not a safetensors file"):
        dllm_gym.push(small, "me/mine", license="mit", endpoint=hub.url)
    assert hub.requests == []


def test_the_page_on_sharing_runs_from_top_to_bottom(hub, tmp_path, monkeypatch):
    constants = huggingface_hub.constants
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(POLICY, "runs/mine")
    names: dict[str, object] = {}
    for _, snippet in SNIPPET.findall(read_page("docs/sharing.md")):
        exec(compile(snippet, "docs/sharing.md", "exec"), names)
    assert set(files_of(tmp_path / "policies" / "name")) == POLICY_FILES
    assert hub.private == {"owner/name"}


@pytest.mark.slow
def test_the_commands(hub, small, tmp_path):
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}

    def run(*arguments):
        command = [sys.executable, "-m", "dllm_gym", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    pushed = run("push", small.parent, "me/mine", "--license", "mit")
    assert pushed.returncode == 0, pushed.stderr
    pulled = run("pull", "me/mine", tmp_path / "pulled")
    assert pulled.returncode == 0, pulled.stderr
    assert pushed.stdout.strip().endswith(pulled.stdout.strip())
    assert load_policy(tmp_path / "pulled").network.config.width == 4
    wrong = run("pull", "me/none", tmp_path / "none")
    assert wrong.returncode == 1
    assert "error: the hub shows no model 'me/none'" in " ".join(wrong.stderr.split())
