"""The commands of the pages for a stranger's first hour, pasted one after the other."""

import json
import os
import re
import subprocess
import sys

import pytest
from test_docs import SNIPPET, before_your_task, read_page, write_data
from test_pages import commands_in_blocks

from dllm_gym import cli


@pytest.fixture
def paste(monkeypatch, capfd):
    """Runs a command as the console script does; what it printed."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # typer replaces it
    monkeypatch.setattr(cli.app, "registered_commands", list(cli.app.registered_commands))

    def run(words):
        monkeypatch.setattr(sys, "argv", ["dllm-gym", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capfd.readouterr()
        assert not ended.value.code, printed.err
        return printed.out

    return run


@pytest.mark.slow
def test_the_commands_about_an_own_task_run_in_an_empty_folder(monkeypatch, paste, tmp_path, registries):
    monkeypatch.chdir(tmp_path)
    before_your_task(monkeypatch)
    page = read_page("docs/your_task.md")
    problems = SNIPPET.search(page)[2]
    exec(compile(problems, "docs/your_task.md", "exec"), {})  # our own text
    train, compare = commands_in_blocks(page)
    paste(train)
    printed = paste(compare)
    for agent in ("mine (sample)", "fast-dllm(threshold=0.9)", "confidence(k=4)"):
        assert agent in printed


@pytest.mark.slow
def test_the_commands_about_a_large_dllm_run_on_a_tiny_one(monkeypatch, paste, tmp_path, registries):
    """But for the training, which ``test_paper`` runs in miniature."""
    monkeypatch.chdir(tmp_path)
    hub = {("openai/gsm8k", "main", "test"): write_data()}
    monkeypatch.setattr("datasets.load_dataset", lambda name, config, split: hub[name, config, split])
    smaller = {"--completion-length": "8", "--block-length": "4", "--batch-size": "2", "--episodes": "1"}
    ran = []
    for words in commands_in_blocks(read_page("docs/your_model.md")):
        if "GSAI-ML/LLaDA-8B-Instruct" in words and words[0] != "train":
            words = [smaller.get(before, word) for before, word in zip(["", *words], words, strict=False)]
            ran.append((words[0], paste(words)))
    assert [name for name, _ in ran] == ["generate", "bench", "compare"]
    assert "plain loop" in ran[1][1]


@pytest.mark.slow
def test_a_strangers_hour_with_the_built_wheel(wheel, monkeypatch, tmp_path):
    """Own task, own data, a minute of training, a comparison, a film and a report: from an empty folder.

    The commands run as a stranger's do, in processes of their own that find the package in the wheel only.
    """
    site, home = tmp_path / "site", tmp_path / "empty"
    home.mkdir()
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def run(*words: str) -> str:
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(site) in run("-c", "import dllm_gym, dllm_agents; print(dllm_gym.__file__)")
    page = read_page("docs/your_task.md")
    snippets = [snippet for _, snippet in SNIPPET.findall(page)]
    run("-c", next(snippet for snippet in snippets if "write_text" in snippet))
    (home / "my_task.py").write_text(next(snippet for snippet in snippets if "class MyTask" in snippet))
    (home / "mine.yaml").write_text(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
    train, compare = commands_in_blocks(page)
    run("-m", "dllm_gym", *train)
    printed = run("-m", "dllm_gym", *compare, "--json", "compare.json")
    assert "fast-dllm(threshold=0.9)" in printed
    compared = json.loads((home / "compare.json").read_text())
    assert len(compared) == 3
    own = ("--import", "my_task.py")
    (told,) = json.loads(
        run("-m", "dllm_gym", "evaluate", "--agent", "runs/mine", "--episodes", "20", *own, "--json", "-")
    )
    assert told["task"] == "mine"  # which nobody named
    run("-m", "dllm_gym", "play", "--gif", "film.gif", "--agent", "runs/mine", *own)
    run("-m", "dllm_gym", "report", "runs/mine", *own)
    assert (home / "film.gif").stat().st_size > 10_000
    assert "<html" in (home / "runs" / "mine" / "report.html").read_text()[:2000]
