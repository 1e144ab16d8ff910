"""The lines of scripts/run_cifar_distill.sh run as they are written, but on few images."""

import functools
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset import shapes100
from models import model_dict

REPOSITORY = Path(__file__).parent.parent.parent
LISTED = subprocess.run(
    ["sh", "scripts/run_cifar_distill.sh", "--list"], cwd=REPOSITORY, capture_output=True, text=True, check=True
).stdout
LINES = re.findall(r" --resume (--distill .*)$", LISTED, re.MULTILINE)
# RepDistiller's README, word for word
PUBLISHED = """
kd -r 0.1 -a 0.9 -b 0 | hint -a 0 -b 100 | attention -a 0 -b 1000 | similarity -a 0 -b 3000 | correlation -a 0 -b 0.02
| vid -a 0 -b 1 | rkd -a 0 -b 1 | pkt -a 0 -b 30000 | abound -a 0 -b 1 | factor -a 0 -b 200 | fsp -a 0 -b 50
| nst -a 0 -b 50 | crd -a 0 -b 0.8 | crd -a 1 -b 0.8
"""
STAGED = ("abound", "factor", "fsp")


def test_the_published_lines_are_there():
    for line in PUBLISHED.split("|"):
        assert f"--distill {line.strip()}" in LINES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Working folder with a random resnet32x4 in the place of the published one."""
    folder = tmp_path_factory.mktemp("lines")
    path = folder / "save" / "models" / "resnet32x4_vanilla" / "ckpt_epoch_240.pth"
    path.parent.mkdir(parents=True)
    torch.manual_seed(0)
    network = model_dict["resnet32x4"]()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network(torch.randn(16, 3, 32, 32))  # fills the running statistics, without which activations explode
    torch.save({"model": network.state_dict()}, path)
    return folder


def small_images(draw, copies, train):
    """Images of a quarter of the width, so many of each class."""
    images, labels = draw(train)
    return np.repeat(images[:, ::4, ::4], copies, axis=0), np.repeat(labels, copies)


@pytest.mark.parametrize("line", LINES)
def test_a_line_trains(line, folder, call, monkeypatch):
    monkeypatch.setattr("helper.teacher.evaluate", lambda *_: {"test_acc": 1.0})
    monkeypatch.setattr("helper.loops.evaluate", lambda *_: {"test_acc": 1.0, "test_acc_top5": 5.0, "test_loss": 4.6})
    teacher = folder / "save" / "models" / "resnet32x4_vanilla" / "ckpt_epoch_240.pth"
    words = f"--path_t {teacher} --model_s resnet8x4 --trial 1 {line}".split()
    method = words[words.index("--distill") + 1]
    copies = 2 if method in ("wkd_l", "wkd") else 1  # which compare the images of a class with one another
    monkeypatch.setattr(shapes100, "draw", functools.partial(small_images, shapes100.draw, copies))
    short = ["--dataset", "shapes100", "--epochs", "1", "--batch_size", "50"]
    short += ["--init_epochs", "1"] if method in STAGED else []
    result = call("train_student", *words, *short, "--save_folder", folder / "save")
    assert result.code == 0, result.err
    assert "saved in" in result.out
