"""report.py on made-up runs."""

import csv
import json
import sys

import pytest
from scipy import stats

import report
from distiller_zoo import registry, transform_registry
from helper.errors import run_command
from helper.results import PUBLISHED, method_name
from models import model_dict


def make_run(folder, trial, accuracies, **options):
    folder.mkdir(parents=True)
    options = {"dataset": "cifar100", "epochs": len(accuracies), "trial": trial, "seed": int(trial), **options}
    (folder / "options.json").write_text(json.dumps(options))
    rows = "".join(json.dumps({"epoch": i, "test_acc": acc}) + "\n" for i, acc in enumerate(accuracies, start=1))
    (folder / "metrics.jsonl").write_text(rows)
    summary = {"test_acc": accuracies[-1], "best_acc": max(accuracies), "images_per_second": 100.0, "teacher_acc": 72.3}
    (folder / "summary.json").write_text(json.dumps(summary))


def run_report(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["report.py", *map(str, words)])
    code = run_command(report.main)
    return code, capsys.readouterr()


def test_trials_share_a_row_and_settings_do_not(tmp_path, monkeypatch, capsys):
    kd = {"model_s": "resnet20", "distill": "kd", "r": 0.1, "a": 0.9, "b": None}
    make_run(tmp_path / "student_model" / "one", "1", [50.0, 62.0], **kd)
    make_run(tmp_path / "student_model" / "two", "2", [51.0, 61.0], **kd)
    make_run(tmp_path / "student_model" / "hot", "1", [40.0, 70.0], **kd, kd_T=8.0)
    make_run(tmp_path / "models" / "plain", "1", [60.0, 55.0], model="resnet20")
    code, out = run_report(monkeypatch, capsys, "--save_folder", tmp_path, "--figure", tmp_path / "new" / "curves.png")
    assert code == 0
    rows = [" ".join(line.split()) for line in out.out.splitlines()]
    assert "resnet20, kd -r 0.1 -a 0.9 kd_T None 2 2 61.50 ± 0.71 +7.00 - - 100" in rows
    assert "resnet20, kd -r 0.1 -a 0.9 kd_T 8.0 2 1 70.00 +15.00 - - 100" in rows
    assert "resnet20, from labels 2 1 55.00 - - 69.06 [1] 100" in rows
    assert "teacher: test acc 72.30" in rows
    assert (tmp_path / "new" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_stages_have_no_accuracy(tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "models" / "staged", "1", [60.0, 61.0], model="resnet20")
    metrics = tmp_path / "models" / "staged" / "metrics.jsonl"
    metrics.write_text(json.dumps({"stage": "init", "epoch": 1, "train_loss": 1.0}) + "\n" + metrics.read_text())
    code, out = run_report(monkeypatch, capsys, "--save_folder", tmp_path, "--figure", tmp_path / "curves.svg")
    assert code == 0
    assert "61.00" in out.out


def test_nothing_to_report(tmp_path, monkeypatch, capsys):
    code, out = run_report(monkeypatch, capsys, "--save_folder", tmp_path)
    assert code == 2
    assert out.err.startswith("error: no finished run on cifar100")


def test_a_figure_that_cannot_be_drawn(tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "models" / "plain", "1", [60.0], model="resnet20")
    for path in (tmp_path / "curves.xyz", tmp_path / "models" / "plain" / "summary.json" / "curves.png"):
        code, out = run_report(monkeypatch, capsys, "--save_folder", tmp_path, "--figure", path)
        assert code == 2
        assert out.err.startswith(f"error: cannot draw {path}")


@pytest.mark.parametrize("damage", ["", "{", "{}", "[]", "3"])
def test_damaged_runs_are_named(tmp_path, monkeypatch, capsys, damage):
    make_run(tmp_path / "models" / "plain", "1", [60.0], model="resnet20")
    (tmp_path / "models" / "plain" / "options.json").write_text(damage)
    code, out = run_report(monkeypatch, capsys, "--save_folder", tmp_path)
    assert code == 2
    assert "plain is damaged" in out.err


def three_methods(folder):
    """kd, ldrld and labels, three trials each, of resnet56 -> resnet20."""
    pair = {"model_t": "resnet56", "model_s": "resnet20", "r": 1.0, "a": 1.0}
    for trial, (kd, ldrld, labels) in enumerate([(60, 62, 50), (61, 64, 52), (62, 63, 51)], start=1):
        make_run(folder / "student_model" / f"kd{trial}", str(trial), [kd + 1.0, kd], distill="kd", b=None, **pair)
        make_run(folder / "student_model" / f"ld{trial}", str(trial), [1.0, ldrld], distill="ldrld", b=7.0, **pair)
        make_run(folder / "models" / f"plain{trial}", str(trial), [2.0, labels], model="resnet20")


def test_gains_are_paired_by_trial(tmp_path, monkeypatch, capsys):
    three_methods(tmp_path)
    code, out = run_report(monkeypatch, capsys, "--save_folder", tmp_path, "--format", "csv")
    assert code == 0
    header, *rows = csv.reader(out.out.splitlines())
    cells = {row[0].split()[1]: dict(zip(header, row, strict=True)) for row in rows}
    expected = stats.ttest_rel([62, 64, 63], [60, 61, 62]).pvalue
    assert cells["ldrld"]["over kd"] == f"+2.00 (p = {expected:.2g})"
    assert cells["kd"]["over labels"] == f"+10.00 (p = {stats.ttest_rel([60, 61, 62], [50, 52, 51]).pvalue:.2g})"
    assert cells["kd"]["over kd"] == cells["from"]["over labels"] == "-"
    assert cells["kd"]["published"] == "70.66 [1]"
    assert cells["ldrld"]["last acc"] == "63.00 ± 1.00"


def test_the_best_epoch_is_on_request_and_labelled(tmp_path, monkeypatch, capsys):
    three_methods(tmp_path)
    _, out = run_report(monkeypatch, capsys, "--save_folder", tmp_path, "--select", "best", "--over", "ldrld")
    header, *rows = out.out.splitlines()
    assert "best acc" in header
    assert "over ldrld" in header
    assert any("62.00 ± 1.00" in row and "-1.00" in row for row in rows)


def test_other_schedules_and_unequal_trials_are_not_compared(tmp_path, monkeypatch, capsys):
    three_methods(tmp_path)
    pair = {"model_t": "resnet56", "model_s": "resnet20", "r": 1.0, "a": 1.0, "b": 8.0}
    make_run(tmp_path / "student_model" / "long", "1", [50.0, 60.0, 70.0], distill="dkd", **pair)
    make_run(tmp_path / "student_model" / "other", "9", [50.0, 60.0], distill="dist", **pair)
    _, out = run_report(monkeypatch, capsys, "--save_folder", tmp_path, "--format", "csv")
    rows = [row for row in csv.reader(out.out.splitlines()) if "dkd" in row[0] or "dist" in row[0]]
    assert len(rows) == 2
    assert all(row[4:6] == ["-", "-"] for row in rows)


@pytest.mark.parametrize("form", ["markdown", "latex"])
def test_formats(tmp_path, monkeypatch, capsys, form):
    three_methods(tmp_path)
    path = tmp_path / "new" / "table"
    code, out = run_report(monkeypatch, capsys, "--save_folder", tmp_path, "--format", form, "--out", path)
    assert code == 0
    assert str(path) in out.out
    lines = path.read_text().splitlines()
    if form == "markdown":
        assert lines[1] == "|" + " --- |" * 8
        assert {line.count("|") for line in lines[:5]} == {9}
    else:
        begin, end = lines.index(r"\begin{tabular}{lrrrrrrr}"), lines.index(r"\end{tabular}")
        assert {line.count(" & ") for line in lines[begin:end] if line.endswith(r"\\")} == {7}
        assert all(line.startswith("%") for line in lines[:begin])
        assert r"63.00 $\pm$ 1.00" in path.read_text()


def test_unfinished_runs_are_left_out(tmp_path, monkeypatch, capsys):
    three_methods(tmp_path)
    (tmp_path / "student_model" / "kd2" / "summary.json").unlink()
    code, out = run_report(monkeypatch, capsys, "--save_folder", tmp_path)
    assert code == 0
    assert "note: 1 unfinished runs are left out" in out.err
    assert "61.00 ± 1.41" in out.out


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"distill": "kd", "a": 0.9, "b": None}, "kd"),
        (
            {"distill": "kd", "a": 0.9, "b": None, "transforms": {"sort": {}, "ekd": {}}, "optimizer": "dot"},
            "kd+sort+ekd+dot",
        ),
        ({"distill": "crd", "a": 1.0, "b": 0.8}, "crd+kd"),
        ({"distill": "crd", "a": 0.0, "b": 0.8}, "crd"),
        ({"distill": "ekd", "a": 4.5, "b": 4.5, "transforms": {"ekd": {}}}, "ekd"),
        ({"distill": "dkd", "a": 1.0, "b": 8.0}, "dkd"),
    ],
)
def test_names_of_methods(options, name):
    assert method_name(options) == name


def test_every_published_figure_has_its_source():
    entries = json.loads(PUBLISHED.read_text())
    assert len({(entry["dataset"], entry["pair"], entry["run"]) for entry in entries}) == len(entries)
    for entry in entries:
        teacher, student = entry["pair"].split(":")
        assert student in model_dict
        assert teacher in model_dict or (not teacher and entry["run"] == "labels")
        name, *added = entry["run"].split("+")
        assert name in registry or name == "labels"
        assert set(added) <= {*transform_registry, "kd", "dot"}
        assert 40 < entry["accuracy"] < 90
        assert entry["source"]
        assert entry["evidence"]
