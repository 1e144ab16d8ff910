"""CRD: Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv 1910.10699.

Numbers checked against RepDistiller's `crd/`. Deviations: negatives are drawn for the whole batch on the device, and a
product with the whole memory replaces the gather of its rows (equal values); the normalisation has PyTorch's floor of
1e-12 under its norm, RepDistiller's has none.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Literal

from torch import Tensor

from crd import CRDLoss

from .base import Distiller, Needs, Shapes, Step, register

__all__ = ["CRD", "CRDLoss"]


@register("crd", paper="Contrastive Representation Distillation, ICLR 2020", r=1.0, a=0.0, b=0.8)
class CRD(Distiller):
    """-a weighs the KL term, -b the contrast of the pooled features (B, D_s) and (B, D_t) over a memory of N samples.

    Args:
        shapes: sizes of the networks and the data set.
        feat_dim: length of an embedding
        mode: the positive is the sample itself (exact) or any one of its class (relax)
        nce_k: number of negatives per sample
        nce_t: temperature of the scores
        nce_m: momentum of the memory

    Raises:
        ValueError: an option is out of range, or the data set is too large for the memory.
    """

    def __init__(
        self,
        shapes: Shapes,
        feat_dim: int = 128,
        mode: Literal["exact", "relax"] = "exact",
        nce_k: int = 16384,
        nce_t: float = 0.07,
        nce_m: float = 0.5,
    ):
        super().__init__(shapes)
        if feat_dim < 1 or nce_k < 1:
            raise ValueError(f"--feat_dim {feat_dim} and --nce_k {nce_k} must be at least 1")
        if nce_t <= 0 or not 0 <= nce_m <= 1:
            raise ValueError(f"--nce_t {nce_t} must be above 0 and --nce_m {nce_m} between 0 and 1")
        self.needs = Needs(features="last", negatives=nce_k, positives=mode)
        sizes = {"s_dim": shapes.student[-1][1], "t_dim": shapes.teacher[-1][1], "n_data": shapes.samples}
        self.loss = CRDLoss(SimpleNamespace(**sizes, feat_dim=feat_dim, nce_t=nce_t, nce_m=nce_m))

    def kd(self, step: Step) -> Tensor:
        """The contrastive loss of both directions; updates the memory."""
        s, t = step.student.features[-1], step.teacher.features[-1]
        return self.loss(s, t, step.index, step.contrast_index)
