"""Pretraining: the loss by hand, runs that can be interrupted, checkpoints that load."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import re
import shlex
import warnings
from functools import partial

import numpy as np
import pytest
import torch
import typer
from deaths import check_lost_work_is_done_again
from dream_reference import ReferenceDream
from hypothesis import given, settings
from hypothesis import strategies as st
from llada_reference import PREFIX, ReferenceLLaDA
from safetensors.torch import load_file

from dllm_gym import tasks
from dllm_gym.backends import load_backend
from dllm_gym.backends.memory import residual_context, soft_mask
from dllm_gym.pretrain import PretrainConfig, Pretrainer, complementary_masks, masked_cross_entropy
from dllm_gym.tasks import load_task

REFERENCES = {"llada": ReferenceLLaDA, "dream": ReferenceDream}
every_layout = pytest.mark.parametrize("layout", list(REFERENCES))
MIXTURE = [{"max_steps": 3}, {"max_steps": 8, "two_digit_share": 0.5}]
TINY = {"width": 16, "layers": 2, "heads": 2, "mlp_width": 32, "batch_size": 4, "warmup": 3}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pretrainer(directory, **changes):
    return Pretrainer(PretrainConfig(**{**TINY, "steps": 6, **changes}), directory)


# The objective ---------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    batch=st.integers(1, 4),
    length=st.integers(1, 6),
    vocabulary=st.integers(2, 9),
)
def test_the_loss_is_the_one_of_a_loop(seed, batch, length, vocabulary):
    generator = torch.Generator().manual_seed(seed)
    all_logits = torch.randn(batch, length, vocabulary, generator=generator)
    targets = torch.randint(vocabulary, (batch, length), generator=generator)
    masked = torch.rand(batch, length, generator=generator) < 0.5
    t = torch.rand(batch, generator=generator).clamp(0.1, 0.9)
    total = 0.0
    for row, column in itertools.product(range(batch), range(length)):
        if masked[row, column]:
            logits = all_logits[row, column].tolist()
            normaliser = math.log(sum(math.exp(value) for value in logits))
            total += (normaliser - logits[targets[row, column]]) / float(t[row])
    loss = masked_cross_entropy(all_logits[masked], targets, masked, t)
    assert float(loss) == pytest.approx(total / (batch * length), rel=1e-4, abs=1e-5)


def test_the_loss_is_unbiased_in_t():
    """Weighted by 1/t, any share of masked tokens estimates the same sum over all tokens."""
    losses = torch.tensor([[0.5, 1.0, 2.0, 4.0]])  # of a model that does not look at the context
    logits = torch.stack([torch.zeros(1, 4), torch.log(torch.exp(losses) - 1)], dim=-1)
    targets, generator = torch.zeros(1, 4, dtype=torch.int64), torch.Generator().manual_seed(0)
    for t in (0.2, 0.9):
        estimates = []
        for _ in range(4000):
            masked = torch.rand(1, 4, generator=generator) < t
            estimates.append(float(masked_cross_entropy(logits[masked], targets, masked, torch.tensor([t]))))
        assert np.mean(estimates) == pytest.approx(float(losses.mean()), rel=0.05)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), batch=st.integers(1, 9), length=st.integers(1, 50))
def test_masks_come_in_complementary_pairs(seed, batch, length):
    masks, t = complementary_masks(batch, length, torch.Generator().manual_seed(seed))
    assert masks.shape == (2 * batch, length)
    assert masks.dtype == torch.bool
    assert t.shape == (2 * batch,)
    assert torch.equal(masks[:batch], ~masks[batch:])  # every token is scored exactly once
    torch.testing.assert_close(t[:batch] + t[batch:], torch.ones(batch))
    assert ((t > 0) & (t < 1)).all()
    for row in range(batch):  # stratified: one t in every interval of width 1 / batch
        assert row / batch - 1e-6 <= max(float(t[row]), 1e-3)
        assert min(float(t[row]), 1 - 1e-3) <= (row + 1) / batch + 1e-6
    again = complementary_masks(batch, length, torch.Generator().manual_seed(seed))
    assert torch.equal(again[0], masks)
    assert torch.equal(again[1], t)


def test_every_token_is_masked_with_probability_t():
    masks, t = complementary_masks(40, 4000, torch.Generator().manual_seed(1))
    shares = masks.float().mean(1)
    assert (shares - t).abs().max() < 5 * math.sqrt(0.25 / 4000)
    assert t[:40].mean() == pytest.approx(0.5, abs=0.02)


# Configuration ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            ({name: 0}, f"{name} must be at least 1, got 0")
            for name in ("width", "layers", "heads", "kv_heads")
        ),
        *(
            ({name: -1}, f"{name} must be at least 1, got -1")
            for name in ("mlp_width", "steps", "batch_size")
        ),
        ({"width": 18, "heads": 2}, "width 18 must be a multiple of twice the heads, 2"),
        ({"width": 6, "heads": 2}, "width 6 must be a multiple"),
        ({"heads": 2, "kv_heads": 4}, "heads 2 must be a multiple of the kv_heads, 4"),
        ({"layout": "bert"}, "unknown layout 'bert'; choose one of llada, dream"),
        ({"warmup": -1}, "warmup must be at least 0, got -1"),
        ({"decay": 0.0}, "decay must be above 0 and at most 1, got 0.0"),
        ({"decay": 1.5}, "decay must be above 0 and at most 1, got 1.5"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ({"adam_learning_rate": -1e-3}, "adam_learning_rate must be above 0, got -0.001"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0, got nan"),
    ],
)
def test_values_out_of_range_speak(changes, message):
    with pytest.raises(ValueError, match=message):
        PretrainConfig(**changes)


def test_the_same_configuration_written_in_another_way_is_equal():
    assert PretrainConfig(task_kwargs={}) == PretrainConfig(task_kwargs=None) == PretrainConfig()
    assert PretrainConfig(heads=2, kv_heads=2) == PretrainConfig(heads=2)
    assert PretrainConfig(heads=2, kv_heads=1) != PretrainConfig(heads=2)
    assert PretrainConfig().variants == [{}]
    assert PretrainConfig(task_kwargs=MIXTURE).variants == MIXTURE


def test_a_task_that_cannot_write_is_refused(tmp_path, monkeypatch):
    class Silent:
        name, completion_length, num_problems = "silent", 4, None

        def __init__(self, split):
            self.split = split

    monkeypatch.setattr(tasks, "_TASKS", {**tasks._TASKS, "silent": Silent})
    with pytest.raises(ValueError, match="task 'silent' cannot write completions"):
        pretrainer(tmp_path, task="silent")
    with pytest.raises(ValueError, match="unknown task 'chess'"):
        pretrainer(tmp_path, task="chess")


def test_the_rates_warm_up_hold_and_fall(tmp_path):
    run = pretrainer(tmp_path, steps=10, warmup=3, decay=0.5)
    scales = []
    for run.step in range(10):
        scales.append(run._rate_scale())
    assert scales == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert pretrainer(tmp_path, warmup=0)._rate_scale() == 1.0


# Examples --------------------------------------------------------------------------------------------------


def test_examples_are_the_training_problems_padded_with_end_tokens(tmp_path):
    run = pretrainer(tmp_path, batch_size=4)
    task = load_task("arithmetic", "train")
    prompts, answers = run.examples.batch(5)
    eos = run.tokenizer.eos_token_id
    assert answers.shape == (4, task.completion_length)
    assert (prompts[:, 0] >= 0).any()  # as wide as the longest, no wider
    for at in range(4):
        problem = task.problem(20 + at)
        assert run.tokenizer.decode(prompts[at][prompts[at] >= 0].tolist()).count(problem.prompt) == 1
        padding = (prompts[at] < 0).tolist()
        assert padding == sorted(padding, reverse=True)  # on the left
        row = answers[at].tolist()
        end = row.index(eos)
        assert row[end:] == [eos] * (task.completion_length - end)
        assert task.score(run.tokenizer.decode(row[:end]), problem) == 1.0
    again = run.examples.batch(5)
    assert torch.equal(again[0], prompts)
    assert torch.equal(again[1], answers)


def test_batches_of_a_mixture_take_turns(tmp_path):
    run = pretrainer(tmp_path, task_kwargs=MIXTURE)
    tasks = [load_task("arithmetic", "train", **kwargs) for kwargs in MIXTURE]
    for number in range(4):
        task = tasks[number % 2]
        prompts, answers = run.examples.batch(number)
        assert answers.shape == (4, task.completion_length)
        for at in range(4):
            text = run.tokenizer.decode(prompts[at][prompts[at] >= 0].tolist())
            assert text.count(task.problem(4 * number + at).prompt) == 1
    assert [tasks[0].completion_length, tasks[1].completion_length] == [48, 80]


def test_a_mixture_knows_the_words_of_all_its_members(tmp_path):
    run = pretrainer(tmp_path, task="sudoku", task_kwargs=[{"size": 4}, {"size": 6}])
    prompts, answers = zip(*(run.examples.batch(number) for number in range(2)), strict=True)
    assert [rows.shape[1] for rows in answers] == [16, 36]
    assert all((rows != run.tokenizer.unk_token_id).all() for rows in (*prompts, *answers))


def test_the_prompt_is_tokenised_as_at_decoding_time(tmp_path):
    run = pretrainer(tmp_path)
    backend = load_backend(run.save_checkpoint())
    prompts, _ = run.examples.batch(0)
    for at in range(4):
        prompt = load_task("arithmetic", "train").problem(at).prompt
        assert prompts[at][prompts[at] >= 0].tolist() == backend.encode_prompt(prompt)


# Runs ------------------------------------------------------------------------------------------------------


@every_layout
def test_a_short_run_learns(tmp_path, layout):
    rates = {"learning_rate": 2e-2, "adam_learning_rate": 2e-2}
    run = pretrainer(tmp_path, layout=layout, steps=60, batch_size=8, **rates)
    steps, losses = zip(*run.train(), strict=True)
    assert steps == tuple(range(1, 61))
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:3])
    assert run.seconds > 0
    assert list(pretrainer(tmp_path, **{k: getattr(run.config, k) for k in CHANGED}).train()) == []


CHANGED = ("layout", "steps", "batch_size", "learning_rate", "adam_learning_rate")


@every_layout
def test_a_checkpoint_is_complete_and_loads(tmp_path, layout):
    run = pretrainer(tmp_path / "run", steps=3, layout=layout, kv_heads=1)
    list(run.train())
    directory = run.save_checkpoint()
    assert directory == tmp_path / "run"
    assert {path.name for path in directory.iterdir()} == {
        "config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "training_state.pt",
    }
    stored = load_file(directory / "model.safetensors")
    trained = run.family.checkpoint_names(run.model.state_dict())
    assert stored.keys() == trained.keys()
    assert (PREFIX + "ff_out.weight" in stored) == (layout == "llada")
    assert ("model.layers.0.self_attn.q_proj.bias" in stored) == (layout == "dream")
    for name, tensor in trained.items():
        assert torch.equal(stored[name], tensor.bfloat16()), name
    backend = load_backend(directory)
    row = (
        backend.encode_prompt("Sam has 20 coins, finds 4, halves them. Total?") + [backend.mask_token_id] * 5
    )
    prediction = backend.predict(
        torch.tensor([row]), torch.ones(1, len(row)), slice(-5, None), statistics=("hidden",)
    )
    expected = REFERENCES[layout](directory).hidden(row)[-5:]
    torch.testing.assert_close(prediction.statistics["hidden"][0], expected, atol=1e-5, rtol=1e-5)


@every_layout
def test_the_loss_is_that_of_what_decoding_would_predict(tmp_path, layout):
    """The loss of a step, recomputed from the reference's logits: row by row, without padding."""
    run = pretrainer(tmp_path, layout=layout, kv_heads=1)
    weights = {name: 6 * tensor for name, tensor in run.model.state_dict().items()}  # so that rows differ
    run.model.load_state_dict({name: tensor.bfloat16().float() for name, tensor in weights.items()})
    reference = REFERENCES[layout](run.save_checkpoint())
    prompts, answers = run.examples.batch(0)
    masked, t = complementary_masks(4, 48, torch.Generator().manual_seed(0))
    losses = []
    for row in range(8):
        prompt, answer = prompts[row % 4], answers[row % 4]
        noisy = answer.masked_fill(masked[row], run.mask_token_id)
        logits = reference([*prompt[prompt >= 0].tolist(), *noisy.tolist()])[-48:]
        losses.append(
            masked_cross_entropy(logits[masked[row]], answer[None], masked[row][None], t[row][None])
        )
    expected = float(torch.stack(losses).mean())
    assert run._step() == pytest.approx(expected, rel=2e-3)  # it trains in bfloat16
    wrong = dataclasses.replace(run.family, shift_logits=not run.family.shift_logits)
    again = pretrainer(tmp_path / "again", layout=layout, kv_heads=1)
    again.model.load_state_dict({name: tensor.bfloat16().float() for name, tensor in weights.items()})
    again.family = wrong
    assert again._step() != pytest.approx(expected, rel=2e-3)


