"""DLLMs and prompts that are not as they should be: refused by name, or handled rightly."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llada_reference import write_checkpoint
from toy_backend import EOS, MASK, PAD, ScriptedBackend, ToyBackend, ToyTask

import dllm_gym
from dllm_gym.backends import CallableBackend
from dllm_gym.backends.base import Prediction
from dllm_gym.backends.transformers_backend import TransformersBackend
from dllm_gym.envs.problems import Problems
from dllm_gym.envs.vector import UnmaskVectorEnv
from dllm_gym.tasks import Problem

SIZE, LENGTH = ToyBackend.vocab_size, ToyTask.completion_length
NAN, INF = float("nan"), float("inf")


class Digits:
    def encode(self, text: str, **_: Any) -> list[int]:
        return [int(digit) for digit in text]

    def decode(self, ids: Any) -> str:
        return "".join("0123456789_.~"[token] for token in ids)


def model(logits: Any, tokenizer: Any = None) -> CallableBackend:
    return CallableBackend(
        logits, tokenizer or Digits(), mask_token_id=MASK, eos_token_id=EOS, pad_token_id=PAD, vocab_size=SIZE
    )


def favouring(token: int) -> Any:
    """A dLLM that finds one token the best everywhere, and the digit 7 second."""

    def logits(tokens: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        values = torch.zeros(*tokens.shape, SIZE)
        values[..., 7] = 5.0
        values[..., token] = 9.0
        return values

    return logits


# Logits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_stop_an_episode_by_name(bad, temperature):
    calls = []

    def logits(tokens: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        calls.append(len(tokens))
        values = favouring(3)(tokens, attention_mask)
        if len(calls) == 3:
            values[1, -1, 4] = bad
        return values

    with pytest.raises(ValueError, match=r"the dLLM returned NaN or infinite logits in rows \[1\]"):
        dllm_gym.evaluate(
            "confidence:k=1", 4, "train", backend=model(logits), task=ToyTask(), temperature=temperature
        )
    assert len(calls) == 3


def test_a_model_that_rules_tokens_out_is_fine():
    """Minus infinity says that a token is impossible; only where all are, there is nothing to write."""

    def logits(tokens: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        values = favouring(3)(tokens, attention_mask)
        values[..., 5:] = -INF
        return values

    result = dllm_gym.evaluate("confidence:k=1", 2, "train", backend=model(logits), task=ToyTask())
    assert result.records.completion == ["3" * LENGTH] * 2
    nothing = model(lambda tokens, mask: torch.full((*tokens.shape, SIZE), -INF))
    with pytest.raises(ValueError, match="NaN or infinite logits"):
        dllm_gym.evaluate("confidence:k=1", 2, "train", backend=nothing, task=ToyTask())


def test_where_the_mask_is_the_best_token_the_second_best_is_written():
    result = dllm_gym.evaluate(
        "confidence:k=2", 3, "train", backend=model(favouring(MASK)), task=ToyTask(), record=True
    )
    assert result.records.completion == ["7" * LENGTH] * 3
    assert (result.records.nfe == 3).all()
    recording: Any = result.recording
    second = torch.zeros(SIZE)
    second[7] = 5.0
    expected = torch.cat([second[:MASK], second[MASK + 1 :]]).softmax(0)[7]
    assert recording.confidence == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize(
    ("token", "confidence", "message"),
    [
        (MASK, 0.5, "possible are 0 to 12 without its mask token 10"),
        (SIZE, 0.5, "predicted tokens from 13 to 13"),
        (-1, 0.5, "predicted tokens from -1 to -1"),
        (3, NAN, "confidence must be 0 to 1, got nan to nan"),
        (3, 1.5, "confidence must be 0 to 1, got 1.5 to 1.5"),
        (3, -0.1, "confidence must be 0 to 1"),
    ],
)
def test_a_backend_of_anybodys_that_predicts_the_impossible_is_refused(token, confidence, message):
    backend = ScriptedBackend([token] * LENGTH, [confidence] * LENGTH)
    env = UnmaskVectorEnv(2, backend=backend, task=ToyTask())
    with pytest.raises(ValueError, match=message):
        env.reset(seed=0)


def test_a_text_without_end_ends_with_the_budget():
    """No end token ever, and an agent that reveals nothing by itself."""
    nothing = lambda observation: np.zeros_like(observation["action_mask"])  # noqa: E731
    for on_empty, written in (("best", "7" * LENGTH), ("noop", "_" * LENGTH)):
        result = dllm_gym.evaluate(
            nothing, 3, "train", backend=model(favouring(7)), task=ToyTask(), on_empty=on_empty,
            stop_at_eos=True,
        )  # fmt: skip
        assert (result.records.nfe == LENGTH).all()
        assert result.records.completion == [written] * 3


# Tokens and prompts -----------------------------------------------------------------------------------------


class Strange(Digits):
    """A tokenizer of another model."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def encode(self, text: str, **_: Any) -> list[int]:
        return self.ids


