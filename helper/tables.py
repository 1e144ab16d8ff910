"""The table of results, and what it looks like as text, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence

from .results import SELECTIONS, Cell, Record, baseline_of, gain, label_of, mean_and_spread, published

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
    missing: list[str] = []
    for cell in cells:
        known = published(cell)
        if known and known["source"] not in sources:
            sources.append(known["source"])
        bases = {method: baseline_of(cell, cells, method) for method in ("labels", baseline)}
        gains = [gain(cell, base, key) if base else None for base, _ in bases.values()]
        missing += [f"{cell.label}: no gain over {method}, {why}" for method, (_, why) in bases.items() if why]
        figures = (
            mean_and_spread(cell.values(key)),
            *(str(found) if found else "-" for found in gains),
            f"{known['accuracy']:.2f} [{sources.index(known['source']) + 1}]" if known else "-",
            f"{statistics.mean(cell.values('images_per_second')):.0f}",
        )
        lines.append((cell.label, str(cell.options["epochs"]), str(len(cell.runs)), *figures))
    teachers = {summary["teacher_acc"] for cell in cells for summary in cell.summaries if "teacher_acc" in summary}
    notes = [*(f"teacher: test acc {accuracy:.2f}" for accuracy in sorted(teachers)), *missing]
    if sources:
        notes.append("published figures are of full schedules and may be of the best epoch:")
    return lines, [*notes, *(f"[{number}] {source}" for number, source in enumerate(sources, start=1))]


def unfinished_lines(running: Sequence[Record]) -> list[str]:
    """How far runs without a summary are, a line each; none of them is in the means."""
    return [f"unfinished: {label_of(run.options)}, trial {run.trial}: {run.state}" for run in running]


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
    """Comma-separated values; the sources of published figures are a column, other notes are left out."""
    sources = dict(note.split(" ", 1) for note in notes if note.startswith("["))
    place = lines[0].index("published")
    rows = [[*lines[0], "source"]]
    for line in lines[1:]:
        value, _, mark = line[place].partition(" ")
        rows.append([*line[:place], value, *line[place + 1 :], sources.get(mark, "")])
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def as_latex(lines: Sequence[Line], notes: Sequence[str]) -> str:
    """A tabular with booktabs' rules, and the notes below it."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"}

    def escape(text: str) -> str:
        return "".join(special.get(character, character) for character in text)

    rows = [" & ".join(map(escape, line)) + r" \\" for line in lines]
    body = [rf"\begin{{tabular}}{{l{'r' * (len(lines[0]) - 1)}}}", r"\toprule", rows[0], r"\midrule", *rows[1:]]
    below = [r"\par\smallskip\footnotesize", *(escape(note) + r"\par" for note in notes)] if notes else []
    return "\n".join(["{", *body, r"\bottomrule", r"\end{tabular}", *below, "}"]) + "\n"


FORMATS = {"text": as_text, "markdown": as_markdown, "csv": as_csv, "latex": as_latex}
