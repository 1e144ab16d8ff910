"""MLKD: Jin, Wang and Lin, "Multi-Level Logit Distillation", CVPR 2023.

Every image comes in a weak and a strong view, and both networks see both. The class probabilities are compared at
several temperatures and at three levels: sample by sample (kd), by the correlations of the classes (cc) and by those of
the samples in the batch (bc).

Numbers checked against the official `KD_ours.py` and against `MLKD.py` of Logit Standardization, which copies it. The
official code differs from what it is written to do, and `form` chooses between the two. It means to count, on the weak
view, in kd and bc the samples of which the teacher is less sure, in cc the classes to which it gives less probability.
But it averages the losses before it multiplies them by the mask, so that they are only scaled by its share of ones; and
it compares the strong views at 3 temperatures only, the weak ones once more in place of the other two. It computes cc
and bc of the strong views, too, and does not add them; here neither form has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import LogitDistiller, LogitPair, Needs, Shapes, Step, register
from .functional import wide

__all__ = [
    "MLKD",
    "TwoViews",
    "batch_correlation",
    "class_correlation",
    "confidence_masks",
    "mlkd_terms",
    "softened",
]

# predictions are compared at these temperatures, after the one that the user gives
TEMPERATURES = (3.0, 5.0, 2.0, 6.0)
# of these five, the official code compares the strong views at the first so many
STRONG_IN_CODE = 3


class TwoViews(NamedTuple):
    """Both networks' logits for both views of the images, (B, C) each; s is the student, t the teacher."""

    weak_s: Tensor
    weak_t: Tensor
    strong_s: Tensor
    strong_t: Tensor


def _row_gaps(p_s: Tensor, p_t: Tensor) -> Tensor:
    """Squared norm of every row of P_t·P_tᵀ - P_s·P_sᵀ, for matrices (..., N, M): (..., N).

    Where N is much larger than M, the N×N matrix is not made: with the difference D and the sum S of the two it is
    (D·Sᵀ + S·Dᵀ)/2, and the squares of its rows need M×M matrices only. All terms shrink with D, as the result does.
    """
    rows, columns = p_s.shape[-2:]
    if rows <= 4 * columns:
        return (p_t @ p_t.mT - p_s @ p_s.mT).square().sum(-1)
    difference, total = p_t - p_s, p_t + p_s
    products = difference @ (total.mT @ total) * difference + total @ (difference.mT @ difference) * total
    return (products + 2 * (difference @ (total.mT @ difference) * total)).sum(-1) / 4


def class_correlation(p_s: Tensor, p_t: Tensor) -> Tensor:
    """‖P_tᵀP_t - P_sᵀP_s‖²/C in the Frobenius norm: how differently the classes go together.

    Args:
        p_s, p_t: class probabilities (..., B, C) of student and teacher.

    Returns:
        (...) >= 0.
    """
    return _row_gaps(p_s.mT, p_t.mT).mean(-1)


def batch_correlation(p_s: Tensor, p_t: Tensor) -> Tensor:
    """‖P_tP_tᵀ - P_sP_sᵀ‖²/B in the Frobenius norm: how differently the samples resemble each other.

    Args:
        p_s, p_t: class probabilities (..., B, C) of student and teacher.

    Returns:
        (...) >= 0.
    """
    return _row_gaps(p_s, p_t).mean(-1)


