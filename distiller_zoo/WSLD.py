"""WSLD: Zhou et al., "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective".

ICLR 2021, arXiv 2102.00650. Numbers checked against LDRLD's `distiller_zoo/WSLD.py`.

Deviations: the authors run the teacher with batch statistics in its batch norms, here they stay frozen. LDRLD's
training loop multiplies the loss, which carries its 2.25 already, by -a once more; here -a is that weight.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import LogitDistiller, LogitPair, register
from .functional import mean_of_rows

__all__ = ["WSLD", "WSLDLoss", "soft_label_weights", "weighted_soft_labels"]


@torch.no_grad()
def soft_label_weights(logits_student: Tensor, logits_teacher: Tensor, target: Tensor) -> Tensor:
    """1 - exp(-CE_s / CE_t) of each sample: small where the student fits the label better than the teacher does.

    Args:
        logits_student, logits_teacher: (B, C); their cross-entropies with the label are taken at temperature 1.
        target: (B,) labels.

    Returns:
        (B,), between 0 and 1, without gradient.
    """
    ce_s, ce_t = (F.cross_entropy(z, target, reduction="none") for z in (logits_student, logits_teacher))
    return -torch.expm1(-ce_s / (ce_t + 1e-7))


def weighted_soft_labels(
    logits_student: Tensor, logits_teacher: Tensor, target: Tensor, temperature: float | Tensor
) -> Tensor:
    """T²·mean of the weighted cross-entropy between the softened class probabilities.

    A cross-entropy and not a KL, so that it does not vanish for a student that equals the teacher; the gradients of the
    two are the same.

    Args:
        logits_student, logits_teacher: (B, C).
        target: (B,) labels, which only the weights use.
        temperature: T > 0, or (B, 1), one for each sample.

    Returns:
        A scalar.
    """
    log_s = F.log_softmax(logits_student / temperature, dim=1)
    soft_ce = -(F.softmax(logits_teacher / temperature, dim=1) * log_s).sum(dim=1)
    weights = soft_label_weights(logits_student, logits_teacher, target)
    return mean_of_rows(weights * soft_ce, temperature)


class WSLDLoss(nn.Module):
    """alpha·T²·mean of the weighted soft cross-entropy.

    Args:
        T: temperature > 0.
        alpha: weight of the term.
    """

    def __init__(self, T: float = 4.0, alpha: float = 2.25):
        super().__init__()
        self.T, self.alpha = T, alpha

    def forward(self, logits_student: Tensor, logits_teacher: Tensor, target: Tensor) -> Tensor:
        """Loss, a scalar, of logits (B, C) and labels (B,)."""
        return self.alpha * weighted_soft_labels(logits_student, logits_teacher, target, self.T)


@register("wsld", paper="Rethinking Soft Labels for Knowledge Distillation, ICLR 2021", r=1.0, a=2.25)
class WSLD(LogitDistiller):
    """-a weighs the cross-entropy with the soft labels (B, C), weighted sample by sample.

    The weights compare how well both networks fit the label. Published for CIFAR-100: -a 2.25 and temperature 4.
    """

    weighs: Mapping[str, str] = {"r": "cls", "a": "wsld"}

    def logit_terms(self, pair: LogitPair) -> dict[str, Tensor]:
        """The term `wsld`."""
        return {"wsld": weighted_soft_labels(pair.student, pair.teacher, pair.target, pair.temperature)}
