"""RKD: Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068.

Numbers checked against RepDistiller's `RKDLoss`. Deviations: distances come from the differences that the angles need
anyway, not from a Gram matrix, which loses digits where two samples are close; a difference shorter than 1e-6 has no
direction and no gradient, where RepDistiller's gradient grows without bound; a batch of one gives 0, in RepDistiller
NaN.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Distiller, Needs, Shapes, Step, register

__all__ = ["RKDLoss", "RelationalKD", "relations"]

# lower bound of a distance
EPS = 1e-6


def relations(f: Tensor) -> tuple[Tensor, Tensor]:
    """Distances between the samples of a batch, and the angles of their triples.

    Args:
        f: features (B, D).

    Returns:
        Distances (B, B) over their mean, the diagonal 0 and not counted; cosines (B, B, B) of the angle at the sample
        of the first index between those of the other two.
    """
    difference = f.unsqueeze(0) - f.unsqueeze(1)
    norm = torch.linalg.vector_norm(difference, dim=2)
    distance = norm.clamp(min=EPS)
    direction = difference * torch.where(norm > EPS, 1 / distance, 0.0).unsqueeze(2)
    distance = distance * (1 - torch.eye(len(f), dtype=f.dtype, device=f.device))
    mean = distance.sum() / max(len(f) * (len(f) - 1), 1)
    return distance / mean.clamp(min=EPS), direction @ direction.mT


class RKDLoss(nn.Module):
    """w_d·(loss of distances) + w_a·(loss of angles), each a smooth L1 over all pairs and triples of the batch.

    Args:
        w_d: weight of the distances.
        w_a: weight of the angles.
    """

    def __init__(self, w_d: float = 25, w_a: float = 50):
        super().__init__()
        self.w_d, self.w_a = w_d, w_a

    def terms(self, f_s: Tensor, f_t: Tensor) -> tuple[Tensor, Tensor]:
        """The unweighted losses of distances and angles, scalars, of features (B, ...)."""
        with torch.no_grad():
            distance_t, angle_t = relations(f_t.flatten(1))
        distance_s, angle_s = relations(f_s.flatten(1))
        return F.smooth_l1_loss(distance_s, distance_t), F.smooth_l1_loss(angle_s, angle_t)

    def forward(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """Loss of features (B, D_s) against (B, D_t), maps being flattened, a scalar."""
        distance, angle = self.terms(f_s, f_t)
        return self.w_d * distance + self.w_a * angle


@register("rkd", paper="Relational Knowledge Distillation, CVPR 2019", r=1.0, a=0.0, b=1.0)
class RelationalKD(Distiller):
    """-a weighs the KL term, -b the distances and angles between the pooled features (B, D_s) and (B, D_t).

    Distances weigh 25 and angles 50 inside the term.

    Args:
        shapes: sizes of the networks and the data set.
    """

    needs = Needs(features="last")

    def __init__(self, shapes: Shapes):
        super().__init__(shapes)
        self.loss = RKDLoss()

    def kd(self, step: Step) -> Tensor:
        """The loss of the pooled features."""
        return self.loss(step.student.features[-1], step.teacher.features[-1])
