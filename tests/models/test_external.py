"""Networks of other packages: torchvision's, timm's where it is installed, and anyone's own."""

import urllib.error
import urllib.request

import pytest
import torch
from torch import nn
from torchvision import models as zoo

import models
from models import UnknownNetwork, build, build_pretrained, model_dict, project_name
from models.external import TappedNetwork, output_map
from models.imagenet_resnet import ImageNetBottleneck, ImageNetResNet

try:
    import timm
except ImportError:
    timm = None
needs_timm = pytest.mark.skipif(timm is None, reason="timm, an optional extra, is not installed")


def images(size=64):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2"])
def test_torchvisions_weights_have_the_same_names(name):
    with torch.device("meta"):
        theirs = zoo.get_model(name, num_classes=7).state_dict()
        ours = build(f"torchvision:{name}", 7)
        assert type(ours) is type(model_dict[project_name(f"torchvision:{name}")]())
    found = {key: (value.shape, value.dtype) for key, value in ours.state_dict().items()}
    assert found == {key: (value.shape, value.dtype) for key, value in theirs.items()}


@pytest.mark.parametrize("name", ["resnet18", "bottlenecks", "mobilenet_v2"])
def test_torchvisions_weights_give_torchvisions_logits(name):
    torch.manual_seed(0)
    if name == "bottlenecks":
        theirs = zoo.ResNet(zoo.resnet.Bottleneck, [1, 2, 1, 1], num_classes=7).eval()
        ours = ImageNetResNet(ImageNetBottleneck, (1, 2, 1, 1), num_classes=7).eval()
    else:
        theirs, ours = zoo.get_model(name, num_classes=7).eval(), build(f"torchvision:{name}", 7).eval()
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        assert torch.equal(ours(images()), theirs(images()))


class Plain(nn.Module):
    """Two stages, and nothing of this project's interface."""

    def __init__(self, num_classes=5):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.stages = nn.ModuleList([nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.Conv2d(6, 8, 3, stride=2, padding=1)])
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x.relu())
        return self.head(x.mean((2, 3)))


def test_default_features():
    model = TappedNetwork(Plain()).eval()
    with torch.no_grad():
        features, logits = model(images(), is_feat=True)
        assert torch.equal(model(images()), logits)
    assert model.taps == ["stem", "stages.0", "stages.1"]
    assert [tuple(f.shape) for f in features] == [(2, 4, 32, 32), (2, 6, 16, 16), (2, 8, 8, 8), (2, 8)]
    torch.testing.assert_close(model.get_classifier()(features[-1]), logits)


def test_named_features_are_the_stages():
    model = TappedNetwork(Plain(), ["stages.0", "stages.1"]).eval()
    with torch.no_grad():
        features, _ = model(images(), is_feat=True)
    assert torch.equal(features[0], features[1])
    assert [f.shape[1] for f in features] == [6, 6, 8, 8]
    with pytest.raises(UnknownNetwork, match="module stages"):
        TappedNetwork(Plain(), ["stages.2"])


def test_copies_keep_their_own_features():
    import copy

    model = TappedNetwork(Plain()).eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.network.stem.weight.mul_(2)
        features, _ = model(images(), is_feat=True)
        changed, _ = other(images(), is_feat=True)
    assert not torch.equal(features[0], changed[0])
    assert not model.kept
    assert not other.kept


@pytest.mark.parametrize("is_feat", [False, True])
def test_the_compiler_follows_the_hooks(is_feat):
    torch.compiler.reset()
    model, x = TappedNetwork(Plain()), images()
    compiled = torch.compile(lambda x: model(x, is_feat=is_feat), backend="eager", fullgraph=True)
    found, expected = compiled(x), model(x, is_feat=is_feat)
    pairs = zip((*found[0], found[1]), (*expected[0], expected[1]), strict=True) if is_feat else [(found, expected)]
    assert all(torch.equal(one, other) for one, other in pairs)
    assert not model.kept


def test_gradients_pass_through_the_features():
    model = TappedNetwork(Plain())
    features, _ = model(images(), is_feat=True)
    features[1].sum().backward()
    assert model.network.stem.weight.grad.any()
    assert model.network.stages[1].weight.grad is None


def test_what_counts_as_a_map():
    assert output_map(torch.zeros(2, 5, 7, 7)).shape == (2, 5, 7, 7)
    assert output_map(torch.zeros(2, 7, 7, 5)).shape == (2, 5, 7, 7)
    tokens = torch.arange(2 * 10 * 3.0).view(2, 10, 3)
    found = output_map(tokens)
    assert found.shape == (2, 3, 3, 3)
    assert torch.equal(found[0, :, 0, 0], tokens[0, 1])
    assert output_map(torch.zeros(2, 13, 3)) is None
    assert output_map((torch.zeros(2, 5, 7, 7),)) is None


