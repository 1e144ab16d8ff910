"""WKD's pieces against literal versions: one sample, one class, one pixel at a time."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distiller_zoo import (
    GaussianWasserstein,
    Shapes,
    Step,
    class_similarity,
    registry,
    sinkhorn,
    transport_cost,
    wkd_logit_terms,
)
from distiller_zoo.base import Output


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


def literal_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """HSIC(x, y) / sqrt(HSIC(x, x)·HSIC(y, y)) with the centring matrix and linear kernels of (n, D) features."""
    n = len(x)
    centring = torch.eye(n, dtype=x.dtype) - 1 / n
    kernels = [centring @ f @ f.T @ centring for f in (x, y)]
    hsic = [[torch.trace(a @ b).item() / (n - 1) ** 2 for b in kernels] for a in kernels]
    return hsic[0][1] / math.sqrt(hsic[0][0] * hsic[1][1])


def test_class_similarity_equals_literal_cka():
    features = torch.randn(4, 5, 3, dtype=torch.float64) + torch.arange(4).view(4, 1, 1)
    found = class_similarity(features)
    expected = torch.tensor([[literal_cka(x, y) for y in features] for x in features], dtype=torch.float64)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    turned = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    moved = torch.stack([features[0], 7 * features[0] @ turned + 2])
    assert torch.allclose(class_similarity(moved), torch.ones(2, 2, dtype=torch.float64))


def test_class_similarity_of_constant_features_is_finite():
    similarity = class_similarity(torch.stack([torch.ones(3, 2), torch.randn(3, 2)]))
    assert similarity.tolist() == [[0, 0], [0, pytest.approx(1)]]


@pytest.mark.parametrize("kappa", [1.0, 2.0])
def test_transport_cost(kappa):
    similarity = class_similarity(torch.randn(5, 6, 4, dtype=torch.float64))
    cost = transport_cost(similarity, kappa)
    for i in range(5):
        for j in range(5):
            expected = 1 - math.exp(-kappa * (1 - similarity[i, j].item())) + 1e-8
            assert cost[i, j].item() == pytest.approx(max(expected, 1e-8), abs=1e-14)


def literal_sinkhorn(a: list[float], b: list[float], cost: list[list[float]], reg: float, iterations: int) -> float:
    n = range(len(a))
    kernel = [[math.exp(-cost[i][j] / reg) for j in n] for i in n]
    u, v = [1 / len(a) for _ in n], [0.0 for _ in n]
    for _ in range(iterations):
        v = [b[j] / (sum(kernel[i][j] * u[i] for i in n) + 1e-8) for j in n]
        u = [a[i] / (sum(kernel[i][j] * v[j] for j in n) + 1e-8) for i in n]
    return sum(u[i] * kernel[i][j] * v[j] * cost[i][j] for i in n for j in n)


def literal_wkd(s: torch.Tensor, t: torch.Tensor, target: torch.Tensor, cost: torch.Tensor, T: float):
    """Target term and transport, the label's row and column deleted from every sample's own copy of the cost."""
    target_term = transport = 0.0
    for zs, zt, y in zip(s, t, target.tolist(), strict=True):
        target_term -= (zt.softmax(0)[y] * zs.log_softmax(0)[y]).item()
        others = [c for c in range(len(zs)) if c != y]
        p_s, p_t = ((z[others] / T).softmax(0).tolist() for z in (zs, zt))
        transport += literal_sinkhorn(p_s, p_t, cost[others][:, others].tolist(), 0.05, 10)
    return target_term / len(s), transport / len(s)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 2**31),
    st.integers(2, 6),
    st.integers(1, 3),
    st.sampled_from([1.0, 4.0, 8.0]),
    st.sampled_from([3.0, 3e4]),  # of the latter, most probabilities are 0, of both networks, too
)
def test_logit_terms_equal_the_literal_ones(seed, classes, batch, T, scale):
    generator = torch.Generator().manual_seed(seed)
    s, t = (scale * torch.randn(batch, classes, generator=generator, dtype=torch.float64) for _ in "st")
    target = torch.randint(classes, (batch,), generator=generator)
    cost = transport_cost(class_similarity(torch.randn(classes, 4, 3, generator=generator, dtype=torch.float64)))
    found = wkd_logit_terms(s, t, target, cost, T)
    expected = literal_wkd(s, t, target, cost, T)
    assert [term.item() for term in found] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_temperature_for_each_sample_is_that_of_batches_of_one():
    s, t = 2 * torch.randn(2, 5, 6, dtype=torch.float64)
    cost = transport_cost(class_similarity(torch.randn(6, 4, 3, dtype=torch.float64)))
    target, temperatures = torch.tensor([0, 3, 1, 5, 2]), torch.rand(5, 1, dtype=torch.float64) * 5 + 1
    together = wkd_logit_terms(s, t, target, cost, temperatures)
    rows = [slice(i, i + 1) for i in range(5)]
    apart = [wkd_logit_terms(s[row], t[row], target[row], cost, temperatures[row].item()) for row in rows]
    assert [term.item() for term in together] == pytest.approx(
        torch.tensor(apart, dtype=torch.float64).mean(0).tolist(), rel=1e-10
    )
    assert together[1].item() != pytest.approx(wkd_logit_terms(s, t, target, cost, 3.0)[1].item(), rel=1e-3)


def test_the_plan_moves_one_side_onto_the_other():
    p_s, p_t = torch.randn(2, 3, 6, dtype=torch.float64).softmax(2)
    cost = transport_cost(class_similarity(torch.randn(6, 4, 3, dtype=torch.float64)))
    bound = 0.5 * (p_s - p_t).abs().sum(1)
    moved = sinkhorn(p_s, p_t, cost, iterations=200)
    # at least what must move at the lowest price, at most the price of moving everything
    cheapest = cost[~torch.eye(6, dtype=torch.bool)].min()
    assert (moved >= bound * cheapest - 1e-6).all()
    assert (moved <= cost.max()).all()
    assert (sinkhorn(p_s, p_s, cost, reg=0.005, iterations=50) < 1e-3).all()


def test_gradient_goes_through_all_iterations():
    s, t = (torch.randn(2, 5, dtype=torch.float64) for _ in "st")
    cost = transport_cost(class_similarity(torch.randn(5, 4, 3, dtype=torch.float64)))
    target = torch.tensor([0, 3])
    assert torch.autograd.gradcheck(lambda z: wkd_logit_terms(z, t, target, cost, 4.0), s.requires_grad_(True))


def test_logit_terms_stay_finite():
    s, t = torch.zeros(2, 3, 8)
    s[:, 1], t[:, 2] = 1000.0, 1000.0
    s.requires_grad_(True)
    cost = transport_cost(class_similarity(torch.randn(8, 4, 3)))
    terms = wkd_logit_terms(s, t, torch.tensor([0, 1, 2]), cost, 1.0)
    sum(terms).backward()
    assert all(term.isfinite() for term in terms)
    assert s.grad.isfinite().all()


def literal_gaussian(f_s: torch.Tensor, f_t: torch.Tensor, rho: float, grid: int) -> float:
    total, (batch, channels, side, _) = 0.0, f_s.shape
    step = side // grid
    for b in range(batch):
        for i in range(grid):
            for j in range(grid):
                for c in range(channels):
                    cells = [f[b, c, i * step : (i + 1) * step, j * step : (j + 1) * step] for f in (f_s, f_t)]
                    values = [cell.flatten().tolist() for cell in cells]
                    means = [sum(v) / len(v) for v in values]
                    stds = [
                        math.sqrt(sum((x - mean) ** 2 for x in v) / (len(v) - 1) + 1e-5)
                        for v, mean in zip(values, means, strict=True)
                    ]
                    total += rho * (means[0] - means[1]) ** 2 + (stds[0] - stds[1]) ** 2
    return total / (batch * grid * grid)


@pytest.mark.parametrize("grid", [1, 2, 4])
@pytest.mark.parametrize("rho", [0.0, 1.0, 4.0])
def test_gaussian_distance_equals_the_literal_one(grid, rho):
    f_s, f_t = (torch.randn(2, 3, 8, 8, dtype=torch.float64) for _ in "st")
    loss = GaussianWasserstein(rho, grid)
    assert loss(f_s, f_t).item() == pytest.approx(literal_gaussian(f_s, f_t, rho, grid), rel=1e-10)
    assert loss(f_t, f_t.clone()).item() == 0
    assert torch.autograd.gradcheck(lambda f: loss(f, f_t), f_s[:1, :1].expand(2, 3, 8, 8).clone().requires_grad_(True))


def test_gradient_of_constant_maps_is_finite():
    """As where a ReLU has switched a channel off."""
    f_s = torch.zeros(2, 3, 4, 4, requires_grad=True)
    GaussianWasserstein()(f_s, torch.rand(2, 3, 4, 4)).backward()
    assert f_s.grad.isfinite().all()


def shapes(side_s: int = 8, side_t: int = 8) -> Shapes:
    s, t = ([torch.Size([2, c, side, side])] * 4 + [torch.Size([2, c])] for c, side in ((5, side_s), (7, side_t)))
    return Shapes(s, t, 10, 100)


@pytest.mark.parametrize(("side_s", "grid"), [(8, 1), (8, 2), (16, 1), (4, 4)])
def test_the_method_projects_compares_and_decays(side_s, grid):
    method = registry["wkd_f"].build(shapes(side_s), grid=grid)
    s, t = (
        Output(torch.randn(2, 10), [torch.rand(2, *shape[1:]) for shape in side])
        for side in (method.shapes.student, method.shapes.teacher)
    )
    target = torch.zeros(2, dtype=torch.int64)
    full = method.loss(method.project(s.features[-2]), t.features[-2]).item()
    found = [method.kd(Step(s, t, target, target, epoch=epoch)).item() for epoch in (1, 150, 180, 240)]
    middle = (1 + math.cos(math.pi / 3)) / 2
    assert found == pytest.approx([full, full, middle * full, 0], rel=1e-5)


def test_both_together_are_the_terms_of_each():
    options = {"kappa": 2.0, "decay_epoch": 10, "decay_end": 20}
    both = registry["wkd"].build(shapes(), transport_weight=60.0, rho=3.0, grid=2, **options)
    logits = registry["wkd_l"].build(shapes(), **options)
    maps = registry["wkd_f"].build(shapes(), rho=3.0, grid=2, decay_epoch=10, decay_end=20)
    maps.project = both.maps.project
    images = [SimpleNamespace(images=torch.rand(40, 3, 8, 8), target=torch.arange(40) % 10)]
    for method in (both, logits):
        method.temperature = 2.0
        method.prepare(lambda x, is_feat: ([x.flatten(1)], None), images)
    s, t = (
        Output(torch.randn(2, 10), [torch.rand(2, *shape[1:]) for shape in side])
        for side in (both.shapes.student, both.shapes.teacher)
    )
    for epoch in (1, 15, 20):
        step = Step(s, t, torch.tensor([3, 0]), torch.zeros(2, dtype=torch.int64), epoch=epoch)
        found, of_logits = both(step), logits(step)
        assert found.keys() == {"cls", "div", "kd"}
        expected = of_logits["target"] + 60 * of_logits["transport"]
        torch.testing.assert_close(found["div"], expected)
        torch.testing.assert_close(found["kd"], maps(step)["kd"])
    with pytest.raises(ValueError, match="--transport_weight -1"):
        registry["wkd"].build(shapes(), transport_weight=-1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": 0}, "--grid 0"),
        ({"grid": 3}, r"--grid 3 does not cut the teacher's 8×8"),
        ({"grid": 8}, "--grid 8"),
        ({"rho": -1.0}, "--rho -1.0"),
        ({"rho": math.nan}, "--rho nan"),
        ({"decay_epoch": 240}, "--decay_epoch 240"),
        ({"decay_epoch": -1}, "--decay_epoch -1"),
    ],
)
def test_refuses_what_has_no_meaning(options, message):
    with pytest.raises(ValueError, match=message):
        registry["wkd_f"].build(shapes(), **options)


def test_refuses_maps_that_cannot_be_brought_to_one_size():
    with pytest.raises(ValueError, match="cannot be brought"):
        registry["wkd_f"].build(shapes(side_s=5))
