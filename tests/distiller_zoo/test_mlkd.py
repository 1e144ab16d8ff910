"""MLKD's terms against their equations, written out with loops, and what holds for them."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from distiller_zoo import (
    Shapes,
    Step,
    TwoViews,
    batch_correlation,
    class_correlation,
    confidence_masks,
    mlkd_terms,
    registry,
    standardise,
    transform_registry,
)
from distiller_zoo.base import Output
from distiller_zoo.functional import kl_divergence

FORMS = ("code", "paper")
Rows = list[list[float]]


def softmax(z: list[float], T: float = 1.0) -> list[float]:
    powers = [math.exp((value - max(z)) / T) for value in z]
    return [power / sum(powers) for power in powers]


def literal_products(p: Rows) -> Rows:
    """Inner product of every row with every other."""
    return [[sum(a * b for a, b in zip(first, second, strict=True)) for second in p] for first in p]


def literal_row_gaps(p_s: Rows, p_t: Rows) -> list[float]:
    pairs = zip(literal_products(p_s), literal_products(p_t), strict=True)
    return [sum((a - b) ** 2 for a, b in zip(*rows, strict=True)) for rows in pairs]


def transposed(p: Rows) -> Rows:
    return [list(column) for column in zip(*p, strict=True)]


def literal_kd_rows(s: torch.Tensor, t: torch.Tensor, T: float) -> list[float]:
    total = []
    for zs, zt in zip(s.tolist(), t.tolist(), strict=True):
        pairs = zip(softmax(zt, T), softmax(zs, T), strict=True)
        total.append(T * T * sum(a * (math.log(a) - math.log(b)) for a, b in pairs))
    return total


def literal_masks(t: torch.Tensor) -> tuple[list[bool], list[bool]]:
    p = np.array([softmax(row) for row in t.tolist()])
    confidence, mass = p.max(1), p.sum(0)
    return (confidence <= np.percentile(confidence, 50)).tolist(), (mass <= np.percentile(mass, 50)).tolist()


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def literal_terms(views: TwoViews, T: float, form: str) -> dict[str, float]:
    samples, classes = literal_masks(views.weak_t)

    def masked(rows: list[float], mask: list[bool]) -> float:
        if form == "paper":
            return mean([row if kept else 0.0 for row, kept in zip(rows, mask, strict=True)])
        return mean(rows) * mean(mask)

    terms = dict.fromkeys(("kd", "cc", "bc"), 0.0)
    for position, tau in enumerate([T, 3.0, 5.0, 2.0, 6.0]):
        weak = literal_kd_rows(views.weak_s, views.weak_t, tau)
        strong = literal_kd_rows(views.strong_s, views.strong_t, tau)
        terms["kd"] += masked(weak, samples) + mean(weak if form == "code" and position >= 3 else strong)
        p_s, p_t = ([softmax(row, tau) for row in z.tolist()] for z in (views.weak_s, views.weak_t))
        terms["cc"] += masked(literal_row_gaps(transposed(p_s), transposed(p_t)), classes)
        terms["bc"] += masked(literal_row_gaps(p_s, p_t), samples)
    return terms


@st.composite
def problems(draw):
    classes, batch = draw(st.integers(2, 9)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([0.1, 1.0, 5.0, 30.0]))
    views = TwoViews(*(scale * torch.randn(batch, classes, generator=generator, dtype=torch.float64) for _ in range(4)))
    # no value so near another that rounding decides on which side of the median it lies
    p = views.weak_t.softmax(1)
    assume(all((values.sort().values.diff() > 1e-10).all() for values in (p.amax(1), p.sum(0))))
    return views, draw(st.sampled_from([1.0, 2.0, 4.0, 10.0]))


def close(found: dict[str, torch.Tensor], expected: dict[str, float]) -> bool:
    values = {name: term.item() for name, term in found.items()}
    return values == pytest.approx(dict(expected), rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=60)
@given(problem=problems())
def test_terms_equal_the_literal_equations(form, problem):
    views, T = problem
    assert close(mlkd_terms(views, T, form), literal_terms(views, T, form))


@settings(deadline=None, max_examples=60)
@given(problems())
def test_correlations_equal_the_literal_equations(problem):
    views, T = problem
    p_s, p_t = ((z / T).softmax(1) for z in views[:2])
    by_class = literal_row_gaps(p_s.T.tolist(), p_t.T.tolist())
    assert class_correlation(p_s, p_t).item() == pytest.approx(mean(by_class), rel=1e-9, abs=1e-12)
    by_sample = literal_row_gaps(p_s.tolist(), p_t.tolist())
    assert batch_correlation(p_s, p_t).item() == pytest.approx(mean(by_sample), rel=1e-9, abs=1e-12)
    for correlation in (class_correlation, batch_correlation):
        stacked = correlation(torch.stack([p_s, p_t]), torch.stack([p_t, p_t]))
        assert stacked.tolist() == pytest.approx([correlation(p_s, p_t).item(), 0], abs=1e-12)


@pytest.mark.parametrize("apart", [1.0, 1e-3])
def test_many_classes_need_no_matrix_of_them(apart):
    """Many times more classes than samples: the same values, also in float32 and between near equals."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, 50, generator=generator, dtype=torch.float64)
    p_s, p_t = z.softmax(1), (z + apart * torch.randn(3, 50, generator=generator, dtype=torch.float64)).softmax(1)
    expected = mean(literal_row_gaps(p_s.T.tolist(), p_t.T.tolist()))
    assert class_correlation(p_s, p_t).item() == pytest.approx(expected, rel=1e-9)
    p_s.requires_grad_(True)
    assert torch.autograd.gradcheck(class_correlation, (p_s, p_t.requires_grad_(True)), atol=1e-9)
    few = class_correlation(p_s.float(), p_t.float())
    assert few.item() == pytest.approx(expected, rel=1e-3 if apart < 1 else 1e-5)
    assert class_correlation(p_t, p_t).item() == 0
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: shapes.append(x.numel()) or x, lambda x: x):
        class_correlation(p_s, p_t)
    assert max(shapes) < 50 * 50


