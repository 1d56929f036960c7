"""The commands of the pages for a stranger's first hour, pasted one after the other."""

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
