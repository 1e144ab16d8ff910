"""WKD: Lv, Yang and Li, "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation".

NeurIPS 2024, arXiv 2412.08139. WKD-L moves the student's class probabilities onto the teacher's, at a cost that is low
between similar classes; WKD-F compares the statistics of a feature map as Gaussians. `wkd` takes both.

Written from a description of the official `mdistiller/distillers/WKD.py` and tested against loops.

Deviations: the official code copies the cost matrix for every sample and deletes the label's row and column from each
copy; here one matrix serves the batch, and the label takes no part in it (equal values). The grid of WKD-F must divide
the map. The bottleneck projector of the ImageNet recipe is not here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapters import ConvReg
from .base import Distiller, Epochs, LogitDistiller, LogitPair, Needs, Shapes, Step, register
from .functional import masked_value, wide
from .ramps import cosine_decay

__all__ = [
    "WKD",
    "WKDF",
    "WKDL",
    "GaussianWasserstein",
    "class_similarity",
    "sinkhorn",
    "transport_cost",
    "wkd_logit_terms",
]


def class_similarity(features: Tensor) -> Tensor:
    """Linear centred kernel alignment (CKA) between the features of all pairs of classes.

    Args:
        features: (C, n, D), n >= 2 feature vectors of each class. As CKA pairs the rows of two classes, the order of
            the images matters; keep it fixed. Takes memory for C·n² numbers.

    Returns:
        (C, C) symmetric, between 0 and 1, 1 on the diagonal; a class whose features do not vary is similar to none.
    """
    centred = features - features.mean(dim=1, keepdim=True)
    kernels = (centred @ centred.mT).flatten(1)
    # ‖X_iᵀX_j‖²_F = ⟨X_i X_iᵀ, X_j X_jᵀ⟩, so that n×n kernels of unit norm give CKA as inner products
    kernels = F.normalize(kernels, dim=1)
    return kernels @ kernels.T


def transport_cost(similarity: Tensor, kappa: float = 1.0) -> Tensor:
    """Cost 1 - exp(-kappa·(1 - similarity)) of moving probability between classes, at least 1e-8.

    Args:
        similarity: (C, C), see `class_similarity`.
        kappa: how fast the cost grows; 1 in the paper, 2 for ResNet50 -> MobileNetV1.
    """
    return F.relu(-torch.expm1(-kappa * (1 - similarity))) + 1e-8


def sinkhorn(
    p_s: Tensor,
    p_t: Tensor,
    cost: Tensor,
    reg: float = 0.05,
    iterations: int = 10,
    left_out: Tensor | None = None,
) -> Tensor:
    """Transport cost of each sample's entropic plan after a number of Sinkhorn iterations, all differentiated.

    Args:
        p_s, p_t: masses (B, C) of student and teacher, each row summing to 1.
        cost: (C, C).
        reg: weight of the entropy.
        iterations: number of updates of both scalings, at least 1.
        left_out: (B, 1), a class of each sample that takes no part and has no mass on either side; None for none.

    Returns:
        (B,) sum of plan times cost.
    """
    kernel = torch.exp(-cost / reg)
    u = torch.full_like(p_s, 1 / (p_s.shape[1] - (left_out is not None)))
    if left_out is not None:
        u.scatter_(1, left_out, 0.0)
    for _ in range(iterations):
        v = p_t / (u @ kernel + 1e-8)
        u = p_s / (v @ kernel.T + 1e-8)
    return ((u @ (kernel * cost)) * v).sum(dim=1)


def wkd_logit_terms(
    logits_student: Tensor,
    logits_teacher: Tensor,
    target: Tensor,
    cost: Tensor,
    temperature: float | Tensor,
    reg: float = 0.05,
    iterations: int = 10,
) -> tuple[Tensor, Tensor]:
    """The two terms of WKD-L.

    Args:
        logits_student, logits_teacher: (B, C); float32 at least is what they are computed in.
        target: (B,) labels.
        cost: (C, C), see `transport_cost`.
        temperature: T > 0 of the transported probabilities; unlike KL terms they carry no T².
        reg, iterations: see `sinkhorn`.

    Returns:
        Scalars, means over the batch: the cross-entropy of the label's probabilities at temperature 1, and the cost of
        moving the student's probabilities of the other classes, renormalised over them, onto the teacher's.
    """
    label, logits = target.unsqueeze(1), (wide(logits_student), wide(logits_teacher))
    log_p = F.log_softmax(logits[0], dim=1).gather(1, label)
    target_term = -(F.softmax(logits[1], dim=1).gather(1, label) * log_p).mean()
    p_s, p_t = (F.softmax(z.scatter(1, label, masked_value(z)) / temperature, dim=1) for z in logits)
    return target_term, sinkhorn(p_s, p_t, cost.to(p_s), reg, iterations, label).mean()


@register(
    "wkd_l",
    paper="Wasserstein Distance Rivals Kullback-Leibler Divergence, NeurIPS 2024",
    r=1.0,
    a=1.0,
    b=600.0,
    kd_T=8.0,
)
class WKDL(LogitDistiller):
    """-a weighs the cross-entropy of the label's probabilities, -b the transport between those of the other classes.

    Logits (B, C) of both networks. Classes are similar where the teacher's pooled vectors of their training images are.
    The published values are -b 600 at T = 8 for resnet32x4 -> resnet8x4 and 200 at T = 6 for wrn_40_2 -> ShuffleV1.

    Args:
        shapes: sizes of the networks and the data set.
        kappa: how fast the cost grows with the classes' distance
        decay_epoch: epoch after which the transport's weight falls along half a cosine
        decay_end: epoch at which that weight is 0

    Raises:
        ValueError: an option is out of range, or there are fewer than 3 classes.
    """

    weighs: Mapping[str, str] = {"r": "cls", "a": "target", "b": "transport"}

    def __init__(self, shapes: Shapes, kappa: float = 1.0, decay_epoch: Epochs = 150, decay_end: Epochs = 240):
        super().__init__(shapes)
        if shapes.classes < 3:
            raise ValueError(f"{shapes.classes} classes leave nothing to move beside the label; 3 are needed")
        if kappa <= 0:
            raise ValueError(f"--kappa {kappa} must be above 0")
        _check_decay(decay_epoch, decay_end)
        self.kappa, self.decay = kappa, (decay_epoch, decay_end)
        self.register_buffer("cost", torch.ones(shapes.classes, shapes.classes))

    def prepare(self, teacher: nn.Module, images: Iterable) -> None:
        """Measure how similar the classes are to the teacher; where their sizes differ, by the first images of each.

        Raises:
            ValueError: a class has fewer than 2 training images.
        """
        batches = [(teacher(batch.images, is_feat=True)[0][-1].float(), batch.target) for batch in images]
        features, target = (torch.cat(parts) for parts in zip(*batches, strict=True))
        fewest = int(torch.bincount(target, minlength=len(self.cost)).min())
        if fewest < 2:
            raise ValueError("every class needs 2 training images, from which its similarity to others is measured")
        by_class = torch.stack([features[target == c][:fewest] for c in range(len(self.cost))])
        self.cost = transport_cost(class_similarity(by_class), self.kappa)

    def logit_terms(self, pair: LogitPair) -> dict[str, Tensor]:
        """The terms `target` and `transport`, the latter times the factor of the epoch."""
        logits = (pair.student, pair.teacher, pair.target)
        target, transport = wkd_logit_terms(*logits, self.cost, pair.temperature)
        return {"target": target, "transport": cosine_decay(pair.epoch, *self.decay) * transport}


def _check_decay(start: int, end: int) -> None:
    if not 0 <= start < end:
        raise ValueError(f"--decay_epoch {start} must be at least 0 and below --decay_end {end}")


class GaussianWasserstein(nn.Module):
    """rho·Σ(Δmean)² + Σ(Δstd)² of two maps, the squared Wasserstein distance of diagonal Gaussians at rho = 1.

    Args:
        rho: weight of the means.
        grid: number of cells along each side; the statistics are taken cell by cell.
        eps: added to the variances.
    """

    def __init__(self, rho: float = 4.0, grid: int = 1, eps: float = 1e-5):
        super().__init__()
        self.rho, self.grid, self.eps = rho, grid, eps

    def statistics(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Means and standard deviations (n - 1 in the denominator) of the cells of a map (B, C, H, W): (B, C, g, g)."""
        cells = f.unflatten(3, (self.grid, -1)).unflatten(2, (self.grid, -1))
        mean = cells.mean(dim=(3, 5), keepdim=True)
        # Not torch.var, which takes twice the time. The sum of squares is least about the mean, so that its gradient
        # by the mean is 0.
        squares = (cells - mean.detach()).square().sum(dim=(3, 5))
        count = cells.shape[3] * cells.shape[5]
        return mean.squeeze((3, 5)), (squares / (count - 1) + self.eps).sqrt()

    def forward(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """Loss of two maps (B, C, H, W), a scalar: summed over channels, mean over samples and cells."""
        (mean_s, std_s), (mean_t, std_t) = (self.statistics(f) for f in (f_s, f_t))
        distance = self.rho * (mean_s - mean_t) ** 2 + (std_s - std_t) ** 2
        return distance.sum(dim=1).mean()


@register("wkd_f", paper="Wasserstein Distance Rivals Kullback-Leibler Divergence, NeurIPS 2024", r=1.0, a=0.0, b=0.08)
class WKDF(Distiller):
    """-a weighs the KL term, -b the Wasserstein distance of the last stage's maps (B, C, H, W) as Gaussians.

    The published values are -b 0.08, rho 4, grid 1 for resnet32x4 -> resnet8x4 and -b 0.3, rho 3, grid 4 for wrn_40_2
    -> ShuffleV1.

    Args:
        shapes: sizes of the networks and the data set.
        rho: weight of the means against the standard deviations
        grid: cells along each side of the map, each with its own statistics
        decay_epoch: epoch after which the distance's weight falls along half a cosine
        decay_end: epoch at which that weight is 0

    Raises:
        ValueError: an option is out of range, or the maps cannot be brought to one size or be cut into the grid.
    """

    needs = Needs(features="mid")

    def __init__(
        self, shapes: Shapes, rho: float = 4.0, grid: int = 1, decay_epoch: Epochs = 150, decay_end: Epochs = 240
    ):
        super().__init__(shapes)
        if not rho >= 0:
            raise ValueError(f"--rho {rho} must be at least 0")
        _check_decay(decay_epoch, decay_end)
        self.project = ConvReg(shapes.student[-2], shapes.teacher[-2])
        *_, height, width = shapes.teacher[-2]
        if grid < 1 or height % grid or width % grid or height * width == grid**2:
            raise ValueError(f"--grid {grid} does not cut the teacher's {height}×{width} map into cells of equal size")
        self.loss = GaussianWasserstein(rho, grid)
        self.decay = (decay_epoch, decay_end)

    def kd(self, step: Step) -> Tensor:
        """The distance between the projected student map and the teacher's, times the factor of the epoch."""
        distance = self.loss(self.project(step.student.features[-2]), step.teacher.features[-2])
        return cosine_decay(step.epoch, *self.decay) * distance


@register(
    "wkd",
    paper="Wasserstein Distance Rivals Kullback-Leibler Divergence, NeurIPS 2024",
    r=1.0,
    a=1.0,
    b=0.08,
    kd_T=8.0,
)
class WKD(Distiller):
    """-a weighs both terms of WKD-L on the logits, together, and -b WKD-F's on the last stage's maps (B, C, H, W).

    The published values are a transport weight of 200, -b 0.08, rho 8 and T = 8 for resnet32x4 -> resnet8x4 and 60,
    -b 0.5, rho 3 and T = 4 for wrn_40_2 -> ShuffleV1.

    Args:
        shapes: sizes of the networks and the data set.
        transport_weight: weight of the transport against the cross-entropy of the label's probabilities
        kappa: how fast the cost grows with the classes' distance
        rho: weight of the means against the standard deviations
        grid: cells along each side of the map, each with its own statistics
        decay_epoch: epoch after which the transport's and the maps' weights fall along half a cosine
        decay_end: epoch at which these weights are 0

    Raises:
        ValueError: as for the two methods, or the transport's weight is negative.
    """

    needs = WKDF.needs

    def __init__(
        self,
        shapes: Shapes,
        transport_weight: float = 200.0,
        kappa: float = 1.0,
        rho: float = 8.0,
        grid: int = 1,
        decay_epoch: Epochs = 150,
        decay_end: Epochs = 240,
    ):
        super().__init__(shapes)
        if not transport_weight >= 0:
            raise ValueError(f"--transport_weight {transport_weight} must be at least 0")
        self.transport_weight = transport_weight
        self.logits = WKDL(shapes, kappa, decay_epoch, decay_end)
        self.maps = WKDF(shapes, rho, grid, decay_epoch, decay_end)

    def prepare(self, teacher: nn.Module, images: Iterable) -> None:
        """Measure how similar the classes are to the teacher, as `WKDL.prepare` does."""
        self.logits.prepare(teacher, images)

    def logit_terms(self, pair: LogitPair) -> dict[str, Tensor]:
        """The term `div`: target + transport_weight·transport."""
        target, transport = self.logits.logit_terms(pair).values()
        return {"div": target + self.transport_weight * transport}

    def kd(self, step: Step) -> Tensor:
        """The distance of the maps, see `WKDF.kd`."""
        return self.maps.kd(step)
