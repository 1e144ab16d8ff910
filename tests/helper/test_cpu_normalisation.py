"""Batch norms in one pass against torch's: values, gradients, running statistics."""

import copy

import pytest
import torch
from torch import nn

from helper import cpu_normalisation


def make_norm(dtype=torch.float64):
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(5).to(dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def results(run, norm, x, g):
    x = x.clone().requires_grad_()
    y = run(x)
    gradients = torch.autograd.grad(y, [x, norm.weight, norm.bias], g)
    return [y.detach(), *gradients, norm.running_mean, norm.running_var, norm.num_batches_tracked]


def both(norm, x):
    g = torch.randn(x.shape, dtype=x.dtype)
    other = copy.deepcopy(norm)
    return results(norm, norm, x, g), results(lambda x: cpu_normalisation.one_pass(other, x), other, x, g)


@pytest.mark.parametrize("shape", [(4, 5, 6, 7), (2, 5, 1, 1)])
def test_equals_torch(shape):
    torch.manual_seed(0)
    x = (3 * torch.randn(shape, dtype=torch.float64) - 2).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(*both(make_norm(), x), rtol=1e-9, atol=1e-9)


def test_bfloat16_maps_with_float32_weights():
    torch.manual_seed(0)
    x = torch.randn(8, 5, 6, 6).bfloat16().contiguous(memory_format=torch.channels_last)
    expected, found = both(make_norm(torch.float32), x)
    assert found[0].dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def test_maps_far_from_zero_keep_their_variance():
    torch.manual_seed(0)
    x = torch.randn(16, 5, 8, 8) + 3000
    norm = make_norm(torch.float32)
    cpu_normalisation.one_pass(norm, x)
    expected = 0.9 + 0.1 * x.double().var((0, 2, 3))
    torch.testing.assert_close(norm.running_var, expected.float(), rtol=1e-3, atol=0)


def test_constant_channels_are_finite():
    _, found = both(make_norm(torch.float32), torch.full((4, 5, 3, 3), 0.1))
    assert all(part.isfinite().all() for part in found)


def test_only_compiled_training_is_changed(monkeypatch):
    norm = make_norm()
    plain = copy.deepcopy(norm)
    cpu_normalisation.adapt(norm)
    called = []
    monkeypatch.setattr(cpu_normalisation, "one_pass", lambda *_: called.append(1))
    x = torch.randn(4, 5, 3, 3, dtype=torch.float64)
    assert torch.equal(norm(x), plain(x))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(norm.eval()(x), plain.eval()(x))
    assert not called
    norm.train()(x)
    assert called
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm(x[:1, :, :1, :1])
