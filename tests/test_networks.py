"""Networks beyond CIFAR's from the command line: trained, resumed, used as teachers, evaluated, compiled."""

import importlib.util
import json

import pytest
import torch

from models import build

QUICK = ("--dataset", "shapes100", "--device", "cpu", "--epochs", 1, "--batch_size", 50, "--quiet")
needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm, an optional extra, is missing")


@pytest.fixture
def distil(call, teacher, tmp_path):
    """Runs train_student.py in this process; returns the result and the run's folder, None where there is none."""

    def run(*arguments, save="save"):
        folder = tmp_path / save
        result = call("train_student", "--path_t", teacher, *QUICK, "--save_folder", folder, *arguments)
        runs = list((folder / "student_model").glob("*"))
        return result, runs[0] if runs else None

    return run


def weights(folder, name):
    return torch.load(folder / f"{name}_last.pth", weights_only=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--distill", "ldrld", "--model_s", "deit_ti", "--precision", "fp32"),
        ("--distill", "lg", "--model_s", "t2t_7", "--precision", "bf16"),
        ("--distill", "lg", "-a", 1, "--model_s", "deit_ti_distilled", "--ekd"),
    ],
    ids=lambda arguments: arguments[-1],
)
def test_a_transformer_learns_and_is_saved_without_what_fits_its_input(distil, arguments):
    result, folder = distil(*arguments, "--size_s", 32)
    assert result.code == 0, result.err
    name = folder.name[2:].partition("_T-")[0]
    content = weights(folder, name)
    assert content["input_size"] == 32
    expected = build(name, 100, 32).state_dict()
    assert {k: v.shape for k, v in content["model"].items()} == {k: v.shape for k, v in expected.items()}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["params"] == sum(p.numel() for p in build(name, 100, 32).parameters())


def test_a_transformer_becomes_a_teacher_and_is_evaluated(distil, call, tmp_path):
    result, folder = distil("--distill", "kd", "--model_s", "deit_ti", "--size_s", 32)
    assert result.code == 0, result.err
    path = folder / "deit_ti_last.pth"
    common = ("--path_t", path, "--model_t", "deit_ti", "--model_s", "resnet8")
    taught, student = distil("--distill", "similarity", *common, save="second")
    assert taught.code == 0, taught.err
    figures = json.loads((student / "summary.json").read_text())
    own = json.loads((folder / "summary.json").read_text())
    assert figures["teacher_acc"] == pytest.approx(own["test_acc"], abs=1.01)  # one image of 100
    out = tmp_path / "evaluation.json"
    result = call("evaluate", "--path", path, "--parts", "accuracy", "--precision", "fp32", "--out", out, "--quiet")
    assert result.code == 0, result.err
    assert json.loads(out.read_text())["accuracy"]["top1"] == pytest.approx(own["test_acc"], abs=1.01)


def test_a_resumed_transformer_ends_with_the_same_weights(distil, own_module, killed_after_an_epoch):
    arguments = ("--distill", "lg", "--model_s", f"{own_module}:small_pit", "--epochs", 2, "--precision", "fp32")
    arguments += ("--optimizer", "adamw", "--lr_schedule", "cosine", "--learning_rate", 1e-3)
    result, whole = distil(*arguments, save="whole")
    assert result.code == 0, result.err
    killed_after_an_epoch(distil, *arguments, save="cut")
    result, resumed = distil(*arguments, "--resume", save="cut")
    assert result.code == 0, result.err
    one, other = (weights(folder, "own_networks-small_pit") for folder in (whole, resumed))
    assert one["input_size"] == 24
    assert all(torch.equal(value, other["model"][key]) for key, value in one["model"].items())


def test_labels_alone(call, tmp_path):
    common = ("--model", "t2t_7", "--size", 32, "--precision", "fp32", "--save_folder", tmp_path)
    result = call("train_teacher", *QUICK, *common)
    assert result.code == 0, result.err
    (folder,) = (tmp_path / "models").glob("*")
    assert folder.name.startswith("t2t_7_shapes100")
    assert weights(folder, "t2t_7")["input_size"] == 32


