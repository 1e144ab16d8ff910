"""ReviewKD's sizes against the published tables, its fusion and loss against literal versions."""

import pytest
import torch

from distiller_zoo import Shapes, Step, hcl, registry
from distiller_zoo.base import Output
from distiller_zoo.ReviewKD import ABF, ReviewFusion, hierarchical_context_loss
from helper.setup import feature_shapes
from models import model_dict

NARROW, X4, WRN2 = [16, 32, 64, 64], [64, 128, 256, 256], [32, 64, 128, 128]
VGG = [128, 256, 512, 512, 512]
MOBILE, SHUFFLE1 = [12, 16, 48, 160, 1280], [240, 480, 960, 960]
SHUFFLE2, BOTTLENECK = [116, 232, 464, 1024], [256, 512, 1024, 2048, 2048]
SIDES, SHUFFLE_SIDES = [32, 16, 8, 1], [16, 8, 4, 1]
# the tables of the official code: channels of student and teacher, sides of both, shallowest first
TABLES = {
    "resnet56 resnet20": (NARROW, NARROW, SIDES, SIDES),
    "resnet110 resnet32": (NARROW, NARROW, SIDES, SIDES),
    "resnet32x4 resnet8x4": (X4, X4, SIDES, SIDES),
    "wrn_40_2 wrn_16_2": (WRN2, WRN2, SIDES, SIDES),
    "wrn_40_2 wrn_40_1": (NARROW, WRN2, SIDES, SIDES),
    "wrn_40_2 ShuffleV1": (SHUFFLE1, WRN2, SHUFFLE_SIDES, SIDES),
    "resnet32x4 ShuffleV1": (SHUFFLE1, X4, SHUFFLE_SIDES, SIDES),
    "resnet32x4 ShuffleV2": (SHUFFLE2, X4, SHUFFLE_SIDES, SIDES),
    "vgg13 vgg8": (VGG, VGG, [16, 8, 4, 4, 1], [16, 8, 4, 4, 1]),
    "vgg13 MobileNetV2": (MOBILE, VGG, [16, 8, 4, 2, 1], [16, 8, 4, 4, 1]),
    "ResNet50 MobileNetV2": (MOBILE, BOTTLENECK, [16, 8, 4, 2, 1], [32, 16, 8, 4, 1]),
    "ResNet50 vgg8": (VGG, BOTTLENECK, [16, 8, 4, 4, 1], [32, 16, 8, 4, 1]),
}


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


def shapes_of(network: str) -> list[torch.Size]:
    return feature_shapes(model_dict[network](num_classes=10), (32, 32))


def random_features(shapes: list[torch.Size], trained: bool = False) -> list[torch.Tensor]:
    return [torch.randn(2, *shape[1:]).requires_grad_(trained) for shape in shapes]


@pytest.mark.parametrize("pair", TABLES)
def test_sizes_are_those_of_the_published_tables(pair):
    teacher, student = pair.split()
    c_in, c_out, sides_in, sides_out = TABLES[pair]
    s_shapes, t_shapes = shapes_of(student)[1:], shapes_of(teacher)[1:]
    with torch.device("meta"):
        fusion = ReviewFusion(s_shapes, t_shapes)
    abfs = list(fusion.abfs)[::-1]
    assert [abf.conv1[0].in_channels for abf in abfs] == c_in
    assert [abf.conv2[0].out_channels for abf in abfs] == c_out
    assert {abf.conv1[0].out_channels for abf in abfs} == {min(512, c_in[-1])}
    assert [abf.size_out for abf in abfs] == [(side, side) for side in sides_out]
    assert [abf.att_conv is None for abf in abfs] == [False] * (len(abfs) - 1) + [True]
    assert [shape[2] if len(shape) == 4 else 1 for shape in s_shapes] == sides_in
    results = fusion([torch.empty(shape, device="meta") for shape in s_shapes])
    expected = [torch.Size([2, c, side, side]) for c, side in zip(c_out, sides_out, strict=True)]
    assert [result.shape for result in results] == expected


@pytest.mark.parametrize(("teacher", "student"), [("resnet14", "vgg8"), ("vgg8", "resnet8"), ("vgg8", "ShuffleV1")])
def test_different_numbers_of_stages_are_aligned_from_the_deepest(teacher, student):
    shapes = Shapes(shapes_of(student), shapes_of(teacher), 10, 100)
    method = registry["ReviewKD"].build(shapes)
    assert len(method.fusion.abfs) == 4
    s, t = random_features(shapes.student, trained=True), random_features(shapes.teacher)
    fused = method.fusion(s[1:])
    for result, shape in zip(fused, shapes.teacher[-4:], strict=True):
        assert result.shape == (2, *shape[1:], *(1, 1)[: 4 - len(shape)])
    target = torch.zeros(2, dtype=torch.int64)
    step = Step(Output(torch.randn(2, 10), s), Output(torch.randn(2, 10), t), target, target, epoch=20)
    method.kd(step).backward()
    for number, feature in enumerate(s[::-1]):
        assert (feature.grad is not None and bool(feature.grad.any())) == (number < 4)


