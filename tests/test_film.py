"""Films of episodes, and the player and the game that show them, on a real pseudo-terminal too."""

from __future__ import annotations

import os
import pty
import re
import resource
import select
import struct
import subprocess
import sys
import time
from fcntl import ioctl
from io import StringIO
from pathlib import Path
from termios import TIOCSWINSZ

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from toy_backend import ScriptedBackend, ToyBackend, ToyTask

import dllm_gym
from dllm_gym.envs.rendering import beside_or_below, save_mp4
from dllm_gym.looking import film
from dllm_gym.looking.game import Turn
from dllm_gym.looking.keyboard import keys_of
from dllm_gym.looking.playback import Playback
from dllm_gym.looking.terminal import play, watch

LENGTH = 6
AGENTS = ["random:k=2", "confidence:k=1", "random:k=3"]


def toy(**changes):
    return {"task": ToyTask(split="test"), "backend": ToyBackend(), **changes}


# Films ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_length", [None, 3])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_every_agent_of_a_film_decodes_as_it_is_evaluated(block_length, temperature):
    options = toy(block_length=block_length, temperature=temperature)
    for problem in (0, 7):
        made = film(AGENTS, problem, seed=5, **options)
        for at, agent in enumerate(AGENTS):
            alone = dllm_gym.evaluate(agent, problem + 1, seed=5, **options).records
            assert made.episodes[at].info["completion"] == alone.completion[problem]
            assert made.episodes[at].info["nfe"] == alone.nfe[problem]
            assert made.episodes[at].reward == alone.reward[problem]
            assert made.frames[-1][at].score == alone.score[problem]


def test_frames_go_from_all_masked_to_the_end_and_who_has_finished_stands_still():
    seen = []
    made = film(AGENTS, on_frames=seen.append, **toy())
    assert seen == list(made.frames)
    steps = [[frame.step for frame in frames] for frames in made.frames]
    assert steps == [[min(t, 3), t, min(t, 2)] for t in range(LENGTH + 1)]
    assert all(frame.masked.all() and frame.score is None for frame in made.frames[0])
    assert all(not frame.masked.any() and frame.score is not None for frame in made.frames[-1])
    assert [frame.agent for frame in made.frames[0]] == ["random(k=2)", "confidence(k=1)", "random(k=3)"]
    assert made.frames[-1][2] is made.frames[2][2]


def test_a_frame_shows_what_the_agent_saw_when_it_acted():
    observed = []

    def agent(observation):
        observed.append({key: value[0].copy() for key, value in observation.items()})
        return observation["confidence"] == np.where(observation["mask"], observation["confidence"], 0).max()

    made = film([agent], **toy())
    for (frame,), (after,), observation in zip(made.frames[:-1], made.frames[1:], observed, strict=True):
        assert np.array_equal(frame.confidence, observation["confidence"])
        assert np.array_equal(frame.masked, observation["mask"] == 1)
        assert np.array_equal(after.just_revealed, frame.masked & ~after.masked)


def test_a_film_needs_somebody_and_an_existing_problem():
    with pytest.raises(ValueError, match="at least one agent"):
        film([], **toy())
    with pytest.raises(ValueError, match="50 is out of range"):
        film(["random:k=1"], 50, **toy())


def test_agents_side_by_side_are_in_the_pictures():
    one, two = film(AGENTS[:1], **toy()).pictures(), film(AGENTS[:2], **toy()).pictures()
    assert len(two) == LENGTH + 1
    assert two[0].shape == (2 * one[0].shape[0], *one[0].shape[1:])
    assert np.array_equal(two[2][: one[0].shape[0]], one[2])
    tall = np.zeros((10, 4, 3), dtype=np.uint8)
    assert beside_or_below([tall, tall]).shape == (10, 8, 3)


