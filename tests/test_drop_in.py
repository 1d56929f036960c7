"""In LLaDA's or Dream's own script: the same ids as the rule written out here, and any agent besides."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dllm_gym
from dllm_gym.drop_in import dream_generate, llada_generate
from dllm_gym.strategies import make_strategy
from dllm_gym.tasks import load_task

MASK, EOS, SIZE = 12, 11, 13


def logits_of(tokens: Tensor, real: Tensor) -> Tensor:
    """``(B, T, V)`` float64, row i about token i: a wild function of the whole row, padding excluded."""
    place = torch.arange(-tokens.shape[1], 0)
    row = ((tokens + 1) * real * place).sum(1, keepdim=True)  # (B, 1)
    return torch.sin((row * place)[..., None] * torch.arange(1, SIZE + 1).double()) * 3


class LLaDA:
    """Called like the published one, and as unaware of devices as a user's own may be."""

    def __init__(self, size_of_end: float = 0.0) -> None:
        self.rows: list[int] = []
        self.size_of_end = size_of_end

    def __call__(self, ids, attention_mask=None):
        self.rows.append(len(ids))
        real = torch.ones_like(ids) if attention_mask is None else attention_mask
        logits = logits_of(ids, real)
        logits[..., EOS] += self.size_of_end
        return SimpleNamespace(logits=logits)


class Dream:
    """Called like the published one: ``(ids, attention_mask, position_ids)``, logits one row too early."""

    def __call__(self, ids, attention_mask, position_ids):
        if isinstance(attention_mask, str):
            assert (attention_mask, position_ids) == ("full", None)
            real = torch.ones_like(ids)
        else:
            assert (attention_mask.dtype, attention_mask.shape) == (
                torch.bool,
                (len(ids), 1, *2 * ids.shape[1:]),
            )
            real = attention_mask[:, 0, -1].long()  # what the last token, a mask, sees
            assert torch.equal(attention_mask[:, 0], (real[:, :, None] * real[:, None]).bool())
            for own, positions in zip(real, position_ids, strict=True):
                assert positions[own == 1].tolist() == list(range(int(own.sum())))
                assert (positions[own == 0] == 1).all()
        return SimpleNamespace(logits=logits_of(ids, real).roll(-1, dims=1))


def llada_rule(model, prompt, steps, gen_length, block_length, mask=MASK, guidance=0.0) -> list[int]:
    """One unpadded prompt ``(P,)`` the way LLaDA's ``generate.py`` does it at temperature 0."""
    tokens = torch.cat([prompt, torch.full((gen_length,), mask)])
    per_block = steps * block_length // gen_length
    for start in range(len(prompt), len(tokens), block_length):
        end = start + block_length
        for step in range(per_block):
            logits = model(tokens[None]).logits[0].double()
            if guidance > 0:
                blind = tokens.clone()
                blind[: len(prompt)] = mask
                without = model(blind[None]).logits[0].double()
                logits = without + (guidance + 1) * (logits - without)
            logits[:, mask] = -torch.inf  # what we add: the mask is never written
            probability, token = logits.softmax(-1).max(-1)
            candidates = [i for i in range(start, end) if tokens[i] == mask]
            count = block_length // per_block + (step < block_length % per_block)
            for i in sorted(candidates, key=lambda i: -probability[i])[:count]:
                tokens[i] = token[i]
    return tokens.tolist()


def padded(prompts: list[list[int]], left: bool = True) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    rows, real = (
        torch.full((len(prompts), longest), EOS),
        torch.zeros(len(prompts), longest, dtype=torch.long),
    )
    for row, ids in enumerate(prompts):
        place = slice(longest - len(ids), None) if left else slice(len(ids))
        rows[row, place], real[row, place] = torch.tensor(ids, dtype=torch.long), 1
    return rows, real


token_lists = st.lists(st.lists(st.integers(0, EOS), min_size=1, max_size=6), min_size=1, max_size=4)


# LLaDA ----------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    prompts=token_lists,
    plan=st.sampled_from([(8, 8, 8), (4, 8, 4), (6, 12, 6), (5, 12, 12), (6, 10, 5), (3, 9, 3)]),
    guidance=st.sampled_from([0.0, 0.7]),
    left=st.booleans(),
)
def test_without_an_agent_it_is_lladas_own_rule(prompts, plan, guidance, left):
    steps, gen_length, block_length = plan
    ids, real = padded(prompts, left)
    model = LLaDA()
    found = llada_generate(
        model, ids, real, steps, gen_length, block_length, cfg_scale=guidance, mask_id=MASK
    )
    assert found.dtype == torch.int64
    assert torch.equal(found[:, : ids.shape[1]], ids)
    for row, prompt in zip(found, prompts, strict=True):
        expected = llada_rule(LLaDA(), torch.tensor(prompt), *plan, guidance=guidance)
        assert row[ids.shape[1] :].tolist() == expected[len(prompt) :]
    assert len(model.rows) == 1 + steps  # one token to see the vocabulary


