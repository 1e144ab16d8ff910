"""DIST: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv 2205.10536.

Numbers checked against the official `lib/models/losses/dist_kd.py` (image_classification_sota).

Deviations: none. The factor T² is the official code's; the paper's pseudo-code has none.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from .base import LogitDistiller, LogitPair, register

__all__ = ["DIST", "StrongerTeacher", "pearson"]


def pearson(x: Tensor, y: Tensor) -> Tensor:
    """Pearson correlation of matching rows of two matrices (N, M): (N,). A constant row counts as uncorrelated."""
    x, y = (z - z.mean(dim=1, keepdim=True) for z in (x, y))
    return (x * y).sum(dim=1) / (x.norm(dim=1) * y.norm(dim=1) + 1e-8)


class DIST(nn.Module):
    """beta·inter + gamma·intra: how far the class probabilities of both networks are from being correlated.

    Args:
        beta: weight of the relation among the classes of a sample.
        gamma: weight of the relation among the samples of the batch, class by class.
        tau: temperature > 0; both terms carry its square.
    """

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, tau: float = 1.0):
        super().__init__()
        self.beta, self.gamma, self.tau = beta, gamma, tau

    @staticmethod
    def terms(z_s: Tensor, z_t: Tensor, tau: float | Tensor) -> tuple[Tensor, Tensor]:
        """The unweighted terms inter and intra.

        Args:
            z_s, z_t: logits (B, C) of student and teacher. With B = 1 there is no relation among samples: intra is then
                the constant tau², without gradient.
            tau: temperature > 0.

        Returns:
            Scalars: 1 minus the mean correlation of the rows, and of the columns, times tau².
        """
        p_s, p_t = (F.softmax(z / tau, dim=1) for z in (z_s, z_t))
        inter = 1 - pearson(p_s, p_t).mean()
        intra = 1 - pearson(p_s.T, p_t.T).mean()
        return inter * tau**2, intra * tau**2

    def forward(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        """Loss of student logits `z_s` (B, C) against teacher logits `z_t` (B, C), a scalar."""
        inter, intra = self.terms(z_s, z_t, self.tau)
        return self.beta * inter + self.gamma * intra


@register("dist", paper="Knowledge Distillation from A Stronger Teacher, NeurIPS 2022", r=1.0, a=2.0, b=2.0)
class StrongerTeacher(LogitDistiller):
    """-a weighs the relation among the classes of a sample, -b the relation among the samples of the batch.

    Both compare class probabilities (B, C) by correlation instead of value. The published temperature is 4 for
    CIFAR-100 and 1 for ImageNet. A batch of one image has no relation among samples and adds a constant for -b.
    """

    one_temperature = True
    weighs: Mapping[str, str] = {"r": "cls", "a": "inter", "b": "intra"}

    def logit_terms(self, pair: LogitPair) -> dict[str, Tensor]:
        """The terms `inter` and `intra`."""
        inter, intra = DIST.terms(pair.student, pair.teacher, pair.temperature)
        return {"inter": inter, "intra": intra}