def test_mp4_round_trip(tmp_path):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    frames = film(AGENTS[:1], **toy()).pictures()
    path = save_mp4(frames, tmp_path / "films" / "episode", fps=5, hold_last=1.0)
    assert list(path.parent.iterdir()) == [path]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert b"Video: h264" in done.stderr
    assert b" 5 fps" in done.stderr
    read = np.frombuffer(done.stdout, np.uint8).reshape(-1, *frames[0].shape)
    expected = [*frames, *[frames[-1]] * 4]
    assert len(read) == len(expected)
    for image, frame in zip(read, expected, strict=True):
        assert np.abs(image.astype(int) - frame).mean() < 4


def test_mp4_without_the_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ImportError, match=r"dllm-gym\[video\]"):
        save_mp4([np.zeros((2, 2, 3), np.uint8)], tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())


# The player -------------------------------------------------------------------------------------------------


def run_playback(playback: Playback, until: float, now: float = 0.0, step: float = 0.01) -> float:
    """Lets time pass; frames come at once when they are wanted."""
    while now < until:
        if playback.waits:
            playback.known += 1
        playback.advance(now)
        now += step
    return now


def test_it_plays_by_itself_at_its_speed():
    playback = Playback(speed=10.0)
    assert playback.waits
    run_playback(playback, 1.0)
    assert playback.at in (9, 10)


def test_pause_stops_it_and_arrows_step():
    playback = Playback(speed=10.0)
    now = run_playback(playback, 0.55)
    playback.press(" ", now)
    at = playback.at
    now = run_playback(playback, now + 2, now)
    assert playback.at == at
    assert not playback.waits
    assert playback.patience(now) is None
    playback.press("right", now)
    now = run_playback(playback, now + 0.1, now)
    assert playback.at == at + 1
    playback.press("left", now)
    playback.press("left", now)
    run_playback(playback, now + 0.1, now)
    assert playback.at == at - 1
    assert "paused" in playback.note


def test_the_end_is_the_end_until_it_is_played_again():
    playback = Playback(speed=10.0, known=3, complete=True)
    now = run_playback(playback, 1.0)
    assert (playback.at, playback.known, playback.played_out) == (2, 3, True)
    playback.press("right", now)
    playback.advance(now)
    assert playback.at == 2
    playback.press("r", now)
    assert playback.at == 0
    run_playback(playback, now + 1, now)
    assert playback.played_out
    assert not playback.closed
    playback.press("q", now)
    assert playback.closed


def test_speed_has_limits():
    playback = Playback(speed=4.0)
    for _ in range(30):
        playback.press("+", 0.0)
    assert playback.speed == 60.0
    for _ in range(60):
        playback.press("-", 0.0)
    assert playback.speed == 0.2
    with pytest.raises(ValueError, match="speed must be above 0"):
        Playback(speed=0.0)


@given(st.lists(st.sampled_from([" ", "left", "right", "r", "+", "-", "x", "time", "end"]), max_size=40))
def test_whatever_is_pressed_the_player_shows_a_frame_that_is_there(keys):
    playback, now = Playback(speed=4.0), 0.0
    for key in keys:
        if playback.waits:
            playback.known += 1
        now += 0.3
        if key == "end":
            playback.complete = playback.known > 0
        elif key != "time" and playback.known:
            playback.press(key, now)
        playback.advance(now)
        assert -1 <= playback.at < max(playback.known, 1)


# The game ---------------------------------------------------------------------------------------------------


def turn(selectable=None, columns=3, length=8, cursor=0):
    selectable = np.ones(length, bool) if selectable is None else np.array(selectable, bool)
    return Turn.begin(selectable, np.linspace(0.1, 0.9, length, dtype=np.float32), columns, cursor)


def press(turn, *keys):
    for key in keys:
        turn = turn.press(key)
    return turn


