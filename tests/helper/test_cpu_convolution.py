"""The forms that slow convolutions take on CPUs compute what the ordinary ones do."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helper import cpu_convolution
from helper.cpu_convolution import adapt
from helper.precision import Precision
from models import model_dict


def run(conv: nn.Conv2d, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Output, and gradients of a weighted sum of it with respect to input and parameters."""
    x = x.clone().requires_grad_()
    y = conv(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return (y, *torch.autograd.grad((y * weights).sum(), [x, *conv.parameters()]))


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 34),
    channels=st.tuples(st.sampled_from([1, 3, 130]), st.sampled_from([2, 129])),
    kernel=st.sampled_from([1, 3]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    bias=st.booleans(),
    amx=st.booleans(),
)
def test_other_forms_are_the_same_convolution(batch, channels, kernel, size, bias, amx):
    torch.manual_seed(0)
    conv = nn.Conv2d(*channels, kernel, padding=kernel // 2, bias=bias).double()
    adapted = copy.deepcopy(conv)
    adapt(adapted, amx)
    x = torch.randn(batch, channels[0], *size, dtype=torch.float64)
    for got, expected in zip(run(adapted, x), run(conv, x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("width", "channels", "learns", "amx", "joined"), [
    (4, 8, True, True, True), (4, 8, False, True, True), (8, 128, True, True, True), (8, 128, False, True, False),
    (8, 64, True, True, False), (16, 128, True, True, False), (4, 8, True, False, False),
])  # fmt: skip
def test_only_small_maps_are_joined_and_only_with_amx(width, channels, learns, amx, joined):
    conv = nn.Conv2d(channels, channels, 3, padding=1)
    seen = []
    conv._conv_forward = lambda x, *_: seen.append(tuple(x.shape)) or x
    adapt(conv, amx)
    with torch.set_grad_enabled(learns):
        y = conv(torch.zeros(32, channels, width, width).to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert seen == [(2, channels, width, 16 * (width + 1)) if joined else (32, channels, width, width)]


def test_other_convolutions_are_left_alone():
    layers = [
        nn.Conv2d(4, 4, 3, padding=1, stride=2),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 1, stride=2),
        nn.Conv2d(4, 4, 1, padding=1),
        nn.Conv2d(4, 4, 1, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
    ]
    for conv in layers:
        before = conv.forward
        adapt(conv, amx=True)
        assert conv.forward == before, conv


@pytest.mark.parametrize(("amx", "width", "product"), [
    (True, 8, True), (True, 9, False), (False, 4, True), (False, 5, False),
])  # fmt: skip
def test_only_small_maps_are_rows_of_pixels(amx, width, product):
    conv, seen = nn.Conv2d(4, 6, 1), []
    plain = conv._conv_forward
    conv._conv_forward = lambda x, *others: seen.append(x.shape) or plain(x, *others)
    adapt(conv, amx)
    y = conv(torch.zeros(2, 4, width, width).to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert len(seen) == (not product)


@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize(("stride", "width", "low"), [(2, 8, False), (1, 2, False), (1, 3, True)])
def test_slow_depthwise_convolutions_train_in_float32(stride, width, low, amx):
    conv = nn.Conv2d(6, 6, 3, stride=stride, padding=1, groups=6)
    reference = copy.deepcopy(conv)
    adapt(conv, amx)
    x = torch.randn(2, 6, width, width).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        trained = conv(x)
        with torch.no_grad():
            tested, rounded = conv(x), reference(x)
    assert trained.dtype == torch.bfloat16
    expected = rounded if low else reference(x.float()).bfloat16()
    torch.testing.assert_close(trained, expected, rtol=0, atol=0)
    torch.testing.assert_close(tested, rounded, rtol=0, atol=0)


def test_an_adapted_network_keeps_its_state_and_its_copies_are_their_own(monkeypatch):
    monkeypatch.setattr("helper.precision._cpu_has", lambda check: True)
    network = model_dict["vgg8"](num_classes=10).eval()
    keys = list(network.state_dict())
    x = torch.randn(16, 3, 32, 32)
    expected = network(x)
    Precision(torch.device("cpu"), torch.bfloat16).spare_slow_operations(network)
    assert list(network.state_dict()) == keys
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)
    twin = copy.deepcopy(network)
    adapt(twin, amx=True)  # again, to no effect
    nn.init.zeros_(network.classifier.weight)
    for conv in network.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.zeros_(conv.weight)
    torch.testing.assert_close(twin(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "has", "amx"), [
    (torch.bfloat16, ["_is_amx_tile_supported", "_is_avx512_bf16_supported"], [True]),
    (torch.bfloat16, ["_is_avx512_bf16_supported"], [False]),
    (torch.bfloat16, [], []),
    (torch.float32, ["_is_amx_tile_supported", "_is_avx512_bf16_supported"], []),
])  # fmt: skip
def test_only_low_formats_on_processors_that_multiply_them_are_adapted(monkeypatch, dtype, has, amx):
    seen = []
    monkeypatch.setattr(cpu_convolution, "adapt", lambda network, amx: seen.append((network, amx)))
    monkeypatch.setattr("helper.precision._cpu_has", has.__contains__)
    conv = nn.Conv2d(4, 4, 3, padding=1)
    Precision(torch.device("cpu"), dtype).spare_slow_operations(conv)
    assert seen == [(conv, one) for one in amx]