SOFT = ("soft-mask", "soft-mask-uncertain")


@pytest.mark.parametrize("kind", ["rcd", *SOFT])
@every_layout
def test_with_residual_context_masks_are_fed_with_what_is_thought(tmp_path, layout, kind, monkeypatch):
    """The loss of a second step, when model and reference differ, recomputed row by row without padding."""
    monkeypatch.setattr(torch, "autocast", lambda *_: contextlib.nullcontext())  # in float32
    first = pretrainer(tmp_path / "first", layout=layout)
    first.model.load_state_dict({name: 6 * tensor for name, tensor in first.model.state_dict().items()})
    run = pretrainer(
        tmp_path / "second", layout=layout, init_from=str(first.save_checkpoint()), residual_context=kind
    )
    mix, thinking = residual_context, run.reference
    if kind in SOFT:
        monkeypatch.setattr(run, "_soft", lambda: True)
        numbers = {"scale": 0.8, "steepness": 2.0 if kind == "soft-mask" else -2.0, "offset": -1.5}
        with torch.no_grad():
            for name, value in numbers.items():
                getattr(run.soft_mask, name).fill_(value)
    run.step = 50  # a learning rate that moves the model away from the reference
    run._step()
    if kind in SOFT:
        learned = {name: float(value) for name, value in run.soft_mask.state_dict().items()}
        assert all(abs(learned[name] - value) > 1e-3 for name, value in numbers.items())
        mix, thinking = partial(soft_mask, **learned), run.model
    state = run.generator.get_state()
    prompts, answers = run.examples.batch(50)
    masked, t = complementary_masks(4, 48, run.generator)
    run.generator.set_state(state)
    table, mask, shift = run.model.get_input_embeddings().weight, run.mask_token_id, run.family.shift_logits
    losses = {True: [], False: []}
    for row in range(8):
        prompt, answer = prompts[row % 4], answers[row % 4]
        noisy = answer.masked_fill(masked[row], mask)
        ids = torch.cat([prompt[prompt >= 0], noisy])
        about = len(ids) - 48 - shift + masked[row].nonzero()[:, 0]
        with torch.no_grad():
            thought = thinking(input_ids=ids[None]).logits[0, about]
            thought[:, mask] = -torch.inf
            embedded = table[ids].clone()
            for with_context in (False, True):
                if with_context:
                    where = len(ids) - 48 + masked[row].nonzero()[:, 0]
                    embedded[where] = mix(thought.softmax(-1), table, table[mask])
                logits = run.model(inputs_embeds=embedded[None]).logits[0, about]
                one = masked_cross_entropy(logits, answer[None], masked[row][None], t[row][None])
                losses[with_context].append(one)
    expected, plain = (float(torch.stack(losses[which]).mean()) for which in (True, False))
    assert abs(expected - plain) > 2e-3 * plain
    assert run._step() == pytest.approx(expected, rel=1e-4)
    assert kind in SOFT or all(not parameter.requires_grad for parameter in run.reference.parameters())
    directory = run.save_checkpoint()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was trained for it
        load_backend(directory, residual_context=True)


