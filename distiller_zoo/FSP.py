"""FSP: Yim et al., "A Gift from Knowledge Distillation", CVPR 2017.

Numbers checked against RepDistiller's `FSP`. Deviations: none at the published weight; RepDistiller ignores -b, here it
scales the loss of the stage relative to its published value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from .base import Distiller, Epochs, Needs, Shapes, Stage, Step, register
from .spatial import match_size

__all__ = ["FSP", "SolutionFlow"]


class FSP(nn.Module):
    """Mean squared difference of the matrices of two networks that tell how each map flows into the next.

    Args:
        s_shapes, t_shapes: (B, C_i, H_i, W_i) of all maps of the student and the teacher, in order.

    Raises:
        ValueError: the networks differ in the number of maps or in the channels of one.
    """

    def __init__(self, s_shapes: Sequence[torch.Size], t_shapes: Sequence[torch.Size]):
        super().__init__()
        s_channels, t_channels = ([shape[1] for shape in shapes] for shapes in (s_shapes, t_shapes))
        if s_channels != t_channels:
            raise ValueError(
                f"the flow matrices need equal channels in every map, but the student has {s_channels} and the teacher "
                f"{t_channels}"
            )

    def flows(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Per consecutive maps, the larger pooled: (B, C_i, C_i+1) means over space of the products of channels."""
        sized = [match_size(bottom, top) for bottom, top in pairwise(maps)]
        return [torch.einsum("bchw,bdhw->bcd", a, b) / a[0, 0].numel() for a, b in sized]

    def forward(self, g_s: Sequence[Tensor], g_t: Sequence[Tensor]) -> list[Tensor]:
        """A loss per consecutive pair of the maps `g_s` and `g_t`; their sum is the loss."""
        return [(s - t).square().mean() for s, t in zip(self.flows(g_s), self.flows(g_t), strict=True)]


@register("fsp", paper="A Gift from Knowledge Distillation, CVPR 2017", r=1.0, a=0.0, b=50.0)
class SolutionFlow(Distiller):
    """-b scales the loss of a first stage, which trains the student up to its last map (B, C, H, W).

    Afterwards the student is trained by -r and -a (the KL term) alone.

    Args:
        shapes: sizes of the networks and the data set.
        init_epochs: epochs of the first stage

    Raises:
        ValueError: the networks' channels differ, or init_epochs is below 1.
    """

    needs = Needs(features="all")
    weighs: Mapping[str, str] = {"r": "cls", "a": "div", "b": "init"}

    def __init__(self, shapes: Shapes, init_epochs: Epochs = 30):
        super().__init__(shapes)
        if init_epochs < 1:
            raise ValueError(f"--init_epochs {init_epochs} must be at least 1")
        self.init_epochs = init_epochs
        self.loss = FSP(shapes.student[:-1], shapes.teacher[:-1])

    def feature_terms(self, step: Step) -> dict[str, Tensor]:
        """None: the flow is learned in the first stage only."""
        return {}

    def flow(self, step: Step) -> Tensor:
        """The loss of the first stage."""
        return sum(self.loss(step.student.features[:-1], step.teacher.features[:-1]))

    def stages(self, student: nn.Module) -> list[Stage]:
        """The student's feature modules learn the teacher's flow."""
        return [Stage("init", self.init_epochs, (student.get_feat_modules(),), self.flow)]
