"""The report: what is in the page, that nothing gets out of it or into it, and how it works in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_backend import ScriptedBackend, ToyTask

import dllm_gym
from dllm_agents import train
from dllm_agents.config import TrainConfig
from dllm_agents.run_folder import read_run
from dllm_gym.evaluation.figures import COLOURS
from dllm_gym.evaluation.plots import learning_figures
from dllm_gym.looking import film
from dllm_gym.looking.report import read_comparison, report
from dllm_gym.tasks import Problem

pytestmark = pytest.mark.usefixtures("toys")

TOY = {"task": "toy", "backend": "toy"}
EVIL = "<!-- <script ></script><script>window.hacked = 1</script><img src=x onerror='hacked = 2'>"


class Page(HTMLParser):
    """Elements with their attributes, and the texts of scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.headings: list[str] = []
        self._inside = ""
        self.feed(self.text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag in ("script", "h2"):
            (self.scripts if tag == "script" else self.headings).append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in ("script", "h2"):
            (self.scripts if self._inside == "script" else self.headings)[-1] += data

    @property
    def data(self) -> Any:
        return json.loads(self.scripts[0])

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


class EvilTask(ToyTask):
    def problem(self, index: int) -> Problem:
        return Problem(prompt=f"{EVIL} {{{{data}}}} {index}", reference="")


class EvilBackend(ScriptedBackend):
    """Every token is an attack, the first one also a right answer."""

    def __init__(self) -> None:
        super().__init__([4, 0, 0, 0, 0, 0], [0.9, 0.1, 0.2, 0.3, 0.4, 0.123])

    def encode_prompt(self, prompt: Any) -> list[int]:
        return [1]

    def decode(self, ids: Any) -> str:
        return f"{sum(ids)}{EVIL}\u2028"


@pytest.fixture(scope="module")
def run(tmp_path_factory, toys) -> Path:
    config = TrainConfig(
        algorithm="ppo",
        env={**TOY, "block_length": 3, "on_empty": "noop"},
        num_envs=8,
        group_size=4,
        total_timesteps=96,
        learning_rate=1e-2,
        algorithm_kwargs={"n_steps": 4, "batch_size": 32, "n_epochs": 1, "normalize_advantage": False},
        policy={"width": 16, "initial_bias": -1.0},
        eval_every=32,
        eval_episodes=12,
    )
    command = "dllm-gym train ppo --output 'a & b'"
    return train(config, tmp_path_factory.mktemp("runs") / "a <run>", command=command)


@pytest.fixture(scope="module")
def page(run) -> Page:
    return Page(report(run, episodes=40))


# What is in it ----------------------------------------------------------------------------------------------


def test_it_has_every_part(page):
    assert page.headings == [
        "Episodes, step by step", "Learning curves", "Accuracy against steps", "What it reveals when",
        "How it decodes", "Configuration",
    ]  # fmt: skip
    labels = [attributes["aria-label"] for attributes in page.all("svg")]
    for words in (
        "learning curve, accuracy, environment steps of training",
        "learning curve, reward, environment steps of training",
        "accuracy against steps",
        "which position is revealed in which step",
        "Is its confidence honest?, tokens it would write again, confidence when revealed",
    ):
        assert any(words in str(label) for label in labels), words
    assert len(page.text) < 1_000_000
    assert not [attributes for attributes in page.all("g") if "id" in attributes]  # figures share such names


def test_it_tells_how_the_run_was_made(page):
    assert "<h1>" in page.text
    assert "a &lt;run&gt;" in page.text
    assert "dllm-gym train ppo --output &#x27;a &amp; b&#x27;" in page.text
    for field, value in (("env.on_empty", "noop"), ("learning_rate", "0.01"), ("policy.width", "16")):
        assert f"<td>{field}</td><td>{value}</td>" in page.text
    assert "<td>block_length</td><td>3</td>" in page.text  # evaluated in the run's environment


def test_the_player_has_the_episodes_as_they_were(run, page):
    options = {**TOY, "block_length": 3, "on_empty": "noop"}
    result = dllm_gym.evaluate(run, 40, **options)
    success = result.records.success == 1
    expected = [*np.flatnonzero(success)[:3], *np.flatnonzero(~success)[:3]]  # it opens on a solved one
    assert page.data[0]["runs"][0]["right"]
    assert [int(entry["title"].partition(":")[0]) for entry in page.data] == expected
    for entry, problem in zip(page.data, expected, strict=True):
        made = film([run, "fast-dllm:threshold=0.9"], int(problem), **options)
        assert entry["prompt"] == made.frames[0][0].prompt
        assert entry["title"].endswith(
            ", ".join("right" if frame.correct else "wrong" for frame in made.frames[-1])
        )
        for at, player in enumerate(entry["runs"]):
            assert player["reward"] == made.episodes[at].reward
            assert player["edges"] == [3]
            assert player["agent"] == made.frames[0][at].agent
            for frames in made.frames[: player["steps"] + 1]:
                check_frame(player, frames[at])


def check_frame(player: dict[str, Any], frame: Any) -> None:
    revealed = np.array(player["revealed"])
    masked = (revealed == 0) | (revealed > frame.step)
    assert np.array_equal(masked, frame.masked)
    assert np.array_equal(revealed == frame.step, frame.just_revealed | (frame.step == 0) & (revealed == 0))
    told = np.array(player["confidence"][frame.step]) / 1000
    np.testing.assert_allclose(told, frame.confidence[frame.masked], atol=5.1e-4)
    shown = [token for token, hidden in zip(player["tokens"], masked, strict=True) if not hidden]
    assert shown == ["∎" if t == "</s>" else t for t in np.array(frame.tokens)[~masked]]


def test_an_agent_has_one_colour_on_the_whole_page(page):
    """By its place: in the player, in the legend and in every figure, all of them from the style sheet."""
    for entry in page.data:
        assert [player["colour"] for player in entry["runs"]] == ["var(--agent-0)", "var(--agent-1)"]
    legend = re.findall(r'<li><i class="swatch" style="background: (.+?)"></i>(.+?)</li>', page.text)
    labels = [player["agent"] for player in page.data[0]["runs"]]
    assert legend == [(f"var(--agent-{at})", html.escape(label)) for at, label in enumerate(labels)]
    for at, own in enumerate(COLOURS[:-1]):
        assert f"--agent-{at}: {own.lower()};" in page.text
    drawn = set(re.findall(r"#[0-9a-f]{6}", "".join(re.findall(r"<svg.*?</svg>", page.text, re.DOTALL))))
    assert not drawn & {own.lower() for own in COLOURS}
    assert "#808080" in drawn  # the other rules


def test_curves_of_two_decodings_are_one_agents():
    measures = "accuracy", "nfe_mean", "reward_mean"
    evaluations = [
        {"timesteps": at, "one": dict.fromkeys(measures, 0.5), "other": dict.fromkeys(measures, 0.7)}
        for at in (1, 2)
    ]
    for figure in learning_figures(evaluations):
        lines = figure.axes[0].lines
        assert {line.get_color() for line in lines} == {COLOURS[0]}
        assert len({line.get_linestyle() for line in lines}) == len(lines) == 2


def test_texts_in_figures_are_no_smaller_than_ten_pixels(page):
    """On a page of 1,280 pixels three figures of a row have 345 each, and a wide one up to 860."""
    pattern = r'<figure( class="wide")?><svg [^>]*viewBox="0 0 ([\d.]+) [\d.]+">(.*?)</svg>'
    figures = re.findall(pattern, page.text, re.DOTALL)
    assert len(figures) > 8
    for wide, width, drawn in figures:
        scale = (860 if wide else 345) / float(width)
        for points in re.findall(r"font:? ?(?:-size: )?([\d.]+)px", drawn):
            assert scale * float(points) >= 9.9, (wide, width, points)


def test_a_comparison_in_the_folder_is_taken(run, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    rows = dllm_gym.compare(
        [run], 10, strategies=[dllm_gym.make_strategy("random", k=5)], block_length=3, **TOY
    ).to_json()
    (folder / "compare.json").write_text(json.dumps(rows))
    path = report(f"{folder}:deterministic", episodes=4, agents=[])
    assert path == folder / "report.html"
    page = Page(path)
    assert "copy (deterministic)" in page.text
    assert "random(k=5)" in page.text
    assert "confidence(k=1)" not in page.text
    gap = f"{100 * rows[1]['envelope_gap']:+.1f}"
    assert f"<td class=number>{gap} (" in page.text
    assert [len(entry["runs"]) for entry in page.data] == [1] * len(page.data)


def test_any_agent_has_a_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = report("confidence:k=2", episodes=6, agents=["random:k=1"], **TOY)
    assert path == Path("report.html")
    page = Page(path)
    assert "Learning curves" not in page.headings
    assert "confidence(k=2)" in page.text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_run_that_goes_on_tells_its_evaluations_so_far(run, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    whole = read_run(folder)
    (folder / "metrics.json").unlink()
    state = torch.load(folder / "training_state.pt", weights_only=True)
    assert read_run(folder) == whole
    assert whole is not None
    assert whole["evaluations"] == state["history"]
    assert len(whole["evaluations"]) >= 2
    assert read_run(tmp_path) is None


def test_what_is_no_run_and_no_comparison_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*nothing"):
        report(tmp_path / "nothing")
    bad = tmp_path / "bad.json"
    refused = {"{": "is not JSON", "[]": "a list of results", '[{"agent": 1}]': "result 1 lacks label, acc"}
    for text, words in refused.items():
        bad.write_text(text)
        with pytest.raises(ValueError, match=words):
            read_comparison(bad)
        with pytest.raises(ValueError, match=words):  # before anything is decoded
            report(run, comparison=bad, on_part=lambda part: pytest.fail(part))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"agent": 3}, "result 2: agent must be a text, got 3"),
        ({"accuracy": "0.5"}, "accuracy must be a number from 0 to 1, got '0.5'"),
        ({"accuracy": 1.5}, "accuracy must be a number from 0 to 1, got 1.5"),
        ({"accuracy_ci95": None}, "accuracy_ci95 must be a list of two finite numbers"),
        ({"accuracy_ci95": [0.1]}, "accuracy_ci95 must be a list of two finite numbers"),
        ({"accuracy_ci95": [[[]], {}]}, "accuracy_ci95 must be a list of two finite numbers"),
        ({"nfe_mean": -1}, "nfe_mean must be a finite number of at least 0"),
        ({"reward_mean": float("nan")}, "reward_mean must be a finite number"),
        ({"episodes": 10**400}, "episodes must be a whole number"),
        ({"learned": "yes"}, "learned must be true or false"),
        ({"task": None}, "task must be a text"),
        ({"block_length": 0}, "block_length must be a whole number of at least 1"),
        ({"envelope_gap": "a"}, "envelope_gap must be a number from -1 to 1"),
        ({"envelope_gap_ci95": 1}, "envelope_gap_ci95 must be a list of two finite numbers"),
    ],
)
def test_a_damaged_comparison_is_refused_by_name(tmp_path, changes, words):
    rows = dllm_gym.compare([lambda o: o["mask"]], 3, strategies=["confidence:k=2"], **TOY).to_json()
    path = tmp_path / "compare.json"
    path.write_text(json.dumps([rows[0], {**rows[1], **changes}]))
    with pytest.raises(ValueError, match=re.escape(f"{path}, result 2: ") + ".*") as raised:
        read_comparison(path)
    assert words in str(raised.value)


