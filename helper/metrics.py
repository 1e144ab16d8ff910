"""Figures of a classifier from its logits: accuracy, calibration, agreement, and how a score tells two groups apart.

Everything is computed in float64 on what it is given; shares are in [0, 1], logarithms natural.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 15


def topk_accuracy(logits: Tensor, target: Tensor, k: int = 1) -> float:
    """Share of samples whose label is among the k largest logits, in [0, 1].

    Args:
        logits: (N, C).
        target: (N,) labels.
        k: from 1; all classes where there are fewer.
    """
    top = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (top == target[:, None]).any(1).double().mean().item()


def class_accuracy(logits: Tensor, target: Tensor) -> Tensor:
    """Share of right answers among the samples of each class.

    Args:
        logits: (N, C).
        target: (N,) labels.

    Returns:
        (C,) float64 in [0, 1], NaN for a class without samples.
    """
    classes = logits.shape[1]
    right = target[logits.argmax(1) == target]
    return right.bincount(minlength=classes).double() / target.bincount(minlength=classes)


def confused_pairs(logits: Tensor, target: Tensor, count: int = 10) -> list[tuple[int, int, int]]:
    """The mistakes that are made most often.

    Args:
        logits: (N, C).
        target: (N,) labels.
        count: how many to name at most.

    Returns:
        (label, answer, number of samples), the most frequent first, then by label and answer; none with 0 samples.
    """
    classes = logits.shape[1]
    wrong = logits.argmax(1) != target
    pairs = (target[wrong] * classes + logits[wrong].argmax(1)).bincount(minlength=classes**2)
    order = pairs.argsort(descending=True, stable=True)[:count].tolist()
    return [(pair // classes, pair % classes, int(pairs[pair])) for pair in order if pairs[pair]]


def negative_log_likelihood(logits: Tensor, target: Tensor) -> float:
    """Mean of -ln p(label), p being the softmax of logits (N, C), labels (N,); in nats, >= 0."""
    return F.cross_entropy(logits.double(), target).item()


@dataclass
class Reliability:
    """A reliability diagram: samples in bins of equal width by confidence, the largest probability.

    Attributes:
        count: (M,) int64, samples of each bin.
        confidence, accuracy: (M,) float64 in [0, 1], means over a bin, NaN for an empty one.
    """

    count: Tensor
    confidence: Tensor
    accuracy: Tensor

    @property
    def calibration_error(self) -> float:
        """ECE: mean of |accuracy - confidence| over the bins, weighed by their samples; in [0, 1]."""
        gaps = (self.accuracy - self.confidence).abs().nan_to_num()
        return (gaps @ self.count.double() / self.count.sum()).item()


def reliability(logits: Tensor, target: Tensor, bins: int = BINS) -> Reliability:
    """Reliability diagram and expected calibration error (Guo et al., On Calibration of Modern Neural Networks, 2017).

    Bin m of M holds confidences in ((m - 1)/M, m/M].

    Args:
        logits: (N, C).
        target: (N,) labels.
        bins: M.
    """
    confidence, answer = logits.double().softmax(1).max(1)
    inner_edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=logits.device)[1:-1]
    place = torch.bucketize(confidence, inner_edges)
    count = place.bincount(minlength=bins)
    sums = (place.bincount(weights, minlength=bins) for weights in (confidence, (answer == target).double()))
    return Reliability(count, *(total / count for total in sums))


def agreement(logits: Tensor, other: Tensor) -> float:
    """Share of samples for which two networks' logits (N, C) have the same largest class, in [0, 1]."""
    return (logits.argmax(1) == other.argmax(1)).double().mean().item()


def mean_kl(logits_s: Tensor, logits_t: Tensor) -> float:
    """Mean of KL(softmax(t) ‖ softmax(s)) for the logits (N, C) of student and teacher; in nats, >= 0."""
    log_s, log_t = (logits.double().log_softmax(1) for logits in (logits_s, logits_t))
    return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True).item()


def max_softmax(logits: Tensor) -> Tensor:
    """Largest probability (N,) in (0, 1] of logits (N, C), low for the unknown.

    Source: Hendrycks and Gimpel, A Baseline for Detecting Misclassified and Out-of-Distribution Examples, ICLR 2017.
    """
    return logits.double().softmax(1).amax(1)


def negative_energy(logits: Tensor) -> Tensor:
    """Ln Σ_c e^(z_c), (N,) of logits z (N, C): minus the energy at T = 1, low for the unknown.

    Source: Liu et al., Energy-based Out-of-distribution Detection, NeurIPS 2020.
    """
    return logits.double().logsumexp(1)


def _refuse_empty(positive: Tensor, negative: Tensor) -> None:
    if not len(positive) or not len(negative):
        raise ValueError("a score can only tell two groups apart where neither is empty")


def _labelled(positive: Tensor, negative: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """What scikit-learn takes: 1 for the positive and 0 for the negative samples, and the scores of both."""
    _refuse_empty(positive, negative)
    truth = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))])
    return truth.numpy(), torch.cat([positive, negative]).double().cpu().numpy()


def auroc(positive: Tensor, negative: Tensor) -> float:
    """Chance that a positive sample scores higher than a negative one, a tie counting half; in [0, 1].

    Args:
        positive, negative: finite scores (P,) and (N,).

    Raises:
        ValueError: one of them is empty.
    """
    from sklearn.metrics import roc_auc_score  # only here: training needs no scikit-learn

    return float(roc_auc_score(*_labelled(positive, negative)))


def aupr(positive: Tensor, negative: Tensor) -> float:
    """Area under precision over recall as the sum of steps (average precision); in [0, 1].

    Unlike `auroc` it depends on the numbers of samples: without any skill it is P/(P + N).

    Args:
        positive, negative: finite scores (P,) and (N,), the positive ones meant to be higher.

    Raises:
        ValueError: one of them is empty.
    """
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(*_labelled(positive, negative)))


def fpr_at_tpr(positive: Tensor, negative: Tensor, rate: float = 0.95) -> float:
    """Share of the negative samples that pass the highest threshold which the given share of the positive ones passes.

    Args:
        positive, negative: finite scores (P,) and (N,); a score equal to the threshold passes.
        rate: true positive rate in (0, 1] that is at least reached.

    Returns:
        The false positive rate in [0, 1], 0 being best.

    Raises:
        ValueError: one of them is empty.
    """
    _refuse_empty(positive, negative)
    # a product that is rounded up must not ask for one sample more
    needed = max(1, math.ceil(rate * len(positive) - 1e-9))
    threshold = positive.sort(descending=True).values[needed - 1]
    return (negative >= threshold).double().mean().item()


def detection(inside: Tensor, outside: Tensor) -> dict[str, float]:
    """How well a score tells in-distribution samples (N,), the positive class, from others (M,), which should be lower.

    Returns:
        `auroc`, `aupr` and `fpr95`, the false positive rate at 95 % true positives, in [0, 1].

    Raises:
        ValueError: one of them is empty.
    """
    return {
        "auroc": auroc(inside, outside),
        "aupr": aupr(inside, outside),
        "fpr95": fpr_at_tpr(inside, outside),
    }