@pytest.mark.parametrize("kind", [None, "rcd", *SOFT])
def test_every_weight_learns_from_every_batch(tmp_path, kind):
    checkpoint = str(pretrainer(tmp_path / "first").save_checkpoint())
    run = pretrainer(tmp_path / "second", init_from=checkpoint, residual_context=kind)
    run._soft = lambda: True
    run.loss().backward()
    assert not [name for name, weight in run.model.named_parameters() if weight.grad is None]


@pytest.mark.parametrize("kind", SOFT)
def test_soft_masks_begin_without_influence(tmp_path, kind):
    checkpoint = str(pretrainer(tmp_path / "first").save_checkpoint())
    soft, plain = (
        pretrainer(tmp_path / str(which), init_from=checkpoint, residual_context=which)
        for which in (kind, None)
    )
    soft._soft = lambda: True
    assert soft._step() == plain._step()  # and the data are the same
    assert float(soft.soft_mask.scale.detach()) != 0


def test_soft_masks_are_in_four_batches_of_five(tmp_path):
    checkpoint = str(pretrainer(tmp_path / "first").save_checkpoint())
    run = pretrainer(tmp_path / "second", init_from=checkpoint, residual_context="soft-mask")
    drawn = []
    for run.step in range(2000):
        drawn.append(run._soft())
    assert np.mean(drawn) == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / 2000))
    run.step = drawn.index(False)
    before = {name: value.clone() for name, value in run.soft_mask.state_dict().items()}
    run._step()
    assert all(torch.equal(value, before[name]) for name, value in run.soft_mask.state_dict().items())