def test_a_comparison_of_one_problem_has_a_page_without_an_interval(tmp_path):
    rows = dllm_gym.compare([lambda o: o["mask"]], 1, strategies=["confidence:k=2"], **TOY).to_json()
    (tmp_path / "compare.json").write_text(json.dumps(rows))
    path = report(
        "confidence:k=1",
        tmp_path / "a.html",
        comparison=tmp_path / "compare.json",
        episodes=2,
        agents=[],
        **TOY,
    )
    gap = f"{100 * rows[1]['envelope_gap']:+.1f}"
    assert f"<td class=number>{gap}</td>" in Page(path).text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"command": 3}, "command must be a text, got 3"),
        ({"evaluations": {}}, "must hold a list of evaluations"),
        ({"evaluations": [1]}, "evaluation 1 must be an object, got 1"),
        (
            {"evaluations": [{"timesteps": "a", "seconds": 1}]},
            "evaluation 1: timesteps must be a whole number",
        ),
        (
            {"evaluations": [{"timesteps": 1, "seconds": 1}]},
            "evaluation 1, sample must be an object, got None",
        ),
        (
            {"evaluations": [{"timesteps": 1, "seconds": 1, "sample": {"accuracy": 2}}]},
            "evaluation 1, sample lacks nfe_mean, reward_mean, episodes",
        ),
    ],
)
def test_damaged_metrics_are_refused_by_name(run, tmp_path, changes, words):
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    path = folder / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match=re.escape(words)) as raised:
        report(folder, episodes=2, on_part=lambda part: pytest.fail(part))
    assert str(path) in str(raised.value)
    # of a run that goes on the state tells
    path.unlink()
    state = torch.load(folder / "training_state.pt", weights_only=True)
    torch.save({**state, "history": changes.get("evaluations", 3)}, folder / "training_state.pt")
    with pytest.raises(ValueError, match=r"training_state\.pt, history"):
        read_run(folder)
    (folder / "training_state.pt").unlink()
    note = {"checkpoint": "1", "seconds": 1.0, "history": changes.get("evaluations", 3)}
    (folder / "checkpoint.json").write_text(json.dumps(note))
    with pytest.raises(ValueError, match=r"checkpoint\.json, history"):
        read_run(folder)


