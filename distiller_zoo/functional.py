"""Pieces that several losses share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

# Stands in for -inf: far below any logit, yet a difference of two of them is 0 and not NaN.
MASKED = -1e30


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """T²·KL(softmax(teacher/T) ‖ softmax(student/T)), summed over the last dimension, mean over the others.

    Args:
        student: logits (..., C), receive the gradient.
        teacher: logits (..., C).
        temperature: T > 0.

    Returns:
        A scalar >= 0.
    """
    log_s = F.log_softmax(student / temperature, dim=-1)
    log_t = F.log_softmax(teacher / temperature, dim=-1)
    total = F.kl_div(log_s, log_t, reduction="sum", log_target=True)
    return total * temperature**2 * student.shape[-1] / student.numel()


def kl_divergence_without(
    student: Tensor, teacher: Tensor, excluded: Tensor, temperature: float | Tensor = 1.0
) -> Tensor:
    """`kl_divergence` over the classes that are not excluded, each side renormalised over them.

    Args:
        student, teacher: logits (B, C).
        excluded: (B, k) classes to leave out of each sample, k < C.
        temperature: T > 0.

    Returns:
        A scalar >= 0.
    """
    return kl_divergence(student.scatter(1, excluded, MASKED), teacher.scatter(1, excluded, MASKED), temperature)
