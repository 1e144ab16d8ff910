"""Runs read back: finished ones grouped by setting, compared over trials, beside published figures."""

from __future__ import annotations

import fnmatch
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from distiller_zoo import registry

from .errors import UserError
from .run import FORMERLY, INCIDENTAL

FOLDERS = ("models", "student_model")  # kinds of runs below a save folder
SELECTIONS = {"last": "test_acc", "best": "best_acc"}  # of a summary
FEWEST_TRIALS = 3  # that a test of a difference takes
ROUNDING = 1e-9  # points by which differences may be unequal that are the same but for their last digits
# what two settings must share to be compared, besides the student's network and, of two students, the teacher; of these
# options, a method may have values of its own
SCHEDULE = (
    *("dataset", "epochs", "batch_size", "learning_rate", "lr_decay_epochs", "lr_decay_rate", "lr_schedule", "lr_end"),
    *("weight_decay", "subset", "val_split", "image_size", "mean", "std", "rand_augment", "random_erasing"),
    *("rotation", "size_s", "drop_path", "precision"),
)
TEACHER = ("model_t", "teacher_sha256", "size_t")
NEEDED = {"dataset": str, "epochs": int, "trial": str}  # of options.json
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError)
PUBLISHED = Path(__file__).with_name("published.json")


def measured(options: Mapping[str, Any]) -> str:
    """The accuracy in every line of a run's metrics.jsonl."""
    return "val_acc" if options.get("val_split") else "test_acc"


@dataclass
class Record:
    """One run as its folder tells of it.

    Attributes:
        folder: of the run.
        options: of options.json.
        rows: of metrics.jsonl, pre-training stages included.
        summary: of summary.json; None while the run is not finished.
    """

    folder: Path
    options: dict[str, Any]
    rows: list[dict[str, Any]]
    summary: dict[str, Any] | None

    @property
    def trial(self) -> str:
        """Name of the trial."""
        return str(self.options["trial"])

    @property
    def measured(self) -> str:
        """What every epoch of the main training measured: `test_acc`, or `val_acc`, on held-out training images."""
        return measured(self.options)

    @property
    def curve(self) -> list[dict[str, Any]]:
        """The rows of the main training, which alone have an accuracy on images that are not trained on."""
        return [row for row in self.rows if self.measured in row]

    @property
    def state(self) -> str:
        """How far it is, for a run that is not finished."""
        if not self.rows:
            return f"no epoch of {self.options['epochs']} done"
        row = self.rows[-1]
        if "stage" in row:
            return f"epoch {row['epoch']} of stage {row['stage']}"
        split, value = self.measured.partition("_")[0], row[self.measured]
        return f"epoch {row['epoch']} of {self.options['epochs']}, {split} acc {value:.2f}"


@dataclass
class Cell:
    """Runs that differ in nothing but trial and seed.

    Attributes:
        label: network, method and weights; unique among the cells read together.
        options: those that all of them share.
        runs: finished ones, in the order in which they finished.
    """

    label: str
    options: dict[str, Any]
    runs: list[Record] = field(default_factory=list)

    @property
    def summaries(self) -> list[dict[str, Any]]:
        """One per run."""
        return [run.summary for run in self.runs]

    @property
    def curves(self) -> list[list[dict[str, Any]]]:
        """One per run, see `Record.curve`."""
        return [run.curve for run in self.runs]

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


@dataclass
class Runs:
    """What lies below a save folder.

    Attributes:
        cells: a cell per setting, in the order in which its first run finished.
        running: runs without a summary: still at work, or cut off.
        notes: on what was left out.
    """

    cells: list[Cell]
    running: list[Record]
    notes: list[str]


