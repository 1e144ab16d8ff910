"""report.py on made-up runs."""

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from made_runs import add_to_summary, make_run, three_methods, write_rows
from scipy import stats

import report
from distiller_zoo import registry, transform_registry
from helper.errors import Interrupted, run_command
from helper.results import PUBLISHED, method_name
from models import model_dict


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


def test_runs_with_held_out_images(tmp_path, monkeypatch, capsys):
    """Their epochs have no test accuracy, their summary has."""
    for name, finished in (("done", True), ("at_work", False)):
        folder = make_run(tmp_path / "models" / name, "1", [60.0, 61.0], finished, model="resnet20", val_split=0.1)
        write_rows(folder, [{"epoch": n, "train_loss": 1.0, "val_acc": 40.0 + n} for n in (1, 2)[: 1 + finished]])
    words = ("--save_folder", tmp_path, "--figure", tmp_path / "curves.svg")
    code, out = run_report(monkeypatch, capsys, *words, "--format", "html", "--out", tmp_path / "page.html")
    assert code == 0, out.err
    page = (tmp_path / "page.html").read_text()
    assert "61.00" in page
    assert "held-out images" in page
    assert "epoch 1 of 2, val acc 41.00" in page


def test_nothing_to_report(tmp_path, monkeypatch, capsys):
    for folder in (tmp_path, tmp_path / "student_model"):
        folder.mkdir(exist_ok=True)
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
    assert cells["kd"]["published"] == "70.66"
    assert cells["kd"]["source"].startswith("RepDistiller README")
    assert cells["ldrld"]["last acc"] == "63.00 ± 1.00"


def test_equal_gains_in_all_trials_have_no_p(tmp_path, monkeypatch, capsys):
    """Nor where their differences are unequal in the last digits of a float."""
    pair = {"model_t": "resnet56", "model_s": "resnet20", "r": 1.0, "a": 1.0}
    gains = [80.01 - 60.02, 79.99 - 60.0, 78.87 - 58.88]
    assert len(set(gains)) > 1
    for trial, (ours, theirs) in enumerate([(80.01, 60.02), (79.99, 60.0), (78.87, 58.88)], start=1):
        make_run(tmp_path / "student_model" / f"kd{trial}", str(trial), [theirs], distill="kd", **pair)
        make_run(tmp_path / "student_model" / f"dist{trial}", str(trial), [ours], distill="dist", **pair)
    _, out = run_report(monkeypatch, capsys, "--save_folder", tmp_path, "--format", "csv")
    (row,) = [row for row in csv.reader(out.out.splitlines()) if "dist" in row[0]]
    assert row[5] == "+19.99"


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


@pytest.mark.parametrize(
    ("theirs", "ours", "why"),
    [
        ({"teacher_sha256": "a" * 64}, {"teacher_sha256": "b" * 64}, "kd has another teacher_sha256"),
        ({}, {"learning_rate": 5.0, "lr_decay_epochs": [1]}, "kd has another learning_rate, another lr_decay_epochs"),
        ({}, {"val_split": None, "rand_augment": 9.0}, "kd has another rand_augment"),
    ],
)
def test_other_teachers_and_schedules_are_not_compared(tmp_path, monkeypatch, capsys, theirs, ours, why):
    pair = {"model_t": "resnet56", "model_s": "resnet20", "r": 1.0, "a": 1.0}
    make_run(tmp_path / "student_model" / "kd", "1", [60.0, 61.0], distill="kd", **pair, **theirs)
    make_run(tmp_path / "student_model" / "dist", "1", [60.0, 65.0], distill="dist", **pair, **ours)
    _, out = run_report(monkeypatch, capsys, "--save_folder", tmp_path)
    assert f"resnet20, dist -r 1 -a 1: no gain over kd, {why}\n" in out.out
    assert "+4.00" not in out.out


