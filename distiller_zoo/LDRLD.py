"""LDRLD: Xu et al., "Local Dense Logit Relations for Enhanced Knowledge Distillation", ICCV 2025, arXiv 2507.15911.

Numbers checked against the official `distiller_zoo/LDRLD.py`, which recurses over k(k-1)/2 + 1 masked softmaxes of all
classes. Here each pair is the two-class problem that it is: a softmax over two logits depends on their difference only.

Deviations: the published training loop multiplies the whole loss by -r once more, so that its cross-entropy carries r²;
here -r weighs cross-entropy once (equal for the published r = 1). `form` chooses between code and paper where they
differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import LogitDistiller, LogitPair, Shapes, register
from .functional import kl_divergence, kl_divergence_without

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


def local_dense_relations(
    student: Tensor, teacher: Tensor, pair_weights: Tensor, temperature: float, form: Literal["code", "paper"] = "code"
) -> Tensor:
    """Weighted KL of every pair of the selected logits, plus the KL over all of them.

    The pair (i, j) is a Bernoulli problem with probability sigmoid((z_i - z_j)/T), so its KL needs no softmax.

    Args:
        student: the k selected logits (B, k) in the order of their ranks.
        teacher: the teacher's logits of the same classes (B, k).
        pair_weights: (k(k-1)/2,), see `adaptive_decay_weights`.
        temperature: T > 0; every KL carries T².
        form: `code` divides the sum by the number of subsets k(k-1)/2 + 1 and, at k = 2, gives the full set the weight
            of the pair that it equals; `paper` does neither.

    Returns:
        A scalar, mean over the batch.
    """
    k = student.shape[1]
    i, j = torch.triu_indices(k, k, offset=1, device=student.device)
    d_s, d_t = ((z[:, i] - z[:, j]) / temperature for z in (student, teacher))
    # KL(p‖q) of Bernoullis p = sigmoid(d_t), q = sigmoid(d_s); log(1 - sigmoid(d)) = logsigmoid(d) - d
    kl = F.logsigmoid(d_t) - F.logsigmoid(d_s) + torch.sigmoid(-d_t) * (d_s - d_t)
    pairs = kl.mean(0) @ pair_weights.to(kl) * temperature**2
    full = kl_divergence(student, teacher, temperature)
    if form == "paper":
        return pairs + full
    full_weight = pair_weights[0] if k == 2 else 1.0
    return (pairs + full_weight * full) / (len(pair_weights) + 1)


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
    ):
        super().__init__()
        self.alpha, self.beta, self.ce_loss_weight = alpha, beta, ce_loss_weight
        self.k, self.temperature, self.topk_from, self.form = k, temperature, topk_from, form
        self.register_buffer("weights", adaptive_decay_weights(k, epsilon, delta, decay), persistent=False)

    def terms(self, logits_student: Tensor, logits_teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """The unweighted local and remaining terms, scalars, of logits (B, C) at a temperature T > 0."""
        chosen = logits_student if self.topk_from == "student" else logits_teacher
        top = chosen.detach().topk(self.k, dim=1).indices
        local = local_dense_relations(
            logits_student.gather(1, top), logits_teacher.gather(1, top), self.weights, temperature, self.form
        )
        if self.k < logits_student.shape[1]:
            return local, kl_divergence_without(logits_student, logits_teacher, top, temperature)
        if self.form == "paper":
            return local, logits_student.new_zeros(())
        return local, kl_divergence(logits_student, logits_teacher, temperature)

    def forward(self, logits_student: Tensor, logits_teacher: Tensor, target: Tensor) -> Tensor:
        """Total loss, a scalar, of logits (B, C) and labels (B,)."""
        local, rest = self.terms(logits_student, logits_teacher, self.temperature)
        return self.ce_loss_weight * F.cross_entropy(logits_student, target) + self.alpha * local + self.beta * rest


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

    Raises:
        ValueError: k is below 2 or above the number of classes, or epsilon is negative.
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
    ):
        super().__init__(shapes)
        if not 2 <= k <= shapes.classes:
            raise ValueError(f"--k {k} is not between 2 and the number of classes, {shapes.classes}")
        if epsilon < 0:
            raise ValueError(f"--epsilon {epsilon} is negative")
        constants = {"epsilon": epsilon, "delta": delta, "decay": decay}
        self.loss = LDRLD(1.0, 1.0, k, self.temperature, topk_from=topk_from, form=form, **constants)

    def logit_terms(self, pair: LogitPair) -> dict[str, Tensor]:
        """The terms `local` and `rest`."""
        local, rest = self.loss.terms(pair.student, pair.teacher, pair.temperature)
        return {"local": local, "rest": rest}
