"""What the README, the pages and the examples show a newcomer really runs."""

import dataclasses
import json
import re
import runpy
import sys
from pathlib import Path

import family_checkpoints
import pytest
import torch
import yaml
from PIL import Image
from test_paper import write_tiny_checkpoint

from dllm_agents import save_policy
from dllm_agents.config import TrainConfig
from dllm_agents.networks import UnmaskTransformer, UnmaskTransformerConfig

ROOT = Path(__file__).parents[1]
# Python that a user would paste, and the reason why it is not run, if there is one.
SNIPPET = re.compile(r"(?:<!-- not run: (.+) -->\n)?```python\n(.*?)```", re.DOTALL)


def read_page(page):
    return (ROOT / page).read_text(encoding="utf-8")


GENERATED = runpy.run_path(str(ROOT / "docs" / "generated.py"))
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
# in test_libraries.py: some libraries need a process of their own; in test_sharing.py: it has a hub
ELSEWHERE = {"docs/libraries.md", "docs/sharing.md"}
SLOW = {"docs/your_task.md"}  # it trains, compares, films and reports
WITH_PYTHON = [page for page in PAGES if SNIPPET.search(read_page(page)) and page not in ELSEWHERE]


# Pages ----------------------------------------------------------------------------------------------------


def write_rows(path, *rows):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_data():
    """A tiny LLaDA in a directory of the published one's name, where it is looked for first, and problems."""
    Path("GSAI-ML").mkdir()
    write_tiny_checkpoint(Path("GSAI-ML/LLaDA-8B-Instruct"), "llada")
    problems = [{"question": f"What is {n} + {n}?", "answer": f"#### {2 * n}"} for n in range(40)]
    write_rows("gsm8k/test.jsonl", problems[0])
    write_rows("gsm8k/train.jsonl", *problems)
    for n in range(40):
        write_rows(f"MATH/train/algebra/{n}.json", {"problem": f"{n}^2?", "solution": f"\\boxed{{{n * n}}}"})
    return problems[:1]


def before_backends(monkeypatch):
    write_data()
    Path("inclusionAI").mkdir()
    family_checkpoints.write_llada2(Path("inclusionAI/LLaDA2.0-flash"))
    family_checkpoints.write_a2d_llama(Path("runs/my-a2d"))
    return {"logits": lambda tokens, mask: torch.zeros(*tokens.shape, 9), "tokenizer": object()}


def before_tasks(monkeypatch):
    write_data()
    return {}


def before_paper(monkeypatch):
    hub = {("openai/gsm8k", "main", "test"): write_data()}
    monkeypatch.setattr("datasets.load_dataset", lambda name, config, split: hub[name, config, split])
    save_policy("runs/llada-bl32", UnmaskTransformer(UnmaskTransformerConfig(width=8)))
    return {}


def before_your_model(monkeypatch):
    write_data()
    return {}


