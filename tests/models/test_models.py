"""Behaviour of the networks that the recorded values do not cover: training, sizes, side effects."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import model_dict, model_recipe
from models.resnet import NARROW, ResNet
from models.wrn import WideResNet

TRANSFORMERS = ["deit_ti", "deit_ti_distilled", "pit_ti", "pvt_ti", "t2t_7"]
NAMES = sorted(set(model_dict) - {*TRANSFORMERS})
# One of each family, for what does not depend on depth or width.
IMAGENET = ["imagenet_ResNet18", "imagenet_MobileNetV1", "imagenet_MobileNetV2"]
FAMILIES = ["resnet8", "ResNet50", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", *IMAGENET]


def images(size=32, seed=0):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_recipes_name_networks():
    assert set(model_recipe) <= set(model_dict)
    assert len(model_dict) == 33


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_everything(name):
    torch.manual_seed(0)
    model = model_dict[name](num_classes=7).train()
    x = images().requires_grad_()
    features, logits = model(x, is_feat=True)
    assert logits.shape == (2, 7)
    assert len(features) == {"vgg": 6, "Mob": 6, "Res": 6, "ima": 6}.get(name[:3], 5)
    assert features[-1].shape == (2, model.get_classifier().in_features)
    F.cross_entropy(logits, torch.tensor([0, 6])).backward()
    missing = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_do_not_depend_on_the_flags(name):
    model = model_dict[name](num_classes=100).eval()
    x = images()
    with torch.no_grad():
        logits = model(x)
        assert torch.equal(model(x, is_feat=True)[1], logits)
        assert torch.equal(model(x, is_feat=True, preact=True)[1], logits)
        assert torch.equal(model(x, preact=True), logits)
    assert logits.shape == (2, 100)


@pytest.mark.parametrize("name", FAMILIES)
def test_pooled_vector_feeds_the_classifier(name):
    model = model_dict[name]().eval()
    with torch.no_grad():
        features, logits = model(images(), is_feat=True)
        torch.testing.assert_close(model.get_classifier()(features[-1]), logits)


@pytest.mark.parametrize(
    "name", ["resnet8", "ResNet50", "vgg8", "ShuffleV1", "imagenet_ResNet18", "imagenet_MobileNetV1"]
)
def test_features_are_rectified_preactivations(name):
    # Fails, too, if a later in-place operation writes into a returned tensor.
    model = model_dict[name]().train()
    with torch.no_grad():
        features, _ = model(images(), is_feat=True)
        preacts, _ = model(images(), is_feat=True, preact=True)
    for feature, preact in zip(features[1:-1], preacts[1:-1], strict=True):
        assert (preact < 0).any()
        torch.testing.assert_close(F.relu(preact), feature)


def test_shufflev2_preactivations_are_not_shuffled():
    model = model_dict["ShuffleV2"]().eval()
    with torch.no_grad():
        features, _ = model(images(), is_feat=True)
        preacts, _ = model(images(), is_feat=True, preact=True)
    for feature, preact in zip(features[1:-1], preacts[1:-1], strict=True):
        half = feature.shape[1] // 2
        # Channel j of half h moves to 2j + h; the first half was passed on by the last unit, already rectified.
        torch.testing.assert_close(feature[:, 0::2], preact[:, :half])
        torch.testing.assert_close(feature[:, 1::2], F.relu(preact[:, half:]))


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_of_batch_norms_are_channels_last(name):
    """Others are slow on CPUs; 1x1 maps have one layout only."""
    model = model_dict[name]().to(memory_format=torch.channels_last)
    seen = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_full_backward_hook(lambda _, __, gradients: seen.append(gradients[0]))
    model(images().to(memory_format=torch.channels_last)).square().sum().backward()
    assert seen
    assert all(gradient.is_contiguous(memory_format=torch.channels_last) for gradient in seen)


@pytest.mark.parametrize("name", FAMILIES)
def test_statistics_are_updated_once_per_pass(name):
    model = model_dict[name]().train()
    with torch.no_grad():
        model(images(), is_feat=True, preact=True)
    counts = {int(m.num_batches_tracked) for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    assert counts == {1}


@pytest.mark.parametrize("name", FAMILIES)
def test_larger_images(name):
    model = model_dict[name](num_classes=100).eval()
    with torch.no_grad():
        small, _ = model(images(32), is_feat=True)
        large, logits = model(images(64), is_feat=True)
    assert logits.shape == (2, 100)
    assert large[-1].shape == small[-1].shape
    assert [f.shape[1] for f in large] == [f.shape[1] for f in small]


@pytest.mark.parametrize("name", FAMILIES)
def test_feature_modules_share_parameters(name):
    model = model_dict[name]()
    own = {id(p) for p in model.parameters()}
    inner = {id(p) for p in model.get_feat_modules().parameters()}
    head = {id(p) for p in model.get_classifier().parameters()}
    assert inner < own
    assert not inner & head


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2"])
def test_initialisation(name):
    torch.manual_seed(0)
    model = model_dict[name]()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.weight[0, 0].numel() * module.out_channels
            ratio = module.weight.std() * (fan_out / 2) ** 0.5
            assert abs(ratio - 1) < 4 / module.weight.numel() ** 0.5
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.bias.any()
    linear = model.get_classifier()
    if name in ("vgg8", "MobileNetV2"):
        assert 0.009 < linear.weight.std() < 0.011
    assert linear.bias.any() == (name == "resnet8")


@pytest.mark.parametrize("name", ["ShuffleV1", "ShuffleV2"])
def test_shuffle_networks_have_no_single_batch_norm(name):
    with pytest.raises(NotImplementedError, match="batch-norm"):
        model_dict[name]().get_bn_before_relu()


def test_impossible_depths_are_refused():
    with pytest.raises(ValueError, match="6n \\+ 2"):
        ResNet(21, NARROW)
    with pytest.raises(ValueError, match="6n \\+ 4"):
        WideResNet(17, 1)
