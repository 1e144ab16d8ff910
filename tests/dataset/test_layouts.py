"""Tiny-ImageNet, ImageNet and folders in their official layouts, and what is said of others."""

import dataclasses
import json
import os
import shutil
import sys

import numpy as np
import pytest
import torch
from image_trees import WNIDS, make_cifar10, make_folder, make_imagenet, make_tiny, picture, save, sort_tiny
from PIL import Image
from scipy.io import savemat

from dataset import (
    DataError,
    DiskLoader,
    MemoryLoader,
    Reading,
    cifar10,
    dataset_dict,
    get_dataset,
    imagenet,
    look,
    read_arrays,
)
from dataset import folder as folder_set
from dataset.files import choose_side
from dataset.listing import list_classes
from dataset.loader import ImageData

CPU = torch.device("cpu")


def read(name, root, **options):
    subset = options.pop("subset", None)
    return get_dataset(name, root, 4, CPU, subset=subset, reading=Reading(**options))


def truncate(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


# Any folder


@pytest.mark.parametrize("held", ["val", "test"])
def test_folder_in_memory(tmp_path, held):
    make_folder(tmp_path, held=held)
    data = read("folder", tmp_path)
    assert isinstance(data.train, MemoryLoader)
    assert (data.classes, data.train.samples, data.test.samples) == (3, 18, 6)
    assert data.train.side == (16, 16)
    assert data.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(data.test.pixels()[0].permute(1, 2, 0).numpy(), picture(19))
    assert data.notes == []


def test_val_comes_before_test(tmp_path):
    make_folder(tmp_path)
    make_folder(tmp_path / "other", val=1)
    shutil.copytree(tmp_path / "other" / "val", tmp_path / "test")
    assert read("folder", tmp_path).test.samples == 6


def test_statistics_are_those_of_all_pixels_and_kept(tmp_path):
    make_folder(tmp_path)
    data = read("folder", tmp_path)
    pixels = np.stack([picture(seed) for seed in range(1, 19)]).reshape(-1, 3) / 255
    assert np.allclose(data.mean, pixels.mean(0), atol=6e-5)
    assert np.allclose(data.std, pixels.std(0), atol=6e-5)
    kept = tmp_path / "kd_dataset.json"
    kept.write_text(kept.read_text().replace(str(data.mean[0]), "0.25"))
    assert read("folder", tmp_path).mean[0] == 0.25
    kept.write_text("{")
    assert read("folder", tmp_path).mean == data.mean
    # a changed file makes them another data set's
    save(tmp_path / "train" / "ant" / "000.png", np.zeros((16, 16, 3), np.uint8))
    assert read("folder", tmp_path).mean != data.mean


def test_statistics_that_cannot_be_kept(tmp_path, monkeypatch):
    make_folder(tmp_path / "data")
    fallback = tmp_path / "save" / "datasets.json"
    (tmp_path / "data" / "kd_dataset.json").mkdir()  # in the way, for root too
    data = read("folder", tmp_path / "data", fallback=fallback)
    assert fallback.is_file()
    assert data.notes == []
    fallback.unlink()
    fallback.mkdir()
    (note,) = read("folder", tmp_path / "data", fallback=fallback).notes
    assert "cannot be kept" in note
    assert not list(tmp_path.glob("**/*.tmp"))


def test_given_statistics_win(tmp_path):
    make_folder(tmp_path)
    data = read("folder", tmp_path, mean=(0.5, 0.5, 0.5), std=(0.1, 0.2, 0.3))
    assert (data.mean, data.std) == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
    assert not (tmp_path / "kd_dataset.json").exists()
    assert data.identity != read("folder", tmp_path).identity


def test_images_of_a_folder_of_png_files_are_those_of_cifar(tmp_path):
    """The loaders of both give equal batches for the same images in the same order."""
    rng = np.random.Generator(np.random.PCG64(0))
    images, labels = rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8), np.arange(12) // 3
    for position, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        for split in ("train", "val"):
            save(tmp_path / split / str(label) / f"{position:02d}.png", pixels)
    from dataset import cifar100

    look_of = {"mean": cifar100.MEAN, "std": cifar100.STD}
    ours = get_dataset("folder", tmp_path, 5, CPU, seed=3, reading=Reading(**look_of))
    theirs = MemoryLoader(ImageData(images, labels), *look_of.values(), 5, CPU, train=True, seed=3)
    for mine, other in zip(ours.train, theirs, strict=True):
        assert torch.equal(mine.images, other.images)
        assert torch.equal(mine.target, other.target)
        assert torch.equal(mine.entry, other.entry)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(16, 24)] * 3, (16, 24)),
        ([(224, 224)] * 3, (224, 224)),
        ([(300, 300)] * 3, (224, 224)),
        ([(70, 100), (100, 80), (90, 90)], (64, 64)),
        ([(20, 16), (16, 20), (16, 16)], (32, 32)),
        ([(500, 400), (640, 480), (100, 90)], (224, 224)),
    ],
)
def test_size_comes_from_the_images(tmp_path, sizes, expected):
    for number, size in enumerate(sizes):
        save(tmp_path / "train" / str(number) / "x.png", picture(0, *size))
    assert choose_side(tmp_path, [str(number) for number in range(len(sizes))]) == expected


