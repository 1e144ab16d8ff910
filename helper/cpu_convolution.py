"""Convolutions whose low-precision kernels are slow on CPUs, in other forms: same operation, other rounding.

What is slow was found by timing oneDNN's bfloat16 kernels on a processor with AMX and on one with AVX512-BF16 only,
one operation at a time (`benchmarks/convolution.py`). The choice depends on shapes and on what the processor has, never
on a clock, so that a run can be repeated.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOGETHER = 16  # images that share a row of maps
TINY = 4  # width of maps whose forward pass is slow, too
SMALL, MANY_CHANNELS = 8, 128  # width of maps of which only the backward pass is slow, and only with many channels
ROWS_OF_PIXELS = {True: 8, False: 4}  # with AMX or not: width of maps up to which a 1x1 convolution loses to a product


def in_float32_for_training(forward: Callable[[Tensor], Tensor], fast_from: float, x: Tensor) -> Tensor:
    """Run an operation on narrow maps in float32 where gradients are wanted, and as it is where not.

    Args:
        forward: of a module under autocast.
        fast_from: width of the maps from which on it is run as it is, too.
        x: its input (B, C, H, W).
    """
    if x.shape[3] >= fast_from or not torch.is_grad_enabled():
        return forward(x)
    with torch.autocast(x.device.type, enabled=False):
        return forward(x.float()).to(x.dtype)


def as_product(forward: Callable[[Tensor], Tensor], conv: nn.Conv2d, up_to: int, x: Tensor) -> Tensor:
    """Run a 1x1 convolution on small maps as a product of matrices, one row for each pixel.

    Args:
        forward: of the convolution.
        conv: the convolution, of stride 1.
        up_to: width of the maps up to which it is one.
        x: (B, C, H, W).

    Returns:
        What `forward` gives for it, but for rounding.
    """
    if x.shape[3] > up_to:
        return forward(x)
    return F.linear(x.permute(0, 2, 3, 1), conv.weight.flatten(1), conv.bias).permute(0, 3, 1, 2)


def _join(x: Tensor, together: int) -> Tensor:
    """(B, C, H, W) to (B/together, C, H, together·(W + 1)): maps side by side, a column of zeros after each."""
    batch, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(batch // together, together, height, width, channels).transpose(1, 2)
    return F.pad(rows, (0, 0, 0, 1)).flatten(2, 3).permute(0, 3, 1, 2)


def _split(x: Tensor, together: int) -> Tensor:
    """The inverse of `_join`; what stands in the columns between the maps is dropped."""
    maps = x.permute(0, 2, 3, 1).unflatten(2, (together, -1))[:, :, :, :-1]
    return maps.transpose(1, 2).flatten(0, 1).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def side_by_side(forward: Callable[[Tensor], Tensor], channels: int, x: Tensor) -> Tensor:
    """Run a 3x3 convolution with padding 1 on maps put side by side where the maps are small.

    Args:
        forward: of the convolution.
        channels: of its input or its output, whichever are fewer.
        x: (B, C, H, W); the more divisors up to 16 B has, the faster.

    Returns:
        What `forward` gives for it, but for rounding.
    """
    width = x.shape[3]
    slow = width <= TINY or (width <= SMALL and channels >= MANY_CHANNELS and torch.is_grad_enabled())
    together = max((n for n in range(1, TOGETHER + 1) if len(x) % n == 0), default=1)
    if not slow or together == 1:
        return forward(x)
    return _split(forward(_join(x, together)), together)


def _fast_form(conv: nn.Conv2d, amx: bool) -> Callable[[Tensor], Tensor] | None:
    """What to call in place of a convolution's `forward`; None where nothing is faster."""
    if conv.groups == conv.in_channels > 1:
        fast_from = math.inf if max(conv.stride) > 1 else conv.kernel_size[1]
        return functools.partial(in_float32_for_training, conv.forward, fast_from)
    plain = (conv.stride, conv.dilation, conv.padding_mode, conv.groups) == ((1, 1), (1, 1), "zeros", 1)
    if amx and plain and (conv.kernel_size, conv.padding) == ((3, 3), (1, 1)):
        return functools.partial(side_by_side, conv.forward, min(conv.weight.shape[:2]))
    if plain and (conv.kernel_size, conv.padding) == ((1, 1), (0, 0)):
        return functools.partial(as_product, conv.forward, conv, ROWS_OF_PIXELS[amx])
    return None


def adapt(network: nn.Module, amx: bool) -> None:
    """Let the convolutions of a network that are slow in bfloat16 on a CPU run in the form that is faster there.

    Depthwise convolutions with a stride, or of maps narrower than their kernel, train in float32: their backward pass
    takes 2 to 30 times as long in bfloat16. 1x1 convolutions of small maps are products of matrices. With AMX, 3x3
    ones of small maps see several maps side by side, since its kernels are at their best where rows are long.

    Args:
        network: changed in place; only its `forward`s are, not its state.
        amx: whether the processor multiplies by AMX, rather than by AVX512-BF16.
    """
    for module in network.modules():
        # not what is a convolution and more, nor a copy of one that was adapted
        adaptable = type(module) is nn.Conv2d and not isinstance(module.forward, functools.partial)
        if adaptable and (form := _fast_form(module, amx)):
            module.forward = form
