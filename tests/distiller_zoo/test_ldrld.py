"""LDRLD's closed form against the equation, written out with loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distiller_zoo import LDRLD, Shapes, local_dense_relations, registry


def literal_kl(s: list[float], t: list[float], T: float) -> float:
    """T²·KL of two softmaxes over one subset of one sample."""

    def log_softmax(z: list[float]) -> list[float]:
        top = max(z)
        total = math.log(sum(math.exp((value - top) / T) for value in z))
        return [(value - top) / T - total for value in z]

    log_s, log_t = log_softmax(s), log_softmax(t)
    return T * T * sum(math.exp(b) * (b - a) for a, b in zip(log_s, log_t, strict=True))


def literal_ldrld(s: torch.Tensor, t: torch.Tensor, k: int, T: float, form: str, topk_from: str) -> tuple[float, float]:
    """Both terms by loops over samples, pairs and classes."""
    local = rest = 0.0
    for zs, zt in zip(s.tolist(), t.tolist(), strict=True):
        chosen = zs if topk_from == "student" else zt
        order = sorted(range(len(zs)), key=lambda c: -chosen[c])
        top, others = order[:k], order[k:]
        total = 0.0
        for i in range(1, k + 1):
            for j in range(i + 1, k + 1):
                weight = 2.0 * math.exp(-0.05 * (i + j)) / (1.5 + (j - i))
                pair = (top[i - 1], top[j - 1])
                total += weight * literal_kl([zs[c] for c in pair], [zt[c] for c in pair], T)
        full = literal_kl([zs[c] for c in top], [zt[c] for c in top], T)
        if form == "code":
            full_weight = 2.0 * math.exp(-0.05 * 3) / 2.5 if k == 2 else 1.0
            local += (total + full_weight * full) / (k * (k - 1) / 2 + 1)
            others = others or order
        else:
            local += total + full
        if others:
            rest += literal_kl([zs[c] for c in others], [zt[c] for c in others], T)
    return local / len(s), rest / len(s)


@st.composite
def problems(draw):
    classes = draw(st.integers(2, 12))
    k, batch = draw(st.integers(2, classes)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([0.1, 1.0, 5.0, 30.0]))
    s, t = (scale * torch.randn(batch, classes, generator=generator, dtype=torch.float64) for _ in "st")
    if draw(st.booleans()):
        # ties of the network that does not select leave the loss defined
        t = t.round()
    return s, t, k, draw(st.sampled_from([0.5, 1.0, 4.0, 10.0])), draw(st.sampled_from(["code", "paper"]))


@settings(deadline=None, max_examples=150)
@given(problems())
def test_equals_the_literal_equation(problem):
    s, t, k, T, form = problem
    local, rest = LDRLD(1, 1, k, T, form=form).terms(s, t, T)
    expected_local, expected_rest = literal_ldrld(s, t, k, T, form, "student")
    assert local.item() == pytest.approx(expected_local, rel=1e-9, abs=1e-10)
    assert rest.item() == pytest.approx(expected_rest, rel=1e-9, abs=1e-10)


@settings(deadline=None, max_examples=30)
@given(problems())
def test_teacher_can_select(problem):
    t, s, k, T, form = problem
    local, rest = LDRLD(1, 1, k, T, form=form, topk_from="teacher").terms(s, t, T)
    expected_local, expected_rest = literal_ldrld(s, t, k, T, form, "teacher")
    assert local.item() == pytest.approx(expected_local, rel=1e-9, abs=1e-10)
    assert rest.item() == pytest.approx(expected_rest, rel=1e-9, abs=1e-10)


@settings(deadline=None, max_examples=30)
@given(problems())
def test_selected_ties_of_equal_teacher_logits_do_not_matter(problem):
    """A tie of the student at ranks 1 and 2 where the teacher ties, too: either order gives the same loss."""
    s, t, k, T, form = problem
    first, second = s.topk(2).indices.unbind(1)
    rows = torch.arange(len(s))
    for z in (s, t):
        z[rows, second] = z[rows, first]
    local, rest = LDRLD(1, 1, k, T, form=form).terms(s, t, T)
    expected_local, expected_rest = literal_ldrld(s, t, k, T, form, "student")
    assert local.item() == pytest.approx(expected_local, rel=1e-9, abs=1e-10)
    assert rest.item() == pytest.approx(expected_rest, rel=1e-9, abs=1e-10)


def test_gradient_is_that_of_the_loss():
    generator = torch.Generator().manual_seed(0)
    s = torch.randn(3, 9, generator=generator, dtype=torch.float64, requires_grad=True)
    t = torch.randn(3, 9, generator=generator, dtype=torch.float64)
    target = torch.tensor([0, 4, 8])
    for form in ("code", "paper"):
        loss = LDRLD(10.5, 7.0, 4, 4.0, form=form)
        assert torch.autograd.gradcheck(lambda z, loss=loss: loss(z, t, target), s)


def test_a_student_equal_to_the_teacher_has_no_distillation_loss():
    z = torch.randn(5, 20, dtype=torch.float64)
    local, rest = LDRLD(1, 1).terms(z, z.clone(), 4.0)
    assert abs(local.item()) < 1e-12
    assert abs(rest.item()) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_stays_finite(dtype, scale):
    s = (scale * torch.randn(4, 30)).to(dtype).requires_grad_(True)
    loss = LDRLD(10.5, 7.0)(s, (scale * torch.randn(4, 30)).to(dtype), torch.zeros(4, dtype=torch.int64))
    loss.backward()
    assert loss.isfinite()
    assert s.grad.isfinite().all()


@pytest.mark.parametrize(
    ("k", "reason"), [(1, "no pair of classes"), *((k, "fewer than 2 of 10 classes") for k in (9, 10, 11))]
)
def test_refuses_a_k_without_a_meaning(k, reason):
    shapes = Shapes([], [], classes=10, samples=100)
    with pytest.raises(ValueError, match=f"--k {k} .*{reason}"):
        registry["ldrld"].build(shapes, k=k)
    assert registry["ldrld"].build(shapes, k=8).loss.k == 8


def test_without_adaptive_weights_all_pairs_weigh_one():
    s, t = torch.randn(5, 12, dtype=torch.float64), torch.randn(5, 12, dtype=torch.float64)
    top = s.topk(4, dim=1).indices
    pairs = torch.ones(6, dtype=torch.float64)
    expected = local_dense_relations(s.gather(1, top), t.gather(1, top), pairs, 4.0)
    found, _ = LDRLD(1.0, 1.0, k=4, adw=False).terms(s, t, 4.0)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, LDRLD(1.0, 1.0, k=4).terms(s, t, 4.0)[0])
