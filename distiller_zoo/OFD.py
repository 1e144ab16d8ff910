"""OFD: Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, arXiv 1904.01866.

Numbers checked against mdistiller's `OFD.py` (margins, `feat_loss`, connectors, `ofd_loss`), whose three cases of a
squared error are written as one here: a teacher value below the margin counts as the margin.

Deviations: the teacher's batch norms stay in evaluation mode, the authors and mdistiller train with batch statistics.
A batch-norm weight of exactly 0, at which the official margin divides by zero, gives the limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Distiller, Needs, Shapes, Step, register

__all__ = ["OFD", "FeatureOverhaul", "feat_loss", "margins"]


def margins(bn_weight: Tensor, bn_bias: Tensor) -> Tensor:
    """Mean of the negative part of what a batch norm gives, taken as N(bias, weight²), channel by channel.

    Where that part has a probability of at most 0.001, it is -3·|weight| instead.

    Args:
        bn_weight, bn_bias: of the batch norm, (C,).

    Returns:
        (C,) <= 0, computed in float64 and rounded to float32 as officially.
    """
    std, mean = bn_weight.detach().double().abs(), bn_bias.detach().double()
    ratio = mean / std
    negative = torch.special.ndtr(-ratio)
    density = torch.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi)
    # 0/0, the ratio of a channel that is always 0, compares as false
    return torch.where(negative > 0.001, mean - std * density / negative, -3 * std).float()


def feat_loss(source: Tensor, target: Tensor, margin: Tensor) -> Tensor:
    """Partial L2: no loss where the teacher is not active and the student lies at or below it.

    Args:
        source: the connected student map before its activation (B, C, H, W), receives the gradient.
        target: the teacher's, of the same shape.
        margin: <= 0, which replaces what is below it in `target`; (1, C, 1, 1).

    Returns:
        A scalar: squared errors summed over channels and pixels, mean over the batch.
    """
    raised = torch.maximum(target, margin.to(target))
    counts = (source > raised) | (target > 0)
    return torch.where(counts, (source - raised) ** 2, 0.0).sum() / len(source)


def _connector(c_in: int, c_out: int, kernel_size: int) -> nn.Sequential:
    """Convolution of unchanged size without bias, weights from N(0, 2 / (k²·c_out)), and batch norm."""
    conv = nn.Conv2d(c_in, c_out, kernel_size, padding=kernel_size // 2, bias=False)
    nn.init.normal_(conv.weight, std=math.sqrt(2 / (kernel_size**2 * c_out)))
    return nn.Sequential(conv, nn.BatchNorm2d(c_out))


class OFD(nn.Module):
    """Partial L2 of every pair of maps, halved for each step away from the deepest.

    Args:
        s_channels, t_channels: channels of the maps of student and teacher, shallowest first. Where the numbers differ,
            the last ones belong together.
        kernel_size: of the connectors, odd.
    """

    def __init__(self, s_channels: Sequence[int], t_channels: Sequence[int], kernel_size: int = 1):
        super().__init__()
        pairs = list(zip(reversed(s_channels), reversed(t_channels), strict=False))[::-1]
        self.connectors = nn.ModuleList(_connector(c_s, c_t, kernel_size) for c_s, c_t in pairs)
        for i, (_, c_t) in enumerate(pairs):
            self.register_buffer(f"margin{i}", torch.zeros(1, c_t, 1, 1), persistent=False)

    @torch.no_grad()
    def set_margins(self, norms: Sequence[nn.BatchNorm2d]) -> None:
        """Take the margins from the teacher's last batch norm of each stage, shallowest first.

        Raises:
            ValueError: they do not fit the teacher's maps.
        """
        buffers = [self.get_buffer(f"margin{i}") for i in range(len(self.connectors))]
        norms = norms[-len(buffers) :]
        given, needed = [norm.num_features for norm in norms], [margin.shape[1] for margin in buffers]
        if given != needed:
            raise ValueError(f"batch norms of {given} channels do not fit maps of {needed} channels")
        for margin, norm in zip(buffers, norms, strict=True):
            margin.copy_(margins(norm.weight, norm.bias).view_as(margin))

    def forward(self, g_s: Sequence[Tensor], g_t: Sequence[Tensor]) -> Tensor:
        """Loss, a scalar, of maps before their activation.

        Args:
            g_s: the student's (B, C_i, H_i, W_i), receive the gradient.
            g_t: the teacher's; they are average-pooled to the student's size.
        """
        n, loss = len(self.connectors), 0.0
        for i, (connect, f_s, f_t) in enumerate(zip(self.connectors, g_s[-n:], g_t[-n:], strict=True)):
            target = F.adaptive_avg_pool2d(f_t, f_s.shape[2:])
            loss = loss + feat_loss(connect(f_s), target, self.get_buffer(f"margin{i}")) / 2 ** (n - i - 1)
        return loss


@register("ofd", paper="A Comprehensive Overhaul of Feature Distillation, ICCV 2019", r=1.0, a=0.0, b=1e-3)
class FeatureOverhaul(Distiller):
    """-a weighs the KL term, -b the partial L2 of all stages (B, C_i, H_i, W_i) before their last activation.

    The published -b is 1e-3 for CIFAR-100 and 1e-4 for ImageNet. The teacher must name the batch norm before the
    activation of each stage, which the ShuffleNets here cannot.

    Args:
        shapes: sizes of the networks and the data set.

    Raises:
        ValueError: (in `prepare`) the teacher has no such batch norms.
    """

    needs = Needs(features="mid", preact=True)

    def __init__(self, shapes: Shapes):
        super().__init__(shapes)
        s_channels, t_channels = ([shape[1] for shape in side[1:-1]] for side in (shapes.student, shapes.teacher))
        self.loss = OFD(s_channels, t_channels)
        self.prepared = False

    def prepare(self, teacher: nn.Module, images: Iterable) -> None:
        """Read the margins off the frozen teacher; call it once before training.

        Raises:
            ValueError: the teacher does not tell the batch norm before the activation of each stage.
        """
        try:
            norms = teacher.get_bn_before_relu()
        except (AttributeError, NotImplementedError):
            name = type(getattr(teacher, "deployed", teacher)).__name__
            raise ValueError(f"the teacher, {name}, has no single batch norm before the ReLU of each stage") from None
        if len(norms) != len(self.shapes.teacher) - 2:
            raise ValueError(f"the teacher names {len(norms)} batch norms for {len(self.shapes.teacher) - 2} stages")
        self.loss.set_margins(norms)
        self.prepared = True

    def kd(self, step: Step) -> Tensor:
        """The partial L2 of all pairs of stages."""
        if not self.prepared:
            raise RuntimeError("call prepare(teacher) before the first step: the margins are the teacher's")
        return self.loss(step.student.features[1:-1], step.teacher.features[1:-1])