def test_photographs_have_the_recipe_of_imagenet(tmp_path):
    make_folder(tmp_path / "small")
    make_folder(tmp_path / "large", side=(70, 90))
    assert "--memory_budget 0" in read("folder", tmp_path / "large").notes[0]
    assert read("folder", tmp_path / "large", memory_budget=0.0).notes == []
    assert look("folder", tmp_path / "small").recipe == {}
    assert look("folder", tmp_path / "small", (96, 96)).recipe == imagenet.RECIPE
    assert look("folder", tmp_path / "large").recipe == imagenet.RECIPE


def test_other_sizes_are_noted(tmp_path):
    make_folder(tmp_path)
    save(tmp_path / "train" / "bee" / "002.png", picture(0, 40, 30))
    (note,) = read("folder", tmp_path).notes
    assert "1 of 24 images have another size than 16×16" in note


def test_what_does_not_fit_is_read_from_disk(tmp_path):
    make_folder(tmp_path)
    need = 24 * 24 * 24 * 3 / 2**30
    assert isinstance(read("folder", tmp_path, memory_budget=need).train, MemoryLoader)
    assert isinstance(read("folder", tmp_path, memory_budget=need * 0.99).train, DiskLoader)


BAD = {"empty.png": "is empty", "cut.png": "is truncated", "text.jpg": "is not an image"}


@pytest.fixture
def spoiled(tmp_path):
    """A folder with three bad files."""
    make_folder(tmp_path)
    (tmp_path / "train" / "ant" / "empty.png").write_bytes(b"")
    (tmp_path / "train" / "cat" / "text.jpg").write_text("x")
    truncate(
        save(tmp_path / "val" / "ant" / "cut.png", np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8))
    )
    return tmp_path


@pytest.mark.parametrize("budget", [None, 0.0])
def test_bad_files_are_counted_and_named_or_skipped(spoiled, budget):
    with pytest.raises(DataError, match="3 of 27 images cannot be used") as caught:
        read("folder", spoiled, memory_budget=budget)
    assert all(f"{name} {reason}" in str(caught.value) for name, reason in BAD.items())
    for _ in range(2):  # the second time from what is remembered, where they are read from disk
        data = read("folder", spoiled, memory_budget=budget, skip_bad_images=True)
        assert (data.train.samples, data.test.samples) == (18, 6)
        assert data.notes[0].startswith("left out are 3 of 27 images: ")
        assert sum(len(batch.target) for batch in data.train) == 18


@pytest.mark.parametrize("budget", [None, 0.0])
def test_nothing_is_written_where_images_are_refused(spoiled, tmp_path_factory, budget):
    fallback = tmp_path_factory.mktemp("save") / "datasets.json"
    before = sorted(spoiled.rglob("*"))
    with pytest.raises(DataError, match="3 of 27 images cannot be used"):
        read("folder", spoiled, memory_budget=budget, fallback=fallback)
    assert sorted(spoiled.rglob("*")) == before
    assert not fallback.exists()
    read("folder", spoiled, memory_budget=budget, fallback=fallback, skip_bad_images=True)
    kinds = [key.split()[0] for key in json.loads((spoiled / "kd_dataset.json").read_text())]
    assert kinds == (["statistics"] if budget is None else ["statistics", "checked", "checked"])


