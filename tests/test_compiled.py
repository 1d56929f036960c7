"""The fast forward of small dLLMs: as transformers computes, whatever the batch; elsewhere absent."""

from __future__ import annotations

import logging
import pickle

import numpy as np
import pytest
import torch

from dllm_gym.backends import compiled, load_backend
from dllm_gym.backends.compiled import FastForward, can_compile, compiled_forward
from dllm_gym.backends.transformers_backend import TransformersBackend

EMBEDDED = ("tiny-arithmetic", "tiny-sudoku", "tiny-arithmetic-dream")
LENGTH = 8


def canvases(vocabulary: int, rows: int = 5, columns: int = 21) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens ``(rows, columns)``, each row with another amount of padding on the left."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocabulary - 1, (rows, columns), generator=generator)
    attention_mask = torch.ones_like(tokens)
    for row in range(rows):
        attention_mask[row, : 2 * row] = 0
    return tokens, attention_mask


def wanted(backend: TransformersBackend, attention_mask: torch.Tensor, columns: int) -> torch.Tensor:
    rows = backend.rows_about(torch.arange(columns - LENGTH, columns), attention_mask.argmax(1))
    return rows.expand(len(attention_mask), -1)


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_fast_forward_is_that_of_transformers(name):
    backend = load_backend(name)
    tokens, attention_mask = canvases(backend.vocab_size)
    columns = torch.arange(tokens.shape[1] - LENGTH, tokens.shape[1])
    with torch.inference_mode():
        logits, given = backend.forward(tokens, attention_mask, columns)
        got = FastForward(backend.model)(
            tokens, attention_mask, wanted(backend, attention_mask, len(tokens[0]))
        )
    for ours, theirs in zip(got, (logits, given["hidden"]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4)


def test_a_compiled_backend_predicts_the_same_in_every_batch():
    plain, fast = load_backend("tiny-arithmetic"), load_backend("tiny-arithmetic", compile="auto")
    if fast.fast_forward is None:
        pytest.skip("no C++ compiler")
    tokens, attention_mask = canvases(plain.vocab_size)
    where = slice(len(tokens[0]) - LENGTH, None)
    expected = plain.predict(tokens, attention_mask, where, statistics=("entropy", "hidden"))
    got = fast.predict(tokens, attention_mask, where, statistics=("entropy", "hidden"))
    assert (got.tokens == expected.tokens).all()
    torch.testing.assert_close(got.confidence, expected.confidence, rtol=1e-4, atol=1e-5)
    for name in ("entropy", "hidden"):
        torch.testing.assert_close(got.statistics[name], expected.statistics[name], rtol=1e-3, atol=5e-4)
    for row in range(len(tokens)):
        alone = fast.predict(tokens[row : row + 1], attention_mask[row : row + 1], where)
        torch.testing.assert_close(alone.confidence, got.confidence[row : row + 1], rtol=1e-5, atol=1e-6)
    again = pickle.loads(pickle.dumps(fast)).predict(tokens, attention_mask, where)
    assert (again.confidence == got.confidence).all()


@pytest.mark.slow  # compiling takes half a minute, once
def test_compiled_code_of_its_own_shows_attention():
    plain, fast = load_backend("tiny-arithmetic"), load_backend("tiny-arithmetic", compile="auto")
    if fast.fast_forward is None:
        pytest.skip("no C++ compiler")
    tokens, attention_mask = canvases(plain.vocab_size)
    where = slice(len(tokens[0]) - LENGTH, None)
    expected, got = (
        one.predict(tokens, attention_mask, where, statistics=("attention",)) for one in (plain, fast)
    )
    torch.testing.assert_close(
        got.statistics["attention"], expected.statistics["attention"], rtol=0, atol=1e-5
    )
    without = fast.predict(tokens, attention_mask, where)
    torch.testing.assert_close(got.confidence, without.confidence, rtol=1e-5, atol=1e-6)


def test_it_is_compiled_once(capfd, tmp_path, monkeypatch):
    backend = load_backend("tiny-arithmetic")
    if can_compile(backend.model) is not None:
        pytest.skip("no C++ compiler")
    monkeypatch.setenv("DLLM_GYM_CACHE", str(tmp_path))
    made: list[str] = []

    def pretend(fast, path, name):
        made.append(name)
        path.parent.mkdir(parents=True)
        path.write_bytes(b"code")

    monkeypatch.setattr(compiled, "_compile", pretend)
    monkeypatch.setattr(compiled, "CompiledForward", lambda path: path)
    first, second = (compiled_forward(backend.model, "it") for _ in range(2))
    assert first == second
    assert first.parent == tmp_path / "compiled"
    assert made == ["it"]


def test_without_a_compiler_nothing_changes_but_a_line_in_the_log(monkeypatch, caplog):
    backend = load_backend("tiny-arithmetic")
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    with caplog.at_level(logging.INFO, "dllm_gym"):
        assert compiled_forward(backend.model, "it") is None
    assert "it is computed without the fast forward: there is no C++ compiler" in caplog.text


def test_a_compiler_that_fails_does_no_harm(monkeypatch, caplog, tmp_path):
    backend = load_backend("tiny-arithmetic")
    monkeypatch.setenv("DLLM_GYM_CACHE", str(tmp_path))
    monkeypatch.setattr(compiled, "can_compile", lambda model: None)

    def fail(*arguments):
        raise RuntimeError("no space left\nand more")

    monkeypatch.setattr(compiled, "_compile", fail)
    assert compiled_forward(backend.model, "it") is None
    assert [record.getMessage() for record in caplog.records] == [
        "it is computed without the fast forward: no space left"
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 4096}, "hidden sizes up to 512, the model's is 4096"),
        ({"model_type": "qwen3"}, "llama and qwen2 layers, the model's are qwen3"),
        ({"hidden_act": "gelu"}, "silu, the model has gelu"),
    ],
)
def test_what_it_does_not_serve_it_says(change, message, monkeypatch):
    model = load_backend("tiny-arithmetic").model
    for name, value in change.items():
        monkeypatch.setattr(model.config, name, value)
    assert message in can_compile(model)


def test_other_words_for_compile_are_refused():
    with pytest.raises(ValueError, match="compile must be True, False, 'auto' or arguments"):
        load_backend("tiny-arithmetic", compile="always")


def test_with_a_cache_it_is_not_used():
    assert load_backend("tiny-arithmetic", compile="auto", cache="prefix").fast_forward is None


def test_an_environment_on_it(tmp_path):
    import dllm_gym

    options = {"task": "arithmetic", "block_length": 8, "episodes": 8}
    plain = dllm_gym.evaluate("fast-dllm:threshold=0.9", **options)
    fast = dllm_gym.evaluate("fast-dllm:threshold=0.9", **options, backend_kwargs={"compile": "auto"})
    assert np.mean(plain.records.nfe == fast.records.nfe) > 0.8  # but for near ties
