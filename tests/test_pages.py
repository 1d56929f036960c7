"""What the pages say exists: commands and their options, files, links, rules and examples."""

import re
import shlex

import pytest
import typer
from test_docs import PAGES, ROOT, read_page

from dllm_agents.plugin import register_commands
from dllm_gym import cli
from dllm_gym.strategies import strategy_names

TEXTS = [*PAGES, "CHANGELOG.md", "CONTRIBUTING.md"]
TEXTS += [str(path.relative_to(ROOT)) for path in sorted((ROOT / "dllm_gym" / "assets").glob("*/README.md"))]
UsageError = typer.BadParameter.__base__  # typer has its own copy of click, or click's, by version


@pytest.fixture(scope="module")
def sub_commands():
    """The command line as an installed package has it."""
    app = typer.Typer()
    app.registered_commands = list(cli.app.registered_commands)
    register_commands(app)
    return typer.main.get_command(app).commands


# Commands ---------------------------------------------------------------------------------------------------


def commands_in_blocks(text):
    """Every ``dllm-gym`` command that a user would paste, as words.

    Loops of the shell are read as their first turn, and ``$(...)`` as nothing.
    """
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for line in re.sub(r"\\\n", " ", re.sub(r"\$\([^()]*\)", "", block)).splitlines():
            for variable, first in re.findall(r"for (\w+) in ([\w.-]+)", line):
                line = re.sub(rf"\${variable}\b", first, line)
            split = shlex.shlex(line, posix=True, punctuation_chars=";|&<>")
            split.whitespace_split = True
            words = list(split)
            for start, word in enumerate(words):
                if words[start - 1 : start] == ["--model"]:  # of lm-eval's command
                    continue
                if word == "dllm-gym" or words[start - 1 : start + 1] == ["-m", "dllm_gym"]:
                    end = next((at for at in range(start, len(words)) if words[at][0] in ";|&<>"), len(words))
                    yield words[start + 1 : end]


def commands_in_lines(text):
    """Every ``dllm-gym`` command that a text names, as words; options may lack their values."""
    for code in re.findall(r"(?<!`)`dllm-gym ([^`]+)`(?!`)", text):
        yield shlex.split(code)


def by_page(find):
    found = [(page, words) for page in TEXTS for words in find(read_page(page))]
    return pytest.mark.parametrize(("page", "words"), found, ids=[f"{p}:{' '.join(w)}" for p, w in found])


def complaint(sub_commands, words):
    """What typer has against a command, its values included; nothing is run."""
    name, *rest = words
    if name not in sub_commands:
        return f"no command {name}; there are {', '.join(sub_commands)}"
    try:
        sub_commands[name].make_context(name, rest).close()
    except UsageError as error:
        return error.format_message()


@by_page(commands_in_blocks)
def test_a_command_to_paste_is_complete(sub_commands, page, words):
    assert complaint(sub_commands, words) is None


@by_page(commands_in_lines)
def test_a_command_that_is_named_exists(sub_commands, page, words):
    name, *rest = words
    known = {
        option
        for parameter in sub_commands[name].params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    assert {word for word in rest if word.startswith("--")} <= known


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("evaluat", "no command evaluat"),
        ("evaluate --agnt x", "No such option"),
        ("evaluate --episodes many", "integer"),
        ("train", "Missing argument"),
    ],
)
def test_a_wrong_command_would_be_noticed(sub_commands, line, message):
    (words,) = commands_in_blocks(f"```console\ntrue && dllm-gym {line} | cat\n```")
    assert message in complaint(sub_commands, words)


def test_every_command_is_on_some_page(sub_commands):
    named = {words[0] for page in TEXTS for words in commands_in_blocks(read_page(page))}
    named |= {words[0] for page in TEXTS for words in commands_in_lines(read_page(page))}
    assert named == set(sub_commands)


# Links and files --------------------------------------------------------------------------------------------


def prose(page):
    """A page without its blocks of code."""
    return re.sub(r"```.*?```", "", read_page(page), flags=re.DOTALL)


def anchors(page):
    """The headings of a page as GitHub and the site turn them into anchors."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = target.partition("#")
        if path.startswith(("https://", "http://")):
            continue
        place = (ROOT / page).parent / path if path else ROOT / page
        assert place.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(str(place.resolve().relative_to(ROOT))), f"{page}: {target}"


@pytest.mark.parametrize("page", [page for page in TEXTS if page != "CHANGELOG.md"])
def test_files_of_ours_that_are_named_exist(page):
    folders, kinds = "agents|benchmarks|dllm_gym|docs|examples|tests", "py|md|json|ya?ml|ipynb|png|gif"
    for name in re.findall(rf"\b((?:{folders})/[\w./-]+\.(?:{kinds}))\b", read_page(page)):
        assert (ROOT / name).is_file(), f"{page}: {name}"


# Tables -----------------------------------------------------------------------------------------------------


def test_the_table_of_rules_has_every_strategy_with_its_defaults():
    from dllm_gym.evaluation import as_agent

    rules = re.findall(r"^\| `([\w-]+):(\w+)=([\d.]+)` \|", read_page("docs/strategies.md"), re.MULTILINE)
    assert sorted(name for name, _, _ in rules) == strategy_names()
    for name, parameter, value in rules:
        assert as_agent(f"{name}:{parameter}={value}").parameters == as_agent(name).parameters


def test_every_example_is_on_the_page_of_examples():
    linked = set(re.findall(r"\(\.\./examples/([\w.]+)\)", read_page("docs/examples.md")))
    assert linked == {path.name for path in (ROOT / "examples").iterdir() if path.is_file()}


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_an_example_begins_with_what_it_shows_and_how_to_run_it(path):
    docstring = re.match(r'"""(.+?)"""', path.read_text(encoding="utf-8"), re.DOTALL).group(1)
    assert f"Run: ``python examples/{path.name}" in docstring