def test_sample_episodes_stop_where_the_page_would_get_too_large(monkeypatch, tmp_path):
    monkeypatch.setattr("dllm_gym.looking.report._MOST_DATA", 500)
    page = Page(report("confidence:k=1", tmp_path / "a.html", episodes=12, agents=[], **TOY))
    assert len(page.data) == 1


# Nothing gets out, nothing gets in --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evil(tmp_path_factory) -> Page:
    folder = tmp_path_factory.mktemp("evil")

    def agent(observation: Any) -> Any:
        return observation["action_mask"]

    agent.__name__ = EVIL
    path = folder / "page.html"
    report("confidence:k=1", path, episodes=4, agents=[agent], task=EvilTask("test"), backend=EvilBackend())
    return Page(path)


def test_nothing_is_fetched(page, evil):
    for one in (page, evil):
        for _, attributes in one.elements:
            for name, value in attributes.items():
                if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "srcdoc"):
                    assert str(value).startswith(("#", "data:image/png;base64,")), (name, value)
                assert not name.startswith("on")
        assert not re.search(r"https?:|@import|url\((?!#)", one.text)
        tags = {tag for tag, _ in one.elements}
        assert not tags & {"link", "iframe", "object", "embed", "base", "form", "img", "foreignobject"}


def test_text_stays_text(page, evil):
    for one in (page, evil):
        assert [attributes.get("type") for attributes in one.all("script")] == ["application/json", None]
    assert evil.scripts[1] == page.scripts[1]
    assert "<" not in evil.scripts[0]
    assert [tag for tag, _ in evil.elements].count("script") == 2
    run = evil.data[0]["runs"][0]
    assert run["tokens"][0] == f"4{EVIL}\\u2028"
    assert evil.data[0]["prompt"] == f"{EVIL} {{{{data}}}} 0"
    assert evil.data[0]["runs"][1]["agent"] == EVIL


