"""Pieces that several losses share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Stands in for -inf: far below any logit, yet a difference of two of them is 0 and not NaN.
_MASKED = -1e30


def divergence_and_gradients(
    student: Tensor, teacher: Tensor, for_teacher: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """KL(t ‖ s) of softmaxes, of shape (...), and its gradients by the logits.

    Args:
        student, teacher: logits (..., C) of one type, overwritten, since large tensors cost more to allocate than to
            fill. Two tensors rather than one of both: a compiler then fuses all of this into loops over the rows.
        for_teacher: whether the second gradient is wanted; it is None otherwise.
    """
    weighted = teacher - student
    largest = teacher.amax(-1) - student.amax(-1)
    p_s, p_t = torch.softmax(student, -1, out=student), torch.softmax(teacher, -1, out=teacher)
    # Σ p_t·(log p_t - log p_s), log p = z - log Σ exp(z), the latter from where p is largest: unlike log-softmax and
    # its exponential, this takes one exponential of each logit
    mean = weighted.mul_(p_t).sum(-1)
    rows = (p_t.amax(-1) / p_s.amax(-1)).log_().add_(mean - largest)
    grad_t = weighted.addcmul_(p_t, mean.unsqueeze(-1), value=-1) if for_teacher else None
    return rows, p_s.sub_(p_t), grad_t


class _Divergence(torch.autograd.Function):
    """KL of softmaxes at temperature T over the last dimension.

    The gradient p_s - p_t is a by-product of the value, so that no graph is kept, and large tensors are reused in
    place: writing and reading them is what takes the time.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """(...,) of logits (..., C) of one type."""
        for_teacher = ctx.needs_input_grad[1]
        rows, *gradients = divergence_and_gradients(student / temperature, teacher / temperature, for_teacher)
        ctx.save_for_backward(*gradients)
        ctx.temperature = temperature
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of student and teacher logits."""
        slope = (grad / ctx.temperature).unsqueeze(-1)
        return *(None if gradient is None else gradient * slope for gradient in ctx.saved_tensors), None


def wide(values: Tensor) -> Tensor:
    """In float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def same_type(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the wider of their types."""
    if student.dtype == teacher.dtype:
        return student, teacher
    wide = torch.promote_types(student.dtype, teacher.dtype)
    return student.to(wide), teacher.to(wide)


def masked_value(logits: Tensor) -> float:
    """What takes the place of a logit that is left out of a softmax: far below any, as the type's numbers allow."""
    return max(_MASKED, torch.finfo(logits.dtype).min / 2)


def mean_of_rows(rows: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """Mean of T²·rows, a scalar.

    Args:
        rows: (...,).
        temperature: T > 0, or a tensor (..., 1) with one for each row.
    """
    if isinstance(temperature, Tensor) and temperature.dim():
        return (rows * temperature.squeeze(-1) ** 2).mean()
    return rows.mean() * temperature**2


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """T²·KL(softmax(teacher/T) ‖ softmax(student/T)), summed over the last dimension, mean over the others.

    Args:
        student: logits (..., C), receive the gradient.
        teacher: logits (..., C).
        temperature: T > 0, or a tensor (..., 1) with one for each row.

    Returns:
        A scalar >= 0.
    """
    return mean_of_rows(kl_rows(student, teacher, temperature), temperature)


def kl_rows(student: Tensor, teacher: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """KL(softmax(teacher/T) ‖ softmax(student/T)) of each row, (...,); arguments as in `kl_divergence`."""
    student, teacher = same_type(student, teacher)
    if isinstance(temperature, Tensor):  # it may be learned: its gradient goes through the division
        return _Divergence.apply(student / temperature, teacher / temperature, 1.0)
    return _Divergence.apply(student, teacher, temperature)
