"""PKT: Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018.

arXiv 1803.10837. Numbers checked against RepDistiller's `PKT`. Deviations: like RepDistiller, the divergence is
averaged over all B² pairs, where the paper sums it, hence the weight of 30000; RepDistiller sets features that are not
a number to 0, here they reach the loss, and a sample whose features are all 0 has a finite gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import Distiller, Needs, Shapes, Step, register

__all__ = ["PKT", "ProbabilisticKnowledgeTransfer", "neighbour_probabilities"]

EPS = 1e-7


def neighbour_probabilities(f: Tensor) -> Tensor:
    """Cosine similarities of features (B, D), brought to [0, 1] and divided by the sum of their row: (B, B)."""
    f = f / (torch.linalg.vector_norm(f, dim=1, keepdim=True) + EPS)
    similarity = (f @ f.T + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)


class PKT(nn.Module):
    """Kullback-Leibler divergence between the samples' similarities, a mean over all pairs of the batch."""

    def forward(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """Loss of features (B, D_s) against (B, D_t), a scalar."""
        p_s, p_t = neighbour_probabilities(f_s), neighbour_probabilities(f_t)
        return (p_t * ((p_t + EPS) / (p_s + EPS)).log()).mean()


@register("pkt", paper="Probabilistic Knowledge Transfer, ECCV 2018", r=1.0, a=0.0, b=30000.0)
class ProbabilisticKnowledgeTransfer(Distiller):
    """-a weighs the KL term, -b the divergence of the similarities of the pooled features (B, D_s) and (B, D_t).

    Args:
        shapes: sizes of the networks and the data set.
    """

    needs = Needs(features="last")

    def __init__(self, shapes: Shapes):
        super().__init__(shapes)
        self.loss = PKT()

    def kd(self, step: Step) -> Tensor:
        """The loss of the pooled features."""
        return self.loss(step.student.features[-1], step.teacher.features[-1])