def batch_norm(x: torch.Tensor) -> torch.Tensor:
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt()


def nearest(x: torch.Tensor, side: int) -> torch.Tensor:
    place = torch.arange(side) * x.shape[2] // side
    return x[:, :, place][:, :, :, place]


def test_fusion_equals_a_literal_one():
    """Two stages and the pooled vector; the first teacher stage is larger than the student's."""
    s_shapes = [torch.Size([2, 5, 8, 8]), torch.Size([2, 7, 4, 4]), torch.Size([2, 6])]
    t_shapes = [torch.Size([2, 3, 16, 16]), torch.Size([2, 4, 4, 4]), torch.Size([2, 9])]
    fusion = ReviewFusion(s_shapes, t_shapes).double()
    x1, x2, vector = (feature.double() for feature in random_features(s_shapes))
    found = fusion([x1, x2, vector])

    expected, residual = [], None
    for abf, x, side in zip(fusion.abfs, (vector.reshape(2, 6, 1, 1), x2, x1), (1, 4, 16), strict=True):
        x = batch_norm(torch.einsum("oi,bihw->bohw", abf.conv1[0].weight[:, :, 0, 0], x))
        if residual is not None:
            residual = nearest(residual, x.shape[2])
            weight, bias = abf.att_conv[0].weight[:, :, 0, 0], abf.att_conv[0].bias
            score = torch.einsum("oi,bihw->bohw", weight, torch.cat([x, residual], 1)) + bias[:, None, None]
            own, deeper = score.sigmoid().unbind(1)
            x = x * own.unsqueeze(1) + residual * deeper.unsqueeze(1)
        residual = nearest(x, side)
        padded = torch.nn.functional.pad(residual, (1, 1, 1, 1))
        patches = padded.unfold(2, 3, 1).unfold(3, 3, 1)
        expected.insert(0, batch_norm(torch.einsum("oiuv,bihwuv->bohw", abf.conv2[0].weight, patches)))
    for result, literal in zip(found, expected, strict=True):
        assert torch.allclose(result, literal, rtol=0, atol=1e-10)


def test_initial_weights_are_drawn_as_officially():
    abf = ABF(300, 200, 100, (8, 8), fuse=True)
    for conv, fan_in in ((abf.conv1[0], 300), (abf.conv2[0], 200 * 9)):
        bound = (3 / fan_in) ** 0.5
        assert bound * 0.99 < conv.weight.abs().max() <= bound
        assert conv.bias is None
    assert abf.att_conv[0].bias is not None


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 8])
def test_loss_equals_a_literal_one(side):
    s, t = (torch.randn(3, 2, side, side, dtype=torch.float64) for _ in "st")
    loss, total, weight = ((s - t) ** 2).mean().item(), 1.0, 1.0
    for size in (4, 2, 1):
        if size >= side:
            continue
        weight, errors = weight / 2, []
        for i in range(size):
            for j in range(size):
                rows, columns = (slice(n * side // size, -(-(n + 1) * side // size)) for n in (i, j))
                errors.append((s - t)[:, :, rows, columns].mean((2, 3)))
        loss, total = loss + weight * (torch.stack(errors) ** 2).mean().item(), total + weight
    assert hierarchical_context_loss(s, t).item() == pytest.approx(loss / total, rel=1e-12)
    assert hcl([s, 2 * s], [t, 2 * t]).item() == pytest.approx(5 * loss / total, rel=1e-12)


def test_gradient_is_that_of_the_loss():
    s, t = (torch.randn(2, 2, 5, 5, dtype=torch.float64) for _ in "st")
    assert torch.autograd.gradcheck(lambda f: hcl([f], [t]), s.requires_grad_(True))


def test_maps_of_different_shapes_are_not_compared():
    with pytest.raises(ValueError, match=r"\[2, 3, 4, 4\] and \[2, 3, 1, 1\]"):
        hcl([torch.zeros(2, 3, 4, 4)], [torch.zeros(2, 3)])


def test_the_review_warms_up():
    shapes = Shapes(shapes_of("resnet8"), shapes_of("resnet14"), 10, 100)
    method = registry["ReviewKD"].build(shapes)
    target = torch.zeros(2, dtype=torch.int64)
    s, t = (Output(torch.randn(2, 10), random_features(side)) for side in (shapes.student, shapes.teacher))
    first, late, later = (method.kd(Step(s, t, target, target, epoch=epoch)).item() for epoch in (1, 20, 100))
    assert first == pytest.approx(late / 20, rel=1e-4)
    assert late == later
    with pytest.raises(ValueError, match="--kd_warmup -1"):
        registry["ReviewKD"].build(shapes, kd_warmup=-1)
