"""The losses on maps and pooled features: literal versions, what is zero, what is refused, and hard inputs."""

import math

import pytest
import torch
from torch.nn.functional import avg_pool2d

from distiller_zoo import (
    KDSVD,
    PKT,
    Attention,
    Correlation,
    LinearEmbed,
    NSTLoss,
    RKDLoss,
    Shapes,
    Similarity,
    VIDLoss,
    align_vectors,
    registry,
    right_singular_vectors,
)
from distiller_zoo.base import Output, Step
from distiller_zoo.spatial import match_size

ON_LISTS = {"attention": Attention, "similarity": Similarity, "nst": NSTLoss, "kdsvd": KDSVD}
ON_VECTORS = {"correlation": Correlation, "rkd": RKDLoss, "pkt": PKT}
STAGED = ["attention", "nst", "vid", "kdsvd"]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def maps(*sizes: tuple[int, int], batch: int = 3, seed: int = 0, dtype=torch.float64) -> list[torch.Tensor]:
    """Maps of the given (channels, side)."""
    return [random(batch, c, side, side, seed=seed + i, dtype=dtype) for i, (c, side) in enumerate(sizes)]


def shapes(*sizes: tuple[int, int]) -> list[torch.Size]:
    """Those of a network whose stages have the given (channels, side)."""
    return [torch.Size([2, 8, 16, 16]), *(torch.Size([2, c, side, side]) for c, side in sizes), torch.Size([2, 20])]


def test_match_size_pools_the_larger():
    large, small = maps((4, 8), (5, 4))
    found = match_size(large, small)
    assert torch.equal(found[0], avg_pool2d(large, 2))
    assert found[1] is small
    found = match_size(small, large)
    assert found[0] is small
    assert torch.equal(found[1], avg_pool2d(large, 2))
    same = match_size(large, large * 2)
    assert same[0] is large
    assert same[1].shape == large.shape


def test_linear_embed_is_literally_linear():
    embed, x = LinearEmbed(12, 3).double(), random(2, 3, 2, 2)
    found = embed(x)
    assert found.shape == (2, 3)
    for b in range(2):
        for o in range(3):
            weight = embed.linear.weight[o].reshape(3, 2, 2)
            expected = embed.linear.bias[o] + sum(
                x[b, c, h, w] * weight[c, h, w] for c in range(3) for h in range(2) for w in range(2)
            )
            assert found[b, o].item() == pytest.approx(expected.item(), rel=1e-12)


def test_vid_literally():
    loss, (f_s, f_t) = VIDLoss(3, 4, 2, init_pred_var=2.0).double(), maps((3, 2), (2, 2), batch=2)
    assert torch.allclose(torch.log1p(loss.log_scale.exp()) + 1e-5, torch.tensor(2.0, dtype=torch.float64), rtol=1e-6)
    with torch.no_grad():
        loss.log_scale += torch.tensor([0.5, -1.0])
    layers = [loss.regressor[i].weight.flatten(1) for i in (0, 2, 4)]
    assert [layer.shape for layer in layers] == [(4, 3), (4, 4), (2, 4)]
    total = 0.0
    for b in range(2):
        for h in range(2):
            for w in range(2):
                x = f_s[b, :, h, w]
                for i, layer in enumerate(layers):
                    x = layer @ x
                    x = x.clamp(min=0) if i < 2 else x
                for c in range(2):
                    variance = math.log(1 + math.exp(loss.log_scale[c].item())) + 1e-5
                    error = (x[c] - f_t[b, c, h, w]).item()
                    total += 0.5 * (error**2 / variance + math.log(variance))
    assert loss(f_s, f_t).item() == pytest.approx(total / 16, rel=1e-10)


