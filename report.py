"""Compare finished runs: a table, and learning curves with `--figure FILE`."""

from __future__ import annotations

import csv
import io
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from dataset import dataset_dict
from helper.checkpoint import write_file
from helper.errors import UserError, run_command
from helper.options import OneLineParser
from helper.results import SELECTIONS, Cell, baseline_of, gain, mean_and_spread, published, read_cells

Line = Sequence[str]


def table(cells: Sequence[Cell], select: str, baseline: str) -> tuple[list[Line], list[str]]:
    """What every format shows.

    Args:
        cells: the settings.
        select: which accuracy, `last` or `best`.
        baseline: the method that gains are measured from, besides training from labels.

    Returns:
        The header and a line per setting, and the notes below: teachers' accuracies, sources of published figures.
    """
    key = SELECTIONS[select]
    header = ("run", "epochs", "trials", f"{select} acc", "over labels", f"over {baseline}", "published", "images/s")
    lines: list[Line] = [header]
    sources: list[str] = []
    for cell in cells:
        known = published(cell)
        if known and known["source"] not in sources:
            sources.append(known["source"])
        bases = (baseline_of(cell, cells, method) for method in ("labels", baseline))
        gains = [gain(cell, base, key) if base else None for base in bases]
        figures = (
            mean_and_spread(cell.values(key)),
            *(str(found) if found else "-" for found in gains),
            f"{known['accuracy']:.2f} [{sources.index(known['source']) + 1}]" if known else "-",
            f"{statistics.mean(cell.values('images_per_second')):.0f}",
        )
        lines.append((cell.label, str(cell.options["epochs"]), str(len(cell.summaries)), *figures))
    teachers = {summary["teacher_acc"] for cell in cells for summary in cell.summaries if "teacher_acc" in summary}
    notes = [f"teacher: test acc {accuracy:.2f}" for accuracy in sorted(teachers)]
    if sources:
        notes.append("published figures are of full schedules and may be of the best epoch:")
    return lines, [*notes, *(f"[{number}] {source}" for number, source in enumerate(sources, start=1))]


def as_text(lines: Sequence[Line], notes: Sequence[str]) -> str:
    """Columns padded with spaces."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ("  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip() for line in lines)
    return "\n".join([*padded, *notes]) + "\n"


def as_markdown(lines: Sequence[Line], notes: Sequence[str]) -> str:
    """A pipe table."""
    rows = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    cells = ("| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows)
    return "\n".join([*cells, "", *(f"{note}  " for note in notes)]).rstrip() + "\n"


def as_csv(lines: Sequence[Line], notes: Sequence[str]) -> str:
    """Comma-separated values; the notes are left out."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue()


def as_latex(lines: Sequence[Line], notes: Sequence[str]) -> str:
    """A tabular with booktabs' rules; the notes are comments."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"}

    def escape(text: str) -> str:
        return "".join(special.get(character, character) for character in text)

    rows = [" & ".join(map(escape, line)) + r" \\" for line in lines]
    body = [rf"\begin{{tabular}}{{l{'r' * (len(lines[0]) - 1)}}}", r"\toprule", rows[0], r"\midrule", *rows[1:]]
    return "\n".join([*(f"% {note}" for note in notes), *body, r"\bottomrule", r"\end{tabular}"]) + "\n"


FORMATS = {"text": as_text, "markdown": as_markdown, "csv": as_csv, "latex": as_latex}


def draw_curves(cells: Sequence[Cell], path: Path) -> None:
    """Save the test accuracy over the epochs, a line per setting (mean of its trials), as an image."""
    import matplotlib  # only here, since a table needs none

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for cell in cells:
        curves = [[row["test_acc"] for row in rows] for rows in cell.curves]
        means = [statistics.mean(accuracies) for accuracies in zip(*curves, strict=True)]
        axes.plot(range(1, len(means) + 1), means, label=f"{cell.label} (n = {len(curves)})")
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
    parser.add_argument("--select", default="last", choices=list(SELECTIONS), help="accuracy of which epoch (last)")
    parser.add_argument("--over", default="kd", metavar="METHOD", help="method that gains are measured from (kd)")
    parser.add_argument("--format", default="text", choices=list(FORMATS), help="of the table (text)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table there instead of the terminal")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the learning curves (.png, .pdf or .svg)")
    opt = parser.parse_args()
    cells, unfinished = read_cells(opt.save_folder, opt.dataset)
    if unfinished:
        print(f"note: {len(unfinished)} unfinished runs are left out, {unfinished[0]} for instance", file=sys.stderr)
    if not cells:
        raise UserError(f"no finished run on {opt.dataset} below {opt.save_folder}; see --save_folder and --dataset")
    text = FORMATS[opt.format](*table(cells, opt.select, opt.over))
    if opt.out:
        opt.out.parent.mkdir(parents=True, exist_ok=True)
        write_file(opt.out, text.encode())
        print(f"table in {opt.out}")
    else:
        print(text, end="")
    if opt.figure:
        draw_curves(cells, opt.figure)
        print(f"learning curves in {opt.figure}")


if __name__ == "__main__":
    sys.exit(run_command(main))
