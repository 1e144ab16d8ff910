"""ReviewKD: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv 2104.09044.

Numbers of the loss checked against mdistiller's `hcl_loss` and LDRLD's `hcl`. The sizes of the fusion modules, which
the official code reads from a table per pair of networks, follow from the shapes of both networks' features; they equal
the tables.

Deviations: networks with different numbers of stages, of which the tables have none, are aligned
from the deepest stage on; the first stages of the deeper one take no part. The teacher stays in evaluation mode, the
authors' updates its running statistics. Epochs count from 1, the authors' from 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Distiller, Epochs, Needs, Shapes, Step, register
from .ramps import warm_up

__all__ = ["ABF", "ReviewFusion", "ReviewKD", "hcl", "hierarchical_context_loss"]

# most channels in which maps are fused
MAX_MID_CHANNELS = 512


def hierarchical_context_loss(f_s: Tensor, f_t: Tensor) -> Tensor:
    """Mean of the squared errors at full size and pooled to 4×4, 2×2 and 1×1, with weights 1, 1/2, 1/4, 1/8.

    A pooled size that is not below the map's height is left out, and the next one takes its weight.

    Args:
        f_s: (B, C, H, W).
        f_t: of the same shape, or (B, C), which counts as a 1×1 map.

    Returns:
        A scalar: the sum divided by the sum of the weights.

    Raises:
        ValueError: the shapes differ.
    """
    if f_t.dim() == 2:
        f_t = f_t[:, :, None, None]
    if f_s.shape != f_t.shape:
        raise ValueError(f"maps of shapes {[*f_s.shape]} and {[*f_t.shape]} cannot be compared")
    loss, weight, total = F.mse_loss(f_s, f_t), 1.0, 1.0
    for side in (4, 2, 1):
        if side < f_s.shape[2]:
            weight /= 2
            total += weight
            loss = loss + weight * F.mse_loss(F.adaptive_avg_pool2d(f_s, side), F.adaptive_avg_pool2d(f_t, side))
    return loss / total


def hcl(g_s: Sequence[Tensor], g_t: Sequence[Tensor]) -> Tensor:
    """Sum of the hierarchical context losses of pairs of maps (B, C_i, H_i, W_i), a scalar."""
    return sum(hierarchical_context_loss(f_s, f_t) for f_s, f_t in zip(g_s, g_t, strict=True))


def _conv_bn(c_in: int, c_out: int, kernel_size: int) -> nn.Sequential:
    """Convolution of unchanged size, its weights drawn as officially, and batch norm."""
    conv = nn.Conv2d(c_in, c_out, kernel_size, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out))


class ABF(nn.Module):
    """Attention-based fusion of one student map with what the deeper ones gave.

    Args:
        c_in: channels of the student map.
        c_mid: channels of the fused map.
        c_out: channels of the output, the teacher's.
        size_out: height and width of the output, the teacher's.
        fuse: whether there is a deeper map.
    """

    def __init__(self, c_in: int, c_mid: int, c_out: int, size_out: tuple[int, int], fuse: bool):
        super().__init__()
        self.size_out = size_out
        self.conv1 = _conv_bn(c_in, c_mid, 1)
        self.conv2 = _conv_bn(c_mid, c_out, 3)
        self.att_conv = nn.Sequential(nn.Conv2d(2 * c_mid, 2, 1), nn.Sigmoid()) if fuse else None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Fuse a map.

        Args:
            x: the student's (B, c_in, H, W).
            residual: the deeper module's second result (B, c_mid, h, w), None for the deepest.

        Returns:
            The map to compare with the teacher's (B, c_out, *size_out), and the fused one (B, c_mid, *size_out).
        """
        x = self.conv1(x)
        if self.att_conv is not None:
            residual = F.interpolate(residual, x.shape[2:], mode="nearest")
            attention = self.att_conv(torch.cat([x, residual], dim=1))
            x = x * attention[:, :1] + residual * attention[:, 1:]
        if x.shape[2:] != self.size_out:
            x = F.interpolate(x, self.size_out, mode="nearest")
        return self.conv2(x), x


def as_map(shape: torch.Size) -> tuple[int, int, int]:
    """Channels, height and width of a feature; a vector (B, D) counts as a 1×1 map."""
    return (*shape[1:], 1, 1) if len(shape) == 2 else tuple(shape[1:])


class ReviewFusion(nn.Module):
    """The student's maps, fused from the deepest to the shallowest and brought to the teacher's shapes.

    Args:
        s_shapes, t_shapes: of the stages and, last, the pooled vector. Where the numbers differ, the last ones belong
            together and the others take no part.
    """

    def __init__(self, s_shapes: Sequence[torch.Size], t_shapes: Sequence[torch.Size]):
        super().__init__()
        s_maps, t_maps = ([as_map(shape) for shape in shapes] for shapes in (s_shapes, t_shapes))
        c_mid = min(MAX_MID_CHANNELS, s_maps[-1][0])
        self.abfs = nn.ModuleList()
        for (c_in, _, _), (c_out, height, width) in zip(reversed(s_maps), reversed(t_maps), strict=False):
            self.abfs.append(ABF(c_in, c_mid, c_out, (height, width), fuse=len(self.abfs) > 0))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Fuse the student's features (B, C_i, H_i, W_i), the vector (B, D) last.

        Returns:
            A map for each pair, in the teacher's shape and in the order of the features.
        """
        results, residual = [], None
        for abf, x in zip(self.abfs, reversed(features), strict=False):
            result, residual = abf(x[:, :, None, None] if x.dim() == 2 else x, residual)
            results.insert(0, result)
        return results


@register("ReviewKD", paper="Distilling Knowledge via Knowledge Review, CVPR 2021", r=1.0, a=0.0, b=5.0)
class ReviewKD(Distiller):
    """-a weighs the KL term, -b the review: fused student maps (B, C_i, H_i, W_i) against the teacher's.

    All stages and the pooled vector take part. The published -b is 5 for wrn_40_2 -> wrn_16_2, wrn_40_1 and ShuffleV1
    and for resnet32x4 -> resnet8x4 and ShuffleV1; 8 for resnet32x4 -> ShuffleV2; 1 for resnet110 -> resnet32; 0.6 for
    resnet56 -> resnet20.

    Args:
        shapes: sizes of the networks and the data set.
        kd_warmup: epochs over which the review rises linearly to its full weight, 0 for none

    Raises:
        ValueError: kd_warmup is negative.
    """

    needs = Needs(features="all", preact="teacher")

    def __init__(self, shapes: Shapes, kd_warmup: Epochs = 20):
        super().__init__(shapes)
        if kd_warmup < 0:
            raise ValueError(f"--kd_warmup {kd_warmup} is negative")
        self.kd_warmup = kd_warmup
        self.fusion = ReviewFusion(shapes.student[1:], shapes.teacher[1:])

    def kd(self, step: Step) -> Tensor:
        """The hierarchical context loss of the fused maps, times the warm-up factor of the epoch."""
        fused = self.fusion(step.student.features[1:])
        return warm_up(step.epoch, self.kd_warmup) * hcl(fused, step.teacher.features[-len(fused) :])
