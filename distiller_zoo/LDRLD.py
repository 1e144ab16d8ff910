"""LDRLD: Xu et al., "Local Dense Logit Relations for Enhanced Knowledge Distillation", ICCV 2025, arXiv 2507.15911.

Numbers checked against the official `distiller_zoo/LDRLD.py`, which recurses over k(k-1)/2 + 1 masked softmaxes of all
classes. Here each pair is the two-class problem that it is: a softmax over two logits depends on their difference only.

Deviations: the published training loop multiplies the whole loss by -r once more, so that its cross-entropy carries r²;
here -r weighs cross-entropy once (equal for the published r = 1). `form` chooses between code and paper where they
differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .base import LogitDistiller, LogitPair, Shapes, register
from .functional import divergence_and_gradients, kl_divergence, masked_value, mean_of_rows, same_type

__all__ = ["LDRLD", "LocalDenseLogitRelations", "adaptive_decay_weights", "local_dense_relations"]


def adaptive_decay_weights(k: int, epsilon: float = 1.5, delta: float = 2.0, decay: float = 0.05) -> Tensor:
    """ADW: the weight delta·exp(-decay·(i + j)) / (epsilon + j - i) of each pair of ranks 1 <= i < j <= k.

    Args:
        k: number of ranks, >= 2.
        epsilon: added to the distance of the ranks (inverse rank weight).
        delta: scale of the exponential rank decay.
        decay: its rate, lambda in the paper.

    Returns:
        (k(k-1)/2,) float64, pairs in the order of `torch.triu_indices(k, k, 1)`.
    """
    i, j = torch.triu_indices(k, k, offset=1).double() + 1
    return delta * torch.exp(-decay * (i + j)) / (epsilon + j - i)


def _log_sigmoid(x: Tensor, p: Tensor) -> Tensor:
    """log(sigmoid(x)) of p = sigmoid(x), and its limit x where that underflows; faster than `F.logsigmoid` on CPUs."""
    return p.log().maximum(x.clamp(max=math.log(torch.finfo(x.dtype).tiny)))


def _pairs_and_gradients(
    student: Tensor, teacher: Tensor, weights: Tensor, for_teacher: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Weighted sum of the KL of all pairs of logits (B, k), of shape (B,), and its gradients.

    Weights (k, k) are symmetric with a diagonal of 0.
    The pair (i, j) is a Bernoulli problem with probability sigmoid(z_i - z_j), so its KL needs no softmax.
    """
    difference_s, difference_t = (z.unsqueeze(2) - z.unsqueeze(1) for z in (student, teacher))
    p_s, p_t = torch.sigmoid(difference_s), torch.sigmoid(difference_t)
    # KL of these Bernoullis: a pair is there twice, as (i, j) and (j, i), once for each outcome
    log_ratio = _log_sigmoid(difference_t, p_t).sub_(_log_sigmoid(difference_s, p_s))
    weighted = p_t * weights
    grad_t = (weighted * (1 - p_t) * (difference_t - difference_s)).sum(2) if for_teacher else None
    return log_ratio.mul_(weighted).sum((1, 2)), p_s.mul_(weights).sub_(weighted).sum(2), grad_t


class _Relations(torch.autograd.Function):
    """Both terms of LDRLD: for each sample and without T², or their means with it.

    As in the divergence that all losses share, the gradient is at hand when the values are. That of the selected logits
    fills the places where that of the others is 0, so that one tensor (B, C) holds both.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        top: Tensor,
        weights: Tensor,
        full_weight: float,
        subsets: int,
        temperature: float,
        mean: bool,
    ) -> tuple[Tensor, Tensor]:
        """(B,) each or scalars, of logits (B, C) of one type and the selected classes (B, k)."""
        for_teacher = ctx.needs_input_grad[1]
        others = student / temperature, teacher / temperature
        selected = [z.gather(1, top) for z in others]
        pairs, local_s, local_t = _pairs_and_gradients(*selected, weights, for_teacher)
        full, full_s, full_t = divergence_and_gradients(*selected, for_teacher)
        left_out = masked_value(student)
        rest, rest_s, rest_t = divergence_and_gradients(*(z.scatter_(1, top, left_out) for z in others), for_teacher)
        local_s.add_(full_s, alpha=full_weight)
        if for_teacher:
            local_t.add_(full_t, alpha=full_weight)
        ctx.save_for_backward(top, local_s, rest_s, local_t, rest_t)
        local = pairs.add_(full, alpha=full_weight)
        ctx.slope, ctx.subsets = temperature / len(rest) if mean else 1 / temperature, subsets
        if not mean:
            return local.div_(subsets), rest
        scale = temperature**2 / len(rest)
        return local.sum().mul_(scale / subsets), rest.sum().mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_local: Tensor, grad_rest: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of student and teacher logits."""
        top, local_s, rest_s, local_t, rest_t = ctx.saved_tensors
        local = (grad_local * (ctx.slope / ctx.subsets)).reshape(-1, 1)
        rest = (grad_rest * ctx.slope).reshape(-1, 1)
        student = (rest_s * rest).scatter_(1, top, local_s * local)
        teacher = None if local_t is None else (rest_t * rest).scatter_(1, top, local_t * local)
        return student, teacher, None, None, None, None, None, None


