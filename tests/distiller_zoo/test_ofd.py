"""OFD's margins against numerical integration, its loss against the published three cases."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from distiller_zoo import OFD, Shapes, Step, feat_loss, margins, registry
from distiller_zoo.base import Output
from helper.setup import feature_shapes
from models import model_dict


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


def literal_margin(std: float, mean: float) -> float:
    """E[x | x < 0] for N(mean, std²) by the trapezoidal rule."""
    x = torch.linspace(min(mean, 0) - 12 * std, 0, 200_001, dtype=torch.float64)
    density = torch.exp(-(((x - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))
    probability = torch.trapezoid(density, x).item()
    return torch.trapezoid(x * density, x).item() / probability if probability > 0.001 else -3 * std


@pytest.mark.parametrize("std", [0.1, 1.0, -2.0])
@pytest.mark.parametrize("ratio", [-5.0, -1.0, 0.0, 1.0, 3.0, 3.2, 8.0])
def test_margins_are_the_means_of_the_negative_part(std, ratio):
    mean = ratio * abs(std)
    found = margins(torch.tensor([std], dtype=torch.float64), torch.tensor([mean], dtype=torch.float64))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(literal_margin(abs(std), mean), rel=1e-6)


def test_margins_of_channels_that_do_not_vary():
    assert margins(torch.zeros(3), torch.tensor([-2.0, 0.0, 2.0])).tolist() == [-2.0, 0.0, 0.0]


def literal_feat_loss(source: torch.Tensor, target: torch.Tensor, margin: list[float]) -> float:
    total = 0.0
    for b, c, h, w in ((*place,) for place in torch.cartesian_prod(*map(torch.arange, source.shape)).tolist()):
        s, t, m = source[b, c, h, w].item(), target[b, c, h, w].item(), margin[c]
        if t > 0 or (m < t <= 0 and s > t):
            total += (s - t) ** 2
        elif t <= m < s:
            total += (s - m) ** 2
    return total / len(source)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.booleans())
def test_loss_equals_the_literal_cases(seed, ties):
    generator = torch.Generator().manual_seed(seed)
    source, target = (2 * torch.randn(2, 3, 2, 3, generator=generator, dtype=torch.float64) for _ in "st")
    margin = [-1.0, -0.3, -3.0]
    if ties:
        source, target = source.round(), target.round()
    found = feat_loss(source, target, torch.tensor(margin, dtype=torch.float64).view(1, 3, 1, 1))
    assert found.item() == pytest.approx(literal_feat_loss(source, target, margin), rel=1e-12, abs=1e-12)


def test_gradient_is_that_of_the_loss():
    source, target = (torch.randn(2, 3, 4, 4, dtype=torch.float64) for _ in "st")
    margin = torch.tensor([-1.0, -0.3, -3.0], dtype=torch.float64).view(1, 3, 1, 1)
    assert torch.autograd.gradcheck(lambda s: feat_loss(s, target, margin), source.requires_grad_(True))


def test_deeper_pairs_count_twice_and_teachers_are_pooled():
    """Four student stages for three of the teacher, whose maps are twice as large."""
    loss = OFD([2, 3, 4, 5], [6, 7, 8]).double()
    norms = [nn.BatchNorm2d(channels) for channels in (6, 7, 8)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    loss.set_margins([nn.BatchNorm2d(9), *norms])
    for wrong in (norms[1:], norms[::-1]):
        with pytest.raises(ValueError, match="do not fit"):
            loss.set_margins(wrong)
    g_s = [torch.randn(2, c, side, side, dtype=torch.float64) for c, side in [(2, 8), (3, 4), (4, 2), (5, 1)]]
    g_t = [torch.randn(2, c, side, side, dtype=torch.float64) for c, side in [(6, 8), (7, 4), (8, 2)]]
    expected = 0.0
    for i, factor in enumerate((0.25, 0.5, 1.0)):
        conv, norm = loss.connectors[i]
        x = torch.einsum("oi,bihw->bohw", conv.weight[:, :, 0, 0], g_s[i + 1])
        x = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        side = g_s[i + 1].shape[2]
        pooled = g_t[i].reshape(2, -1, side, 2, side, 2).mean((3, 5))
        margin = margins(norms[i].weight, norms[i].bias).double()
        expected += factor * literal_feat_loss(x, pooled, margin.tolist())
    assert loss(g_s, g_t).item() == pytest.approx(expected, rel=1e-9)


def test_connectors_are_drawn_as_officially():
    conv, norm = OFD([200], [400], kernel_size=3).connectors[0]
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 400)), rel=0.02)
    assert conv.bias is None
    assert (norm.weight == 1).all()


def shapes_of(student: str, teacher: str) -> Shapes:
    sizes = [feature_shapes(model_dict[name](num_classes=10), (32, 32)) for name in (student, teacher)]
    return Shapes(*sizes, 10, 100)


@pytest.mark.parametrize(
    ("student", "teacher"), [("resnet8", "resnet14"), ("wrn_16_2", "wrn_40_2"), ("MobileNetV2", "vgg8")]
)
def test_runs_on_pairs_of_networks(student, teacher):
    shapes, network = shapes_of(student, teacher), model_dict[teacher](num_classes=10).eval()
    method = registry["ofd"].build(shapes)
    images, target = torch.randn(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64)
    pupil = model_dict[student](num_classes=10)
    outputs = []
    for net in (pupil, network):
        features, logits = net(images, is_feat=True, preact=True)
        outputs.append(Output(logits, method.needs.select(features)))
    step = Step(outputs[0], Output(outputs[1].logits.detach(), outputs[1].features), target, target)
    with pytest.raises(RuntimeError, match="prepare"):
        method.kd(step)
    method.prepare(network, [])
    for i, norm in enumerate(network.get_bn_before_relu()):
        assert torch.equal(method.loss.get_buffer(f"margin{i}").flatten(), margins(norm.weight, norm.bias))
    term = method.kd(step)
    term.backward()
    assert term.isfinite()
    assert all(parameter.grad is not None for parameter in method.parameters())
    assert not any("margin" in key for key in method.state_dict()), "they are the teacher's to tell"


def test_a_teacher_without_such_batch_norms_is_refused():
    method = registry["ofd"].build(shapes_of("ShuffleV1", "ShuffleV1"))
    for network in (model_dict["ShuffleV1"](num_classes=10), nn.Linear(2, 2)):
        with pytest.raises(ValueError, match="no single batch norm before the ReLU"):
            method.prepare(network, [])
