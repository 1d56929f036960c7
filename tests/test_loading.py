"""What a user can say about loading, where token ids come from, and how prompts are written."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
import torch
from family_checkpoints import CASES, LENGTH
from llada_reference import write_checkpoint
from test_families import canvases, predict

from dllm_gym.backends import load_backend
from dllm_gym.backends.transformers_backend import TransformersBackend


@pytest.fixture
def written(tmp_path):
    """Writes the checkpoint of a case, changes its JSON files (``...`` deletes a field), says where it is."""

    def write(case, **files):
        directory = CASES[case].write(tmp_path / case)
        for name, changes in files.items():
            path = directory / f"{name}.json"
            before = json.loads(path.read_text()) if path.is_file() else {}
            after = {key: value for key, value in (before | changes).items() if value is not ...}
            path.write_text(json.dumps(after))
        return directory

    return write


def id_of(directory, token):
    return json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"][token]


# Token ids --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CASES if name != "iLLaDA-8B-Base"])
def test_a_mask_id_that_the_config_lacks_is_found_elsewhere(name, written):
    directory = written(name)
    assert "mask_token_id" not in json.loads((directory / "config.json").read_text())
    backend = TransformersBackend(directory)
    spelled = backend.tokenizer.convert_ids_to_tokens(backend.mask_token_id)
    assert re.fullmatch(r"<\|(mask|MASK)\|>|\|<MASK>\||\[MASK\]|<\[MASK_TOKEN\]>", spelled)


def test_the_published_mask_id_is_the_last_resort(written):
    directory = written("iLLaDA-8B-Base", config={"mask_token_id": ...})
    assert TransformersBackend(directory).mask_token_id == 5


def test_a_generation_config_knows_mask_and_end_tokens(written):
    directory = written(
        "SDAR-1.7B-Chat", generation_config={"mask_token_id": ..., "eos_token_id": [1, 2, 30]}
    )
    backend = TransformersBackend(directory)
    assert backend.end_token_ids == {1, 2, 30}
    assert backend.eos_token_id == 1
    text = backend.decode([20, 30, 21])
    assert text == backend.decode([20])


def test_an_absent_mask_says_where_it_was_looked_for(written):
    directory = written("Qwen3-0.6B-diffusion-mdlm-v0.1")
    path = directory / "tokenizer.json"
    path.write_text(path.read_text().replace("<|mask|>", "<|other|>"))
    config = directory / "tokenizer_config.json"
    config.write_text(config.read_text().replace("<|mask|>", "<|other|>"))
    places = (
        r"mask_token_id of config\.json, mask_token_id of generation_config\.json, "
        r"the tokenizer's mask_token, the tokenizer's <\|mask\|>; give mask_token_id="
    )
    with pytest.raises(ValueError, match=f"does not say which token is the mask: looked for {places}"):
        TransformersBackend(directory)
    assert TransformersBackend(directory, mask_token_id=40).mask_token_id == 40


def test_a_published_mask_id_of_another_vocabulary_does_not_count(written):
    directory = written("SDAR-1.7B-Chat")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = directory / name
        path.write_text(path.read_text().replace("<|MASK|>", "<|other|>"))
    with pytest.raises(ValueError, match="published id 151669 is outside its 60 tokens; give mask_token_id="):
        TransformersBackend(directory)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mask_token_id": 7}, r"contradicts itself .* config\.json is 7, the tokenizer's <\|MASK\|> is 59"),
        ({"eos_token_id": 59}, r"mask token 59, which is also one of its end tokens \[1, 2, 59\]"),
        ({"pad_token_id": 59}, r"mask token 59, which is also .* its padding 59"),
        ({"eos_token_id": 60}, r"end token 60, outside its 60 tokens"),
        ({"pad_token_id": -1}, r"the pad token -1, outside its 60 tokens"),
    ],
)
def test_wrong_ids_are_refused(written, config, message):
    directory = written("SDAR-1.7B-Chat", config=config)
    assert id_of(directory, "<|MASK|>") == 59
    if config.get("pad_token_id") == -1:
        config["pad_token_id"] = 60
    with pytest.raises(ValueError, match=message):
        TransformersBackend(directory)


def test_a_given_mask_id_must_exist(written):
    with pytest.raises(ValueError, match="mask token 60, outside its 60 tokens"):
        TransformersBackend(written("SDAR-1.7B-Chat"), mask_token_id=60)
    backend = TransformersBackend(written("SDAR-8B-Chat-b16", config={"mask_token_id": 7}), mask_token_id=59)
    assert backend.mask_token_id == 59  # the user's word settles a contradiction


def test_no_end_token_at_all_is_refused(written):
    directory = written(
        "SDAR-1.7B-Chat",
        config={"eos_token_id": ...},
        tokenizer_config={"eos_token": ..., "pad_token": ...},
        special_tokens_map={"eos_token": ..., "pad_token": ...},
    )
    with pytest.raises(
        ValueError, match=r"no end token: looked for eos_token_id in config\.json and .* eos_"
    ):
        TransformersBackend(directory)


# Prompts and completions ------------------------------------------------------------------------------------


def test_modernbert_chat_marks_turns_by_text(written):
    backend = TransformersBackend(
        written("ModernBERT-base-chat-v0.1", tokenizer_config={"chat_template": ...})
    )
    messages = [
        {"role": "system", "content": " S "},
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "R\n"},
    ]
    expected = (
        "[SYS]\nS\n[/SYS]\n\n[Question]\nQ\n[/Question]\n\n[Answer]\nA\n[/Answer]\n\n"
        "[Question]\nR\n[/Question]\n\n[Answer]\n"
    )
    assert backend.chat_text(messages) == expected
    backend.tokenizer.decode = lambda ids: " 42 [/Answer] and more"
    assert backend.decode([20, 21]) == " 42 "


def test_a_models_own_template_goes_first_and_gets_its_options(written):
    template = "{{ messages[0]['content'] }}{{ '!' if enable_thinking is false else '?' }}"
    backend = TransformersBackend(
        written("Qwen3-0.6B-diffusion-mdlm-v0.1", tokenizer_config={"chat_template": template})
    )
    assert backend.chat_text([{"role": "user", "content": "20"}]) == "20!"


def test_without_template_the_text_is_the_prompt(tmp_path):
    from dream_reference import write_dream_checkpoint

    begins = {}
    for name, write in (("llada", write_checkpoint), ("dream", write_dream_checkpoint)):
        directory = write(tmp_path / name)
        path = directory / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": None}))
        backend = TransformersBackend(directory)
        words = backend.tokenizer.convert_ids_to_tokens(backend.encode_prompt("Sam has 20"))
        assert words[-4:] == ["Sam", "has", "2", "0"]
        begins[name] = words[:-4]
        assert (
            backend.encode_prompt([{"role": "user", "content": "Sam has 20"}])[-4:]
            == (backend.encode_prompt("Sam has 20")[-4:])
        )
        with pytest.raises(ValueError, match="has no chat template; give one text"):
            backend.encode_prompt([{"role": "user", "content": "Sam"}] * 2)
    assert begins == {"llada": [], "dream": ["<|beginoftext|>"]}


# Length -----------------------------------------------------------------------------------------------------


def test_what_is_too_long_is_refused_and_padding_does_not_count(written):
    backend = TransformersBackend(written("bert-base"))
    tokens = torch.full((2, 70), 5)
    real = torch.ones_like(tokens)
    real[:, :6] = 0
    backend.predict(tokens, real, slice(-LENGTH, None))
    real[1, 5] = 1
    with pytest.raises(ValueError, match="prompt and completion take 65 tokens; this dLLM has 64"):
        backend.predict(tokens, real, slice(-LENGTH, None))


def test_roberta_counts_positions_from_the_first_token(tmp_path):
    """Its positions follow from where its padding token stands; an attention mask does not move them."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    directory = CASES["bert-base"].write(tmp_path / "roberta")
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    config = RobertaConfig(**sizes, intermediate_size=32, max_position_embeddings=64, pad_token_id=2)
    RobertaForMaskedLM(config).save_pretrained(directory)
    backend = TransformersBackend(directory)
    assert backend.max_length == 61
    rows = canvases(backend, 3)
    rows[0] = [5] * (61 - len(rows[0])) + rows[0]
    alone = [predict(backend, [row], statistics=("hidden",)).statistics["hidden"][0] for row in rows]
    together = predict(backend, rows, extra=3, statistics=("hidden",)).statistics["hidden"]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=0)


