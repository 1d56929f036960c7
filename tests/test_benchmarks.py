"""The benchmark commands: that they tell right from wrong, and write down what they measured."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import family_checkpoints
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_backend import ToyBackend

import dllm_gym
from benchmarks.peers import __main__ as peers
from benchmarks.peers import adapters, canvases, checkouts, loops, remasking, rules, timing
from dllm_agents.posttraining.config import load_posttrain_config
from dllm_gym.bench import Clock, measure_limit
from dllm_gym.evaluation import compare, evaluate
from dllm_gym.evaluation.statistics import mean_interval, paired_share_interval
from dllm_gym.speeds import PLAIN_LOOP, RULES, measure_speeds
from dllm_gym.strategies import make_strategy
from dllm_gym.suite import Member, read_figures

WRONG_ORDER = '''
import torch
from model.modeling_llada import LLaDAModelLM


def generate(model, prompt, steps, gen_length, block_length, mask_id):
    """A peer of another mind: one token at a time, from the left. Returns what Fast-dLLM returns."""
    x = torch.cat([prompt, torch.full((1, gen_length), mask_id)], dim=1)
    for i in range(prompt.shape[1], x.shape[1]):
        x[0, i] = model(x).logits[0, i].argmax()
    return x, gen_length
'''


@pytest.fixture(scope="module")
def benchmark() -> Iterator[Callable[[str], Any]]:
    """Imports a benchmark by name; they are scripts beside one another, no package."""
    folder = str(Path(__file__).parents[1] / "benchmarks")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield importlib.import_module


@pytest.fixture
def run_benchmark(benchmark, monkeypatch) -> Callable[..., None]:
    """Runs a benchmark as from the command line."""

    def run(name: str, *options: Any) -> None:
        monkeypatch.setattr("sys.argv", [f"{name}.py", *map(str, options)])
        benchmark(name).main()

    return run


def test_a_peer_that_decodes_otherwise_is_told_apart(monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "ROWS", 2)
    (tmp_path / "llada").mkdir()
    (tmp_path / "llada" / "generate.py").write_text(WRONG_ORDER)
    loop = loops.load_generate(tmp_path, batches=False)
    assert "model.modeling_llada" not in sys.modules
    right = canvases.Case("left-to-right:k=1", 48, {"steps": 48})
    wrong = canvases.Case("confidence:k=1", 48, {"steps": 48})
    peer = peers.Peer(None, (right, wrong))
    same = peers.compare(peer, loop, right, problems=1, rounds=1)
    other = peers.compare(peer, loop, wrong, problems=1, rounds=0)
    assert [found["same"] for found in same["canvases"].values()] == [1, 1]
    assert [found["same"] for found in other["canvases"].values()] == [0, 0]
    assert other["canvases"]["softened"]["difference"] == 1
    assert same["canvases"]["as trained"]["forwards_per_problem"] == {"peer": 48, "ours": 48}
    speeds = same["problems_per_second"]
    assert [found["same_text"] for found in speeds.values()] == [1, 1]
    for found in speeds.values():
        rounded = sum(0.005 / found[name] for name in ("peer", "ours", "ratio"))  # much on a busy machine
        assert found["ratio"] == pytest.approx(found["ours"] / found["peer"], rel=1.1 * rounded + 1e-9)
    text = peers.table("llada", [same, other])
    assert "`left-to-right:k=1` | 48 | 2 rows, peer one by one |" in text
    assert "times as fast" not in peers.table("llada", [other])


def test_a_checkout_without_a_loop_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no generate\.py, llada/generate\.py or v1/llada"):
        loops.load_generate(tmp_path, batches=False)
    with pytest.raises(FileNotFoundError, match=r"holds no common\.generation\.generation"):
        loops.load_ml_rl_dllm(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no decoding\.py"):
        remasking.load_saber(tmp_path)


def test_judging_where_two_decodings_part():
    start, first, second = np.array([9, 9, 9]), np.array([1, 9, 9]), np.array([9, 1, 9])
    full = np.array([1, 1, 1])
    sure, close = [np.array([0.9, 0.5, 0.1])] * 2, [np.array([0.5, 0.5 + 1e-7, 0.1])] * 2
    judge = canvases.judge
    assert judge([start, first, full], [start, first, full], sure, None) == "same"
    assert judge([start, first, full], [start, second, full], sure, None) == "difference"
    assert judge([start, first, full], [start, second, full], close, None) == "tie"
    assert judge([start, first, full], [start, second, full], close, 0.9) == "tie"
    assert judge([start, first, full], [start, first], sure, None) == "difference"
    both = np.array([1, 1, 9])
    assert judge([start, first, full], [start, both, full], close, None) == "difference"
    assert judge([start, first, full], [start, both, full], close, 0.5) == "tie"
    assert judge([start, first, full], [start, both, full], close, 0.4) == "difference"
    three = [np.array([0.5, 0.5, 0.5])] * 2
    assert judge([start, first, full], [start, full, full], three, 0.4) == "difference"
    assert judge([start, first, second], [start, first, first], three, None) == "tie"  # one goes back


def test_a_checkouts_file_finds_its_neighbours_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "neighbour.py").write_text("VALUE = 3")
    (tmp_path / "loop.py").write_text("import nowhere.at_all\nfrom neighbour import VALUE")
    module = checkouts.load_file(tmp_path, "loop.py", without=("nowhere", "nowhere.at_all"))
    assert module.VALUE == 3
    assert not {"neighbour", "nowhere", "nowhere.at_all"} & set(sys.modules)
    assert str(tmp_path) not in sys.path


def counting_model(tokens, attention_mask=None, output_attentions=False):
    """Logits ``(1, T, 7)`` that depend on position and token."""
    scores = torch.arange(tokens.shape[1])[:, None] * 0.5 + torch.arange(7.0)
    return SimpleNamespace(logits=(scores * (1 + tokens[0, :, None])).sin()[None])


@pytest.fixture
def shown(tmp_path) -> Callable[..., Any]:
    """What a loop gets when it calls its model: of a published file that asks once and writes zeros."""

    def call(load: Callable[[Path], Any], file: str, published: str, block_length: int = 48) -> Any:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(f"import torch\nSEEN = []\n{published}")
        asked = []
        model = Recorder(lambda tokens: asked.append(tokens) or counting_model(tokens))
        loop = load(tmp_path)
        case = canvases.Case("confidence", block_length, {})
        completion = loop(model, [[1, 2]], case, SimpleNamespace(mask_token_id=0))
        assert completion.shape == (1, 48)
        return asked, loop

    return call


class Recorder:
    device = dtype = config = None

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, tokens, **_):
        return self.answer(tokens)


def test_klass_is_given_our_mask_token(shown):
    (asked,), _ = shown(
        rules.load_klass,
        "src/model/llada_klass.py",
        "def stable_confident_decode(model, tokenizer, prompt, gen_length, block_length, mask_id):\n"
        "    x = torch.cat([prompt, torch.full((1, gen_length), 126336)], dim=1)\n"
        "    model(x)\n"
        "    return x, 1",
    )
    assert asked.tolist() == [[1, 2] + [0] * 48]


def test_wino_finds_the_block_once_more_behind_the_text(shown):
    (asked,), _ = shown(
        remasking.load_wino,
        "LLaDA/decoding.py",
        "def decoding_wino(model, prompt, gen_length, block_length, mask_id):\n"
        "    x = torch.cat([prompt, torch.zeros(1, gen_length + block_length, dtype=torch.long)], dim=1)\n"
        "    positions = torch.cat([torch.arange(50), torch.arange(18, 34)])\n"
        "    logits = model(x, attention_mask=None, position_ids=positions).logits\n"
        "    assert (logits[:, 50:] == logits[:, 18:34]).all() and logits.shape[1] == 66\n"
        "    return x[:, :50], 1",
        block_length=16,
    )
    assert asked.shape == (1, 50)


def test_dreams_loop_finds_predictions_where_it_shifts_them_to(shown):
    shown(
        rules.load_sched,
        "dream_sampling/sched.py",
        "def diffusion_generate_schedule(model, prompt, max_new_tokens, mask_token_id):\n"
        "    x = torch.cat([prompt, torch.zeros(1, max_new_tokens, dtype=torch.long)], dim=1)\n"
        "    logits = model(x, 'full', None).logits\n"
        "    shifted = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)\n"
        "    right = torch.arange(50)[:, None] * 0.5 + torch.arange(7.0)\n"
        "    assert torch.equal(shifted[0, 2:], right[2:].sin())\n"
        "    return x, [{}]",
    )


def test_a_model_believes_in_what_stands():
    tokens = torch.tensor([[5, 0, 3]])  # 0 is the mask
    before = counting_model(tokens).logits
    output = counting_model(tokens)
    adapters.believe(output, tokens, 0)
    probabilities = output.logits.softmax(-1)
    assert torch.equal(output.logits[0, 1], before[0, 1])
    for position in (0, 2):
        token = tokens[0, position]
        written = before.softmax(-1)[0, position, token]
        assert probabilities[0, position, token] == pytest.approx(float(written), rel=1e-5)
        others = probabilities[0, position, torch.arange(7) != token]
        assert float(others.max() - others.min()) < 1e-6


def test_results_of_peers_that_are_not_named_stay(monkeypatch, tmp_path, capsys):
    results = tmp_path / "peers.json"
    results.write_text(json.dumps({"results": {"one": [], "other": [1]}}))
    monkeypatch.setattr(peers, "PEERS", {"other": peers.Peer(lambda checkout: None, ())})
    monkeypatch.setattr("sys.argv", ["peers", f"other={tmp_path}", "--output", str(results)])
    peers.main()
    assert json.loads(results.read_text())["results"] == {"one": [], "other": []}
    assert capsys.readouterr().out.startswith("| other's loop as |")
    assert results.with_suffix(".md").read_text().count("'s loop as |") == 2
    monkeypatch.setattr("sys.argv", ["peers", "one"])
    with pytest.raises(SystemExit):
        peers.main()
    assert "give NAME=PATH with a name out of other, got 'one'" in capsys.readouterr().err


# A dLLM of LLaDA's shape ------------------------------------------------------------------------------------


def test_the_8b_shape_is_lladas_and_takes_no_disk(benchmark, tmp_path):
    random_weights = benchmark("random_weights")
    random_weights.write_hollow_checkpoint(tmp_path, random_weights.SHAPES["8b"])
    weights = tmp_path / "model.safetensors"
    with weights.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    status = weights.stat()
    assert status.st_size - 8 - header == 2 * 8_015_581_184  # LLaDA-8B's parameters, in bfloat16
    assert status.st_blocks * 512 < 2**20
    weights.unlink()


def test_limits_of_random_weights(benchmark, run_benchmark, monkeypatch, tmp_path):
    limit = benchmark("limit")
    loaded = []
    load = limit.load_random
    monkeypatch.setattr(limit, "load_random", lambda *a, **k: loaded.append(load(*a, **k)) or loaded[0])
    report = tmp_path / "limit.json"
    options = ["--model", "tiny", "--batch-sizes", "1", "2", "--lengths", "16", "--dtypes", "float32"]
    run_benchmark(
        "limit", *options, "--rounds", "1", "--seconds", "0.01", "--device", "cpu", "--output", report
    )
    weights = loaded[0].model.state_dict()
    assert weights["lm_head.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert weights["model.layers.1.mlp.up_proj.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert (weights["model.norm.weight"] == 1).all()
    content = json.loads(report.read_text())
    (result,) = content["results"]
    assert result["parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert [row["batch_size"] for row in result["limits"]] == [1, 2]
    assert result["peak_memory_gib"] > 0.05
    assert content["machine"]["torch"]
    assert "| 2 | 16 |" in report.with_suffix(".md").read_text()


def test_one_batch_is_measured_against_single_environments(run_benchmark, tmp_path):
    report = tmp_path / "throughput.json"
    options = ["--kinds", "sync", "--rows", "2", "--rounds", "1", "--episodes", "1", "--dtypes", "float32"]
    run_benchmark("throughput", *options, "--output", report)
    (result,) = json.loads(report.read_text())["results"]
    batched, sync = result["steps_per_second"].values()
    assert result["times_as_fast"]["sync"] == pytest.approx(batched / sync, rel=0.02)


def test_every_observation_is_measured_against_none(run_benchmark, tmp_path):
    report = tmp_path / "observations.json"
    options = ["--observe", "attention", "entropy", "--rows", "2", "--rounds", "1", "--forwards", "plain"]
    run_benchmark("observations", *options, "--output", report)
    (result,) = json.loads(report.read_text())["results"]
    assert result["steps_per_second_without"] > 0
    assert list(result["share_with"]) == ["attention", "entropy"]
    assert "| with `attention` | with `entropy` |" in report.with_suffix(".md").read_text()


# The limit --------------------------------------------------------------------------------------------------


def test_the_shares_of_a_step_add_up_and_the_model_is_left_as_it_was():
    backend = dllm_gym.load_backend("tiny-arithmetic", dtype="float32", device="cpu")
    before = backend.model.base_model.forward
    for batch_size in (1, 3):
        limit = measure_limit(backend, batch_size=batch_size, rounds=1, seconds=0.01)
        assert limit.batch_size == batch_size
        assert limit.completion_length == 48 < limit.input_length
        assert limit.model + limit.picking + limit.episodes + limit.rest == pytest.approx(1.0)
        assert min(limit.model, limit.picking, limit.episodes, limit.rest) > 0
        ratio = limit.env_steps_per_second / limit.forward_rows_per_second
        assert limit.efficiency == limit.efficiency_of_fastest == pytest.approx(ratio)
    assert backend.model.base_model.forward == before


def test_the_compiled_forward_is_measured_beside_the_plain_one_and_left_as_it_was():
    backend = dllm_gym.load_backend("tiny-arithmetic", device="cpu", compile="auto")
    fast = backend.fast_forward
    if fast is None:
        pytest.skip("no C++ compiler")
    limit = measure_limit(backend, batch_size=3, rounds=1, seconds=0.01)
    assert limit.fastest_rows_per_second != limit.forward_rows_per_second
    ratio = limit.env_steps_per_second / limit.fastest_rows_per_second
    assert limit.efficiency_of_fastest == pytest.approx(ratio)
    assert limit.model + limit.picking + limit.episodes + limit.rest == pytest.approx(1.0)
    assert min(limit.model, limit.picking, limit.episodes, limit.rest) > 0
    assert backend.fast_forward is fast


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="batch_size and rounds must be at least 1, got 0 and 5"):
        measure_limit("tiny-arithmetic", batch_size=0)
    with pytest.raises(ValueError, match="only transformers models have a bare forward"):
        measure_limit(ToyBackend())


def test_a_clock_counts_what_runs_inside():
    clock = Clock()
    double = clock.around(lambda x: time.sleep(0.01) or 2 * x)
    assert (double(2), double(3)) == (4, 6)
    assert 0.02 <= clock.seconds < 2


# Completions per second -------------------------------------------------------------------------------------


def written_by(backend, run) -> list[list[int]]:
    """The completions that are turned into text while something runs."""
    ids: list[list[int]] = []
    decode = backend.decode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            backend, "decode", lambda completion: ids.append(list(completion)) or decode(completion)
        )
        run()
    return ids


@pytest.mark.parametrize("block_length", [None, 8, 5])
@pytest.mark.parametrize("name", ["tiny-arithmetic", "tiny-arithmetic-dream", "sdar"])
def test_the_plain_loop_writes_what_one_token_per_step_writes(name, block_length, tmp_path):
    """What it reveals does not go through the engine, so that each checks the other."""
    if name == "sdar":  # whose blocks count from the beginning of the prompt
        family_checkpoints.write_sdar(tmp_path)
        block_length = {None: None, 8: 4, 5: 2}[block_length]
    backend = dllm_gym.load_backend(tmp_path if name == "sdar" else name, dtype="float32", device="cpu")
    settings = {"task": "arithmetic", "block_length": block_length, "backend": backend}
    speeds = []
    by_loop = written_by(
        backend, lambda: speeds.extend(measure_speeds(agents=[], batch_size=3, problems=7, **settings))
    )[3:]  # the first batch warms up
    results = []
    by_engine = written_by(backend, lambda: results.append(evaluate("confidence:k=1", 7, **settings)))
    assert len(by_loop) == 7
    assert sorted(by_loop) == sorted(by_engine)
    (speed,) = speeds
    assert (speed.label, speed.steps, speed.accuracy) == (PLAIN_LOOP, 48, results[0].accuracy)


def test_speeds_come_with_how_well_the_same_problems_were_solved():
    plain, *others = measure_speeds("tiny-arithmetic", batch_size=4, block_length=8)
    assert (plain.batch_size, plain.steps) == (4, 48)
    for name, speed in zip(RULES, others, strict=True):
        result = evaluate(name, 8, block_length=8)
        found = (speed.label, speed.batch_size, speed.steps, speed.accuracy)
        assert found == (result.label, 4, result.nfe_mean, result.accuracy)
        assert speed.completions_per_second > 0
        assert speed.to_json()["steps"] == round(result.nfe_mean, 4)


@pytest.mark.parametrize("sizes", [{"batch_size": 0}, {"problems": 0}])
def test_nothing_has_no_speed(sizes):
    with pytest.raises(ValueError, match="batch_size and problems must be at least 1, got"):
        next(measure_speeds("tiny-arithmetic", **sizes))


# The leaderboard --------------------------------------------------------------------------------------------


def test_the_leaderboard_is_between_the_best_rule_and_the_oracle(run_benchmark, tmp_path):
    numbers, page = tmp_path / "benchmark.json", tmp_path / "benchmark.md"
    options = [
        "--members",
        "Lists",
        "--algorithms",
        "--episodes",
        40,
        "--strategies",
        "short",
        "--no-compile",
    ]
    run_benchmark("leaderboard", *options, "--runs", tmp_path, "--page", page, "--numbers", numbers)
    found = json.loads(numbers.read_text())
    scores = {row["agent"]: row["score"] for row in found["leaderboard"]}
    assert scores["oracle"] == 1.0
    assert scores[f"best of `{found['members']['Lists']['best_family']}`"] == 0.0
    assert scores["comes with the package"] > 0.0
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert "| oracle | 1.00 | 1 |" in page.read_text()
    assert "for member in dllm_gym.SUITE:" in page.read_text()
    assert numbers.with_suffix(".png").stat().st_size > 1000


@pytest.mark.slow
def test_block_lengths_compare_rules_and_policies(run_benchmark, tmp_path):
    output = tmp_path / "block_lengths.json"
    sizes = ["--episodes", 30, "--tuning-episodes", 30, "--seeds", 1, "--steps", 3000]
    run_benchmark(
        "block_lengths", "Lists", *sizes, "--strategies", "short", "--runs", tmp_path, "--output", output
    )
    found = json.loads(output.read_text())["members"]["Lists"]
    assert [row["block"] for row in found["rows"] if row["agents"] == "all"] == ["B4", "B8", "full"]
    first, last = (row for row in found["rows"] if row["agents"] == "rule" and row["block"] in ("B4", "full"))
    assert found["lost"]["rule"]["reward"] == pytest.approx(first["reward"] - last["reward"])
    assert "| Lists | B4 | B8 | full | lost |" in output.with_suffix(".md").read_text()
    assert output.with_suffix(".png").stat().st_size > 1000


# Judging tokens ---------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_token_is_wrong_if_it_alone_stands_between_the_canvas_and_a_right_answer(benchmark, data):
    length, tokens = 4, st.integers(0, 3)
    answers = data.draw(st.lists(st.tuples(*[tokens] * length), min_size=1, max_size=4))
    canvas = data.draw(st.tuples(*[st.integers(0, 4)] * length))  # 4 is the mask
    found = benchmark("quality").faults(np.array(canvas), np.array(answers), 4)

    def fits(ids):
        return any(all(a in (b, 4) for a, b in zip(ids, answer, strict=True)) for answer in answers)

    without = [(*canvas[:i], 4, *canvas[i + 1 :]) for i in range(length)]
    if fits(canvas):
        assert not found.any()
    elif any(map(fits, without)):
        assert found.tolist() == [fits(ids) for ids in without]
    else:
        assert found is None


def test_all_right_answers_are_known(benchmark):
    quality = benchmark("quality")
    assert len(quality.squares(4)) == 576
    for name in ("lists", "latin-square"):
        task = dllm_gym.load_task(name)
        for index in range(12):
            problem = task.problem(index)
            found = quality.answers(task, problem)
            assert problem.reference in found
            assert all(task.score(answer, problem) == 1 for answer in list(found)[:20])


def test_judges_are_compared(run_benchmark, tmp_path):
    run_benchmark("quality", "--episodes", 4, "--dllms", "tiny-latin", "--output", tmp_path / "quality")
    rows = json.loads((tmp_path / "quality.json").read_text())["rows"]
    assert [row["rule"] for row in rows] == ["confidence:k=2", "confidence:k=4", "random:k=2"]
    for row in rows:
        assert row["canvases"] + row["left_out"] == 4 * (4 if row["rule"] == "confidence:k=4" else 8)
    assert "| tiny-latin | `random:k=2` |" in (tmp_path / "quality.md").read_text()


# Growth and training ----------------------------------------------------------------------------------------


def test_exponents_of_growth(benchmark, run_benchmark, tmp_path):
    exponent = benchmark("growth").exponent
    assert exponent([1, 2, 4], [3.0, 6.0, 12.0]) == pytest.approx(1.0)
    assert exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2.0)
    report = tmp_path / "growth.json"
    run_benchmark(
        "growth", "--grow", "blocks", "--points", 2, "--rounds", 1, "--seconds", 0, "--output", report
    )
    points = json.loads(report.read_text())["results"]["blocks"]["points"]
    assert [point["blocks"] for point in points] == [1, 2]
    assert all(0 < point["outside_model"] < point["milliseconds"] for point in points)


def test_where_the_time_of_training_goes(benchmark, run_benchmark, monkeypatch, tmp_path):
    two_rules = partial(compare, strategies=[make_strategy("confidence", k=k) for k in (4, 8)])
    monkeypatch.setattr(benchmark("training"), "compare", two_rules)
    report = tmp_path / "training.json"
    sizes = ["--steps", 2048, "--cases", 1, "--lead-steps", 2048, "--lead-every", 2048, "--episodes", 2]
    run_benchmark("training", *sizes, "--leaders", "a2c-full", "--seeds", 0, "--output", report)
    content = json.loads(report.read_text())
    (row,), (lead,) = content["splits"], content["leads"]
    parts = [row[name] for name in ("dllm", "policy", "update", "rest")]
    assert sum(parts) == pytest.approx(1.0, abs=0.01)
    assert min(parts) > 0
    assert lead["evaluations"][-1]["timesteps"] >= 2048
    before = report.read_text()
    run_benchmark("training", *sizes, "--leaders", "a2c-full", "--seeds", 0, "--resume", "--output", report)
    assert report.read_text() == before  # nothing was left to measure
    text = benchmark("training").table([row], [{**lead, "first": [None, lead["evaluations"][0]]}])
    assert "| a2c-full | 1 | never (never) |" in text


# The suite --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("toys")
def test_figures_of_the_suite_are_measured_and_kept(benchmark, monkeypatch, tmp_path):
    suite = benchmark("suite")
    members = [Member("One", "toy", "toy", trained="margin:k=2"), Member("Two", "toy", "toy", block_length=2)]
    monkeypatch.setattr(suite, "SUITE", members)
    monkeypatch.setattr(suite, "COMPILED", {})
    output = tmp_path / "suite.json"
    options = [
        "--episodes", "6", "--strategies", "short", "--keep", str(tmp_path / "keep"), "--output", str(output)
    ]  # fmt: skip
    suite.main(["Two", *options])
    assert list(read_figures(output)) == [members[1].id]
    read_figures.cache_clear()
    suite.main(options)
    figures = read_figures(output)
    assert list(figures) == [member.id for member in members]
    for member, found in zip(members, figures.values(), strict=True):
        assert (found.completion_length, found.vocabulary, found.episodes) == (6, 13, 6)
        everyone = filter(None, (found.oracle, found.best_rule, found.trained))
        for measured in everyone:
            result = dllm_gym.evaluate(measured.agent, 6, **member.env)
            assert measured.reward == pytest.approx(result.reward_mean, abs=1e-5)
            assert measured.label == result.label
        rules = dllm_gym.compare([], 6, "validation", strategies="short", **member.env).results
        best = max(rules, key=lambda result: result.reward_mean)
        assert found.best_rule.label == best.label
    with pytest.raises(SystemExit):
        suite.main(["Three", *options])


@pytest.mark.usefixtures("toys")
def test_end_tokens_are_told_by_block_length_and_tenth(benchmark, run_benchmark, monkeypatch, tmp_path):
    end_tokens = benchmark("end_tokens")
    monkeypatch.setattr(end_tokens, "member", lambda id: Member(id, "toy", "toy"))
    monkeypatch.setattr(end_tokens, "BLOCKS", (2, None))
    monkeypatch.setattr(end_tokens, "COMPILED", {})
    output = tmp_path / "end_tokens.json"
    run_benchmark(
        "end_tokens", "--rules", "confidence", "eoser", "--per-step", 2, "--episodes", 4, "--output", output
    )
    rows = json.loads(output.read_text())["results"]
    assert [(row["rule"], row["block_length"]) for row in rows] == [
        (rule, block) for rule in ("confidence", "eoser") for block in (2, None)
    ]
    assert {row["steps"] for row in rows} == {3}  # equal, whatever the block length
    for row in rows:
        result = dllm_gym.evaluate(
            f"{row['rule']}:k=2", 4, task="toy", backend="toy", block_length=row["block_length"]
        )
        assert row["accuracy"] == result.accuracy
    assert "| `eoser` |" in output.with_suffix(".md").read_text()


def test_the_share_of_end_tokens_in_each_tenth(benchmark):
    recording = dllm_gym.Recording(
        label="by hand",
        reveal_step=[[1, 2, 2, 1], [10, 9, 1, 1]],
        confidence=[[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.9]],
        steps=[2, 10],
        score=[1, 0],
        problem=[0, 1],
        block_length=4,
        text_length=[2, 3],
    )
    found = benchmark("end_tokens").by_tenth(recording)
    # of two steps the second begins in the middle: the sixth tenth
    assert found["end_tokens"] == [0.5, None, None, None, None, 0.5, None, None, 0.0, 0.0]
    assert found["confidence"] == [0.65, None, None, None, None, 0.3, None, None, None, None]


@pytest.mark.slow
def test_the_server_is_measured_with_one_client_and_with_many(run_benchmark, tmp_path):
    options = ("--clients", 4, "--problems", 8, "--rounds", 1, "--output", tmp_path / "serving.json")
    run_benchmark("serving", *options)
    found = json.loads((tmp_path / "serving.json").read_text())
    assert found["clients"] == 4
    assert found["ratio"] == pytest.approx(found["at_once"] / found["one_at_a_time"], rel=0.01)
    assert "| 4 clients |" in (tmp_path / "serving.md").read_text()


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_on_a_small_shape(benchmark, run_benchmark, monkeypatch, tmp_path):
    gpu = benchmark("gpu")
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        run_benchmark("gpu", "--output", tmp_path / "gpu.json")
    options = ["--shape", "tiny", "--rows", 1, 2, "--length", 16, "--block-length", 8, "--rounds", 1]
    options += ["--seconds", 0.01, "--grpo-steps", 2048, "--output", tmp_path / "gpu.json"]
    options += ["--compiler", "eager"]  # traces only: generating code takes a minute
    run_benchmark("gpu", *options)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [(row["block_length"], row["batch_size"]) for row in found["limits"]] == [
        (8, 1), (8, 2), (None, 1), (None, 2)
    ]  # fmt: skip
    for row in found["limits"]:
        assert row["outside"] == pytest.approx(row["picking"] + row["episodes"] + row["rest"], abs=1e-3)
    assert [row["per_step"] for row in found["copies"]] == [{}, {}]  # there is no device to copy to
    assert [row["batch_size"] for row in found["compiled"]] == [1, 2]
    assert all(row["eager"] > 0 < row["compiled"] for row in found["compiled"])
    assert sum(found["grpo"][part] for part in ("dllm", "policy", "update", "rest")) == pytest.approx(
        1, abs=1e-2
    )
    assert found["left_out"] == []
    run_benchmark("gpu", *options, "--minutes", -1)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["left_out"] == ["limits", "copies", "compiled", "grpo"]
    assert "Left out: limits, copies, compiled, grpo" in (tmp_path / "gpu.md").read_text()


@pytest.mark.slow
def test_what_posttraining_gains_is_measured_and_what_is_finished_is_kept(benchmark, run_benchmark, tmp_path):
    posttraining = benchmark("posttraining")
    output = tmp_path / "posttraining.json"
    options = ["--rounds", 2, "--groups", 1, "--validation", 2, "--episodes", 4]
    options += ["--directory", tmp_path / "runs", "--output", output, "--seeds", 0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(posttraining, "COMPILED", {})
        patch.setattr(posttraining, "DECODINGS", ("confidence:k=24", "fast-dllm:threshold=0.5"))
        run_benchmark("posttraining", "agrpo", *options, 1)
        first = json.loads(output.read_text())
        run_benchmark("posttraining", "agrpo", "diffu-grpo", *options)
        patch.setattr(posttraining, "posttrain", None)  # nothing is trained any more
        run_benchmark("posttraining", "--finished", *options, 1)
    found = json.loads(output.read_text())
    assert [(run["method"], run["seed"]) for run in found["runs"]] == [
        ("agrpo", 0), ("diffu-grpo", 0), ("agrpo", 1)
    ]  # fmt: skip
    assert [run for run in found["runs"] if run["method"] == "agrpo"] == first["runs"]
    assert found["gains"]["agrpo"] == first["gains"]["agrpo"]
    for at, before in enumerate(found["before"]):
        gain = found["gains"]["agrpo"][at]
        after = [run["test"][at]["accuracy"] for run in first["runs"]]
        assert gain["accuracy_of_seeds"] == pytest.approx([one - before["accuracy"] for one in after])
        duel = found["duels"]["agrpo - diffu-grpo"][at]
        pair = [run["test"][at]["accuracy"] for run in found["runs"][:2]]
        assert duel["accuracy_of_seeds"] == pytest.approx([pair[0] - pair[1]])
    text = output.with_suffix(".md").read_text()
    assert "| agrpo - diffu-grpo |" in text
    assert output.with_suffix(".png").is_file()
    with pytest.raises(SystemExit):
        run_benchmark("posttraining", "ppo", *options)


@pytest.mark.slow
def test_what_learning_jointly_gains_is_measured_and_what_is_finished_is_kept(
    benchmark, run_benchmark, tmp_path
):
    joint = benchmark("joint")
    output = tmp_path / "joint.json"
    options = ["--rounds", 1, "--groups", 1, "--validation", 2, "--episodes", 4, "--seeds", 0]
    options += ["--directory", tmp_path / "runs", "--output", output]
    with pytest.MonkeyPatch.context() as patch:
        run_benchmark("joint", *options)
        first = json.loads(output.read_text())
        patch.setattr(joint.posttraining, "posttrain", None)  # nothing is trained any more
        run_benchmark("joint", *options)
    found = json.loads(output.read_text())
    assert found == first
    assert [run["learns"] for run in found["runs"]] == list(joint.WHO)
    given = SimpleNamespace(rounds=1, groups=1, learning_rate=1e-4, directory=tmp_path / "runs")
    given.policy_rate = joint.POLICY_RATE
    folders = {name: joint.place(name, 0, given) for name in joint.WHO[:3]}
    configs = {name: load_posttrain_config(folder / "config.yaml") for name, folder in folders.items()}
    rates = {
        name: (config.method_kwargs["learning_rate"], config.made_joint().learning_rate)
        for name, config in configs.items()
    }
    assert rates == {
        "both": (1e-4, joint.POLICY_RATE), "dLLM alone": (1e-4, 0), "policy alone": (0, joint.POLICY_RATE)
    }  # fmt: skip
    by_name = {run["learns"]: run["test"] for run in found["runs"]}
    for other in joint.WHO[1:]:
        duel = found["duels"][f"both - {other}"]
        for key, name in (("accuracy", "accuracy"), ("nfe", "nfe_mean"), ("reward", "reward_mean")):
            difference = by_name["both"][name] - by_name[other][name]
            assert duel[f"{key}_of_seeds"] == pytest.approx([difference], abs=1e-3)
    assert "| both - policy alone |" in output.with_suffix(".md").read_text()


def test_gains_are_paired_by_problem_and_by_training(benchmark):
    posttraining = benchmark("posttraining")

    def result(success, nfe):
        records = SimpleNamespace(success=np.array(success, float), nfe=np.array(nfe, float))
        return SimpleNamespace(records=records)

    before = result([0, 0, 1, 1], [4, 4, 4, 4])
    after = [result([1, 0, 1, 1], [2, 4, 4, 4]), result([1, 1, 1, 0], [2, 2, 4, 4])]
    found = posttraining.against(after, [before, before])
    assert found["accuracy_of_seeds"] == [0.25, 0.25]
    assert (found["accuracy"], found["nfe"], found["trainings"]) == (0.25, -0.75, 2)
    differences = [1, 0.5, 0, -0.5]  # of the problems, means over the trainings
    assert found["accuracy_ci95"] == pytest.approx(mean_interval(differences), abs=1e-4)
    alone = posttraining.against(after[:1], [before])
    assert alone["accuracy_ci95"] == pytest.approx(
        paired_share_interval(after[0].records.success, before.records.success), abs=1e-4
    )


@pytest.mark.slow
def test_predictions_fed_back_are_compared_in_pairs_and_what_is_finished_is_kept(
    benchmark, run_benchmark, tmp_path
):
    residual = benchmark("residual_context")
    output = tmp_path / "residual.json"
    options = ["--steps", 1, "--batch-size", 1, "--seeds", 0, 1, "--episodes", 3, "--output", output]
    options += ["--policy-steps", 64, "--policy-seeds", 1, "--directory", tmp_path / "runs"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(residual, "FIXED", ("confidence:k=24", "confidence:k=48"))
        patch.setattr(residual, "ADAPTIVE", ("fast-dllm:threshold=0.5",))
        patch.setattr(residual, "BUDGETS", (0.1,))
        run_benchmark("residual_context", *options)
        first = json.loads(output.read_text())
        for name in ("Pretrainer", "train"):
            patch.setattr(residual, name, None)  # nothing is trained any more
        run_benchmark("residual_context", *options)
    found = json.loads(output.read_text())
    assert found == first
    assert found["kind"] in residual.KINDS
    assert set(found["validation"]["accuracy"]) == {"plain", *residual.KINDS}
    assert len(found["against"]) == 2
    for one in found["against"].values():
        steps = {row["label"]: (row["plain_nfe_mean"], row["fed_back_nfe_mean"]) for row in one["rules"]}
        assert steps["confidence:k=24"] == (2, 2)
        assert steps["confidence:k=48"] == (1, 1)
        assert len(one["equal_forwards"]["accuracy_of_seeds"]) == 2
    assert [row["label"] for row in found["policies"]["budgets"]] == ["budget=0.1"]
    assert "| budget=0.1 |" in output.with_suffix(".md").read_text()


def test_forwards_at_equal_accuracy_are_read_off_the_hulls(benchmark):
    residual = benchmark("residual_context")

    def result(correct, nfe):
        records = SimpleNamespace(
            success=np.repeat([1.0, 0.0], [correct, 100 - correct]), nfe=np.full(100, nfe)
        )
        return SimpleNamespace(records=records, episodes=100)

    plain = [result(60, 4.0), result(100, 8.0)]
    half = [result(60, 2.0), result(100, 4.0)]
    found = residual.equal_accuracy([plain, plain], [half, plain])
    levels = [0.65, 0.7, 0.75, 0.8, 0.85, 0.9]
    assert [row["accuracy"] for row in found] == levels
    assert [row["plain"] for row in found] == pytest.approx([4 + 10 * (level - 0.6) for level in levels])
    assert [row["fed_back"] for row in found] == pytest.approx(
        [3 + 7.5 * (a - 0.6) for a in levels], abs=0.01
    )
    assert all(row["ratio"] == -0.25 for row in found)
    assert all(row["ratio_ci95"] == [-0.25, -0.25] for row in found)  # the same resamples for both


# Latin squares by reasoning ---------------------------------------------------------------------------------


def test_who_searches_is_always_right_on_latin_squares_and_who_compares_pairs_is_not(benchmark):
    logic = benchmark("latin_logic")
    assert logic.latin_squares().shape == (576, 16)  # as many as there are of size 4
    (first,) = dllm_gym.load_backend("tiny-latin").tokenizer.encode("1")
    env = {"task": "latin-square", "backend": "tiny-latin"}
    by_rule = {
        rule: dllm_gym.evaluate(logic.Logic(rule, 0.0, first), 40, **env) for rule in ("squares", "pairs")
    }
    assert by_rule["squares"].accuracy == 1.0
    assert by_rule["squares"].nfe_mean < 2.5
    assert by_rule["pairs"].accuracy < 0.7
