"""AT: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv 1612.03928.

Numbers checked against RepDistiller's `Attention`. Deviations: the paper's distance is the norm of the difference of
two maps; like its authors' code and RepDistiller, the squares are averaged over the positions, hence the weight of
1000. An odd p keeps the sign of a feature, where the paper takes absolute values. Lists of unequal length are compared
up to the end of the shorter, as in RepDistiller.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .base import Distiller, Needs, Shapes, Step, register
from .spatial import match_size

__all__ = ["Attention", "AttentionTransfer", "attention_map"]


def attention_map(f: Tensor, p: int = 2) -> Tensor:
    """Mean over the channels of f^p, flattened to a unit vector per sample: (B, C, H, W) -> (B, H·W)."""
    return F.normalize(f.pow(p).mean(1).flatten(1))


class Attention(nn.Module):
    """Mean squared difference of the attention maps of each pair of features.

    Args:
        p: power of the features.
    """

    def __init__(self, p: int = 2):
        super().__init__()
        self.p = p

    def forward(self, g_s: Sequence[Tensor], g_t: Sequence[Tensor]) -> list[Tensor]:
        """Loss of each pair of maps (B, C_s, H_s, W_s) and (B, C_t, H_t, W_t), scalars whose sum is the term."""
        return [self.at_loss(f_s, f_t) for f_s, f_t in zip(g_s, g_t, strict=False)]

    def at_loss(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """Loss of one pair, a scalar; the larger map is pooled to the size of the other first."""
        f_s, f_t = match_size(f_s, f_t)
        return F.mse_loss(attention_map(f_s, self.p), attention_map(f_t, self.p))


@register("attention", paper="Paying More Attention to Attention, ICLR 2017", r=1.0, a=0.0, b=1000.0)
class AttentionTransfer(Distiller):
    """-a weighs the KL term, -b the difference of the attention maps, summed over the stages (B, C_i, H_i, W_i).

    Where the networks differ in their number of stages, the last ones of the longer are left out.

    Args:
        shapes: sizes of the networks and the data set.
    """

    needs = Needs(features="mid")

    def __init__(self, shapes: Shapes):
        super().__init__(shapes)
        self.loss = Attention()

    def kd(self, step: Step) -> Tensor:
        """The loss summed over the stages."""
        return sum(self.loss(step.student.features[1:-1], step.teacher.features[1:-1]))
