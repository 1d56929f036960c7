from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from dllm_gym.envs.rendering import END_TOKENS, Frame, render_ansi, render_rgb, save_gif

PROMPT = "Sam has 63 apples, eats 1, halves them. Total?"
TOKENS = ["Next", *"63-1", "is", *"62.", "####", *"62", *["<|endoftext|>"] * 4]


def make_frame(tokens: list[str] = TOKENS, revealed: int = 0, **changes: Any) -> Frame:
    """A frame whose first ``revealed`` positions are revealed, the last of them just now."""
    length = len(tokens)
    masked = np.arange(length) >= revealed
    frame = Frame(
        prompt=PROMPT,
        tokens=tokens,
        masked=masked,
        just_revealed=np.arange(length) == revealed - 1,
        confidence=np.where(masked, 0.5, 1.0).astype(np.float32),
        block_length=length,
        step=revealed,
        max_steps=length,
        score=None,
    )
    return replace(frame, **changes)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[\d+m", "", text)


def test_frames_of_an_episode_differ_but_have_one_even_size() -> None:
    frames = [render_rgb(make_frame(revealed=count)) for count in range(len(TOKENS) + 1)]
    frames.append(render_rgb(make_frame(revealed=len(TOKENS), score=1.0)))
    height, width, channels = frames[0].shape
    assert (height % 2, width % 2, channels) == (0, 0, 3)
    assert {frame.shape for frame in frames} == {frames[0].shape}
    assert {frame.dtype for frame in frames} == {np.dtype(np.uint8)}
    assert len({frame.tobytes() for frame in frames}) == len(frames)
    assert frames[0].flags.writeable


@pytest.mark.parametrize("length", [1, 2, 7, 16, 17, 48, 97, 128, 256, 300])
def test_the_size_depends_on_the_length_only(length: int) -> None:
    short = make_frame(["7"] * length, length, prompt="")
    long = make_frame(["internationalization"] * length, 0, prompt="many words\n" * 100, block_length=3)
    sizes = {render_rgb(frame).shape for frame in (short, long, replace(long, masked=~long.masked))}
    assert len(sizes) == 1
    assert all(side % 2 == 0 for side in sizes.pop()[:2])
    assert max(len(line) for line in plain(render_ansi(long)).splitlines()) <= 100


@pytest.mark.parametrize("render", [render_ansi, render_rgb])
def test_the_text_of_masked_positions_does_not_show(render: Any) -> None:
    other = [*TOKENS[:3], *["secret"] * 13]
    assert np.array_equal(render(make_frame(TOKENS, 3)), render(make_frame(other, 3)))
    assert not np.array_equal(render(make_frame(TOKENS, 5)), render(make_frame(other, 5)))


@pytest.mark.parametrize("render", [render_ansi, render_rgb])
@pytest.mark.parametrize(
    "change",
    [
        {"confidence": np.full(16, 0.9, np.float32)},
        {"just_revealed": np.zeros(16, bool)},
        {"block_length": 6},
        {"step": 9},
        {"prompt": "Eva has 2 pens. Total?"},
        {"score": 0.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_everything_else_shows(render: Any, change: dict[str, Any]) -> None:
    frame = make_frame(revealed=3)
    assert not np.array_equal(render(frame), render(replace(frame, **change)))


def test_ansi_shows_prompt_step_and_revealed_tokens() -> None:
    text = plain(render_ansi(make_frame(revealed=6, step=4)))
    assert PROMPT in text
    assert "step 4/16" in text
    assert "revealed 6/16" in text
    shown = " ".join(text.split())
    assert "Next 6 3 - 1 is" in shown
    assert "####" not in shown
    assert "\x1b[92m" + f"{'is':^6}" in render_ansi(make_frame(revealed=6))


def test_ansi_shades_masked_positions_by_confidence() -> None:
    frame = make_frame(revealed=0, confidence=np.linspace(0, 1, 16, dtype=np.float32))
    assert {"░", "▒", "▓"} <= set(render_ansi(frame))


@pytest.mark.parametrize(
    ("score", "words", "colour"),
    [(1.0, "correct   score 1", 92), (0.0, "wrong   score 0", 91), (0.25, "wrong   score 0.25", 91)],
)
def test_a_finished_episode_shows_its_score(score: float, words: str, colour: int) -> None:
    assert f"\x1b[{colour}m{words}\x1b[0m" in render_ansi(make_frame(revealed=16, score=score))
    assert "score" not in render_ansi(make_frame(revealed=16))


@pytest.mark.parametrize("token", END_TOKENS)
def test_end_tokens_are_a_small_symbol(token: str) -> None:
    tokens = [token] * 16
    text = plain(render_ansi(make_frame(tokens, 16)))
    assert token not in text
    assert text.count("∎") == 16
    reference = render_rgb(make_frame([END_TOKENS[0]] * 16, 16))
    assert np.array_equal(render_rgb(make_frame(tokens, 16)), reference)


def test_block_edges_are_drawn_between_blocks_only() -> None:
    assert "│" not in render_ansi(make_frame(block_length=16))
    assert render_ansi(make_frame(block_length=4)).count("│") == 3
    offset = make_frame(block_length=4, block_offset=3)
    assert [at for at in range(16) if offset.is_edge(at)] == [1, 5, 9, 13]


def test_a_token_cannot_control_the_terminal() -> None:
    tokens = ["\x1b[2J", "\n", "  ", *TOKENS[3:]]
    text = render_ansi(make_frame(tokens, 3))
    assert "\x1b[2J" not in text
    assert r"\n" in text
    assert len(text.splitlines()) == len(render_ansi(make_frame(revealed=3)).splitlines())


def test_gif_round_trip(tmp_path: Path) -> None:
    frames = [render_rgb(make_frame(revealed=count)) for count in (0, 4, 10, 16)]
    path = save_gif(frames, tmp_path / "films" / "episode.gif", fps=5, hold_last=2.0)
    with Image.open(path) as film:
        read = [
            (image.info["duration"], np.array(image.convert("RGB"))) for image in ImageSequence.Iterator(film)
        ]
        assert film.info["loop"] == 0
    assert [duration for duration, _ in read] == [200, 200, 200, 2000]
    for (_, image), frame in zip(read, frames, strict=True):
        assert image.shape == frame.shape
        assert np.abs(image.astype(int) - frame).mean() < 1.0
    assert path.stat().st_size < 100_000
    assert list(path.parent.iterdir()) == [path]


def test_gif_of_a_single_frame(tmp_path: Path) -> None:
    path = save_gif([render_rgb(make_frame())], tmp_path / "still.gif")
    with Image.open(path) as film:
        assert film.size == render_rgb(make_frame()).shape[1::-1]


def test_gif_errors(tmp_path: Path) -> None:
    frame = render_rgb(make_frame())
    with pytest.raises(ValueError, match="at least one frame"):
        save_gif([], tmp_path / "a.gif")
    with pytest.raises(ValueError, match="one shape"):
        save_gif([frame, frame[:-2]], tmp_path / "a.gif")
    with pytest.raises(ValueError, match="positive"):
        save_gif([frame], tmp_path / "a.gif", fps=0)
    assert not list(tmp_path.iterdir())