# The hub ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_hub_id_is_read_from_the_hubs_cache(tmp_path):
    """As ``huggingface_hub`` leaves it there; the block length is in the name, which no directory has."""
    repository, revision = tmp_path / "models--dllm-hub--tiny-bd3lm", "0123456789abcdef"
    CASES["Qwen3-0.6B-diffusion-bd3lm-v0.1"].write(repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    code = (
        "from dllm_gym import load_backend; b = load_backend('dllm-hub/tiny-bd3lm');"
        "print(b.family.name, b.attention_block, b.tokenizer.decode(b.encode_prompt('Sam')[1:2]))"
    )
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["A2D-Qwen3", "32", "Sam"], done.stderr


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch):
    import huggingface_hub.constants

    class Refusing(BaseHTTPRequestHandler):
        asked: ClassVar[list[str]] = []

        def do_HEAD(self):
            self.asked.append(self.path)
            self.send_error(503)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    url = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
    with pytest.raises(
        FileNotFoundError, match=r"no directory runs/mine here, nor does a hub give .*503 Service"
    ):
        load_backend("runs/mine")
    assert Refusing.asked == ["/runs/mine/resolve/main/config.json"]
    server.shutdown()
    server.server_close()
    # nobody there at all
    with pytest.raises(FileNotFoundError, match=r"nor does a hub give .* the hub cannot be reached"):
        load_backend("runs/mine")