@every_layout
def test_the_numbers_of_soft_masks_are_in_the_checkpoint(tmp_path, layout):
    first = pretrainer(tmp_path / "first", layout=layout)
    checkpoint = first.save_checkpoint()
    run = pretrainer(
        tmp_path / "second", layout=layout, init_from=str(checkpoint), residual_context="soft-mask"
    )
    list(run.train())
    directory = run.save_checkpoint()
    assert (
        load_file(directory / "model.safetensors").keys()
        == load_file(checkpoint / "model.safetensors").keys()
    )
    numbers = {name: float(value) for name, value in run.soft_mask.state_dict().items()}
    assert numbers["scale"] != 0
    assert json.loads((directory / "config.json").read_text())["residual_context"] == numbers
    mix = load_backend(directory, residual_context=True).memory(1, 4).mix
    p, table = torch.tensor([[0.1, 0.2, 0.3, 0.4]]), torch.randn(4, 5)
    assert torch.equal(mix(p, table, table[0]), soft_mask(p, table, table[0], **numbers))
    # a further training that does not know of them leaves none
    third = pretrainer(tmp_path / "third", layout=layout, init_from=str(directory)).save_checkpoint()
    assert "residual_context" not in json.loads((third / "config.json").read_text())


def test_residual_context_needs_a_known_kind_and_a_checkpoint():
    with pytest.raises(ValueError, match="residual_context needs init_from"):
        PretrainConfig(residual_context="soft-mask")
    with pytest.raises(ValueError, match="None or one of rcd, soft-mask, soft-mask-uncertain, got 'warm'"):
        PretrainConfig(residual_context="warm", init_from="tiny-arithmetic")
    before = PretrainConfig(residual_context=True, init_from="tiny-arithmetic")  # as records have it
    assert before == PretrainConfig(residual_context="rcd", init_from="tiny-arithmetic")
    assert PretrainConfig(residual_context=False) == PretrainConfig()


