"""The Dirichlet mathematics of EKD against its equations in 80 digits.

mpmath comes with PyTorch, which needs SymPy. Values and gradients may be off by RELATIVE of the largest entry plus
ABSOLUTE, for logits in [-100, 100].
"""

import itertools
import math

import mpmath as mp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Dirichlet

from distiller_zoo import DistillKL
from distiller_zoo.evidence import (
    EVIDENCE,
    _binet,
    _h,
    dirichlet_kl,
    evidential_cross_entropy,
    expected_cross_entropy,
    expected_entropy,
    expected_logits,
    flat_dirichlet_kl,
    log_alpha,
    mutual_information,
    second_order,
    uncertainty,
)
from distiller_zoo.functional import kl_divergence

mp.mp.dps = 80
RELATIVE = {torch.float32: 5e-5, torch.float64: 1e-8}
ABSOLUTE = {torch.float32: 5e-6, torch.float64: 1e-12}
LITERAL = {
    "exp": mp.exp,
    "softplus": lambda z: mp.log1p(mp.exp(z)),
    "relu": lambda z: max(z, 0),
    "log_softplus": lambda z: mp.log1p(mp.log1p(mp.exp(z))),
}


def literal_alpha(row: torch.Tensor, log_prior: float, evidence: str) -> list[mp.mpf]:
    return [LITERAL[evidence](mp.mpf(z)) + mp.exp(log_prior) for z in row.tolist()]


def literal_slope(row: torch.Tensor, evidence: str) -> list[mp.mpf]:
    if evidence == "relu":
        return [mp.mpf(z > 0) for z in row.tolist()]
    powers = [mp.exp(z) for z in row.tolist()]
    slopes = {
        "exp": lambda e: e,
        "softplus": lambda e: e / (1 + e),
        "log_softplus": lambda e: e / (1 + e) / (1 + mp.log1p(e)),
    }
    return [slopes[evidence](e) for e in powers]


def literal_kl(a_s: list[mp.mpf], a_t: list[mp.mpf]) -> mp.mpf:
    sum_s, sum_t = sum(a_s), sum(a_t)
    total = mp.loggamma(sum_t) - mp.loggamma(sum_s)
    for s, t in zip(a_s, a_t, strict=True):
        total += mp.loggamma(s) - mp.loggamma(t) + (t - s) * (mp.digamma(t) - mp.digamma(sum_t))
    return total


def literal_kl_slopes(a_s: list[mp.mpf], a_t: list[mp.mpf]) -> list[mp.mpf]:
    rest = mp.digamma(sum(a_t)) - mp.digamma(sum(a_s))
    return [mp.digamma(s) - mp.digamma(t) + rest for s, t in zip(a_s, a_t, strict=True)]


def mean(values: list) -> float:
    return float(sum(values) / len(values))


def assert_close(found: torch.Tensor, expected: float | list[list[mp.mpf]] | torch.Tensor) -> None:
    """`expected` as a number or rows of numbers."""
    if not isinstance(expected, torch.Tensor):
        expected = [[float(x) for x in row] for row in expected] if isinstance(expected, list) else float(expected)
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert found.isfinite().all()
    error = (found.detach().double() - expected).abs().max().item()
    assert error <= RELATIVE[found.dtype] * expected.abs().max().item() + ABSOLUTE[found.dtype]