@settings(deadline=None, max_examples=60)
@given(problems(), st.booleans())
def test_masks_are_below_the_percentile(problem, ties):
    logits = problem[0].weak_t.round() if ties else problem[0].weak_t
    p = logits.softmax(1).numpy()
    for mask, values in zip(confidence_masks(logits), (p.max(1), p.sum(0)), strict=True):
        assert mask.dtype == torch.bool
        # sums in another order may differ in the last digit
        unsure = np.abs(values - np.percentile(values, 50)) < 1e-14
        assert ((mask.numpy() == (values <= np.percentile(values, 50))) | unsure).all()


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=40)
@given(problem=problems())
def test_terms_are_not_negative_and_zero_at_equality(form, problem):
    views, T = problem
    assert all(term.item() >= -1e-12 for term in mlkd_terms(views, T, form).values())
    equal = TwoViews(views.weak_t, views.weak_t, views.strong_t, views.strong_t)
    # a constant on all classes of a sample changes no probability
    shifted = TwoViews(views.weak_t + 3, views.weak_t, views.strong_t - 2, views.strong_t)
    for same in (equal, shifted):
        assert close(mlkd_terms(same, T, form), dict.fromkeys(("kd", "cc", "bc"), 0.0))


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=40)
@given(problem=problems(), seed=st.integers(0, 1000))
def test_order_of_samples_and_classes_does_not_matter(form, problem, seed):
    views, T = problem
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (torch.randperm(size, generator=generator) for size in views.weak_s.shape)
    moved = TwoViews(*(z[rows][:, columns] for z in views))
    expected = {name: term.item() for name, term in mlkd_terms(views, T, form).items()}
    assert close(mlkd_terms(moved, T, form), expected)


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=10)
@given(problem=problems())
def test_gradient_goes_to_the_student_alone(form, problem):
    views, T = problem
    views = TwoViews(*(z.clone().requires_grad_() for z in views))
    sum(mlkd_terms(views, T, form).values()).backward()
    assert views.weak_t.grad is None
    assert views.strong_t.grad is None
    for z in (views.weak_s, views.strong_s):
        assert z.grad.isfinite().all()
        # only differences of a sample's logits matter
        assert z.grad.sum(1).abs().max() <= 1e-9 * (1 + z.grad.abs().max())


@pytest.mark.parametrize("form", FORMS)
def test_gradient_equals_finite_differences(form):
    generator = torch.Generator().manual_seed(0)
    logits = [2 * torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(4)]
    temperature = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)

    def total(weak_s, strong_s, T):
        terms = mlkd_terms(TwoViews(weak_s, logits[1], strong_s, logits[3]), T, form)
        return terms["kd"] + 2 * terms["cc"] + 3 * terms["bc"]

    assert torch.autograd.gradcheck(total, (logits[0].requires_grad_(), logits[2].requires_grad_(), temperature))


