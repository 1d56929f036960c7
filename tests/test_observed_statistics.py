"""Statistics of predictions against an independent reference that sees the same canvases."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_backend import ToyBackend, ToyTask

from dllm_agents.serving.blocks import BlockWriter
from dllm_gym.backends import load_backend
from dllm_gym.backends.base import FROM_LOGITS, Prediction, predict_from_logits
from dllm_gym.envs.unmask import UnmaskEnv
from dllm_gym.envs.vector import UnmaskVectorEnv

COMPARING = ("predicted", "predicted_confidence", "written", "divergence", "persistence")
LENGTH = 48


# Of a prediction ------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 99), temperature=st.sampled_from([0.0, 1.0]))
def test_the_best_token_and_the_probabilities(seed, temperature):
    logits = torch.randn(2, 5, 10, generator=torch.Generator().manual_seed(seed))
    noise = [torch.Generator().manual_seed(seed + row) for row in range(2)] if temperature else None
    standing = torch.randint(10, (2, 5), generator=torch.Generator().manual_seed(seed))
    found = predict_from_logits(
        logits, 9, statistics=("best", "probabilities", "written"), temperature=temperature,
        generators=noise, standing=standing,
    )  # fmt: skip
    expected = logits[..., :9].double().softmax(-1)
    probabilities = found.statistics["probabilities"]
    torch.testing.assert_close(probabilities[..., :9].double(), expected, atol=1e-6, rtol=1e-5)
    assert (probabilities[..., 9] == 0).all()
    at_standing = probabilities.gather(-1, standing[..., None])[..., 0]
    torch.testing.assert_close(found.statistics["written"], at_standing)
    assert (found.statistics["written"][standing == 9] == 0).all()
    assert (found.statistics["best"] == expected.argmax(-1)).all()
    if temperature == 0:
        assert (found.statistics["best"] == found.tokens).all()
    at_token = probabilities.gather(-1, found.tokens[..., None])[..., 0]
    torch.testing.assert_close(at_token, found.confidence)


def test_they_are_the_same_where_logits_are_looked_at_piece_by_piece(monkeypatch):
    logits = torch.randn(3, 7, 10)
    options = {"statistics": (*FROM_LOGITS, "written"), "standing": torch.randint(10, (3, 7))}
    whole = predict_from_logits(logits, 9, **options)
    monkeypatch.setattr("dllm_gym.backends.base._AT_A_TIME", 40)
    pieces = predict_from_logits(logits, 9, **options)
    for name in options["statistics"]:
        assert torch.equal(whole.statistics[name], pieces.statistics[name]), name


# Of an episode --------------------------------------------------------------------------------------------


class Reference:
    """What the statistics of one episode must be, in float64, from the canvases that were seen."""

    def __init__(self, prompt):
        self.backend = load_backend("tiny-arithmetic")
        self.prompt = self.backend.encode_prompt(prompt)
        self.before, self.best, self.stayed = None, None, np.zeros(LENGTH)

    def __call__(self, tokens):
        row = torch.tensor([[*self.prompt, *tokens]])
        with torch.inference_mode():
            logits = self.backend.model(input_ids=row, attention_mask=torch.ones_like(row)).logits
        logits = logits[0, -LENGTH:].double()
        logits[:, self.backend.mask_token_id] = -torch.inf
        p = logits.softmax(-1).numpy()
        before = np.zeros_like(p) if self.before is None else self.before
        best = p.argmax(-1)
        self.stayed = np.where(best == self.best, self.stayed + 1, 0)
        self.before, self.best = p, best
        return {
            "predicted": best,
            "predicted_confidence": p.max(-1),
            "written": np.take_along_axis(p, tokens[:, None], axis=1)[:, 0],
            "divergence": (p * (np.log(p + 1e-12) - np.log(before + 1e-12))).sum(-1),
            "persistence": self.stayed,
        }


@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 99),
    revealed=st.sampled_from(["one", "model"]),
    view=st.sampled_from(["completion", "block"]),
)
def test_they_are_what_the_reference_says(seed, revealed, view):
    env = gym.make(
        "DLLMUnmask-v0", observe=(*COMPARING, "tokens"), on_empty="noop", block_length=16,
        revealed_confidence=revealed, view=view, split="test",
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    for _ in range(2):
        observation, info = env.reset(seed=seed)
        reference = Reference(info["prompt"])
        for step in range(6):
            expected = reference(observation["tokens"])
            masked = observation["tokens"] == reference.backend.mask_token_id
            block = np.arange(LENGTH) // 16
            inside = (block == block[masked.argmax()]) | (view == "completion")
            shown = inside & (masked | (revealed == "model"))
            looks = {"divergence": 0, "persistence": LENGTH}
            for name, value in looks.items():
                right = np.where(shown, expected[name], value)
                np.testing.assert_allclose(observation[name], right, atol=1e-3, rtol=1e-4, err_msg=name)
            predicted = np.where(inside, expected["predicted"], reference.backend.mask_token_id)
            np.testing.assert_array_equal(observation["predicted"], predicted)
            for name, atol in (("written", 1e-5), ("predicted_confidence", 1e-4)):
                right = np.where(inside, expected[name], 1)
                np.testing.assert_allclose(observation[name], right, atol=atol, err_msg=name)
            assert (observation["written"][masked & inside] == 0).all()
            if step == 0:
                assert (observation["divergence"][inside] > 20).all()
                assert (observation["persistence"][inside] == 0).all()
            chosen = rng.random(LENGTH) < rng.choice([0, 0.3])  # some steps reveal nothing
            observation, *_, info = env.step(observation["action_mask"] * chosen)


def test_a_step_that_changes_nothing_repeats_the_prediction_without_a_forward():
    backend = ToyBackend()
    env = UnmaskVectorEnv(
        2, backend=backend, task=ToyTask(), on_empty="noop", observe=COMPARING, autoreset_mode="SameStep"
    )
    first, _ = env.reset(seed=0)
    forwards = len(backend.calls)
    actions = np.zeros((2, 6), dtype=np.int8)
    second, *_ = env.step(actions)
    assert len(backend.calls) == forwards
    assert (second["divergence"] == 0).all()
    assert (second["persistence"] == 1).all()
    for name in ("predicted", "written", "confidence"):
        np.testing.assert_array_equal(first[name], second[name])
    actions[1, 2] = 1
    third, *_ = env.step(actions)
    assert len(backend.calls) == forwards + 1
    assert (third["persistence"][0] == 2).all()
    assert (third["divergence"][1, third["mask"][1] == 1] > 0).all()


def test_with_token_noise_the_best_token_is_not_the_drawn_one():
    class Noisy(ToyBackend):
        """Always sure of token 3, and never writes it."""

        def predict(self, tokens, attention_mask, positions, **options):
            said = super().predict(tokens, attention_mask, positions, **options)
            return Prediction(said.tokens, said.confidence, {"best": torch.full_like(said.tokens, 3)})

    env = UnmaskEnv(backend=Noisy(), task=ToyTask(), temperature=2.0, observe=("persistence", "predicted"))
    observation, _ = env.reset(seed=0)
    for steps in range(4):
        assert (observation["persistence"][observation["mask"] == 1] == steps).all()
        np.testing.assert_array_equal(observation["predicted"], env.engine.predicted_tokens[0])
        observation, *_ = env.step(np.eye(6, dtype=np.int8)[steps])


def test_nobody_asks_for_what_is_not_observed():
    asked = []

    class Asked(ToyBackend):
        def predict(self, *args, statistics=(), **options):
            asked.append(statistics)
            return super().predict(*args, statistics=statistics, **options)

    for observe in ("predicted", "written", "persistence", ("divergence", "entropy", "written")):
        UnmaskEnv(backend=Asked(), task=ToyTask(), observe=observe).reset(seed=0)
    assert asked == [(), ("written",), ("best",), ("probabilities", "entropy", "written")]


def test_a_dllm_that_does_not_give_what_is_asked_for():
    class Silent(ToyBackend):
        def predict(self, *args, statistics=(), **options):
            return super().predict(*args, **options)

    env = UnmaskEnv(backend=Silent(), task=ToyTask(), observe=("persistence", "divergence"))
    with pytest.raises(ValueError, match="asked for the statistics best, probabilities, and gave no 'best'"):
        env.reset(seed=0)


@pytest.mark.parametrize("given", [{"cache": "dual"}, {"cache": "prefix"}, {"residual_context": True}])
@pytest.mark.filterwarnings("ignore:.*was not trained with residual context")
def test_they_are_there_for_dllms_that_remember(given):
    env = gym.make("DLLMUnmask-v0", backend_kwargs=given, block_length=16, observe=COMPARING)
    observation, _ = env.reset(seed=0)
    assert (observation["persistence"] == 0).all()
    for position in range(12):
        last = observation
        observation, *_ = env.step(np.eye(LENGTH, dtype=np.int8)[position])
        assert observation in env.observation_space
        if given == {"cache": "dual"}:  # what is shown behind the block did not move
            assert (observation["divergence"][16:] == 0).all()
            assert (observation["persistence"][16:] == last["persistence"][16:] + 1).all()
        assert (observation["divergence"][position + 1 : 16] > 0).any()


def test_servers_tell_what_logits_tell():
    class Sure:
        """Reveals where it would write token 2, and remembers what it saw."""

        requires = ("predicted", "written")

        def act(self, observation):
            self.seen = observation
            return (observation["predicted"] == 2) & (observation["mask"] == 1)

    logits = torch.zeros(1, 4, 5)
    logits[0, :, 1] = torch.tensor([0.0, 9.0, 9.0, 0.0])
    logits[0, 0, 2] = logits[0, 3, 2] = 9.0
    tokens = torch.tensor([[4, 4, 1, 4]])
    agent = Sure()
    after = BlockWriter(agent, 4).write(logits, tokens, tokens == 4, [0])
    assert after.tolist() == [[2, 4, 1, 2]]
    assert agent.seen["predicted"].tolist() == [[2, 1, 1, 2]]
    np.testing.assert_allclose(agent.seen["written"], [[0, 0, 1, 0]], atol=1e-3)
    agent.requires = ("divergence",)
    with pytest.raises(ValueError, match="reads divergence, which a server does not tell"):
        BlockWriter(agent, 4)