def before_your_task(monkeypatch):
    """The files that the page shows, with a training of seconds for one of a minute."""
    page = read_page("docs/your_task.md")
    (task,) = [snippet for _, snippet in SNIPPET.findall(page) if "class MyTask" in snippet]
    Path("my_task.py").write_text(task, encoding="utf-8")
    (configuration,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    smaller = {"num_envs: 128": "num_envs: 16", "total_timesteps: 200000": "total_timesteps: 1024"}
    smaller |= {"batch_size: 256": "batch_size: 64", "eval_episodes: 64": "eval_episodes: 8"}
    smaller |= {"warm_start_steps: 60000": "warm_start_steps: 256"}
    for written, instead in smaller.items():
        assert written in configuration
        configuration = configuration.replace(written, instead)
    Path("mine.yaml").write_text(configuration, encoding="utf-8")
    monkeypatch.syspath_prepend(Path.cwd())
    monkeypatch.delitem(sys.modules, "my_task", raising=False)
    return {}


# What a page takes for granted: files in the working directory, and names.
BEFORE = {
    "docs/backends.md": before_backends,
    "docs/paper.md": before_paper,
    "docs/tasks.md": before_tasks,
    "docs/your_model.md": before_your_model,
    "docs/your_task.md": before_your_task,
}
PRINTS = {
    "README.md": [
        r"(right|wrong) in \d+ steps",
        r"#### \d+ \| \d\.\d tokens per step",
        r"0\.\d+ right in \d+\.\d steps on average",
    ],
    "docs/analysis.md": [r"arithmetic-full \(sample\) \["],
    "docs/evaluation.md": [
        r"\(0\.\d+ to \d\.\d+\) right in",
        r"arithmetic-full \(sample\): .0\.\d+ \(.\d\.\d+ to",
    ],
    "docs/extending.md": [r"^patient \d", r"^cautious\(threshold=0.8\)$", r"^0\.5 deadline$"],
    "docs/generation.md": [r"#### \d+  \(\d+ steps, \d\.\d tokens per step\)", r"^1 ░", r"#### 15\n\Z"],
    "docs/looking.md": [r"^arithmetic-full \(sample\): (correct|wrong)   score [01], \d+ steps, reward \d"],
    "docs/studies.md": [
        r"^\[2/2\] (a2c|ppo)/sudoku/0: done after",
        r"^ppo: [01]\.\d\d right in \d+\.\d steps$",
    ],
    "docs/server.md": [r"#### \d+ \{'steps': \d+, 'seed': \d+\}$"],
    "docs/sandbox.md": [r"^finished \(True, False\)$"],
    "docs/your_model.md": [r"\(\d+ steps, \d+\.\d tokens per step\)$"],
    "docs/your_task.md": [
        rf"^{agent}: [01]\.\d\d \([01]\.\d\d to [01]\.\d\d\) right in \d+\.\d steps$"
        for agent in (r"mine \(sample\)", r"fast-dllm\(threshold=0\.9\)", r"confidence\(k=4\)")
    ],
    "docs/vectorization.md": [r"^\(8, 16\) MultiBinary\(16\)$", r"^[01]\.\d\d right$", r"^\{\d+: \d+, "],
}

WRITES = {
    "docs/analysis.md": {"analysis.png", "policy.npz"},
    "docs/evaluation.md": {"pareto.png"},
    "docs/looking.md": {"episode.gif"},
    "docs/your_task.md": {"film.gif", "problems.jsonl", "runs"},
}


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow) if page in SLOW else page for page in WITH_PYTHON],
)
def test_a_page_runs_from_top_to_bottom(page, capsys, monkeypatch, tmp_path, registries):
    """Its snippets share their names, as they do for a reader. Sizes are what keeps this short."""
    monkeypatch.chdir(tmp_path)
    names = BEFORE[page](monkeypatch) if page in BEFORE else {}
    for reason, snippet in SNIPPET.findall(read_page(page)):
        if not reason:
            exec(compile(snippet, page, "exec"), names)  # our own text, not a stranger's
    printed = capsys.readouterr().out
    for pattern in PRINTS.get(page, []):
        assert re.search(pattern, printed, re.MULTILINE), printed
    assert WRITES.get(page, set()) <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_what_pages_have_from_docstrings_is_what_these_say(page):
    """Otherwise: ``python docs/generated.py``."""
    text = page.read_text(encoding="utf-8")
    assert text == GENERATED["written"](text)


