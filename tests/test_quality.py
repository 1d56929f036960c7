"""The quality head: what it computes, how it is trained and kept, and what the environment shows of it."""

from __future__ import annotations

import json
import math
import shutil

import gymnasium as gym
import numpy as np
import pytest
import torch
from deaths import check_lost_work_is_done_again
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import dllm_gym
from dllm_gym.backends import ASSETS, load_backend
from dllm_gym.backends.quality import HEAD, QualityHead, write_quality_head
from dllm_gym.envs.observations import NotShown
from dllm_gym.evaluation.statistics import separation
from dllm_gym.pretrain import Examples, PretrainConfig, Pretrainer
from dllm_gym.quality import QualityConfig, QualityTrainer, drawn_among, judged_canvases

TINY = {"width": 16, "layers": 2, "heads": 2, "mlp_width": 32, "batch_size": 4, "warmup": 3, "steps": 3}
LENGTH = 16


@pytest.fixture(scope="module")
def dllm(tmp_path_factory):
    """A dLLM for Sudokus that has learned nothing, and has no head."""
    run = Pretrainer(PretrainConfig(**TINY, task="sudoku"), tmp_path_factory.mktemp("dllm") / "mine")
    list(run.train())
    run.write_model_card([])
    return run.save_checkpoint()


@pytest.fixture(scope="module")
def judging(dllm, tmp_path_factory):
    """The same with a head of random weights."""
    directory = tmp_path_factory.mktemp("judging") / "mine"
    shutil.copytree(dllm, directory)
    torch.manual_seed(0)
    write_quality_head(directory, QualityHead(16))
    return directory


def trainer(dllm, directory, **changes):
    return QualityTrainer(
        QualityConfig(**{"dllm": str(dllm), "batch_size": 4, "steps": 6, "warmup": 2, **changes}), directory
    )


def by_hand(directory, hidden):
    """The head's sigmoid, from the tensors of its file."""
    head = {name: tensor.double() for name, tensor in load_file(directory / HEAD).items()}
    assert head.keys() == {
        f"{layer}.{kind}" for layer in ("norm", "proj1", "proj2") for kind in ("weight", "bias")
    }
    x = hidden.double()
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    x = x * head["norm.weight"] + head["norm.bias"]
    x = x @ head["proj1.weight"].T + head["proj1.bias"]
    x = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    return torch.sigmoid((x @ head["proj2.weight"].T + head["proj2.bias"])[..., 0])


