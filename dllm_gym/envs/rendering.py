"""Pictures of one episode: coloured text for a terminal, RGB frames, films as GIF or MP4.

Everything here is a pure function of a `Frame`; no model is called and nothing is remembered.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dllm_gym.files import check_ending, write_atomically

# Shown as a small symbol, or the padding after a short answer would drown it.
END_TOKENS = ("<|endoftext|>", "<|eot_id|>", "<|im_end|>", "</s>")

_RESET, _BOLD, _DIM, _RED, _GREEN = "\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[91m", "\x1b[92m"
_YELLOW, _REVERSE = "\x1b[93m", "\x1b[7m"
_SHADES = "░▒▓"  # from low to high confidence
_END_SYMBOL = "∎"
_TERMINAL_CELL = 6

Box = tuple[int, int, int, int]
Colour = tuple[int, int, int]
_BACKGROUND: Colour = (13, 17, 23)
_TEXT: Colour = (230, 237, 243)
_MUTED: Colour = (125, 133, 144)
_REVEALED: Colour = (30, 36, 46)
_UNSURE: Colour = (46, 38, 92)  # masked, confidence 0
_SURE: Colour = (160, 130, 255)  # masked, confidence 1
_NEW: Colour = (63, 214, 113)  # just revealed; a correct answer
_NEW_TEXT: Colour = (4, 38, 17)
_WRONG: Colour = (255, 100, 92)
_EDGE: Colour = (240, 180, 60)
_BAR: Colour = (88, 166, 255)
_SHADE_LEVELS = 24  # few enough for the palette of a GIF

_WIDTH, _MARGIN, _GAP, _RADIUS = 762, 24, 6, 6
_CONTENT = _WIDTH - 2 * _MARGIN
_LARGEST_CELL, _SMALLEST_CELL_HEIGHT = 84, 30
_SMALLEST_TEXT = 10
_PROMPT_LINES, _PROMPT_COLUMNS, _PROMPT_SIZE, _PROMPT_LINE_HEIGHT = 2, 80, 20, 28
_GRID_TOP = _MARGIN + _PROMPT_LINES * _PROMPT_LINE_HEIGHT + 16
_FOOTER_SIZE, _FOOTER_HEIGHT, _BAR_HEIGHT = 17, 72, 8
_LEGEND_CELLS, _LEGEND_CELL, _DOT = 8, 12, 8
_STATUS_WIDTH = _CONTENT - 200  # the legend and the verdict take the rest
_PALETTE_FRAMES, _PALETTE_COLOURS = 16, 128


@dataclass(frozen=True, eq=False)
class Frame:
    """What there is to see of an episode after some step.

    Attributes:
        prompt: The problem's text.
        tokens: The text of each of the L completion positions; ignored where masked.
        masked: (L,) bool, positions still masked.
        just_revealed: (L,) bool, positions written by the last step.
        confidence: (L,) float32, the dLLM's confidence; 1.0 where revealed.
        block_length: Block edges are drawn every so many positions; L means none.
        step: Steps used.
        max_steps: The budget, L.
        score: None while the episode runs, then the task's score; 1.0 is correct.
        block_offset: By how many positions the first block is shorter than the others.
        agent: Who decodes; empty leaves it out.
        just_remasked: (L,) bool, positions taken back by the last step, masked now or replaced; None is none.
    """

    prompt: str
    tokens: Sequence[str]
    masked: np.ndarray
    just_revealed: np.ndarray
    confidence: np.ndarray
    block_length: int
    step: int
    max_steps: int
    score: float | None
    block_offset: int = 0
    agent: str = ""
    just_remasked: np.ndarray | None = None

    @property
    def status(self) -> str:
        """Who decodes, steps used and positions revealed, in words."""
        length = len(self.tokens)
        counts = f"step {self.step}/{self.max_steps}   revealed {length - int(self.masked.sum())}/{length}"
        return f"{_visible(self.agent)}   {counts}" if self.agent else counts

    @property
    def correct(self) -> bool:
        """Whether the task's score is full."""
        return self.score is not None and self.score >= 1.0

    @property
    def verdict(self) -> str:
        """``correct`` or ``wrong`` with the score; empty while the episode runs."""
        if self.score is None:
            return ""
        return f"{'correct' if self.correct else 'wrong'}   score {self.score:g}"

    def was_taken_back(self, position: int) -> bool:
        """Whether the last step masked ``position`` again, or replaced what stood there."""
        return self.just_remasked is not None and bool(self.just_remasked[position])

    def is_edge(self, position: int) -> bool:
        """Whether a block other than the first starts at ``position``."""
        return position > 0 and (position + self.block_offset) % self.block_length == 0


