"""report.py on made-up runs."""

import json
import sys

import pytest

import report
from helper.errors import run_command


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
    assert "resnet20, kd -r 0.1 -a 0.9 kd_T None 2 2 61.50 ± 0.71 61.50 ± 0.71 100" in rows
    assert "resnet20, kd -r 0.1 -a 0.9 kd_T 8.0 2 1 70.00 70.00 100" in rows
    assert "resnet20, from labels 2 1 55.00 60.00 100" in rows
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