@pytest.mark.parametrize("side", [2, 5], ids=["channels outnumber positions", "positions outnumber channels"])
def test_nst_literally(side):
    (f_s, f_t) = maps((6, side), (5, side), batch=2)

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        values = [
            ((x.flatten() / x.norm()) @ (y.flatten() / y.norm())).item() ** 2
            for i in range(2)
            for x in a[i]
            for y in b[i]
        ]
        return sum(values) / len(values)

    expected = kernel(f_t, f_t) + kernel(f_s, f_s) - 2 * kernel(f_s, f_t)
    assert NSTLoss()([f_s], [f_t])[0].item() == pytest.approx(expected, rel=1e-10)


def test_kdsvd_literally():
    g_s, g_t = maps((5, 4), (6, 2), (4, 3)), maps((5, 2), (6, 4), (4, 3), seed=10)
    vectors = {"s": [], "t": []}
    for f_s, f_t in zip(g_s, g_t, strict=True):
        for b in range(3):
            one_s = torch.linalg.svd(f_s[b].flatten(1).T, full_matrices=False)[2][:4]
            one_t = torch.linalg.svd(f_t[b].flatten(1).T, full_matrices=False)[2][0]
            if one_t.sum() < 0:
                one_t = -one_t
            best = max(one_s, key=lambda v: abs(v @ one_t).item())
            vectors["s"].append(best if best @ one_t > 0 else -best)
            vectors["t"].append(one_t)
    found = KDSVD(orient=True)(g_s, g_t)
    assert len(found) == 2
    for stage, loss in enumerate(found):
        total = 0.0
        for b in range(3):
            (below_s, above_s), (below_t, above_t) = (
                (v[3 * stage + b], v[3 * stage + 3 + b]) for v in vectors.values()
            )
            for i in range(len(above_s)):
                for j in range(len(below_s)):
                    rbf_s = math.exp(-((above_s[i] - below_s[j]).item() ** 2) / 8)
                    rbf_t = math.exp(-((above_t[i] - below_t[j]).item() ** 2) / 8)
                    total += (rbf_s - rbf_t) ** 2
        assert loss.item() == pytest.approx(total / 3, rel=1e-8)


@pytest.mark.parametrize("orient", [True, False])
def test_kdsvd_keeps_the_routines_signs_only_unless_told(orient, monkeypatch):
    g_s, g_t = maps((5, 4), (6, 3)), maps((5, 4), (6, 3), seed=10)
    loss, svd = KDSVD(k=2, orient=orient), torch.linalg.svd
    before = loss(g_s, g_t)[0].item()

    def turned(x: torch.Tensor, full_matrices: bool) -> tuple[torch.Tensor, ...]:
        u, s, vh = svd(x, full_matrices=full_matrices)
        sign = 1 - 2 * (x.shape[2] == 6)  # one stage only: a common sign does not matter
        return u * sign, s, vh * sign

    monkeypatch.setattr(torch.linalg, "svd", turned)
    after = loss(g_s, g_t)[0].item()
    assert (after == pytest.approx(before, rel=1e-10)) == orient


@pytest.mark.parametrize("size", [(4, 3), (9, 2), (4, 2)], ids=["tall", "wide", "square"])
@pytest.mark.parametrize("n", [1, 3, 20])
def test_gradient_of_singular_vectors(size, n):
    (f,) = maps(size, batch=2)
    signs = right_singular_vectors(f, n)[0].sum(1, keepdim=True).sign()

    def oriented(x: torch.Tensor) -> torch.Tensor:
        vectors = right_singular_vectors(x, n)[0]
        return vectors * (vectors.detach().sum(1, keepdim=True).sign() * signs)

    if n > min(size[0], size[1] ** 2):
        assert oriented(f).shape[2] == min(size[0], size[1] ** 2)
    assert torch.autograd.gradcheck(oriented, (f.requires_grad_(True),), atol=1e-6)


def test_gradient_of_singular_vectors_beside_equal_singular_values():
    (f,) = maps((8, 3), batch=2)
    f = (f * (torch.arange(8) < 4).view(-1, 1, 1)).requires_grad_(True)  # four dead channels: four values of 0
    sign = right_singular_vectors(f, 2)[0].detach()[:, :1].sign()

    def oriented(x: torch.Tensor) -> torch.Tensor:
        vectors = right_singular_vectors(x, 2)[0]
        return vectors * (vectors.detach()[:, :1].sign() * sign)

    assert torch.autograd.gradcheck(oriented, (f,), atol=1e-6)