def render_ansi(
    frame: Frame, width: int = 100, cursor: int | None = None, marked: np.ndarray | None = None
) -> str:
    """The canvas as rows of cells for a terminal; masked cells are shaded by confidence.

    Args:
        frame: What to draw.
        width: No line of cells is longer, as far as one letter per cell allows.
        cursor: A position to draw in reverse.
        marked: (L,) bool, positions to draw in brackets.
    """
    length = len(frame.tokens)
    columns = grid_columns(length)
    cell = ansi_cell_width(length, width)
    cells = []
    for position in range(length):
        text = _ansi_cell(frame, position, cell, marked is not None and bool(marked[position]))
        if position == cursor:
            text = _REVERSE + text.replace(_RESET, "") + _RESET
        cells.append(("│" if frame.is_edge(position) else " ") + text)
    lines = [f"{_BOLD}{frame.status}{_RESET}"]
    lines += [f"{_DIM}{line}{_RESET}" for line in _wrap(frame.prompt, min(width, _PROMPT_COLUMNS))]
    lines += ["".join(cells[start : start + columns]) for start in range(0, length, columns)]
    if frame.score is not None:
        lines.append(f"{_GREEN if frame.correct else _RED}{frame.verdict}{_RESET}")
    return "\n".join(lines)


def token_text(token: str) -> str:
    """A token as cells show it: an end token as a small symbol, control characters as escapes."""
    return _END_SYMBOL if token in END_TOKENS else _visible(token)