@pytest.mark.parametrize("ids", [[1, SIZE], [-1, 2], [10**9]])
def test_a_tokenizer_of_another_model_is_named(ids):
    backend = model(favouring(3), Strange(ids))
    with pytest.raises(ValueError, match=r"'1' has the token ids \[.*\], the dLLM has tokens 0 to 12"):
        dllm_gym.generate("1", "confidence:k=1", backend, completion_length=4)


def test_a_prefix_is_checked_like_the_prompt():
    backend = model(favouring(3))
    problems = Problems(ToyTask(), backend)
    assert problems.encode(Problem(prompt="1", reference="", prefix="23")) == [1, 2, 3]
    backend.tokenizer = Strange([MASK])
    with pytest.raises(ValueError, match="contains the dLLM's mask token"):
        problems.encode(Problem(prompt="1", reference="", prefix="x"))


def test_a_checkpoint_whose_tokenizer_knows_more_than_the_model(tmp_path):
    directory = write_checkpoint(tmp_path / "dllm")
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    size = json.loads((directory / "config.json").read_text())["vocab_size"]
    word = next(word for word in vocabulary if word.isalpha())
    vocabulary[word] = size + 5
    path.write_text(json.dumps(tokenizer))
    backend = TransformersBackend(directory)
    with pytest.raises(ValueError, match=rf"has the token ids \[{size + 5}\]"):
        dllm_gym.generate(word, "confidence:k=1", backend, completion_length=4)


@pytest.mark.parametrize("change", [-1, 1, 64])
def test_a_config_whose_vocabulary_is_not_that_of_the_weights_is_refused(tmp_path, change):
    directory = write_checkpoint(tmp_path / "dllm")
    path = directory / "config.json"
    config = json.loads(path.read_text())
    for key in ("vocab_size", "embedding_size"):
        if config.get(key) is not None:
            config[key] += change
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"did not load completely|outside its"):
        TransformersBackend(directory)


@settings(max_examples=25)
@given(st.lists(st.text("0123456789", max_size=6), min_size=1, max_size=6), st.integers(1, 4))
def test_prompts_of_any_length_do_not_feel_each_other(prompts, batch_size):
    """Empty ones included."""
    options: dict[str, Any] = {"completion_length": 5, "stop_at_eos": False}
    together = dllm_gym.generate(prompts, "confidence:k=2", ToyBackend(), batch_size=batch_size, **options)
    alone = [dllm_gym.generate(prompt, "confidence:k=2", ToyBackend(), **options) for prompt in prompts]
    assert [one.text for one in together] == [one.text for one in alone]


@pytest.mark.parametrize("backend", ["tiny-arithmetic", "tiny-arithmetic-dream"])
def test_an_empty_prompt_is_answered_by_the_embedded_dllms(backend):
    alone = dllm_gym.generate("", backend=backend, completion_length=8)
    question = dllm_gym.load_task("arithmetic").problem(0).prompt
    beside = dllm_gym.generate([question, ""], backend=backend, completion_length=8)
    assert alone.steps >= 1
    assert beside[1].text == alone.text


def test_a_prediction_of_another_shape_does_not_pass_silently():
    class Short(ToyBackend):
        def predict(self, tokens: Any, *args: Any, **kwargs: Any) -> Prediction:
            found = super().predict(tokens, *args, **kwargs)
            return Prediction(found.tokens[:, 1:], found.confidence[:, 1:])

    with pytest.raises(ValueError, match="shape"):
        UnmaskVectorEnv(2, backend=Short(), task=ToyTask()).reset(seed=0)
