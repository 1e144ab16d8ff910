"""Finished runs read back: grouped by setting, compared over trials, beside published figures."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from scipy import stats

from distiller_zoo import registry

from .errors import UserError
from .run import INCIDENTAL

FOLDERS = ("models", "student_model")  # kinds of runs below a save folder
SELECTIONS = {"last": "test_acc", "best": "best_acc"}  # of a summary
FEWEST_TRIALS = 3  # that a test of a difference takes
# what two settings must share to be compared, besides the student's network
SCHEDULE = ("dataset", "epochs", "batch_size", "subset", "precision")
PUBLISHED = Path(__file__).with_name("published.json")


@dataclass
class Cell:
    """Runs that differ in nothing but trial and seed.

    Attributes:
        label: network, method and weights; unique among the cells read together.
        options: those that all of them share.
        summaries: one per run.
        trials: their names.
        curves: the rows of metrics.jsonl with a test accuracy, one list per run.
        folders: of the runs.
    """

    label: str
    options: dict[str, Any]
    summaries: list[dict[str, Any]] = field(default_factory=list)
    trials: list[str] = field(default_factory=list)
    curves: list[list[dict[str, Any]]] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)

    @property
    def student(self) -> str:
        """The trained network's name."""
        return self.options.get("model_s") or self.options["model"]

    @property
    def method(self) -> str:
        """The run as the scripts' METHODS name it: `labels`, `kd`, `kd+sort`, `crd+kd`, ..."""
        if "distill" not in self.options:
            loss = self.options.get("loss", "ce")
            return "labels" if loss == "ce" else f"labels+{loss}"
        return method_name(self.options)

    @property
    def pair(self) -> str:
        """`teacher:student`; nothing before the colon where there is no teacher."""
        return f"{self.options.get('model_t') or ''}:{self.student}"

    def values(self, key: str) -> list[float]:
        """A figure of all summaries, in the order of the runs."""
        return [summary[key] for summary in self.summaries]


def method_name(options: dict[str, Any]) -> str:
    """The method of a student's options with what is added to it."""
    name, optimizer = options["distill"], options.get("optimizer", "sgd")
    added = ["kd"] if options.get("b") is not None and options.get("a") and adds_kl(name) else []
    added += [change for change in options.get("transforms", {}) if change != name]
    return "+".join([name, *added, *([optimizer] if optimizer != "sgd" else [])])


def adds_kl(name: str) -> bool:
    """Whether -a of a method weighs a KL term that its published form leaves out."""
    method = registry.get(name)
    return method is not None and method.build.weighs.get("a") == "div" and not method.weights.get("a")


def label_of(options: dict[str, Any]) -> str:
    """A run's row label: network, and method with its weights where it is distilled."""
    if "distill" not in options:
        return f"{options['model']}, from labels"
    weights = " ".join(f"-{flag} {options[flag]:g}" for flag in "rab" if options.get(flag) is not None)
    transforms = "".join(f" +{name}" for name in options.get("transforms", {}) if name != options["distill"])
    return f"{options['model_s']}, {options['distill']} {weights}{transforms}"


def read_cells(save_folder: Path, dataset: str) -> tuple[list[Cell], list[Path]]:
    """Group the finished runs below a save folder.

    Args:
        save_folder: `--save_folder` of the runs.
        dataset: only runs on this one.

    Returns:
        A cell per setting, in the order in which its first run finished, and the folders of unfinished runs.

    Raises:
        UserError: a file of a run is damaged.
    """
    cells: dict[str, Cell] = {}
    runs = [path.parent for kind in FOLDERS for path in (save_folder / kind).glob("*/options.json")]
    finished = [folder for folder in runs if (folder / "summary.json").exists()]
    for folder in sorted(finished, key=lambda folder: (folder / "summary.json").stat().st_mtime):
        try:
            _read_run(folder, dataset, cells)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{folder} is damaged ({reason}); delete it or run it again") from None
    tell_apart(list(cells.values()))
    return list(cells.values()), [folder for folder in runs if folder not in finished]


def _read_run(folder: Path, dataset: str, cells: dict[str, Cell]) -> None:
    """Enter a finished run into its cell."""
    options = json.loads((folder / "options.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    if options["dataset"] != dataset:
        return
    setting = {key: value for key, value in options.items() if key not in (*INCIDENTAL, "trial", "seed")}
    cell = cells.setdefault(json.dumps(setting, sort_keys=True), Cell(label_of(options), setting))
    for figure in (*SELECTIONS.values(), "images_per_second"):
        float(summary[figure])
    cell.summaries.append(summary)
    cell.trials.append(str(options["trial"]))
    # the rows of pre-training stages have no test accuracy
    cell.curves.append([row for row in rows if "test_acc" in row])
    cell.folders.append(folder)


def tell_apart(cells: Sequence[Cell]) -> None:
    """Add to equal labels the options in which their cells differ."""
    for label in {cell.label for cell in cells}:
        alike = [cell for cell in cells if cell.label == label]
        keys = sorted({key for cell in alike for key in cell.options})
        differing = [key for key in keys if len({str(cell.options.get(key)) for cell in alike}) > 1]
        for cell in alike:
            cell.label = " ".join([label, *(f"{key} {cell.options.get(key)}" for key in differing)])


def mean_and_spread(values: Sequence[float]) -> str:
    """`mean ± standard deviation`, or the value alone where there is one; two digits."""
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


@dataclass(frozen=True)
class Gain:
    """How much better one setting is than another one, trial by trial.

    Attributes:
        mean: of the differences, in points.
        trials: number of trials that both have.
        p: of a paired t-test against no difference, two-sided; None below three trials or where all differences are
            equal.
    """

    mean: float
    trials: int
    p: float | None

    def __str__(self) -> str:
        """The mean with its sign, and p."""
        return f"{self.mean:+.2f}" + (f" (p = {self.p:.2g})" if self.p is not None else "")


def gain(cell: Cell, baseline: Cell, key: str) -> Gain | None:
    """A figure's gain over a baseline over the trials that both have; None where there are none."""
    ours = dict(zip(cell.trials, cell.values(key), strict=True))
    theirs = dict(zip(baseline.trials, baseline.values(key), strict=True))
    common = sorted(set(ours) & set(theirs))
    if not common:
        return None
    differences = [ours[trial] - theirs[trial] for trial in common]
    p = None
    if len(common) >= FEWEST_TRIALS and len(set(differences)) > 1:
        p = float(stats.ttest_1samp(differences, 0.0).pvalue)
    return Gain(statistics.mean(differences), len(common), p)


def baseline_of(cell: Cell, cells: Sequence[Cell], method: str) -> Cell | None:
    """The cell of a method with the same student and schedule, and the same teacher where it has one.

    None where there is none or more than one, and for the baseline itself.
    """

    def fits(other: Cell) -> bool:
        same_teacher = method == "labels" or other.pair == cell.pair
        same_schedule = all(other.options.get(key) == cell.options.get(key) for key in SCHEDULE)
        return other.method == method and other.student == cell.student and same_teacher and same_schedule

    found = [other for other in cells if fits(other)]
    return found[0] if len(found) == 1 and found[0] is not cell else None


@cache
def _published() -> dict[tuple[str, str, str], dict[str, Any]]:
    entries = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    return {(entry["dataset"], entry["pair"], entry["run"]): entry for entry in entries}


def published(cell: Cell) -> dict[str, Any] | None:
    """The published figure for a cell's pair and method, whatever its schedule.

    Returns:
        `accuracy` in percent, `evidence`, how the figure was seen, and `source`; None where none is known.
    """
    return _published().get((cell.options["dataset"], cell.pair, cell.method))