def test_align_vectors_takes_the_closest_and_its_side():
    student = torch.eye(4)[None, :, :3]
    teacher = torch.tensor([[0.1, -0.8, 0.0, 0.2], [0.7, 0.0, 0.6, 0.0]]).T[None]
    expected = torch.stack([-student[0, :, 1], student[0, :, 0]], 1)
    assert torch.equal(align_vectors(student, teacher)[0], expected)


@pytest.mark.parametrize("name", ON_LISTS)
def test_equal_maps_give_zero(name):
    features = maps((4, 8), (6, 4), (9, 2))
    losses = ON_LISTS[name]()(features, [f.clone() for f in features])
    assert len(losses) == (2 if name == "kdsvd" else 3)
    assert all(abs(loss.item()) < 1e-14 for loss in losses)


@pytest.mark.parametrize("name", ON_VECTORS)
def test_equal_vectors_give_zero(name):
    assert abs(ON_VECTORS[name]()(random(6, 9), random(6, 9)).item()) < 1e-15


@pytest.mark.parametrize("name", ["rkd", "pkt", "similarity"])
def test_relations_do_not_feel_a_rotation_or_a_scale(name):
    f_s, f_t = random(7, 9), random(7, 5, seed=1)
    turned = 3 * f_s @ torch.linalg.qr(random(9, 9, seed=2))[0]
    if name == "similarity":
        values = [Similarity()([f], [f_t])[0] for f in (f_s, turned)]
    else:
        values = [ON_VECTORS[name]()(f, f_t) for f in (f_s, turned)]
    assert values[1].item() == pytest.approx(values[0].item(), rel=1e-6)


@pytest.mark.parametrize("larger", ["student", "teacher"])
def test_maps_of_other_sides_and_channels(larger):
    big, small = [(6, 7), (9, 4)], [(5, 3), (4, 2)]
    g_s, g_t = (maps(*sizes) for sizes in ((big, small) if larger == "student" else (small, big)))
    for f in g_s:
        f.requires_grad_(True)
    losses = [*Attention()(g_s, g_t), *NSTLoss()(g_s, g_t), *Similarity()(g_s, g_t)]
    losses += [VIDLoss(s.shape[1], t.shape[1], t.shape[1]).double()(s, t) for s, t in zip(g_s, g_t, strict=True)]
    for loss in losses:
        assert loss.shape == ()
        assert any(g is not None and g.abs().sum() > 0 for g in torch.autograd.grad(loss, g_s, allow_unused=True))


