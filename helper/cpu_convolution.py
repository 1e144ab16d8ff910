"""Convolutions whose low-precision kernels are slow on CPUs, in other forms: same operation, other rounding.

What is slow was found by timing oneDNN's bfloat16 kernels on a processor with AMX, one operation at a time
(`benchmarks/convolution.py`). The choice depends on shapes alone, never on a clock, so that a run can be repeated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOGETHER = 16  # images that share a row of maps
TINY = 4  # width of maps whose forward pass is slow, too
SMALL, MANY_CHANNELS = 8, 128  # width of maps of which only the backward pass is slow, and only with many channels


def in_float32_for_training(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Run an operation in float32 where gradients are wanted, and as it is where not.

    Args:
        forward: of a module under autocast.
        x: its input, any shape.
    """
    if not torch.is_grad_enabled():
        return forward(x)
    with torch.autocast(x.device.type, enabled=False):
        return forward(x.float()).to(x.dtype)


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


def adapt(network: nn.Module) -> None:
    """Let the convolutions of a network that are slow in bfloat16 on a CPU run in the form that is faster there.

    Strided depthwise convolutions train in float32: their backward pass takes six times as long in bfloat16. 3x3
    convolutions of small maps see several maps side by side: oneDNN is at its best where rows are long.

    Args:
        network: changed in place; only its `forward`s are, not its state.
    """
    for module in network.modules():
        if type(module) is not nn.Conv2d or isinstance(module.forward, functools.partial):
            continue  # not what is a convolution and more, nor a copy of one that was adapted
        if module.groups == module.in_channels > 1 and max(module.stride) > 1:
            module.forward = functools.partial(in_float32_for_training, module.forward)
        plain = (module.kernel_size, module.stride, module.padding, module.dilation, module.padding_mode, module.groups)
        if plain == ((3, 3), (1, 1), (1, 1), (1, 1), "zeros", 1):
            module.forward = functools.partial(side_by_side, module.forward, min(module.weight.shape[:2]))