def read_runs(save_folder: Path, dataset: str, patterns: Sequence[str] = ("*",)) -> Runs:
    """Read the runs below a save folder and group the finished ones by setting.

    Args:
        save_folder: `--save_folder` of the runs.
        dataset: only runs on this one.
        patterns: only runs whose folder's name fits one of these, with the wildcards of a shell.

    Raises:
        UserError: a file of a finished run is damaged or of an older version, or two runs are the same one.
    """
    folders = [path for kind in FOLDERS for path in (save_folder / kind).glob("*/")]
    folders = [folder for folder in folders if any(fnmatch.fnmatchcase(folder.name, pattern) for pattern in patterns)]
    traces = [folder for folder in folders if (folder / "summary.json").exists() or (folder / "metrics.jsonl").exists()]
    folders = [folder for folder in folders if (folder / "options.json").exists()]
    lost = [f"{folder} has no options.json and tells of no run: left out" for folder in traces if folder not in folders]
    finished = [folder for folder in folders if (folder / "summary.json").exists()]
    cells: dict[str, Cell] = {}
    for folder in sorted(finished, key=_finished_at):
        try:
            record = _read_record(folder, finished=True)
        except _DAMAGE as error:
            raise UserError(f"{folder} is damaged{_reason(error)}; delete it or run it again") from None
        if record.options["dataset"] == dataset:
            _enter(record, cells)
    tell_apart(list(cells.values()))
    running, notes = _read_running([folder for folder in folders if folder not in finished], dataset)
    return Runs(list(cells.values()), running, [*sorted(lost), *notes])


def _finished_at(folder: Path) -> float:
    try:
        return (folder / "summary.json").stat().st_mtime
    except OSError:  # deleted since
        return 0.0


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f" or of an older version (no {error})"
    return f" ({' '.join(str(error).split())})"