@pytest.mark.parametrize("budget", [None, 0.0])
def test_a_class_without_a_good_image(tmp_path, budget):
    make_folder(tmp_path, train=2)
    for path in (tmp_path / "train" / "bee").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"no image of the class of .*bee"):
        read("folder", tmp_path, memory_budget=budget, skip_bad_images=True)


def test_a_mended_file_is_checked_again(tmp_path):
    make_folder(tmp_path)
    path = tmp_path / "train" / "ant" / "000.png"
    path.write_bytes(b"")
    with pytest.raises(DataError, match="1 of 24"):
        read("folder", tmp_path, memory_budget=0.0)
    save(path, picture(1))
    assert read("folder", tmp_path, memory_budget=0.0).train.samples == 18


def test_hidden_and_other_files_are_left_alone(tmp_path):
    make_folder(tmp_path)
    for name in ("notes.txt", "Thumbs.db", "desktop.ini", ".DS_Store", "boxes.XML", "README", ".hidden.png"):
        (tmp_path / "train" / "ant" / name).write_text("x")
        (tmp_path / "train" / name).write_text("x")
    (tmp_path / "train" / ".cache").mkdir()
    save(tmp_path / "train" / "ant" / "below" / "x.png", picture(0))
    data = read("folder", tmp_path)
    assert data.train.samples == 19
    assert data.notes == []


def test_files_with_other_endings_are_counted_and_named(tmp_path):
    make_folder(tmp_path)
    for name in ("train/ant/below/a.HEIC", "train/bee/b.tga", "train/bee/c.heic", "val/cat/noending", "train/d.avif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    for budget in (None, 0.0):
        (note,) = read("folder", tmp_path, memory_budget=budget).notes
        assert "left out are 5 files with other endings (.avif, .heic, .tga and 1 more): " in note
        assert note.endswith(f"{tmp_path}/train/d.avif, {tmp_path}/train/ant/below/a.HEIC, "
                             f"{tmp_path}/train/bee/b.tga and 2 more")  # fmt: skip
    assert read_arrays("folder", tmp_path)[2] == [note]


def test_images_beside_the_classes_are_counted_and_named(tmp_path):
    make_folder(tmp_path)
    save(tmp_path / "train" / "x.png", picture(0))
    save(tmp_path / "val" / "y.JPG", picture(0))
    data = read("folder", tmp_path)
    paths = f"{tmp_path}/train/x.png, {tmp_path}/val/y.JPG"
    assert data.notes == [f"left out are 2 images beside the classes' folders: {paths}"]
    assert (data.train.samples, data.test.samples) == (18, 6)


def test_other_endings_of_a_flat_validation_set(tmp_path):
    tiny = make_tiny(tmp_path)
    (tiny / "val" / "images" / "val_9.heic").write_text("x")
    (note,) = read("tiny_imagenet", tiny).notes
    assert "left out are 1 files with other endings (.heic): " in note


@pytest.mark.parametrize("ending", [".jfif", ".jpe", ".JPE"])
def test_rarer_endings_of_jpegs(tmp_path, ending):
    make_folder(tmp_path, side=(24, 24), ending=ending)
    data = read("folder", tmp_path)
    assert (data.train.samples, data.test.samples, data.train.side) == (18, 6, (24, 24))
    assert data.notes == []


def test_links_to_folders_are_followed(tmp_path):
    make_folder(tmp_path / "data")
    (tmp_path / "data" / "train" / "bee").rename(tmp_path / "bees")
    (tmp_path / "data" / "train" / "bee").symlink_to(tmp_path / "bees")
    (tmp_path / "data" / "train" / "cat" / "more").symlink_to("../ant")
    assert torch.bincount(read("folder", tmp_path / "data").train.labels).tolist() == [6, 6, 12]


def remove(path):
    shutil.rmtree(path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: remove(root / "train"), "no folder train"),
        (lambda root: remove(root / "val"), "neither val nor test"),
        (lambda root: remove(root), "does not exist"),
        (lambda root: [remove(root), root.write_text("x")], "is not a folder"),
        (lambda root: [remove(root / "train"), (root / "train").mkdir()], "at least two classes; it has 0"),
        (lambda root: [remove(root / "train" / c) for c in ("ant", "bee")], "at least two classes; it has 1"),
        (lambda root: [remove(root / "train" / "bee"), (root / "train" / "bee").mkdir()], "bee holds no image"),
        (lambda root: remove(root / "val" / "bee"), "lacks bee .*1 missing, 0 unknown"),
        (lambda root: (root / "val" / "dog").mkdir(), "has dog besides .*0 missing, 1 unknown"),
        (lambda root: (root / "val" / "bee").rename(root / "val" / "Bee"), "lacks bee and has Bee besides"),
        (lambda root: [save(p, picture(0, 4, 4)) for p in root.glob("*/*/*")], "smaller than 8×8"),
        (lambda root: [p.write_bytes(b"") for p in root.glob("*/*/*")], "first 20 images can be read.* is empty"),
        (lambda root: [save(p, np.zeros((9, 9, 3), np.uint8)) for p in root.glob("*/*/*")], "of one colour"),
        (lambda root: (root / "train" / "ant" / "x.png").symlink_to(root / "nowhere"), "x.png cannot be read"),
        (lambda root: (root / "train" / "ant" / "loop").symlink_to("."), "ant/loop is a link .* to .*/train/ant,"),
        (lambda root: (root / "train" / "ant" / "loop").symlink_to(root), "train/ant/loop is a link .* to .*/data,"),
        (lambda root: (root / "val" / "bee" / "loop").symlink_to(".."), "val/bee/loop is a link .* to .*/val,"),
        (lambda root: (root / "train" / "loop").symlink_to("."), "/data/train/loop is a link .* to .*/train,"),
        (lambda root: [(root / "train" / one / "x").symlink_to(f"../{other}") for one, other in
                       (("ant", "bee"), ("bee", "ant"))], "train/ant/x/x is a link .* to .*/ant,"),
        (lambda root: (root / "train" / "ant" / "x").symlink_to("x"), r"ant/x cannot be read \(Too many levels"),
        (lambda root: (root / "train" / "x").symlink_to("x"), r"train/x cannot be read \(Too many levels"),
    ],
)  # fmt: skip
def test_bad_folders(tmp_path, spoil, words):
    root = make_folder(tmp_path / "data")
    spoil(root)
    with pytest.raises(DataError, match=words) as caught:
        read("folder", root)
    assert len(str(caught.value).splitlines()) == 1
    assert str(root) in str(caught.value)


