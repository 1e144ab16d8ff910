"""Factors on a loss term that change with the epoch.

The epoch is a number, or a 0-d tensor within compiled code, which would be compiled anew for each number. So is the
factor.
"""

from __future__ import annotations

import math

from torch import Tensor

Epoch = int | Tensor


def between(value: float | Tensor, low: float, high: float) -> float | Tensor:
    """The value, held between two others."""
    return value.clamp(low, high) if isinstance(value, Tensor) else min(max(value, low), high)


def half_cosine(share: float | Tensor) -> float | Tensor:
    """Half a cosine from 1 at 0 to 0 at 1, constant before and after."""
    angle = math.pi * between(share, 0.0, 1.0)
    return (1 + (angle.cos() if isinstance(angle, Tensor) else math.cos(angle))) / 2


def warm_up(epoch: Epoch, epochs: int) -> float | Tensor:
    """Linear rise to 1 over the first `epochs` epochs; 1 throughout for 0.

    Args:
        epoch: from 1.
        epochs: length of the rise, >= 0.
    """
    return between(epoch / epochs, 0.0, 1.0) if epochs else 1.0


def cosine_decay(epoch: Epoch, start: int, end: int) -> float | Tensor:
    """Half a cosine from 1 at epoch `start` to 0 at epoch `end`, constant before and after.

    Args:
        epoch: from 1.
        start, end: 0 <= start < end.
    """
    return half_cosine((epoch - start) / (end - start))
