"""Figures and the files made of them, with matplotlib's Agg canvas and without pyplot's global state."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from dllm_gym.files import write_atomically

# Okabe and Ito's colours, told apart with every kind of colour vision; markers and dashes repeat them.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

SMALL = (3.5, 2.5)  # inches: three beside each other on a page of 1,100 pixels, where 8 points are 11 pixels


def new_figure(width: float, height: float, dpi: int = 100) -> Any:
    """An empty matplotlib ``Figure``, sizes in inches."""
    figure: Any = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


@contextmanager
def literal_texts() -> Iterator[None]:
    """Texts that are made in here are shown as they are: names may hold ``$`` and backslashes."""
    with mpl.rc_context({"text.parse_math": False, "text.usetex": False}):
        yield


def legend(place: Any, handles: Sequence[Any], **style: Any) -> None:
    """A legend of all handles; left to itself matplotlib leaves out labels that begin with ``_``.

    Args:
        place: Axes or figure.
        handles: What ``plot`` and ``errorbar`` gave, labelled.
        **style: Of matplotlib's ``legend``.
    """
    labels = [handle.get_label() for handle in handles]
    place.legend(handles, labels, frameon=False, **style)


def picture_format(path: str | Path) -> str:
    """The format that the suffix of a file name chooses, PNG if there is none.

    Raises:
        ValueError: For a suffix that matplotlib does not know.
    """
    kind = Path(path).suffix[1:].lower() or "png"
    known = FigureCanvasAgg.get_supported_filetypes()
    if kind not in known:
        raise ValueError(f"cannot draw {path}: no picture ends in .{kind}; known: {', '.join(sorted(known))}")
    return kind


def save_figure(figure: Any, path: str | Path) -> Path:
    """Writes a figure atomically.

    Raises:
        ValueError: See ``picture_format``.
        OSError: If it cannot be written.
    """
    kind = picture_format(path)

    def write(temporary: Path) -> None:
        figure.savefig(temporary, format=kind)
        if kind == "png":  # plots have few colours: a palette makes the file a third of the size
            with Image.open(temporary) as picture:
                small = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
            small.save(temporary, format="PNG", optimize=True)

    return write_atomically(path, write)


def svg_element(figure: Any, description: str) -> str:
    """A figure as an ``<svg>`` element for a web page: texts stay text, black is the page's colour of text.

    Args:
        figure: The matplotlib ``Figure``.
        description: What a screen reader says.
    """
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dllm_gym"}):  # the same names every time
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    body = file.getvalue().partition("<svg")[2].partition(">")[2]
    for pattern, replacement in (
        (r'<g id="[^"]*"', "<g"),  # names that several figures have
        (r"font-family: [^;\"]*", "font-family: inherit"),
        ("#000000", "currentColor"),
        (r"\s+\n", "\n"),
    ):
        body = re.sub(pattern, replacement, body)
    width, height = figure.get_size_inches() * 72
    label = html.escape(description)
    return f'<svg role="img" aria-label="{label}" viewBox="0 0 {width:g} {height:g}">{body}'
