"""DKD: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679.

Numbers checked against mdistiller's `dkd_loss` and LDRLD's `distiller_zoo/DKD.py`, which sum the probabilities of the
classes beside the label and take the logarithm; here that logarithm is a log-sum-exp of their logits, so that it stays
finite where a network is certain of the label. The label's logit is masked by a value that never reaches the others
instead of by subtracting 1000.

Deviations: none for mdistiller. LDRLD's repository trains without the warm-up and multiplies the loss by -a once more.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .base import Epochs, LogitDistiller, LogitPair, Shapes, register
from .functional import kl_rows, masked_value, mean_of_rows
from .ramps import warm_up

__all__ = ["DKD", "DecoupledKD", "dkd_terms"]


def dkd_terms(
    logits_student: Tensor, logits_teacher: Tensor, target: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """The two parts of the KL: for a sample whose label has teacher probability p, it is TCKD + (1 - p)·NCKD.

    Args:
        logits_student, logits_teacher: (B, C).
        target: (B,) labels.
        temperature: T > 0, or (B, 1), one for each sample; both terms carry T².

    Returns:
        TCKD, the KL of the two-point distribution (label, rest), and NCKD, the KL over the other C - 1 classes, each
        side renormalised over them. Scalars, means over the batch.
    """
    label = target.unsqueeze(1)
    # measured from the label's logit, which is no part of the gradient since the terms depend on differences only: a
    # common offset of all logits would otherwise take digits from the log-sum-exp
    scaled = [(z - z.detach().gather(1, label)) / temperature for z in (logits_student, logits_teacher)]
    rest = [z.scatter(1, label, masked_value(z)) for z in scaled]
    # two logits whose softmax is the probability of the label and that of all other classes together
    points = [
        torch.cat([z.gather(1, label), r.logsumexp(dim=1, keepdim=True)], dim=1)
        for z, r in zip(scaled, rest, strict=True)
    ]
    tckd, nckd = (mean_of_rows(kl_rows(*sides), temperature) for sides in (points, rest))
    return tckd, nckd


class DKD(nn.Module):
    """alpha·TCKD + beta·NCKD."""

    def forward(
        self,
        logits_student: Tensor,
        logits_teacher: Tensor,
        target: Tensor,
        alpha: float,
        beta: float,
        temperature: float | Tensor,
    ) -> Tensor:
        """Loss, a scalar, of logits (B, C) and labels (B,); see `dkd_terms`."""
        tckd, nckd = dkd_terms(logits_student, logits_teacher, target, temperature)
        return alpha * tckd + beta * nckd


@register("dkd", paper="Decoupled Knowledge Distillation, CVPR 2022", r=1.0, a=1.0, b=8.0)
class DecoupledKD(LogitDistiller):
    """-a weighs the KL of (label, rest), -b the KL over the classes beside the label.

    Logits (B, C) of both networks. The published -b is 8 for resnet32x4 -> resnet8x4, ShuffleV1 and ShuffleV2, for
    wrn_40_2 -> ShuffleV1 and for ResNet50 -> MobileNetV2; 6 for vgg13 -> vgg8 and MobileNetV2 and for wrn_40_2 ->
    wrn_16_2 and wrn_40_1; 2 for resnet56 -> resnet20 and resnet110 -> resnet32.

    Args:
        shapes: sizes of the networks and the data set.
        kd_warmup: epochs over which both terms rise linearly to their full weight, 0 for none

    Raises:
        ValueError: there are fewer than 3 classes, or kd_warmup is negative.
    """

    weighs: Mapping[str, str] = {"r": "cls", "a": "tckd", "b": "nckd"}
    factors: Mapping[str, str] = {"dkd_alpha": "a", "dkd_beta": "b"}

    def __init__(self, shapes: Shapes, kd_warmup: Epochs = 20):
        super().__init__(shapes)
        if shapes.classes < 3:
            raise ValueError(f"{shapes.classes} classes leave nothing to compare beside the label; 3 are needed")
        if kd_warmup < 0:
            raise ValueError(f"--kd_warmup {kd_warmup} is negative")
        self.kd_warmup = kd_warmup

    def logit_terms(self, pair: LogitPair) -> dict[str, Tensor]:
        """The terms `tckd` and `nckd`, both times the warm-up factor of the epoch."""
        tckd, nckd = dkd_terms(pair.student, pair.teacher, pair.target, pair.temperature)
        factor = warm_up(pair.epoch, self.kd_warmup)
        return {"tckd": factor * tckd, "nckd": factor * nckd}
