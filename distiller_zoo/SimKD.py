"""SimKD: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022, arXiv 2203.14001.

Numbers checked against the official `SimKD` module. Deviations: the teacher's map is the one that its classifier pools,
which is its last stage's in the networks of the paper's tables but for the wide ResNets; the student's own classifier,
which the official optimizer only decays, is left alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Distiller, Needs, Shapes, Step, register
from .heads import PooledMapNetwork
from .spatial import match_size

__all__ = ["Projector", "ReusedClassifierStudent", "SimKD"]

# entries of a `ReusedClassifierStudent`'s state dict that tell its sizes; older files lack the last one
SHAPING = ("projector.transfer.0.weight", "classifier.weight")
MAP_SIZE = "map_size"


class Projector(nn.Module):
    """Bottleneck of three convolutions from the student's channels to the teacher's, without biases.

    Args:
        s_n, t_n: channels of the student's and the teacher's map.
        factor: reduction of the teacher's channels inside.
    """

    def __init__(self, s_n: int, t_n: int, factor: int = 2):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, kernel in (
            (s_n, t_n // factor, 1),
            (t_n // factor, t_n // factor, 3),
            (t_n // factor, t_n, 1),
        ):
            layers += [
                nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        self.transfer = nn.Sequential(*layers)

    def forward(self, f: Tensor) -> Tensor:
        """The projection (B, t_n, H, W) of a map (B, s_n, H, W)."""
        return self.transfer(f)


class ReusedClassifierStudent(nn.Module):
    """The student's backbone, a projector and the teacher's frozen classifier: what is trained, tested and saved.

    It has the interface of the networks of `models/`; the projected map is its last one, and is pooled.

    Args:
        student: of `models/`.
        projector: from the student's last map to the teacher's channels.
        classifier: the teacher's, taken over as a frozen copy.
        size: height and width of the teacher's map; a larger student map is pooled to it.
    """

    def __init__(self, student: nn.Module, projector: Projector, classifier: nn.Linear, size: tuple[int, int]):
        super().__init__()
        self.student, self.projector, self.size = student, projector, size
        self.input_size, self.mean, self.std = student.input_size, student.mean, student.std
        self.classifier = copy.deepcopy(classifier).requires_grad_(False)
        self.register_buffer(MAP_SIZE, torch.tensor(size))  # for `restored`
        student.get_classifier().requires_grad_(False)

    @staticmethod
    def has_weights(state: Mapping[str, Tensor]) -> bool:
        """Whether a state dict is that of such a module."""
        return all(name in state for name in SHAPING)

    @classmethod
    def restored(cls, student: nn.Module, state: Mapping[str, Tensor]) -> ReusedClassifierStudent:
        """The module whose state dict this is, without its weights.

        Args:
            student: of `models/`.
            state: for which `has_weights` is true.

        Raises:
            ValueError: it does not tell the size of the teacher's map.
        """
        if MAP_SIZE not in state:
            raise ValueError("it was saved by an older version, which did not note the size of the teacher's map")
        first, head, size = (state[name] for name in (*SHAPING, MAP_SIZE))
        (inner, s_n, *_), (classes, t_n) = first.shape, head.shape
        classifier = nn.Linear(t_n, classes, bias="classifier.bias" in state)
        return cls(student, Projector(s_n, t_n, t_n // inner), classifier, tuple(size.tolist()))

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *arguments: Any) -> None:
        """Take an older state, of the same networks, too."""
        state.setdefault(prefix + MAP_SIZE, self.map_size)
        super()._load_from_state_dict(state, prefix, *arguments)

    def trunk(self, x: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Features of images (B, 3, H, W), the same before their activation, and the projected map, last in both."""
        if getattr(self.student, "pools_a_map", True):
            features, preacts, _ = self.student.trunk(x)
        else:
            features = preacts = self.student(x, is_feat=True)[0][:-1]
        last = features[-1]
        if last.shape[2:] > self.size:
            last = F.adaptive_avg_pool2d(last, self.size)
        last = self.projector(last)
        return [*features[:-1], last], [*preacts[:-1], last], last

    def forward(self, x: Tensor, is_feat: bool = False, preact: bool = False) -> Tensor | tuple[list[Tensor], Tensor]:
        """Classify images (B, 3, H, W): logits (B, C), with is_feat after the features, the last map projected."""
        features, preacts, last = self.trunk(x)
        pooled = last.mean((2, 3))
        logits = self.classifier(pooled)
        return ([*(preacts if preact else features), pooled], logits) if is_feat else logits

    def get_classifier(self) -> nn.Linear:
        """The teacher's."""
        return self.classifier


@register("simkd", paper="The Reused Teacher Classifier, CVPR 2022", r=0.0, a=0.0, b=1.0)
class SimKD(Distiller):
    """-a weighs the KL term, -b the squared distance of the projected last map (B, C_t, H, W) from the teacher's.

    The student keeps the projector and the teacher's classifier, also when it is used.

    Args:
        shapes: sizes of the networks and the data set.
        factor: reduction of the channels inside the projector

    Raises:
        ValueError: factor is below 1 or above the teacher's channels.
    """

    needs = Needs(features="mid")

    def __init__(self, shapes: Shapes, factor: int = 2):
        super().__init__(shapes)
        channels = shapes.teacher[-1][1]
        if not 1 <= factor <= channels:
            raise ValueError(f"--factor {factor} is not between 1 and the teacher's {channels} channels")
        self.factor = factor

    def wrap_student(self, student: nn.Module, teacher: nn.Module) -> nn.Module:
        """The student with projector and the teacher's classifier."""
        projector = Projector(self.shapes.student[-2][1], self.shapes.teacher[-1][1], self.factor)
        return ReusedClassifierStudent(student, projector, teacher.get_classifier(), tuple(self.shapes.teacher[-2][2:]))

    def wrap_teacher(self, teacher: nn.Module) -> nn.Module:
        """The teacher with the map that its classifier pools as its last."""
        return PooledMapNetwork(teacher)

    def kd(self, step: Step) -> Tensor:
        """Mean squared error of the projected map against the teacher's, the larger pooled."""
        return F.mse_loss(*match_size(step.student.features[-2], step.teacher.features[-2]))
