"""NST: Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", arXiv 1707.01219.

Numbers checked against RepDistiller's `NSTLoss`, which broadcasts every channel against every other over all positions;
here a product of matrices does. Deviations: none from RepDistiller, whose kernel is the polynomial one of degree 2
without a constant, and which compares lists of unequal length up to the end of the shorter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .base import Distiller, Needs, Shapes, Step, register
from .spatial import match_size

__all__ = ["NSTLoss", "NeuronSelectivityTransfer", "mean_squared_product"]


def mean_squared_product(a: Tensor, b: Tensor) -> Tensor:
    """Mean of (a_i·b_j)² over the batch and all pairs of channels, a scalar.

    Args:
        a: vectors of the channels (B, C_a, N).
        b: the same of another map (B, C_b, N).
    """
    pairs = a.shape[1] * b.shape[1]
    if pairs <= a.shape[2] ** 2:
        return (a @ b.mT).square().mean()
    # Σ_ij (a_i·b_j)² is also the inner product of AᵀA and BᵀB, which are smaller where channels outnumber positions
    return ((a.mT @ a) * (b.mT @ b)).sum() / (len(a) * pairs)


class NSTLoss(nn.Module):
    """Squared maximum mean discrepancy between the channels' normalised maps for each pair of features."""

    def forward(self, g_s: Sequence[Tensor], g_t: Sequence[Tensor]) -> list[Tensor]:
        """Loss of each pair of maps (B, C_s, H_s, W_s) and (B, C_t, H_t, W_t), scalars whose sum is the term."""
        return [self.nst_loss(f_s, f_t) for f_s, f_t in zip(g_s, g_t, strict=False)]

    def nst_loss(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """Loss of one pair, a scalar; the larger map is pooled to the size of the other first."""
        s, t = (F.normalize(f.flatten(2), dim=2) for f in match_size(f_s, f_t))
        return mean_squared_product(t, t) + mean_squared_product(s, s) - 2 * mean_squared_product(s, t)


@register("nst", paper="Like What You Like: Neuron Selectivity Transfer, 2017", r=1.0, a=0.0, b=50.0)
class NeuronSelectivityTransfer(Distiller):
    """-a weighs the KL term, -b the discrepancy of the channels' maps, summed over the stages (B, C_i, H_i, W_i).

    Where the networks differ in their number of stages, the last ones of the longer are left out.

    Args:
        shapes: sizes of the networks and the data set.
    """

    needs = Needs(features="mid")

    def __init__(self, shapes: Shapes):
        super().__init__(shapes)
        self.loss = NSTLoss()

    def kd(self, step: Step) -> Tensor:
        """The loss summed over the stages."""
        return sum(self.loss(step.student.features[1:-1], step.teacher.features[1:-1]))