# weights of the pairs (k, k) and of the full set, and the number that the weighted sum is divided by
Weights = tuple[Tensor, float, int]


def _subset_weights(pair_weights: Tensor, k: int, form: str) -> Weights:
    """From `adaptive_decay_weights` and the form of `local_dense_relations`."""
    i, j = torch.triu_indices(k, k, offset=1, device=pair_weights.device)
    square = pair_weights.new_zeros(k, k)
    square[i, j] = square[j, i] = pair_weights
    if form == "paper":
        return square, 1.0, 1
    return square, float(pair_weights[0]) if k == 2 else 1.0, len(pair_weights) + 1


def _relations(
    student: Tensor, teacher: Tensor, top: Tensor, weights: Weights, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Local and remaining term of logits (B, C); the latter is 0 where all classes are selected."""
    student, teacher = same_type(student, teacher)
    square, *others = weights
    square = square.to(student)
    if isinstance(temperature, Tensor):  # it may be learned: its gradient goes through the division
        student, teacher = student / temperature, teacher / temperature
        rows = _Relations.apply(student, teacher, top, square, *others, 1.0, False)
        return mean_of_rows(rows[0], temperature), mean_of_rows(rows[1], temperature)
    return _Relations.apply(student, teacher, top, square, *others, temperature, True)


def local_dense_relations(
    student: Tensor,
    teacher: Tensor,
    pair_weights: Tensor,
    temperature: float | Tensor,
    form: Literal["code", "paper"] = "code",
) -> Tensor:
    """Weighted KL of every pair of the selected logits, plus the KL over all of them.

    Args:
        student: the k selected logits (B, k) in the order of their ranks.
        teacher: the teacher's logits of the same classes (B, k).
        pair_weights: (k(k-1)/2,), see `adaptive_decay_weights`.
        temperature: T > 0, or (B, 1), one for each sample; every KL carries T².
        form: `code` divides the sum by the number of subsets k(k-1)/2 + 1 and, at k = 2, gives the full set the weight
            of the pair that it equals; `paper` does neither.

    Returns:
        A scalar, mean over the batch.
    """
    k = student.shape[1]
    ranks = torch.arange(k, device=student.device).expand_as(student)
    return _relations(student, teacher, ranks, _subset_weights(pair_weights, k, form), temperature)[0]


class LDRLD(nn.Module):
    """ce_loss_weight·CE + alpha·(local dense relations) + beta·(remaining classes).

    Args:
        alpha: weight of the pairs and the full set of the k selected classes.
        beta: weight of the classes outside them.
        k: number of selected classes, 2 <= k <= C (the paper's recursion depth d).
        temperature: T > 0.
        ce_loss_weight: weight of the cross-entropy at temperature 1.
        topk_from: the network whose k largest logits are selected; code and paper: the student.
        form: see `local_dense_relations`. At k = C no class remains: `code` then returns the KL over all classes as the
            remaining term, as the official mask does, `paper` returns 0.
        epsilon, delta, decay: see `adaptive_decay_weights`.
        adw: False gives all pairs the weight 1 instead.
    """

    def __init__(
        self,
        alpha: float,
        beta: float,
        k: int = 7,
        temperature: float = 4.0,
        ce_loss_weight: float = 1.0,
        *,
        topk_from: Literal["student", "teacher"] = "student",
        form: Literal["code", "paper"] = "code",
        epsilon: float = 1.5,
        delta: float = 2.0,
        decay: float = 0.05,
        adw: bool = True,
    ):
        super().__init__()
        self.alpha, self.beta, self.ce_loss_weight = alpha, beta, ce_loss_weight
        self.k, self.temperature, self.topk_from, self.form = k, temperature, topk_from, form
        weights = adaptive_decay_weights(k, epsilon, delta, decay)
        pairs, *self.other_weights = _subset_weights(weights if adw else torch.ones_like(weights), k, form)
        self.register_buffer("pair_weights", pairs, persistent=False)

    def terms(self, logits_student: Tensor, logits_teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """The unweighted local and remaining terms, scalars, of logits (B, C) at a temperature T > 0."""
        chosen = logits_student if self.topk_from == "student" else logits_teacher
        top = chosen.detach().topk(self.k, dim=1).indices
        weights = (self.pair_weights, *self.other_weights)
        local, rest = _relations(logits_student, logits_teacher, top, weights, temperature)
        if self.k == logits_student.shape[1] and self.form == "code":
            rest = kl_divergence(logits_student, logits_teacher, temperature)
        return local, rest

    def forward(self, logits_student: Tensor, logits_teacher: Tensor, target: Tensor) -> Tensor:
        """Total loss, a scalar, of logits (B, C) and labels (B,)."""
        local, rest = self.terms(logits_student, logits_teacher, self.temperature)
        loss = self.ce_loss_weight * F.cross_entropy(logits_student, target)
        return loss.add(local, alpha=self.alpha).add(rest, alpha=self.beta)


@register("ldrld", paper="Local Dense Logit Relations, ICCV 2025", r=1.0, a=10.5, b=7.0, warmup_epochs=20)
class LocalDenseLogitRelations(LogitDistiller):
    """-a weighs the local relations among the top-k classes, -b the KL over the remaining ones.

    Logits (B, C) of both networks. The published weights belong to resnet32x4 -> resnet8x4.

    Args:
        shapes: sizes of the networks and the data set.
        k: number of selected classes
        topk_from: network whose largest logits are selected
        form: code divides the local sum by its number of subsets, paper does not
        epsilon: constant added to the distance of two ranks
        delta: scale of the rank decay
        decay: rate of the rank decay
        adw: weigh the pairs by their ranks

    Raises:
        ValueError: k is below 2 or leaves fewer than 2 classes outside, or epsilon is negative.
    """

    weighs: Mapping[str, str] = {"r": "cls", "a": "local", "b": "rest"}

    def __init__(
        self,
        shapes: Shapes,
        k: int = 7,
        topk_from: Literal["student", "teacher"] = "student",
        form: Literal["code", "paper"] = "code",
        epsilon: float = 1.5,
        delta: float = 2.0,
        decay: float = 0.05,
        adw: bool = True,
    ):
        super().__init__(shapes)
        if k < 2:
            raise ValueError(f"--k {k} is below 2: no pair of classes is compared")
        if k > shapes.classes - 2:
            raise ValueError(
                f"--k {k} leaves fewer than 2 of {shapes.classes} classes for the remaining term to compare"
            )
        if epsilon < 0:
            raise ValueError(f"--epsilon {epsilon} is negative")
        constants = {"epsilon": epsilon, "delta": delta, "decay": decay, "adw": adw}
        self.loss = LDRLD(1.0, 1.0, k, self.temperature, topk_from=topk_from, form=form, **constants)

    def matrices(self) -> dict[str, Tensor]:
        """The weights of the pairs (k, k), by the ranks of both classes."""
        return {"weight of a pair by the ranks of its classes": self.loss.pair_weights}

    def logit_terms(self, pair: LogitPair) -> dict[str, Tensor]:
        """The terms `local` and `rest`."""
        local, rest = self.loss.terms(pair.student, pair.teacher, pair.temperature)
        return {"local": local, "rest": rest}

    def test_figures(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Whether the label is among the student's k largest logits, besides what the transforms tell."""
        inside = (logits.topk(self.loss.k, dim=1).indices == target.unsqueeze(1)).any(1)
        return {**super().test_figures(logits, target), "label_in_topk": inside.to(logits.dtype)}
