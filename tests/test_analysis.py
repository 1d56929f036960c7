"""How a policy decodes: the measures against their definitions, recordings against an independent loop."""

from __future__ import annotations

import json
import math
import zipfile
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from toy_backend import EOS, MASK, ScriptedBackend, ToyBackend, ToyTask

import dllm_gym
from dllm_gym.envs.canvas import block_numbers
from dllm_gym.envs.unmask import UnmaskEnv
from dllm_gym.evaluation import Recording, analyze, evaluate, order, profile
from dllm_gym.evaluation.statistics import reliability, separation, wilson_interval
from dllm_gym.strategies import make_strategy

K = 8


# Reveal order: the definitions ------------------------------------------------------------------------------


def single_reveals(steps):
    """p_1, ..., p_T: the reveals one after another, those of a step from left to right."""
    return [p for step in range(1, max(steps) + 1) for p, s in enumerate(steps) if s == step]


def slow_local(steps, k):
    p = single_reveals(steps)
    hits = [all(p[t - i] == p[t] - i for i in range(1, k + 1)) for t in range(k, len(p))]
    return np.mean(hits) if hits else math.nan


def slow_global(steps, k):
    masks, hits = set(range(len(steps))), []
    for p in single_reveals(steps):
        hits.append(p in sorted(masks)[:k])
        masks.remove(p)
    return np.mean(hits) if hits else math.nan


def slow_neighbours(steps):
    pairs = [(a, b) for a, b in pairwise(steps) if a and b]
    if not pairs:
        return [math.nan] * 3
    return [
        np.mean([a < b for a, b in pairs]),
        np.mean([a == b for a, b in pairs]),
        np.mean([a > b for a, b in pairs]),
    ]


def slow_adjacent(steps):
    hits = []
    for p, step in enumerate(steps):
        if step:
            before = [-1, *(q for q, s in enumerate(steps) if 0 < s < step)]  # the prompt ends at -1
            hits.append(p - 1 in before or p + 1 in before)
    return np.mean(hits) if hits else math.nan


completions = st.integers(1, 12).flatmap(
    lambda length: st.lists(
        st.lists(st.integers(0, 6), min_size=length, max_size=length), min_size=1, max_size=4
    )
)


@settings(max_examples=300)
@given(completions)
def test_every_measure_is_its_definition(rows):
    steps = np.array(rows)
    local, global_ = order.local_ar_ness(steps, K), order.global_ar_ness(steps, K)
    for k in range(1, K + 1):
        assert np.allclose(local[:, k - 1], [slow_local(row, k) for row in rows], equal_nan=True)
        assert np.allclose(global_[:, k - 1], [slow_global(row, k) for row in rows], equal_nan=True)
    neighbours = [slow_neighbours(row) for row in rows]
    assert np.allclose(order.neighbour_order(steps), neighbours, equal_nan=True)
    assert np.allclose(order.adjacent_share(steps), [slow_adjacent(row) for row in rows], equal_nan=True)


@given(completions, st.data())
def test_steps_are_counted_block_by_block(rows, data):
    length = len(rows[0])
    size = data.draw(st.integers(1, length))
    offsets = data.draw(st.lists(st.integers(0, size - 1), min_size=len(rows), max_size=len(rows)))
    block = block_numbers(length, size, np.array(offsets))
    counted = order.steps_per_block(np.array(rows), block)
    for row, offset, counts in zip(rows, offsets, counted, strict=True):
        starts = [0, *range(size - offset, length, size)]
        blocks = [row[a:b] for a, b in pairwise([*starts, length])]
        expected = [len(set(cells) - {0}) for cells in blocks]
        assert counts[: len(expected)].tolist() == expected
        assert np.isnan(counts[len(expected) :]).all()


@given(completions)
def test_local_falls_and_global_rises_with_k(rows):
    local = order.local_ar_ness(np.array(rows), K)
    global_ = order.global_ar_ness(np.array(rows), K)
    for values in local, -global_:
        known = ~np.isnan(values[:, 1:])
        assert (np.diff(values)[known] <= 1e-12).all()