def test_outputs_with_auxiliary_logits():
    class Auxiliary(Plain):
        def forward(self, x):
            return zoo.GoogLeNetOutputs(super().forward(x), None, None)

    assert TappedNetwork(Auxiliary())(images()).shape == (2, 5)


def test_a_network_without_maps():
    with torch.device("meta"):
        model = build("torchvision:vit_b_16", 5, 32).eval()
        features, logits = model(torch.zeros(2, 3, 32, 32), is_feat=True)
    assert model.input_size == 32
    assert logits.shape == (2, 5)
    assert [tuple(f.shape) for f in features] == [(2, 768)]


def test_a_network_without_linear_layer():
    model = build("torchvision:squeezenet1_1", 5).eval()
    with torch.no_grad():
        features, logits = model(images(), is_feat=True)
    assert logits.shape == (2, 5)
    assert features[-1].dim() == 2
    with pytest.raises(NotImplementedError, match="no linear layer"):
        model.get_classifier()


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("resnet9", "resnet8"),
        ("torchvision:resnet35", "torchvision:resnet34"),
        ("torchvision:densenet121.V7", "torchvision:densenet121.IMAGENET1K_V1"),
        pytest.param("timm:resnet27", "timm:resnet26", marks=needs_timm),
    ],
)
def test_unknown_names_tell_the_known_ones(name, known):
    with pytest.raises(UnknownNetwork) as error:
        build(name, 5)
    assert known in error.value.known


def test_published_weights_are_downloaded_and_kept(tmp_path, monkeypatch):
    """The address and the file's checksum are torchvision's own; here a small file stands in for it."""
    torch.hub.set_dir(tmp_path)
    torch.manual_seed(0)
    state = zoo.resnet18().state_dict()
    old_file = {key: value for key, value in state.items() if "num_batches" not in key}
    seen = []

    def get_state_dict(self, **_):
        seen.append(self.name)
        return old_file

    monkeypatch.setattr(zoo.ResNet18_Weights, "get_state_dict", get_state_dict)
    network = build_pretrained("torchvision:resnet18")
    assert seen == ["IMAGENET1K_V1"]
    assert torch.equal(network.fc.weight, state["fc.weight"])
    assert type(network) is type(model_dict["imagenet_ResNet18"]())


def test_offline_says_where_the_file_goes(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    with pytest.raises(ValueError, match=f"put the file at {tmp_path}/hub/checkpoints/resnet34-"):
        build_pretrained("torchvision:resnet34")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def make(num_classes):\n    return 3\n", "returns a int"),
        ("def make():\n    pass\n", "cannot be called with num_classes=5"),
        ("def other():\n    pass\n", "no attribute 'make'"),
    ],
)
def test_own_functions_that_do_not_do(source, reason, tmp_path, monkeypatch):
    (tmp_path / "some_networks.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(models.external.importlib.sys.modules, "some_networks", raising=False)
    with pytest.raises(ValueError, match=reason):
        build("some_networks:make", 5)


def test_own_function(tmp_path, monkeypatch):
    (tmp_path / "good_networks.py").write_text(
        "from torch import nn\n\ndef make(num_classes):\n"
        "    layers = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)\n"
        "    return nn.Sequential(*layers)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = build("good_networks:make", 5)
    assert model(images()).shape == (2, 5)
    assert [tuple(f.shape) for f in model(images(), is_feat=True)[0]] == [(2, 4)]


def test_a_package_that_is_missing():
    with pytest.raises(ValueError, match="no_such_package"):
        build("no_such_package:make", 5)


@needs_timm
def test_timm():
    model = build("timm:resnet10t", 5).eval()
    assert model.mean == tuple(timm.get_pretrained_cfg("resnet10t").mean)
    with torch.no_grad():
        features, logits = model(images(), is_feat=True)
    assert logits.shape == (2, 5)
    assert [f.shape[2] for f in features[:-1]] == [32, 16, 8, 4, 2]
    assert model.deployed.state_dict().keys() == timm.create_model("resnet10t", num_classes=5).state_dict().keys()


@needs_timm
def test_timm_transformer_with_taps():
    model = build("timm:vit_tiny_patch16_224", 5, 32, taps=["blocks.0", "blocks.11"]).eval()
    with torch.no_grad():
        features, _ = model(images(32), is_feat=True)
    assert [tuple(f.shape) for f in features] == [(2, 192, 2, 2)] * 3 + [(2, 192)]


@needs_timm
def test_timms_weights_offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"--path_t FILE --model_t timm:resnet10t"):
        build_pretrained("timm:resnet10t")


def test_without_timm(monkeypatch):
    monkeypatch.setitem(models.external.importlib.sys.modules, "timm", None)
    with pytest.raises(ValueError, match="pip install timm"):
        build("timm:resnet10t", 5)
