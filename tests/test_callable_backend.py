"""Any function that returns logits is a backend."""

from __future__ import annotations

import copy

import pytest
import torch
from toy_backend import ToyTask

import dllm_gym
from dllm_gym.backends import Backend, CallableBackend
from dllm_gym.backends.base import predict_from_logits
from dllm_gym.envs.unmask import UnmaskEnv
from dllm_gym.envs.vector import UnmaskVectorEnv

MASK, EOS, PAD, SIZE = 10, 11, 12, 13


class Digits:
    def encode(self, text):
        return [int(digit) for digit in text]

    def decode(self, ids):
        return "".join("0123456789_.~"[token] for token in ids)


def logits(tokens, attention_mask):
    """Depends on the whole row, padding excluded."""
    row = (tokens * attention_mask).sum(1, keepdim=True)  # (B, 1)
    place = torch.arange(-tokens.shape[1], 0)[None]
    return torch.sin((row * place)[..., None] * torch.arange(1, SIZE + 1)) * 3


def make(function=logits, **changes):
    ids = {"mask_token_id": MASK, "eos_token_id": EOS, "pad_token_id": PAD, "vocab_size": SIZE}
    return CallableBackend(function, Digits(), **ids | changes)


def test_it_is_a_backend():
    backend = make()
    assert isinstance(backend, Backend)
    assert copy.deepcopy(backend) is backend
    assert make(pad_token_id=None).pad_token_id == EOS
    assert backend.encode_prompt("123") == [1, 2, 3]
    assert backend.encode_prompt([{"role": "user", "content": "12"}]) == [1, 2]
    assert backend.decode([1, MASK, EOS, 2]) == "1_"
    assert backend.decode(torch.tensor([4, 5])) == "45"


def test_its_predictions_are_those_of_its_logits():
    tokens = torch.tensor([[PAD, 1, 2, MASK, MASK], [3, 4, 5, MASK, 6]])
    real = torch.tensor([[0, 1, 1, 1, 1], [1] * 5])
    found = make().predict(tokens, real, slice(3, None), statistics=("entropy", "top_k"), top_k=3)
    expected = predict_from_logits(
        logits(tokens, real)[:, 3:], MASK, statistics=("entropy", "top_k"), top_k=3
    )
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.confidence, expected.confidence)
    assert torch.equal(found.statistics["top_k"], expected.statistics["top_k"])
    generators = [torch.Generator().manual_seed(at) for at in range(2)]
    make().predict(tokens, real, slice(3, None), temperature=1.0, generators=generators)


def test_episodes_run_single_and_batched():
    single = UnmaskEnv(make(), task=ToyTask(), observe=("entropy",))
    batched = UnmaskVectorEnv(3, backend=make(), task=ToyTask(), observe=("entropy",))
    observation, _ = single.reset(seed=4)
    together, _ = batched.reset(seed=[3, 4, 5])
    for key, value in observation.items():
        assert value == pytest.approx(together[key][1], abs=1e-6)
    result = dllm_gym.evaluate("confidence", episodes=4, split="train", backend=make(), task=ToyTask())
    assert result.nfe_mean == ToyTask.completion_length


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_token_id": 13}, "mask_token_id must be 0 to 12, got 13"),
        ({"eos_token_id": -1}, "eos_token_id must be 0 to 12, got -1"),
        ({"pad_token_id": 99}, "pad_token_id must be 0 to 12, got 99"),
        ({"mask_token_id": EOS}, "mask_token_id 11 is also the end or padding token"),
        ({"mask_token_id": PAD}, "mask_token_id 12 is also the end or padding token"),
    ],
)
def test_impossible_tokens_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_what_is_wrong_at_work_speaks():
    tokens = torch.full((2, 4), MASK)
    real = torch.ones_like(tokens)
    short = make(lambda tokens, mask: logits(tokens, mask)[:, 1:])
    with pytest.raises(ValueError, match=r"logits must be of shape \(2, 4, 13\), got \(2, 3, 13\)"):
        short.predict(tokens, real, slice(1, None))
    unknown = make(lambda tokens, mask: logits(tokens, mask) * torch.nan)
    with pytest.raises(ValueError, match="NaN or infinite"):
        unknown.predict(tokens, real, slice(1, None))

    class Sees(Digits):
        def encode(self, text):
            return [MASK]

    ids = {"mask_token_id": MASK, "eos_token_id": EOS, "vocab_size": SIZE}
    with pytest.raises(ValueError, match="contains the dLLM's mask token"):
        CallableBackend(logits, Sees(), **ids).encode_prompt("1")
