"""What can be done to the logits of both networks before any logit loss compares them.

- `--sort`: S. E. Limantoro, "Parameter-Free Logit Distillation via Sorting Mechanism", IEEE Signal Processing Letters
  2025, arXiv 2508.16544.
- `--logit_stand`: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, arXiv 2403.01427.
- `--curriculum_T`: Li et al., "Curriculum Temperature for Knowledge Distillation", AAAI 2023, arXiv 2211.16231.

Numbers checked against the official implementations of all three. Deviations: sorting is stable, so that tied classes
have one result; the other two have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from .base import Epochs, LogitPair, Shapes, Transform, transform
from .ramps import Epoch, between, half_cosine

__all__ = ["CurriculumTemperature", "Sort", "Standardise", "reversal_strength", "sort_logits", "standardise"]


HIDDEN = 128  # units of the network that gives each sample its temperature


def sort_logits(logits: Tensor, target: Tensor) -> Tensor:
    """Give the label the largest logit of its row; the other classes keep their order and take the other values.

    Args:
        logits: of the teacher (B, C).
        target: (B,) labels.

    Returns:
        (B, C): every row has the values that it had. A class that outranked the label gets the next lower value, one
        below it keeps its own; a row whose label is on top already is unchanged.
    """
    values, order = logits.sort(dim=1, descending=True, stable=True)
    label = target.unsqueeze(1)
    # the label goes first and the others keep their order: a stable sort of "is not the label" along the ranks
    first = (order != label).long().argsort(dim=1, stable=True)
    return torch.empty_like(logits).scatter(1, order.gather(1, first), values)


def standardise(logits: Tensor) -> Tensor:
    """(z - mean) / (std + 1e-7) of every row of logits (B, C), C >= 2; the standard deviation has C - 1 below."""
    return (logits - logits.mean(dim=1, keepdim=True)) / (logits.std(dim=1, keepdim=True) + 1e-7)


def reversal_strength(
    epoch: Epoch, loops: int, high: float = 0.0, low: float = -1.0, kind: Literal["cosine", "linear"] = "cosine"
) -> float | Tensor:
    """Factor of the gradient that reaches the temperature, from `high` to `low` over `loops` epochs.

    Args:
        epoch: from 1.
        loops: length of the curriculum, >= 0; 0 for `low` throughout.
        high, low: factor before the first and from the last epoch of the curriculum on.
        kind: `cosine`: half a cosine; `linear`: as in the official code, which starts from 0, whatever `high` is, falls
            by high - low in all, and stops one step before that.
    """
    if not loops:
        return low
    if kind == "linear":
        return -between(epoch, 0, loops - 1) * (high - low) / loops
    return low + (high - low) * half_cosine(epoch / loops)


def _scale_gradient(x: Tensor, factor: float | Tensor) -> Tensor:
    """Identity whose gradient is multiplied by a factor; a negative one reverses it."""
    return x.detach() + factor * (x - x.detach())


@transform("sort", order=1)
class Sort(Transform):
    """Give the label the teacher's largest logit, the order of the other classes kept (SortKD)."""

    def __init__(self, shapes: Shapes):
        super().__init__(shapes)
        # rows that were changed, rows that there were
        self.register_buffer("counts", torch.zeros(2), persistent=False)

    def forward(self, pair: LogitPair) -> LogitPair:
        """The pair with the teacher's logits sorted."""
        label = pair.teacher.gather(1, pair.target.unsqueeze(1)).squeeze(1)
        changed = (label < pair.teacher.amax(1)).sum()
        self.counts += torch.stack([changed, torch.full_like(changed, len(label))])
        return replace(pair, teacher=sort_logits(pair.teacher, pair.target))

    def figures(self) -> dict[str, float]:
        """Share of the rows since the last call in which the teacher was wrong, and which were therefore changed."""
        changed, rows = self.counts.tolist()
        self.counts.zero_()
        return {"sort_changed": changed / rows} if rows else {}


