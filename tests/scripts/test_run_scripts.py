"""The lists of runs: every command that they give is one that the two scripts take, with existing teachers."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from image_trees import make_imagenet, make_tiny

from helper.options import student_options, teacher_options
from helper.teacher import teacher_name
from models import model_dict
from train_teacher import run_name

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"
NAMES = sorted(path.name for pattern in ("run_*.sh", "table_*.sh", "compare_*.sh") for path in SCRIPTS.glob(pattern))
# notes its arguments instead of training
RECORDER = """#!/bin/sh
for word; do printf '%s\\037' "$word"; done >> "$RECORD"
printf '\\n' >> "$RECORD"
"""
FETCHED = ("wrn_40_2", "resnet56", "resnet110", "resnet32x4", "vgg13", "ResNet50")


@pytest.fixture
def commands(tmp_path):
    """The commands of a script, lists of words, run with a recorder in the place of Python."""
    shutil.copytree(SCRIPTS, tmp_path / "scripts")
    recorder, record = tmp_path / "recorder", tmp_path / "record"
    recorder.write_text(RECORDER)
    recorder.chmod(0o755)

    def run(name: str, *arguments: str, **variables: str) -> list[list[str]]:
        record.unlink(missing_ok=True)
        environment = {**os.environ, "PYTHON": str(recorder), "RECORD": str(record), **variables}
        subprocess.run(["sh", f"scripts/{name}", *arguments], cwd=tmp_path, env=environment, check=True)
        return [line.split("\037")[:-1] for line in record.read_text().splitlines()]

    return run


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder with miniatures of the data sets whose options depend on their files."""
    make_tiny(tmp_path)
    make_imagenet(tmp_path / "imagenet", flat=False)
    monkeypatch.setenv("KD_DATA", str(tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_understood(commands, data, name):
    trained = set()
    for script, *words in commands(name, "--print_freq", "7", TRIALS="3", EPOCHS="12"):
        assert "--resume" in words
        if script == "train_teacher.py":
            opt = teacher_options(words)
            trained.add(f"./save/models/{run_name(opt)}/{opt.model}_last.pth")
            continue
        assert script == "train_student.py"
        opt, _ = student_options(words)
        assert (opt.epochs, opt.trial, opt.print_freq) == (12, "3", 7)
        assert opt.model_s in model_dict
        teacher = teacher_name(opt.path_t)
        if opt.path_t.startswith("torchvision:"):
            assert teacher in ("imagenet_ResNet34", "imagenet_ResNet50")
            continue
        fetched = f"save/models/{teacher}_vanilla/ckpt_epoch_240.pth"
        assert opt.path_t in trained or (opt.path_t.removeprefix("./") == fetched and teacher in FETCHED), opt.path_t


def test_no_command_is_there_twice(commands):
    for name in NAMES:
        lines = [tuple(line) for line in commands(name)]
        assert len(lines) == len(set(lines)), name


def test_evidential_students_have_their_teachers_published_priors(commands):
    """A second reading of the published table: the prior belongs to the teacher, but for two that had several runs."""
    priors = {}
    for script, *words in commands("run_cifar_ekd.sh"):
        if script == "train_student.py":
            opt, _ = student_options(words)
            priors.setdefault(teacher_name(opt.path_t), set()).add(opt.transforms["ekd"]["ekd_prior"])
    assert {name: sorted(values) for name, values in priors.items()} == {
        "resnet56": [-0.93],
        "resnet110": [-0.86],
        "resnet32x4": [-1.22],
        "vgg13": [-1.23, -0.6],
        "wrn_40_2": [-1.21, -1.16],
        "ResNet50": [-1.1],
    }


def test_the_standardised_weights_of_dkd_are_products(commands):
    pairs = {}
    for _, *words in commands("run_cifar_lskd.sh"):
        opt, method = student_options(words)
        if method.name == "dkd":
            pairs[teacher_name(opt.path_t), opt.model_s] = (opt.kd_T, opt.a, opt.b)
    assert len(pairs) == 14
    assert pairs["resnet56", "resnet20"] == (3, 18, 36)
    assert pairs["resnet32x4", "resnet8x4"] == (2, 9, 72)
    assert pairs["vgg13", "MobileNetV2"] == (3, 9, 18)


def test_no_line_of_a_header_is_too_long():
    for name in NAMES:
        comments = re.findall(r"^#.*$", (SCRIPTS / name).read_text(encoding="utf-8"), re.MULTILINE)
        assert max(map(len, comments)) <= 120, name


def test_runs_are_selected(commands):
    selection = {"PAIRS": "resnet56:resnet20 vgg13:vgg8", "METHODS": "labels kd+sort dkd", "TRIALS": "1 2"}
    found = [
        (words[words.index("--model" if script == "train_teacher.py" else "--model_s") + 1], "--sort" in words)
        for script, *words in commands("table_sort.sh", **selection)
    ]
    # a list repeats its trials one after the other: from labels, kd+sort, dkd
    expected = [("resnet20", False), ("vgg8", False), ("resnet20", True), ("vgg8", True), ("resnet20", False)]
    assert found == [entry for entry in [*expected, ("vgg8", False)] for _ in "12"]


def test_epochs_scale_what_students_learn_by(commands):
    lines = commands("table_ekd.sh", EPOCHS="24", EXTRA="--teacher_cache /tmp/cache", PAIRS="resnet32x4:resnet8x4")
    labels, teacher, student = lines
    assert teacher_options(labels[1:]).epochs == 24
    assert teacher_options(teacher[1:]).epochs == 240
    opt, _ = student_options(student[1:])
    assert (opt.epochs, opt.lr_decay_epochs, opt.transforms["ekd"]["ekd_warmup"]) == (24, (15, 18, 21), 3)
    assert opt.teacher_cache == "/tmp/cache"


def test_a_list_is_what_would_run(commands, tmp_path):
    selection = {**os.environ, "PYTHON": "python", "PAIRS": "resnet56:resnet20", "METHODS": "kd labels"}
    arguments = ["sh", "scripts/table_cifar100_same.sh", "--list", "--quiet"]
    done = subprocess.run(arguments, cwd=tmp_path, env=selection, capture_output=True, text=True, check=True)
    ran = commands("table_cifar100_same.sh", "--quiet", PAIRS="resnet56:resnet20", METHODS="kd labels")
    assert done.stdout.splitlines() == [" ".join(["python", *words]) for words in ran]
    assert len(ran) == 2
    assert "-r 0.1 -a 0.9" in done.stdout


def test_a_failed_run_does_not_stop_the_others(commands, tmp_path):
    recorder = tmp_path / "recorder"
    recorder.write_text(RECORDER + """case "$*" in *--sort*) echo went wrong >&2; exit 3 ;; esac\n""")
    environment = {**os.environ, "PYTHON": str(recorder), "RECORD": str(tmp_path / "record")}
    environment |= {"PAIRS": "resnet56:resnet20", "METHODS": "kd kd+sort dkd dkd+sort"}
    arguments = ["sh", "scripts/table_sort.sh"]
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len((tmp_path / "record").read_text().splitlines()) == 4
    logs = re.findall(r"save/logs/\S+\.log", done.stderr)
    assert [re.sub(r"-resnet56.*", "", Path(log).name) for log in logs] == ["kd+sort", "dkd+sort"]
    assert all((tmp_path / log).read_text() == "went wrong\n" for log in logs)
    assert not list((tmp_path / "save" / "logs").glob("failed*"))


def test_a_line_of_the_array(tmp_path):
    (tmp_path / "runs.txt").write_text("echo one > one\necho two > two\n")
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "2"}
    subprocess.run(["sh", SCRIPTS / "slurm_array.sh", "runs.txt"], cwd=tmp_path, env=environment, check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs.txt", "two"]