def confidence_masks(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Samples and classes of which the teacher is no surer than of the median one.

    Args:
        logits: of the teacher (B, C).

    Returns:
        Booleans (B,): the largest probability is at most the batch's median; and (C,): the probability summed over the
        batch is at most the median of the classes. The median of an even number lies between the middle two.
    """
    probabilities = wide(logits.detach()).softmax(dim=1)
    confidence, mass = probabilities.amax(dim=1), probabilities.sum(dim=0)
    return confidence <= confidence.quantile(0.5), mass <= mass.quantile(0.5)


def softened(logits: Tensor, temperatures: Tensor) -> Tensor:
    """Log-probabilities (K, B, C) of logits (B, C) at each of the temperatures (K,), or of (K, B, C), one to each."""
    return F.log_softmax(logits / temperatures.view(-1, 1, 1), dim=-1)


def softened_pair(student: Tensor, teacher: Tensor, temperatures: Tensor) -> tuple[Tensor, Tensor]:
    """`softened` logits of both networks."""
    return softened(student, temperatures), softened(teacher, temperatures)


def mlkd_terms(
    views: TwoViews,
    temperature: float | Tensor,
    form: Literal["code", "paper"] = "code",
    for_kd: TwoViews | None = None,
    soften: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = softened_pair,
) -> dict[str, Tensor]:
    """The terms kd, cc and bc, each summed over the temperatures T, 3, 5, 2 and 6; only kd carries T².

    Args:
        views: logits; the teacher's receive no gradient.
        temperature: T > 0; a tensor, of one element, may be learned.
        form: `code`, what the official code computes, or `paper`, what it is written to do. With K_i the KL of sample
            i, m the mask of the samples and |m| the number of its ones, `code` has |m|/B·mean(K) on the weak view,
            where `paper` has mean(m·K). cc and bc are likewise means over the rows of their matrices, weighed by the
            mask of the classes and of the samples. `paper` also compares the strong views at all temperatures.
        for_kd: logits that kd compares, if not those of `views`; cc, bc and the masks stay with `views`.
        soften: gives the log-probabilities (K, B, C) of student's and teacher's logits (B, C) at temperatures (K,).

    Returns:
        Unweighted scalars >= 0.
    """
    logits = views.weak_s
    first = temperature.to(logits).view(1) if isinstance(temperature, Tensor) else logits.new_full((1,), temperature)
    # filled on the device: the host would wait for a copy of the numbers
    temperatures = torch.cat([first, *(logits.new_full((1,), number) for number in TEMPERATURES)])

    def log_pair(student: Tensor, teacher: Tensor, count: int | None = None) -> tuple[Tensor, Tensor]:
        return soften(student, teacher.detach(), temperatures[:count])

    def kl_rows(log_s: Tensor, log_t: Tensor) -> Tensor:
        kl = F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(-1)
        return kl * temperatures[: len(kl), None] ** 2

    def masked(rows: Tensor, mask: Tensor) -> Tensor:
        mask = mask.to(rows)
        return (rows * mask).mean(-1).sum() if form == "paper" else rows.mean(-1).sum() * mask.mean()

    logs = log_pair(views.weak_s, views.weak_t)
    p_s, p_t = (log.exp() for log in logs)
    samples, classes = confidence_masks(views.weak_t)
    kd_views = for_kd or views
    weak = kl_rows(*(log_pair(for_kd.weak_s, for_kd.weak_t) if for_kd else logs))
    strong = kl_rows(*log_pair(kd_views.strong_s, kd_views.strong_t, None if form == "paper" else STRONG_IN_CODE))
    return {
        "kd": masked(weak, samples) + torch.cat([strong, weak[len(strong) :]]).mean(-1).sum(),
        "cc": masked(_row_gaps(p_s.mT, p_t.mT), classes),
        "bc": masked(_row_gaps(p_s, p_t), samples),
    }


@register("mlkd", paper="Multi-Level Logit Distillation, CVPR 2023", r=0.1, a=0.9)
class MLKD(LogitDistiller):
    """-a weighs the comparison at five temperatures of samples, classes and batches, together; -r both views' labels.

    Logits (B, C) of a weak and a strong view of both networks. What standardises logits acts on the comparison of
    samples alone, as in the published combination. The published runs take 240 epochs or more, see the recipes.

    Args:
        shapes: sizes of the networks and the data set.
        form: what the official code computes, or what it is written to do
    """

    needs = Needs(strong_view=True)
    one_temperature = True
    weighs: Mapping[str, str] = {"r": "cls", "a": "mlkd"}

    def __init__(self, shapes: Shapes, form: Literal["code", "paper"] = "code"):
        super().__init__(shapes)
        self.form = form

    def classification(self, step: Step) -> Tensor:
        """Cross-entropy of the weak view plus that of the strong one."""
        student = step.student
        return sum(self.cross_entropy(logits, step.target) for logits in (student.logits, student.strong_logits))

    def _soften(self, student: Tensor, teacher: Tensor, temperatures: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities (K, B, C) of logits (B, C), after what depends on the temperature."""
        pair = LogitPair(student, teacher, None, temperatures.view(-1, 1, 1))
        pair = self.transformed(pair, lambda change: change.reads_temperature)
        return softened_pair(pair.student, pair.teacher, temperatures)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms `cls` and `mlkd`, and what the transforms add, averaged over both views."""
        weak = LogitPair(step.student.logits, step.teacher.logits, step.target, self.temperature, step.epoch)
        strong = replace(weak, student=step.student.strong_logits, teacher=step.teacher.strong_logits)
        at_one_temperature = [
            [self.transformed(pair, lambda change: not change.reads_temperature) for pair in (weak, strong)],
            [
                self.transformed(pair, lambda change: not (change.reads_temperature or change.rescales))
                for pair in (weak, strong)
            ],
        ]
        for_kd, views = (TwoViews(*(z for p in pairs for z in (p.student, p.teacher))) for pairs in at_one_temperature)
        terms = mlkd_terms(views, at_one_temperature[0][0].temperature, self.form, for_kd, self._soften)
        added = [self.added_terms(pair) for pair in (weak, strong)]
        seconds = {name: sum(part[name] for part in added) / len(added) for name in added[0]}
        return {"cls": self.classification(step), "mlkd": sum(terms.values()), **seconds}