@pytest.mark.parametrize("name", [name for name in dataset_dict if name != "shapes100"])
def test_a_folder_that_the_file_system_refuses(name):
    root = "x" * 300
    for reading in (look, read):
        if reading is look and dataset_dict[name].layout is None:
            continue
        with pytest.raises(DataError, match=r"x cannot be read .*; see --data_folder"):
            reading(name, root)


def test_validation_images_that_are_half_there(tmp_path):
    tiny = make_tiny(tmp_path / "tiny")
    (tiny / "val" / "images" / "val_3.JPEG").unlink()
    with pytest.raises(DataError, match=r"images lacks 1 images that .*val_annotations.txt names, val_3.JPEG"):
        read("tiny_imagenet", tiny)
    make_imagenet(tmp_path / "sorted", flat=False)
    picked = sorted((tmp_path / "sorted" / "val").glob("*/*.JPEG"))[0]
    picked.rename(tmp_path / "sorted" / "val" / picked.name)
    with pytest.raises(DataError, match="has class folders and 1 images beside them"):
        read("imagenet", tmp_path / "sorted")


def test_the_size_of_images_comes_from_the_first_good_one_of_a_class(tmp_path):
    make_folder(tmp_path, side=(24, 24))
    for name in ("ant", "bee", "cat"):
        (tmp_path / "train" / name / "000.png").write_bytes(b"")
    assert choose_side(tmp_path, ["ant", "bee", "cat"]) == (24, 24)
    assert read("folder", tmp_path, skip_bad_images=True).train.samples == 15
    with pytest.raises(DataError, match="3 of 24 images cannot be used"):
        read("folder", tmp_path)