def test_only_the_scripts_of_the_page_may_run(page):
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert str(policy).startswith("default-src 'none';")
    assert re.search(r"script-src 'sha256-[\w+/]{43}='$", str(policy))


# In a browser -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Any]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver (Debian: apt install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for flag in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
        "disable-background-networking", "disable-component-update", "disable-dev-shm-usage",
        "window-size=1200,900", f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
        "force-prefers-reduced-motion",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


class Player:
    """The player of a page that a browser shows."""

    def __init__(self, browser: Any, path: Path) -> None:
        self.browser = browser
        browser.get_log("performance"), browser.get_log("browser")  # of the page before
        browser.get(path.as_uri())

    def find(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()

    def point(self, board: int, position: int) -> str:
        """What stands below a board when the mouse is over one of its cells."""
        from selenium.webdriver import ActionChains

        cell = self.browser.find_elements("css selector", ".board")[board].find_elements(
            "css selector", ".cell"
        )[position]
        ActionChains(self.browser).move_to_element(cell).perform()
        return str(self.browser.find_elements("css selector", ".detail")[board].text)

    def cells(self, board: int) -> list[tuple[str, bool]]:
        """Text of every cell, and whether it is masked."""
        script = """return [...document.querySelectorAll(".board")[arguments[0]].children].map(
            (cell) => [cell.textContent, cell.classList.contains("masked")])"""
        return [(text, masked) for text, masked in self.browser.execute_script(script, board)]

    @property
    def step(self) -> str:
        return str(self.find("#now").text)


def expected_cells(run: dict[str, Any], step: int) -> list[tuple[str, bool]]:
    step = min(step, run["steps"])
    return [
        (token, False) if 0 < when <= step else ("", True)
        for token, when in zip(run["tokens"], run["revealed"], strict=True)
    ]


@pytest.fixture
def player(browser, run, page) -> Player:
    return Player(browser, run / "report.html")


def test_the_player_steps(player, page):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    problem = page.data[0]
    last = max(run["steps"] for run in problem["runs"])

    def check(step: int) -> None:
        assert player.step == f"step {step} of {last}"
        for board, run in enumerate(problem["runs"]):
            assert player.cells(board) == expected_cells(run, step)

    assert player.find("#prompt").text == problem["prompt"]
    check(0)
    player.find("#forward").click()
    check(1)
    player.find("body").click()
    player.press(Keys.ARROW_RIGHT)
    check(2)
    player.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    check(0)
    player.find("#step").send_keys(Keys.END)
    check(last)
    statuses = [element.text for element in player.browser.find_elements("css selector", ".status")]
    for status, run in zip(statuses, problem["runs"], strict=True):
        assert f"reward {run['reward']:.3f}" in status
        assert ("right" if run["right"] else "wrong") in status
    problem = page.data[1]
    last = max(run["steps"] for run in problem["runs"])
    Select(player.find("#problem")).select_by_index(1)
    check(0)


def test_the_player_plays_to_the_end_and_can_be_paused(player, page):
    from selenium.webdriver.support.ui import WebDriverWait

    button = player.find("#play")
    button.click()
    assert button.text == "Pause"
    WebDriverWait(player.browser, 30).until(lambda _: not player.step.startswith("step 0"))
    button.click()
    assert button.text == "Play"
    button.click()
    last = max(run["steps"] for run in page.data[0]["runs"])
    WebDriverWait(player.browser, 30).until(lambda _: player.step == f"step {last} of {last}")
    assert button.text == "Play"


def test_it_opens_in_motion_unless_motion_is_unwelcome(browser, run, page):
    from selenium.webdriver.support.ui import WebDriverWait

    last = max(episode["steps"] for episode in page.data[0]["runs"])
    assert Player(browser, run / "report.html").step == f"step 0 of {last}"
    features = [{"name": "prefers-reduced-motion", "value": "no-preference"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    player = Player(browser, run / "report.html")
    WebDriverWait(browser, 30).until(lambda _: player.step == f"step {last} of {last}")
    assert player.find("#play").text == "Play"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_pointing_at_a_cell_shows_its_confidence(player, page):
    from selenium.webdriver.common.keys import Keys

    run = page.data[0]["runs"][0]
    for position in (0, 4):
        sure = run["confidence"][0][position] / 1000
        assert player.point(0, position) == f"position {position}: masked, confidence {sure:.3f}"
    player.find("#step").send_keys(Keys.END)
    for position, when in enumerate(run["revealed"]):
        left = [at for at, then in enumerate(run["revealed"]) if then == 0 or then >= when]
        sure = run["confidence"][when - 1][left.index(position)] / 1000
        told = player.point(0, position)
        assert told == (
            f"position {position}: “{run['tokens'][position]}”, revealed in step {when} "
            f"with confidence {sure:.3f}"
        )


def test_a_board_is_read_with_the_keyboard(player):
    from selenium.webdriver.common.keys import Keys

    player.browser.execute_script("document.querySelectorAll('.board')[1].focus()")
    player.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    detail = player.browser.find_elements("css selector", ".detail")[1].text
    assert detail.startswith("position 2: masked, confidence 0.")
    assert player.step.startswith("step 0")


def test_no_requests_no_errors_and_no_attack_succeeds(browser, run, page, evil, tmp_path):
    attacked = tmp_path / "evil.html"
    attacked.write_text(evil.text, encoding="utf-8")
    for path in (run / "report.html", attacked):
        player = Player(browser, path)
        player.find("#forward").click()
        assert browser.execute_script("return window.hacked") is None
        assert browser.get_log("browser") == []
        events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        asked = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        urls = [params["request"]["url"] for params in asked]
        assert path.as_uri() in urls
        assert all(url.startswith(("file:", "data:")) for url in urls), urls
    assert EVIL in player.cells(0)[0][0] + player.find("#prompt").text


@pytest.mark.parametrize("width", [380, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_legible_in_light_and_dark_and_in_narrow_windows(browser, run, page, width, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    Player(browser, run / "report.html")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    text, axis, ground = (
        browser.execute_script(f"return getComputedStyle(document.querySelector('{where}')).{what}")
        for where, what in (("svg text", "fill"), ("svg use", "stroke"), ("section", "backgroundColor"))
    )
    assert contrast(text, ground) > 7  # of WCAG, level AAA
    assert contrast(axis, ground) > 7
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def contrast(one: str, other: str) -> float:
    """Of two colours such as ``rgb(1, 2, 3)``, after WCAG 2."""

    def luminance(colour: str) -> float:
        channels = np.array([int(number) for number in re.findall(r"\d+", colour)[:3]]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)
