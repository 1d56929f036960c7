"""Watching and playing in a terminal; what a key means is decided in ``playback`` and ``game``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dllm_gym.envs.rendering import ansi_cell_width, grid_columns, render_ansi
from dllm_gym.evaluation.agents import Observation
from dllm_gym.looking import game, playback
from dllm_gym.looking.film import Film, Frames, film
from dllm_gym.looking.keyboard import Keyboard

_LEGIBLE = 4  # letters per token, below which boards are drawn below each other


class Closed(Exception):
    """Whoever was watching or playing wants to stop."""


def watch(agents: Sequence[Any], console: Console, speed: float = 4.0, **film_kwargs: Any) -> Film | None:
    """Shows how agents decode a problem while they do it, and lets the spectator go back and forth.

    Where the output is no terminal, all frames are printed one after the other, as fast as they come.

    Args:
        agents: As in ``film``, like the arguments that follow.
        console: Where to.
        speed: Steps per second.
        **film_kwargs: Further arguments of ``film``.

    Returns:
        The film; ``None`` if the spectator left before its end.

    Raises:
        ValueError: For a speed that is not positive, and what ``film`` raises.
    """
    state = playback.Playback(speed)
    if not console.is_terminal:

        def print_frames(frames: Frames) -> None:
            console.print(_boards(frames, console.width), "", sep="\n")

        finished = film(agents, on_frames=print_frames, **film_kwargs)
        _print_results(finished, console)
        return finished
    seen: list[Frames] = []
    with Keyboard() as keyboard, _screen(console) as live:

        def show() -> None:
            """Until the next frames are wanted, or the spectator is done."""
            while True:
                state.advance(time.monotonic())
                boards = _boards(seen[state.at], console.width)
                keys = playback.HELP if keyboard.is_there() else ""
                # what is too long for the screen is cut at the bottom
                live.update(Group(_line(keys, "dim"), _line(state.note), "", boards), refresh=True)
                if state.closed or (state.played_out and not keyboard.is_there()):
                    raise Closed
                if state.waits:
                    return
                patience = state.patience(time.monotonic())
                if not keyboard.is_there():
                    time.sleep(patience or 0.0)
                elif (key := keyboard.read(patience)) is not None:
                    state.press(key, time.monotonic())

        def add(frames: Frames) -> None:
            seen.append(frames)
            state.known += 1
            show()

        result: Film | None = None
        with suppress(Closed):
            result = film(agents, on_frames=add, **film_kwargs)
            state.complete = True
            show()
    if result is not None:
        console.print(_boards(result.frames[-1], console.width))
        _print_results(result, console)
    return result


def play(agents: Sequence[Any], console: Console, **film_kwargs: Any) -> Film | None:
    """Lets the player at the keyboard decode a problem, then shows how agents did on it.

    Args:
        agents: As in ``film``, like the arguments that follow.
        console: The terminal.
        **film_kwargs: Further arguments of ``film``.

    Returns:
        The film of the game; ``None`` if the player left before its end.

    Raises:
        ValueError: Where there is no terminal, and what ``film`` raises.
    """
    if not (console.is_terminal and Keyboard.is_there()):
        raise ValueError("playing needs a terminal with a keyboard at standard input and output")
    own: Film | None = None
    with Keyboard() as keyboard, _screen(console) as live, suppress(Closed):
        player = _Player(console, keyboard, live)
        own = film([player], on_frames=player.see, **film_kwargs)
    if own is not None:
        others = film(agents, **film_kwargs)
        console.print(_boards((*own.frames[-1], *others.frames[-1]), console.width))
        _print_results(own, console)
        _print_results(others, console)
    return own


def _print_results(finished: Film, console: Console) -> None:
    for frame, episode in zip(finished.frames[-1], finished.episodes, strict=True):
        verdict = "right" if frame.correct else "wrong"
        console.print(
            Text(f"{frame.agent}: {verdict} in {frame.step} steps, reward {episode.reward:.3f}"),
            soft_wrap=True,
        )


class _Player:
    """An agent that asks the keyboard what to reveal."""

    name = label = "you"

    def __init__(self, console: Console, keyboard: Keyboard, live: Live) -> None:
        self._console, self._keyboard, self._live = console, keyboard, live
        self._frames: Frames = ()
        self._cursor = 0

    def see(self, frames: Frames) -> None:
        """What the board looks like."""
        self._frames = frames

    def act(self, observation: Observation) -> NDArray[Any]:
        (frame,) = self._frames
        turn = game.Turn.begin(
            observation["action_mask"][0].astype(bool),
            frame.confidence,
            grid_columns(len(frame.tokens)),
            self._cursor,
            frame.masked,
        )
        while not turn.over:
            board = _board(render_ansi(frame, self._console.width, turn.cursor, turn.marked))
            self._live.update(self._page(board, turn), refresh=True)
            turn = turn.press(self._keyboard.read(None) or "")
        if turn.over == "quit":
            raise Closed
        self._cursor = turn.cursor
        return turn.action[None].astype(np.int8)

    def _page(self, board: Text, turn: game.Turn) -> Group:
        here = f"position {turn.cursor}"
        if turn.selectable[turn.cursor]:
            here += f": confidence {turn.confidence[turn.cursor]:.2f}"
        marked = int(turn.marked.sum())
        here += f"   {marked} marked" if marked else "   nothing marked: enter reveals the surest"
        return Group(_line(game.HELP, "dim"), _line(here), "", board)


@contextmanager
def _screen(console: Console) -> Iterator[Live]:
    begin = Text("loading the dLLM ...")
    with Live(begin, console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        yield live


def _boards(frames: Frames, width: int) -> RenderableType:
    """Beside each other where the tokens stay legible, else below each other."""
    share = (width - 3 * (len(frames) - 1)) // len(frames)
    if len(frames) == 1 or ansi_cell_width(len(frames[0].tokens), share) >= _LEGIBLE:
        grid = Table.grid(padding=(0, 3, 0, 0))
        grid.add_row(*[_board(render_ansi(frame, share)) for frame in frames])
        return grid
    boards = [_board(render_ansi(frame, width)) for frame in frames]
    return Group(*[part for board in boards for part in (board, "")][:-1])


def _board(text: str) -> Text:
    board = Text.from_ansi(text)
    board.no_wrap, board.overflow = True, "crop"
    return board


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")
