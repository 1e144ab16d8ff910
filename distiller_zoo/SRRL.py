"""SRRL: Yang et al., "Knowledge Distillation via Softmax Regression Representation Learning", ICLR 2021.

Follows the form in the repositories of SimKD and CTKD: the student's pooled vector goes through a 1×1 convolution with
batch norm and ReLU, and both it and what the teacher's classifier makes of it are compared with the teacher's by mean
squared error. Deviations: the paper connects the maps before the pooling. There are no official numbers to check
against; the tests hold a literal version.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from .base import Distiller, Needs, Shapes, Step, register

__all__ = ["SRRL", "Connector"]


class Connector(nn.Module):
    """1×1 convolution, batch norm and ReLU from the student's pooled vector to the teacher's.

    Args:
        s_n, t_n: lengths of the vectors.
    """

    def __init__(self, s_n: int, t_n: int):
        super().__init__()
        # a convolution over one position is this linear layer
        self.transfer = nn.Sequential(nn.Linear(s_n, t_n, bias=False), nn.BatchNorm1d(t_n), nn.ReLU())

    def forward(self, f: Tensor) -> Tensor:
        """The vector (B, t_n) of a vector (B, s_n)."""
        return self.transfer(f)


@register("srrl", paper="Softmax Regression Representation Learning, ICLR 2021", r=1.0, a=0.0, b=1.0)
class SRRL(Distiller):
    """-a weighs the KL term, -b the distances of the connected pooled vector (B, D_t) and of the logits it leads to.

    Args:
        shapes: sizes of the networks and the data set.
    """

    needs = Needs(features="last")

    def __init__(self, shapes: Shapes):
        super().__init__(shapes)
        self.connect = Connector(shapes.student[-1][1], shapes.teacher[-1][1])

    def prepare(self, teacher: nn.Module, images: Iterable) -> None:
        """Take the teacher's classifier, as buffers: it is not trained."""
        classifier = teacher.get_classifier()
        self.register_buffer("head_weight", classifier.weight.detach().clone())
        self.register_buffer("head_bias", None if classifier.bias is None else classifier.bias.detach().clone())

    def kd(self, step: Step) -> Tensor:
        """Mean squared errors of the vector and of the logits that the teacher's classifier gives for it."""
        connected = self.connect(step.student.features[-1])
        logits = F.linear(connected, self.head_weight, self.head_bias)
        return F.mse_loss(connected, step.teacher.features[-1]) + F.mse_loss(logits, step.teacher.logits)
