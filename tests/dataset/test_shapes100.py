"""The embedded data set: what it promises of its images, labels and names, and of its classes under a flip."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset import ImageData, MemoryLoader, shapes100
from helper.checkpoint import load_network
from helper.precision import Precision
from helper.teacher import evaluate


@pytest.fixture(scope="module")
def splits():
    return {"train": shapes100.draw(True), "test": shapes100.draw(False)}


@pytest.mark.parametrize(("split", "per_class"), [("train", 100), ("test", 20)])
def test_shapes_types_and_balance(splits, split, per_class):
    images, labels = splits[split]
    assert images.shape == (100 * per_class, 32, 32, 3)
    assert images.dtype == np.uint8
    assert labels.shape == (100 * per_class,)
    assert labels.dtype == np.int64
    assert np.bincount(labels, minlength=100).tolist() == [per_class] * 100


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_use_the_range_and_none_is_flat(splits, split):
    images, _ = splits[split]
    assert images.min() < 10
    assert images.max() > 245
    assert images.reshape(len(images), -1).std(axis=1).min() > 5


@pytest.mark.parametrize("split", ["train", "test"])
def test_order_is_mixed(splits, split):
    """In any tenth of a split there are about as many classes as a random order would show."""
    _, labels = splits[split]
    assert all(len(np.unique(part)) > 80 for part in np.split(labels, 10))


def test_drawing_twice_gives_the_same(splits):
    images, labels = shapes100.draw(False)
    np.testing.assert_array_equal(images, splits["test"][0])
    np.testing.assert_array_equal(labels, splits["test"][1])


@pytest.mark.parametrize(
    ("split", "mean", "first_labels"),
    [("train", 93.277, [47, 72, 94, 29, 14, 24, 21, 13]), ("test", 93.324, [30, 93, 47, 88, 28, 86, 70, 95])],
)
def test_coarse_fingerprint(splits, split, mean, first_labels):
    """Pins the data without asking for equal rounding on every platform: a change makes old checkpoints worthless."""
    images, labels = splits[split]
    assert images.mean() == pytest.approx(mean, abs=0.01)
    assert labels[:8].tolist() == first_labels


def test_no_image_is_in_both_splits_or_twice(splits):
    rows = np.concatenate([splits[name][0] for name in splits])
    assert len({row.tobytes() for row in rows}) == len(rows)


def test_mean_and_std_are_those_of_the_training_images(splits):
    value = np.arange(256) / 255
    for channel, (mean, std) in enumerate(zip(shapes100.MEAN, shapes100.STD, strict=True)):
        share = np.bincount(splits["train"][0][..., channel].ravel(), minlength=256) / (10_000 * 32 * 32)
        exact = (share * value).sum()
        assert mean == pytest.approx(exact, abs=1e-4)
        assert std == pytest.approx(np.sqrt((share * (value - exact) ** 2).sum()), abs=1e-4)


def test_names_are_20_families_of_5():
    names = shapes100.CLASSES
    assert len(set(names)) == len(names) == 100
    families = [name.split("/")[0] for name in names]
    assert len(set(families)) == 20
    assert all(len(set(families[i : i + 5])) == 1 for i in range(0, 100, 5))


FIGURES = [(family, k) for family in shapes100.FAMILIES for k in family.values]


@pytest.mark.parametrize(("family", "k"), FIGURES, ids=shapes100.CLASSES)
def test_figure_is_its_own_mirror_image(family, k):
    """With that, and a turn drawn evenly from half a circle, a flip yields another picture of the same class."""
    y, x = np.meshgrid(np.linspace(0.013, 1.2, 40), np.linspace(-1.2, 1.2, 81), indexing="ij")
    x, y = x.astype(np.float32), y.astype(np.float32)
    upper, lower = family.distance(x, y, k), family.distance(x, -y, k)
    assert np.mean(np.abs(upper - lower) < 1e-3) > 0.99


@pytest.mark.parametrize(("family", "k"), FIGURES, ids=shapes100.CLASSES)
def test_figure_is_visible_and_bounded(family, k):
    grid = np.linspace(-1.6, 1.6, 161, dtype=np.float32)
    inside = family.distance(grid[None, :], grid[:, None], k) < 0
    x, y = np.meshgrid(grid, grid)
    assert inside.mean() * 3.2**2 > 0.2
    assert np.hypot(x, y)[inside].max() < 1.35


@pytest.mark.parametrize("family", shapes100.FAMILIES, ids=lambda family: family.name)
def test_variants_differ_in_geometry(family):
    grid = np.linspace(-1.2, 1.2, 121, dtype=np.float32)
    drawn = [family.distance(grid[None, :], grid[:, None], k) < 0 for k in family.values]
    for one, two in itertools.pairwise(drawn):
        assert np.mean(one != two) > 0.01


def test_the_shipped_teacher_knows_the_test_images():
    root = Path(__file__).parent.parent.parent
    network = load_network("resnet20", root / "save" / "models" / "resnet20_shapes100" / "ckpt_epoch_20.pth", 100)
    data = ImageData(*shapes100.draw(train=False))
    loader = MemoryLoader(data, shapes100.MEAN, shapes100.STD, 500, torch.device("cpu"), train=False)
    assert evaluate(network, loader, Precision(torch.device("cpu"), torch.float32))["test_acc"] > 88
