"""What the README and the examples show a newcomer really runs."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

import dllm_gym.backends
import dllm_gym.tasks

ROOT = Path(__file__).parents[1]


def run_snippets(page):
    names: dict[str, object] = {}
    for snippet in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(snippet, page, "exec"), names)  # our own text, not a stranger's


def run_example(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    # what an example registers must not stay
    monkeypatch.setattr(dllm_gym.tasks, "_TASKS", dict(dllm_gym.tasks._TASKS))
    monkeypatch.setattr(dllm_gym.backends, "_factories", dict(dllm_gym.backends._factories))
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


def test_readme_snippets_run_from_top_to_bottom(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run_snippets("README.md")
    printed = capsys.readouterr().out
    assert re.search(r"(right|wrong) in \d+ steps", printed)
    assert re.search(r"#### \d+ \| \d\.\d tokens per step", printed)
    assert re.search(r"0\.\d+ right in \d+\.\d steps on average", printed)


def test_the_page_on_analysis_runs_from_top_to_bottom(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run_snippets("docs/analysis.md")
    printed = capsys.readouterr().out
    assert "arithmetic-full (sample) [" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["analysis.png", "policy.npz"]


def test_the_page_on_generation_runs_from_top_to_bottom(capsys):
    run_snippets("docs/generation.md")
    printed = capsys.readouterr().out
    assert re.search(r"#### \d+  \(\d+ steps, \d\.\d tokens per step\)", printed)
    assert re.search(r"^1 ░", printed, re.MULTILINE)
    assert re.search(r"#### 15$", printed.rstrip())


def test_quickstart_shows_an_episode(capsys, monkeypatch):
    run_example(monkeypatch, "quickstart.py")
    assert "reward" in capsys.readouterr().out


def test_own_agent_is_compared(capsys, monkeypatch):
    run_example(monkeypatch, "own_agent.py", "--episodes", 8)
    printed = capsys.readouterr().out
    assert "warming-up" in printed
    assert "above their envelope" in printed


def test_own_dllm_decodes_left_to_right(capsys, monkeypatch):
    run_example(monkeypatch, "own_dllm.py")
    assert "'reveal what you know first': reward 0.167" in capsys.readouterr().out


def test_a_callable_is_a_dllm(capsys, monkeypatch):
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


def test_film_is_an_animation(monkeypatch, tmp_path):
    run_example(monkeypatch, "film.py", "--agent", "confidence:k=8", "--output", tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 7


@pytest.mark.slow
def test_ppo_against_a2c_plots_both(monkeypatch, tmp_path):
    run_example(monkeypatch, "ppo_against_a2c.py", "--total-timesteps", 8192, "--output", tmp_path)
    assert (tmp_path / "curves.png").stat().st_size > 10_000
