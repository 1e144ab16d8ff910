"""The learning rate of an epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

WARMUP_START = 0.001  # factor of the first epoch of a cosine's warm-up


class Rates:
    """Base of the schedules: a subclass gives the rate of each epoch."""

    def rate(self, epoch: int) -> float:
        """Learning rate in force during `epoch` (1-based)."""
        raise NotImplementedError

    def apply(self, optimizer: torch.optim.Optimizer, epoch: int) -> float:
        """Set the rate of `epoch` in every parameter group and return it."""
        rate = self.rate(epoch)
        for group in optimizer.param_groups:
            group["lr"] = rate
        return rate


@dataclass(frozen=True)
class Schedule(Rates):
    """Linear warm-up, then step decay, as in RepDistiller and LDRLD.

    Epochs count from 1. Before epoch `warmup_epochs` the rate is base·epoch/warmup_epochs; afterwards it is
    base·decay_rate^n with n the number of decay epochs already passed (the first lower rate is that of the epoch
    after a decay epoch).

    LDRLD's published helper does not store the base rate when the warm-up ends, so it trains at
    base·(warmup_epochs - 1)/warmup_epochs until the first decay; `official_warmup` reproduces that.

    Args:
        base: learning rate after the warm-up, > 0.
        decay_epochs: increasing epochs after which the rate drops.
        decay_rate: factor of each drop, in (0, 1].
        warmup_epochs: 0 or 1 means no warm-up.
        official_warmup: follow the published code's rate between the warm-up and the first decay.
    """

    base: float
    decay_epochs: Sequence[int] = ()
    decay_rate: float = 0.1
    warmup_epochs: int = 0
    official_warmup: bool = False

    def rate(self, epoch: int) -> float:
        """Learning rate in force during `epoch` (1-based)."""
        drops = sum(epoch > decay for decay in self.decay_epochs)
        if self.warmup_epochs > 1 and not drops:
            last = self.warmup_epochs - 1
            if epoch <= last or self.official_warmup:
                return self.base * min(epoch, last) / self.warmup_epochs
        return self.base * self.decay_rate**drops


@dataclass(frozen=True)
class CosineSchedule(Rates):
    """Half a cosine from the base rate towards a share of it, times a linear warm-up, as in tiny-transformers.

    With e epochs done, the rate is base·(end + (1 - end)·(1 + cos(π·e/epochs)) / 2), in the first `warmup_epochs` times
    a factor that grows linearly from 0.001 and would be 1 when they are done.

    Args:
        base: highest learning rate, > 0.
        epochs: length of the training.
        warmup_epochs: 0 or 1 means no warm-up.
        end: the share that the rate would reach after the last epoch, in [0, 1].
    """

    base: float
    epochs: int
    warmup_epochs: int = 0
    end: float = 0.01

    def rate(self, epoch: int) -> float:
        """Learning rate in force during `epoch` (1-based)."""
        done = epoch - 1
        cosine = (1 + math.cos(math.pi * done / self.epochs)) / 2
        rate = self.base * (self.end + (1 - self.end) * cosine)
        if self.warmup_epochs > 1 and done < self.warmup_epochs:
            rate *= WARMUP_START + (1 - WARMUP_START) * done / self.warmup_epochs
        return rate