@given(st.permutations(range(9)), st.integers(1, 8))
def test_one_reveal_per_step_is_the_papers_definition(p, k):
    """DiffuCoder's appendix A.2, for the order p of an L = 9 completion."""
    steps = np.argsort(p)[None] + 1
    span = [set(p[t - k : t]) == {p[t] - i for i in range(1, k + 1)} for t in range(k, 9)]
    ascending = [list(p[t - k : t + 1]) == sorted(p[t - k : t + 1]) for t in range(k, 9)]
    expected = np.mean([a and b for a, b in zip(span, ascending, strict=True)])
    assert order.local_ar_ness(steps, k)[0, k - 1] == pytest.approx(expected)
    masks = [sorted(p[t:]) for t in range(9)]
    first = [p[t] in masks[t][:k] for t in range(9)]
    assert order.global_ar_ness(steps, k)[0, k - 1] == pytest.approx(np.mean(first))


@given(st.lists(st.integers(1, 7), min_size=2, max_size=6))
def test_left_to_right_scores_one_for_any_number_of_tokens_per_step(sizes):
    steps = np.repeat(np.arange(1, len(sizes) + 1), sizes)[None]
    k = min(K, steps.shape[1] - 1)
    assert (order.local_ar_ness(steps, K)[0, :k] == 1).all()
    assert (order.global_ar_ness(steps, K) == 1).all()
    left, together, right = order.neighbour_order(steps)[0]
    assert (left, right) == (pytest.approx((len(sizes) - 1) / (sum(sizes) - 1)), 0)
    assert left + together == pytest.approx(1)