def test_more_steps_than_positions_change_nothing():
    ids = torch.tensor([[1, 2, 3]])
    many = llada_generate(LLaDA(), ids, steps=32, gen_length=8, block_length=4, mask_id=MASK)
    assert torch.equal(
        many, llada_generate(LLaDA(), ids, steps=8, gen_length=8, block_length=4, mask_id=MASK)
    )


@pytest.mark.parametrize(("name", "shifted"), [("tiny-arithmetic", False), ("tiny-arithmetic-dream", True)])
def test_a_users_own_transformers_model(name, shifted):
    """The embedded dLLMs as a user would hold them, against the rule above and against our own backend."""
    backend = dllm_gym.load_backend(name)
    task = load_task("arithmetic")
    prompts = [backend.encode_prompt(task.problem(index).prompt) for index in range(2)]
    ids, real = padded(prompts)
    options = {"gen_length": 48, "block_length": 8, "mask_id": backend.mask_token_id, "shift_logits": shifted}
    by_rule = llada_generate(backend.model, ids, real, 24, **options)

    @torch.inference_mode()
    def alone(tokens):
        logits = backend.model(tokens).logits
        return SimpleNamespace(logits=torch.cat([logits[:, :1], logits[:, :-1]], 1) if shifted else logits)

    for row, prompt in zip(by_rule, prompts, strict=True):
        expected = llada_rule(alone, torch.tensor(prompt), 24, 48, 8, backend.mask_token_id)
        assert row[ids.shape[1] :].tolist() == expected[len(prompt) :]
    texts = [backend.decode(row) for row in by_rule[:, ids.shape[1] :].tolist()]
    generations = dllm_gym.generate(
        [task.problem(index).prompt for index in range(2)],
        "confidence:k=2",
        name,
        completion_length=48,
        block_length=8,
    )
    assert texts == [one.text for one in generations]


def test_any_agent_decodes():
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    model = LLaDA()
    found = llada_generate(model, ids, gen_length=8, block_length=8, mask_id=MASK, agent=lambda o: o["mask"])
    assert model.rows == [1, 2]
    everything = logits_of(torch.cat([ids, torch.full((2, 8), MASK)], 1), torch.ones(2, 11))[:, 3:, :MASK]
    assert torch.equal(found[:, 3:], everything.argmax(-1))
    named = llada_generate(LLaDA(), ids, gen_length=8, block_length=4, mask_id=MASK, agent="confidence:k=2")
    ruled = llada_generate(LLaDA(), ids, steps=4, gen_length=8, block_length=4, mask_id=MASK)
    assert torch.equal(named, ruled)


@pytest.mark.parametrize("call", ["llada", "dream"])
def test_an_agent_sees_what_it_is_meant_to(call):
    """Released policies were trained with the dLLM's own confidence at revealed positions."""
    ids = torch.tensor([[1, 2, 3]])

    def seen_with(**options):
        seen = []

        class Watching:
            requires = ("top_k",)

            def act(self, observation):
                seen.append(observation)
                return make_strategy("confidence", k=2).act(observation)

        if call == "llada":
            llada_generate(
                LLaDA(), ids, gen_length=8, block_length=4, mask_id=MASK, agent=Watching(), **options
            )
        else:
            dream_generate(
                Dream(),
                ids,
                agent=Watching(),
                max_new_tokens=8,
                block_length=4,
                mask_token_id=MASK,
                **options,
            )
        return seen

    one, own, block = (
        seen_with(**options) for options in ({}, {"revealed_confidence": "model"}, {"view": "block"})
    )
    revealed = one[1]["mask"] == 0
    assert revealed.sum() == 2
    assert (one[1]["confidence"][revealed] == 1).all()
    logits = logits_of(torch.tensor([[1, 2, 3, *[MASK] * 8]]), torch.ones(1, 11))[0, 3:, :MASK]
    assert own[0]["confidence"][0] == pytest.approx(logits.softmax(-1).max(-1).values.numpy(), abs=1e-6)
    assert (own[1]["confidence"][revealed] < 1).all()
    assert block[0]["mask"].tolist() == [[1] * 4 + [0] * 4]


def test_an_end_token_ends_a_row():
    ids = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    options = {"gen_length": 12, "block_length": 12, "mask_id": MASK, "agent": "left-to-right"}
    whole, model = LLaDA(1.5), LLaDA(1.5)
    expected = llada_generate(whole, ids, **options)[:, 3:].numpy()
    ended = llada_generate(model, ids, **options, eos_token_id=EOS)[:, 3:].numpy()
    behind = np.logical_or.accumulate(expected == EOS, axis=1)
    assert 0 < behind.sum() < behind.size
    assert (expected[behind] != EOS).any()
    assert (ended == np.where(behind, EOS, expected)).all()
    assert sum(model.rows) < sum(whole.rows)


