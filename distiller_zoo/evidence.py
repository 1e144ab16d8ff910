"""The mathematics of EKD: Xiang, Gao and Xu, "Evidential Knowledge Distillation", ICCV 2025.

A network's logits z (B, C) stand for a Dirichlet distribution over class probabilities with the parameters
α = evidence(z) + e^λ, whose sum is S; λ is the log prior, a number or a learned parameter. First order compares the
expected probabilities α/S, second order the distributions themselves. Numbers checked against the official repository,
lyxiang-casia/EKD, as first uploaded; its cleaned release has the same equations, but for the second order's evidence.

Everything is computed from ln α, and lnΓ and ψ are split into their leading part, which cancels on paper, and a small
remainder:

    ψ(x) = ln x - h(x)/x,  1/2 < h < 1        lnΓ(x) = (x - 1/2)·ln x - x + ln(2π)/2 + μ(x),  μ: Binet's function

Thereby e^z may exceed the range of the type, and the difference of two such large values keeps its digits.

Deviations: the softplus is exact for logits above 20, where PyTorch's returns z. Half-precision logits are computed in
float32. The official code bounds e^z at e^80 (the first upload's teacher) or lets it overflow; see `second_order`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .functional import wide

Evidence = Literal["exp", "softplus", "relu", "log_softplus"]

# ln x from which on the asymptotic series are exact to 12 digits
_SERIES_FROM = math.log(8.0)
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730)
_COEFFICIENTS_H = [b / (2 * k) for k, b in enumerate(_BERNOULLI, start=1)]
_COEFFICIENTS_BINET = [b / (2 * k * (2 * k - 1)) for k, b in enumerate(_BERNOULLI, start=1)]

# The KL grows like α, so that beyond this ln α it and its gradient would soon leave the range of float32.
_LARGEST = 60.0


def _softplus(logits: Tensor) -> Tensor:
    return -F.logsigmoid(-logits)


# ln α of logits and log prior
EVIDENCE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "exp": torch.logaddexp,
    "softplus": lambda logits, log_prior: (_softplus(logits) + log_prior.exp()).log(),
    "relu": lambda logits, log_prior: (logits.relu() + log_prior.exp()).log(),
    "log_softplus": lambda logits, log_prior: (_softplus(logits).log1p() + log_prior.exp()).log(),
}


def _scalar(log_prior: float | Tensor, like: Tensor) -> Tensor:
    """The log prior as a 0-d tensor that goes with another one."""
    return log_prior.to(like) if isinstance(log_prior, Tensor) else like.new_full((), log_prior)


def _series(inverse: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Σ_k c_k·y^(2k-1), k from 1, for y <= 1/8; float32 has no use for more than three terms."""
    first, *others = coefficients[: 3 if inverse.dtype == torch.float32 else None]
    square = inverse.square()
    total = square * others.pop()
    for coefficient in reversed(others):
        total = (total + coefficient) * square
    return (total + first) * inverse