def test_other_orders_by_hand():
    backwards = np.arange(6, 0, -1)[None]
    assert not order.local_ar_ness(backwards, 5).any()
    assert order.global_ar_ness(backwards, 6)[0] == pytest.approx(np.arange(1, 7) / 6)
    assert order.neighbour_order(backwards).tolist() == [[0, 0, 1]]
    # positions 3 and 4, then 0 and 5: read as 3, 4, 0, 5
    steps = np.array([[2, 0, 0, 1, 1, 2]])
    assert order.local_ar_ness(steps, 4)[0] == pytest.approx([1 / 3, 0, 0, math.nan], nan_ok=True)
    assert order.global_ar_ness(steps, 4)[0] == pytest.approx([1 / 4, 1 / 4, 2 / 4, 1])
    assert order.adjacent_share(steps)[0] == 0.5  # 0 follows the prompt, 5 follows 4
    assert order.steps_per_block(steps, np.arange(6)[None] // 3).tolist() == [[1, 2]]


def test_everything_at_once_is_told_from_left_to_right():
    steps = np.ones((1, 6), dtype=int)
    assert order.local_ar_ness(steps, 1)[0, 0] == order.global_ar_ness(steps, 1)[0, 0] == 1
    assert order.neighbour_order(steps).tolist() == [[0, 1, 0]]
    assert order.adjacent_share(steps)[0] == pytest.approx(1 / 6)


# Recordings -------------------------------------------------------------------------------------------------

TOY = {"backend": ToyBackend(), "task": ToyTask("test")}


def step_by_step(agent, problem, observe, **kwargs):
    """One episode through the public environment, written down as it goes by."""
    env = UnmaskEnv(**TOY, observe=(*observe, "tokens"), **kwargs)
    observation, _ = env.reset(seed=0, options={"problem": problem})
    steps, confidence = np.zeros(6, dtype=int), np.full(6, np.nan, dtype=np.float32)
    for step in range(1, 7):
        after, _, terminated, _, info = env.step(agent(observation))
        new = (observation["mask"] == 1) & (after["mask"] == 0)
        steps[new], confidence[new] = step, observation["confidence"][new]
        observation = after
        if terminated:
            return steps, confidence, observation["tokens"], info
    raise AssertionError


def every_other(observation):
    """Reveals what is most certain in every other step, and nothing in between."""
    observation = {key: np.atleast_2d(value) for key, value in observation.items()}
    action = make_strategy("confidence", k=2).act(observation)
    odd = np.round(observation["progress"][:, 0] * 6) % 2 == 1
    return (action & ~odd[:, None]).squeeze()


@pytest.mark.parametrize(
    ("agent", "kwargs"),
    [
        (make_strategy("confidence", k=2).act, {}),
        (make_strategy("margin", k=1).act, {"block_length": 4}),
        (make_strategy("fast-dllm", threshold=0.6).act, {"block_length": 3, "view": "block"}),
        (make_strategy("left-to-right", k=1).act, {"stop_at_eos": True, "revealed_confidence": "model"}),
        (every_other, {"on_empty": "noop"}),
    ],
)
def test_a_recording_is_what_the_environment_did(agent, kwargs):
    def batched(observation):
        return np.atleast_2d(agent(observation))

    kwargs = {"observe": ("margin",), **kwargs}
    result = evaluate(batched, 9, batch_size=4, record=True, **TOY, **kwargs)
    recording = result.recording
    assert recording.episodes == 9
    for n in range(9):
        steps, confidence, tokens, info = step_by_step(agent, n, **kwargs)
        assert recording.reveal_step[n].tolist() == steps.tolist()
        assert np.array_equal(recording.confidence[n], confidence, equal_nan=True)
        assert recording.tokens[n].tolist() == tokens.tolist()
        assert (recording.steps[n], recording.score[n]) == (info["nfe"], info["score"])
        ends = [at for at, token in enumerate(tokens) if token == EOS]
        assert recording.text_length[n] == (ends[0] if ends else 6)
    assert recording.problem.tolist() == list(range(9))
    assert recording.block_length == kwargs.get("block_length", 6)
    assert recording.label == result.label
    assert recording.environment == result.environment
    unrecorded = evaluate(batched, 9, batch_size=4, **TOY, **kwargs)
    assert unrecorded.recording is None
    assert unrecorded.to_json() == result.to_json()


def test_a_recording_of_several_block_lengths(tmp_path):
    where = {"backend": ToyBackend(), "task": ToyTask("test")}
    result = evaluate("left-to-right:k=1", 12, record=True, batch_size=5, block_length=(2, 6), **where)
    recording = result.recording
    assert set(recording.block_length.tolist()) == {2, 6}
    again = evaluate("random:k=2", 12, record=True, batch_size=12, block_length=(2, 6), **where).recording
    assert again.block_length.tolist() == recording.block_length.tolist()
    first_steps = (again.reveal_step == 1) @ np.arange(6)
    assert (first_steps[again.block_length == 2] <= 1).all()
    assert (first_steps[again.block_length == 6] > 1).any()
    assert_same_recording(Recording.load(recording.save(tmp_path / "several.npz")), recording)
    assert profile(recording).block_length == (2, 6)
    there = np.where(recording.block_length == 2, 3, 1)  # blocks
    assert profile(recording).steps_per_block[0] == pytest.approx(np.mean(6 / there))
    assert profile(recording).steps_per_block[1:] == pytest.approx([2, 2])


def test_blocks_may_be_counted_from_the_prompt():
    class InBlocks(ToyBackend):
        attention_block, blocks_from = 4, "sequence"

    result = evaluate("left-to-right:k=1", 9, backend=InBlocks(), task=ToyTask("test"), record=True)
    recording = result.recording
    before = [len(prompt_of(problem)) % 4 for problem in recording.problem]
    assert recording.block_offset.tolist() == before
    assert len(set(before)) > 1
    one_per_step = [[min(4 - b, 6), min(6 - (4 - b), 4), 6 - (4 - b) - 4] for b in before]
    there = [[count for count in counts if count > 0] for counts in one_per_step]
    expected = [np.mean([c[at] for c in there if len(c) > at]) for at in range(max(map(len, there)))]
    made = profile(recording)
    assert made.steps_per_block == pytest.approx(expected)
    assert made.block_starts.tolist() == []  # no two prompts agree
    assert profile(some_recording(block_length=2, block_offset=[1, 1])).block_starts.tolist() == [1]


def prompt_of(problem):
    return ToyTask("test").problem(int(problem)).prompt


def some_recording(**changes):
    """Two episodes of three positions, the second cut short."""
    content = {
        "label": "mine",
        "reveal_step": [[1, 2, 1], [0, 2, 0]],
        "confidence": [[0.9, 0.5, 1.0], [np.nan, 0.25, np.nan]],
        "steps": [2, 3],
        "score": [1.0, 0.5],
        "problem": [4, 9],
        "block_length": 3,
    }
    return Recording(**{**content, **changes})


def assert_same_recording(one, other):
    assert (one.label, one.environment) == (other.label, other.environment)
    assert np.array_equal(one.block_length, other.block_length)
    for name in Recording._DTYPES:
        left, right = getattr(one, name), getattr(other, name)
        assert (left is None) == (right is None)
        if left is not None:
            assert left.dtype == right.dtype
            assert np.array_equal(left, right, equal_nan=left.dtype.kind == "f")


def test_a_recording_comes_back_as_it_was(tmp_path):
    decoded = evaluate("random:k=2", 7, check_consistency=True, block_length=4, **TOY).recording
    plain = some_recording(label="naïve ✓", environment={"from": "LLaDA-8B", "shots": [1, None]})
    for recording in decoded, plain:
        path = recording.save(tmp_path / "deep" / "episodes.npz")
        assert_same_recording(Recording.load(path), recording)
    assert (tmp_path / "named").exists() is False
    assert plain.save(tmp_path / "named") == tmp_path / "named"  # numpy would have appended .npz


def test_a_file_that_is_no_recording_is_refused_and_never_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    plain = tmp_path / "plain.npz"
    some_recording().save(plain)
    with np.load(plain) as file:
        content = dict(file)
    np.savez(tmp_path / "bomb.npz", **{**content, "steps": np.array([Bomb(), Bomb()], dtype=object)})
    np.savez(tmp_path / "part.npz", **{key: value for key, value in content.items() if key != "score"})
    np.savez(tmp_path / "wrong.npz", **{**content, "steps": np.array([1, 1])})
    np.savez(tmp_path / "text.npz", **{**content, "environment": "{"})
    (tmp_path / "text").write_text("no archive")
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("steps.npy", "not an array")
    for name in ("bomb.npz", "part.npz", "wrong.npz", "text.npz", "text", "other.npz"):
        with pytest.raises(ValueError, match="holds no recording of episodes"):
            Recording.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        Recording.load(tmp_path / "nowhere.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reveal_step": [1, 2, 1]}, r"reveal_step must have the shape \(episodes, positions\).*got \(3,\)"),
        ({"reveal_step": np.zeros((0, 3))}, r"both at least 1, got \(0, 3\)"),
        ({"confidence": [[0.9, 0.5, 1.0]]}, r"confidence must have the shape \(2, 3\), got \(1, 3\)"),
        ({"score": [[1.0, 0.5]]}, r"score must have the shape \(2,\), got \(1, 2\)"),
        ({"kept": [True, False]}, r"kept must have the shape \(2, 3\), got \(2,\)"),
        ({"block_length": 4}, "block_length must be 1 to 3, got 4"),
        ({"block_length": [1, 2, 3]}, "block_length must be a whole number or 2 of them"),
        ({"block_length": "3"}, "block_length must be a whole number or 2 of them"),
        ({"block_length": [3, 1], "block_offset": [1, 1]}, "block_offset must be 0 to 2"),
        ({"steps": [1, 3]}, "reveal_step must be 0"),
        ({"reveal_step": [[1, -1, 1], [0, 2, 0]]}, "reveal_step must be 0"),
        ({"steps": [2, 0], "reveal_step": [[1, 2, 1], [0, 0, 0]]}, "steps must be at least 1, got 0"),
        (
            {"confidence": [[0.9, np.nan, 1.0], [0, 0.25, 0]]},
            "confidence must be 0 to 1 at every position re",
        ),
        ({"confidence": [[0.9, 1.5, 1.0], [0, 0.25, 0]]}, "confidence must be 0 to 1"),
        ({"score": [2.0, 0.5]}, "score must be 0 to 1"),
        ({"block_offset": [0, 3]}, "block_offset must be 0 to 2"),
        ({"text_length": [4, 0]}, "text_length must be 0 to 3"),
    ],
)
def test_impossible_recordings_speak(changes, message):
    with pytest.raises(ValueError, match=message):
        some_recording(**changes)