def ansi_cell_width(length: int, width: int) -> int:
    """How many letters of each of L tokens ``render_ansi`` has room for."""
    return max(1, min(_TERMINAL_CELL, width // grid_columns(length) - 1))


def render_rgb(frame: Frame) -> np.ndarray:
    """The canvas as an image.

    Returns:
        (H, W, 3) uint8, H and W even and the same for all frames with the same L.
    """
    layout = _layout(len(frame.tokens))
    image = Image.new("RGB", (_WIDTH, layout.height), _BACKGROUND)
    draw = ImageDraw.Draw(image)
    _draw_prompt(draw, frame.prompt)
    for position in range(len(frame.tokens)):
        _draw_cell(image, draw, frame, position, layout.box(position))
        if frame.is_edge(position):
            draw.rectangle(layout.edge(position), fill=_EDGE)
    _draw_footer(image, draw, frame, layout.height)
    return np.array(image)


def save_gif(frames: Sequence[np.ndarray], path: str | Path, fps: float = 4, hold_last: float = 1.5) -> Path:
    """Writes frames as an endlessly looping GIF, atomically.

    Args:
        frames: (H, W, 3) uint8 arrays of one shape, as from `render_rgb`.
        path: Where the file goes.
        fps: Frames per second.
        hold_last: Seconds for which the last frame stays.

    Raises:
        ValueError: For no frames, frames of different shapes, durations that are not positive, or a path with
            another ending than ``.gif``.
    """
    check_ending(path, ".gif")
    _check_film(frames, fps, hold_last)
    palette = _palette(frames)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [round(1000 / fps)] * (len(images) - 1) + [round(1000 * hold_last)]

    def write(temporary: Path) -> None:
        first, *rest = images
        first.save(temporary, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)

    return write_atomically(path, write)


def save_mp4(frames: Sequence[np.ndarray], path: str | Path, fps: float = 4, hold_last: float = 1.5) -> Path:
    """Writes frames as an H.264 video, atomically; the arguments are those of `save_gif`.

    Raises:
        ImportError: Without imageio-ffmpeg.
        ValueError: As `save_gif` does; the ending is ``.mp4``.
    """
    check_ending(path, ".mp4")
    _check_film(frames, fps, hold_last)
    write_frames = mp4_writer()
    height, width = frames[0].shape[:2]
    held = max(1, round(hold_last * fps))

    def write(temporary: Path) -> None:
        # what `render_rgb` draws has even sides, which is all that the format wants
        writer = write_frames(
            str(temporary), (width, height), fps=fps, codec="libx264", macro_block_size=2, quality=8,
            output_params=["-f", "mp4"],
        )  # fmt: skip
        writer.send(None)
        for frame in [*frames[:-1], *[frames[-1]] * held]:
            writer.send(np.ascontiguousarray(frame))
        writer.close()

    return write_atomically(path, write)


def mp4_writer() -> Any:
    """What `save_mp4` writes with; ask for it before the work whose result shall be saved.

    Raises:
        ImportError: Without imageio-ffmpeg.
    """
    try:
        from imageio_ffmpeg import write_frames
    except ImportError as error:
        raise ImportError(
            "MP4 needs the library imageio-ffmpeg: pip install 'dllm-gym[video]'; GIF needs nothing"
        ) from error
    return write_frames


def beside_or_below(images: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of one shape as one: below each other if they are wide, else beside each other."""
    height, width = images[0].shape[:2]
    return np.concatenate(images, axis=0 if height < width else 1)


def _check_film(frames: Sequence[np.ndarray], fps: float, hold_last: float) -> None:
    if len(frames) == 0:
        raise ValueError("a film needs at least one frame, got none")
    if shapes := {frame.shape for frame in frames} - {frames[0].shape}:
        raise ValueError(f"frames must have one shape, got {frames[0].shape} and {sorted(shapes)}")
    if fps <= 0 or hold_last <= 0:
        raise ValueError(f"fps and hold_last must be positive, got {fps} and {hold_last}")


@dataclass(frozen=True)
class _Layout:
    """Where the cells of a canvas are, in pixels."""

    columns: int
    cell_width: int
    cell_height: int
    left: int
    height: int

    def box(self, position: int) -> Box:
        row, column = divmod(position, self.columns)
        x = self.left + column * (self.cell_width + _GAP)
        y = _GRID_TOP + row * (self.cell_height + _GAP)
        return x, y, x + self.cell_width, y + self.cell_height

    def edge(self, position: int) -> Box:
        """The bar between ``position`` and the one before it; across the grid where a row starts."""
        x, y, right, bottom = self.box(position)
        if position % self.columns:
            return x - _GAP // 2 - 1, y, x - _GAP // 2, bottom - 1
        right += (self.columns - 1) * (self.cell_width + _GAP)
        return x, y - _GAP // 2 - 1, right - 1, y - _GAP // 2


@lru_cache
def _layout(length: int) -> _Layout:
    columns = grid_columns(length)
    width = min((_CONTENT + _GAP) // columns - _GAP, _LARGEST_CELL)
    height = max(width * 3 // 4, _SMALLEST_CELL_HEIGHT)
    grid_width = columns * (width + _GAP) - _GAP
    bottom = _GRID_TOP + -(-length // columns) * (height + _GAP) - _GAP
    total = bottom + _FOOTER_HEIGHT
    return _Layout(columns, width, height, (_WIDTH - grid_width) // 2, total + total % 2)


def grid_columns(length: int) -> int:
    """A square grid where one is possible, else full rows of about 12 (16 for long canvases)."""
    side = isqrt(length)
    if side * side == length and side <= 16:
        return side
    preferred = 12 if length <= 96 else 16
    return min(length, min(range(8, 17), key=lambda columns: (-length % columns, abs(columns - preferred))))


def _ansi_cell(frame: Frame, position: int, width: int, marked: bool) -> str:
    if frame.masked[position]:
        shade = _SHADES[_level(frame.confidence[position], len(_SHADES))]
        if marked:
            return _YELLOW + (f"[{shade * (width - 2)}]" if width > 2 else "#" * width) + _RESET
        return (_RED if frame.was_taken_back(position) else _DIM) + shade * width + _RESET
    token = frame.tokens[position]
    text = token_text(token)
    if marked and width > 2:
        return f"{_YELLOW}[{_cut(text, width - 2):^{width - 2}}]{_RESET}"
    text = _cut(text, width)
    style = (
        _YELLOW
        if marked
        else _RED
        if frame.was_taken_back(position)
        else _GREEN
        if frame.just_revealed[position]
        else _DIM
        if token in END_TOKENS
        else ""
    )
    return f"{style}{text:^{width}}{_RESET if style else ''}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _draw_cell(image: Image.Image, draw: ImageDraw.ImageDraw, frame: Frame, position: int, box: Box) -> None:
    x, y, right, bottom = box
    width, height = right - x, bottom - y
    shape = _rounded(width, height, _RADIUS)
    masked, new = frame.masked[position], frame.just_revealed[position]
    fill = _mix(_UNSURE, _SURE, frame.confidence[position]) if masked else _NEW if new else _REVEALED
    image.paste(fill, (x, y), shape)
    if frame.was_taken_back(position):
        draw.rounded_rectangle((x, y, right - 1, bottom - 1), _RADIUS, outline=_WRONG, width=3)
    if masked:
        return
    token = frame.tokens[position]
    centre = (x + width // 2, y + height // 2)
    if token in END_TOKENS:
        dot = (centre[0] - _DOT // 2, centre[1] - _DOT // 2)
        image.paste(_NEW_TEXT if new else _MUTED, dot, _rounded(_DOT, _DOT, _DOT // 2))
        return
    text, size = _fit(_visible(token), width - _GAP, height * 9 // 20)
    draw.text(centre, text, fill=_NEW_TEXT if new else _TEXT, font=_font(size), anchor="mm")


def _draw_prompt(draw: ImageDraw.ImageDraw, prompt: str) -> None:
    lines = _wrap(prompt, _PROMPT_COLUMNS)
    y = _MARGIN + (_PROMPT_LINES - len(lines) + 1) * _PROMPT_LINE_HEIGHT // 2
    for line in lines:
        text, size = _fit(line, _CONTENT, _PROMPT_SIZE)
        draw.text((_MARGIN, y), text, fill=_TEXT, font=_font(size), anchor="lm")
        y += _PROMPT_LINE_HEIGHT


def _draw_footer(image: Image.Image, draw: ImageDraw.ImageDraw, frame: Frame, height: int) -> None:
    bar, text = height - _FOOTER_HEIGHT + 20, height - 26
    used = round(_CONTENT * min(frame.step / frame.max_steps, 1.0))
    image.paste(_REVEALED, (_MARGIN, bar), _rounded(_CONTENT, _BAR_HEIGHT, _BAR_HEIGHT // 2))
    if used:
        image.paste(_BAR, (_MARGIN, bar), _rounded(used, _BAR_HEIGHT, _BAR_HEIGHT // 2))
    font = _font(_FOOTER_SIZE)
    status, size = _fit(frame.status, _STATUS_WIDTH, _FOOTER_SIZE)
    draw.text((_MARGIN, text), status, fill=_MUTED, font=_font(size), anchor="lm")
    if frame.score is None:
        _draw_legend(image, draw, text)
    else:
        colour = _NEW if frame.correct else _WRONG
        draw.text((_WIDTH - _MARGIN, text), frame.verdict, fill=colour, font=font, anchor="rm")


def _draw_legend(image: Image.Image, draw: ImageDraw.ImageDraw, y: int) -> None:
    x = _WIDTH - _MARGIN - _LEGEND_CELLS * _LEGEND_CELL
    draw.text((x - 10, y), "confidence", fill=_MUTED, font=_font(_FOOTER_SIZE), anchor="rm")
    for index in range(_LEGEND_CELLS):
        box = (x + index * _LEGEND_CELL, y - 6, x + (index + 1) * _LEGEND_CELL, y + 6)
        image.paste(_mix(_UNSURE, _SURE, index / (_LEGEND_CELLS - 1)), box)


def _level(confidence: float, levels: int) -> int:
    return min(int(confidence * levels), levels - 1)


def _mix(low: Colour, high: Colour, confidence: float) -> Colour:
    share = _level(confidence, _SHADE_LEVELS) / (_SHADE_LEVELS - 1)
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(low, high, strict=True))
    return red, green, blue


def _wrap(prompt: str, columns: int) -> list[str]:
    text = _visible(" ".join(prompt.split()))
    return textwrap.wrap(text, columns, max_lines=_PROMPT_LINES, placeholder=" …")


def _visible(text: str) -> str:
    """Without outer blanks; control characters, which a terminal would obey, as escapes."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text.strip(" "))


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


@lru_cache(maxsize=4096)
def _fit(text: str, width: int, size: int) -> tuple[str, int]:
    """The text and the font size that fit into a width; too long a text is cut."""
    for smaller in range(size, _SMALLEST_TEXT - 1, -1):
        if _font(smaller).getlength(text) <= width:
            return text, smaller
    while text and _font(_SMALLEST_TEXT).getlength(text + "…") > width:
        text = text[:-1]
    return text + "…", _SMALLEST_TEXT


@lru_cache(maxsize=256)
def _rounded(width: int, height: int, radius: int) -> Image.Image:
    """The mask of a rounded rectangle, drawn larger and shrunk because Pillow's corners are jagged."""
    scale = 4
    mask = Image.new("L", (width * scale, height * scale))
    box = (0, 0, width * scale - 1, height * scale - 1)
    ImageDraw.Draw(mask).rounded_rectangle(box, radius * scale, fill=255)
    return mask.resize((width, height), Image.Resampling.BOX)


def _palette(frames: Sequence[np.ndarray]) -> Image.Image:
    """One palette for all frames, so that only what changes is written for each."""
    chosen = np.linspace(0, len(frames) - 1, min(len(frames), _PALETTE_FRAMES)).astype(int)
    film = Image.fromarray(np.concatenate([frames[index] for index in chosen]))
    return film.quantize(_PALETTE_COLOURS, method=Image.Quantize.MEDIANCUT)
