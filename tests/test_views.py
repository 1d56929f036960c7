"""What an observation shows on request: hidden states, predictions at revealed positions, one block only."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_backend import ToyBackend, ToyTask

from dllm_gym.backends import load_backend
from dllm_gym.envs.unmask import UnmaskEnv
from dllm_gym.envs.vector import UnmaskVectorEnv


def toy(rows=None, **kwargs):
    kwargs = {"backend": ToyBackend(), "task": ToyTask(), **kwargs}
    return UnmaskEnv(**kwargs) if rows is None else UnmaskVectorEnv(rows, autoreset_mode="SameStep", **kwargs)


# Hidden states --------------------------------------------------------------------------------------------


def test_hidden_states_are_the_dllms():
    env = gym.make("DLLMUnmask-v0", observe=("hidden", "tokens"))
    observation, info = env.reset(seed=0)
    backend = load_backend("tiny-arithmetic")
    prompt = backend.encode_prompt(info["prompt"])
    for _ in range(3):
        tokens = torch.tensor([[*prompt, *observation["tokens"]]])
        output = backend.model.model(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False
        )
        expected = output.last_hidden_state[0, len(prompt) :].numpy() * observation["mask"][:, None]
        assert observation["hidden"].dtype == np.float32
        np.testing.assert_allclose(observation["hidden"], expected, atol=1e-4)
        observation, *_ = env.step(observation["action_mask"] * (np.arange(48) % 5 == 0))


@settings(deadline=None)
@given(seed=st.integers(0, 99), block_length=st.integers(1, 6))
def test_hidden_states_of_every_row(seed, block_length):
    env = toy(4, observe=("hidden",), block_length=block_length)
    assert env.single_observation_space["hidden"].shape == (6, 3)
    env.action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    for _ in range(4):
        assert observation in env.observation_space
        masked = observation["mask"] == 1
        assert (observation["hidden"][masked] != 0).any(axis=-1).all()
        assert (observation["hidden"][~masked] == 0).all()
        observation, *_ = env.step(env.action_space.sample())


def test_a_dllm_without_hidden_states_is_refused_at_the_door():
    class Closed:
        """A backend from before there were hidden states."""

        def __init__(self):
            self._inner = ToyBackend()

        def __getattr__(self, name):
            if name == "hidden_width":
                raise AttributeError(name)
            return getattr(self._inner, name)

    toy(backend=Closed(), observe=("entropy",)).reset(seed=0)
    with pytest.raises(ValueError, match=r"observation .hidden. needs a dLLM that shows its hidden states"):
        toy(backend=Closed(), observe=("hidden",))


# Revealed positions and blocks ----------------------------------------------------------------------------

STATISTICS = ("entropy", "margin", "top_k", "hidden")
WHERE_HIDDEN = {
    "confidence": 1,
    "entropy": 0,
    "margin": 1,
    "top_k": [1, 0, 0],
    "hidden": [0, 0, 0],
    "mask": 0,
}


def predictions(backend):
    """What the dLLM said in its last forward, at all positions."""
    tokens = torch.from_numpy(backend.calls[-1])
    last = slice(tokens.shape[1] - 6, None)
    said = ToyBackend().predict(tokens, torch.ones_like(tokens), last, statistics=STATISTICS, top_k=3)
    return {name: said.statistics[name].numpy() for name in STATISTICS} | {
        "confidence": said.confidence.numpy()
    }


@settings(deadline=None)
@given(data=st.data())
def test_what_each_view_shows(data):
    """All views of one episode: they differ where they say, and the episode goes on as if there were none."""
    options = {
        "block_length": data.draw(st.integers(1, 6), "block_length"),
        "on_empty": data.draw(st.sampled_from(["best", "noop"]), "on_empty"),
        "observe": (*STATISTICS, "tokens"),
        "top_k": 3,
    }
    views = [(revealed, view) for revealed in ("one", "model") for view in ("completion", "block")]
    envs = [toy(revealed_confidence=revealed, view=view, **options) for revealed, view in views]
    seed = data.draw(st.integers(0, 999), "seed")
    steps = [(*env.reset(seed=seed), False) for env in envs]
    while not steps[0][-1]:
        plain, info, _ = steps[0]
        said = predictions(envs[0].engine.backend)
        masked = plain["mask"] == 1
        block = np.arange(6) // options["block_length"]
        active = block == block[masked.argmax()]
        for (revealed, view), env, (observation, other, _) in zip(views, envs, steps, strict=True):
            assert observation in env.observation_space
            shown = np.ones(6, dtype=bool) if revealed == "model" else masked
            inside = active if view == "block" else np.ones(6, dtype=bool)
            for name, values in said.items():
                expected = np.broadcast_to(
                    np.array(WHERE_HIDDEN[name], dtype=np.float32), values[0].shape
                ).copy()
                expected[shown & inside] = values[0][shown & inside]
                assert observation[name].dtype == np.float32
                np.testing.assert_array_equal(observation[name], expected, err_msg=name)
            np.testing.assert_array_equal(observation["mask"], masked & inside)
            for name in ("tokens", "action_mask", "progress"):
                np.testing.assert_array_equal(observation[name], plain[name])
            assert list(other) == list(info)
        action = np.array(data.draw(st.lists(st.integers(0, 1), min_size=6, max_size=6)))
        results = [env.step(action) for env in envs]
        assert len({(reward, over) for _, reward, over, *_ in results}) == 1
        steps = [(observation, info, over) for observation, _, over, _, info in results]


def test_a_row_of_a_vector_sees_what_a_single_environment_sees():
    options = {"revealed_confidence": "model", "view": "block", "block_length": 3, "observe": STATISTICS}
    many, single = toy(3, **options), toy(**options)
    observations, _ = many.reset(seed=5)
    observation, _ = single.reset(seed=7)
    action = np.array([0, 1, 0, 0, 0, 0])
    for _ in range(2):
        for name, values in observation.items():
            np.testing.assert_array_equal(values, observations[name][2], err_msg=name)
        observations, *_ = many.step(np.tile(action, (3, 1)))
        observation, *_ = single.step(action)


def test_views_are_checked_and_described():
    with pytest.raises(ValueError, match="unknown revealed_confidence 'zero'; choose one of one, model"):
        toy(revealed_confidence="zero")
    with pytest.raises(ValueError, match="unknown view 'prompt'; choose one of completion, block"):
        toy(view="prompt")
    description = toy(2, revealed_confidence="model", view="block").engine.description()
    assert (description["revealed_confidence"], description["view"]) == ("model", "block")
