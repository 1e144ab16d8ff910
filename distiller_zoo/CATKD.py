"""CAT-KD: Guo et al., "Class Attention Transfer Based Knowledge Distillation", CVPR 2023, arXiv 2304.12777.

Numbers checked against the official `CAT_loss` and its binarisation. Deviations: the official code keeps converted
copies of the networks; here the classifier is applied to the map as it is, its bias left out as there.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .base import Distiller, Needs, Shapes, Step, register
from .heads import CamNetwork

__all__ = ["CATKD", "CATLoss"]


class CATLoss(nn.Module):
    """Mean squared error of pooled class activation maps.

    Args:
        resolution: side of the maps after pooling.
        normalize: compare the maps' directions, each map over space.
        binarize: replace the teacher's map by 1 where it is above the mean of its absolute values, else 0.
    """

    def __init__(self, resolution: int = 2, normalize: bool = False, binarize: bool = False):
        super().__init__()
        self.resolution, self.normalize, self.binarize = resolution, normalize, binarize

    def pooled(self, cams: Tensor) -> Tensor:
        """Maps (B, C, r, r), normalised where asked for, of maps (B, C, H, W)."""
        cams = F.adaptive_avg_pool2d(cams, self.resolution)
        return F.normalize(cams.flatten(2), dim=2).view_as(cams) if self.normalize else cams

    def forward(self, cam_s: Tensor, cam_t: Tensor) -> Tensor:
        """Loss of student maps (B, C, H_s, W_s) against teacher maps (B, C, H_t, W_t), a scalar."""
        if self.binarize:
            cam_t = (cam_t > cam_t.abs().mean((2, 3), keepdim=True)).to(cam_t)
        return F.mse_loss(self.pooled(cam_s), self.pooled(cam_t))


@register("catkd", paper="Class Attention Transfer, CVPR 2023", r=1.0, a=0.0, b=15.0)
class CATKD(Distiller):
    """-a weighs the KL term, -b the distance of the class activation maps (B, C, H, W) of both networks.

    The published weight and options belong to resnet32x4 -> resnet8x4.

    Args:
        shapes: sizes of the networks and the data set.
        cam_resolution: side of the maps after pooling
        cam_normalize: compare directions of maps
        cam_binarize: compare with the teacher's maps above and below their means

    Raises:
        ValueError: cam_resolution is below 1.
    """

    needs = Needs(features="mid")

    def __init__(
        self, shapes: Shapes, cam_resolution: int = 2, cam_normalize: bool = False, cam_binarize: bool = False
    ):
        super().__init__(shapes)
        if cam_resolution < 1:
            raise ValueError(f"--cam_resolution {cam_resolution} must be at least 1")
        self.loss = CATLoss(cam_resolution, cam_normalize, cam_binarize)

    def wrap_student(self, student: nn.Module, teacher: nn.Module) -> nn.Module:
        """The student with its classifier applied before the pooling, its bias zero for good."""
        wrapped, bias = CamNetwork(student), student.get_classifier().bias
        if bias is not None:
            bias.requires_grad_(False).zero_()
        return wrapped

    def wrap_teacher(self, teacher: nn.Module) -> nn.Module:
        """The teacher with its classifier applied before the pooling."""
        return CamNetwork(teacher)

    def kd(self, step: Step) -> Tensor:
        """The distance of the class activation maps."""
        return self.loss(step.student.features[-2], step.teacher.features[-2])
