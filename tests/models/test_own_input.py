"""Networks with a size and a normalisation of their own behind the loader's images."""

import pytest
import torch
import torch.nn.functional as F

from models import OwnInput, build, with_own_input

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def pixels(size):
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def normalise(x, mean, std):
    return (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def test_nothing_where_the_loader_gives_what_is_wanted():
    network = build("resnet8", 10)
    assert with_own_input(network, network, (32, 32), MEAN, STD) is network
    network = build("deit_ti", 10, 32)
    assert with_own_input(network, network, (32, 32), network.mean, network.std) is network
    assert isinstance(with_own_input(network, network, (64, 64), network.mean, network.std), OwnInput)
    assert isinstance(with_own_input(network, network, (32, 32), MEAN, STD), OwnInput)


@pytest.mark.parametrize("side", [32, 48, 64])
def test_the_network_sees_its_own_size_and_normalisation(side):
    torch.manual_seed(0)
    network = build("deit_ti", 10, 48).eval()
    seen = with_own_input(network, network, (side, side), MEAN, STD)
    raw = pixels(side)
    resized = raw
    if side != 48:
        resized = F.interpolate(raw, (48, 48), mode="bilinear", antialias=side > 48)
    with torch.no_grad():
        expected = network(normalise(resized, network.mean, network.std))
        torch.testing.assert_close(seen(normalise(raw, MEAN, STD)), expected, rtol=1e-4, atol=1e-5)
        features, logits = seen(normalise(raw, MEAN, STD), is_feat=True)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert len(features) == 14


def test_the_compiler_follows():
    torch.compiler.reset()
    network = build("deit_ti", 10, 48).eval()
    seen = with_own_input(network, network, (32, 32), MEAN, STD)
    compiled = torch.compile(lambda x: seen(x, is_feat=True), backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(pixels(32))[1], seen(pixels(32)))


def test_a_convolutional_network_at_another_size():
    network = build("resnet8", 10, 16).eval()
    seen = with_own_input(network, network, (32, 32), MEAN, STD)
    with torch.no_grad():
        features, _ = seen(pixels(32), is_feat=True)
    assert features[0].shape[2:] == (16, 16)
    assert seen.deployed is network
    assert seen.get_classifier() is network.get_classifier()


def test_size_and_normalisation_are_part_of_its_state():
    states = []
    for size, mean in ((16, MEAN), (24, MEAN), (16, (0.1, 0.1, 0.1))):
        network = build("resnet8", 10, size)
        network.mean, network.std = mean, STD
        seen = with_own_input(network, network, (32, 32), (0.0, 0.0, 0.0), STD)
        states.append({k: v for k, v in seen.state_dict().items() if not k.startswith("network.")})
    assert all(not all(torch.equal(states[0][k], other[k]) for k in other) for other in states[1:])
