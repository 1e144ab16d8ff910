"""VID: Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019, arXiv 1904.05835.

Numbers checked against RepDistiller's `VIDLoss`. Deviations: none from RepDistiller, which compares networks of unequal
numbers of stages up to the last stage of the shorter. The loss can fall below zero, once a variance is below 1.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Distiller, Needs, Shapes, Step, register
from .spatial import match_size

__all__ = ["VIDLoss", "VariationalInformation"]


class VIDLoss(nn.Module):
    """Negative log-likelihood, up to a constant, of a teacher map under a Gaussian that the student predicts.

    A network of three 1×1 convolutions predicts the mean from the student's map; the variance is learned per channel.

    Args:
        num_input_channels: C_s of the student's map.
        num_mid_channel: channels inside the network.
        num_target_channels: C_t of the teacher's map.
        init_pred_var: variance at the start, above eps.
        eps: lower bound of the variance.

    Raises:
        ValueError: init_pred_var is not above eps.
    """

    def __init__(
        self,
        num_input_channels: int,
        num_mid_channel: int,
        num_target_channels: int,
        init_pred_var: float = 5.0,
        eps: float = 1e-5,
    ):
        super().__init__()
        if init_pred_var <= eps:
            raise ValueError(f"the initial variance {init_pred_var} is not above its bound {eps}")
        widths = (num_input_channels, num_mid_channel, num_mid_channel, num_target_channels)
        first, second, third = (nn.Conv2d(i, o, kernel_size=1, bias=False) for i, o in pairwise(widths))
        self.regressor = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        # the value whose softplus is the wanted variance
        self.log_scale = nn.Parameter(torch.full((num_target_channels,), math.log(math.expm1(init_pred_var - eps))))
        self.eps = eps

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Loss of a student map (B, C_s, H_s, W_s) against the teacher's (B, C_t, H_t, W_t), a scalar.

        The larger map is pooled to the size of the other first.
        """
        input, target = match_size(input, target)
        mean = self.regressor(input)
        variance = (F.softplus(self.log_scale) + self.eps).view(1, -1, 1, 1)
        return 0.5 * ((mean - target).square() / variance + variance.log()).mean()


@register("vid", paper="Variational Information Distillation, CVPR 2019", r=1.0, a=0.0, b=1.0)
class VariationalInformation(Distiller):
    """-a weighs the KL term, -b the likelihood loss of the teacher's maps, summed over the stages (B, C_i, H_i, W_i).

    Where the networks differ in their number of stages, the last ones of the longer are left out.

    Args:
        shapes: sizes of the networks and the data set.
    """

    needs = Needs(features="mid")

    def __init__(self, shapes: Shapes):
        super().__init__(shapes)
        channels = [(s[1], t[1]) for s, t in zip(shapes.student[1:-1], shapes.teacher[1:-1], strict=False)]
        self.losses = nn.ModuleList(VIDLoss(c_s, c_t, c_t) for c_s, c_t in channels)

    def kd(self, step: Step) -> Tensor:
        """The loss summed over the stages."""
        stages = zip(self.losses, step.student.features[1:-1], step.teacher.features[1:-1], strict=False)
        return sum(loss(f_s, f_t) for loss, f_s, f_t in stages)