def _load(path: Path, text: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: the text is none; names the file.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no object")
    return content


def _check_figures(content: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Raises `ValueError` where a figure is no finite number, and `KeyError` where it is absent."""
    for key in keys:
        value = content[key]
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError(f"{key} is {value!r}")


def _check_options(options: Mapping[str, Any]) -> None:
    """Raises `TypeError` where an option is none that a table could show, and `KeyError` where it is absent."""
    networks = {"distill": str, "model_s": str} if "distill" in options else {"model": str}
    for key, kind in {**NEEDED, **networks}.items():
        if not isinstance(options[key], kind):
            raise TypeError(f"options.json: {key} is {options[key]!r}")
    label_of(options)


def _read_record(folder: Path, finished: bool) -> Record:
    """The run of a folder; of one that is not finished, metrics.jsonl may be absent."""
    path = folder / "options.json"
    options = _load(path, path.read_text(encoding="utf-8"))
    _check_options(options)
    path = folder / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if finished or path.exists() else ""
    rows = [_load(path, line) for line in text.splitlines()]
    accuracy = measured(options)
    for row in rows:
        _check_figures(row, ("epoch", "train_loss" if "stage" in row else accuracy))
    epochs = sum(accuracy in row for row in rows)
    if finished and epochs != options["epochs"]:
        raise ValueError(f"metrics.jsonl has {epochs} of {options['epochs']} epochs")
    path = folder / "summary.json"
    summary = _load(path, path.read_text(encoding="utf-8")) if finished else None
    if summary is not None:
        known = ("teacher_acc",) if "teacher_acc" in summary else ()
        _check_figures(summary, (*SELECTIONS.values(), "images_per_second", *known))
    return Record(folder, options, rows, summary)


def _enter(record: Record, cells: dict[str, Cell]) -> None:
    """Put a finished run into the cell of its setting.

    Raises:
        UserError: the cell has a run of the same trial and seed.
    """
    setting = {key: value for key, value in record.options.items() if key not in (*INCIDENTAL, "trial", "seed")}
    # a run may go on with other processes, but batch norms see the share of each, so that it is another setting
    setting |= {key: record.options.get(key, default) for key, default in FORMERLY.items()}
    cell = cells.setdefault(json.dumps(setting, sort_keys=True), Cell(label_of(setting), setting))
    for other in cell.runs:
        if (other.trial, other.options.get("seed")) == (record.trial, record.options.get("seed")):
            raise UserError(
                f"{other.folder} and {record.folder} are the same trial of the same setting; move one of them away"
            )
    cell.runs.append(record)


def _read_running(folders: Sequence[Path], dataset: str) -> tuple[list[Record], list[str]]:
    """The runs without a summary, by the name of their folder, and notes on what cannot be read."""
    running, notes = [], []
    for folder in sorted(folders):
        try:
            if any(folder.glob("*.pth")) and not (folder / "resume.pth").exists():
                continue  # checkpoints that were copied there, no run
            record = _read_record(folder, finished=False)
        except _DAMAGE as error:
            notes.append(f"{folder} has no summary and is damaged{_reason(error)}: left out")
            continue
        if record.options["dataset"] == dataset:
            running.append(record)
    return running, notes


def tell_apart(cells: Sequence[Cell]) -> None:
    """Add to equal labels the options in which their cells differ."""
    for label in {cell.label for cell in cells}:
        alike = [cell for cell in cells if cell.label == label]
        keys = sorted({key for cell in alike for key in cell.options})
        differing = [key for key in keys if len({str(cell.options.get(key)) for cell in alike}) > 1]
        for cell in alike:
            cell.label = " ".join([label, *(f"{key} {_short(cell.options.get(key))}" for key in differing)])


def _short(value: Any) -> str:
    """An option's value; of a digest, the beginning."""
    text = str(value)
    return text if len(text) < 40 else f"{text[:12]}..."


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
    # a trial may have been run with several seeds
    ours, theirs = (
        {(run.trial, run.options.get("seed")): run.summary[key] for run in c.runs} for c in (cell, baseline)
    )
    common = sorted(set(ours) & set(theirs), key=str)
    if not common:
        return None
    differences = [ours[trial] - theirs[trial] for trial in common]
    p = None
    if len(common) >= FEWEST_TRIALS and max(differences) - min(differences) > ROUNDING:
        from scipy import stats  # only here: most tables have fewer trials

        p = float(stats.ttest_1samp(differences, 0.0).pvalue)
    return Gain(statistics.mean(differences), len(common), p)


def _differing(cell: Cell, other: Cell, method: str) -> list[str]:
    """The options in which a cell must equal one that it is compared with, and does not."""
    registered = registry.get(cell.options.get("distill", ""))
    own = set(registered.recipe) if registered else set()
    keys = [key for key in SCHEDULE if key not in own] + (list(TEACHER) if method != "labels" else [])

    def value(cell: Cell, key: str) -> Any:
        # a network that is trained from labels is the only one
        return cell.options.get("size" if key == "size_s" and "size" in cell.options else key)

    return [key for key in keys if value(cell, key) != value(other, key)]


def baseline_of(cell: Cell, cells: Sequence[Cell], method: str) -> tuple[Cell | None, str]:
    """The cell of a method with the same student and schedule, and the same teacher where it has one.

    Returns:
        The cell; None where there is none or more than one, for those of the method itself, and for students without a
        teacher. And why there is none although the student has runs of the method; empty otherwise.
    """
    if cell.method == method or "distill" not in cell.options:
        return None, ""
    candidates = [other for other in cells if other.method == method and other.student == cell.student]
    differing = {id(other): _differing(cell, other, method) for other in candidates}
    found = [other for other in candidates if not differing[id(other)]]
    if len(found) == 1:
        return found[0], ""
    if found:
        return None, f"{len(found)} settings of {method} fit"
    fewest = min(differing.values(), key=len, default=[])
    return None, f"{method} has another {', another '.join(fewest)}" if fewest else ""


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


def known_log_prior(summary: Mapping[str, Any]) -> float | None:
    """The log prior that a run ended with, as a student or as a teacher; None for one without evidence."""
    values = (summary.get("log_prior_s"), summary.get("log_prior"))
    return next((float(value) for value in values if type(value) in (int, float)), None)
