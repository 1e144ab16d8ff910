"""KDSVD: Lee, Kim and Song, "Self-supervised Knowledge Distillation Using Singular Value Decomposition", ECCV 2018.

arXiv 1807.06819. Numbers checked against RepDistiller's `KDSVD`, whose value depends on the signs that the SVD routine
happens to give the teacher's singular vectors; LAPACK's change with the size of the map, even for maps without negative
entries. Deviations: the method turns these vectors to a positive sum, so that the value is the same on every device;
the class keeps the routine's signs unless told. The gradient goes through the vectors that are used only: equal
singular values elsewhere, as of dead channels, leave it finite, where RepDistiller's is NaN. Lists of unequal length
are compared up to the end of the shorter, as in RepDistiller. mdistiller decomposes another matrix, (C·H, W), and
thereby takes any pair of networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .base import Distiller, Needs, Shapes, Step, register

__all__ = ["KDSVD", "SingularVectors", "align_vectors", "compare_vectors", "right_singular_vectors"]

# number of singular vectors that the student has more than the teacher, to choose from
SPARE = 3


class _RightVectors(torch.autograd.Function):
    """First n right singular vectors (B, C, n) and values (B, n), these without gradient, of matrices (B, M, C)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, n: int) -> tuple[Tensor, Tensor]:
        # in here, where it costs no backward pass
        u, s, vh = torch.linalg.svd(x.nan_to_num(0.0, 0.0, 0.0), full_matrices=False)
        vectors, values = vh[:, :n].mT.contiguous(), s[:, :n].clone()
        ctx.save_for_backward(u, s, vh)
        ctx.mark_non_differentiable(values)
        return vectors, values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
        """Gradient of the matrices (B, m, c) for that of the vectors (B, c, n)."""
        # a change dX turns v_i towards v_j by v_jᵀ(dXᵀX + XᵀdX)v_i / (s_i² - s_j²), and away from all of them by the
        # part of dXᵀu_i / s_i that is outside their span
        u, s, vh = ctx.saved_tensors
        n = grad.shape[2]
        floor = torch.finfo(s.dtype).eps * s[:, :1, None]
        s_i, s_j = s[:, None, :n], s[:, :, None]
        gap = (s_i - s_j) * (s_i + s_j)
        along = vh @ grad
        turn = along * torch.where(gap.abs() > floor * s[:, :1, None], 1 / gap, 0.0)
        outside = (grad - vh.mT @ along) * torch.where(s_i > floor, 1 / s_i, 0.0)
        towards = (turn * s_i).mT @ vh + outside.mT
        return u[:, :, :n] @ towards + (u * s[:, None, :]) @ (turn @ vh[:, :n]), None


def right_singular_vectors(f: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """First right singular vectors of each sample's matrix of positions by channels.

    Args:
        f: map (B, C, H, W).
        n: how many.

    Returns:
        Unit vectors (B, C, n) and values (B, n), fewer where H·W or C is below n. Where singular values are equal, the
        vectors get no gradient along each other. Entries that are not finite count as 0: the loop reports a network
        that diverged.
    """
    return _RightVectors.apply(f.flatten(2).mT, n)


def align_vectors(student: Tensor, teacher: Tensor) -> Tensor:
    """For each teacher vector the student vector of the largest absolute cosine, turned to its side.

    Args:
        student: unit vectors (B, C, m).
        teacher: unit vectors (B, C, k).

    Returns:
        (B, C, k).
    """
    cosine = student.detach().mT @ teacher
    best = cosine.abs().argmax(1, keepdim=True)
    chosen = student.gather(2, best.expand(-1, student.shape[1], -1))
    return chosen * cosine.gather(1, best).sign()


def compare_vectors(student: Sequence[Tensor], teacher: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
    """Compare how the singular vectors of consecutive stages relate in both networks.

    Args:
        student: unit vectors (B, C_i, m) of each stage i.
        teacher: unit vectors (B, C_i, k).
        values: singular values (B, k) of the teacher; they weigh the vectors of both.

    Returns:
        For each two consecutive stages a scalar: the squared difference of exp(-(x - y)²/8) over all entries x of a
        vector and y of the one before it, summed over entries and vectors, mean over the batch.
    """
    weights = [F.normalize(value, dim=1).unsqueeze(1) for value in values]
    aligned = [align_vectors(s, t) * w for s, t, w in zip(student, teacher, weights, strict=True)]
    fixed = [t * w for t, w in zip(teacher, weights, strict=True)]

    def relation(below: Tensor, above: Tensor) -> Tensor:
        return torch.exp(-(above.unsqueeze(2) - below.unsqueeze(1)).square() / 8)

    pairs = zip(pairwise(aligned), pairwise(fixed), strict=True)
    return [(relation(*s) - relation(*t)).square().sum() / len(s[0]) for s, t in pairs]


class KDSVD(nn.Module):
    """Difference of the relations between the singular vectors of consecutive stages, whose channels must be equal.

    Args:
        k: number of the teacher's vectors; the student chooses among 3 more.
        orient: turn the teacher's vectors to a positive sum, rather than to keep the signs of the SVD routine.
    """

    def __init__(self, k: int = 1, *, orient: bool = False):
        super().__init__()
        self.k, self.orient = k, orient

    def forward(self, g_s: Sequence[Tensor], g_t: Sequence[Tensor]) -> list[Tensor]:
        """Loss between each two consecutive stages, scalars whose sum is the term.

        Args:
            g_s: maps (B, C_i, H_i, W_i) of the student.
            g_t: maps of the teacher with the same channels; their sides may differ.
        """
        pairs = list(zip(g_s, g_t, strict=False))
        student = [right_singular_vectors(f_s, self.k + SPARE)[0] for f_s, _ in pairs]
        with torch.no_grad():
            teacher, values = zip(*(right_singular_vectors(f_t, self.k) for _, f_t in pairs), strict=True)
        if self.orient:
            teacher = [torch.where(v.sum(1, keepdim=True) < 0, -v, v) for v in teacher]
        return compare_vectors(student, teacher, values)


@register("kdsvd", paper="Self-supervised KD Using Singular Value Decomposition, ECCV 2018", r=1.0, a=0.0, b=1.0)
class SingularVectors(Distiller):
    """-a weighs the KL term, -b the relations between the singular vectors of consecutive stages (B, C_i, H_i, W_i).

    Where the networks differ in their number of stages, the last ones of the longer are left out.

    Args:
        shapes: sizes of the networks and the data set.

    Raises:
        ValueError: the networks differ in the channels of a stage, or share fewer than two stages.
    """

    needs = Needs(features="mid")

    def __init__(self, shapes: Shapes):
        super().__init__(shapes)
        stages = list(zip(shapes.student[1:-1], shapes.teacher[1:-1], strict=False))
        for number, (s, t) in enumerate(stages, start=1):
            if s[1] != t[1]:
                sizes = f"{s[1]} in the student and {t[1]} in the teacher"
                raise ValueError(f"channels are compared one by one, but stage {number} has {sizes}")
        if len(stages) < 2:
            raise ValueError(f"consecutive stages are compared, and these networks share {len(stages)}")
        self.loss = KDSVD(orient=True)

    def kd(self, step: Step) -> Tensor:
        """The loss summed over pairs of consecutive stages."""
        return sum(self.loss(step.student.features[1:-1], step.teacher.features[1:-1]))