# Keywords ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llada(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("llada"))


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_a_device_map_changes_nothing_but_the_place(llada, device_map):
    pytest.importorskip("accelerate")
    plain, mapped = load_backend(llada), TransformersBackend(llada, device_map=device_map)
    rows = canvases(plain, 3)
    assert mapped.device == torch.device("cpu")
    torch.testing.assert_close(predict(mapped, rows).confidence, predict(plain, rows).confidence)
    with pytest.raises(ValueError, match="give device or device_map, not both"):
        TransformersBackend(llada, device="cpu", device_map=device_map)


def test_a_device_map_without_accelerate_names_the_extra(llada, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'dllm-gym\[large\]'"):
        TransformersBackend(llada, device_map="auto")


@pytest.mark.slow
def test_a_quantized_model_is_close(llada):
    """Eight bits by torchao, a quantizer that works on a CPU; no dependency, for it logs at every import."""
    pytest.importorskip("accelerate")
    quantization = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    config = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    plain = load_backend(llada)
    rows = canvases(plain, 3)
    exact = predict(plain, rows)
    for form in (config, config.to_dict()):
        backend = TransformersBackend(llada, quantization=form)
        weight = backend.model.model.layers[0].self_attn.q_proj.weight
        assert type(weight).__name__ != "Parameter"
        found = predict(backend, rows)
        assert not torch.equal(found.confidence, exact.confidence)
        torch.testing.assert_close(found.confidence, exact.confidence, atol=0.1, rtol=0)


@pytest.mark.parametrize("name", ["SDAR-1.7B-Chat", "bert-base"])
def test_a_compiled_model_gives_the_same(name, written):
    """With the backend that traces only: the default's code generation takes a minute."""
    directory = written(name)
    plain, calls = TransformersBackend(directory), []

    def trace(graph, inputs):
        calls.append(graph)
        return graph

    compiled = TransformersBackend(directory, compile={"backend": trace})
    rows = canvases(plain, 2)
    torch.testing.assert_close(predict(compiled, rows).confidence, predict(plain, rows).confidence)
    assert calls
