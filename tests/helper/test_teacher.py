"""The frozen teacher and the measurement of accuracy."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from dataset import ImageData, MemoryLoader
from distiller_zoo import Needs
from helper import cpu_graph
from helper.errors import UserError
from helper.precision import Precision
from helper.teacher import AHEAD, FUSED_FROM, Teacher, evaluate, inference_for, measured_accuracy, teacher_name
from helper.teacher_cache import LogitCache, cache_facts
from models import model_dict

CPU = torch.device("cpu")
FP32 = Precision(CPU, torch.float32)


@pytest.fixture
def loader():
    rng = np.random.Generator(np.random.PCG64(0))
    data = ImageData(rng.integers(0, 256, (21, 32, 32, 3), dtype=np.uint8), np.arange(21) % 10)
    return MemoryLoader(data, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 8, CPU, train=False)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return model_dict["resnet8"](num_classes=10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_are_float32_and_usable_in_a_backward_pass(network, loader, dtype):
    teacher = Teacher(network, Needs(features="all"), Precision(CPU, dtype))
    batch = next(iter(loader))
    output = teacher(batch)
    trained = torch.zeros_like(output.logits, requires_grad=True)
    (trained * output.logits).sum().backward()
    for tensor in (output.logits, *output.features):
        assert tensor.dtype == torch.float32
        assert not tensor.requires_grad
        assert not tensor.is_inference()


@pytest.mark.parametrize(("which", "kept"), [("mid", [1, 2, 3]), ("last", [4]), ("all", [0, 1, 2, 3, 4])])
def test_only_the_needed_features_are_kept(network, loader, which, kept):
    output = Teacher(network, Needs(features=which), FP32)(next(iter(loader)))
    assert [i for i, feature in enumerate(output.features) if feature is not None] == kept
    assert Teacher(network, Needs(), FP32)(next(iter(loader))).features is None


@pytest.mark.parametrize(
    ("needs", "cached"),
    [(Needs(), False), (Needs(), True), (Needs(strong_view=True), True), (Needs(features="last"), False)],
)
def test_answers_are_those_of_the_batches_in_their_order(network, loader, tmp_path, needs, cached):
    cache = LogitCache(tmp_path, cache_facts(network, loader, FP32), 21, loader.views, 10) if cached else None
    teacher = Teacher(network, needs, FP32, cache=cache)
    batches = [replace(batch, strong_images=-batch.images) for batch in loader] * AHEAD
    answered = list(teacher.answers(iter(batches)))
    assert len(answered) == len(batches)
    for batch, (given, output) in zip(batches, answered, strict=True):
        expected = Teacher(network, needs, FP32)(batch)
        assert given is batch
        torch.testing.assert_close(output.logits, expected.logits, rtol=1e-3, atol=1e-3)
        for one, other in ((output.strong_logits, expected.strong_logits), (output.features, expected.features)):
            torch.testing.assert_close(one, other)
    if cached:
        # each of the first group is missing, although they are there several times; all of the others are found
        assert cache.hit_rate() == 1 - sum(len(batch.entry) for batch in batches[:AHEAD]) / (21 * AHEAD)


def test_the_teacher_does_not_learn(network, loader):
    before = {key: value.clone() for key, value in network.state_dict().items()}
    teacher = Teacher(network.train(), Needs(features="all", preact=True), FP32)
    for batch in loader:
        teacher(batch)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_evaluate_by_hand(network, loader):
    network.train()
    figures = evaluate(network, loader, FP32)
    assert network.training
    network.eval()
    with torch.no_grad():
        logits = torch.cat([network(batch.images) for batch in loader])
    labels = torch.arange(21) % 10
    assert figures["test_acc"] == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())
    assert figures["test_loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


@pytest.mark.parametrize("batches", [FUSED_FROM - 1, FUSED_FROM])
def test_long_tests_run_fused_and_find_the_same(network, loader, batches, monkeypatch):
    fuse, fused = cpu_graph.fuse, []
    monkeypatch.setattr(cpu_graph, "fuse", lambda *args, **kwargs: fused.append(1) or fuse(*args, **kwargs))
    data = ImageData(loader.images.repeat(5, 1, 1, 1).numpy()[: batches * 8 - 3], np.arange(batches * 8 - 3) % 10)
    many = MemoryLoader(data, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 8, CPU, train=False)
    expected = evaluate(network, many, Precision(CPU, torch.float32, plain=True))
    logits = inference_for(network, FP32, many)
    for _ in range(2):
        assert evaluate(network, many, FP32, logits=logits) == pytest.approx(expected, rel=1e-5)
    assert len(fused) == (batches == FUSED_FROM)  # once, although it follows the network


def test_accuracy_is_measured_once(network, loader, tmp_path, monkeypatch):
    memory = tmp_path / "teacher_accuracy.json"
    teacher = Teacher(network, Needs(), FP32)
    accuracy = measured_accuracy(teacher, loader, "some", memory)
    monkeypatch.setattr("helper.teacher.evaluate", None)
    assert measured_accuracy(teacher, loader, "some", memory) == accuracy
    with pytest.raises(TypeError):
        measured_accuracy(teacher, loader, "another", memory)
    other = Teacher(model_dict["resnet8"](num_classes=10), Needs(), FP32)
    with pytest.raises(TypeError):
        measured_accuracy(other, loader, "some", memory)


def test_a_damaged_memory_is_measured_anew(network, loader, tmp_path):
    memory = tmp_path / "teacher_accuracy.json"
    memory.write_text("{")
    accuracy = measured_accuracy(Teacher(network, Needs(), FP32), loader, "some", memory)
    assert accuracy in json.loads(memory.read_text()).values()


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("resnet8x4_vanilla", "resnet8x4"),
        ("resnet8_vanilla", "resnet8"),
        ("wrn_40_2_vanilla", "wrn_40_2"),
        ("resnet56_cifar100_lr_0.05_decay_0.0005_trial_0", "resnet56"),
        ("ResNet50", "ResNet50"),
        ("deit_ti_distilled_cifar100_lr_0.0005", "deit_ti_distilled"),
    ],
)
def test_the_folder_names_the_network(folder, name):
    assert teacher_name(f"save/models/{folder}/ckpt_epoch_240.pth") == name


def test_names_that_tell_nothing():
    with pytest.raises(UserError, match="--model_t"):
        teacher_name("save/models/mine/ckpt.pth")
    assert teacher_name("save/models/mine/ckpt.pth", "vgg8") == "vgg8"
    with pytest.raises(UserError, match="did you mean"):
        teacher_name("x.pth", "resnet65")