def test_the_text_alone():
    recording = some_recording(text_length=[2, 1])
    text = recording.text_only()
    assert text.reveal_step.tolist() == [[1, 2, 0], [0, 0, 0]]
    assert text.steps.tolist() == [2, 3]
    assert recording.reveal_step.tolist() == [[1, 2, 1], [0, 2, 0]]
    with pytest.raises(ValueError, match="'mine' was recorded without text_length"):
        some_recording().text_only()


# Self-consistency -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_a_token_is_kept_if_the_dllm_would_write_it_again(batch_size):
    backend, task = ToyBackend(), ToyTask("test")
    recording = evaluate(
        "confidence:k=3", 8, backend=backend, task=task, check_consistency=True, batch_size=batch_size,
        stop_at_eos=True,
    ).recording  # fmt: skip
    expected = np.zeros((8, 6), dtype=bool)
    for n in range(8):
        prompt = backend.encode_prompt(task.problem(n).prompt)
        for at in np.flatnonzero(recording.reveal_step[n]):
            completion = recording.tokens[n].copy()
            completion[at] = MASK
            tokens = torch.tensor([[*prompt, *completion.tolist()]])
            written = backend.predict(tokens, torch.ones_like(tokens), slice(len(prompt), None)).tokens[0, at]
            expected[n, at] = written == recording.tokens[n, at]
    assert 0 < expected.sum() < recording.revealed.sum()  # the toy dLLM writes by its whole context
    assert recording.kept.tolist() == expected.tolist()


