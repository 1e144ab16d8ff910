"""DKD, WSLD and DIST against their equations, written out with loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distiller_zoo import (
    DIST,
    DKD,
    LDRLD,
    Shapes,
    Step,
    TwoViews,
    WSLDLoss,
    dkd_terms,
    mlkd_terms,
    registry,
    weighted_soft_labels,
    wkd_logit_terms,
)
from distiller_zoo.base import LogitPair, Output
from distiller_zoo.functional import kl_divergence
from distiller_zoo.ramps import cosine_decay, warm_up
from distiller_zoo.WSLD import soft_label_weights


def softmax(z: list[float], T: float = 1.0) -> list[float]:
    top = max(z)
    powers = [math.exp((value - top) / T) for value in z]
    return [power / sum(powers) for power in powers]


def log_softmax(z: list[float], T: float = 1.0) -> list[float]:
    top = max(z)
    total = math.log(sum(math.exp((value - top) / T) for value in z))
    return [(value - top) / T - total for value in z]


def kl(p: list[float], log_p: list[float], log_q: list[float]) -> float:
    return sum(a * (b - c) for a, b, c in zip(p, log_p, log_q, strict=True))


def literal_dkd(s: torch.Tensor, t: torch.Tensor, target: torch.Tensor, T: float) -> tuple[float, float]:
    tckd = nckd = 0.0
    for zs, zt, y in zip(s.tolist(), t.tolist(), target.tolist(), strict=True):
        two = []
        for z in (zs, zt):
            p = softmax(z, T)
            two.append([p[y], sum(p[c] for c in range(len(p)) if c != y)])
        tckd += kl(two[1], *([math.log(value) for value in side] for side in (two[1], two[0])))
        rest_s, rest_t = ([z[c] for c in range(len(z)) if c != y] for z in (zs, zt))
        nckd += kl(softmax(rest_t, T), log_softmax(rest_t, T), log_softmax(rest_s, T))
    return T * T * tckd / len(s), T * T * nckd / len(s)


def literal_wsld(s: torch.Tensor, t: torch.Tensor, target: torch.Tensor, T: float) -> float:
    total = 0.0
    for zs, zt, y in zip(s.tolist(), t.tolist(), target.tolist(), strict=True):
        ratio = -log_softmax(zs)[y] / (-log_softmax(zt)[y] + 1e-7)
        cross_entropy = -sum(p * log_q for p, log_q in zip(softmax(zt, T), log_softmax(zs, T), strict=True))
        total += (1 - math.exp(-ratio)) * cross_entropy
    return T * T * total / len(s)


def literal_correlation(x: list[float], y: list[float]) -> float:
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    x, y = [value - mean_x for value in x], [value - mean_y for value in y]
    product = sum(a * b for a, b in zip(x, y, strict=True))
    return product / (math.sqrt(sum(a * a for a in x)) * math.sqrt(sum(b * b for b in y)) + 1e-8)


def literal_dist(s: torch.Tensor, t: torch.Tensor, T: float) -> tuple[float, float]:
    p_s, p_t = ([softmax(row, T) for row in z.tolist()] for z in (s, t))
    rows = [literal_correlation(a, b) for a, b in zip(p_s, p_t, strict=True)]
    columns = [literal_correlation(a, b) for a, b in zip(zip(*p_s, strict=True), zip(*p_t, strict=True), strict=True)]
    return tuple(T * T * (1 - sum(part) / len(part)) for part in (rows, columns))


@st.composite
def problems(draw):
    classes, batch = draw(st.integers(3, 12)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([0.1, 1.0, 5.0, 30.0]))
    s, t = (scale * torch.randn(batch, classes, generator=generator, dtype=torch.float64) for _ in "st")
    target = torch.randint(classes, (batch,), generator=generator)
    return s, t, target, draw(st.sampled_from([1.0, 2.0, 4.0, 10.0]))


@settings(deadline=None, max_examples=100)
@given(problems())
def test_dkd_equals_the_literal_equation(problem):
    s, t, target, T = problem
    tckd, nckd = dkd_terms(s, t, target, T)
    expected_tckd, expected_nckd = literal_dkd(s, t, target, T)
    assert tckd.item() == pytest.approx(expected_tckd, rel=1e-9, abs=1e-10)
    assert nckd.item() == pytest.approx(expected_nckd, rel=1e-9, abs=1e-10)
    assert DKD()(s, t, target, 1.5, 8.0, T).item() == pytest.approx(1.5 * tckd.item() + 8 * nckd.item())


@settings(deadline=None, max_examples=50)
@given(problems())
def test_dkd_decomposes_the_kl(problem):
    s, t, target, T = problem
    for row in range(len(s)):
        one = slice(row, row + 1)
        tckd, nckd = dkd_terms(s[one], t[one], target[one], T)
        others = torch.ones(s.shape[1], dtype=torch.bool)
        others[target[row]] = False
        rest = (t[row] / T).softmax(0)[others].sum()
        assert (tckd + rest * nckd).item() == pytest.approx(kl_divergence(s[one], t[one], T).item(), abs=1e-9)


@settings(deadline=None, max_examples=100)
@given(problems())
def test_wsld_equals_the_literal_equation(problem):
    s, t, target, T = problem
    expected = literal_wsld(s, t, target, T)
    assert weighted_soft_labels(s, t, target, T).item() == pytest.approx(expected, rel=1e-9, abs=1e-10)
    assert WSLDLoss(T, 2.5)(s, t, target).item() == pytest.approx(2.5 * expected, rel=1e-9, abs=1e-10)


@settings(deadline=None, max_examples=100)
@given(problems())
def test_dist_equals_the_literal_equation(problem):
    s, t, _, T = problem
    inter, intra = DIST.terms(s, t, T)
    expected_inter, expected_intra = literal_dist(s, t, T)
    assert inter.item() == pytest.approx(expected_inter, rel=1e-9, abs=1e-9)
    assert intra.item() == pytest.approx(expected_intra, rel=1e-9, abs=1e-9)
    assert DIST(2.0, 3.0, T)(s, t).item() == pytest.approx(2 * inter.item() + 3 * intra.item(), abs=1e-9)


def some_logits(batch: int = 3, classes: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    s, t = (2 * torch.randn(batch, classes, generator=generator, dtype=torch.float64) for _ in "st")
    return s.requires_grad_(True), t, torch.randint(classes, (batch,), generator=generator)


def test_gradients_are_those_of_the_losses():
    s, t, target = some_logits()
    T = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: DIST(2.0, 2.0, 4.0)(z, t), s)
    assert torch.autograd.gradcheck(lambda z, T: DKD()(z, t, target, 1.0, 8.0, T), (s, T))


def test_gradient_of_wsld_holds_the_weights_fixed():
    s, t, target = some_logits()
    weights = soft_label_weights(s, t, target)
    assert not weights.requires_grad
    (found,) = torch.autograd.grad(weighted_soft_labels(s, t, target, 4.0), s)
    rows = [4.0**2 * weight * -((t[i] / 4).softmax(0) @ (s[i] / 4).log_softmax(0)) for i, weight in enumerate(weights)]
    (expected,) = torch.autograd.grad(sum(rows) / len(rows), s)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_a_student_equal_to_the_teacher():
    _, t, target = some_logits()
    tckd, nckd = dkd_terms(t, t.clone(), target, 4.0)
    inter, intra = DIST.terms(t, t.clone(), 4.0)
    assert all(abs(term.item()) < 1e-12 for term in (tckd, nckd))
    assert all(abs(term.item()) < 1e-4 for term in (inter, intra)), "only the epsilon of the correlation is left"
    soft = t.div(4).softmax(1)
    entropy = -(soft * soft.log()).sum(1)
    expected = (1 - math.exp(-1)) * 16 * entropy.mean().item()
    assert weighted_soft_labels(t, t.clone(), target, 4.0).item() == pytest.approx(expected, rel=1e-5)


EXTREMES = {
    "sure and right": (1000.0, 0),
    "sure and wrong": (1000.0, 1),
    "sure of one class less": (-1000.0, 0),
    "all equal": (0.0, 0),
}


@pytest.mark.parametrize("case", EXTREMES)
@pytest.mark.parametrize("name", ["dkd", "wsld", "dist"])
@pytest.mark.parametrize("batch", [1, 3])
def test_stays_finite(name, case, batch):
    value, place = EXTREMES[case]
    target = torch.zeros(batch, dtype=torch.int64)
    sure = torch.zeros(batch, 7)
    sure[:, place] = value
    spread = torch.linspace(-1000, 1000, 7).expand(batch, 7)
    method = registry[name].build(Shapes([], [], classes=7, samples=10))
    for s, t in [(sure, sure), (sure, -sure), (sure, spread), (spread, sure)]:
        s = s.clone().requires_grad_(True)
        terms = method(Step(Output(s), Output(t), target, target, epoch=240))
        sum(terms.values()).backward()
        assert all(term.isfinite() for term in terms.values())
        assert s.grad.isfinite().all()


@pytest.mark.parametrize("offset", [0.0, 100.0, -1e4])
def test_dkd_keeps_its_digits_where_logits_share_an_offset(offset):
    s, t = 3 * torch.randn(2, 64, 100)
    s = s + offset
    target = torch.randint(100, (64,))
    expected, found = (dkd_terms(s.to(dtype), t.to(dtype), target, 4.0) for dtype in (torch.float64, torch.float32))
    assert [term.item() for term in found] == pytest.approx([term.item() for term in expected], rel=5e-5)


LOGIT_TERMS = {
    "kl": lambda s, t, y: kl_divergence(s, t, 4.0),
    "dkd": lambda s, t, y: sum(dkd_terms(s, t, y, 4.0)),
    "wsld": lambda s, t, y: weighted_soft_labels(s, t, y, 4.0),
    "ldrld": LDRLD(10.5, 7.0),
    "mlkd": lambda s, t, y: sum(mlkd_terms(TwoViews(s, t, s.flip(0), t.flip(0)), 4.0).values()),
    "wkd": lambda s, t, y: sum(wkd_logit_terms(s, t, y, 1 - torch.eye(20), 4.0)),
}


@pytest.mark.parametrize("dtypes", [(torch.float16,) * 2, (torch.bfloat16,) * 2, (torch.bfloat16, torch.float32)])
@pytest.mark.parametrize("name", LOGIT_TERMS)
def test_half_precision_gives_the_same_within_its_digits(name, dtypes):
    generator = torch.Generator().manual_seed(0)
    s, t = (2 * torch.randn(8, 20, generator=generator) for _ in "st")
    s, t, target = s.to(dtypes[0]).requires_grad_(True), t.to(dtypes[1]), torch.arange(8)
    loss = LOGIT_TERMS[name](s, t, target)
    expected = LOGIT_TERMS[name](s.detach().double(), t.double(), target)
    assert loss.item() == pytest.approx(expected.item(), rel=0.05)
    loss.backward()
    assert s.grad.isfinite().all()
    assert s.grad.any()


def test_dist_of_one_sample_knows_no_relation_among_samples():
    s, t, _ = some_logits(batch=1)
    inter, intra = DIST.terms(s, t, 4.0)
    (grad,) = torch.autograd.grad(intra, s, retain_graph=True)
    assert intra.item() == 16.0
    assert not grad.any()
    assert inter.item() == pytest.approx(literal_dist(s, t, 4.0)[0])


def test_dkd_warms_up():
    s, t, target = some_logits()
    expected = dkd_terms(s, t, target, 4.0)
    for warmup, epoch, factor in [(20, 1, 0.05), (20, 10, 0.5), (20, 20, 1), (20, 240, 1), (0, 1, 1), (1, 1, 1)]:
        method = registry["dkd"].build(Shapes([], [], classes=6, samples=10), kd_warmup=warmup)
        terms = method.logit_terms(LogitPair(s, t, target, 4.0, epoch)).values()
        assert [term.item() for term in terms] == pytest.approx([factor * term.item() for term in expected])


def test_dkd_refuses_what_has_no_meaning():
    with pytest.raises(ValueError, match="2 classes"):
        registry["dkd"].build(Shapes([], [], classes=2, samples=10))
    with pytest.raises(ValueError, match="--kd_warmup -1"):
        registry["dkd"].build(Shapes([], [], classes=3, samples=10), kd_warmup=-1)


def test_ramps():
    assert [warm_up(epoch, 4) for epoch in (1, 2, 4, 9)] == [0.25, 0.5, 1, 1]
    assert [cosine_decay(epoch, 150, 240) for epoch in (1, 150, 195, 240, 300)] == pytest.approx([1, 1, 0.5, 0, 0])
