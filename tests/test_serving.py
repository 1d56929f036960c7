"""SGLang and dInfer ask a policy what to reveal, and get what it would have decided here."""

from __future__ import annotations

import builtins
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from served import (
    TokenArray,
    checkout_dinfer,
    checkout_sglang,
    forget,
    published_dinfer,
    published_sglang,
)
from test_docs import ROOT

import dllm_gym
from dllm_agents import load_policy
from dllm_agents.serving.blocks import BlockWriter
from dllm_gym.drop_in import llada_generate

FULL = "policy:arithmetic-full:deterministic"
MASK, VOCABULARY = 6, 7


@pytest.fixture(params=[published_sglang, checkout_sglang])
def make_algorithm(request, monkeypatch, tmp_path):
    yield request.param(monkeypatch, tmp_path)
    forget(monkeypatch, "sglang")


THEIR_IMPORTS = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(params=[published_dinfer, pytest.param(checkout_dinfer, marks=THEIR_IMPORTS)])
def dinfer(request, monkeypatch, tmp_path):
    yield request.param(monkeypatch, tmp_path)
    forget(monkeypatch, "dinfer")


@pytest.fixture(scope="module")
def backend():
    return dllm_gym.load_backend("tiny-arithmetic")


@pytest.fixture(scope="module")
def prompts(backend):
    """``(6, P)``: problems whose prompts are equally long, so that nobody pads."""
    task = dllm_gym.load_task("arithmetic")
    encoded = [backend.encode_prompt(task.problem(index).prompt) for index in range(60)]
    length = max({len(ids) for ids in encoded}, key=[len(ids) for ids in encoded].count)
    return torch.tensor([ids for ids in encoded if len(ids) == length][:6])


@pytest.fixture(scope="module")
def expected(backend, prompts):
    """``(6, P + 48)``: what the engine writes."""
    return llada_generate(
        backend.model, prompts, gen_length=48, block_length=48, mask_id=backend.mask_token_id, agent=FULL
    )


