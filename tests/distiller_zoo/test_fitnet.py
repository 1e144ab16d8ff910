"""The hint regressor's shapes and a literal version of its layers."""

import pytest
import torch
import torch.nn.functional as F

from distiller_zoo import Shapes, registry
from distiller_zoo.adapters import ConvReg

PAIRS = {
    "equal": (16, 16, (3, 16, 1, 1)),
    "student twice as large": (16, 8, (3, 16, 3, 3)),
    "student half as large": (8, 16, (16, 3, 4, 4)),
    "student larger by 3": (11, 8, (3, 16, 4, 4)),
}


@pytest.mark.parametrize("case", PAIRS)
@pytest.mark.parametrize("use_relu", [True, False])
def test_conv_reg(case, use_relu):
    side_s, side_t, kernel = PAIRS[case]
    in_c, out_c = (16, 3)
    regress = ConvReg(torch.Size([2, in_c, side_s, side_s]), torch.Size([2, out_c, side_t, side_t]), use_relu).double()
    x = torch.randn(2, in_c, side_s, side_s, dtype=torch.float64, requires_grad=True)
    found = regress(x)
    assert found.shape == (2, out_c, side_t, side_t)

    weight, bias = regress.conv.weight, regress.conv.bias
    assert sorted(weight.shape) == sorted(kernel)
    if case == "student half as large":
        y = F.conv_transpose2d(x, weight, bias, stride=2, padding=1)
    else:
        stride, padding = (2, 1) if case == "student twice as large" else (1, 0)
        y = F.conv2d(x, weight, bias, stride=stride, padding=padding)
    y = (y - y.mean((0, 2, 3), keepdim=True)) / (y.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    y = y.clamp(min=0) if use_relu else y
    assert torch.allclose(found, y, rtol=0, atol=1e-10)
    (found**3).sum().backward()
    for parameter in (x, regress.conv.weight, regress.bn.weight, regress.bn.bias):
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("size_s", "size_t"), [((5, 11), (2, 5)), ((10, 21), (5, 10)), ((10, 22), (5, 11)), ((6, 8), (3, 8))]
)
def test_maps_that_are_not_square(size_s, size_t):
    regress = ConvReg(torch.Size([2, 4, *size_s]), torch.Size([2, 6, *size_t]))
    assert regress(torch.randn(2, 4, *size_s)).shape == (2, 6, *size_t)
    if size_s != (10, 22):
        with pytest.raises(ValueError, match="cannot be brought"):
            ConvReg(torch.Size([2, 6, *size_t]), torch.Size([2, 4, *size_s]))


def test_sizes_that_no_layer_brings_together_are_refused():
    with pytest.raises(ValueError, match="cannot be brought"):
        ConvReg(torch.Size([2, 4, 5, 5]), torch.Size([2, 4, 8, 8]))
    with pytest.raises(ValueError, match="a map is needed"):
        ConvReg(torch.Size([2, 4]), torch.Size([2, 4]))


@pytest.mark.parametrize("layer", [0, 4])
def test_a_layer_that_is_no_stage_is_refused(layer):
    maps = [torch.Size([2, 16, 8, 8])] * 4 + [torch.Size([2, 16])]
    with pytest.raises(ValueError, match="stages 1 to 3"):
        registry["hint"].build(Shapes(maps, maps, 10, 60), hint_layer=layer)
