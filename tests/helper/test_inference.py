"""Networks that do not learn: folded batch norms and low formats give the same answers."""

import pytest
import torch
from torch import nn

from helper import cpu_graph
from helper.inference import FoldError, Inference, foldable_norms
from helper.precision import Precision
from models import model_dict

CPU = torch.device("cpu")
FP32, FOLDED, BF16 = (
    Precision(CPU, torch.float32, plain=True),
    Precision(CPU, torch.float32),
    Precision(CPU, torch.bfloat16),
)

TRANSFORMERS = ("deit_ti", "deit_ti_distilled", "pit_ti", "pvt_ti", "t2t_7")


def trained_looking(name: str, classes: int = 10) -> nn.Module:
    """A network whose batch norms have statistics, scales and shifts of their own."""
    torch.manual_seed(0)
    network = model_dict[name](num_classes=classes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return network.eval()


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.fixture
def images():
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", [name for name in model_dict if name not in (*TRANSFORMERS, "imagenet_ResNet101")])
@torch.no_grad()
def test_folding_keeps_the_logits_of_every_network(name, images):
    network = trained_looking(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    expected = network(images)
    inference = Inference(network, FOLDED)
    inference(images[:2])
    folded = inference.module
    torch.testing.assert_close(folded(images), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
    # the network itself is as it was
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    # the norms that open the blocks of a wide ResNet follow no convolution directly
    assert norms(folded) == 0 or (name.startswith("wrn") and norms(folded) < norms(network))


@pytest.mark.parametrize("name", ["deit_ti", "t2t_7"])
@torch.no_grad()
def test_transformers_run_as_they_are_with_a_note(name, images, capsys):
    torch.manual_seed(0)
    network = model_dict[name](num_classes=10, img_size=32).eval()
    expected = network(images)
    assert torch.equal(Inference(network, FOLDED, quiet=False)(images), expected)
    assert "no batch norm" in capsys.readouterr().err
    torch.testing.assert_close(Inference(network, BF16)(images), expected, rtol=0.05, atol=0.05)


class Twice(nn.Module):
    """Reads the convolution's output before its norm, too, which folding would change."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 10)
        nn.init.uniform_(self.norm.running_var, 2, 3)

    def forward(self, x):
        x = self.conv(x)
        return self.fc((x + self.norm(x)).mean((2, 3)))


@torch.no_grad()
def test_what_cannot_be_folded_runs_as_it_is_with_a_note(images, capsys):
    network = Twice().eval()
    with pytest.raises(FoldError):
        foldable_norms(network, images)
    expected = network(images)
    assert torch.equal(Inference(network, FOLDED, quiet=False)(images), expected)
    assert "runs as it is" in capsys.readouterr().err
    low = Inference(network, BF16)
    torch.testing.assert_close(low(images), expected, rtol=0.05, atol=0.05)
    assert not low.lowered
    assert capsys.readouterr().err == ""


class Named(nn.Module):
    """A network of three layers, `conv`, `norm` and `fc`."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 10)
        nn.init.uniform_(self.norm.running_var, 2, 3)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).mean((2, 3)))

    def get_classifier(self):
        return self.fc


class AppliesTwice(Named):
    def forward(self, x):
        return self.fc(self.norm(self.conv(self.norm(self.conv(x)))).mean((2, 3)))


class WeightOfAnotherKind(Named):
    def __init__(self):
        super().__init__()
        torch.nn.utils.weight_norm(self.conv)


class ReadsItsNorm(Named):
    def forward(self, x):
        return super().forward(x) * self.norm.eps


class WantsFloat32(Named):
    def forward(self, x):
        if x.dtype != torch.float32:
            raise TypeError("images in float32, please")
        return super().forward(x)


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("precision", [FOLDED, BF16], ids=["float32", "bf16"])
@pytest.mark.parametrize(
    ("kind", "folds"), [(AppliesTwice, True), (WeightOfAnotherKind, False), (ReadsItsNorm, False), (WantsFloat32, True)]
)
@torch.no_grad()
def test_whatever_code_a_network_has_it_runs(kind, folds, precision, images, capsys):
    torch.manual_seed(0)
    network = kind().eval()
    inference = Inference(network, precision, size=6, quiet=False)
    near = {"rtol": 0.05, "atol": 0.05} if precision == BF16 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(inference(images), network(images), **near)
    assert ("runs as it is" in capsys.readouterr().err) != folds


@torch.no_grad()
def test_plain_is_the_network_itself(images):
    network = trained_looking("resnet8")
    inference = Inference(network, FP32)
    assert torch.equal(inference(images), network(images))
    assert inference.module is network


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV2"])
@torch.no_grad()
def test_bfloat16_stays_near_float32(name, images):
    network = trained_looking(name, classes=100)
    inference, plain = Inference(network, BF16), network(images)
    logits = inference(images)
    assert inference.lowered
    assert logits.dtype == torch.float32
    # the classifier computes in float32: its outputs are no multiples of a coarse step
    assert not torch.equal(logits, logits.bfloat16().float())
    assert (logits - plain).abs().max() < 0.05 * plain.abs().max()


def test_logits_serve_a_backward_pass(images):
    logits = Inference(trained_looking("resnet8"), BF16)(images)
    assert not logits.requires_grad
    student = torch.zeros_like(logits, requires_grad=True)
    (student * logits).sum().backward()


@torch.no_grad()
def test_compiled_serves_every_batch_size_with_one_shape(images, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda module, **_: lambda x: seen.append((x.shape, x.stride())) or module(x))
    monkeypatch.setattr(cpu_graph, "fuse", lambda *_, **__: None)
    network = trained_looking("resnet8")
    inference = Inference(network, FOLDED, size=4, compiled=True)
    for count in (1, 4, 3, 6):
        torch.testing.assert_close(inference(images[:count]), network(images[:count]), rtol=1e-3, atol=1e-3)
    assert set(seen) == {((4, 3, 32, 32), (3072, 1, 96, 3))}  # other strides are another shape to the compiler


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@torch.no_grad()
def test_compiled_for_cuda_it_runs_as_graphs_whose_results_it_copies(images, device, cuda_graphs, monkeypatch):
    """Without CUDA: its precision is said to be one of CUDA, its tensors are the CPU's."""
    monkeypatch.setattr(cpu_graph, "fuse", lambda *_, **__: None)
    network = trained_looking("resnet8")
    inference = Inference(network, Precision(torch.device(device), torch.float32), size=4, compiled=True)
    expected = network(images)
    first, second = inference(images), inference(images[:3])
    torch.testing.assert_close(first, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(second, expected[:3], rtol=1e-3, atol=1e-3)
    assert cuda_graphs.options == [
        {"dynamic": False, "options": {"freezing": True, "triton.cudagraphs": device == "cuda"}}
    ]
    assert cuda_graphs.begun == 3


def move(network: nn.Module) -> None:
    """Change weights and statistics as training does."""
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.mul_(1.3)


@pytest.mark.parametrize("precision", [FP32, FOLDED, BF16], ids=["plain", "folded", "bf16"])
@pytest.mark.parametrize("name", ["resnet8", "wrn_16_2", "deit_ti"])
def test_refreshed_it_runs_the_weights_of_now(name, precision, images):
    network = trained_looking(name) if name != "deit_ti" else model_dict[name](num_classes=10, img_size=32).eval()
    inference = Inference(network, precision, learns=True)
    before, module = inference(images), inference.module
    move(network)
    inference.refresh()
    assert inference.module is module  # which may be compiled
    after = inference(images)
    assert torch.equal(after, Inference(network, precision)(images))
    assert not torch.equal(after, before)


def test_a_norm_that_seemed_to_fold_before_training_is_found_out(images):
    network = Twice().eval()
    nn.init.ones_(network.norm.running_var)
    inference = Inference(network, FOLDED, learns=True)
    inference(images)
    assert inference.pairs
    nn.init.uniform_(network.norm.running_var, 2, 3)
    inference.refresh()
    assert torch.equal(inference(images), network(images))
    assert not inference.pairs


# one of each kind of block, of depth and width as small as they come
CONVOLUTIONAL = [
    *("resnet8", "resnet8x4", "wrn_16_1", "vgg8", "vgg19", "MobileNetV2", "ShuffleV1", "ShuffleV2", "ResNet50"),
    *("imagenet_ResNet18", "imagenet_ResNet50", "imagenet_MobileNetV1", "imagenet_MobileNetV2"),
]
SIZE = 4


def can_fuse() -> bool:
    conv = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    return cpu_graph.fuse(conv, torch.randn(2, 3, 8, 8), frozen=True) is not None


needs_fusion = pytest.mark.skipif(not can_fuse(), reason="this torch fuses nothing on this processor")


@needs_fusion
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_every_kind_of_convolutional_network_is_fused(name, images):
    network = trained_looking(name)
    if name.startswith("imagenet"):  # a map of 1x1 can be too small for oneDNN
        images = torch.randn(SIZE, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    fused, plain = Inference(network, FOLDED, SIZE), Inference(network, FOLDED)
    expected = plain(images)
    torch.testing.assert_close(fused(images), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
    assert fused.module is not fused.own


@needs_fusion
@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV2"])
def test_in_bfloat16_it_stays_as_near_float32_as_what_is_not_fused(name, images):
    network = trained_looking(name, classes=100)
    expected = Inference(network, FP32)(images)
    fused, plain = Inference(network, BF16, SIZE), Inference(network, BF16)
    errors = [(run(images) - expected).norm().item() for run in (fused, plain)]
    assert fused.lowered
    assert fused.module is not fused.own
    assert errors[0] < 1.5 * errors[1]


@needs_fusion
@pytest.mark.parametrize("precision", [FOLDED, BF16], ids=["folded", "bf16"])
def test_it_follows_a_network_that_learns(precision, images):
    network = trained_looking("resnet8")
    fused = Inference(network, precision, SIZE, learns=True)
    before, module = fused(images), fused.module
    move(network)
    fused.refresh()
    after = fused(images)
    assert fused.module is module
    torch.testing.assert_close(after, Inference(network, precision)(images), rtol=0.02, atol=0.02 * after.abs().max())
    assert not torch.allclose(after, before, rtol=0.1)


@needs_fusion
def test_each_number_of_images_gives_the_same_logits(images):
    fused = Inference(trained_looking("resnet8"), FOLDED, SIZE)
    expected = fused(images)
    for count in (1, 3, 4, 5):
        torch.testing.assert_close(fused(images[:count]), expected[:count])
    other_layout = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(fused(other_layout), expected)


@pytest.mark.parametrize(
    ("precision", "size"),
    [(FP32, SIZE), (BF16, None), (FOLDED, None)],
    ids=["plain", "bf16 without a size", "folded without a size"],
)
def test_what_is_not_asked_for_is_not_fused(precision, size, images):
    inference = Inference(trained_looking("resnet8"), precision, size)
    inference(images)
    assert inference.module is inference.own


class Unfaithful(nn.Module):
    """Computes something else while it is traced."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        x = torch.relu(self.conv(x))
        return x.mean((2, 3)) if torch._C._get_tracing_state() is None else x.sum((2, 3))


class Untraceable(nn.Module):
    def forward(self, x):
        if torch._C._get_tracing_state() is not None:
            raise RuntimeError("no trace of this")
        return x.mean((2, 3))


@pytest.mark.parametrize("network", [Unfaithful(), Untraceable()], ids=["another result", "an error"])
def test_what_cannot_be_traced_runs_as_it_is(network, images):
    assert cpu_graph.fuse(network.eval(), images, frozen=True) is None


def test_without_torchscript_networks_run_as_they_are(images, monkeypatch):
    monkeypatch.delattr(torch.jit, "trace")
    inference = Inference(trained_looking("resnet8"), FOLDED, SIZE)
    inference(images)
    assert inference.module is inference.own


@needs_fusion
def test_the_processes_setting_stays(images):
    before = torch.jit.onednn_fusion_enabled()
    Inference(trained_looking("resnet8"), FOLDED, SIZE)(images)
    assert torch.jit.onednn_fusion_enabled() == before
