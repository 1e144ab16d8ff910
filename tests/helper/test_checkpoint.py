"""Which weights fit which network, at which size."""

import errno
import os
import re
import zipfile
from pathlib import Path

import pytest
import torch
from torchvision import models as zoo

from distiller_zoo import Shapes, registry
from distiller_zoo.heads import PooledMapNetwork
from helper.checkpoint import expected_shapes, fits, load_checkpoint, load_network, new_network, write_file
from helper.errors import RunError, UserError
from helper.setup import feature_shapes
from models import build, model_dict

ROLES = ("student", "teacher")


@pytest.mark.parametrize("name", list(model_dict))
def test_every_network_tells_its_shapes_without_memory(name):
    shapes = expected_shapes(name, 7)
    assert [shape[0] for shape in shapes.values() if len(shape) == 2][-1] == 7
    assert not any(key.endswith("num_batches_tracked") for key in shapes)


def test_what_cannot_be_written_is_one_error(tmp_path):
    with pytest.raises(RunError, match="File name too long; what was there before is kept"):
        write_file(tmp_path / ("a" * 300), b"")


def test_a_disk_that_becomes_read_only(tmp_path, monkeypatch):
    """It refuses the removal of the unfinished file, too."""

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    (tmp_path / "file").write_bytes(b"before")
    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(RunError, match="Read-only file system"):
        write_file(tmp_path / "file", b"after")
    assert (tmp_path / "file").read_bytes() == b"before"


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


@pytest.mark.parametrize(
    ("student", "teacher", "pooled"), [("resnet8", "wrn_16_1", 0), ("wrn_16_1", "vgg8", 1), ("deit_ti", "resnet8", 0)]
)
def test_a_student_with_the_teachers_classifier_is_the_same_when_it_is_read(tmp_path, student, teacher, pooled):
    networks = new_network(student, 7, size=32 if student == "deit_ti" else None), new_network(teacher, 7)
    shapes = Shapes(*[feature_shapes(network, (32, 32)) for network in networks], 7, 60)
    saved = registry["simkd"].build(shapes, factor=3).wrap_student(*networks).eval()
    assert pooled == (shapes.student[-2][2] > shapes.teacher[-2][2])
    content = {"model": saved.state_dict()} | ({"input_size": 32} if student == "deit_ti" else {})
    torch.save(content, tmp_path / "x.pth")
    read = load_network(student, tmp_path / "x.pth", 7).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(read(images), saved(images))
    assert torch.equal(PooledMapNetwork(read)(images), saved(images))  # as a teacher of further students
    assert read.input_size == networks[0].input_size
    with pytest.raises(UserError, match="7 classes, but the data set has 9"):
        load_network(student, tmp_path / "x.pth", 9)
    with pytest.raises(UserError, match="do not fit resnet110"):
        load_network("resnet110", tmp_path / "x.pth")
    del content["model"]["map_size"]
    saved.load_state_dict(content["model"])  # a run of an older version goes on
    torch.save(content, tmp_path / "old.pth")
    with pytest.raises(UserError, match=r"old\.pth cannot be built again"):
        load_network(student, tmp_path / "old.pth", 7)