def test_a_dllm_that_minds_no_context_keeps_everything():
    recording = evaluate(
        "random:k=2", 3, backend=ScriptedBackend([4, 0, 1, EOS, 0, 0][:6]), task=ToyTask(), split="train",
        check_consistency=True, batch_size=6,
    ).recording  # fmt: skip
    assert recording.kept.all()


# Profiles ---------------------------------------------------------------------------------------------------


def test_a_profile_by_hand():
    made = profile(
        Recording(
            label="mine",
            reveal_step=[[1, 1, 3, 4], [2, 1, 2, 0]],
            confidence=[[0.95, 0.75, 0.55, 0.45], [0.85, 1.0, 0.65, 0.0]],
            steps=[4, 2],
            score=[1.0, 0.5],
            problem=[0, 1],
            block_length=2,
            kept=[[True, True, False, True], [False, True, False, False]],
        )
    )
    assert (made.episodes, made.length, made.accuracy, made.steps_mean) == (2, 4, 0.5, 3.0)
    assert made.accuracy_ci95 == wilson_interval(1, 2)
    assert made.reveals_per_step == pytest.approx(7 / 6)
    assert made.local_ar_ness[:3] == pytest.approx([1 / 2, 1 / 2, 1.0])  # 1, 1, 1 and 0, 0, none
    assert made.global_ar_ness[:3] == pytest.approx([(1 + 2 / 3) / 2, 1, 1])
    assert (made.left_first, made.same_step, made.right_first) == pytest.approx(
        ((2 / 3 + 1 / 2) / 2, 1 / 6, 1 / 4)
    )
    assert made.adjacent_share == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert made.steps_per_block.tolist() == [1.5, 1.5]
    assert made.running_at_step.tolist() == [2, 2, 1, 1]
    assert made.reveals_at_step.tolist() == [1.5, 1.0, 1.0, 1.0]
    assert made.confidence_at_step == pytest.approx([2.7 / 3, 0.75, 0.55, 0.45])
    assert made.confidence_at_position == pytest.approx([0.9, 0.875, 0.6, 0.45])
    assert made.reveals.tolist() == [[1, 2, 0, 0], [1, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert made.confidence_mean == pytest.approx(5.2 / 7)
    surprise = [-math.log(0.85 * 1.0 * 0.65), -math.log(0.95 * 0.75 * 0.55 * 0.45)]
    assert made.success_by_surprise.value == pytest.approx(surprise)
    assert made.success_by_surprise.share == (0, 1)
    assert made.success_separation == 0.0  # the only success surprised more
    assert made.kept == pytest.approx(4 / 7)
    assert made.kept_at_step == pytest.approx([1, 0, 0, 1])
    assert made.kept_at_position == pytest.approx([1 / 2, 1, 0, 1])
    assert made.kept_by_confidence.count == (1, 1, 1, 1, 1, 2)  # 0.45, ..., 0.85, and 0.95 with 1.0
    assert made.kept_by_confidence.share == (1, 0, 0, 1, 0, 1)
    assert made.success_by_changes.value == (1, 2)
    assert made.success_by_changes.share == (1, 0)


def test_what_is_not_known_is_null():
    row = profile(some_recording(score=[np.nan, 1.0])).to_json()
    json.dumps(row, allow_nan=False)
    for name in ("accuracy", "success_by_surprise", "success_separation", "kept", "kept_by_confidence"):
        assert row[name] is None
    assert row["accuracy_ci95"] == [None, None]
    assert row["confidence_at_position"][1] == pytest.approx(0.375)
    assert row["local_ar_ness"] == [0, 0, *[None] * 6]  # the second episode has one reveal
    nothing = profile(some_recording(reveal_step=np.zeros((2, 3)), kept=np.zeros((2, 3)))).to_json()
    json.dumps(nothing, allow_nan=False)
    assert nothing["kept"] is nothing["local_ar_ness"][0] is nothing["confidence_mean"] is None
    assert nothing["confidence_at_step"] == [None] * 3


@settings(max_examples=60)
@given(st.data())
def test_a_profile_accounts_for_every_reveal(data):
    episodes, length = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 9))
    cell = st.integers(0, 5)
    steps = np.array(data.draw(st.lists(cell, min_size=episodes * length, max_size=episodes * length)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    recording = Recording(
        label="drawn",
        reveal_step=steps.reshape(episodes, length),
        confidence=rng.random((episodes, length)),
        steps=steps.reshape(episodes, length).max(axis=1) + 1,
        score=rng.integers(0, 2, episodes),
        problem=np.arange(episodes),
        block_length=data.draw(st.integers(1, length)),
        kept=rng.random((episodes, length)) < 0.5,
    )
    made = profile(recording)
    total = int((steps > 0).sum())
    assert made.reveals.sum() == total
    assert (made.reveals_at_step * made.running_at_step).sum() == pytest.approx(total)
    assert made.reveals_per_step * recording.steps.sum() == pytest.approx(total)
    if total:
        at_step, at_position = made.reveals.sum(axis=1), made.reveals.sum(axis=0)
        for mean, curve in [(made.confidence_mean, "confidence"), (made.kept, "kept")]:
            for counts, values in [
                (at_step, getattr(made, f"{curve}_at_step")),
                (at_position, getattr(made, f"{curve}_at_position")),
            ]:
                assert (np.isnan(values) == (counts == 0)).all()
                assert np.nansum(values * counts) / total == pytest.approx(mean)
        assert sum(made.kept_by_confidence.count) == total
    assert sum(made.success_by_surprise.count) == sum(made.success_by_changes.count) == episodes
    sizes = made.success_by_surprise.count
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == min(5, episodes)


# Calibration ------------------------------------------------------------------------------------------------


def test_reliability_by_hand():
    made = reliability(
        np.array([0.1, 0.9, 0.3, 0.8]), np.array([False, True, True, True]), np.array([0, 7, 0, 7])
    )
    assert made.value == pytest.approx((0.2, 0.85))
    assert made.share == (0.5, 1.0)
    assert made.interval == (wilson_interval(1, 2), wilson_interval(2, 2))
    assert made.count == (2, 2)
    assert made.calibration_error == pytest.approx((0.3 + 0.15) / 2)


def test_honest_confidence_has_no_calibration_error():
    rng = np.random.default_rng(0)
    confidence = rng.random((200, 50))
    arguments = {
        "label": "x", "reveal_step": np.ones((200, 50)), "confidence": confidence, "steps": np.ones(200),
        "score": np.ones(200), "problem": np.arange(200), "block_length": 50,
    }  # fmt: skip
    honest = profile(Recording(**arguments, kept=rng.random((200, 50)) < confidence)).to_json()
    boastful = profile(Recording(**arguments, kept=rng.random((200, 50)) < confidence**3)).to_json()
    assert honest["calibration_error"] < 0.03
    assert boastful["calibration_error"] == pytest.approx(1 / 2 - 1 / 4, abs=0.03)


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=20))
def test_separation_is_the_share_of_pairs_in_the_right_order(cases):
    values, true = np.array([v for v, _ in cases], dtype=float), np.array([t for _, t in cases])
    pairs = [(a > b) + (a == b) / 2 for a, t in cases if t for b, u in cases if not u]
    expected = np.mean(pairs) if pairs else math.nan
    assert separation(values, true) == pytest.approx(expected, nan_ok=True)