def canvases(backend, rows=3):
    """Prompts of several lengths, and completions of which about half is masked; left-padded."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, 8, (rows, 6 + LENGTH), generator=generator)
    masked = torch.rand(rows, LENGTH, generator=generator) < 0.5
    tokens[:, -LENGTH:][masked] = backend.mask_token_id
    attention_mask = torch.ones_like(tokens)
    for row in range(rows):
        attention_mask[row, :row] = 0
    return tokens, attention_mask


# What a backend tells ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}])
def test_quality_is_the_heads_word_on_tokens_that_stand(judging, options):
    backend = load_backend(judging, **options)
    tokens, attention_mask = canvases(backend)
    where = slice(-LENGTH, None)
    found = backend.predict(tokens, attention_mask, where, statistics=("quality", "hidden")).statistics
    masked = tokens[:, where] == backend.mask_token_id
    assert found["quality"].dtype == torch.float32
    expected = torch.where(masked, 0.0, by_hand(judging, found["hidden"]))
    torch.testing.assert_close(found["quality"].double(), expected, atol=1e-6, rtol=0)
    assert ((found["quality"] > 0) == ~masked).all()


def test_a_row_depends_neither_on_its_neighbours_nor_on_padding(judging):
    backend = load_backend(judging)
    tokens, attention_mask = canvases(backend)
    together = backend.predict(tokens, attention_mask, slice(-LENGTH, None), statistics=("quality",))
    for row in range(3):
        alone = backend.predict(
            tokens[row : row + 1, row:],
            attention_mask[row : row + 1, row:],
            slice(-LENGTH, None),
            statistics=("quality",),
        )
        torch.testing.assert_close(
            alone.statistics["quality"][0], together.statistics["quality"][row], atol=1e-5, rtol=0
        )


def test_a_head_changes_nothing_else_and_is_read_when_it_is_asked_for(dllm, judging, tmp_path):
    shutil.copytree(judging, tmp_path / "broken")
    (tmp_path / "broken" / HEAD).write_bytes(b"no tensors")
    backends = [load_backend(directory) for directory in (dllm, judging, tmp_path / "broken")]
    tokens, attention_mask = canvases(backends[0])
    plain, *others = (one.predict(tokens, attention_mask, slice(-LENGTH, None)) for one in backends)
    for other in others:
        assert torch.equal(other.tokens, plain.tokens)
        assert torch.equal(other.confidence, plain.confidence)
        assert other.statistics == {}
    with pytest.raises(ValueError, match=f"{HEAD} is not a safetensors file"):
        _ = backends[2].quality_head


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"proj1.weight": torch.zeros(8, 8)}, r"'proj1.weight' has shape \(8, 8\), expected \(16, 16\)"),
        ({"proj3.bias": torch.zeros(1)}, r"unexpected \['proj3.bias'\]"),
        ({"norm.bias": torch.full((16,), math.nan)}, "'norm.bias' holds NaN"),
    ],
)
def test_a_head_that_does_not_fit_is_refused_by_name(judging, tmp_path, changes, message):
    shutil.copytree(judging, tmp_path / "other")
    save_file({**load_file(judging / HEAD), **changes}, tmp_path / "other" / HEAD)
    with pytest.raises(ValueError, match=message):
        gym.make("DLLMUnmask-v0", task="sudoku", backend=str(tmp_path / "other"), observe="quality")


# What the environment shows ---------------------------------------------------------------------------------


def test_a_dllm_without_a_head_is_refused_at_the_door(dllm):
    message = f"'quality' needs a dLLM .* mine has no {HEAD}, which dllm-gym quality-head trains"
    with pytest.raises(NotShown, match=message):
        gym.make("DLLMUnmask-v0", task="sudoku", backend=str(dllm), observe="quality")
    with pytest.warns(UserWarning, match=r"not compared with prism\(k=1, back=1\): .* no quality_head"):
        dllm_gym.compare(["confidence:k=8"], 1, strategies=["prism"], task="sudoku", backend=str(dllm))


@pytest.mark.parametrize(
    "given", [{}, {"cache": "dual"}, {"cache": "prefix"}, {"residual_context": True}], ids=str
)
@pytest.mark.filterwarnings("ignore:.*was not trained with residual context")
def test_it_is_observed_where_tokens_stand(judging, given):
    env = gym.make(
        "DLLMUnmask-v0", task="sudoku", backend=str(judging), backend_kwargs=given, block_length=8,
        actions="set-state", observe=("quality", "tokens"),
    )  # fmt: skip
    observation, info = env.reset(seed=0)
    plain = load_backend(judging)
    prompt = plain.encode_prompt(info["prompt"])
    for bits in (np.arange(16) < 4, np.arange(16) < 2, np.arange(16) < 8):
        observation, *_ = env.step(bits.astype(np.int8))
        assert observation in env.observation_space
        standing = observation["mask"] == 0
        assert ((observation["quality"] > 0) == standing).all()
        if not given:
            row = torch.tensor([[*prompt, *observation["tokens"]]])
            said = plain.predict(
                row, torch.ones_like(row), slice(-LENGTH, None), statistics=("quality",)
            ).statistics["quality"][0]
            np.testing.assert_allclose(observation["quality"], said, atol=1e-5)


def test_prism_plays_with_the_quality_it_is_shown(judging):
    env = {"task": "sudoku", "backend": str(judging)}
    result = dllm_gym.evaluate("prism:k=2,back=2", 4, **env)
    assert result.environment["actions"] == "set-state"
    assert set(result.records.nfe) == {8}
    # in steps 3 to 7 more than two tokens stand, and more than two masks are left
    assert (result.records.metrics["remasks"] == 2 * 5).all()
    forbidden = dllm_gym.evaluate("prism:k=2,back=2", 4, forbid_remask=True, **env)
    assert (forbidden.records.metrics["remasks"] == 0).all()
    assert set(forbidden.records.nfe) == {8}


# What the head is trained on --------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), number=st.integers(0, 9))
def test_positions_are_drawn_among_some(seed, number):
    generator = torch.Generator().manual_seed(seed)
    among = torch.rand(5, 7, generator=generator) < 0.5
    drawn = drawn_among(among, number, generator)
    assert not (drawn & ~among).any()
    assert torch.equal(drawn.sum(1), among.sum(1).clamp(max=number))


def test_each_is_drawn_as_often():
    among = torch.tensor([[True, False, True, True]]).repeat(6000, 1)
    share = drawn_among(among, 2, torch.Generator().manual_seed(0)).float().mean(0)
    torch.testing.assert_close(share, torch.tensor([2 / 3, 0, 2 / 3, 2 / 3]), atol=0.03, rtol=0)


def test_canvases_are_answers_with_masks_and_tokens_of_the_dllm(dllm, tmp_path):
    run = trainer(dllm, tmp_path)
    prompts, answers = (part.repeat(2, 1) for part in run.examples.batch(3))
    judged = judged_canvases(run.backend, run.examples, 3, 4, torch.Generator().manual_seed(1))
    canvas = judged.tokens[:, -LENGTH:]
    assert torch.equal(judged.attention_mask[:, :-LENGTH] == 1, prompts >= 0)
    left = canvas == run.backend.mask_token_id
    given_ = ~left & ~judged.written
    assert torch.equal(canvas[given_], answers[given_])
    assert torch.equal(judged.right, (canvas == answers)[judged.written])
    for row in range(8):
        masks = left[row] | judged.written[row]
        assert judged.written[row].sum() == min(4, masks.sum())
        assert torch.equal(masks, ~(left | judged.written)[(row + 4) % 8])  # complementary
    assert not judged.right.all()


def test_tokens_are_drawn_as_the_dllm_thinks_of_them(dllm, tmp_path):
    """Of one canvas with one mask, over and over; the dLLM's own probabilities are the reference."""
    run = trainer(dllm, tmp_path)
    generator = torch.Generator().manual_seed(0)

    class Same(Examples):
        def __init__(self):
            pass

        def batch(self, number):
            prompts, answers = run.examples.batch(0)
            return prompts[:1].repeat(3000, 1), answers[:1, :1].repeat(3000, 1)

    judged = judged_canvases(run.backend, Same(), 0, 1, generator)
    drawn = judged.tokens[judged.written[:, 0], -1]
    row = judged.tokens[:1].clone()
    row[0, -1] = run.backend.mask_token_id
    said = run.backend.predict(row, torch.ones_like(row), slice(-1, None), statistics=("probabilities",))
    share = torch.bincount(drawn, minlength=run.backend.vocab_size) / len(drawn)
    torch.testing.assert_close(share, said.statistics["probabilities"][0, 0], atol=0.04, rtol=0)


