"""Pre-training stages, their adapters, and how the loop runs them."""

import pytest
import torch
import torch.nn.functional as F

from distiller_zoo import FSP, ABLoss, Shapes, Stage, Supervised, registry
from distiller_zoo.AB import connector
from distiller_zoo.FT import Paraphraser, Translator
from helper.loops import StageStep, TrainStep
from helper.precision import Precision
from helper.setup import feature_shapes
from models import model_dict

FP32 = Precision(torch.device("cpu"), torch.float32)


def literal_layers(x, layers):
    """Convolutions, batch norms and leaky ReLUs of a sequence, one after the other."""
    for layer in layers:
        if isinstance(layer, torch.nn.Conv2d):
            x = F.conv2d(x, layer.weight, layer.bias, padding=1)
        elif isinstance(layer, torch.nn.ConvTranspose2d):
            x = F.conv_transpose2d(x, layer.weight, layer.bias, padding=1)
        elif isinstance(layer, torch.nn.BatchNorm2d):
            mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
            x = (x - mean) / (var + 1e-5).sqrt()
        else:
            x = torch.where(x > 0, x, 0.1 * x)
    return x


def test_paraphraser():
    paraphraser = Paraphraser(torch.Size([2, 8, 5, 5])).double()
    f = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    factor, copy = paraphraser(f)
    assert factor.shape == (2, 4, 5, 5)
    assert copy.shape == f.shape
    assert [layer.out_channels for layer in paraphraser.encoder[::2]] == [8, 4, 4]
    assert [layer.out_channels for layer in paraphraser.decoder[::2]] == [4, 8, 8]
    assert torch.allclose(factor, literal_layers(f, paraphraser.encoder))
    assert torch.allclose(copy, literal_layers(factor, paraphraser.decoder))
    copy.square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in paraphraser.parameters())


def test_translator():
    translator = Translator(torch.Size([2, 6, 5, 5]), torch.Size([2, 8, 5, 5])).double()
    f = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    factor = translator(f)
    assert factor.shape == (2, 4, 5, 5)
    assert [layer.out_channels for layer in translator.encoder[::3]] == [6, 4, 4]
    assert torch.allclose(factor, literal_layers(f, translator.encoder))
    factor.pow(3).mean().backward()
    assert translator.encoder[0].weight.grad.abs().sum() > 0


def test_connector_leaves_equal_sizes_alone_and_has_no_relu():
    same = torch.Size([2, 4, 8, 8])
    assert isinstance(connector(same, same), torch.nn.Identity)
    connect = connector(torch.Size([2, 3, 8, 8]), same)
    assert connect(torch.randn(2, 3, 8, 8)).min() < 0


def test_boundaries_by_loops():
    generator = torch.Generator().manual_seed(0)
    s, t = ([torch.randn(2, 3, 2, 2, generator=generator, dtype=torch.float64) for _ in range(3)] for _ in "st")
    for i, loss in enumerate(ABLoss(3, margin=0.7)(s, t)):
        total = 0.0
        for a, b in zip(s[i].flatten().tolist(), t[i].flatten().tolist(), strict=True):
            if b <= 0 and a > -0.7:
                total += (a + 0.7) ** 2
            elif b > 0 and a <= 0.7:
                total += (a - 0.7) ** 2
        assert loss.item() == pytest.approx(total * 2.0 ** (i - 2) / 2 / 1000 * 3)


def test_flow_needs_equal_channels():
    s, t = ([torch.Size([2, c, 8, 8]) for c in channels] for channels in ([16, 16, 32], [16, 32, 32]))
    with pytest.raises(ValueError, match=r"student has \[16, 16, 32\] and the teacher \[16, 32, 32\]"):
        FSP(s, t)


def build(name: str, student_name: str = "resnet8", teacher_name: str = "resnet14"):
    torch.manual_seed(0)
    student, teacher = (model_dict[network](num_classes=10) for network in (student_name, teacher_name))
    shapes = Shapes(feature_shapes(student, (32, 32)), feature_shapes(teacher, (32, 32)), 10, 60)
    return student, registry[name].build(shapes, init_epochs=1)


@pytest.mark.parametrize("name", ["abound", "factor", "fsp"])
def test_a_stage_trains_its_modules_only(name):
    student, method = build(name)
    step = TrainStep(student, method, FP32)
    (stage,) = method.stages(student)
    module = StageStep(step, stage).train()
    assert module.trains_student == (name != "factor")
    training = {id(m) for m in module.modules() if m.training}
    trained = {id(m) for m in module.trained.modules()}
    assert training == trained
    assert not student.fc.training


@pytest.mark.parametrize("name", ["abound", "factor", "fsp"])
@pytest.mark.parametrize("epochs", [0, -1])
def test_a_stage_has_epochs(name, epochs):
    _, method = build(name)
    with pytest.raises(ValueError, match="init_epochs"):
        registry[name].build(method.shapes, init_epochs=epochs)


def test_a_method_without_stages_has_none():
    student = model_dict["resnet8"](num_classes=10)
    assert Supervised(Shapes([], [], 10, 60)).stages(student) == []
    assert Stage("x", 1, (student,), lambda step: None).learning_rate is None
