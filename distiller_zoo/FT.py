"""FT: Kim, Park and Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018.

arXiv 1802.04977. Numbers checked against RepDistiller's `FactorTransfer`. Deviations: the paper compares whole factors;
like RepDistiller, the squared factor is averaged over channels first. RepDistiller pre-trains the paraphraser at the
student's rate where the student is a VGG, at 0.01 otherwise; here it is 0.01 for all.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Distiller, Epochs, Needs, Shapes, Stage, Step, register
from .spatial import match_size

__all__ = ["FactorTransfer", "Paraphraser", "Translator"]

SLOPE = 0.1  # of the leaky ReLUs


class FactorTransfer(nn.Module):
    """Distance of two factors, each collapsed over its channels and normalised.

    Args:
        p1: power of the factor before the mean over channels.
        p2: power of the difference, 1 for its absolute value.
    """

    def __init__(self, p1: int = 2, p2: int = 1):
        super().__init__()
        self.p1, self.p2 = p1, p2

    def factor(self, f: Tensor) -> Tensor:
        """Normalised map (B, H·W) of a factor (B, C, H, W)."""
        return F.normalize(f.pow(self.p1).mean(1).flatten(1))

    def forward(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """Loss of the student's factor against the teacher's, (B, C, H, W) each, the larger pooled; a scalar."""
        f_s, f_t = match_size(f_s, f_t)
        difference = self.factor(f_s) - self.factor(f_t)
        return difference.abs().mean() if self.p2 == 1 else difference.pow(self.p2).mean()


def _layers(channels: list[int], transposed: bool = False, batch_norm: bool = False) -> nn.Sequential:
    """3×3 convolutions from each number of channels to the next, each with its activation."""
    convolution = nn.ConvTranspose2d if transposed else nn.Conv2d
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers.append(convolution(before, after, kernel_size=3, padding=1))
        if batch_norm:
            layers.append(nn.BatchNorm2d(after))
        layers.append(nn.LeakyReLU(SLOPE))
    return nn.Sequential(*layers)


class Paraphraser(nn.Module):
    """Autoencoder of the teacher's last map; the code is the teacher's factor.

    Args:
        t_shape: (B, C, H, W) of the map.
        k: channels of the factor over those of the map.
    """

    def __init__(self, t_shape: torch.Size, k: float = 0.5):
        super().__init__()
        wide, narrow = t_shape[1], int(t_shape[1] * k)
        self.encoder = _layers([wide, wide, narrow, narrow])
        self.decoder = _layers([narrow, narrow, wide, wide], transposed=True)

    def forward(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """The factor (B, k·C, H, W) of a map (B, C, H, W), and the map that is made from it."""
        factor = self.encoder(f)
        return factor, self.decoder(factor)


class Translator(nn.Module):
    """Convolutions from the student's last map to a factor.

    Args:
        s_shape: (B, C_s, H, W) of the student's map.
        t_shape: (B, C_t, H, W) of the teacher's.
        k: channels of the factor over C_t.
    """

    def __init__(self, s_shape: torch.Size, t_shape: torch.Size, k: float = 0.5):
        super().__init__()
        narrow = int(t_shape[1] * k)
        self.encoder = _layers([s_shape[1], s_shape[1], narrow, narrow], batch_norm=True)

    def forward(self, f: Tensor) -> Tensor:
        """The student's factor (B, k·C_t, H, W)."""
        return self.encoder(f)


@register("factor", paper="Paraphrasing Complex Network, NeurIPS 2018", r=1.0, a=0.0, b=200.0)
class Factor(Distiller):
    """-a weighs the KL term, -b the distance of the factors of the last maps (B, C, H, W).

    A first stage trains the paraphraser to reproduce the teacher's map.

    Args:
        shapes: sizes of the networks and the data set.
        init_epochs: epochs of the first stage
        init_learning_rate: its learning rate

    Raises:
        ValueError: an option is out of range.
    """

    needs = Needs(features="mid")

    def __init__(self, shapes: Shapes, init_epochs: Epochs = 30, init_learning_rate: float = 0.01):
        super().__init__(shapes)
        if init_epochs < 1 or init_learning_rate <= 0:
            raise ValueError(
                f"--init_epochs {init_epochs} and --init_learning_rate {init_learning_rate} must be above 0"
            )
        self.init_epochs, self.init_learning_rate = init_epochs, init_learning_rate
        self.paraphraser = Paraphraser(shapes.teacher[-2])
        self.translator = Translator(shapes.student[-2], shapes.teacher[-2])
        self.loss = FactorTransfer()

    def reconstruction(self, step: Step) -> Tensor:
        """The loss of the first stage: mean squared error of the paraphraser's copy of the teacher's map."""
        return F.mse_loss(self.paraphraser(step.teacher.features[-2])[1], step.teacher.features[-2])

    def stages(self, student: nn.Module) -> list[Stage]:
        """The paraphraser learns to reproduce the teacher's map."""
        return [Stage("init", self.init_epochs, (self.paraphraser,), self.reconstruction, self.init_learning_rate)]

    def kd(self, step: Step) -> Tensor:
        """The distance of the student's factor from the teacher's, which is no longer trained."""
        with torch.no_grad():
            factor = self.paraphraser.encoder(step.teacher.features[-2])
        return self.loss(self.translator(step.student.features[-2]), factor)
