"""All figures of a set of runs: which there are, which of them apply, and where they go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from . import figures, network_figures
from .errors import UserError
from .network_figures import Laboratory, Subject
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
    "strength": network_figures.dirichlet_strength,
    "moved": network_figures.moved_labels,
}
KINDS = (*TOGETHER, *EACH, *NETWORKS)


def _draw(
    kind: str, cells: Sequence[Cell], subjects: Sequence[Subject], select: str
) -> Iterator[tuple[str, Callable[[], Figure | None]]]:
    """File names without ending, and what draws each."""
    if kind in TOGETHER:
        yield kind, lambda: TOGETHER[kind](cells, select)
    for cell, subject in zip(cells, subjects, strict=True):
        if kind in EACH:
            yield safe_name(f"{kind}_{cell.label}"), lambda cell=cell: EACH[kind](cell)
        elif kind in NETWORKS:
            yield safe_name(f"{kind}_{subject.title}"), lambda subject=subject: NETWORKS[kind](subject)


def draw_all(
    cells: Sequence[Cell], kinds: Sequence[str], folder: Path, laboratory: Laboratory, select: str
) -> tuple[list[Drawn], list[str]]:
    """Draw what applies.

    Args:
        cells: the settings.
        kinds: of `KINDS`.
        folder: where PNG and PDF files go.
        laboratory: runs the networks.
        select: which accuracy, `last` or `best`.

    Returns:
        The figures, and a line for each that was left out.

    Raises:
        UserError: the folder cannot be made.
        RunError: a file cannot be written.
    """
    drawn: list[Drawn] = []
    notes: list[str] = []
    subjects = [Subject(cell, laboratory) for cell in cells]
    with style():
        for kind in kinds:
            applies = False
            for name, draw in _draw(kind, cells, subjects, select):
                try:
                    figure = draw()
                except UserError as error:  # of one run: the other figures do not suffer
                    notes.append(f"{kind} is left out: {error}")
                    applies = True
                    continue
                if figure:
                    applies = True
                    drawn.append(_save(figure, folder / name))
            if not applies:
                notes.append(f"{kind} is left out: no run has what it shows")
    return drawn, list(dict.fromkeys(notes))


def _save(figure: Figure, path: Path) -> Drawn:
    files = [path.with_name(path.name + ending) for ending in ENDINGS]
    contents = [write_figure(figure, file) for file in files]
    return Drawn(files[0], contents[0], " ".join(figure.get_suptitle().split()))


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
