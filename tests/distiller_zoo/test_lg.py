"""Locality guidance: which blocks it guides, at which size, through what."""

import pytest
import torch
import torch.nn.functional as F

from distiller_zoo import Shapes, Step, registry
from distiller_zoo.base import Output
from distiller_zoo.LG import chosen_blocks, guidance_loss
from helper.setup import feature_shapes
from models import build


@pytest.mark.parametrize(
    ("blocks", "stages", "expected"),
    [
        (12, 3, (0, 6, 11)),
        (8, 3, (0, 3, 7)),
        (7, 3, (0, 3, 6)),
        (3, 3, (0, 1, 2)),
        (12, 4, (0, 3, 7, 11)),
        (5, 1, (0,)),
    ],
)
def test_blocks_by_default(blocks, stages, expected):
    assert chosen_blocks("auto", blocks, stages) == expected


@pytest.mark.parametrize(
    ("text", "reason"), [("0,6,12", "from 0 to 11"), ("0,x,3", "from 0 to 11"), ("0,3", "2 blocks for the teacher's 3")]
)
def test_blocks_that_are_none(text, reason):
    with pytest.raises(ValueError, match=reason):
        chosen_blocks(text, 12, 3)


@pytest.mark.parametrize("name", ["deit_ti", "pit_ti", "pvt_ti", "t2t_7"])
def test_every_transformer_is_guided(name):
    torch.manual_seed(0)
    student, teacher = build(name, 10, 32), build("resnet8", 10).eval()
    images = torch.randn(3, 3, 32, 32)
    shapes = Shapes(*(feature_shapes(network, (32, 32)) for network in (student, teacher)), 10, 3)
    method = registry["lg"].build(shapes)
    with torch.no_grad():
        teacher_features, teacher_logits = teacher(images, is_feat=True)
    features, logits = student.train()(images, is_feat=True)
    target = torch.tensor([0, 1, 2])
    step = Step(Output(logits, features), Output(teacher_logits, teacher_features), target, target)
    found = method(step)["kd"]
    expected = 0.0
    for project, block, f_t in zip(method.project, method.blocks, teacher_features[1:-1], strict=True):
        f_s = project(features[1 + block])
        side = min(f_s.shape[2], f_t.shape[2])
        expected = expected + F.mse_loss(F.adaptive_avg_pool2d(f_s, side), F.adaptive_avg_pool2d(f_t, side))
    torch.testing.assert_close(found, expected)
    found.backward()
    assert all(parameter.grad.any() for parameter in method.parameters())


def test_without_adapters():
    shapes = Shapes(*[[torch.Size([2, 4, 8, 8])] * 4 + [torch.Size([2, 4])]] * 2, 10, 2)
    for guidance in ("attention", "similarity"):
        assert not list(registry["lg"].build(shapes, guidance=guidance).parameters())
    f = torch.randn(3, 4, 8, 8)
    assert guidance_loss(f, f, "attention") == guidance_loss(f, f, "similarity") == guidance_loss(f, f, "linear") == 0
