"""Every family that is claimed: tiny random checkpoints in its layout against independent forwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from family_checkpoints import CASES, LENGTH

from dllm_gym.backends import load_backend
from dllm_gym.backends.families import FAMILIES

PROMPTS = (
    "Sam has 20 coins, finds 4, triples them. Total?",
    "Sam has 7 coins. Total?",
    "Zoe wins 50. Total?",
)
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=list(CASES))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def case(name):
    return CASES[name]


@pytest.fixture(scope="module")
def checkpoint(name, case, tmp_path_factory):
    return case.write(tmp_path_factory.mktemp("families") / name)


@pytest.fixture(scope="module")
def reference(case, checkpoint):
    return case.reference(checkpoint)


@pytest.fixture(scope="module")
def backend(checkpoint):
    return load_backend(checkpoint)


def canvases(backend, count, seed=0):
    """Token lists: prompts of different lengths, then completions with masks in them."""
    rng = np.random.default_rng(seed)
    rows = []
    for at in range(count):
        completion = rng.integers(4, backend.vocab_size - 1, LENGTH)
        completion[rng.random(LENGTH) < 0.6] = backend.mask_token_id
        rows.append(backend.encode_prompt(PROMPTS[at % 3]) + completion.tolist())
    return rows


def left_padded(backend, rows, extra=0):
    width = max(map(len, rows)) + extra
    tokens = [[backend.pad_token_id] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(tokens), torch.tensor(mask)


def logits_of(backend, rows, extra=0):
    """All logits about the completions, ``(B, L, V)``: ``predict`` shows its softmax only."""
    seen = []
    hook = backend.model.get_output_embeddings().register_forward_hook(
        lambda module, arguments, output: seen.append(output)
    )
    try:
        backend.predict(*left_padded(backend, rows, extra), slice(-LENGTH, None))
    finally:
        hook.remove()
    return seen[0]


def test_every_family_that_is_claimed_is_tested_here_or_with_the_layouts():
    tested = {case.family for case in CASES.values()} | {"LLaDA", "Dream"}  # these: test_backends.py
    assert {family.name for family in FAMILIES} == tested
    assert all("parity" in family.verified for family in FAMILIES)


@pytest.mark.parametrize("extra", [0, 5], ids=["no further padding", "padded"])
@pytest.mark.parametrize("batch", [1, 4])
def test_logits_are_those_of_the_reference(case, backend, reference, batch, extra):
    assert backend.family.name == case.family
    assert backend.attention_block == case.attention_block
    rows = canvases(backend, batch)
    found = logits_of(backend, rows, extra)
    for at, row in enumerate(rows):
        expected = reference(row)[-LENGTH:]
        assert expected.std() > 0.5  # so that the tolerance says something
        torch.testing.assert_close(found[at], expected, atol=TOLERANCE, rtol=0)