def dead(g: list[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.zeros_like(f) for f in g]


def twins(g: list[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.cat([f[:1], f[:1], f[2:]]) for f in g]


def dead_channels(g: list[torch.Tensor]) -> list[torch.Tensor]:
    return [f * (torch.arange(f.shape[1]) % 3 == 0).view(-1, *[1] * (f.dim() - 2)) for f in g]


def alone(g: list[torch.Tensor]) -> list[torch.Tensor]:
    return [f[:1] for f in g]


@pytest.mark.parametrize("spoil", [dead, twins, dead_channels, alone])
@pytest.mark.parametrize("name", [*ON_LISTS, *ON_VECTORS])
def test_hard_features_give_finite_losses_and_gradients(name, spoil):
    if name in ON_LISTS:
        sizes = [(6, 6), (8, 3), (20, 2)]
        good, teacher = (maps(*sizes, seed=seed, dtype=torch.float32) for seed in (0, 10))
    else:
        good, teacher = ([random(3, 9, seed=seed, dtype=torch.float32)] for seed in (0, 10))
    student = [f.requires_grad_(True) for f in spoil(good)]
    teacher = [t[: len(s)] for s, t in zip(student, teacher, strict=True)]
    loss = sum(ON_LISTS[name]()(student, teacher)) if name in ON_LISTS else ON_VECTORS[name]()(student[0], teacher[0])
    assert loss.isfinite()
    for gradient in torch.autograd.grad(loss, student):
        assert gradient.isfinite().all()
        # what normalises a vector of zeros, of pkt or rkd, may not turn it into an overflow
        assert gradient.abs().max() < 1e9


@pytest.mark.parametrize("name", ON_VECTORS)
def test_equal_samples_send_back_no_huge_gradient(name):
    f_s = random(6, 8)
    f_s[1] = f_s[0]
    (grad,) = torch.autograd.grad(ON_VECTORS[name]()(f_s.requires_grad_(), random(6, 8, seed=1)), f_s)
    assert grad.abs().max() < 100


@pytest.mark.parametrize("name", ["correlation", "rkd"])
def test_a_batch_of_one_has_no_relations(name):
    f = random(1, 9).requires_grad_(True)
    loss = ON_VECTORS[name]()(f, random(1, 9, seed=1))
    assert loss.item() == 0
    assert torch.autograd.grad(loss, f)[0].abs().max() == 0


def test_a_diverged_network_does_not_stop_kdsvd():
    g_s, g_t = maps((5, 4), (6, 3)), maps((5, 4), (6, 3), seed=10)
    g_s[0][0] = math.nan
    assert KDSVD()(g_s, g_t)[0].isfinite()


@pytest.mark.parametrize("name", STAGED)
def test_a_longer_network_is_compared_up_to_the_end_of_the_shorter(name):
    three, four = [(6, 8), (8, 4), (9, 2)], [(6, 8), (8, 4), (9, 2), (5, 2)]
    for student, teacher in ((three, four), (four, three)):
        torch.manual_seed(0)
        method = registry[name].build(Shapes(shapes(*student), shapes(*teacher), 10, 60)).double()
        sides = [[None, *maps(*sizes, seed=seed), None] for sizes, seed in ((student, 0), (teacher, 10))]
        long = method.kd(Step(*(Output(None, side) for side in sides), None, None))
        # without the last stage of the longer
        cut = [[*side[:4], None] for side in sides]
        short = method.kd(Step(*(Output(None, side) for side in cut), None, None))
        assert long.item() == short.item() != 0


def test_vid_has_a_loss_for_every_stage():
    method = registry["vid"].build(Shapes(shapes((6, 8), (8, 4)), shapes((5, 8), (7, 2)), 10, 60))
    assert len(method.losses) == 2
    assert [loss.regressor[0].weight.shape[:2] for loss in method.losses] == [(5, 6), (7, 8)]
    assert [loss.log_scale.shape for loss in method.losses] == [(5,), (7,)]
    assert torch.allclose(method.losses[0].log_scale.exp().log1p(), torch.tensor(5.0))


def test_correlation_embeds_at_the_length_asked_for():
    method = registry["correlation"].build(Shapes(shapes((6, 8)), shapes((5, 8)), 10, 60), feat_dim=7)
    assert method.embed_s.linear.weight.shape == method.embed_t.linear.weight.shape == (7, 20)


def test_what_does_not_fit_is_refused():
    def build(name: str, student: list[tuple[int, int]], teacher: list[tuple[int, int]], **options: int):
        return registry[name].build(Shapes(shapes(*student), shapes(*teacher), 10, 60), **options)

    with pytest.raises(ValueError, match="stage 2 has 8 in the student and 16 in the teacher"):
        build("kdsvd", [(4, 8), (8, 4)], [(4, 8), (16, 4)])
    with pytest.raises(ValueError, match="share 1"):
        build("kdsvd", [(4, 8)], [(4, 8), (16, 4)])
    with pytest.raises(ValueError, match="--feat_dim 0"):
        build("correlation", [(4, 8)], [(4, 8)], feat_dim=0)
    with pytest.raises(ValueError, match="not above its bound"):
        VIDLoss(3, 4, 5, init_pred_var=1e-5)