def test_a_closed_folder(tmp_path, monkeypatch):
    make_folder(tmp_path)
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("bee"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(DataError, match=r"bee cannot be read \(Permission denied\)"):
        read("folder", tmp_path)


def test_names_are_sorted_as_imagefolder_does(tmp_path):
    from torchvision.datasets import ImageFolder

    for name in ("b/10", "b/9", "b/x/1", "a/Z", "a/a", "B/1"):
        save(tmp_path / "train" / f"{name}.png", picture(0))
    files = list_classes(tmp_path, "train", folder_set.classes(tmp_path))
    assert list(zip(files.paths(), files.labels.tolist(), strict=True)) == ImageFolder(tmp_path / "train").samples


# Held-out images


def test_held_out_images_are_stratified_and_the_same_for_all_seeds(tmp_path):
    make_folder(tmp_path, train=20)
    parts = [
        get_dataset("folder", tmp_path, 4, CPU, seed=seed, reading=Reading(val_split=0.1, memory_budget=budget))
        for seed, budget in ((0, None), (1, None), (0, 0.0))
    ]
    for data in parts:
        assert torch.bincount(data.val.labels).tolist() == [2, 2, 2]
        assert torch.bincount(data.train.labels).tolist() == [18, 18, 18]
        assert data.held is data.val
        assert torch.equal(data.val.pixels(), parts[0].val.pixels())
        assert not data.val.train
    everything = torch.cat([parts[0].train.plain().images[:, 4:-4, 4:-4].permute(0, 3, 1, 2), parts[0].val.pixels()])
    assert len(everything.flatten(1).unique(dim=0)) == 60
    plain = read("folder", tmp_path)
    assert plain.val is None
    assert plain.held is plain.test
    assert plain.mean == parts[0].mean


@pytest.mark.parametrize(("sizes", "held"), [([2, 3, 100], [1, 1, 10]), ([15, 14, 26], [2, 1, 3])])
def test_every_class_gives_and_keeps_an_image(sizes, held):
    labels = np.repeat(np.arange(3), sizes)
    train, val = ImageData(np.zeros((len(labels), 1, 1, 3), np.uint8), labels).hold_out(0.1, 0)
    assert np.bincount(val.labels).tolist() == held
    assert (np.bincount(train.labels) + np.bincount(val.labels)).tolist() == sizes


def test_one_image_cannot_be_divided():
    with pytest.raises(DataError, match="class 1 has one training image"):
        ImageData(np.zeros((3, 1, 1, 3), np.uint8), np.array([0, 0, 1])).hold_out(0.1, 0)


@pytest.mark.parametrize("budget", [None, 0.0])
def test_subset_of_files(tmp_path, budget):
    make_folder(tmp_path)
    data = read("folder", tmp_path, subset=2, memory_budget=budget)
    assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    expected = np.stack([picture(seed) for seed in (1, 2, 7, 8, 13, 14)])
    found = torch.cat([batch.images for batch in data.train.plain()])
    mean, std = (torch.tensor(value)[:, None, None] for value in (data.mean, data.std))
    pixels = ((found * std + mean) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    assert np.array_equal(pixels.numpy(), expected)


# CIFAR-10


def test_cifar10(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "LAYOUT", dataclasses.replace(cifar10.LAYOUT, images={"train": 20, "test": 10}))
    folder = make_cifar10(tmp_path)
    names = [name for files in cifar10.LAYOUT.files.values() for name in files]
    assert sorted(names) == sorted(path.name for path in folder.iterdir())
    data = read("cifar10", tmp_path)
    assert (data.classes, data.train.samples, data.test.samples) == (10, 100, 10)
    assert data.train.plain().images[:, 4, 4, 0].tolist() == [i // 20 for i in range(100)]
    (folder / "data_batch_3").unlink()
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(DataError, match=r"CIFAR-10 is not in .*cifar-10-python\.tar\.gz"):
        read("cifar10", tmp_path)


# Tiny-ImageNet


def test_tiny_imagenet(tmp_path):
    folder = make_tiny(tmp_path)
    for root in (tmp_path, folder):
        data = read("tiny_imagenet", root)
        assert isinstance(data.train, MemoryLoader)
        assert (data.classes, data.train.samples, data.test.samples, data.train.side) == (3, 12, 6, (64, 64))
        assert data.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert data.test.labels.tolist() == [0, 1, 2, 0, 1, 2]
        with Image.open(folder / "val" / "images" / "val_4.JPEG") as image:
            assert np.array_equal(data.test.pixels()[4].permute(1, 2, 0).numpy(), np.asarray(image))
    assert look("tiny_imagenet", tmp_path).recipe["lr_decay_epochs"] == (60, 120, 160)
    assert data.train.views == 162


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "the annotations"])
@pytest.mark.parametrize("below", [".", "images"])
def test_tiny_imagenet_with_validation_images_in_class_folders(tmp_path, below, left):
    folder = make_tiny(tmp_path)
    sort_tiny(folder, below)
    if left != "the annotations":
        (folder / "val" / "val_annotations.txt").unlink()
    if left != "an empty folder":
        (folder / "val" / "images").rmdir()
    data = read("tiny_imagenet", tmp_path)
    assert data.notes == []
    assert data.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    with Image.open(folder / "val" / "n01629819" / below / "val_4.JPEG") as image:
        assert np.array_equal(data.test.pixels()[3].permute(1, 2, 0).numpy(), np.asarray(image))


def test_tiny_imagenet_with_copies_of_validation_images_in_class_folders(tmp_path):
    folder = make_tiny(tmp_path)
    shutil.copytree(folder / "val", tmp_path / "copy")
    sort_tiny(folder, count=4)
    shutil.copytree(tmp_path / "copy", folder / "val", dirs_exist_ok=True)
    assert read("tiny_imagenet", tmp_path).test.labels.tolist() == [0, 1, 2, 0, 1, 2]


def put_beside(root):
    sort_tiny(root)
    save(root / "val" / "val_9.JPEG", picture(0))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: sort_tiny(root, count=1), r"folders by half: 5 images lie outside them, .*val/images/val_1.JPEG"),
        (lambda root: sort_tiny(root, count=5), r"by half: 1 images lie outside them, .*val/images/val_5.JPEG"),
        (put_beside, r"by half: 1 images lie outside them, .*val/val_9.JPEG"),
        (lambda root: [sort_tiny(root), remove(root / "val" / "n01629819")], "lacks n01629819 .*1 missing, 0 unknown"),
        (lambda root: [sort_tiny(root), remove(root / "val" / "images"), (root / "val" / "n01629819").rename(
            root / "val" / "newt")], "lacks n01629819 and has newt besides"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("annotated", [True, False])
def test_half_sorted_tiny_imagenet(tmp_path, spoil, words, annotated):
    folder = make_tiny(tmp_path)
    spoil(folder)
    if not annotated:
        (folder / "val" / "val_annotations.txt").unlink()
    with pytest.raises(DataError, match=words) as caught:
        read("tiny_imagenet", tmp_path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: remove(root), r"Tiny-ImageNet is not in .*tiny-imagenet-200\.zip.*--data_folder"),
        (lambda root: (root / "wnids.txt").unlink(), "no wnids.txt"),
        (lambda root: (root / "wnids.txt").write_text("n01443537 goldfish\nn1 x\n"), "should name a class on each"),
        (lambda root: (root / "wnids.txt").write_bytes(b"\xff\xfe\x00"), "is not a text file"),
        (lambda root: (root / "val" / "val_annotations.txt").unlink(), "val_annotations.txt is missing"),
        (lambda root: (root / "val" / "val_annotations.txt").write_text("val_0.JPEG n01443537\n"), "line 1, is not"),
        (lambda root: (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn9\t0\n"), "line 1, is not"),
        (lambda root: (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn01443537\n"), "no label for 5"),
        (lambda root: [p.unlink() for p in (root / "val" / "images").iterdir()], "val/images holds no image"),
        (lambda root: remove(root / "train" / "n01629819"), "lacks n01629819"),
        (lambda root: truncate(root / "val" / "images" / "val_3.JPEG", 0.8), "1 of 18 images .*val_3.JPEG is trunc"),
    ],
)  # fmt: skip
def test_bad_tiny_imagenet(tmp_path, spoil, words):
    spoil(make_tiny(tmp_path))
    with pytest.raises(DataError, match=words):
        read("tiny_imagenet", tmp_path)


# ImageNet


def ground_truth(root, truth, number_of):
    lines = "".join(f"{number_of[wnid]}\n" for wnid in truth)
    (root / imagenet.TRUTH).write_text(lines)


ILSVRC = {WNIDS[0]: 3, WNIDS[1]: 1, WNIDS[2]: 2}  # not the order of the sorted names


def kit_map(root, truth):
    ground_truth(root, truth, ILSVRC)
    (root / "map_clsloc.txt").write_text("".join(f"{wnid} {number} name\n" for wnid, number in ILSVRC.items()))


def kit_meta(root, truth):
    kit = root / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    ground_truth(kit, truth, ILSVRC)
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = [(number, wnid, "a, b", "thing", 0) for wnid, number in ILSVRC.items()]
    rows.append((4, "n00000001", "all", "all things", 3))  # an inner node of the tree
    savemat(kit / "meta.mat", {"synsets": np.array(rows, dtype=kinds)})


def kaggle(root, truth):
    lines = [f"ILSVRC2012_val_{i:08d},{wnid} 1 2 3 4 {wnid} 5 6 7 8\n" for i, wnid in enumerate(truth, start=1)]
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(reversed(lines)))


def annotations(root, truth):
    lines = [f"ILSVRC2012_val_{i:08d}.JPEG {wnid}\n" for i, wnid in enumerate(truth, start=1)]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))