@pytest.mark.parametrize("stops", [(2,), (1, 3, 4)])
@pytest.mark.parametrize("kind", [None, "soft-mask"])
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path, stops, kind):
    changes = {"layout": "dream", "task_kwargs": MIXTURE}
    if kind is not None:
        first = pretrainer(tmp_path / "first", **changes).save_checkpoint()
        changes |= {"init_from": str(first), "residual_context": kind}
    whole = pretrainer(tmp_path / "whole", **changes)
    losses = dict(whole.train())
    seen = {}
    for stop in stops:
        part = pretrainer(tmp_path / "parts", **changes)
        for step, loss in part.train(save_every=-1.0):
            seen[step] = loss
            if step == stop:
                break  # killed right after a save
    torch.rand(7)  # whatever else the process draws
    last = pretrainer(tmp_path / "parts", **changes)
    assert last.step == stops[-1]
    seen |= dict(last.train())
    assert seen == losses
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(last.model.state_dict()[name], tensor), name


def test_a_run_can_go_on_from_a_checkpoint(tmp_path):
    first = pretrainer(tmp_path / "first", seed=3)
    list(first.train())
    checkpoint = str(first.save_checkpoint())
    second = pretrainer(tmp_path / "second", seed=8, init_from=checkpoint)
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor.bfloat16().float()), name
    loaded = load_backend(checkpoint).model.state_dict()
    before = {name: tensor.clone() for name, tensor in loaded.items()}
    list(second.train())
    assert second.step == 6
    assert all(torch.equal(before[name], tensor) for name, tensor in loaded.items())  # frozen as ever
    for changes, message in (
        ({"width": 32}, "size mismatch"),
        ({"layout": "dream"}, r"q_proj\.bias"),
    ):
        with pytest.raises(RuntimeError, match=message):
            pretrainer(tmp_path / "third", init_from=checkpoint, **changes)