def three_samples() -> TwoViews:
    """The middle sample is the one that the teacher is surest of; at equality but for what a test changes."""
    teacher = torch.tensor([[1.0, 0, 0, 0], [0, 9, 0, 0], [0, 0, 2, 0]], dtype=torch.float64)
    return TwoViews(teacher, teacher, teacher, teacher)


def test_the_paper_form_leaves_sure_samples_out():
    views = three_samples()
    changed = views.weak_s.clone()
    changed[1] = torch.tensor([5.0, 0, 0, 5], dtype=torch.float64)
    views = views._replace(weak_s=changed)
    assert confidence_masks(views.weak_t)[0].tolist() == [True, False, True]
    assert mlkd_terms(views, 4.0, "paper")["kd"].item() == pytest.approx(0)
    assert mlkd_terms(views, 4.0, "code")["kd"].item() > 0.1


def test_the_strong_view_counts_in_kd_alone():
    views = three_samples()
    views = views._replace(strong_s=views.strong_s.flip(0))
    kl = [kl_divergence(views.strong_s, views.strong_t, T).item() for T in (4.0, 3.0, 5.0, 2.0, 6.0)]
    for form, expected in (("code", sum(kl[:3])), ("paper", sum(kl))):
        assert close(mlkd_terms(views, 4.0, form), {"kd": expected, "cc": 0.0, "bc": 0.0})


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=20)
@given(problem=problems())
def test_logits_for_kd_leave_the_rest_alone(form, problem):
    views, T = problem
    # masks come from the teacher's own logits, so those for kd keep the order of confidence
    halved = TwoViews(*(z / 2 for z in views))
    found, plain = mlkd_terms(views, T, form, for_kd=halved), mlkd_terms(views, T, form)
    for name in ("cc", "bc"):
        assert torch.equal(found[name], plain[name])
    same = mlkd_terms(views, T, form, for_kd=TwoViews(*(z + 1 for z in views)))
    assert same["kd"].item() == pytest.approx(plain["kd"].item(), rel=1e-9, abs=1e-11)


def test_another_softening_is_used_for_all_terms():
    generator = torch.Generator().manual_seed(0)
    views = TwoViews(*(torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(4)))

    def uniform(
        student: torch.Tensor, _: torch.Tensor, temperatures: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return (torch.full((len(temperatures), *student.shape), -math.log(7), dtype=student.dtype),) * 2

    assert all(term.item() == pytest.approx(0) for term in mlkd_terms(views, 4.0, soften=uniform).values())


def test_the_method_trains_resumes_and_composes(call, teacher, tmp_path, small_data):
    flags = ("--model_s", "resnet8", "--dataset", "shapes100", "--warmup_epochs", 0, "--quiet", "--path_t", teacher)
    flags += ("--distill", "mlkd", "--logit-stand", "--sort", "--kd-weight", 9, "--kd_T", 2, "--epochs", 2)
    cache = ("--teacher_cache", tmp_path / "cache")
    whole = call("train_student", *flags, "--save_folder", tmp_path / "whole", *cache)
    assert whole.code == 0, whole.err
    assert "keeps no strong views" in whole.err
    (folder,) = (tmp_path / "whole" / "student_model").iterdir()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(line["train_loss"] == pytest.approx(0.1 * line["cls"] + 9 * line["mlkd"], rel=1e-4) for line in lines)


def test_the_scale_of_the_logits_matters_to_classes_and_batches_alone():
    """A standardised comparison of samples; classes and samples of the batch are compared as they are."""
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(8, 12, generator=generator, dtype=torch.float64) for _ in range(4)]
    shapes, target = Shapes([], [], 12, 8), torch.arange(8)

    def term(scale):
        method = registry["mlkd"].build(shapes).double()
        method.transforms.append(transform_registry["logit_stand"](shapes))
        s, t, strong_s, strong_t = (scale * view for view in views)
        step = Step(Output(s, strong_logits=strong_s), Output(t, strong_logits=strong_t), target, target)
        return method(step)["mlkd"].item()

    method = registry["mlkd"].build(shapes)
    raw = TwoViews(*views)
    expected = mlkd_terms(raw, method.temperature, for_kd=TwoViews(*map(standardise, raw)))
    assert term(1.0) == pytest.approx(sum(value.item() for value in expected.values()), rel=1e-9)
    assert term(3.0) != pytest.approx(term(1.0), rel=1e-3)