@pytest.mark.parametrize("labels", [None, kit_map, kit_meta, kaggle, annotations])
def test_imagenet(tmp_path, labels):
    truth = make_imagenet(tmp_path, flat=labels is not None)
    if labels:
        labels(tmp_path, truth)
    data = read("imagenet", tmp_path)
    assert isinstance(data.train, DiskLoader)
    assert (data.classes, data.train.samples, data.train.side) == (3, 9, (224, 224))
    expected = [sorted(WNIDS).index(wnid) for wnid in (truth if labels else sorted(truth))]
    assert data.test.labels.tolist() == expected
    assert (data.mean, data.std) == (imagenet.MEAN, imagenet.STD)
    batch = next(iter(data.test))
    assert batch.images.shape == (6, 3, 224, 224)


def test_imagenet_below_the_data_folder(tmp_path):
    make_imagenet(tmp_path / "imagenet", flat=False)
    assert look("imagenet", tmp_path).classes == 3
    assert read("imagenet", tmp_path, image_size=(96, 96)).train.side == (96, 96)


def spoil_truth(text):
    def spoil(root, truth):
        kit_map(root, truth)
        (root / imagenet.TRUTH).write_text(text)

    return spoil


def spoil_map(text):
    def spoil(root, truth):
        kit_map(root, truth)
        (root / "map_clsloc.txt").write_text(text)

    return spoil


