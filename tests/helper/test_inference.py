"""Networks that do not learn: folded batch norms and low formats give the same answers."""

import pytest
import torch
from torch import nn

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
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    network = trained_looking("resnet8")
    inference, seen = Inference(network, FOLDED, compiled_size=4), []
    inference(images[:1])
    inference.module.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    for count in (4, 1, 3, 6):
        torch.testing.assert_close(inference(images[:count]), network(images[:count]), rtol=1e-3, atol=1e-3)
    assert set(seen) == {4}


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


def test_the_uncompiled_one_shares_the_weights_of_the_compiled(images, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module, **options: lambda x: module(x) + 1)
    network = trained_looking("resnet8")
    fused = Inference(network, FOLDED, compiled_size=len(images), learns=True)
    expected = fused(images) - 1
    plain = fused.uncompiled()
    torch.testing.assert_close(plain(images), expected)
    move(network)
    plain.refresh()
    torch.testing.assert_close(plain(images), fused(images) - 1)
