"""Which weights fit which network, at which size."""

import pytest
import torch
from torchvision import models as zoo

from helper.checkpoint import expected_shapes, fits, load_network
from helper.errors import UserError
from models import build, model_dict


@pytest.mark.parametrize("name", list(model_dict))
def test_every_network_tells_its_shapes_without_memory(name):
    shapes = expected_shapes(name, 7)
    assert [shape[0] for shape in shapes.values() if len(shape) == 2][-1] == 7
    assert not any(key.endswith("num_batches_tracked") for key in shapes)


def test_a_transformer_is_loaded_at_the_size_that_its_file_names(tmp_path):
    state, path = build("deit_ti", 7, 32).state_dict(), tmp_path / "deit_ti.pth"
    torch.save({"model": state, "input_size": 32}, path)
    network = load_network("deit_ti", path, 7)
    assert network.input_size == 32
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    torch.save(state, path)
    assert load_network("deit_ti", path, 7, size=32).input_size == 32
    with pytest.raises(UserError, match="do not fit deit_ti; they fit no network"):
        load_network("deit_ti", path, 7)
    with pytest.raises(UserError, match="do not fit deit_ti for images of side 48"):
        load_network("deit_ti", path, 7, size=48)
    with pytest.raises(UserError, match="side 40 do not suit"):
        load_network("deit_ti", path, 7, size=40)


def test_a_file_of_torchvision(tmp_path):
    """Older ones have no counters of batches."""
    path = tmp_path / "resnet34-333f7ec4.pth"
    state = zoo.resnet34(num_classes=7).state_dict()
    torch.save({key: value for key, value in state.items() if "num_batches" not in key}, path)
    network = load_network("imagenet_ResNet34", path, 7)
    assert torch.equal(network.fc.weight, state["fc.weight"])
    with pytest.raises(UserError, match="they fit imagenet_ResNet34"):
        load_network("imagenet_ResNet18", path)
    assert not fits("imagenet_ResNet50", state)


def test_a_file_for_a_network_of_another_package(tmp_path):
    path = tmp_path / "squeezenet.pth"
    state = zoo.squeezenet1_1(num_classes=7).state_dict()
    torch.save(state, path)
    network = load_network("torchvision:squeezenet1_1", path, 7)
    assert torch.equal(network.deployed.features[0].weight, state["features.0.weight"])
    with pytest.raises(UserError, match="do not fit torchvision:squeezenet1_1 with 9 classes: size mismatch"):
        load_network("torchvision:squeezenet1_1", path, 9)