def no_map(root, truth):
    ground_truth(root, truth, ILSVRC)


def bad_meta(root, truth):
    kit_meta(root, truth)
    truncate(root / "ILSVRC2012_devkit_t12" / "data" / "meta.mat")


def other_classes(root, truth):
    kaggle(root, ["n0" if wnid == WNIDS[1] else wnid for wnid in truth])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root, truth: remove(root / "train"), "ImageNet is in neither .*image-net.org"),
        (lambda root, truth: remove(root / "val"), "has no folder val"),
        (lambda root, truth: None, f"nothing tells the classes of its images: put {imagenet.TRUTH}"),
        (no_map, "needs a table of its numbers"),
        (spoil_truth("1\n2\n"), "has 2 lines for 6 images"),
        (spoil_truth("1\n2\n3\n1\n2\n9\n"), "line 6, is not the number of a class, 1 to 3, but '9'"),
        (spoil_truth("1\n2\n3\n1\n2\nx\n"), "line 6, is not the number"),
        (spoil_truth("1\n2\n2\n1\n2\n1\n"), "has not the classes of .*1 of them are missing"),
        (spoil_map("n01440764 fish\n"), "should have lines"),
        (bad_meta, "meta.mat is malformed"),
        (other_classes, "has not the classes of .*1 of them are missing, 1 are unknown"),
        (lambda root, truth: (root / "LOC_val_solution.csv").write_text("ImageId,P\nx\n"), "line 2, is not the name"),
        (lambda root, truth: kaggle(root, truth[:-1]), "no label for 1 images"),
        (lambda root, truth: save(root / "val" / "n0" / "x.JPEG", picture(0)), "classes of .*val are not those of"),
    ],
)
def test_bad_imagenet(tmp_path, spoil, words):
    truth = make_imagenet(tmp_path)
    spoil(tmp_path, truth)
    with pytest.raises(DataError, match=words) as caught:
        read("imagenet", tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_every_data_set_is_arrays_or_files():
    assert all((entry.load is None) != (entry.layout is None) for entry in dataset_dict.values())
