"""Pieces that several losses share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Stands in for -inf: far below any logit, yet a difference of two of them is 0 and not NaN.
MASKED = -1e30


def log_softmax_(z: Tensor) -> Tensor:
    """Log-softmax of z over its last dimension, in z's own memory: large tensors cost more to allocate than to fill."""
    return torch.log_softmax(z, -1, out=z)


def divergence_and_gradients(log_s: Tensor, log_t: Tensor, for_teacher: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Sum of KL(t ‖ s) of log-probabilities (..., C), which are overwritten, and its gradients by their logits.

    Args:
        log_s, log_t: of student and teacher, of one type.
        for_teacher: whether the second gradient is wanted; it is None otherwise.
    """
    log_ratio = log_t - log_s
    p_t, p_s = log_t.exp_(), log_s.exp_()
    if for_teacher:
        weighted = p_t * log_ratio
        mean = weighted.sum(-1, keepdim=True)
        return mean.sum(), p_s.sub_(p_t), weighted.sub_(p_t * mean)
    return log_ratio.mul_(p_t).sum(), p_s.sub_(p_t), None


class _Divergence(torch.autograd.Function):
    """factor·T²·KL of softmaxes at temperature T over the last dimension, summed over the others.

    The gradient p_s - p_t is a by-product of the value, so that no graph is kept, and large tensors are reused in
    place: writing and reading them is what takes the time.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float, factor: float) -> Tensor:
        """A scalar of logits (..., C) of one type."""
        log_s, log_t = (log_softmax_(z / temperature) for z in (student, teacher))
        total, *gradients = divergence_and_gradients(log_s, log_t, for_teacher=ctx.needs_input_grad[1])
        ctx.save_for_backward(*gradients)
        ctx.slope = factor * temperature
        return total * (factor * temperature**2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of student and teacher logits."""
        slope = grad * ctx.slope
        return *(None if gradient is None else gradient * slope for gradient in ctx.saved_tensors), None, None


def same_type(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the wider of their types."""
    wide = torch.promote_types(student.dtype, teacher.dtype)
    return student.to(wide), teacher.to(wide)


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """T²·KL(softmax(teacher/T) ‖ softmax(student/T)), summed over the last dimension, mean over the others.

    Args:
        student: logits (..., C), receive the gradient.
        teacher: logits (..., C).
        temperature: T > 0.

    Returns:
        A scalar >= 0.
    """
    student, teacher = same_type(student, teacher)
    factor = student.shape[-1] / student.numel()
    if isinstance(temperature, Tensor):  # it may be learned: its gradient goes through the division
        scaled = student / temperature, teacher / temperature
        return _Divergence.apply(*scaled, 1.0, factor) * temperature**2
    return _Divergence.apply(student, teacher, temperature, factor)
