"""SP: Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv 1907.09682.

Numbers checked against RepDistiller's `Similarity`. Deviations: a loss is a scalar here, in RepDistiller of shape (1,).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .base import Distiller, Needs, Shapes, Step, register

__all__ = ["Similarity", "SimilarityPreserving", "similarity_matrix"]


def similarity_matrix(f: Tensor) -> Tensor:
    """Inner products of the samples' flattened features, every row made a unit vector: (B, ...) -> (B, B)."""
    f = f.flatten(1)
    return F.normalize(f @ f.T)


class Similarity(nn.Module):
    """Mean squared difference of the batch's similarity matrices for each pair of features."""

    def forward(self, g_s: Sequence[Tensor], g_t: Sequence[Tensor]) -> list[Tensor]:
        """Loss of each pair of features (B, ...), whose other dimensions may differ, scalars whose sum is the term."""
        return [self.similarity_loss(f_s, f_t) for f_s, f_t in zip(g_s, g_t, strict=False)]

    def similarity_loss(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """Loss of one pair, a scalar."""
        return F.mse_loss(similarity_matrix(f_s), similarity_matrix(f_t))


@register("similarity", paper="Similarity-Preserving Knowledge Distillation, ICCV 2019", r=1.0, a=0.0, b=3000.0)
class SimilarityPreserving(Distiller):
    """-a weighs the KL term, -b the difference of the similarities within the batch at the last stage (B, C, H, W).

    Args:
        shapes: sizes of the networks and the data set.
    """

    needs = Needs(features="mid")

    def __init__(self, shapes: Shapes):
        super().__init__(shapes)
        self.loss = Similarity()

    def kd(self, step: Step) -> Tensor:
        """The loss at the last stage."""
        return self.loss([step.student.features[-2]], [step.teacher.features[-2]])[0]
