"""Trainable layers between a student's features and a teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvReg(nn.Module):
    """Convolution, batch norm and ReLU that bring a student map to the size of a teacher map (FitNets; RepDistiller).

    A map of twice the teacher's side is reduced by a 3×3 convolution of stride 2, one of half its side is enlarged by a
    4×4 transposed convolution; any other larger map by a convolution without padding whose kernel covers the
    difference (1×1 for equal sides).

    Args:
        s_shape, t_shape: (B, C, H, W) of the student's and the teacher's map.
        use_relu: end with a ReLU.

    Raises:
        ValueError: a shape is not that of a map, or the student's map is smaller but not half the teacher's, in height
            or width.
    """

    def __init__(self, s_shape: torch.Size, t_shape: torch.Size, use_relu: bool = True):
        super().__init__()
        if len(s_shape) != 4 or len(t_shape) != 4:
            raise ValueError(f"a map is needed on both sides, not features of shapes {[*s_shape]} and {[*t_shape]}")
        (_, s_c, s_h, s_w), (_, t_c, t_h, t_w) = s_shape, t_shape
        if (s_h, s_w) == (2 * t_h, 2 * t_w):
            self.conv = nn.Conv2d(s_c, t_c, kernel_size=3, stride=2, padding=1)
        elif (s_h * 2, s_w * 2) == (t_h, t_w):
            self.conv = nn.ConvTranspose2d(s_c, t_c, kernel_size=4, stride=2, padding=1)
        elif s_h >= t_h and s_w >= t_w:
            self.conv = nn.Conv2d(s_c, t_c, kernel_size=(1 + s_h - t_h, 1 + s_w - t_w))
        else:
            raise ValueError(f"a student map of {s_h}×{s_w} cannot be brought to the teacher's size {t_h}×{t_w}")
        self.bn = nn.BatchNorm2d(t_c)
        self.use_relu = use_relu

    def forward(self, x: Tensor) -> Tensor:
        """Map a student feature (B, C_s, H_s, W_s) to (B, C_t, H_t, W_t)."""
        x = self.bn(self.conv(x))
        return F.relu(x) if self.use_relu else x
