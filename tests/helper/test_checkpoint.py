"""Which weights fit which network, at which size."""

import re
import zipfile

import pytest
import torch
from torchvision import models as zoo

from helper.checkpoint import expected_shapes, fits, load_checkpoint, load_network
from helper.errors import UserError
from models import build, model_dict

ROLES = ("student", "teacher")


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


@pytest.mark.parametrize("old_format", [False, True])
def test_a_changed_byte_is_found_where_the_format_has_checksums(tmp_path, old_format):
    path = tmp_path / "resnet8.pth"
    state = build("resnet8", 10).state_dict()
    torch.save(state, path, _use_new_zipfile_serialization=not old_format)
    load_network("resnet8", path)
    content = bytearray(path.read_bytes())
    content[content.index(state["fc.weight"].numpy().tobytes())] ^= 0xFF
    path.write_bytes(content)
    if old_format:
        load_checkpoint(path)
        return
    with pytest.raises(UserError, match=r"is damaged \(the checksum of its part .*data/\d+ is wrong\); fetch"):
        load_network("resnet8", path)


def test_a_file_that_was_saved_without_checksums_is_read(tmp_path):
    path, state = tmp_path / "resnet8.pth", build("resnet8", 10).state_dict()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert zipfile.ZipFile(path).testzip()
    assert torch.equal(load_network("resnet8", path).fc.weight, state["fc.weight"])


@pytest.mark.parametrize(
    ("key", "change", "reason"),
    [
        ("conv1.weight", lambda value: value * torch.nan, "conv1.weight has values that are not finite"),
        ("bn1.running_var", lambda value: value / 0, "bn1.running_var has values that are not finite"),
        ("fc.weight", lambda value: value.to(torch.int8), "fc.weight is of int8 numbers"),
        ("fc.bias", lambda value: value.to(torch.complex64), "fc.bias is of complex64 numbers"),
    ],
)
def test_weights_that_are_none_are_refused(tmp_path, key, change, reason):
    path, state = tmp_path / "resnet8.pth", build("resnet8", 10).state_dict()
    torch.save({**state, key: change(state[key])}, path)
    with pytest.raises(UserError, match=re.escape(reason)):
        load_network("resnet8", path)


@pytest.mark.parametrize(
    "packed",
    [
        lambda state: {"state_dict": state},
        lambda state: {"model": {f"_orig_mod.{key}": value for key, value in state.items()}},
        # mdistiller's latest and best: the whole distiller
        lambda state: {
            "epoch": 3,
            "model": {
                f"module.{who}.{key}": value + (who == "teacher") for key, value in state.items() for who in ROLES
            },
        },
    ],
    ids=["state_dict", "compiled", "distiller"],
)
def test_other_forms_of_checkpoints(tmp_path, packed):
    path, state = tmp_path / "x.pth", build("resnet8", 10).state_dict()
    torch.save(packed(state), path)
    found = load_network("resnet8", path).state_dict()
    assert all(torch.equal(found[key], state[key]) for key in state)
