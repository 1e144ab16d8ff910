"""All figures of a set of runs: which there are, which of them apply, and where they go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure
from tqdm import tqdm

from . import figures, network_figures
from .errors import UserError
from .network_figures import Laboratory, Subject, Unusable
from .plots import style, write_figure
from .results import Cell
from .run import safe_name

ENDINGS = (".png", ".pdf")


@dataclass(frozen=True)
class Drawn:
    """A figure on disk.

    Attributes:
        path: of the PNG; a PDF of the same name lies beside it.
        png: its content.
        text: what it shows.
    """

    path: Path
    png: bytes
    text: str


# name -> of all settings together, given the selection; None where no run has what it shows
TOGETHER: dict[str, Callable[[Sequence[Cell], str], Figure | None]] = {
    "curves": lambda cells, _: figures.learning_curves(cells),
    "parameters": figures.accuracy_parameters,
    "seconds": figures.accuracy_seconds,
    **{key: lambda cells, _, key=key: figures.recorded(cells, key) for key in figures.RECORDED},
}
# name -> of a setting
EACH: dict[str, Callable[[Cell], Figure | None]] = {"weights": figures.loss_matrices}
# name -> of a setting's first trial, by running its networks
NETWORKS: dict[str, Callable[[Subject], Figure | None]] = {
    "tsne": network_figures.features,
    "correlation": network_figures.correlation,
    "similarity": network_figures.class_similarity,
    "reliability": network_figures.reliability_diagram,
    "strength": network_figures.dirichlet_strength,
    "moved": network_figures.moved_labels,
}
KINDS = (*TOGETHER, *EACH, *NETWORKS)


def _tasks(
    kinds: Sequence[str], cells: Sequence[Cell], laboratory: Laboratory, select: str
) -> Iterator[tuple[str, str, Callable[[], Figure | None]]]:
    """Kind, file name without ending, and what draws it."""
    subjects = [Subject(cell, laboratory) for cell in cells]
    for kind in kinds:
        if kind in TOGETHER:
            yield kind, kind, partial(TOGETHER[kind], cells, select)
        elif kind in EACH:
            yield from ((kind, safe_name(f"{kind}_{cell.label}"), partial(EACH[kind], cell)) for cell in cells)
        else:
            yield from ((kind, safe_name(f"{kind}_{s.title}"), partial(NETWORKS[kind], s)) for s in subjects)


def draw_all(
    cells: Sequence[Cell], kinds: Sequence[str], folder: Path, laboratory: Laboratory, select: str
) -> tuple[list[Drawn], list[str]]:
    """Draw what applies, with a progress bar in a terminal.

    Args:
        cells: the settings.
        kinds: of `KINDS`.
        folder: where PNG and PDF files go.
        laboratory: runs the networks.
        select: which accuracy, `last` or `best`.

    Returns:
        The figures, and a line for each that was left out.

    Raises:
        UserError: the folder cannot be made, or the data not be had that a figure needs.
        RunError: a file cannot be written.
    """
    drawn: list[Drawn] = []
    notes: list[str] = []
    absent = dict.fromkeys(kinds)
    with style():
        for kind, name, draw in tqdm(list(_tasks(kinds, cells, laboratory, select)), leave=False, disable=None):
            try:
                figure = draw()
            except Unusable:
                raise
            except UserError as error:  # of one run: the other figures do not suffer
                notes.append(f"{kind} is left out: {error}")
                absent.pop(kind, None)
                continue
            if figure:
                absent.pop(kind, None)
                drawn.append(_save(figure, folder / name))
    notes += [f"{kind} is left out: no run has what it shows" for kind in absent]
    return drawn, list(dict.fromkeys(notes))


def _save(figure: Figure, path: Path) -> Drawn:
    files = [path.with_name(path.name + ending) for ending in ENDINGS]
    contents = [write_figure(figure, file) for file in files]
    return Drawn(files[0], contents[0], figure.get_label())


def draw_curves(cells: Sequence[Cell], path: Path) -> None:
    """Save the learning curves alone.

    Args:
        cells: the settings.
        path: .png, .pdf or .svg.

    Raises:
        UserError: no format has that ending, or the folder cannot be made.
        RunError: the file cannot be written.
    """
    with style():
        write_figure(figures.learning_curves(cells), path)