# Analyses and pictures --------------------------------------------------------------------------------------


def test_agents_and_recordings_are_analyzed_side_by_side(tmp_path):
    seen = []
    analysis = dllm_gym.analyze(
        ["left-to-right:k=2", make_strategy("confidence", k=3), some_recording()],
        6, block_length=6, seed=3, on_result=seen.append, **TOY,
    )  # fmt: skip
    labels = ["left-to-right(k=2)", "confidence(k=3)", "mine"]
    assert [made.label for made in analysis.profiles] == [made.label for made in seen] == labels
    result = evaluate("left-to-right:k=2", 6, block_length=6, seed=3, **TOY)
    assert analysis.profiles[0].accuracy == result.accuracy
    assert (analysis.profiles[0].steps_mean, analysis.profiles[1].steps_mean) == (3, 2)
    assert analysis.profiles[0].local_ar_ness[:5].tolist() == [1.0] * 5
    rows = json.loads(json.dumps(analysis.to_json(), allow_nan=False))
    assert rows[0]["environment"] == result.environment
    assert rows[2]["environment"] == {}
    for recording, row in zip(analysis.recordings, rows, strict=True):
        loaded = Recording.load(recording.save(tmp_path / "one.npz"))
        assert analyze([loaded]).to_json() == [row]


