"""Methods that use the classifiers: SimKD, SRRL, CAT-KD."""

import pytest
import torch
import torch.nn.functional as F

from distiller_zoo import SRRL, Projector, ReusedClassifierStudent, Shapes, Step, registry
from distiller_zoo.base import Output
from distiller_zoo.heads import CamNetwork, PooledMapNetwork
from helper.setup import feature_shapes
from models import model_dict
from models.external import TappedNetwork

NETWORKS = ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "ResNet50"]


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NETWORKS)
def test_wrapped_networks_keep_their_logits(name, images):
    network = model_dict[name](num_classes=10).eval()
    plain_features, logits = network(images, is_feat=True)
    features, wrapped = PooledMapNetwork(network)(images, is_feat=True)
    assert torch.allclose(wrapped, logits, atol=1e-5)
    assert torch.allclose(features[-2].mean((2, 3)), plain_features[-1], atol=1e-5)
    assert len(features) == len(plain_features)

    cams, cam_logits = CamNetwork(network)(images, is_feat=True)
    assert cams[-2].shape[1] == 10
    assert torch.allclose(cam_logits, logits - network.get_classifier().bias, atol=1e-5)


def test_a_student_of_activation_maps_is_saved_as_an_ordinary_network(images):
    student = model_dict["resnet8"](num_classes=10).eval()
    shapes = Shapes([], [], 10, 60)
    wrapped = registry["catkd"].build(shapes).wrap_student(student, student)
    assert wrapped.deployed is student
    assert torch.allclose(wrapped(images), student(images), atol=1e-6)
    assert not student.get_classifier().bias.requires_grad


def test_projector_by_hand():
    projector = Projector(6, 8, factor=2).double()
    assert [tuple(p.shape) for p in projector.parameters() if p.ndim == 4] == [(4, 6, 1, 1), (4, 4, 3, 3), (8, 4, 1, 1)]
    f = torch.randn(3, 6, 4, 4, dtype=torch.float64, requires_grad=True)
    x = f
    for convolution, padding in ((0, 0), (3, 1), (6, 0)):
        x = F.conv2d(x, projector.transfer[convolution].weight, padding=padding)
        x = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        x = x.clamp(min=0)
    found = projector(f)
    assert torch.allclose(found, x)
    found.pow(2).sum().backward()
    assert f.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("student", "teacher"), [("resnet8", "wrn_16_2"), ("MobileNetV2", "resnet14"), ("wrn_16_1", "vgg8")]
)
def test_student_reuses_the_teachers_classifier(student, teacher, images):
    networks = [model_dict[name](num_classes=10) for name in (student, teacher)]
    shapes = Shapes(*[feature_shapes(network, (32, 32)) for network in networks], 10, 60)
    method = registry["simkd"].build(shapes)
    wrapped, target = method.wrap_student(*networks), method.wrap_teacher(networks[1].eval())
    assert isinstance(wrapped, ReusedClassifierStudent)
    assert torch.equal(wrapped.classifier.weight, networks[1].get_classifier().weight)
    features, logits = wrapped(images, is_feat=True)
    expected = F.linear(features[-2].mean((2, 3)), wrapped.classifier.weight, wrapped.classifier.bias)
    assert torch.allclose(logits, expected, atol=1e-6)
    with torch.no_grad():
        t_features, t_logits = target(images, is_feat=True)
    sides = (Output(logits, features), Output(t_logits, t_features))
    loss = method.kd(Step(*sides, torch.tensor([0, 1]), torch.tensor([0, 1])))
    loss.backward()
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in wrapped.student.parameters())
    assert wrapped.classifier.weight.grad is None
    assert all(p.grad is not None for p in wrapped.projector.parameters())
    assert len(trained) < len(list(wrapped.parameters()))


def test_projected_maps_that_are_not_square_have_the_teachers_size():
    networks = [model_dict[name](num_classes=10) for name in ("resnet8", "vgg8")]
    shapes = Shapes(*[feature_shapes(network, (16, 40)) for network in networks], 10, 60)
    features, _ = registry["simkd"].build(shapes).wrap_student(*networks)(torch.randn(2, 3, 16, 40), is_feat=True)
    assert features[-2].shape[2:] == shapes.teacher[-2][2:] == (2, 5)


def test_srrl_by_hand():
    torch.manual_seed(0)
    teacher = model_dict["resnet14"](num_classes=10)
    vector = [torch.Size([2, 64])]
    method = SRRL(Shapes(vector, vector, 10, 60)).double()
    method.prepare(teacher.double(), [])
    f_s, f_t, logits = torch.randn(5, 64).double(), torch.randn(5, 64).double(), torch.randn(5, 10).double()
    step = Step(Output(logits, [f_s]), Output(logits, [f_t]), torch.zeros(5).long(), torch.arange(5))
    x = f_s @ method.connect.transfer[0].weight.T
    x = ((x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()).clamp(min=0)
    by_hand = (x - f_t).square().mean() + (x @ teacher.fc.weight.T + teacher.fc.bias - logits).square().mean()
    assert torch.isclose(method.kd(step), by_hand)
    assert {name for name, _ in method.named_buffers() if name.startswith("head")} == {"head_weight", "head_bias"}


def test_classifiers_without_bias(images):
    student, teacher = (model_dict["resnet8"](num_classes=10).eval() for _ in range(2))
    for network in (student, teacher):
        network.fc = torch.nn.Linear(64, 10, bias=False)
    shapes = Shapes(*[feature_shapes(network, (32, 32)) for network in (student, teacher)], 10, 60)
    wrapped = registry["catkd"].build(shapes).wrap_student(student, teacher)
    assert torch.allclose(wrapped(images), student(images), atol=1e-6)
    method = registry["srrl"].build(shapes)
    method.prepare(teacher, [])
    features, logits = teacher(images, is_feat=True)
    method.connect = torch.nn.Identity()
    step = Step(Output(logits, features), Output(logits, features), torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert method.kd(step).item() == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize("name", ["catkd", "simkd"])
def test_networks_whose_pooled_map_is_unknown_are_refused(name):
    networks = [TappedNetwork(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 10, bias=False)), ["0"])] * 2
    maps = [torch.Size([2, 16, 8, 8])] * 4 + [torch.Size([2, 16])]
    method = registry[name].build(Shapes(maps, maps, 10, 60))
    with pytest.raises(ValueError, match="does not pool a map"):
        method.wrap_student(*networks), method.wrap_teacher(networks[1])


@pytest.mark.parametrize(("name", "option"), [("simkd", {"factor": 0}), ("catkd", {"cam_resolution": 0})])
def test_options_out_of_range_are_refused(name, option):
    maps = [torch.Size([2, 16, 8, 8])] * 4 + [torch.Size([2, 16])]
    with pytest.raises(ValueError, match=next(iter(option))):
        registry[name].build(Shapes(maps, maps, 10, 60), **option)
