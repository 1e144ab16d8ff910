"""FitNets: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv 1412.6550.

Numbers checked against RepDistiller's `HintLoss`. Deviations: the paper trains the lower half of the student with hints
first and distils logits afterwards; like RepDistiller, the hint is one term of a single training stage, and the
regressor has a batch norm and a ReLU.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .adapters import ConvReg
from .base import Distiller, Needs, Shapes, Step, register

__all__ = ["Hint", "HintLoss"]


class HintLoss(nn.Module):
    """Mean squared error over all elements of two features of one shape."""

    def forward(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """Loss of the regressed student feature `f_s` against `f_t`, both (B, C, H, W), a scalar."""
        return F.mse_loss(f_s, f_t)


@register("hint", paper="FitNets: Hints for Thin Deep Nets, ICLR 2015", r=1.0, a=0.0, b=100.0)
class Hint(Distiller):
    """-a weighs the KL term, -b the regression of one student stage (B, C_s, H_s, W_s) onto the teacher's.

    Args:
        shapes: sizes of the networks and the data set.
        hint_layer: the stage, 1 for the first

    Raises:
        ValueError: there is no such stage, or its maps cannot be brought to one size.
    """

    needs = Needs(features="mid")

    def __init__(self, shapes: Shapes, hint_layer: int = 2):
        super().__init__(shapes)
        stages = min(len(shapes.student), len(shapes.teacher)) - 2
        if not 1 <= hint_layer <= stages:
            raise ValueError(f"--hint_layer {hint_layer} is not a stage; these networks share stages 1 to {stages}")
        self.layer = hint_layer
        self.regress = ConvReg(shapes.student[hint_layer], shapes.teacher[hint_layer])
        self.loss = HintLoss()

    def kd(self, step: Step) -> Tensor:
        """Mean squared error between the regressed student map and the teacher's."""
        return self.loss(self.regress(step.student.features[self.layer]), step.teacher.features[self.layer])