def test_an_analysis_of_the_text_keeps_the_whole_recording():
    whole = analyze(["confidence:k=1"], 20, **TOY)
    text = analyze(["confidence:k=1"], 20, text_only=True, **TOY)
    assert_same_recording(text.recordings[0], whole.recordings[0])
    lengths = whole.recordings[0].text_length
    assert whole.profiles[0].reveals.sum() == 20 * 6 > text.profiles[0].reveals.sum() == lengths.sum()


def test_nothing_to_analyze_is_told_so():
    with pytest.raises(ValueError, match="nothing to analyze: give at least one agent or recording"):
        analyze([])


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]


@pytest.mark.parametrize(("length", "agents"), [(1, 1), (256, 5)])
def test_the_page_has_a_panel_for_every_question_there_is_data_for(tmp_path, length, agents):
    rng = np.random.default_rng(length)
    made = []
    for n in range(agents):
        steps = rng.integers(0, 1 + length // (1 + n % 2), (12, length))
        made.append(
            Recording(
                label=f"agent {n} " + "with a long name " * (n % 3),
                reveal_step=steps,
                confidence=rng.random((12, length)),
                steps=np.full(12, length),
                score=np.full(12, np.nan) if agents == 1 else rng.integers(0, 2, 12),
                problem=np.arange(12),
                block_length=length if agents == 1 else length // 2,
                kept=None if agents == 1 else rng.random((12, length)) < 0.7,
            )
        )
    analysis = analyze(made)
    figure = analysis.plot(tmp_path / "page.png")
    always = 6
    assert len(titles(figure)) == (always if agents == 1 else always + 6)
    assert all(axes.get_xlabel() for axes in figure.axes if axes.get_title(loc="left"))
    heat_maps = [axes for axes in figure.axes if axes.images]
    assert len(heat_maps) == agents
    for axes, recording in zip(heat_maps, made, strict=True):
        image = np.asarray(axes.images[0].get_array())
        assert image.sum() * 12 == pytest.approx(recording.revealed.sum())  # no reveal is lost in the picture
        assert (image >= 0).all()
        assert len(axes.lines) == (0 if agents == 1 else -(-length // recording.block_length) - 1)
        assert image.shape[0] <= 48
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.width == 1400
    assert (tmp_path / "page.png").stat().st_size < 400_000


def test_curves_of_long_completions_are_means_of_neighbours():
    confidence = np.linspace(0, 1, 256, dtype=np.float32)[None]
    recording = Recording(
        "ramp", np.arange(1, 257)[None], confidence, [256], [1.0], [0], 256, kept=np.ones((1, 256))
    )
    figure = analyze([recording]).plot()
    (panel,) = [axes for axes in figure.axes if axes.get_title(loc="left") == "Where does it hesitate?"]
    x, y = panel.lines[0].get_data()
    assert len(x) == 64
    assert y == pytest.approx(confidence.reshape(64, 4).mean(axis=1))
    assert x == pytest.approx(np.arange(256).reshape(64, 4).mean(axis=1))
