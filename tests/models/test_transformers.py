"""The vision transformers: sizes, gradients, two heads, drop path, what the records without values leave open."""

import math

import pytest
import torch
import torch.nn.functional as F

from models import build, model_dict
from models.t2t import PerformerAttention, sinusoids
from models.transformer import DropPath, drop_path_rates

TRANSFORMERS = ["deit_ti", "deit_ti_distilled", "pit_ti", "pvt_ti", "t2t_7"]
BLOCKS = {"deit_ti": 12, "deit_ti_distilled": 12, "pit_ti": 12, "pvt_ti": 8, "t2t_7": 7}


def images(size, seed=0):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("size", [32, 64])
def test_features_are_the_blocks_as_maps(name, size):
    torch.manual_seed(0)
    model = build(name, 7, size).eval()
    assert model.input_size == size
    with torch.no_grad():
        features, logits = model(images(size), is_feat=True)
        assert torch.equal(model(images(size)), logits)
        preacts, _ = model(images(size), is_feat=True, preact=True)
    assert logits.shape == (2, 7)
    assert len(features) == BLOCKS[name] + 2
    assert all(f.dim() == 4 and f.shape[2] == f.shape[3] for f in features[:-1])
    assert features[-1].shape == (2, model.get_classifier().in_features)
    assert all(torch.equal(f, p) for f, p in zip(features, preacts, strict=True))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_gradients_reach_everything_that_is_trained(name):
    torch.manual_seed(0)
    model = build(name, 7, 32, drop_path=0.0).train()
    logits = model(images(32))
    logits = logits.flatten(0, -2)
    F.cross_entropy(logits, torch.arange(len(logits)) % 7).backward()
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert not [key for key, p in trained.items() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_feature_modules_leave_out_the_heads(name):
    model = build(name, 7, 32)
    inner = {id(p) for p in model.get_feat_modules().parameters()}
    assert inner < {id(p) for p in model.parameters()}
    assert not inner & {id(p) for p in model.get_classifier().parameters()}


@pytest.mark.parametrize(("name", "size"), [("deit_ti", 40), ("pit_ti", 16), ("pvt_ti", 48), ("t2t_7", 0)])
def test_sizes_that_do_not_suit(name, size):
    with pytest.raises(ValueError, match=f"side {size} do not suit"):
        model_dict[name](img_size=size)


def test_two_heads_in_training_their_mean_in_evaluation():
    torch.manual_seed(0)
    model = build("deit_ti_distilled", 7, 32, drop_path=0.0).train()
    with torch.no_grad():
        heads = model(images(32))
        features, again = model(images(32), is_feat=True)
        assert heads.shape == again.shape == (2, 2, 7)
        torch.testing.assert_close(model.head(features[-1]), heads[:, 0])
        torch.testing.assert_close(model.eval()(images(32)), heads.mean(1))
        assert not torch.allclose(heads[:, 0], heads[:, 1])


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 3, 2)
    found = drop.train()(x)
    values = found[:, 0, 0]
    assert torch.equal(found, values[:, None, None].expand_as(x))
    assert values.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert (values == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(drop.eval()(x), x)


def test_drop_path_grows_with_the_depth():
    assert drop_path_rates(0.1, 3) == pytest.approx([0.0, 0.05, 0.1])
    rates = [module.rate for module in build("pvt_ti", 7, 32, drop_path=0.7).modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.1 * i for i in range(8)])


def test_sinusoids_by_hand():
    found = sinusoids(5, 4)[0]
    for position in range(5):
        angles = position, position / 100
        expected = [f(angle) for angle in angles for f in (math.sin, math.cos)]
        assert found[position].tolist() == pytest.approx(expected, abs=1e-6)


def test_performer_approximates_softmax_attention():
    torch.manual_seed(0)
    dim = 64
    attention = PerformerAttention(dim, dim).double()
    x = 0.2 * torch.randn(2, 9, dim, dtype=torch.float64)
    with torch.no_grad():
        attention.qkv_transform.weight.copy_(torch.eye(dim).repeat(3, 1))
        attention.qkv_transform.bias.zero_()
        attention.projection.weight.copy_(torch.eye(dim))
        attention.projection.bias.zero_()
        # many random features: their kernel is then the exponential of the inner product
        attention.w = torch.nn.Parameter(torch.randn(100_000, dim, dtype=torch.float64), requires_grad=False)
        expected = x + (x @ x.mT).softmax(-1) @ x
        torch.testing.assert_close(attention(x), expected, rtol=0.1, atol=0.03)


@pytest.mark.parametrize("name", ["pvt_ti", "t2t_7"])
def test_autocast_stays_near_float32(name):
    torch.manual_seed(0)
    model = build(name, 7, 32).eval()
    with torch.no_grad():
        expected = model(images(32))
        with torch.autocast("cpu", torch.bfloat16):
            found = model(images(32)).float()
    assert (found - expected).abs().max() < 0.1 * expected.abs().max() + 0.02
