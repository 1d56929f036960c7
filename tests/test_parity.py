"""The published decoding loops, written down here from their description, against ours: token by token, in
the same order and the same number of forwards, on random weights in LLaDA's layout.

``benchmarks/peers`` does the same with the publishers' own files; its tests are in test_benchmarks.py.
"""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from dream_reference import write_dream_checkpoint
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from llada_reference import write_checkpoint

import dllm_gym
from dllm_gym.backends.transformers_backend import TransformersBackend
from dllm_gym.strategies import make_strategy

LENGTH = 12
SETTINGS = settings(max_examples=30, deadline=None)


@pytest.fixture(scope="module")
def backends(tmp_path_factory) -> list[Any]:
    folder = tmp_path_factory.mktemp("weights")
    return [
        TransformersBackend(write_checkpoint(folder / str(seed), seed), device="cpu") for seed in range(4)
    ]


@pytest.fixture(scope="module")
def dreams(tmp_path_factory) -> list[Any]:
    folder = tmp_path_factory.mktemp("dreams")
    return [
        TransformersBackend(write_dream_checkpoint(folder / str(seed), seed), device="cpu")
        for seed in range(4)
    ]


class Published:
    """What the loops share: one prompt, one canvas, a softmax in float64, every canvas remembered.

    ``closest`` is the smallest distance between two numbers that were compared: below it rounding decides.
    """

    def __init__(self, backend: Any, prompt: list[int]) -> None:
        self.backend, self.prompt = backend, prompt
        self.canvas = [backend.mask_token_id] * LENGTH
        self.canvases: list[list[int]] = []
        self.closest = np.inf

    def masked(self, end: int) -> list[int]:
        return [i for i in range(end) if self.canvas[i] == self.backend.mask_token_id]

    @torch.no_grad()
    def probabilities(self) -> torch.Tensor:
        self.canvases.append(list(self.canvas))
        logits = self.backend.model(torch.tensor([self.prompt + self.canvas])).logits[0].double()
        logits[:, self.backend.mask_token_id] = -torch.inf
        if self.backend.family.shift_logits:
            logits = torch.cat([logits[:1], logits[:-1]])
        return logits[-LENGTH:].softmax(-1)

    def forward(self) -> tuple[list[int], list[float]]:
        confidence, tokens = self.probabilities().max(-1)
        return tokens.tolist(), confidence.tolist()

    def write(self, tokens: list[int], chosen: list[int]) -> None:
        for i in chosen:
            self.canvas[i] = tokens[i]

    def compare(self, values: list[float]) -> None:
        gaps = np.diff(np.sort(values))
        self.closest = min([self.closest, *gaps])

    def end(self) -> list[list[int]]:
        assume(self.closest > 1e-5)
        return [*self.canvases, self.canvas]


def llada(loop: Published, block_length: int, steps: int, draws: np.random.Generator | None = None) -> Any:
    """LLaDA's ``generate``: a quota per step, the first ones larger by one where the division is uneven;
    what is masked left of the block's end competes; by confidence, or by draws (the smallest first, as ours).
    """
    base, larger = divmod(block_length, steps)
    for end in range(block_length, LENGTH + 1, block_length):
        for step in range(steps):
            tokens, confidence = loop.forward()
            cost = [-c for c in confidence] if draws is None else draws.random(LENGTH).tolist()
            candidates = loop.masked(end)
            loop.compare([cost[i] for i in candidates])
            quota = base + (step < larger)
            loop.write(tokens, sorted(candidates, key=cost.__getitem__)[:quota])
    return loop.end()


def fast_dllm(loop: Published, block_length: int, threshold: float) -> Any:
    """Fast-dLLM's ``generate``, with a threshold: what reaches it and always the best, block by block."""
    for end in range(block_length, LENGTH + 1, block_length):
        while candidates := loop.masked(end):
            tokens, confidence = loop.forward()
            loop.compare([confidence[i] for i in candidates] + [threshold])
            best = max(candidates, key=confidence.__getitem__)
            loop.write(tokens, [i for i in candidates if i == best or not confidence[i] < threshold])
    return loop.end()


def fast_dllm_factor(loop: Published, block_length: int, factor: float, released: bool) -> Any:
    """Fast-dLLM's ``generate`` with a factor, as released or as in the paper."""
    for end in range(block_length, LENGTH + 1, block_length):
        while candidates := loop.masked(end):
            tokens, confidence = loop.forward()
            order = sorted(candidates, key=lambda i: -confidence[i])
            bounds = [1 - factor / (n + 1) for n in range(1, len(order) + 1)]
            loop.compare([confidence[i] for i in order])
            for i, bound in zip(order, bounds, strict=True):
                loop.compare([confidence[i], bound])
            failing = [n for n, i in enumerate(order) if n > 0 and confidence[i] < bounds[n]]
            count = failing[0] if failing else len(order)
            if released and count == len(order) - 1:
                count += 1  # the loop leaves with the last index, failed or not
            loop.write(tokens, order[:count])
    return loop.end()


def dream(loop: Published, steps: int, eps: float, alg: str) -> Any:
    """Dream's ``diffusion_generate`` without ``alg_temp``: time falls evenly from 1 to eps, and a step from t
    to s reveals the share 1 - s / t of what is masked, rounded down, the last one the rest. No blocks.
    """
    times = torch.linspace(1, eps, steps + 1)
    for i in range(steps):
        p = loop.probabilities()
        best = p.topk(2, dim=-1).values
        score = {
            "maskgit_plus": best[:, 0],
            "topk_margin": best[:, 0] - best[:, 1],
            "entropy": (p * (p + 1e-10).log()).sum(-1),
        }[alg].tolist()
        candidates = loop.masked(LENGTH)
        loop.compare([score[j] for j in candidates])
        masked = torch.tensor(len(candidates)) / 1  # over the number of rows
        count = int(masked * (1 - times[i + 1] / times[i])) if i < steps - 1 else int(masked)
        loop.write(p.argmax(-1).tolist(), sorted(candidates, key=lambda j: -score[j])[:count])
    return [canvas for canvas, _ in itertools.groupby(loop.end())]  # a step that reveals nothing is no step