def _split(log_x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Moderate x as ln x and x, and large x as 1/x for the series.

    Each is held within its own range, so that the branch which `torch.where` drops sends back a zero and not a NaN.
    """
    log_small = log_x.clamp(max=_SERIES_FROM)
    return log_small, log_small.exp(), (-log_x.clamp(min=_SERIES_FROM)).exp()


def _h(log_x: Tensor) -> Tensor:
    """x·(ln x - ψ(x)), which falls from 1 to 1/2 as x grows; with ψ(x) = ψ(1+x) - 1/x it has no pole at 0."""
    log_small, small, inverse = _split(log_x)
    moderate = 1 + small * (log_small - torch.digamma(1 + small))
    return torch.where(log_x < _SERIES_FROM, moderate, 0.5 + _series(inverse, _COEFFICIENTS_H))


def _binet(log_x: Tensor) -> Tensor:
    """μ(x) = lnΓ(x) - (x - 1/2)·ln x + x - ln(2π)/2, with lnΓ(x) = lnΓ(1+x) - ln x."""
    log_small, small, inverse = _split(log_x)
    moderate = torch.lgamma(1 + small) - (small + 0.5) * log_small + small - math.log(2 * math.pi) / 2
    return torch.where(log_x < _SERIES_FROM, moderate, _series(inverse, _COEFFICIENTS_BINET))


def _log_minus_digamma(log_x: Tensor) -> Tensor:
    """Of x: ln x - ψ(x), positive and about 1/(2x) where x is large."""
    return (-log_x).exp() * _h(log_x)


def check_log_prior(flag: str, value: float) -> None:
    """Refuse what is no logarithm of a prior, with a ValueError that names the flag."""
    if not -20 <= value <= 20:
        raise ValueError(f"--{flag} {value} is a logarithm and must lie between -20 and 20")


def log_alpha(logits: Tensor, log_prior: float | Tensor, evidence: Evidence = "exp") -> Tensor:
    """Logarithm of the Dirichlet parameters α = evidence(z) + e^λ (officially `get_evidence` and what follows it).

    Args:
        logits: z (B, C).
        log_prior: λ, a number or a 0-d tensor, which receives a gradient.
        evidence: `exp`: e^z; `softplus`: log(1 + e^z); `relu`: max(z, 0); `log_softplus`: log(1 + softplus(z)), the
            doubled logarithm of the first upload's second order.

    Returns:
        (B, C), float32 or wider.
    """
    logits = wide(logits)
    return EVIDENCE[evidence](logits, _scalar(log_prior, logits))


def expected_logits(logits: Tensor, temperature: float | Tensor, log_prior: float | Tensor) -> Tensor:
    """T·ln(e^(z/T) + e^λ): logits whose softmax at T is the expected probability α/S of exp evidence.

    Any loss that softens logits by T becomes its first-order version with them: the KL is then the paper's first order
    (officially `evidential_kd_loss` and `evidentialDiv`, at T = 1 in the cleaned release), DKD's terms are those of
    `evidential_dkd_loss`. As λ -> -∞ they tend to the logits themselves.

    Args:
        logits: z (B, C).
        temperature: T > 0.
        log_prior: λ, a number or a 0-d tensor.

    Returns:
        (B, C), float32 or wider.
    """
    return log_alpha(wide(logits) / temperature, log_prior) * temperature


def evidential_cross_entropy(
    logits: Tensor, target: Tensor, log_prior: float | Tensor, evidence: Evidence = "exp"
) -> Tensor:
    """Mean of ψ(S) - ψ(α_y): the cross-entropy with the label y, expected under Dir(α).

    Officially `evidentialCE` and `compute_ce_loss`. It is the cross-entropy of the expected probabilities plus a
    correction that vanishes as the evidence grows.

    Args:
        logits: z (B, C).
        target: (B,) labels.
        log_prior: λ, a number or a 0-d tensor.
        evidence: see `log_alpha`.

    Returns:
        A scalar >= 0.
    """
    log_a = log_alpha(logits, log_prior, evidence)
    label = log_a.gather(1, target.unsqueeze(1)).squeeze(1)
    of_label, of_sum = _log_minus_digamma(torch.stack([label, log_a.logsumexp(1)]))
    return F.cross_entropy(log_a, target) + (of_label - of_sum).mean()


def expected_cross_entropy(
    logits_s: Tensor, logits_t: Tensor, temperature: float | Tensor, log_prior: float | Tensor
) -> Tensor:
    """Mean of Σ_c p^t_c·(ψ(S^s) - ψ(α^s_c)): `evidential_cross_entropy` with the teacher's expected probabilities.

    A variant in the first upload (`expected_kd_ce_loss`), which is not in the cleaned release; without the factor T².

    Args:
        logits_s, logits_t: of student and teacher (B, C), both with exp evidence at temperature T.
        temperature: T > 0.
        log_prior: λ of both, a number or a 0-d tensor.

    Returns:
        A scalar >= 0.
    """
    log_s, log_t = (log_alpha(wide(z) / temperature, log_prior) for z in (logits_s, logits_t))
    p_t = log_t.softmax(1)
    correction = (p_t * _log_minus_digamma(log_s)).sum(1) - _log_minus_digamma(log_s.logsumexp(1))
    return F.cross_entropy(log_s, p_t) + correction.mean()


def _remainder(log_s: Tensor, log_t: Tensor, log_ratio: Tensor) -> Tensor:
    """Bregman divergence of lnΓ(x) - x·ln x + x between s and t, the part of lnΓ's that does not cancel."""
    return log_ratio.expm1() * _h(log_t) - log_ratio / 2 + _binet(log_s) - _binet(log_t)


def _divergence(log_s: Tensor, log_t: Tensor, log_ratio: Tensor) -> Tensor:
    """Mean of KL(Dir(t) ‖ Dir(s)) of ln s, ln t and ln(s/t), each (B, C).

    The KL is the sum over classes of the Bregman divergence of lnΓ between s_c and t_c minus that between the sums.
    Of these the parts from x·ln x - x together give S^s·KL(p^s ‖ p^t), p being the expected probabilities. That one is
    summed as s_c·(v + e^(-v) - 1), v = ln(p^s_c/p^t_c), so that every term, and its slope, vanishes at equality.
    """
    log_sum_s, log_sum_t = (log.logsumexp(1, keepdim=True) for log in (log_s, log_t))
    sum_ratio = log_sum_s - log_sum_t
    v = log_ratio - sum_ratio
    leading = log_s.exp() * (v + (-v).expm1())
    # the sums go along as one more class
    pairs = (log_s, log_sum_s), (log_t, log_sum_t), (log_ratio, sum_ratio)
    remainder = _remainder(*(torch.cat(pair, dim=1) for pair in pairs))
    return (leading.sum(1) + remainder[:, :-1].sum(1) - remainder[:, -1]).mean()


def dirichlet_kl(alpha_s: Tensor, alpha_t: Tensor) -> Tensor:
    """Mean of KL(Dir(α^t) ‖ Dir(α^s)); officially `compute_ekd_loss`.

    Args:
        alpha_s, alpha_t: Dirichlet parameters (B, C) > 0 of student and teacher.

    Returns:
        A scalar >= 0 up to rounding, exactly 0 for equal parameters.
    """
    alpha_s, alpha_t = wide(alpha_s), wide(alpha_t)
    # the logarithm of the ratio: more precise than the difference of the logarithms, which matters where both are large
    return _divergence(alpha_s.log(), alpha_t.log(), (alpha_s / alpha_t).log())


def second_order(
    logits_s: Tensor,
    logits_t: Tensor,
    log_prior_s: float | Tensor,
    log_prior_t: float | Tensor,
    evidence: Evidence = "softplus",
) -> Tensor:
    """Mean of KL(Dir(α^t) ‖ Dir(α^s)) of logits: the paper's second order, which the caller weighs and warms up.

    The cleaned release has softplus evidence, the first upload `log_softplus`.

    Deviation: α counts as e^60 where it is larger, and its logit then gets no gradient. Only exp evidence gets there.

    Args:
        logits_s, logits_t: of student and teacher (B, C).
        log_prior_s, log_prior_t: their λ, numbers or 0-d tensors.
        evidence: see `log_alpha`.

    Returns:
        A scalar >= 0 up to rounding, exactly 0 for equal logits and priors.
    """
    pairs = (logits_s, log_prior_s), (logits_t, log_prior_t)
    log_s, log_t = (log_alpha(z, prior, evidence).clamp(max=_LARGEST) for z, prior in pairs)
    return _divergence(log_s, log_t, log_s - log_t)


def flat_dirichlet_kl(logits: Tensor, target: Tensor, log_prior: float | Tensor, evidence: Evidence = "exp") -> Tensor:
    """Mean of KL(Dir(α̃) ‖ Dir(e^λ·1)), α̃ being α without the evidence for the label: it penalises all other evidence.

    A regulariser of evidential teachers, which the caller anneals; defined but switched off in the official code.

    Deviation: the first upload adds 1e-8 to the arguments of Γ and ψ and takes what is not finite for 0; and it takes
    λ, not e^λ, for the prior here.

    Args:
        logits: z (B, C).
        target: (B,) labels.
        log_prior: λ, a number or a 0-d tensor.
        evidence: see `log_alpha`.

    Returns:
        A scalar >= 0 up to rounding, 0 where no class beside the label has evidence.
    """
    log_a = log_alpha(logits, log_prior, evidence)
    flat = _scalar(log_prior, log_a).expand_as(log_a)
    is_label = torch.zeros_like(log_a, dtype=torch.bool).scatter(1, target.unsqueeze(1), True)
    log_a = torch.where(is_label, flat, log_a)
    return _divergence(flat, log_a, flat - log_a)


def uncertainty(logits: Tensor, log_prior: float | Tensor, evidence: Evidence = "exp") -> Tensor:
    """C·e^λ/S, the share of the prior in the evidence (vacuity): 1 without any evidence, toward 0 with much.

    Args:
        logits: z (B, C).
        log_prior: λ, a number or a 0-d tensor.
        evidence: see `log_alpha`.

    Returns:
        (B,) in (0, 1].
    """
    log_a = log_alpha(logits, log_prior, evidence)
    log_share = _scalar(log_prior, log_a) + math.log(log_a.shape[1]) - log_a.logsumexp(1)
    return log_share.clamp(max=0).exp()  # rounding may take it past 1


def mutual_information(logits: Tensor, log_prior: float | Tensor, evidence: Evidence = "exp") -> Tensor:
    """Of the class and the class probabilities under Dir(α): how far these are from known (Malinin and Gales, 2018).

    Σ_c p_c·((ln S - ψ(S+1)) - (ln α_c - ψ(α_c+1))), p = α/S, which is (Σ_c (1 - h(α_c)) - (1 - h(S)))/S.

    Args:
        logits: z (B, C).
        log_prior: λ, a number or a 0-d tensor.
        evidence: see `log_alpha`.

    Returns:
        (B,) in nats, >= 0 up to rounding, toward 0 with much evidence.
    """
    log_a = log_alpha(logits, log_prior, evidence)
    log_sum = log_a.logsumexp(1)
    return ((1 - _h(log_a)).sum(1) - (1 - _h(log_sum))) * (-log_sum).exp()


def expected_entropy(logits: Tensor, log_prior: float | Tensor, evidence: Evidence = "exp") -> Tensor:
    """Mean under Dir(α) of the entropy of the class probabilities (Malinin and Gales, 2018), (B,) in nats, >= 0.

    The entropy of the expected probabilities less `mutual_information`, with its arguments.
    """
    log_p = log_alpha(logits, log_prior, evidence).log_softmax(1)
    return -(log_p.exp() * log_p).sum(1) - mutual_information(logits, log_prior, evidence)
