"""The run_*.sh scripts: every command that they give is one that the two scripts take, with existing teachers."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from helper.options import student_options, teacher_options
from helper.teacher import teacher_name
from models import model_dict
from train_teacher import run_name

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"
NAMES = sorted(path.name for path in SCRIPTS.glob("run_*.sh"))
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


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_understood(commands, name):
    trained = set()
    for script, *words in commands(name, "--epochs", "12", TRIAL="3"):
        assert "--resume" in words
        if script == "train_teacher.py":
            opt = teacher_options(words)
            trained.add(f"./save/models/{run_name(opt)}/{opt.model}_last.pth")
            continue
        assert script == "train_student.py"
        opt, _ = student_options(words)
        assert (opt.epochs, opt.trial) == (12, "3")
        assert opt.model_s in model_dict
        teacher = teacher_name(opt.path_t)
        fetched = f"./save/models/{teacher}_vanilla/ckpt_epoch_240.pth"
        assert opt.path_t in trained or (opt.path_t == fetched and teacher in FETCHED), opt.path_t


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