@transform("logit_stand", order=2)
class Standardise(Transform):
    """Z-score of both networks' logits, row by row; --kd_T is then the base temperature (LSKD; published: 2)."""

    rescales = True

    def __init__(self, shapes: Shapes):
        super().__init__(shapes)
        if shapes.classes < 2:
            raise ValueError("a single class has no standard deviation")

    def forward(self, pair: LogitPair) -> LogitPair:
        """The pair with both sides standardised; the gradient goes through mean and standard deviation."""
        return replace(pair, student=standardise(pair.student), teacher=standardise(pair.teacher))


def _temperature_network(classes: int) -> nn.Module:
    """From both networks' logits (B, 2C) to theta (B, 1); begins at 1 for every sample."""
    network = nn.Sequential(nn.Linear(2 * classes, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
    nn.init.zeros_(network[2].weight)
    nn.init.ones_(network[2].bias)
    return network


@transform("curriculum_T", order=3)
class CurriculumTemperature(Transform):
    """Learn the temperature against the student, by a reversed gradient that grows over the first epochs (CTKD).

    T = t_start + t_end·sigmoid(theta), theta starting at 1; the run's optimizer trains it, weight decay included.

    With `curriculum_scope` instance, two linear layers with 128 units between them give each sample its theta, from
    both networks' standardised logits, which get no gradient from that. The official code has no such variant: this is
    after the paper's description.

    Args:
        shapes: sizes of the networks and the data set.
        t_start: lowest temperature
        t_end: range of the temperature above it
        decay_kind: how the factor of the gradient falls
        decay_loops: epochs until it has fallen
        decay_max: factor before the first epoch
        decay_min: factor in the end
        curriculum_scope: one temperature, or one for each sample

    Raises:
        ValueError: a value is out of range.
    """

    sets_temperature = True
    aliases: Mapping[str, str] = {
        "--have_mlp 1": "--curriculum_T",
        "--have_mlp 0": "",
        "--mlp_name global": "--curriculum_scope global",
        "--mlp_name instance": "--curriculum_scope instance",
        "--cosine_decay 1": "--decay_kind cosine",
        "--cosine_decay 0": "--decay_kind linear",
    }

    def __init__(
        self,
        shapes: Shapes,
        t_start: float = 1.0,
        t_end: float = 20.0,
        decay_kind: Literal["cosine", "linear"] = "cosine",
        decay_loops: Epochs = 10,
        decay_max: float = 0.0,
        decay_min: float = -1.0,
        curriculum_scope: Literal["global", "instance"] = "global",
    ):
        super().__init__(shapes)
        if not t_start > 0 or not t_end >= 0 or decay_loops < 0:
            raise ValueError("--t_start must be above 0, --t_end and --decay_loops at least 0")
        self.t_start, self.t_end = t_start, t_end
        self.curriculum = {"loops": decay_loops, "high": decay_max, "low": decay_min, "kind": decay_kind}
        self.per_sample = curriculum_scope == "instance"
        if self.per_sample and shapes.classes < 2:
            raise ValueError("a single class has no standard deviation, which --curriculum_scope instance needs")
        if self.per_sample:
            self.predict = _temperature_network(shapes.classes)
            self.register_buffer("last_theta", torch.ones(1))
        else:
            self.theta = nn.Parameter(torch.ones(1))

    def temperature(self, theta: Tensor) -> Tensor:
        """T of a theta of any shape."""
        return self.t_start + self.t_end * torch.sigmoid(theta)

    def forward(self, pair: LogitPair) -> LogitPair:
        """The pair with the learned temperature, a 0-d tensor, or (B, 1) with one for each sample."""
        theta = self._predicted(pair) if self.per_sample else self.theta.squeeze(0)
        reversed_ = _scale_gradient(theta, reversal_strength(pair.epoch, **self.curriculum))
        return replace(pair, temperature=self.temperature(reversed_))

    def _predicted(self, pair: LogitPair) -> Tensor:
        # of any scale, logits would drive the sigmoid to its end at once
        scaled = [standardise(logits.detach()) for logits in (pair.student, pair.teacher)]
        theta = self.predict(torch.cat(scaled, dim=1))
        self.last_theta.copy_(theta.detach().mean())
        return theta

    def figures(self) -> dict[str, float]:
        """The temperature as it stands; where each sample has one, that of the last batch's mean theta."""
        theta = self.last_theta if self.per_sample else self.theta.detach()
        return {"temperature": self.temperature(theta).item()}