def test_arrows_move_inside_the_board():
    assert press(turn(), "right", "down").cursor == 4
    assert press(turn(), "left").cursor == 0
    assert press(turn(), "up").cursor == 0
    assert press(turn(), "right", "right", "right").cursor == 2  # not round the corner
    assert press(turn(), "right", "right", "down", "down").cursor == 5  # there is no ninth position
    assert press(turn(), "down", "down", "right", "down").cursor == 7


def test_space_marks_and_unmarks():
    marked = press(turn(), " ", "right", " ")
    assert np.flatnonzero(marked.marked).tolist() == [0, 1]
    assert np.flatnonzero(press(marked, " ").marked).tolist() == [0]


def test_only_what_may_be_revealed_can_be_marked():
    blocked = turn([0, 0, 1, 1, 0, 0, 0, 0])
    assert blocked.cursor == 2
    assert not press(blocked, "left", " ").marked.any()
    assert np.flatnonzero(press(blocked, "a").marked).tolist() == [2, 3]


def test_a_marks_all_that_are_as_sure():
    assert np.flatnonzero(press(turn(), "down", "right", "a").marked).tolist() == [4, 5, 6, 7]


def test_enter_and_q_end_the_turn():
    assert press(turn(), " ", "enter").over == "reveal"
    assert press(turn(), "q").over == "quit"
    assert press(turn(), "x", "").over == ""


def test_the_cursor_begins_near_where_it_was():
    assert turn([1, 0, 0, 0, 0, 1, 0, 0], cursor=4).cursor == 5
    assert turn([0] * 8, cursor=4).cursor == 4


KEYS = ["left", "right", "up", "down", " ", "a", "x"]


@given(st.lists(st.sampled_from(KEYS), max_size=30), st.lists(st.booleans(), min_size=8, max_size=8))
def test_marks_are_always_selectable_and_the_cursor_on_the_board(keys, selectable):
    end = press(turn(selectable), *keys)
    assert not (end.marked & ~np.array(selectable)).any()
    assert 0 <= end.cursor < 8


# Keys -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "keys"),
    [
        ("\x1b[A\x1b[B\x1b[C\x1b[D", ["up", "down", "right", "left"]),
        ("\x1bOA \r", ["up", " ", "enter"]),
        ("aQ=", ["a", "q", "+"]),
        ("\x1b[1;5Cq", ["\x1b[1;5c", "q"]),
        ("\x1b[3~q", ["\x1b[3~", "q"]),
        ("\x04", ["q"]),
        ("\x1b", ["\x1b"]),
        ("", []),
    ],
)
def test_keys_of_what_a_terminal_sends(sent, keys):
    assert keys_of(sent) == keys


# Without a terminal -----------------------------------------------------------------------------------------


def test_without_a_terminal_all_frames_are_printed_plainly():
    out = StringIO()
    assert watch(AGENTS[:2], Console(file=out, width=90), **toy()) is not None
    text = out.getvalue()
    assert "\x1b" not in text
    assert [int(step) for step in re.findall(r"confidence\(k=1\)   step (\d)/6", text)] == list(range(7))
    assert re.search(r"random\(k=2\): (right|wrong) in 3 steps, reward \d\.\d{3}\n", text)
    assert all(len(line) <= 90 for line in text.splitlines())


def test_the_game_needs_a_terminal():
    with pytest.raises(ValueError, match="needs a terminal"):
        play(AGENTS[:1], Console(file=StringIO()), **toy())


# On a pseudo-terminal ---------------------------------------------------------------------------------------

CHILD = """
import sys
sys.path[:0] = {paths!r}
from rich.console import Console
from test_film import scripted
from dllm_gym.looking.terminal import play, watch
console = Console()
seen = {call}
print("RETURNED", None if seen is None else [e.info["nfe"] for e in seen.episodes])
"""


def scripted(**changes):
    """Right whatever is revealed when: 4 is the whole score."""
    sure = [0.9, 0.2, 0.8, 0.3, 0.7, 0.4]
    return {"task": ToyTask(split="test"), "backend": ScriptedBackend([4, 0, 0, 0, 0, 0], sure), **changes}