def test_the_loss_is_the_one_of_a_loop(dllm, tmp_path):
    run = trainer(dllm, tmp_path)
    state = run.generator.get_state()
    judged = judged_canvases(run.backend, run.examples, 0, 4, run.generator)
    run.generator.set_state(state)
    losses, right = [], iter(judged.right.tolist())
    for row, position in judged.written.nonzero().tolist():
        real = judged.attention_mask[row] == 1
        ids = judged.tokens[row][real]
        said = run.backend.predict(
            ids[None], torch.ones_like(ids)[None], slice(-LENGTH, None), statistics=("hidden",)
        )
        odds = run.model(said.statistics["hidden"][0, position].clone())
        losses.append(-F.logsigmoid(odds if next(right) else -odds).detach())
    assert float(run.loss().detach()) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)


# Runs -------------------------------------------------------------------------------------------------------


def test_a_short_run_learns_and_leaves_the_dllm_as_it_is(dllm, tmp_path):
    run = trainer(dllm, tmp_path, steps=40, learning_rate=2e-2)
    before = {name: tensor.clone() for name, tensor in run.backend.model.state_dict().items()}
    losses = [loss for _, loss in run.train()]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:3])
    assert all(torch.equal(before[name], one) for name, one in run.backend.model.state_dict().items())
    assert list(trainer(dllm, tmp_path, steps=40, learning_rate=2e-2).train()) == []


def test_work_after_the_last_save_is_done_again(dllm, tmp_path):
    check_lost_work_is_done_again(lambda directory: trainer(dllm, directory), tmp_path)
    with pytest.raises(ValueError, match=r"another configuration \(reveal, seed\)"):
        trainer(dllm, tmp_path / "parts", reveal=2, seed=3)


