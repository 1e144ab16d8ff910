"""One self-contained HTML page of a set of runs: it opens from disk and asks for nothing from any network."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from .gallery import Drawn
from .plots import COLOURS, LINES
from .results import Cell, Record, Runs, label_of
from .tables import Line

TEMPLATE = Path(__file__).with_name("page.html")
GROUPS = {
    "accuracy (%)": ("test_acc", "val_acc", "train_acc", "test_acc_top5", "val_acc_top5"),
    "loss": ("test_loss", "val_loss", "train_loss"),
}
# black would not be seen on a dark page
PAGE_COLOURS = tuple("#888888" if colour == "#000000" else colour for colour in COLOURS)
DASHES = dict(zip(LINES, ("solid", "dash", "dot", "dashdot"), strict=True))
ENVIRONMENT = ("device", "precision", "tf32", "compile")  # of options.json; the rest is in summary.json
FEW_EPOCHS = 10
Spec = dict[str, Any]  # data and layout as plotly.js takes them


@dataclass(frozen=True)
class Entry:
    """A run on the page.

    Attributes:
        anchor: of its section.
        label: network, method, weights.
        setting: number of its cell, for the colour; unfinished runs go on counting.
        record: what was read.
    """

    anchor: str
    label: str
    setting: int
    record: Record

    @property
    def title(self) -> str:
        """Label and trial, whether it is finished, and whether its epochs were measured on held-out images."""
        states = [] if self.record.summary else [" (unfinished)"]
        states += [] if self.record.measured == "test_acc" else [" (held-out images)"]
        return f"{self.label}, trial {self.record.trial}{''.join(states)}"


def _entries(cells: Sequence[Cell], running: Sequence[Record]) -> list[Entry]:
    named = [(cell.label, number, run) for number, cell in enumerate(cells) for run in cell.runs]
    named += [(label_of(run.options), len(cells) + number, run) for number, run in enumerate(running)]
    return [Entry(f"run-{position}", *entry) for position, entry in enumerate(named, start=1)]


def _number(value: object) -> float | None:
    """A figure with five digits; None for what is no finite number, which plotly leaves out."""
    known = type(value) in (int, float) and math.isfinite(value)
    return float(f"{value:.5g}") if known else None


def _line(rows: Sequence[Mapping[str, Any]], key: str, name: str) -> Spec:
    """A trace of a figure over the epochs; names are from files, and plotly takes them for markup."""
    return {
        "y": [_number(row.get(key)) for row in rows],
        "x0": rows[0]["epoch"],
        "name": html.escape(name),
        "mode": "lines" if len(rows) > 1 else "markers",
        "hovertemplate": "%{fullData.name}<br>epoch %{x}: %{y}<extra></extra>",
    }


def _layout(title: str, epochs: int) -> Spec:
    ticks = {"dtick": 1} if epochs <= FEW_EPOCHS else {}  # else there are some between epochs
    return {"xaxis": {"title": {"text": "epoch"}, **ticks}, "yaxis": {"title": {"text": html.escape(title)}}}


def learning_curves(entries: Sequence[Entry]) -> Spec:
    """The accuracy of all runs after every epoch, a colour for each setting."""
    lines, seen = [], set()
    for entry in entries:
        if not entry.record.curve:
            continue
        line = _line(entry.record.curve, entry.record.measured, entry.title)
        number, first = entry.setting, entry.setting not in seen
        seen.add(number)
        dash = DASHES[LINES[number // len(COLOURS) % len(LINES)]]
        line["line"] = {"color": PAGE_COLOURS[number % len(COLOURS)], "dash": dash}
        lines.append({**line, "legendgroup": str(number), "showlegend": first})
    longest = max((len(line["y"]) for line in lines), default=0)
    return {"data": lines, "layout": _layout("test accuracy (%)", longest)}


def run_charts(record: Record) -> list[Spec]:
    """All figures of a run over the epochs: accuracies, losses, then a chart for each term and whatever else it has."""
    charts = list(_phase_charts(record.curve, ""))
    stages = dict.fromkeys(row["stage"] for row in record.rows if "stage" in row)
    for stage in stages:
        charts += _phase_charts([row for row in record.rows if row.get("stage") == stage], f"{stage}: ")
    return charts


def _phase_charts(rows: Sequence[Mapping[str, Any]], prefix: str) -> Iterator[Spec]:
    keys = list(dict.fromkeys(key for row in rows for key in row if _number(row[key]) is not None and key != "epoch"))
    grouped = {key for group in GROUPS.values() for key in group}
    panels = {title: [key for key in group if key in keys] for title, group in GROUPS.items()}
    panels |= {key: [key] for key in keys if key not in grouped}
    for title, members in panels.items():
        if members:
            data = [_line(rows, key, key) for key in members]
            yield {"data": data, "layout": {**_layout(f"{prefix}{title}", len(rows)), "showlegend": len(members) > 1}}


def _facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values as text, in the order given."""
    return [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in values.items()]


def _section(entry: Entry) -> dict[str, Any]:
    """What the template shows of a run."""
    record = entry.record
    summary = dict(record.summary or {})
    versions = summary.pop("versions", {})
    environment = {name: record.options[name] for name in ENVIRONMENT if name in record.options}
    return {
        "anchor": entry.anchor,
        "title": entry.title,
        "state": record.state,
        "folder": str(record.folder),
        "charts": len(run_charts(record)),
        "summary": _facts(summary),
        "options": _facts({key: value for key, value in record.options.items() if key not in environment}),
        "environment": _facts({**(versions if isinstance(versions, dict) else {}), **environment}),
    }


def render_page(runs: Runs, lines: Sequence[Line], notes: Sequence[str], drawn: Sequence[Drawn]) -> str:
    """The page.

    Args:
        runs: finished and unfinished ones.
        lines: of the table: a header, and a line per cell.
        notes: below the table.
        drawn: figures to embed.
    """
    entries = _entries(runs.cells, runs.running)
    finished = [[entry for entry in entries if entry.setting == number] for number in range(len(runs.cells))]
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    charts = {"curves": learning_curves(entries), "runs": {e.anchor: run_charts(e.record) for e in entries}}
    return environment.get_template(TEMPLATE.name).render(
        header=lines[0],
        rows=list(zip(lines[1:], finished, strict=True)),
        unfinished=[entry for entry in entries if not entry.record.summary],
        notes=[*notes, *runs.notes],
        sections=[_section(entry) for entry in entries],
        figures=[(base64.b64encode(figure.png).decode(), figure.text) for figure in drawn],
        charts={**charts, "colours": PAGE_COLOURS},
        plotly=Markup(get_plotlyjs()),  # the library's own text, which ends no script element
        made=f"{datetime.now():%Y-%m-%d %H:%M}",
    )
