"""AB: Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons", AAAI 2019.

arXiv 1811.03233. Numbers checked against RepDistiller's `ABLoss`. Deviations: none at the published weight, but that
RepDistiller ignores -b, here it scales the loss of the stage relative to its published value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .adapters import ConvReg
from .base import Distiller, Epochs, Needs, Shapes, Stage, Step, register

__all__ = ["ABLoss", "ActivationBoundaries"]


class ABLoss(nn.Module):
    """Squared hinge that puts the student's pre-activations on the teacher's side of zero, by a margin.

    Args:
        feat_num: number of maps n; map i (from 0) is weighted by 2^(i - n + 1).
        margin: m > 0.
    """

    def __init__(self, feat_num: int, margin: float = 1.0):
        super().__init__()
        self.weights = [2.0 ** (i - feat_num + 1) for i in range(feat_num)]
        self.margin = margin

    def hinge(self, source: Tensor, target: Tensor) -> Tensor:
        """Sum of (s + m)² where the teacher is off and s > -m, and of (s - m)² where it is on and s <= m."""
        m = self.margin
        wrong_on = (source + m).square() * ((source > -m) & (target <= 0))
        wrong_off = (source - m).square() * ((source <= m) & (target > 0))
        return (wrong_on + wrong_off).sum()

    def forward(self, g_s: Sequence[Tensor], g_t: Sequence[Tensor]) -> list[Tensor]:
        """Losses of the maps `g_s` against `g_t`, both (B, C_i, H_i, W_i); their sum is the loss."""
        batch = g_s[0].shape[0]
        pairs = zip(self.weights, g_s, g_t, strict=True)
        return [weight * self.hinge(s, t) / batch / 1000 * 3 for weight, s, t in pairs]


def connector(s_shape: torch.Size, t_shape: torch.Size) -> nn.Module:
    """What brings a student's pre-activation (B, C_s, H_s, W_s) to the teacher's size: nothing where the two agree."""
    return nn.Identity() if s_shape[1:] == t_shape[1:] else ConvReg(s_shape, t_shape, use_relu=False)


@register("abound", paper="Distillation of Activation Boundaries, AAAI 2019", r=1.0, a=0.0, b=1.0)
class ActivationBoundaries(Distiller):
    """-b scales the loss of a first stage, which trains the student up to its last map (B, C, H, W), and connectors.

    Afterwards the student is trained by -r and -a (the KL term) alone.

    Args:
        shapes: sizes of the networks and the data set.
        init_epochs: epochs of the first stage

    Raises:
        ValueError: the maps cannot be brought to one size, or init_epochs is below 1.
    """

    needs = Needs(features="mid", preact=True)
    weighs: Mapping[str, str] = {"r": "cls", "a": "div", "b": "init"}

    def __init__(self, shapes: Shapes, init_epochs: Epochs = 30):
        super().__init__(shapes)
        if init_epochs < 1:
            raise ValueError(f"--init_epochs {init_epochs} must be at least 1")
        self.init_epochs = init_epochs
        pairs = list(zip(shapes.student[1:-1], shapes.teacher[1:-1], strict=False))
        self.connectors = nn.ModuleList(connector(s, t) for s, t in pairs)
        self.loss = ABLoss(len(pairs))

    def feature_terms(self, step: Step) -> dict[str, Tensor]:
        """None: the boundaries are learned in the first stage only."""
        return {}

    def boundaries(self, step: Step) -> Tensor:
        """The loss of the first stage."""
        maps = [connect(f) for connect, f in zip(self.connectors, step.student.features[1:-1], strict=False)]
        return sum(self.loss(maps, step.teacher.features[1 : len(maps) + 1]))

    def stages(self, student: nn.Module) -> list[Stage]:
        """The student's feature modules and the connectors learn the teacher's boundaries."""
        return [Stage("init", self.init_epochs, (student.get_feat_modules(), self.connectors), self.boundaries)]
