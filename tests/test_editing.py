"""The rule of LLaDA2.1 in the environment, against its loop, written down from what the released one does."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_backend import MASK, ToyBackend, ToyTask

from dllm_gym.envs.unmask import UnmaskEnv
from dllm_gym.evaluation import evaluate
from dllm_gym.strategies import make_strategy

LENGTH = 6


class InBlocks(ToyBackend):
    """Says that it attends in blocks which are counted from the first token of the prompt, as LLaDA2 does."""

    blocks_from = "sequence"

    def __init__(self, block):
        super().__init__()
        self.attention_block = block


def loop(backend, prompt, first, block, threshold, edit, post):
    """The tokens it ends with, its forwards, and how many blocks ended because their looks were used up.

    The prompt has its part in a block that begins at ``first``, before its end.
    """
    x = [*prompt, *[MASK] * LENGTH]
    forwards = unsettled = 0
    for start in range(first, len(x), block):
        places = range(max(start, len(prompt)), min(start + block, len(x)))
        looks = 0
        while True:
            masked = [p for p in places if x[p] == MASK]
            looks += not masked
            if looks > post:
                unsettled += 1
                break
            said = backend.predict(
                torch.tensor([x]), torch.ones(1, len(x), dtype=torch.int64), slice(len(prompt), None)
            )
            forwards += 1
            token = dict(zip(range(len(prompt), len(x)), said.tokens[0].tolist(), strict=True))
            sure = dict(zip(token, said.confidence[0].tolist(), strict=True))
            reveal = [p for p in masked if sure[p] > threshold]
            if masked and not reveal:
                reveal = [max(masked, key=lambda p: (sure[p], -p))]
            edits = [p for p in places if p not in masked and sure[p] > edit and token[p] != x[p]]
            for p in (*reveal, *edits):
                x[p] = token[p]
            if not masked and not edits:
                break
    return x[len(prompt) :], forwards, unsettled


@settings(max_examples=80)
@given(
    problem=st.integers(0, 49),
    block=st.sampled_from([1, 2, 3, 6]),
    threshold=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    edit=st.sampled_from([0.0, 0.5, 0.75, 0.9, 1.0]),
    post=st.integers(1, 5),
    from_prompt=st.booleans(),
)
def test_it_decodes_as_the_released_loop(problem, block, threshold, edit, post, from_prompt):
    backend = InBlocks(block) if from_prompt else ToyBackend()
    rule = make_strategy("joint-threshold", threshold=threshold, edit=edit, post=post)
    env = UnmaskEnv(
        backend, task=ToyTask(), block_length=block, max_steps=500, observe=rule.requires, **rule.plays
    )
    observation, info = env.reset(options={"problem": problem})
    over = False
    while not over:
        observation, _, over, _, told = env.step(rule.act(observation))
    prompt = backend.encode_prompt(info["prompt"])
    first = len(prompt) // block * block if from_prompt else len(prompt)
    tokens, forwards, unsettled = loop(ToyBackend(), prompt, first, block, threshold, edit, post)
    assert observation["tokens"].tolist() == tokens
    assert told["nfe"] == forwards + unsettled  # one more look, in which all stands


def test_without_edits_it_is_the_threshold_rule_and_a_look_at_every_block():
    where = {"backend": ToyBackend(), "task": ToyTask("test"), "block_length": 2, "max_steps": 20}
    plain = evaluate("fast-dllm:threshold=0.7", 20, **where).records
    looking = evaluate("joint-threshold:threshold=0.7,edit=1", 20, **where).records
    assert looking.completion == plain.completion
    np.testing.assert_array_equal(looking.nfe, plain.nfe + 3)
    assert (looking.metrics["remasks"] == 0).all()


def test_it_asks_for_rules_under_which_it_can_replace():
    result = evaluate("joint-threshold:threshold=0.3,edit=0", 2, task="lists", max_steps=60)
    assert {"actions": "edit", "finish": "confirm"}.items() <= result.environment.items()
    assert "[MASK]" not in "".join(result.records.completion)
