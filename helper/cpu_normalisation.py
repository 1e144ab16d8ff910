"""Batch norms in a form that torch.compile turns into faster loops on a CPU: same operation, other rounding.

The compiler computes a variance by Welford's update, which divides for every value and waits for the result. Here one
pass adds up the values and their squares, both relative to one value of the channel, so that little cancels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SPACE = (0, 2, 3)  # dimensions that a batch norm averages over


def _by_channel(vector: Tensor) -> Tensor:
    return vector.view(1, -1, 1, 1)


class _OnePass(torch.autograd.Function):
    """Batch norm of maps (B, C, H, W) in training; also gives their mean and biased variance (C,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """Sums are taken in the format of the weight."""
        wide = x.to(weight.dtype)
        near = wide[:1, :, :1, :1]
        shifted = wide - near
        offset = shifted.mean(SPACE)
        variance = ((shifted * shifted).mean(SPACE) - offset * offset).clamp_min(0)
        mean, scale = near.flatten() + offset, torch.rsqrt(variance + eps)
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.mark_non_differentiable(mean, variance)
        slope = weight * scale
        return (wide * _by_channel(slope) + _by_channel(bias - mean * slope)).to(x.dtype), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of maps, weight and bias."""
        x, weight, mean, scale = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        wide, centred = grad.to(weight.dtype), x.to(weight.dtype) - _by_channel(mean)
        for_bias, product = wide.sum(SPACE), (wide * centred).sum(SPACE)
        slope = weight * scale
        along = _by_channel(slope * scale * scale * product / count)
        for_x = wide * _by_channel(slope) - centred * along - _by_channel(slope * for_bias / count)
        return for_x.to(x.dtype), product * scale, for_bias, None


def one_pass(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """What a batch norm in training gives for maps (B, C, H, W), its running statistics updated, but for rounding."""
    result, mean, variance = _OnePass.apply(x, norm.weight, norm.bias, norm.eps)
    count = x.numel() // x.shape[1]
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
    return result


def _forward(usual: Callable[[Tensor], Tensor], norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    # one value per channel is refused by the usual forward pass, and what is not compiled gains nothing
    if norm.training and torch.compiler.is_compiling() and x.numel() > x.shape[1]:
        return one_pass(norm, x)
    return usual(x)


def adapt(network: nn.Module) -> None:
    """Let the batch norms of a network take one pass where they are compiled in training.

    Args:
        network: changed in place; only its `forward`s are, not its state.
    """
    for module in network.modules():
        usual = type(module) is nn.BatchNorm2d and not isinstance(module.forward, functools.partial)
        if usual and module.affine and module.track_running_stats and module.momentum is not None:
            module.forward = functools.partial(_forward, module.forward, module)
