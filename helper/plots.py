"""How figures for papers look, and how they are saved."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .checkpoint import write_file
from .errors import UserError

WIDTH = 3.3  # inches, a column of most proceedings
DPI = 200
LINE = 0.13  # inches, of text at FONT
FONT = 7
STYLE = {
    "font.size": FONT,
    "axes.titlesize": FONT,
    "axes.labelsize": FONT,
    "legend.fontsize": FONT,
    "xtick.labelsize": FONT,
    "ytick.labelsize": FONT,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 5,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "pdf.fonttype": 42,  # text stays text
}
# Okabe and Ito, Color Universal Design, 2008; without black, and yellow last, which is weak on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LETTERS = 62  # that fit into WIDTH at FONT


@contextmanager
def style() -> Iterator[None]:
    """The settings under which figures are made and saved."""
    with matplotlib.rc_context(STYLE):
        yield


def line_style(number: int) -> dict[str, Any]:
    """Colour and dashes that tell a line from those of other numbers, from 0."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number // len(COLOURS) % len(LINES)]}


def point_style(number: int) -> dict[str, Any]:
    """Colour and marker that tell a point from those of other numbers, from 0."""
    shape = MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]
    return {"color": COLOURS[number % len(COLOURS)], "marker": shape}


def wrap(text: str) -> str:
    """Text in lines that fit into a column; what begins a line still does."""
    return "\n".join(textwrap.fill(line, LETTERS, break_on_hyphens=False) for line in text.splitlines())


def one_axes(title: str, height: float = 2.2) -> tuple[Figure, Axes]:
    """A figure of a column's width with one pair of axes.

    Args:
        title: above it, wrapped.
        height: of the figure without its title, in inches.
    """
    figure, (axes,) = axes_row(title, 1, height)
    return figure, axes


def _titled(title: str, height: float) -> Figure:
    """An empty figure of a column's width and, without its title, of a height in inches."""
    lines = wrap(title)
    figure = Figure(figsize=(WIDTH, height + LINE * (lines.count("\n") + 1)), layout="constrained")
    figure.suptitle(lines, fontsize=FONT)
    figure.set_label("; ".join(title.splitlines()))
    return figure


def axes_row(title: str, count: int, height: float = 2.2) -> tuple[Figure, list[Axes]]:
    """As `one_axes`, with several pairs of axes side by side."""
    figure = _titled(title, height)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def axes_column(title: str, heights: tuple[float, ...] = (1.6, 0.7)) -> tuple[Figure, list[Axes]]:
    """As `one_axes`, with several pairs of axes below each other, which share what is horizontal.

    Args:
        title: above them, wrapped.
        heights: of the pairs of axes, in inches.
    """
    figure = _titled(title, sum(heights) + 2 * LINE)
    return figure, list(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights))


def legend_below(figure: Figure, axes: Axes, columns: int = 1) -> None:
    """The legend of some axes below them, where it covers nothing; the figure grows by its height."""
    handles, labels = axes.get_legend_handles_labels()
    labels = [textwrap.fill(label, LETTERS // columns - 5, break_on_hyphens=False) for label in labels]
    lines = sum(label.count("\n") + 1 for label in labels) / columns
    figure.set_figheight(figure.get_figheight() + LINE * (lines + 1))
    look = {"frameon": False, "labelspacing": 0.2, "handletextpad": 0.5}
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, **look)


def write_figure(figure: Figure, path: Path) -> bytes:
    """Save a figure in the format of the file's ending; returns the file's content.

    Raises:
        UserError: no format has that ending, or the folder cannot be made.
        RunError: the file cannot be written.
    """
    buffer = io.BytesIO()
    # no time of creation: the same runs give the same file
    metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(path.suffix[1:])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(buffer, format=path.suffix[1:] or None, dpi=DPI, metadata=metadata)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot draw {path} ({error})") from None
    write_file(path, buffer.getvalue())
    return buffer.getvalue()