def test_the_areas_are_those_of_a_loop(dllm, tmp_path):
    run = trainer(dllm, tmp_path, batch_size=3)
    areas = run.measure(5)  # two batches
    generator = torch.Generator().manual_seed(0)
    found = {name: [] for name in ("quality", "written", "unseen", "right")}
    test = dllm_gym.load_task("sudoku", "test")
    examples = type(run.examples)([test], run.backend.tokenizer, 0, 3)
    for number in range(2):
        judged = judged_canvases(run.backend, examples, number, 4, generator)
        found["right"] += judged.right.tolist()
        for row, position in judged.written.nonzero().tolist():
            for name in ("written", "unseen"):
                ids = judged.tokens[row][judged.attention_mask[row] == 1].clone()
                token = int(ids[-LENGTH + position])
                if name == "unseen":
                    ids[-LENGTH + position] = run.backend.mask_token_id
                said = run.backend.predict(
                    ids[None],
                    torch.ones_like(ids)[None],
                    slice(-LENGTH, None),
                    statistics=("probabilities", "hidden"),
                ).statistics
                found[name].append(float(said["probabilities"][0, position, token]))
                if name == "written":
                    found["quality"].append(float(run.model(said["hidden"][0, position].clone()).detach()))
    right = np.array(found.pop("right"))
    assert areas.pop("right") == pytest.approx(right.mean(), abs=1e-4)
    assert areas == pytest.approx(
        {name: separation(np.array(values), right) for name, values in found.items()}, abs=2e-3
    )


AREAS = {"quality": 0.9, "written": 0.6, "unseen": 0.95, "right": 0.75}


def test_a_checkpoint_gets_its_head_and_a_section_of_its_card(dllm, tmp_path):
    own = tmp_path / "mine"
    shutil.copytree(dllm, own)
    (own / "training_state.pt").unlink()
    card = (own / "README.md").read_text()
    for seed, directory in ((0, own), (1, tmp_path / "elsewhere"), (0, own)):
        run = trainer(own, directory, seed=seed)
        list(run.train())
        assert run.save(AREAS) == directory
        record = json.loads((directory / "quality_head.json").read_text())
        assert QualityConfig(**record["config"]) == run.config
        assert record["areas"] == AREAS
        assert record["parameters"] == 16 * 17 + 17 + 32
        text = (directory / "README.md").read_text()
        assert text.startswith(card)
        assert text.count("## Quality head") == 1
        assert f"`{record['command']}`" in text
        assert "0.900" in text
        backend = load_backend(directory)
        for name, tensor in run.model.state_dict().items():
            assert torch.equal(backend.quality_head.state_dict()[name], tensor)
        names = {path.name for path in directory.iterdir()}
        assert names == {path.name for path in dllm.iterdir()} - {"training_state.pt"} | {
            HEAD, "quality_head.json", "quality_state.pt"
        }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reveal": 0}, "reveal must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, got -1"),
        ({"learning_rate": math.nan}, "learning_rate must be above 0, got nan"),
        ({"warmup": -1}, "warmup must be at least 0, got -1"),
        ({"decay": 0.0}, "decay must be above 0 and at most 1, got 0.0"),
    ],
)
def test_values_out_of_range_speak(changes, message):
    with pytest.raises(ValueError, match=message):
        QualityConfig("tiny-lists", **changes)


def test_a_dllm_that_does_not_say_what_it_was_trained_on_is_refused(dllm, tmp_path):
    shutil.copytree(dllm, tmp_path / "silent")
    (tmp_path / "silent" / "pretraining.json").unlink()
    with pytest.raises(ValueError, match="silent does not say: give an embedded dLLM, or the directory"):
        trainer(tmp_path / "silent", tmp_path / "out")


# Those of the package ---------------------------------------------------------------------------------------

SHIPPED = sorted(path.parent.name for path in ASSETS.glob(f"*/{HEAD}"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_heads_do_what_their_files_say(name, tmp_path):
    recorded = json.loads((ASSETS / name / "quality_head.json").read_text())
    run = QualityTrainer(QualityConfig(**recorded["config"]), tmp_path)
    run.model = load_backend(name).quality_head
    areas = run.measure(128)
    assert areas == pytest.approx(recorded["areas"], abs=0.05)
    assert (ASSETS / name / HEAD).stat().st_size < 100_000
