"""Bringing two feature maps to one size."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def match_size(f_s: Tensor, f_t: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the larger of two maps to the size of the other.

    Args:
        f_s: student map (B, C_s, H_s, W_s).
        f_t: teacher map (B, C_t, H_t, W_t).

    Returns:
        Both maps with the smaller height and its width; as given where the sizes agree.
    """
    size_s, size_t = f_s.shape[2:], f_t.shape[2:]
    if size_s > size_t:
        return F.adaptive_avg_pool2d(f_s, size_t), f_t
    if size_s < size_t:
        return f_s, F.adaptive_avg_pool2d(f_t, size_s)
    return f_s, f_t
