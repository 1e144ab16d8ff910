"""KD: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", NIPS 2014 workshop, arXiv 1503.02531.

Numbers checked against RepDistiller's `DistillKL`. Deviations: none.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .base import LogitDistiller, register
from .functional import kl_divergence

__all__ = ["KD", "DistillKL"]


class DistillKL(nn.Module):
    """T²·KL(softmax(y_t/T) ‖ softmax(y_s/T)), summed over classes, mean over the batch.

    Args:
        T: temperature > 0.
    """

    def __init__(self, T: float):
        super().__init__()
        self.T = T

    def forward(self, y_s: Tensor, y_t: Tensor) -> Tensor:
        """Loss of student logits `y_s` (B, C) against teacher logits `y_t` (B, C), a scalar."""
        return kl_divergence(y_s, y_t, self.T)


@register("kd", paper="Distilling the Knowledge in a Neural Network, NIPS 2014 workshop", r=0.1, a=0.9)
class KD(LogitDistiller):
    """-a weighs the KL divergence of the softened class probabilities (B, C).

    The term itself is the base class's, which all feature methods can add, too.
    """

    weighs: Mapping[str, str] = {"r": "cls", "a": "div"}
