"""Each data set and family of networks from the command line: teacher, student, resume, evaluation."""

import dataclasses
import json

import pytest
import torch
from image_trees import make_cifar10, make_folder, make_imagenet, make_tiny

from dataset import cifar10

COMMON = ("--device", "cpu", "--precision", "fp32", "--num_workers", 1, "--batch_size", 6, "--quiet")

# At the usual rate a deep network on 16×16 images overflows within a few steps: its last maps have one pixel, and a
# batch norm over few values may send back huge gradients. A last batch of two overflowed even so: there is none.
SMALL_STEPS = ("--learning_rate", 0.001)


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A function that makes a miniature data set and returns its flags."""

    def small_cifar10():
        monkeypatch.setattr(cifar10, "LAYOUT", dataclasses.replace(cifar10.LAYOUT, images={"train": 10, "test": 10}))
        make_cifar10(tmp_path / "cifar10", train=10)

    makers = {
        "cifar10": small_cifar10,
        "tiny_imagenet": lambda: make_tiny(tmp_path / "tiny_imagenet"),
        "imagenet": lambda: make_imagenet(tmp_path / "imagenet", flat=False),
        "folder": lambda: make_folder(tmp_path / "folder"),
    }

    def flags(name, *more):
        makers[name]()
        return ("--dataset", name, "--data_folder", tmp_path / name, *more)

    return flags


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize(
    ("data", "teacher", "student", "method"),
    [
        (("cifar10",), "resnet8", "resnet8", ("ldrld", "--kd_T", 4)),
        (("tiny_imagenet",), "resnet8", "ShuffleV1", ("dkd",)),
        (("imagenet", "--image_size", 64), "imagenet_ResNet18", "imagenet_MobileNetV1", ("similarity",)),
        (("folder",), "torchvision:resnet18", "torchvision:squeezenet1_1", ("kd", "--size_t", 32, "--size_s", 64)),
        (("folder", "--memory_budget", 0), "resnet8", "deit_ti", ("lg", "--size_s", 32)),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else value,
)
def test_it_is_trained_distilled_resumed_and_evaluated(
    call, killed_after_an_epoch, tmp_path, make, data, teacher, student, method
):
    flags = (*make(*data), *COMMON)
    trained = call(
        "train_teacher", "--model", teacher, *flags, *SMALL_STEPS, "--epochs", 1, "--save_folder", tmp_path / "save"
    )
    assert trained.code == 0, trained.err
    (path_t,) = (tmp_path / "save" / "models").glob("*/*_last.pth")

    name, *own = method
    words = ("--path_t", path_t, "--model_t", teacher, "--model_s", student, "--distill", name, *own, *flags)
    words = (*words, *SMALL_STEPS, "--epochs", 2, "--warmup_epochs", 0, "--save_folder")
    whole = call("train_student", *words, tmp_path / "whole")
    assert whole.code == 0, whole.err

    killed_after_an_epoch(call, "train_student", *words, tmp_path / "cut")
    resumed = call("train_student", *words, tmp_path / "cut", "--resume")
    assert resumed.code == 0, resumed.err

    (one,), (other,) = ([*(tmp_path / save).glob("student_model/*/*_last.pth")] for save in ("whole", "cut"))
    assert_same_weights(weights(one), weights(other))

    out = tmp_path / "figures.json"
    words = ("--path", other, "--model", student, *flags[:-3], "--quiet", "--parts", "accuracy", "--out", out)
    shown = call("evaluate", *words)
    assert shown.code == 0, shown.err
    summary = json.loads(other.with_name("summary.json").read_text())
    assert json.loads(out.read_text())["accuracy"]["top1"] == pytest.approx(summary["test_acc"])