def test_trials_of_older_versions_go_with_new_ones(tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "models" / "a", "1", [60.0], model="resnet20")
    make_run(tmp_path / "models" / "b", "2", [62.0], model="resnet20", rand_augment=0.0, random_erasing=0.0)
    make_run(tmp_path / "models" / "c", "3", [70.0], model="resnet20", rand_augment=9.0, random_erasing=0.0)
    _, out = run_report(monkeypatch, capsys, "--save_folder", tmp_path)
    assert "61.00 ± 1.41" in out.out


def test_a_method_may_have_a_schedule_of_its_own(tmp_path, monkeypatch, capsys):
    pair = {"model_t": "resnet56", "model_s": "resnet20", "r": 1.0, "a": 1.0, "learning_rate": 0.05}
    make_run(tmp_path / "student_model" / "kd", "1", [60.0, 61.0], distill="kd", warmup_epochs=0, **pair)
    make_run(tmp_path / "student_model" / "ld", "1", [60.0, 65.0], distill="ldrld", warmup_epochs=1, **pair)
    make_run(tmp_path / "student_model" / "kd2", "1", [60.0, 62.0], distill="kd", kd_T=2.0, **pair)
    _, out = run_report(monkeypatch, capsys, "--save_folder", tmp_path, "--runs", "kd,ld")
    assert "+4.00" in out.out
    _, out = run_report(monkeypatch, capsys, "--save_folder", tmp_path)
    assert "no gain over kd, 2 settings of kd fit" in out.out


def test_a_student_of_another_size_is_compared_with_its_own_from_labels(tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "models" / "whole", "1", [60.0], model="resnet20", size=None)
    make_run(tmp_path / "models" / "small", "1", [50.0], model="resnet20", size=24)
    pair = {"model_t": "resnet56", "model_s": "resnet20", "r": 1.0, "a": 1.0}
    make_run(tmp_path / "student_model" / "kd", "1", [57.0], distill="kd", size_s=24, **pair)
    _, out = run_report(monkeypatch, capsys, "--save_folder", tmp_path)
    assert "+7.00" in out.out


def test_a_reader_that_goes_away(tmp_path):
    three_methods(tmp_path)
    words = [sys.executable, "report.py", "--save_folder", tmp_path, "--watch", "0.1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, cwd=Path(__file__).parent.parent, **pipes) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=60) == 128 + 13
        assert process.stderr.read() == "error: nobody reads the output any more\n"


def test_gains_over_a_method_without_runs_are_refused(tmp_path, monkeypatch, capsys):
    three_methods(tmp_path)
    code, out = run_report(monkeypatch, capsys, "--save_folder", tmp_path, "--over", "kdd")
    assert code == 2
    assert "--over kdd: no finished run there has this method; there are " in out.err


def test_a_run_that_lost_its_options_is_named(tmp_path, monkeypatch, capsys):
    three_methods(tmp_path)
    (tmp_path / "student_model" / "kd2" / "options.json").unlink()
    (tmp_path / "student_model" / "mine").mkdir()
    _, out = run_report(monkeypatch, capsys, "--save_folder", tmp_path)
    assert f"note: {tmp_path / 'student_model' / 'kd2'} has no options.json and tells of no run: left out" in out.err
    assert "mine" not in out.err


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
        assert lines[:begin] == ["{"]
        assert lines[-1] == "}"
        assert any("[1] RepDistiller README" in line for line in lines[end:])
        assert r"63.00 $\pm$ 1.00" in path.read_text()


def test_unfinished_runs_are_left_out(tmp_path, monkeypatch, capsys):
    three_methods(tmp_path)
    (tmp_path / "student_model" / "kd2" / "summary.json").unlink()
    code, out = run_report(monkeypatch, capsys, "--save_folder", tmp_path)
    assert code == 0
    assert "note: unfinished runs, left out: 1, " in out.err
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


def refusal(monkeypatch, capsys, folder, *words):
    """The one line with which a report ends that cannot be made."""
    code, out = run_report(monkeypatch, capsys, "--save_folder", folder, *words)
    lines = out.err.splitlines()
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "metrics.jsonl").write_text('{"epoch": 1, "test_'), "metrics.jsonl: "),
        (lambda folder: (folder / "metrics.jsonl").unlink(), "No such file"),
        (lambda folder: write_rows(folder, [{"epoch": 1, "test_acc": 60.0}]), "metrics.jsonl has 1 of 2 epochs"),
        (lambda folder: (folder / "summary.json").write_text('{"test_acc": 1.0}'), "older version (no 'best_acc')"),
        (lambda folder: (folder / "options.json").write_text('{"dataset": "cifar100"}'), "older version (no 'epochs')"),
        (lambda folder: (folder / "options.json").write_text('{"dataset": 3}'), "dataset is 3"),
        (lambda folder: change_options(folder, model=None), "model is None"),
        (lambda folder: change_options(folder, distill=["kd"], model_s="resnet20"), "distill is ['kd']"),
        (lambda folder: add_to_summary(folder, {"test_acc": float("nan")}), "test_acc is nan"),
        (lambda folder: add_to_summary(folder, {"best_acc": "61.0"}), "best_acc is '61.0'"),
        (lambda folder: add_to_summary(folder, {"teacher_acc": None}), "teacher_acc is None"),
        (lambda folder: write_rows(folder, [{"epoch": 1, "test_acc": "60"}] * 2), "test_acc is '60'"),
    ],
)
def test_half_written_and_older_runs_are_named(tmp_path, monkeypatch, capsys, damage, words):
    damage(make_run(tmp_path / "models" / "plain", "1", [60.0, 61.0], model="resnet20"))
    line = refusal(monkeypatch, capsys, tmp_path)
    assert f"{tmp_path / 'models' / 'plain'} is damaged" in line
    assert words in line


