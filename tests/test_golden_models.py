"""The networks against recorded structures (JSON) and outputs (NPZ) of the reference implementations.

GOLDEN names the folder whose subfolder models/ holds the records; the default is tests/golden. A structure file lists
the state dict, the feature shapes and a rule that fills the weights; an archive holds what the network so filled
computes in float64.
"""

import json
import math
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from models import model_dict

DEFAULT = Path(__file__).resolve().parent / "golden"
FOLDER = Path(os.environ.get("GOLDEN", DEFAULT)) / "models"
JSONS = sorted(path.stem for path in FOLDER.glob("*.json"))
ARCHIVES = sorted(path.stem for path in FOLDER.glob("*.npz"))

# Networks that the reference implementations do not have; torchvision's are compared with in tests/models.
NOT_RECORDED = {"imagenet_ResNet101", "imagenet_MobileNetV2"}

P = 2**31 - 1


@cache
def structure(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


def own_name(name):
    return name.removeprefix("vit_")


def build(name):
    given = structure(name)["constructor_arguments"]
    classes = given.get("num_classes") or given.get("MODEL", {}).get("NUM_CLASSES")
    return model_dict[own_name(name)](**({"num_classes": classes} if classes else {})).eval()


def recorded(features, record):
    """Those of the project's list [stem, stages, vector] that the record has.

    RepDistiller's list is the same, mdistiller's has no vector (and MobileNetV1's no stem), tiny-transformers' has the
    blocks only.
    """
    count = len(record["feature_shapes"])
    return features if count == len(features) else features[-1 - count : -1]


def fill_entry(index, key, shape, dtype, gain):
    """The filling rule for entry `index` of a state dict, in float64. Products stay below 2^62, so int64 is exact."""
    if "int" in dtype:
        return np.zeros(shape, dtype=np.int64)
    j = np.arange(1, math.prod(shape) + 1, dtype=np.int64)
    a = (j * 1000003 + (index + 1) * 69621) % P
    b = (a * a + index) % P
    c = (b * b + a) % P
    u = (c / P).reshape(shape)
    s = 2 * u - 1
    if key.endswith("running_var"):
        return 1 + 0.5 * u
    if key.endswith("running_mean"):
        return 0.1 * s
    if key.endswith(".weight") and len(shape) >= 2:
        return gain * np.sqrt(3 / math.prod(shape[1:])) * s
    if key.endswith(".weight"):
        return 1 + 0.2 * s
    return 0.1 * s


def fill(model, gain):
    model.double()
    for i, (key, value) in enumerate(model.state_dict().items()):
        dtype = str(value.dtype).removeprefix("torch.")
        value.copy_(torch.from_numpy(fill_entry(i, key, tuple(value.shape), dtype, gain)))


def fixed_input(shape):
    return torch.from_numpy(np.cos(0.013 * np.arange(math.prod(shape))).reshape(shape))


def shapes(tensors):
    return [list(tensor.shape) for tensor in tensors]


def statistics(prefix, tensors):
    result = {}
    for i, tensor in enumerate(tensors):
        x = tensor.numpy()
        result[f"{prefix}_{i}_mean"] = x.mean()
        result[f"{prefix}_{i}_std"] = x.std()
        result[f"{prefix}_{i}_head"] = x.reshape(-1)[:16]
        result[f"{prefix}_{i}_chmean"] = x.mean(axis=(0, *range(2, x.ndim)))
    return result


def assert_close(actual, expected, what):
    assert np.shape(actual) == np.shape(expected), what
    bound = 1e-9 * np.abs(expected).max() + 1e-12
    worst = np.abs(actual - expected).max()
    assert worst <= bound, f"{what}: off by {worst:.3g}, allowed {bound:.3g}"


def test_folder_has_records():
    assert JSONS, f"no structure files in {FOLDER}"
    assert ARCHIVES, f"no archives in {FOLDER}"


@pytest.mark.skipif(FOLDER.parent.resolve() != DEFAULT, reason="another folder need not hold every network")
def test_every_network_has_a_record():
    assert {own_name(name) for name in JSONS} == set(model_dict) - NOT_RECORDED


def test_every_archive_has_a_structure():
    assert set(ARCHIVES) <= set(JSONS)


@pytest.mark.parametrize("name", JSONS)
def test_structure(name):
    record, model = structure(name), build(name)
    assert record["name"] == name
    parameters = dict(model.named_parameters())
    entries = [
        {
            "index": i,
            "key": key,
            "shape": list(value.shape),
            "dtype": str(value.dtype).removeprefix("torch."),
            "kind": "parameter" if key in parameters else "buffer",
        }
        for i, (key, value) in enumerate(model.state_dict().items())
    ]
    assert entries == record["state_dict"]
    assert len(entries) == record["n_state_dict_entries"]
    assert sum(p.numel() for p in model.parameters()) == record["n_parameters"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == record["n_trainable_parameters"]
    assert sum(b.numel() for b in model.buffers()) == record["n_buffer_elements"]


WITH_FEATURES = [name for name in JSONS if "feature_shapes" in structure(name)]


@pytest.mark.parametrize("name", WITH_FEATURES)
def test_batch_norms_before_the_relu(name):
    record, model = structure(name), build(name)
    if record["bn_before_relu"] is None:
        with pytest.raises(NotImplementedError):
            model.get_bn_before_relu()
        return
    modules = [model.get_submodule(entry["module"]) for entry in record["bn_before_relu"]]
    reported = model.get_bn_before_relu()
    if name.startswith("imagenet_ResNet"):  # mdistiller leaves out the first stage
        assert len(reported) == len(modules) + 1
        reported = reported[1:]
    assert len(reported) == len(modules)
    assert all(a is b for a, b in zip(reported, modules, strict=True))
    assert [type(m).__name__ for m in modules] == [entry["type"] for entry in record["bn_before_relu"]]


@pytest.mark.parametrize("name", WITH_FEATURES)
def test_shapes(name):
    record, model = structure(name), build(name)
    x = fixed_input(record["input_shape"]).float()
    with torch.no_grad():
        features, logits = model(x, is_feat=True)
        preacts, _ = model(x, is_feat=True, preact=True)
    assert list(logits.shape) == record["logits_shape"]
    features, preacts = recorded(features, record), recorded(preacts, record)
    assert shapes(features) == record["feature_shapes"]
    assert shapes(preacts) == (record["preact_feature_shapes"] or shapes(features))
    same = all(torch.equal(f, p) for f, p in zip(features, preacts, strict=True))
    assert same == record.get("preact_equals_features", record["preact_feature_shapes"] is None)


@pytest.mark.parametrize("name", WITH_FEATURES)
def test_filling_rule(name):
    record = structure(name)
    for check in record["fill"]["check"]:
        entry = record["state_dict"][check["index"]]
        assert entry["key"] == check["key"]
        values = fill_entry(entry["index"], entry["key"], entry["shape"], entry["dtype"], record["fill"]["gain"])
        assert values.reshape(-1)[:3].tolist() == pytest.approx(check["first"], rel=1e-14, abs=0)
        assert values.sum() == pytest.approx(check["sum"], rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", ARCHIVES)
def test_values(name):
    record, model = structure(name), build(name)
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as archive:
        expected = {key: archive[key] for key in archive.files}
    assert expected.pop("gain") == record["fill"]["gain"]
    fill(model, record["fill"]["gain"])
    x = fixed_input(record["input_shape"])
    with torch.no_grad():
        features, logits = model(x, is_feat=True)
        preacts, _ = model(x, is_feat=True, preact=True)
    features, preacts = recorded(features, record), recorded(preacts, record)
    has_preacts = record["preact_feature_shapes"] is not None
    actual = {"logits": logits.numpy(), **statistics("feat", features)}
    actual |= statistics("preact", preacts) if has_preacts else {}
    assert set(actual) == set(expected)
    for key, value in expected.items():
        assert_close(actual[key], value, f"{name}: {key}")