def test_views_of_two_sizes_and_a_cache(distil, tmp_path):
    """The teacher sees 16 pixels, the student 24: the cache serves the same logits as the teacher itself."""
    arguments = ("--distill", "kd", "--model_s", "resnet8", "--size_s", 24, "--size_t", 16, "--precision", "fp32")
    losses = []
    for save, cache in (("a", ()), ("b", ("--teacher_cache", tmp_path / "cache"))):
        result, folder = distil(*arguments, *cache, save=save)
        assert result.code == 0, result.err
        assert "size_s-24_size_t-16" in folder.name
        losses.append(json.loads((folder / "metrics.jsonl").read_text())["train_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


MODULE = """
from torch import nn

def tiny(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1),
        nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes),
    )

def small_pit(num_classes):
    from models.pit import PiT

    return PiT((16, 32), (1, 1), (1, 2), num_classes, img_size=24, drop_path=0.5)

def ten(num_classes):
    return tiny(10)

class Pair(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.network = tiny(num_classes)

    def forward(self, x):
        return self.network(x), None

def of_32(num_classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 15 * 15, num_classes))
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module of the user's, importable."""
    (tmp_path / "own_networks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_networks"


def test_anyones_network_as_student_and_as_teacher(distil, own_module):
    name = f"{own_module}:tiny"
    result, folder = distil("--distill", "vid", "--model_s", name, "--precision", "bf16")
    assert result.code == 0, result.err
    path = folder / "own_networks-tiny_last.pth"
    assert set(weights(folder, "own_networks-tiny")["model"]) >= {"0.weight", "8.bias"}
    result, _ = distil(
        "--distill", "similarity", "--path_t", path, "--model_t", name, "--model_s", "resnet8", save="second"
    )
    assert result.code == 0, result.err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ten", ("own_networks:ten gives (2, 10) for two images of 100 classes",)),
        ("Pair", ("own_networks:Pair gives tuple for two images",)),
        ("of_32", ("own_networks:of_32 fails on images of 48×48", "--size_s")),
    ],
)
def test_networks_that_do_not_fit_the_images(distil, own_module, assert_one_line_error, tmp_path, name, words):
    size = ("--size_s", 32) if name != "of_32" else ()
    result, _ = distil("--distill", "kd", "--model_s", f"{own_module}:{name}", *size)
    if name == "of_32":  # the images are of its size
        assert result.code == 0, result.err
        result, _ = distil("--distill", "kd", "--model_s", f"{own_module}:{name}", "--size_s", 48, save="b")
        words = ("own_networks:of_32 fails on images of side 48", "--size_s")
    assert_one_line_error(result, *words)


def test_feature_methods_say_that_they_find_none(distil, own_module, assert_one_line_error, tmp_path):
    result, _ = distil("--distill", "attention", "--model_s", f"{own_module}:tiny", "--taps_s", "0,3")
    assert result.code == 0, result.err
    result, _ = distil("--distill", "attention", "--model_s", f"{own_module}:tiny", "--taps_s", "0,13", save="b")
    assert_one_line_error(result, "module 13", save_folder=tmp_path / "b")
    result, _ = distil("--distill", "attention", "--model_s", f"{own_module}:missing", save="c")
    assert_one_line_error(result, "missing", "num_classes=100", save_folder=tmp_path / "c")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--distill", "hint", "--model_s", "timm:vit_tiny_patch16_224"), ("hint", "the student", "--taps_s")),
        (("--model_s", "timm:resnet27"), ("unknown model timm:resnet27", "timm:resnet26")),
    ],
)
@needs_timm
def test_bad_networks_of_timm(distil, assert_one_line_error, tmp_path, arguments, words):
    result, _ = distil(*arguments, "--size_s", 32)
    assert_one_line_error(result, *words, save_folder=tmp_path / "save")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model_s", "deit_ti", "--size_s", 40), ("side 40", "multiples of 16")),
        (("--distill", "catkd", "--model_s", "deit_ti", "--size_s", 32), ("DeiT", "pool a map")),
        (("--model_s", "resnet8", "--taps_s", "layer1"), ("resnet8", "features of its own")),
        (("--model_s", "torchvision:resnet35"), ("unknown model torchvision:resnet35", "torchvision:resnet34")),
        (("--model_s", "nowhere_at_all:make"), ("nowhere_at_all",)),
        (("--model_t", "torchvision:resnet35"), ("unknown model torchvision:resnet35",)),
        (("--path_t", "torchvision:resnet34", "--model_t", "resnet8"), ("--model_t resnet8 has no effect",)),
    ],
)
def test_one_line_errors(distil, assert_one_line_error, tmp_path, arguments, words):
    result, _ = distil(*arguments)
    assert_one_line_error(result, *words, save_folder=tmp_path / "save")


def test_weights_of_torchvision_for_other_classes(distil, assert_one_line_error, tmp_path, monkeypatch):
    network = build("imagenet_ResNet18", 1000)
    monkeypatch.setattr("models.torchvision_weights", lambda name: network.state_dict())
    result, _ = distil("--path_t", "torchvision:resnet18")
    assert_one_line_error(result, "1000 classes", "has 100", save_folder=tmp_path / "save")