def change_options(folder, **values):
    path = folder / "options.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_damaged_unfinished_run_is_noted(tmp_path, monkeypatch, capsys):
    three_methods(tmp_path)
    (make_run(tmp_path / "models" / "half", "9", [1.0], finished=False) / "options.json").write_text('{"data')
    code, out = run_report(monkeypatch, capsys, "--save_folder", tmp_path)
    assert code == 0
    assert "note: " in out.err
    assert "half has no summary and is damaged" in out.err


def test_an_unfinished_run_that_is_deleted_while_it_is_listed_is_noted(tmp_path, monkeypatch, capsys):
    three_methods(tmp_path)
    half, glob = make_run(tmp_path / "models" / "half", "9", [1.0], finished=False, model="resnet20"), Path.glob

    def deleted(folder, pattern):
        if folder == half:
            raise FileNotFoundError(2, "No such file or directory")
        return glob(folder, pattern)

    monkeypatch.setattr(Path, "glob", deleted)
    code, out = run_report(monkeypatch, capsys, "--save_folder", tmp_path)
    assert code == 0
    assert "half has no summary and is damaged" in out.err


def test_a_copied_run_is_no_second_trial(tmp_path, monkeypatch, capsys):
    for name in ("one", "copy"):
        make_run(tmp_path / "models" / name, "1", [60.0], model="resnet20")
    assert "are the same trial of the same setting" in refusal(monkeypatch, capsys, tmp_path)


def test_a_teacher_that_ships_is_no_unfinished_run(tmp_path, monkeypatch, capsys):
    three_methods(tmp_path)
    folder = make_run(tmp_path / "models" / "shipped", "0", [], finished=False, model="resnet20")
    (folder / "metrics.jsonl").unlink()
    (folder / "ckpt_epoch_20.pth").touch()
    code, out = run_report(monkeypatch, capsys, "--save_folder", tmp_path)
    assert code == 0
    assert not out.err


