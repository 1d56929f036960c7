"""lm-evaluation-harness with our model: the real package on a local task, scored as ``evaluate`` scores."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module

import numpy as np
import pytest
from test_docs import ROOT, SNIPPET, read_page

import dllm_gym
from dllm_gym.likelihood import are_greedy, log_likelihoods

lm_eval = pytest.importorskip("lm_eval", reason="needs pip install 'dllm-gym[lm-eval]'")
Instance = pytest.importorskip("lm_eval.api.instance").Instance
TaskManager = pytest.importorskip("lm_eval.tasks").TaskManager
get_model = pytest.importorskip("lm_eval.api.registry").get_model
DiffusionLM = pytest.importorskip("dllm_gym.lm_eval.model").DiffusionLM

PROBLEMS = 12
TASK = dllm_gym.load_task("arithmetic", split="test")
COMMON = """dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/problems.jsonl}}}}
test_split: test
doc_to_text: "{{{{prompt}}}}"
"""
CHAINS = """task: chains
output_type: generate_until
doc_to_target: "{{reference}}"
process_results: !function scoring.process_results
generation_kwargs: {until: []}
metric_list: [{metric: score, aggregation: mean, higher_is_better: true}]
"""
CHOICES = """task: choices
output_type: multiple_choice
target_delimiter: ""
doc_to_choice: "{{choices}}"
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
PERPLEXITY = """task: perplexity
output_type: loglikelihood_rolling
doc_to_target: "{{prompt}}"
metric_list: [{metric: bits_per_byte}]
"""
SCORING = """import dllm_gym

TASK = dllm_gym.load_task("arithmetic", split="test")


def process_results(doc, results):
    return {"score": TASK.score(results[0], TASK.problem(doc["index"]))}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tasks of lm-eval that are ours: problems as JSON lines, our scorer, and no network."""
    folder = tmp_path_factory.mktemp("tasks")
    with (folder / "problems.jsonl").open("w") as file:
        for index in range(PROBLEMS):
            problem = TASK.problem(index)
            right = TASK.write(problem, np.random.default_rng(index))
            wrong = right[:-1] + str((int(right[-1]) + 1) % 10)
            line = {"index": index, "prompt": problem.prompt, "reference": problem.reference}
            file.write(json.dumps({**line, "choices": [right, wrong]}) + "\n")
    for name, task in (("chains", CHAINS), ("choices", CHOICES), ("perplexity", PERPLEXITY)):
        (folder / f"{name}.yaml").write_text(COMMON.format(folder=folder) + task)
    (folder / "scoring.py").write_text(SCORING)
    os.environ.setdefault("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """Runs tasks; results and the samples of each."""

    def run(model, *tasks, **options):
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        options = {"apply_chat_template": True, **options}
        found = lm_eval.simple_evaluate(
            model, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, **options
        )
        return found, {task: found["samples"][task] for task in tasks}

    return run


SAM = "Sam has 20 coins, finds 4, loses 9. Total?"


def ask(model, question=SAM, **generation_kwargs):
    prompt = model.apply_chat_template([{"role": "user", "content": question}])
    requests = [Instance("generate_until", {}, (prompt, generation_kwargs), 0, ("asked", 3, 1))]
    return model.generate_until(requests, disable_tqdm=True)[0]


# Texts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("agent", "options"),
    [
        ("policy:arithmetic-full", {}),
        ("policy:arithmetic-semi:deterministic", {}),  # in its blocks
        ("random:k=3", {"block_length": 16, "seed": 5}),
        (
            "fast-dllm:threshold=0.6",
            {"pretrained": "tiny-arithmetic-dream", "block_length": "full", "completion_length": 48},
        ),
    ],
)
def test_scores_and_steps_are_those_of_evaluate(run, tmp_path, agent, options):
    log = tmp_path / "log.jsonl"
    model = DiffusionLM(agent=agent, batch_size=5, log=str(log), **options)
    found, samples = run(model, "chains")
    told = {{"pretrained": "backend"}.get(name, name): value for name, value in options.items()}
    if told.get("block_length") == "full":
        told["block_length"] = None
    expected = dllm_gym.evaluate(agent, PROBLEMS, stop_at_eos=True, **told)
    assert [one["score"] for one in samples["chains"]] == expected.records.score.tolist()
    assert [one["resps"] for one in samples["chains"]] == [[[text]] for text in expected.records.completion]
    assert found["results"]["chains"]["score,none"] == pytest.approx(expected.accuracy)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["doc_id"]: line["steps"] for line in lines} == dict(enumerate(expected.records.nfe.tolist()))
    info = model.get_model_info()["dllm_gym"]
    assert info["steps"]["chains"]["answers"] == PROBLEMS
    assert info["steps"]["chains"]["steps_mean"] == pytest.approx(expected.nfe_mean)
    assert info["steps"]["chains"]["tokens_per_step"] == sum(line["tokens"] for line in lines) / sum(
        line["steps"] for line in lines
    )
    json.dumps(info)


def test_answers_do_not_depend_on_other_tasks_or_batches(run):
    """Draws are seeded by the place in a task."""
    model = DiffusionLM(agent="random:k=3", batch_size=5)
    alone, _ = run(model, "chains", limit=5)
    prompts = [Instance("generate_until", {}, ("Sam has 2", {}), 0, ("other", at, 1)) for at in range(3)]
    chains = [
        Instance("generate_until", {}, (one["arguments"][0][0], {}), 0, ("chains", one["doc_id"], 1))
        for one in alone["samples"]["chains"]
    ]
    mixed = DiffusionLM(agent="random:k=3", batch_size=3).generate_until([*prompts, *chains])
    assert mixed[3:] == [one["resps"][0][0] for one in alone["samples"]["chains"]]


def test_an_answer_ends_before_the_first_of_its_stop_strings():
    model = DiffusionLM(agent="policy:arithmetic-full:deterministic")
    whole = ask(model)
    assert ask(model, until=["####"]) == whole[: whole.index("####")]
    assert ask(model, until=["####", ".", ""]) == whole[: whole.index(".")]
    assert ask(model, until="nowhere") == whole


def test_the_canvas_is_what_is_told_or_what_the_task_says():
    lengths = {}
    for told in (None, 9):
        model = DiffusionLM(agent="left-to-right", completion_length=told)
        for said in ({}, {"max_gen_toks": 7}):
            ask(model, until=[], **said)
            lengths[told, *said] = model._counts["asked"][-1][1]
    assert lengths[None, "max_gen_toks"] == 7
    assert lengths[9,] == lengths[9, "max_gen_toks"] == 9
    assert lengths[None,] > 9


def test_temperature_is_the_tasks(caplog):
    model = DiffusionLM(agent="confidence:k=8")
    drawn = ask(model, do_sample=True, temperature=3.0, top_p=0.9)
    assert "generation_kwargs without a meaning here: top_p" in caplog.text
    assert drawn != ask(model, do_sample=False, temperature=0.0) == ask(model)


def test_finished_answers_are_kept_as_lm_eval_keeps_them():
    kept = []
    model = DiffusionLM(agent="confidence:k=8")
    model.cache_hook.add_partial = lambda *partial: kept.append(partial)
    text = ask(model, until=["."])
    ((kind, (prompt, said), kept_text),) = kept
    assert (kind, said, kept_text) == ("generate_until", {"until": ["."]}, text)
    assert SAM in prompt


# Prompts ---------------------------------------------------------------------------------------------------


def test_a_text_is_read_as_it_is_and_a_chat_by_its_template():
    model = DiffusionLM()
    backend = dllm_gym.load_backend("tiny-arithmetic")
    chat = model.apply_chat_template([{"role": "user", "content": "Sam has 2"}])
    assert model.tok_encode(chat) == backend.encode_prompt("Sam has 2")
    assert backend.tokenizer.convert_ids_to_tokens(model.tok_encode("Sam has 2")) == ["Sam", "has", "2"]
    assert model.chat_template(True) == backend.tokenizer.chat_template
    assert model.chat_template(False) is None
    with pytest.raises(ValueError, match="--apply_chat_template without a name"):
        model.chat_template("other")
    with pytest.raises(ValueError, match="has words this dLLM does not know: hello"):
        ask(model, "hello")


# Log-likelihoods -------------------------------------------------------------------------------------------


def test_choices_are_compared_by_their_log_likelihoods(run):
    model = DiffusionLM(samples=8, batch_size=32)
    found, samples = run(model, "choices", limit=4)
    assert found["results"]["choices"]["acc,none"] == 1.0
    pairs, values = [], []
    for one in samples["choices"]:
        for (prompt, answer), (response,) in zip(one["arguments"], one["resps"], strict=True):
            whole, ids = model.tok_encode(prompt + answer), model.tok_encode(prompt)
            pairs.append((ids, whole[len(ids) :]))
            values.append(response)
    expected = log_likelihoods(model._backend, pairs, 8)
    np.testing.assert_allclose([value for value, _ in values], expected, rtol=1e-4)
    assert [greedy for _, greedy in values] == are_greedy(model._backend, pairs).tolist()


def test_an_answer_to_nothing_follows_the_first_token():
    model = DiffusionLM(samples=4)
    ((value, greedy),) = model.loglikelihood([Instance("loglikelihood", {}, ("", "Sam"), 0)])
    first, sam = model.tokenizer.convert_tokens_to_ids([model.tokenizer.bos_token, "Sam"])
    assert value == pytest.approx(log_likelihoods(model._backend, [([first], [sam])])[0])
    assert not greedy


def test_perplexities_are_refused(run):
    with pytest.raises(NotImplementedError, match="not of a running text: tasks of perplexity"):
        run(DiffusionLM(), "perplexity", apply_chat_template=False)


# Names and arguments ---------------------------------------------------------------------------------------


def test_the_model_is_found_by_its_name(monkeypatch):
    assert get_model("dllm-gym") is DiffusionLM
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["entry-points"]["lm_eval.models"]["dllm-gym"].partition(":")
    assert getattr(import_module(module), name) is DiffusionLM
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    told = {"batch_size": "auto:4", "max_batch_size": 7, "device": "cuda:0"}
    model = DiffusionLM.create_from_arg_string(
        "pretrained=tiny-arithmetic-dream,agent=fast-dllm:threshold=0.6,dtype=float32", told
    )
    info = model.get_model_info()["dllm_gym"]
    assert (info["backend"], info["agent"]) == ("tiny-arithmetic-dream", "fast-dllm(threshold=0.6)")
    assert (info["backend_kwargs"], model._rows) == ({"dtype": "float32"}, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"agent": "fast-dlm"}, "did you mean 'fast-dllm'"),
        ({"pretrained": "tiny-arithmetc"}, "did you mean 'tiny-arithmetic'"),
        ({"dtyp": "auto"}, "dtyp"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        DiffusionLM(**arguments)


@pytest.mark.slow
def test_the_page_scores_as_evaluate_from_the_command_line(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    page = read_page("docs/lm_eval.md")
    names = {"dllm_gym": dllm_gym}
    *_, problems, scoring = [snippet for _, snippet in SNIPPET.findall(page)]
    exec(compile(problems, "docs/lm_eval.md", "exec"), names)  # our own text
    (tmp_path / "tasks" / "scoring.py").write_text(scoring)
    (tmp_path / "tasks" / "chains.yaml").write_text(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
    command = re.findall(r"```console\n(?:pip .*\n)?python (.*?)```", page, re.DOTALL)[-1]
    path = os.pathsep.join([str(ROOT), str(ROOT / "agents"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *shlex.split(command.replace("\\\n", " "))],
        env=os.environ | {"PYTHONPATH": path, "HF_DATASETS_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected = dllm_gym.evaluate("policy:arithmetic-full:deterministic", 40, stop_at_eos=True)
    (file,) = (tmp_path / "results").rglob("results*.json")
    results = json.loads(file.read_text())
    assert results["results"]["chains"]["score,none"] == pytest.approx(expected.accuracy)
    assert results["config"]["dllm_gym"]["steps"]["chains"]["steps_mean"] == pytest.approx(expected.nfe_mean)
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 40