def ours(backend: Any, agent: Any, block_length: int, problem: int) -> list[list[int]]:
    """The canvases of our episode, before every step and at its end."""
    env = gym.make(
        dllm_gym.ENV_ID, backend=backend, completion_length=LENGTH, block_length=block_length,
        observe=("tokens", *agent.requires), disable_env_checker=True,
    )  # fmt: skip
    observation, _ = env.reset(options={"problem": problem})
    canvases, terminated = [observation["tokens"].tolist()], False
    while not terminated:
        observation, _, terminated, _, _ = env.step(agent.act(observation))
        canvases.append(observation["tokens"].tolist())
    return canvases


def prompt_of(backend: Any, problem: int) -> list[int]:
    return backend.encode_prompt(dllm_gym.load_task("arithmetic", split="train").problem(problem).prompt)


situations = given(
    weights=st.integers(0, 3),
    problem=st.integers(0, 1000),
    block_length=st.sampled_from([1, 2, 3, 4, 6, 12]),
    data=st.data(),
)


@SETTINGS
@situations
def test_confidence_with_a_schedule_is_lladas_loop(backends, weights, problem, block_length, data):
    backend = backends[weights]
    steps = data.draw(st.integers(1, block_length), label="steps per block")
    theirs = llada(Published(backend, prompt_of(backend, problem)), block_length, steps)
    agent = make_strategy("confidence", steps_per_block=steps)
    assert ours(backend, agent, block_length, problem) == theirs


@SETTINGS
@situations
def test_k_at_a_time_is_lladas_loop_where_it_divides_the_block(
    backends, weights, problem, block_length, data
):
    backend = backends[weights]
    k = data.draw(st.sampled_from([k for k in (1, 2, 3, 4, 6, 12) if block_length % k == 0]), label="k")
    theirs = llada(Published(backend, prompt_of(backend, problem)), block_length, block_length // k)
    assert ours(backend, make_strategy("confidence", k=k), block_length, problem) == theirs


@SETTINGS
@situations
def test_random_with_the_same_draws_is_lladas_loop(backends, weights, problem, block_length, data):
    backend = backends[weights]
    steps = data.draw(st.integers(1, block_length), label="steps per block")
    loop = Published(backend, prompt_of(backend, problem))
    theirs = llada(loop, block_length, steps, np.random.default_rng(problem))
    agent: Any = make_strategy("random", steps_per_block=steps)
    agent.seed([0], [problem])
    assert ours(backend, agent, block_length, problem) == theirs


@SETTINGS
@situations
def test_threshold_is_fast_dllms_loop(backends, weights, problem, block_length, data):
    backend = backends[weights]
    threshold = data.draw(st.floats(0, 1), label="threshold")
    theirs = fast_dllm(Published(backend, prompt_of(backend, problem)), block_length, threshold)
    assert ours(backend, make_strategy("fast-dllm", threshold=threshold), block_length, problem) == theirs


@SETTINGS
@situations
@pytest.mark.parametrize("released", [True, False])
def test_factor_is_fast_dllms_loop(backends, weights, problem, block_length, data, released):
    backend = backends[weights]
    factor = data.draw(st.floats(0.05, 8), label="factor")
    loop = Published(backend, prompt_of(backend, problem))
    theirs = fast_dllm_factor(loop, block_length, factor, released)
    agent = make_strategy("fast-dllm-factor-released" if released else "fast-dllm-factor", factor=factor)
    assert ours(backend, agent, block_length, problem) == theirs


ALGS = {"maskgit_plus": "confidence", "topk_margin": "margin", "entropy": "entropy"}


@SETTINGS
@given(weights=st.integers(0, 3), problem=st.integers(0, 1000), data=st.data())
@pytest.mark.parametrize("alg", ALGS)
def test_dreams_schedule_is_dreams_loop(dreams, weights, problem, data, alg):
    backend = dreams[weights]
    steps = data.draw(st.integers(1, 2 * LENGTH), label="steps")
    eps = data.draw(st.sampled_from([1e-3, 1e-5, 0.1, 1.0]), label="eps")
    theirs = dream(Published(backend, prompt_of(backend, problem)), steps, eps, alg)
    assert ours(backend, make_strategy(ALGS[alg], dream_steps=steps, eps=eps), LENGTH, problem) == theirs


@settings(max_examples=80)
@given(st.integers(1, 512), st.integers(1, 600), st.sampled_from([1e-3, 1e-5, 1e-2, 0.5]))
@example(64, 64, 1e-3)
@example(256, 128, 1e-3)
@example(4, 10, 1e-3)
def test_dreams_schedule_counts_as_dreams_loop_does(length, steps, eps):
    """Where rounding decides, too: of float32, in which the published loop computes."""
    times, left, expected = torch.linspace(1, eps, steps + 1), length, []
    for i in range(steps):
        number = torch.tensor(left) / 1
        count = int(number * (1 - times[i + 1] / times[i])) if i < steps - 1 else int(number)
        left -= count
        expected += [count] if count else []
    agent, mask, found = make_strategy("left-to-right", dream_steps=steps, eps=eps), np.ones((1, length)), []
    while mask.any():
        progress = np.array([[len(found) / length]], dtype=np.float32)
        action = agent.act({"action_mask": mask, "progress": progress})
        found.append(int(action.sum()))
        mask = mask - action
    assert found == expected