def test_every_field_of_a_configuration_is_explained():
    page = read_page("docs/your_task.md")
    for field in dataclasses.fields(TrainConfig):
        (meaning,) = re.findall(rf"^\| `{field.name}` \| `.+` \| (.+) \|$", page, re.MULTILINE)
        assert len(meaning.split()) > 2
    (written,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert set(yaml.safe_load(written)) <= {field.name for field in dataclasses.fields(TrainConfig)}


def test_few_snippets_are_left_out():
    reasons = [reason for page in PAGES for reason, _ in SNIPPET.findall(read_page(page)) if reason]
    assert reasons == [
        "bitsandbytes wants a GPU",
        "needs the extra minari",
        "it needs a dLLM to begin with, and minutes",
    ]


# Examples -------------------------------------------------------------------------------------------------


def run_example(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


def test_quickstart_shows_an_episode(capsys, monkeypatch):
    run_example(monkeypatch, "quickstart.py")
    assert "reward" in capsys.readouterr().out


def test_own_agent_is_compared(capsys, monkeypatch):
    run_example(monkeypatch, "own_agent.py", "--episodes", 8)
    printed = capsys.readouterr().out
    assert "warming-up" in printed
    assert "above their envelope" in printed


def test_tree_search_counts_its_forwards(capsys, monkeypatch):
    run_example(monkeypatch, "mcts.py", "--episodes", 2, "--simulations", 3)
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("mcts(simulations=3, price=0.05) ")
    assert float(last.split()[-3]) > 4  # what four at a time would take


def test_own_dllm_decodes_left_to_right(capsys, monkeypatch, registries):
    run_example(monkeypatch, "own_dllm.py")
    assert "'reveal what you know first': reward 0.167" in capsys.readouterr().out


def test_a_callable_is_a_dllm(capsys, monkeypatch, registries):
    run_example(monkeypatch, "callable_dllm.py")
    printed = capsys.readouterr().out
    assert "left-to-right  'the quick brown fox': reward 0.100" in printed
    assert re.search(r"all at once +'the quick .*': reward 0.000", printed)


def test_generate_shows_what_a_policy_buys(capsys, monkeypatch):
    run_example(monkeypatch, "generate.py", "--prompts", 6)
    printed = capsys.readouterr().out
    totals = re.findall(r"(\S+) +(\d+) right, (\d\.\d) tokens per step", printed)
    one_by_one, threshold, policy = (float(speed) for _, _, speed in totals)
    assert one_by_one <= 1 < threshold < policy


def test_own_task_is_solved_where_steps_are_taken(capsys, monkeypatch, registries):
    run_example(monkeypatch, "own_task.py", "--episodes", 10)
    printed = re.findall(
        r"^(\S+) +(\d+\.\d) steps, (\d\.\d\d) solved, score (\d\.\d\d)$", capsys.readouterr().out, re.M
    )
    solved = {name: (float(steps), float(solved), float(score)) for name, steps, solved, score in printed}
    assert solved["fast-dllm(threshold=0.9)"][1] > 0.8
    assert solved["random(k=8)"][0] == 2.0
    assert solved["random(k=8)"][1] < 0.5
    assert 0.2 < solved["random(k=8)"][2] < 0.8  # points for what is right


def test_a_conditioned_policy_takes_the_steps_it_is_told(capsys, monkeypatch):
    run_example(monkeypatch, "conditioned_policy.py", "--episodes", 16, "--target-steps", 4, 12)
    found = re.findall(r"told +(\d+): +(\d+\.\d) steps, (\d\.\d\d) right", capsys.readouterr().out)
    (told, few, _), (_, many, right) = [tuple(map(float, numbers)) for numbers in found]
    assert told == 4
    assert 3 < few < 7 < 10 < many < 14
    assert right > 0.7


def test_the_tour_runs_and_is_kept_without_outputs(capsys):
    tour = json.loads((ROOT / "examples" / "tour.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in tour["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    names = {}
    for cell in cells:
        source = "".join(cell["source"]).replace("EPISODES = 100", "EPISODES = 8")
        exec(compile(source, "tour.ipynb", "exec"), names)
    assert names["EPISODES"] == 8
    assert re.search(r"#### 17 \| \d\.\d tokens per step", capsys.readouterr().out)


def test_film_is_an_animation(monkeypatch, tmp_path):
    run_example(monkeypatch, "film.py", "--agent", "confidence:k=8", "--output", tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 7


@pytest.mark.slow
def test_ppo_against_a2c_plots_both(monkeypatch, tmp_path):
    run_example(monkeypatch, "ppo_against_a2c.py", "--total-timesteps", 12288, "--output", tmp_path)
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    for algorithm in ("ppo", "a2c"):
        rows = json.loads((tmp_path / algorithm / "metrics.json").read_text())["evaluations"]
        steps = [row["timesteps"] for row in rows]
        assert len(steps) >= 4  # a curve
        assert steps == sorted(set(steps))
