"""Factors on a loss term that change with the epoch."""

from __future__ import annotations

import math


def warm_up(epoch: int, epochs: int) -> float:
    """Linear rise to 1 over the first `epochs` epochs; 1 throughout for 0.

    Args:
        epoch: from 1.
        epochs: length of the rise, >= 0.
    """
    return min(epoch / epochs, 1.0) if epochs else 1.0


def cosine_decay(epoch: int, start: int, end: int) -> float:
    """Half a cosine from 1 at epoch `start` to 0 at epoch `end`, constant before and after.

    Args:
        epoch: from 1.
        start, end: 0 <= start < end.
    """
    progress = (epoch - start) / (end - start)
    return (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2