def test_work_after_the_last_save_is_done_again(tmp_path):
    check_lost_work_is_done_again(pretrainer, tmp_path)


def test_seeds_differ(tmp_path):
    losses = [
        [loss for _, loss in pretrainer(tmp_path / str(at), seed=seed, steps=2).train()]
        for at, seed in enumerate((0, 0, 1))
    ]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"steps": 7}, "steps"),
        ({"width": 32, "seed": 3}, "width, seed"),
        ({"learning_rate": 1e-3}, "learning_rate"),
        ({"task_kwargs": {"seed": 1}}, "task_kwargs"),
        ({"task_kwargs": [{}, {"max_steps": 8}]}, "task_kwargs"),
        ({"layout": "dream", "kv_heads": 1}, "layout, kv_heads"),
    ],
)
def test_another_configuration_does_not_resume(tmp_path, changes, named):
    run = pretrainer(tmp_path)
    next(run.train(save_every=-1.0))
    with pytest.raises(ValueError, match=rf"another configuration \({named}\)"):
        pretrainer(tmp_path, **changes)


def test_a_run_from_before_there_were_layouts_goes_on(tmp_path):
    run = pretrainer(tmp_path)
    next(run.train(save_every=-1.0))
    state = torch.load(tmp_path / "training_state.pt", weights_only=True)
    del state["config"]["layout"], state["config"]["kv_heads"]
    state["config"]["task_kwargs"] = None
    torch.save(state, tmp_path / "training_state.pt")
    assert pretrainer(tmp_path, task_kwargs={}).step == 1


@every_layout
def test_the_model_card_tells_what_was_done(tmp_path, layout):
    run = pretrainer(tmp_path / "tiny-mine", steps=2, layout=layout, task_kwargs=MIXTURE)
    list(run.train())
    metrics = [
        {
            "agent": "confidence",
            "task_kwargs": {"max_steps": 8},
            "completion_length": 80,
            "block_length": 16,
            "episodes": 40,
            "accuracy": 0.125,
            "accuracy_ci95": [0.05, 0.26],
        }
    ]
    run.write_model_card(metrics)
    record = json.loads((tmp_path / "tiny-mine" / "pretraining.json").read_text())
    assert PretrainConfig(**record["config"]) == run.config
    assert record["metrics"] == metrics
    assert record["parameters"] == sum(parameter.numel() for parameter in run.model.parameters())
    card = (tmp_path / "tiny-mine" / "README.md").read_text()
    assert "# tiny-mine" in card
    assert '| {"max_steps": 8} | confidence | 80 | 16 | 40 | 0.125 (0.050 to 0.260) |' in card
    published = {"llada": "GSAI-ML/LLaDA-8B-Instruct", "dream": "Dream-org/Dream-v0-Instruct-7B"}
    assert f"in the layout of {published[layout]}:" in card
    assert f"{record['parameters']:,}" in card


@pytest.mark.parametrize("task_kwargs", [{"size": 6}, [{"size": 4}, {"size": 6}]])
def test_the_command_on_the_model_card_is_the_run(tmp_path, task_kwargs):
    from dllm_gym.cli import app

    shape = {"layout": "dream", "kv_heads": 1}
    first = pretrainer(tmp_path / "the first", task="sudoku", **shape).save_checkpoint()
    changes = {
        **shape,
        "task": "sudoku",
        "task_kwargs": task_kwargs,
        "learning_rate": 3e-3,
        "seed": 4,
        "warmup": 100,
        "init_from": str(first),
        "residual_context": "soft-mask-uncertain",
    }
    run = pretrainer(tmp_path / "mine", **changes)
    run.write_model_card([])
    card = (tmp_path / "mine" / "README.md").read_text()
    program, command, *arguments = shlex.split(re.search(r"`(dllm-gym pretrain .*)`", card)[1])
    assert (program, command) == ("dllm-gym", "pretrain")
    with typer.main.get_command(app).commands[command].make_context(command, arguments) as context:
        given = dict(context.params)
    assert given.pop("output").name == "mine"
    given.pop("episodes")
    given.pop("save_every")
    assert not given.pop("imports")
    assert PretrainConfig(**given | {"task_kwargs": json.loads(given["task_kwargs"])}) == run.config