def test_noise_follows_torchs_generator_or_the_seed():
    ids = torch.tensor([[1, 2, 3]] * 3)

    def draw(**options):
        plan = {"steps": 4, "gen_length": 8, "block_length": 8, "mask_id": MASK}
        return llada_generate(LLaDA(), ids, temperature=1.0, **plan, **options)

    torch.manual_seed(5)
    first, second = draw(), draw()
    torch.manual_seed(5)
    assert torch.equal(draw(), first)
    assert not torch.equal(first, second)
    assert torch.equal(draw(seed=3), draw(seed=3))
    assert len({tuple(row) for row in first.tolist()}) > 1


def test_it_takes_what_lladas_script_gives():
    """The call in ``generate.py``'s ``main`` binds, and the defaults are the published ones."""
    signature = inspect.signature(llada_generate)
    signature.bind(
        None, None, None, steps=128, gen_length=128, block_length=32, temperature=0.0, cfg_scale=0.0,
        remasking="low_confidence",
    )  # fmt: skip
    published = {
        "attention_mask": None, "steps": 128, "gen_length": 128, "block_length": 128, "temperature": 0.0,
        "cfg_scale": 0.0, "remasking": "low_confidence", "mask_id": 126336,
    }  # fmt: skip
    assert list(signature.parameters)[:10] == ["model", "prompt", *published]
    assert {name: signature.parameters[name].default for name in published} == published


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_length": 5}, "block_length must divide gen_length.*steps 8, gen_length 8, block_length 5"),
        ({"block_length": 0}, "block_length must divide gen_length"),
        ({"block_length": 2, "steps": 6}, "steps must be a multiple of the number of blocks; got steps 6"),
        ({"steps": 0}, "got steps 0"),
        ({"remasking": "random"}, "remasking must be 'low_confidence', got 'random'; or give an agent"),
        ({"agent": "nonsense"}, "'nonsense' is neither a strategy"),
        ({"attention_mask": torch.ones(1, 2)}, r"of the prompts' shape \(1, 3\), got \(1, 2\)"),
        (
            {"prompt": torch.tensor([1, 2])},
            r"prompts must be of shape \(B, P\) with B at least 1, got \(2,\)",
        ),
        ({"prompt": torch.tensor([[1, MASK]])}, "contains the dLLM's mask token"),
        ({"eos_token_id": MASK}, "mask_token_id 12 is also the end or padding token"),
    ],
)
def test_what_contradicts_itself_is_refused(options, message):
    arguments = {
        "prompt": torch.tensor([[1, 2, 3]]), "steps": 8, "gen_length": 8, "block_length": 8, "mask_id": MASK,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        llada_generate(LLaDA(), **arguments | options)


# Dream ----------------------------------------------------------------------------------------------------


def dream_rule(model, prompt, steps, length, eps) -> list[int]:
    """One unpadded prompt ``(P,)`` the way Dream's ``_sample`` does it with ``alg="entropy"``."""
    tokens = torch.cat([prompt, torch.full((length,), MASK)])
    times = torch.linspace(1, eps, steps + 1)
    for step in range(steps):
        logits = model(tokens[None], "full", None).logits[0].double()
        logits = torch.cat([logits[:1], logits[:-1]])
        logits[:, MASK] = -torch.inf
        p = logits.softmax(-1)
        masked = (tokens == MASK).nonzero()[:, 0]
        number = masked.numel() / torch.tensor(1.0)
        count = int(number * (1 - times[step + 1] / times[step])) if step < steps - 1 else int(number)
        entropy = -(p * (p + 1e-10).log()).sum(-1)[masked]
        chosen = masked[entropy.argsort(stable=True)[:count]]
        tokens[chosen] = p.argmax(-1)[chosen]
    return tokens[len(prompt) :].tolist()


@settings(max_examples=30)
@given(prompts=token_lists, left=st.booleans(), steps=st.integers(1, 20), eps=st.sampled_from([1e-3, 0.1]))
def test_dreams_own_call_becomes_its_schedule(prompts, left, steps, eps):
    ids, real = padded(prompts, left)
    agent = make_strategy("entropy", dream_steps=steps, eps=eps)
    found = dream_generate(Dream(), ids, real, agent=agent, max_new_tokens=8, mask_token_id=MASK)
    for row, prompt in zip(found, prompts, strict=True):
        assert row[ids.shape[1] :].tolist() == dream_rule(Dream(), torch.tensor(prompt), steps, 8, eps)


@settings(max_examples=20)
@given(prompts=token_lists, left=st.booleans(), k=st.sampled_from([1, 2, 4]))
def test_a_dream_is_called_as_its_sampler_does(prompts, left, k):
    ids, real = padded(prompts, left)
    found = dream_generate(
        Dream(), ids, real, agent=f"confidence:k={k}", max_new_tokens=8, mask_token_id=MASK
    )
    assert torch.equal(found[:, : ids.shape[1]], ids)
    for row, prompt in zip(found, prompts, strict=True):
        expected = llada_rule(LLaDA(), torch.tensor(prompt), 8 // k, 8, 8)
        assert row[ids.shape[1] :].tolist() == expected[len(prompt) :]