@st.composite
def problems(draw, largest: float = 100.0):
    """Logits of two networks, labels, a log prior and an evidence; the numbers are those of float32 in either type."""
    classes, batch = draw(st.integers(2, 8)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([0.1, 1.0, 5.0, 30.0, largest]))
    s, t = (scale * (2 * torch.rand(batch, classes, generator=generator) - 1) for _ in "st")
    target = torch.randint(classes, (batch,), generator=generator)
    log_prior = draw(st.sampled_from([-3.0, -1.21875, 0.0, 1.0]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    return s.to(dtype).requires_grad_(True), t.to(dtype), target, log_prior, draw(st.sampled_from(list(EVIDENCE)))


def test_special_functions_in_many_digits():
    log_x = torch.linspace(-15, 15, 151, dtype=torch.float64)
    for u, h, mu in zip(log_x.tolist(), _h(log_x).tolist(), _binet(log_x).tolist(), strict=True):
        x = mp.exp(u)
        assert h == pytest.approx(float(x * (u - mp.digamma(x))), rel=1e-12)
        stirling = (x - 0.5) * u - x + mp.log(2 * mp.pi) / 2
        assert mu == pytest.approx(float(mp.loggamma(x) - stirling), rel=1e-12, abs=2e-15)


@pytest.mark.parametrize("evidence", list(EVIDENCE))
def test_log_alpha_in_many_digits(evidence):
    logits = torch.linspace(-100, 100, 201, dtype=torch.float64)
    for log_prior in (-20.0, -1.2, 3.0):
        expected = [float(mp.log(alpha)) for alpha in literal_alpha(logits, log_prior, evidence)]
        assert log_alpha(logits, log_prior, evidence).tolist() == pytest.approx(expected, rel=1e-13, abs=1e-14)


@settings(deadline=None, max_examples=60)
@given(problems())
def test_evidential_cross_entropy_in_many_digits(problem):
    s, _, target, log_prior, evidence = problem
    values, gradients = [], []
    for row, y in zip(s, target.tolist(), strict=True):
        alpha = literal_alpha(row, log_prior, evidence)
        values.append(mp.digamma(sum(alpha)) - mp.digamma(alpha[y]))
        slopes = [mp.psi(1, sum(alpha)) - (mp.psi(1, alpha[y]) if c == y else 0) for c in range(len(alpha))]
        slopes_of_evidence = literal_slope(row, evidence)
        gradients.append([a * b / len(s) for a, b in zip(slopes, slopes_of_evidence, strict=True)])
    loss = evidential_cross_entropy(s, target, log_prior, evidence)
    loss.backward()
    assert_close(loss, mean(values))
    assert_close(s.grad, gradients)


@settings(deadline=None, max_examples=60)
@given(problems(largest=100.0))
def test_second_order_in_many_digits(problem):
    s, t, _, log_prior, evidence = problem
    if evidence == "exp":  # beyond, see the next test
        s, t = s.detach().clamp(max=59).requires_grad_(True), t.clamp(max=59)
    values, gradients = [], []
    for row_s, row_t in zip(s, t, strict=True):
        a_s, a_t = literal_alpha(row_s, log_prior, evidence), literal_alpha(row_t, log_prior, evidence)
        values.append(literal_kl(a_s, a_t))
        slopes = zip(literal_kl_slopes(a_s, a_t), literal_slope(row_s, evidence), strict=True)
        gradients.append([a * b / len(s) for a, b in slopes])
    loss = second_order(s, t, log_prior, log_prior, evidence)
    loss.backward()
    assert_close(loss, mean(values))
    assert_close(s.grad, gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_evidence_beyond_the_largest_counts_as_that(dtype):
    s, t = torch.tensor([[66.1, -74.8]], dtype=dtype, requires_grad=True), torch.tensor([[81.5, 64.0]], dtype=dtype)
    loss = second_order(s, t, -3.0, -3.0, "exp")
    loss.backward()
    a_s, a_t = ([min(a, mp.exp(60)) for a in literal_alpha(row[0], -3.0, "exp")] for row in (s, t))
    assert_close(loss, literal_kl(a_s, a_t))
    assert s.grad[0, 0] == 0


@settings(deadline=None, max_examples=40)
@given(problems())
def test_the_other_losses_in_many_digits(problem):
    s, t, target, log_prior, evidence = problem
    flat, soft, shares = [], [], []
    for row_s, row_t, y in zip(s, t, target.tolist(), strict=True):
        prior, alpha = mp.exp(log_prior), literal_alpha(row_s, log_prior, evidence)
        shares.append([len(alpha) * prior / sum(alpha)])
        others = [prior if c == y else a for c, a in enumerate(alpha)]
        flat.append(literal_kl([prior] * len(alpha), others))
        a_s, a_t = (literal_alpha(row / 2, log_prior, "exp") for row in (row_s, row_t))
        soft.append(sum(a / sum(a_t) * (mp.digamma(sum(a_s)) - mp.digamma(b)) for a, b in zip(a_t, a_s, strict=True)))
    assert_close(flat_dirichlet_kl(s, target, log_prior, evidence), mean(flat))
    assert_close(expected_cross_entropy(s, t, 2.0, log_prior), mean(soft))
    vacuity = uncertainty(s, log_prior, evidence)
    assert_close(vacuity.unsqueeze(1), shares)
    entropies, informations = [], []
    for row in s:
        alpha = literal_alpha(row, log_prior, evidence)
        p = [a / sum(alpha) for a in alpha]
        entropy = sum(x * (mp.digamma(sum(alpha) + 1) - mp.digamma(a + 1)) for x, a in zip(p, alpha, strict=True))
        entropies.append([entropy])
        informations.append([-sum(x * mp.log(x) for x in p) - entropy])
    assert_close(expected_entropy(s, log_prior, evidence).unsqueeze(1), entropies)
    assert_close(mutual_information(s, log_prior, evidence).unsqueeze(1), informations)
    assert ((vacuity > 0) & (vacuity <= 1)).all()


LOSSES = {
    "evidential cross-entropy": lambda s, t, y, prior, evidence: evidential_cross_entropy(s, y, prior, evidence),
    "expected cross-entropy": lambda s, t, y, prior, evidence: expected_cross_entropy(s, t, 4.0, prior),
    "first order": lambda s, t, y, prior, evidence: kl_divergence(*(expected_logits(z, 4.0, prior) for z in (s, t))),
    "second order": lambda s, t, y, prior, evidence: second_order(s, t, prior, prior / 2, evidence),
    "flat": lambda s, t, y, prior, evidence: flat_dirichlet_kl(s, y, prior, evidence),
    "uncertainty": lambda s, t, y, prior, evidence: uncertainty(s, prior, evidence).sum(),
}
EXP_ONLY = {"expected cross-entropy", "first order"}
ALL_CASES = [
    pytest.param(loss, kind, id=f"{name}, {kind}")
    for name, loss in LOSSES.items()
    for kind in EVIDENCE
    if kind == "exp" or name not in EXP_ONLY
]


@pytest.mark.parametrize(("loss", "evidence"), ALL_CASES)
def test_gradients_are_those_of_the_losses(loss, evidence):
    generator = torch.Generator().manual_seed(0)
    s, t = (3 * torch.randn(2, 5, generator=generator, dtype=torch.float64) for _ in "st")
    prior = torch.tensor(-0.7, dtype=torch.float64, requires_grad=True)
    inputs = s.requires_grad_(True), t.requires_grad_(True), prior
    assert torch.autograd.gradcheck(lambda s, t, prior: loss(s, t, torch.tensor([3, 0]), prior, evidence), inputs)


@pytest.mark.parametrize(("loss", "evidence"), ALL_CASES)
@pytest.mark.parametrize("largest", [10.0, 100.0])
def test_float32_has_the_gradients_of_float64(loss, evidence, largest):
    generator = torch.Generator().manual_seed(1)
    s, t = (largest * (2 * torch.rand(8, 20, generator=generator) - 1) for _ in "st")
    target = torch.randint(20, (8,), generator=generator)
    gradients = {}
    for dtype in (torch.float32, torch.float64):
        inputs = [x.to(dtype).detach().requires_grad_(True) for x in (s, t, torch.tensor(-1.25))]
        total = loss(*inputs[:2], target, inputs[2], evidence)
        gradients[dtype] = torch.autograd.grad(total, inputs, allow_unused=True)
    for narrow, wide in zip(*gradients.values(), strict=True):
        assert (narrow is None) == (wide is None)
        if wide is not None:
            assert_close(narrow, wide)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("log_prior", [-20.0, -1.0, 1.0])
@pytest.mark.parametrize(("loss", "evidence"), ALL_CASES)
def test_stays_finite(loss, evidence, log_prior, dtype):
    spread = torch.linspace(-100, 100, 7).expand(2, 7)
    sure = torch.full((2, 7), -100.0).index_fill(1, torch.tensor(2), 100.0)
    rows = [spread, -spread, sure, -sure, sure.roll(1, dims=1), torch.zeros(2, 7), 10 * spread]
    s, t = (torch.cat(side) for side in zip(*itertools.product(rows, rows), strict=True))
    s, prior = s.to(dtype).requires_grad_(True), torch.tensor(log_prior, requires_grad=True)
    total = loss(s, t.to(dtype), torch.tensor([2, 5]).repeat(len(s) // 2), prior, evidence)
    total.backward()
    assert total.dtype == torch.float32
    assert all(value.isfinite().all() for value in (total, s.grad, prior.grad))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    generator = torch.Generator().manual_seed(0)
    s, t = (5 * torch.randn(4, 10, generator=generator).to(dtype) for _ in "st")
    assert second_order(s, t, -1.0, -1.0).equal(second_order(s.float(), t.float(), -1.0, -1.0))
    a_s, a_t = s.abs() + 0.5, t.abs() + 0.5
    assert dirichlet_kl(a_s, a_t).equal(dirichlet_kl(a_s.float(), a_t.float()))
    assert log_alpha(s, -1.0).equal(log_alpha(s.float(), -1.0))
    assert expected_logits(s, 3.0, -1.0).equal(expected_logits(s.float(), 3.0, -1.0))


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 50), st.integers(0, 2**31), st.sampled_from([-2.0, 0.0, 1.0, 4.0]))
def test_dirichlet_kl_is_that_of_torch(classes, seed, log_scale):
    generator = torch.Generator().manual_seed(seed)
    a_s, a_t = (torch.randn(3, classes, generator=generator, dtype=torch.float64).add(log_scale).exp() for _ in "st")
    a_s.requires_grad_(True)
    expected = torch.distributions.kl_divergence(Dirichlet(a_t), Dirichlet(a_s)).mean()
    found = dirichlet_kl(a_s, a_t)
    assert found.item() == pytest.approx(expected.item(), rel=1e-10, abs=1e-10)
    gradients = [torch.autograd.grad(loss, a_s)[0] for loss in (found, expected)]
    assert torch.allclose(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("size", [1.0, 1e2, 1e4, 1e6, 1e8])
@pytest.mark.parametrize("gap", [1e-3, 1e-2, 0.1])
def test_nearly_equal_dirichlets(size, gap, dtype, relative):
    generator = torch.Generator().manual_seed(0)
    a_t = size * (0.5 + torch.rand(1, 30, generator=generator))
    a_s = (a_t * (1 + gap * torch.randn(1, 30, generator=generator))).to(dtype)
    a_t = a_t.to(dtype)
    literal = float(literal_kl([mp.mpf(a) for a in a_s[0].tolist()], [mp.mpf(a) for a in a_t[0].tolist()]))
    assert dirichlet_kl(a_s, a_t).item() == pytest.approx(literal, rel=relative, abs=2e-6)


@settings(deadline=None, max_examples=60)
@given(problems())
def test_a_divergence_is_not_negative_and_0_at_equality(problem):
    s, t, target, log_prior, evidence = problem
    smallest = -ABSOLUTE[s.dtype]
    assert second_order(s, t, log_prior, log_prior, evidence).item() >= smallest
    assert flat_dirichlet_kl(s, target, log_prior, evidence).item() >= smallest
    assert evidential_cross_entropy(s, target, log_prior, evidence).item() >= smallest
    same = second_order(s, s.detach().clone(), log_prior, log_prior, evidence)
    assert same.item() == 0
    (grad,) = torch.autograd.grad(same, s)
    # rounding of terms that cancel, as large as alpha, times the slope of ln alpha
    scale = (1 + log_alpha(s, log_prior, evidence).max().clamp(max=60).exp()) * max(1, math.exp(-log_prior))
    assert (grad.abs() <= 20 * torch.finfo(s.dtype).eps * scale).all()


@settings(deadline=None, max_examples=30)
@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_the_classes_does_not_matter(problem, random):
    s, t, target, log_prior, evidence = problem
    order = list(range(s.shape[1]))
    random.shuffle(order)
    places = torch.tensor([order.index(y) for y in target.tolist()])
    for loss in LOSSES.values():
        before = loss(s.detach(), t, target, log_prior, evidence)
        assert_close(loss(s.detach()[:, order], t[:, order], places, log_prior, evidence), before.double())


def test_without_a_prior_the_first_order_is_ordinary_kd():
    generator = torch.Generator().manual_seed(0)
    s, t = (4 * torch.randn(8, 10, generator=generator, dtype=torch.float64) for _ in "st")
    for T in (1.0, 4.0):
        expected = DistillKL(T)(s, t).item()
        gaps = []
        for log_prior in (-2.0, -5.0, -10.0, -20.0, -1000.0):
            found = DistillKL(T)(expected_logits(s, T, log_prior), expected_logits(t, T, log_prior)).item()
            gaps.append(abs(found - expected))
        assert gaps == sorted(gaps, reverse=True)
        assert gaps[-1] < 1e-12


def test_expected_logits_give_the_expected_probabilities():
    z = torch.tensor([[3.0, -1.0, 0.5]], dtype=torch.float64)
    alpha = (z / 2).exp() + math.exp(-0.3)
    assert torch.allclose((expected_logits(z, 2.0, -0.3) / 2).softmax(1), alpha / alpha.sum())
    assert torch.allclose(log_alpha(z / 2, -0.3).exp(), alpha)


def test_limits_of_the_evidence():
    none, label = torch.full((1, 4), -200.0), torch.tensor([1])
    for evidence in EVIDENCE:
        for classes in (2, 3, 4):
            shares = [uncertainty(none[:, :classes], 0.01 * i, evidence).item() for i in range(-100, 100)]
            assert shares == pytest.approx([1] * len(shares))
            assert max(shares) <= 1, "rounding"
        only_label = none.index_fill(1, label, 3.0)
        assert flat_dirichlet_kl(only_label, label, -1.2, evidence).item() == pytest.approx(0, abs=1e-6)
        assert flat_dirichlet_kl(only_label, label - 1, -1.2, evidence).item() > 0.1
    much = torch.tensor([[40.0, 42.0, 41.0, 38.0]])
    cross_entropy = torch.nn.functional.cross_entropy(much, label)
    assert evidential_cross_entropy(much, label, -1.2).item() == pytest.approx(cross_entropy.item())
    assert uncertainty(much, -1.2).item() < 1e-15


def test_a_sure_teacher_is_a_label():
    s = torch.tensor([[2.0, -1.0, 0.3], [0.1, 0.2, 5.0]])
    teacher = torch.full((2, 3), -90.0).scatter(1, torch.tensor([[1], [2]]), 90.0)
    expected = evidential_cross_entropy(s, torch.tensor([1, 2]), -1.2)
    assert expected_cross_entropy(s, teacher, 1.0, -1.2).item() == pytest.approx(expected.item())


def test_a_learned_prior_and_a_number_agree():
    s, t = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double(), torch.zeros(3, 4).double()
    for loss in LOSSES.values():
        values = [loss(s, t, torch.tensor([0, 1, 2]), prior, "exp").item() for prior in (0.5, torch.tensor(0.5))]
        assert values[0] == pytest.approx(values[1])
