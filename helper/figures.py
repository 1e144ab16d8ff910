"""Figures from what runs recorded while they trained; none needs a network or data."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from dataset import dataset_dict
from distiller_zoo import LogitDistiller, Shapes, registry
from distiller_zoo.base import Distiller

from .plots import legend_below, line_style, one_axes, point_style
from .results import SELECTIONS, Cell

# of metrics.jsonl -> the figure's title, what its axis shows, and the factor to the axis's unit
RECORDED = {
    "temperature": ("Learned temperature", "temperature T", 1),
    "label_in_topk": ("Labels among the student's k largest logits", "share of test images (%)", 100),
    "sort_changed": ("Rows of the teacher that sorting changed", "share of training images (%)", 100),
}
LARGEST_WITH_NUMBERS = 8  # ranks of a matrix whose entries are written into it


def mean_curve(cell: Cell, key: str) -> list[float]:
    """A figure of metrics.jsonl by epoch, mean over the runs; empty where a run has not recorded it throughout."""
    curves = [[row.get(key) for row in rows] for rows in cell.curves]
    if any(value is None for curve in curves for value in curve):
        return []
    return [statistics.mean(values) for values in zip(*curves, strict=True)]


def _with_count(cell: Cell) -> str:
    return f"{cell.label} (n = {len(cell.runs)})"


def _draw_curves(cells: Sequence[Cell], key: str, title: str, axis: str, factor: float = 1) -> Figure | None:
    drawn = [(cell, curve) for cell in cells if (curve := mean_curve(cell, key))]
    if not drawn:
        return None
    figure, axes = one_axes(title)
    for number, (cell, curve) in enumerate(drawn):
        # a single epoch is no line
        mark = {"marker": "."} if len(curve) == 1 else {}
        epochs = range(1, len(curve) + 1)
        axes.plot(epochs, [factor * value for value in curve], label=_with_count(cell), **line_style(number), **mark)
    axes.set(xlabel="epoch", ylabel=axis)
    axes.xaxis.get_major_locator().set_params(integer=True)
    legend_below(figure, axes)
    return figure


def learning_curves(cells: Sequence[Cell]) -> Figure:
    """Test accuracy over the epochs, a line per setting (mean of its trials); else that on held-out training images."""
    title = "Learning curves"
    tested = _draw_curves(cells, "test_acc", title, "test accuracy (%)")
    return tested or _draw_curves(cells, "val_acc", title, "accuracy on held-out training images (%)")


def recorded(cells: Sequence[Cell], key: str) -> Figure | None:
    """A figure of `RECORDED` over the epochs; None where no run has it."""
    return _draw_curves(cells, key, *RECORDED[key])


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _against(cells: Sequence[Cell], key: str, title: str, axis: str, select: str) -> Figure | None:
    known = [cell for cell in cells if all(summary.get(key) for summary in cell.summaries)]
    if not known:
        return None
    figure, axes = one_axes(title)
    places = []
    for number, cell in enumerate(known):
        accuracies = cell.values(SELECTIONS[select])
        places.append(statistics.mean(cell.values(key)))
        axes.errorbar(
            *(places[-1], statistics.mean(accuracies), _spread(accuracies)),
            label=_with_count(cell),
            linestyle="none",
            capsize=2,
            alpha=0.8,
            **point_style(number),
        )
    if max(places) > 10 * min(places):
        axes.set_xscale("log")
    else:
        axes.set_xlim(0, 1.1 * max(places))
    axes.set(xlabel=axis, ylabel=f"test accuracy, {select} epoch (%)")
    legend_below(figure, axes)
    return figure


def accuracy_parameters(cells: Sequence[Cell], select: str) -> Figure | None:
    """Accuracy against the student's size, a point per setting with the standard deviation over its trials."""
    figure = _against(cells, "params", "Accuracy against size", "parameters of the student", select)
    if figure:
        figure.axes[0].xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g}M" if value else "0")
    return figure


def accuracy_seconds(cells: Sequence[Cell], select: str) -> Figure | None:
    """Accuracy against the time that training took, testing included; a point per setting."""
    return _against(cells, "seconds", "Accuracy against training time", "training time (s)", select)


def _matrices(cell: Cell) -> dict[str, Tensor]:
    """The constants of a setting's loss that are worth a look, see `Distiller.matrices`."""
    method = registry.get(cell.options.get("distill", ""))
    # others cannot be made without the shapes of both networks' features
    if method is None or not issubclass(method.build, LogitDistiller):
        return {}
    options = {option.name: cell.options[option.name] for option in method.options() if option.name in cell.options}
    classes = cell.options.get("classes", dataset_dict[cell.options["dataset"]].classes)
    try:
        distiller: Distiller = method.build(Shapes([], [], classes=classes, samples=0), **options)
    except (ValueError, TypeError):  # options of another version
        return {}
    return distiller.matrices()


def loss_matrices(cell: Cell) -> Figure | None:
    """A constant matrix of the loss as a heat map, its zeros left blank; None where the method has none."""
    for name, matrix in _matrices(cell).items():
        values = np.ma.masked_equal(matrix.numpy(), 0)
        figure, axes = one_axes(f"{name[0].upper()}{name[1:]}\n{cell.label}", height=2.7)
        image = axes.imshow(values, cmap="cividis", extent=(0.5, values.shape[1] + 0.5, values.shape[0] + 0.5, 0.5))
        axes.set(xlabel="rank j", ylabel="rank i")
        axes.grid(False)
        for side in (axes.xaxis, axes.yaxis):
            side.get_major_locator().set_params(integer=True)
        if max(values.shape) <= LARGEST_WITH_NUMBERS:
            _write_numbers(axes, values)
        figure.colorbar(image, ax=axes, label="weight")
        return figure
    return None


def _write_numbers(axes: Axes, values: np.ma.MaskedArray) -> None:
    middle = (values.min() + values.max()) / 2
    for (row, column), value in np.ma.ndenumerate(values):
        colour = "black" if value > middle else "white"
        axes.text(column + 1, row + 1, f"{value:.2f}", ha="center", va="center", color=colour)
