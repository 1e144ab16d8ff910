"""Compare finished runs: a table on the terminal, and learning curves with `--figure FILE`."""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset import dataset_dict
from helper.errors import UserError, run_command
from helper.options import OneLineParser
from helper.run import INCIDENTAL

# kinds of runs below a save folder
FOLDERS = ("models", "student_model")


@dataclass
class Cell:
    """Runs that differ in nothing but trial and seed.

    Attributes:
        label: network and method.
        options: those that all of them share.
        summaries: one per run.
        curves: `test_acc` of every epoch, one list per run.
    """

    label: str
    options: dict[str, Any]
    summaries: list[dict[str, Any]] = field(default_factory=list)
    curves: list[list[float]] = field(default_factory=list)

    def mean_and_spread(self, key: str) -> str:
        """A summary's figure as `mean ± standard deviation` over the runs, or alone where there is one."""
        values = [summary[key] for summary in self.summaries]
        mean = f"{statistics.mean(values):.2f}"
        return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def label_of(options: dict[str, Any]) -> str:
    """A run's row label: network, and method with its weights where it is distilled."""
    if "distill" not in options:
        return f"{options['model']}, from labels"
    weights = " ".join(f"-{flag} {options[flag]:g}" for flag in "rab" if options.get(flag) is not None)
    transforms = "".join(f" +{name}" for name in options.get("transforms", {}))
    return f"{options['model_s']}, {options['distill']} {weights}{transforms}"


def read_cells(save_folder: Path, dataset: str) -> list[Cell]:
    """Group the finished runs below a save folder.

    Args:
        save_folder: `--save_folder` of the runs.
        dataset: only runs on this one.

    Returns:
        A cell per setting, in the order in which its first run finished.

    Raises:
        UserError: a file of a run is damaged.
    """
    cells: dict[str, Cell] = {}
    found = [path for kind in FOLDERS for path in (save_folder / kind).glob("*/summary.json")]
    for path in sorted(found, key=lambda path: path.stat().st_mtime):
        try:
            options = json.loads((path.parent / "options.json").read_text())
            summary = json.loads(path.read_text())
            rows = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
            if options["dataset"] != dataset:
                continue
            setting = {key: value for key, value in options.items() if key not in (*INCIDENTAL, "trial", "seed")}
            cell = cells.setdefault(json.dumps(setting, sort_keys=True), Cell(label_of(options), setting))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{path.parent} is damaged ({reason}); delete it or run it again") from None
        cell.summaries.append(summary)
        # the rows of pre-training stages have no test accuracy
        cell.curves.append([row["test_acc"] for row in rows if "test_acc" in row])
    tell_apart(list(cells.values()))
    return list(cells.values())


def tell_apart(cells: list[Cell]) -> None:
    """Add to equal labels the options in which their cells differ."""
    for label in {cell.label for cell in cells}:
        alike = [cell for cell in cells if cell.label == label]
        keys = sorted({key for cell in alike for key in cell.options})
        differing = [key for key in keys if len({str(cell.options.get(key)) for cell in alike}) > 1]
        for cell in alike:
            cell.label = " ".join([label, *(f"{key} {cell.options.get(key)}" for key in differing)])


def print_table(cells: list[Cell]) -> None:
    """Print a line per setting: last and best test accuracy in percent, number of runs, speed."""
    header = ("run", "epochs", "trials", "last acc", "best acc", "images/s")
    lines = [header]
    for cell in cells:
        speed = statistics.mean(summary["images_per_second"] for summary in cell.summaries)
        figures = (cell.mean_and_spread("test_acc"), cell.mean_and_spread("best_acc"), f"{speed:.0f}")
        lines.append((cell.label, str(cell.options["epochs"]), str(len(cell.summaries)), *figures))
    teachers = {summary["teacher_acc"] for cell in cells for summary in cell.summaries if "teacher_acc" in summary}
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    for accuracy in sorted(teachers):
        print(f"teacher: test acc {accuracy:.2f}")


def draw_curves(cells: list[Cell], path: Path) -> None:
    """Save the test accuracy over the epochs, a line per setting (mean of its trials), as an image."""
    import matplotlib  # only here, since a table needs none

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for cell in cells:
        means = [statistics.mean(accuracies) for accuracies in zip(*cell.curves, strict=True)]
        axes.plot(range(1, len(means) + 1), means, label=f"{cell.label} (n = {len(cell.curves)})")
    axes.set(xlabel="epoch", ylabel="test accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:  # a folder that cannot be written, an ending that no format has
        raise UserError(f"cannot draw {path} ({error})") from None


def main() -> None:
    """Read the command line, print the table, draw the figure."""
    parser = OneLineParser(description="Compare finished runs.", allow_abbrev=False)
    parser.add_argument("--save_folder", type=Path, default=Path("save"), metavar="DIR", help="where runs are (save)")
    parser.add_argument("--dataset", default="cifar100", choices=list(dataset_dict), help="only runs on this one")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the learning curves (.png, .pdf or .svg)")
    opt = parser.parse_args()
    cells = read_cells(opt.save_folder, opt.dataset)
    if not cells:
        raise UserError(f"no finished run on {opt.dataset} below {opt.save_folder}; see --save_folder and --dataset")
    print_table(cells)
    if opt.figure:
        draw_curves(cells, opt.figure)
        print(f"learning curves in {opt.figure}")


if __name__ == "__main__":
    sys.exit(run_command(main))