class Terminal:
    """A child process at a terminal of 80 times 24 letters."""

    def __init__(self, call: str) -> None:
        root = Path(__file__).parents[1]
        code = CHILD.format(paths=[str(root), str(root / "agents"), str(root / "tests")], call=call)
        self._ours, theirs = pty.openpty()
        ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
        )
        os.close(theirs)
        self.text = ""

    def wait_for(self, words: str, after: int = 0) -> None:
        """Until the words have been shown since ``after``."""
        deadline = time.monotonic() + 300
        while words not in self.plain[after:]:
            assert time.monotonic() < deadline, f"no {words!r} in {self.plain[-2000:]!r}"
            if select.select([self._ours], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self._ours, 65536).decode()
                except OSError:  # the child has gone
                    assert words in self.plain[after:], f"ended without {words!r}: {self.plain[-2000:]!r}"

    @property
    def plain(self) -> str:
        return re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", self.text)

    def send(self, keys: str) -> int:
        """Presses keys; returns how much had been shown before."""
        before = len(self.plain)
        os.write(self._ours, keys.encode())
        return before

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def terminal():
    opened = []

    def run(call: str) -> Terminal:
        opened.append(Terminal(call))
        return opened[-1]

    yield run
    for one in opened:
        one.close()


def test_watching_on_a_terminal(terminal):
    child = terminal('watch(["confidence:k=1"], console, 20.0, **scripted())')
    child.wait_for("the end")
    assert "step 6/6" in child.plain
    assert "\x1b[?1049h" in child.text  # the screen of its own
    before = child.send("\x1b[D\x1b[D")
    child.wait_for("step 4/6", before)
    before = child.send("r")
    child.wait_for("step 0/6", before)
    child.wait_for("the end", before)
    child.send("q")
    child.wait_for("RETURNED [6]")
    assert "\x1b[?1049l" in child.text
    assert "confidence(k=1): right in 6 steps, reward 0.167" in child.plain


def test_leaving_early_gives_the_terminal_back(terminal):
    agents = '["confidence:k=1"], console'
    child = terminal(f"watch({agents}, 0.5, **scripted()) or play({agents}, **scripted())")
    child.wait_for("step 0/6")
    before = child.send("q")
    child.wait_for("nothing marked", before)
    assert child.text.count("\x1b[?1049l") == 1
    child.send("q")
    child.wait_for("RETURNED None")
    assert child.text.count("\x1b[?1049l") == child.text.count("\x1b[?1049h") == 2


def test_playing_on_a_terminal(terminal):
    child = terminal('play(["confidence:k=3"], console, **scripted())')
    child.wait_for("nothing marked")
    before = child.send("a")  # the cursor is on 0, the surest
    child.wait_for("1 marked", before)
    before = child.send("\x1b[C \r")  # and its neighbour
    child.wait_for("step 1/6   revealed 2/6", before)
    before = child.send("\r")  # nothing marked: the surest of the others
    child.wait_for("step 2/6   revealed 3/6", before)
    before = child.send("\x1b[C\x1b[C")
    child.wait_for("position", before)
    for _ in range(3):
        before = child.send("\r")
        child.wait_for("step", before)
    child.wait_for("RETURNED [5]")
    assert "you: right in 5 steps, reward 0.333" in child.plain
    assert "confidence(k=3): right in 2 steps, reward 0.833" in child.plain


# The command ------------------------------------------------------------------------------------------------


def test_the_first_picture_needs_one_command_and_less_than_a_minute(tmp_path):
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "agents")])}
    command = [sys.executable, "-m", "dllm_gym", "play", "--gif", "episode.gif"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 60  # of work; others may keep the machine busy
    assert "film: episode.gif" in done.stderr
    with Image.open(tmp_path / "episode.gif") as picture:
        assert picture.n_frames > 5
