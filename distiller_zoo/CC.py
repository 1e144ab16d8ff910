"""CC: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, arXiv 1904.01802.

Numbers checked against RepDistiller's `Correlation`, which its authors supplied. Deviations: the paper compares the
batch's correlation matrices under a kernel; like RepDistiller, the discrepancies of neighbouring samples are
multiplied, so that the order of the batch matters. A batch of one has no neighbours and gives 0, in RepDistiller NaN.
"""

from __future__ import annotations

from torch import Tensor, nn

from .base import Distiller, Needs, Shapes, Step, register

__all__ = ["Correlation", "CorrelationCongruence", "LinearEmbed"]


class Correlation(nn.Module):
    """Mean over the pairs of neighbouring samples of the inner product of their absolute differences."""

    def forward(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """Loss of embeddings of one shape (B, D), a scalar."""
        delta = (f_s - f_t).abs()
        return (delta[:-1] * delta[1:]).sum() / max(len(delta) - 1, 1)


class LinearEmbed(nn.Module):
    """Linear layer on flattened features.

    Args:
        dim_in: length of a flattened feature.
        dim_out: length of an embedding.
    """

    def __init__(self, dim_in: int = 1024, dim_out: int = 128):
        super().__init__()
        self.linear = nn.Linear(dim_in, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """Embed features (B, dim_in), or maps that flatten to that, as (B, dim_out)."""
        return self.linear(x.flatten(1))


@register("correlation", paper="Correlation Congruence for Knowledge Distillation, ICCV 2019", r=1.0, a=0.0, b=0.02)
class CorrelationCongruence(Distiller):
    """-a weighs the KL term, -b the correlation of differences between the pooled features (B, D_s) and (B, D_t).

    Both sides pass through a trained linear embedding first.

    Args:
        shapes: sizes of the networks and the data set.
        feat_dim: length of an embedding

    Raises:
        ValueError: feat_dim is below 1.
    """

    needs = Needs(features="last")

    def __init__(self, shapes: Shapes, feat_dim: int = 128):
        super().__init__(shapes)
        if feat_dim < 1:
            raise ValueError(f"--feat_dim {feat_dim} must be at least 1")
        self.embed_s = LinearEmbed(shapes.student[-1][1], feat_dim)
        self.embed_t = LinearEmbed(shapes.teacher[-1][1], feat_dim)
        self.loss = Correlation()

    def kd(self, step: Step) -> Tensor:
        """The loss of the embedded features."""
        return self.loss(self.embed_s(step.student.features[-1]), self.embed_t(step.teacher.features[-1]))