def test_runs_are_chosen_by_name(tmp_path, monkeypatch, capsys):
    three_methods(tmp_path)
    _, out = run_report(monkeypatch, capsys, "--save_folder", tmp_path, "--format", "csv", "--runs", "ld*, plain1")
    rows = list(csv.reader(out.out.splitlines()))[1:]
    assert sorted(row[2] for row in rows) == ["1", "3"]
    assert "see --save_folder, --dataset and --runs" in refusal(monkeypatch, capsys, tmp_path, "--runs", "nothing")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--format", "html"], "--format html needs --out"),
        (["--watch", "0"], "--watch 0.0 must be at least 0.1"),
        (["--watch", "--figures", "x"], "--watch goes without"),
        (["--draw", "tsne"], "--draw has no effect without --figures"),
        (["--figures", "x", "--draw", "tsn"], "did you mean tsne?"),
        (["--figures", "x", "--classes", "100"], "--classes 100 is not between 0 and 99"),
        (["--figures", "x", "--classes", "a"], "'a' is no list of classes"),
        (["--figures", "x", "--path_t", "nowhere/t.pth"], "no teacher at nowhere/t.pth"),
    ],
)
def test_bad_flags_are_one_line(tmp_path, monkeypatch, capsys, words, expected):
    three_methods(tmp_path)
    assert expected in refusal(monkeypatch, capsys, tmp_path, *words)
    assert not (tmp_path / "x").exists()


def test_a_save_folder_that_is_none(tmp_path, monkeypatch, capsys):
    assert "is no folder" in refusal(monkeypatch, capsys, tmp_path / "nowhere")


def test_watching_shows_runs_at_work(tmp_path, monkeypatch, capsys):
    """It waits for a first run, shows one that is at work, whose accuracy is in no mean, and outlives a damaged one."""
    pair = {"model_t": "resnet56", "model_s": "resnet20", "r": 1.0, "a": 1.0, "distill": "kd", "b": None}
    folder = tmp_path / "student_model"
    steps = [
        lambda: make_run(folder / "kd1", "1", [50.0, 60.0], **pair),
        lambda: make_run(folder / "kd2", "2", [10.0], finished=False, **{**pair, "epochs": 2}),
        lambda: (folder / "kd1" / "summary.json").write_text("{"),
    ]
    shown = []

    def sleep(seconds):
        shown.append(capsys.readouterr().out)
        assert seconds == 3
        if not steps:
            raise Interrupted(signal.SIGINT)
        steps.pop(0)()

    monkeypatch.setattr(report.time, "sleep", sleep)
    code, out = run_report(monkeypatch, capsys, "--save_folder", tmp_path, "--watch", "3")
    assert code == 128 + signal.SIGINT
    assert out.err.startswith("stopped by SIGINT")
    assert "no run on cifar100" in shown[0]
    assert "60.00" in shown[1]
    assert "unfinished" not in shown[1]
    row = next(line for line in shown[2].splitlines() if line.startswith("resnet20, kd"))
    assert row.split()[-7:-4] == ["1", "60.00", "-"]
    assert "unfinished: resnet20, kd -r 1 -a 1, trial 2: epoch 1 of 2, test acc 10.00" in shown[2]
    assert "kd1 is damaged" in shown[3]


def test_a_watched_file_is_rewritten_until_a_signal(tmp_path, stop_when):
    three_methods(tmp_path)
    path, added = tmp_path / "table.csv", []

    def second_version():
        if path.exists() and not added:
            added.append(make_run(tmp_path / "models" / "new", "1", [33.25], model="resnet8"))
        return bool(added) and "33.25" in path.read_text()

    words = ["--save_folder", tmp_path, "--format", "csv", "--out", path, "--watch", "0.2"]
    done = stop_when(second_version, signal.SIGINT, "report", *words)
    assert done.code == 128 + signal.SIGINT
    assert "Traceback" not in done.err
    assert "3 settings, 0 unfinished runs" in done.out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["models", "student_model", "table.csv"]