def random_block(seed, batch=3, length=8):
    """Logits, tokens with masks, and whether a token belongs to the prompt; the last row may be complete."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 3, (batch, length, VOCABULARY)).astype(np.float32))
    logits[..., MASK] += 3  # often the best, and never to be written
    tokens = torch.from_numpy(rng.integers(0, MASK, (batch, length)))
    masked = torch.from_numpy(rng.random((batch, length)) < 0.6)
    masked[-1] &= bool(seed % 2)
    return logits, tokens.masked_fill(masked, MASK), masked


def decided(agent, logits, tokens, masked, steps, revealed="one"):
    """An independent account of one step: numpy, float64, no code of ours but the agent's."""
    values = logits.double().numpy().copy()
    values[..., MASK] = -np.inf
    probabilities = np.exp(values - values.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    candidates = masked.numpy()
    confidence = np.where(candidates | (revealed == "model"), probabilities.max(-1), 1.0)
    action = agent.act(
        {
            "confidence": confidence.astype(np.float32),
            "mask": candidates.astype(np.int8),
            "action_mask": candidates.astype(np.int8),
            "progress": (np.array(steps)[:, None] / candidates.shape[1]).astype(np.float32),
        }
    )
    return np.where((action == 1) & candidates, values.argmax(-1), tokens.numpy())


# What both share -------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), revealed=st.sampled_from(["one", "model"]))
def test_a_step_is_what_the_agent_decides(seed, revealed):
    logits, tokens, masked = random_block(seed)
    steps = [0, 3, 5]
    agent = load_policy("arithmetic-full", decoding="deterministic")
    written = BlockWriter(agent, MASK, revealed_confidence=revealed).write(logits, tokens, masked, steps)
    assert np.array_equal(written.numpy(), decided(agent, logits, tokens, masked, steps, revealed))
    assert (written[~masked] == tokens[~masked]).all()
    assert ((written != tokens).any(-1) == masked.any(-1)).all()


@pytest.mark.parametrize("agent", ["entropy:k=2", "margin:k=1", "eb-sampler", "random:k=3"])
def test_rules_decide_too_and_see_their_statistics(agent):
    logits, tokens, masked = random_block(1)
    written = BlockWriter(agent, MASK).write(logits, tokens, masked, [0, 0, 0])
    changed = written != tokens
    assert (changed.any(-1) == masked.any(-1)).all()
    assert not (changed & ~masked).any()
    if agent == "entropy:k=2":
        entropy = torch.distributions.Categorical(logits=logits[..., :MASK]).entropy()
        best = entropy.masked_fill(~masked, 99.0).argsort(-1)[:, :2]
        assert changed.gather(1, best).all()


def test_an_empty_action_reveals_the_most_confident():
    logits, tokens, masked = random_block(1)

    def nothing(observation):
        return np.zeros_like(observation["action_mask"])

    changed = BlockWriter(nothing, MASK).write(logits, tokens, masked, [0, 0, 0]) != tokens
    confidence = logits[..., :MASK].softmax(-1).amax(-1)
    confidence /= logits[..., :MASK].softmax(-1).sum(-1)
    assert changed.sum(-1).tolist() == [1, 1, 1]
    assert torch.equal(changed.int().argmax(-1), confidence.masked_fill(~masked, -1.0).argmax(-1))


def test_revealed_tokens_stay_whatever_the_agent_says():
    logits, tokens, masked = random_block(1)
    written = BlockWriter(lambda o: np.ones_like(o["mask"]), MASK).write(logits, tokens, masked, [0, 0, 0])
    assert torch.equal(written, torch.where(masked, logits[..., :MASK].argmax(-1), tokens))


def test_half_precision_logits_are_left_alone():
    logits, tokens, masked = random_block(1)
    low = logits.bfloat16()
    before = low.clone()
    written = BlockWriter(FULL, MASK).write(low, tokens, masked, [0, 0, 0])
    assert torch.equal(low, before)
    assert torch.equal(written, BlockWriter(FULL, MASK).write(low.float(), tokens, masked, [0, 0, 0]))


def test_what_a_server_cannot_serve_is_refused():
    with pytest.raises(
        ValueError, match=r"reads target_steps, .* as in policy:arithmetic-any:target_steps=8"
    ):
        BlockWriter("policy:arithmetic-any", MASK)
    BlockWriter("policy:arithmetic-any:target_steps=8", MASK)
    agent = SimpleNamespace(act=None, requires=("hidden",))
    with pytest.raises(ValueError, match="reads hidden, which a server does not tell"):
        BlockWriter(agent, MASK)
    agent = SimpleNamespace(act=None, reset=None)
    with pytest.raises(ValueError, match="keeps state"):
        BlockWriter(agent, MASK)
    with pytest.raises(ValueError, match="unknown revealed_confidence 'two'; choose one of one, model"):
        BlockWriter(FULL, MASK, revealed_confidence="two")
    logits, tokens, masked = random_block(1)
    with pytest.raises(ValueError, match=r"of shape \(3, 8\), got float32 of \(3, 1\)"):
        BlockWriter(lambda o: o["progress"], MASK).write(logits, tokens, masked, [0, 0, 0])
    logits[1, 2, 3] = torch.nan
    with pytest.raises(ValueError, match=r"NaN or infinite logits in rows \[1\]"):
        BlockWriter(FULL, MASK).write(logits, tokens, masked, [0, 0, 0])


# SGLang ----------------------------------------------------------------------------------------------------


class ModelRunner:
    """Gives logits of the blocks, each behind its prompt, as SGLang's does from keys and values."""

    def __init__(self, model, prompts):
        self.model, self.prompts, self.forwards = model, prompts, 0

    def forward(self, forward_batch, pp_proxy_tensors=None):
        self.forwards += 1
        blocks = forward_batch.input_ids.view(forward_batch.batch_size, -1)
        with torch.inference_mode():
            logits = self.model(torch.cat([self.prompts, blocks], dim=1)).logits[:, -blocks.shape[1] :]
        output = SimpleNamespace(full_logits=logits.flatten(0, 1))
        return SimpleNamespace(logits_output=output, can_run_graph=False)


def forward_batch_of(tokens, prompt_mask=None):
    return SimpleNamespace(
        input_ids=tokens.flatten().clone(), batch_size=len(tokens), dllm_prompt_mask=prompt_mask
    )


def test_sglang_writes_what_the_engine_writes(make_algorithm, backend, prompts, expected):
    algorithm = make_algorithm({"agent": FULL}, 48, backend.mask_token_id)
    assert type(algorithm).__name__ == "UnmaskingPolicy"  # what --dllm-algorithm says
    batch = forward_batch_of(torch.full((6, 48), backend.mask_token_id))
    runner = ModelRunner(backend.model, prompts)
    _, written, *_ = algorithm.run(runner, batch)
    assert torch.equal(torch.stack(written), expected[:, -48:])
    assert runner.forwards < 30  # it stops when all rows are done


def test_sglang_first_done_first_out_writes_the_same(make_algorithm, backend, prompts, expected):
    algorithm = make_algorithm({"agent": FULL}, 48, backend.mask_token_id, fdfo=True)
    batch = forward_batch_of(torch.full((6, 48), backend.mask_token_id))
    runner, states = ModelRunner(backend.model, prompts), [None] * 6
    finished = {}
    for step in range(49):
        _, blocks, lengths, states, _ = algorithm.run(runner, batch, states)
        for row in np.flatnonzero(lengths).tolist():
            finished.setdefault(row, (step, blocks[row]))
            assert lengths[row] == 48
            assert states[row] is None
        if len(finished) == 6:
            break
    assert len({step for step, _ in finished.values()}) > 1
    assert torch.equal(torch.tensor([finished[row][1] for row in range(6)]), expected[:, -48:])


@pytest.mark.parametrize("seed", range(4))
def test_sglangs_step(make_algorithm, seed):
    logits, tokens, masked = random_block(seed)
    prompt = torch.zeros_like(masked)
    prompt[0, :3] = True
    tokens[0, 1] = MASK  # a user wrote it
    masked &= ~prompt
    algorithm = make_algorithm({"agent": FULL, "top_k": 4, "block_size": 8}, 8, MASK)
    batch = forward_batch_of(tokens, prompt)
    storage = batch.input_ids.data_ptr()
    states = [{"steps": 0}, {"steps": 2}, {"steps": 7}]
    done = algorithm.step(batch, logits.flatten(0, 1), states)
    assert batch.input_ids.data_ptr() == storage
    agent = load_policy("arithmetic-full", decoding="deterministic")
    assert np.array_equal(batch.input_ids.view(3, 8), decided(agent, logits, tokens, masked, [0, 2, 7]))
    assert done == (~masked.any(-1)).tolist()
    unfinished = masked.any(-1).int().tolist()
    assert [state["steps"] for state in states] == [0 + unfinished[0], 2 + unfinished[1], 7 + unfinished[2]]


def test_sglang_gets_a_block_back_after_a_forward_over_its_last_token(make_algorithm):
    logits, tokens, _ = random_block(1)
    tokens = tokens.masked_fill(tokens == MASK, 0)
    tokens[:2, 4] = MASK
    algorithm = make_algorithm({"agent": FULL}, 8, MASK)
    batch = forward_batch_of(tokens)
    states = algorithm.init_step_state(batch)
    assert algorithm.step(batch, logits.flatten(0, 1), states) == [False, False, True]
    finished = batch.input_ids.clone()
    assert not (finished == MASK).any()
    assert algorithm.step(batch, logits.flatten(0, 1), states) == [True, True, True]
    assert torch.equal(batch.input_ids, finished)


def test_sglangs_configuration_is_checked(make_algorithm):
    with pytest.raises(
        ValueError, match=r"configuration: missing a required .*'agent'; it accepts agent, mask_id"
    ):
        make_algorithm({}, 8, MASK)
    with pytest.raises(ValueError, match="unexpected keyword argument 'threshold'"):
        make_algorithm({"agent": FULL, "threshold": 0.9}, 8, MASK)


# dInfer ----------------------------------------------------------------------------------------------------


def test_dinfer_writes_what_the_engine_writes(dinfer, backend, prompts, expected):
    decoder = dinfer.Decoder(FULL, mask_id=backend.mask_token_id, eos_id=backend.eos_token_id)
    with torch.inference_mode():
        assert torch.equal(dinfer.generate(backend.model, decoder, prompts, 48, 48), expected)
        assert torch.equal(
            dinfer.generate(backend.model, decoder, prompts, 48, 48), expected
        )  # starts afresh


def test_dinfer_goes_from_block_to_block(dinfer, backend, prompts):
    order = []

    class Watched:
        agent = load_policy("arithmetic-semi", decoding="deterministic")
        requires = agent.requires

        def act(self, observation):
            order.append(observation["progress"][:, 0].tolist())
            assert observation["mask"].shape == (6, 8)
            return self.agent.act(observation)

    decoder = dinfer.Decoder(Watched(), mask_id=backend.mask_token_id, eos_id=-1)  # to the last block
    with torch.inference_mode():
        out = dinfer.generate(backend.model, decoder, prompts, 48, 8)
    assert torch.equal(out[:, :-48], prompts)
    assert not (out == backend.mask_token_id).any()
    assert order.count([0.0] * 6) == 6  # every block begins at step 0


@pytest.mark.parametrize("seed", range(4))
def test_dinfers_decode(dinfer, seed):
    logits, tokens, masked = random_block(seed)
    x = TokenArray(torch.full((3, 5), 2), 16, MASK)
    x[:, 9:17] = tokens
    before, block = x.data.clone(), x[:, 9:17]
    decoder = dinfer.Decoder(FULL, mask_id=MASK, eos_id=0)
    decoder.block_init(block, 1)
    agent = load_policy("arithmetic-full", decoding="deterministic")
    assert decoder.decode(logits, 9, 17, x) is None
    first = decided(agent, logits, tokens, masked, [0, 0, 0])
    assert np.array_equal(block, first)  # in place
    assert torch.equal(x[:, :9], before[:, :9])
    assert torch.equal(x[:, 17:], before[:, 17:])
    decoder.decode(logits, 9, 17, x)
    left = torch.from_numpy(first) == MASK
    steps = masked.any(-1).int().tolist()
    assert np.array_equal(block, decided(agent, logits, torch.from_numpy(first), left, steps))


def test_without_the_servers_the_modules_say_so(monkeypatch):
    def refuse(name, *arguments, real=builtins.__import__, **keywords):
        if name.startswith(("sglang", "dinfer")):
            raise ImportError(f"No module named {name!r}")
        return real(name, *arguments, **keywords)

    for name in ("sglang", "dinfer"):
        forget(monkeypatch, f"dllm_agents.serving.{name}")
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match="inside SGLang"):
        import dllm_agents.serving.sglang
    with pytest.raises(ImportError, match=r"github\.com/inclusionAI/dInfer"):
        import dllm_agents.serving.dinfer  # noqa: F401


def test_the_page_names_what_there_is():
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    assert "from dllm_agents.serving.sglang import Algorithm" in page
    assert "--dllm-algorithm UnmaskingPolicy" in page
