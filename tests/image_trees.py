"""Miniature data sets of real image files."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
from PIL import Image

from dataset import cifar10


def picture(seed: int, height: int = 16, width: int = 16) -> np.ndarray:
    """A smooth picture with some noise, (H, W, 3) uint8: JPEG keeps it recognisable."""
    rng = np.random.Generator(np.random.PCG64(seed))
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR))


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def make_folder(
    root: Path, classes=("ant", "bee", "cat"), train=6, val=2, side=(16, 16), ending=".png", held="val"
) -> Path:
    """`train/CLASS/N.png` and `val/CLASS/N.png`."""
    seed = 0
    for split, count in (("train", train), (held, val)):
        for name in classes:
            for number in range(count):
                seed += 1
                save(root / split / name / f"{number:03d}{ending}", picture(seed, *side))
    return root


def make_tiny(root: Path, wnids=("n01443537", "n01629819", "n01641577"), train=4, val=2) -> Path:
    """Tiny-ImageNet's archive, one image of each class grey."""
    folder, lines, seed = root / "tiny-imagenet-200", [], 0
    for wnid in wnids:
        for number in range(train):
            seed += 1
            pixels = picture(seed, 64, 64)
            pixels = pixels[..., 0] if number == 0 else pixels
            save(folder / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", pixels)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("0 0 63 63\n")
    for number in range(val * len(wnids)):
        wnid = wnids[number % len(wnids)]
        save(folder / "val" / "images" / f"val_{number}.JPEG", picture(1000 + number, 64, 64))
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t62\t63\n")
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in reversed(wnids)))
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "test" / "images").mkdir(parents=True)
    return folder


def sort_tiny(folder: Path, below=".", count=None) -> None:
    """Move Tiny-ImageNet's validation images, or the first so many, into `val/WNID/BELOW`, as many users have them."""
    lines = (folder / "val" / "val_annotations.txt").read_text().splitlines()
    for name, wnid, *_ in (line.split("\t") for line in lines[:count]):
        target = folder / "val" / wnid / below
        target.mkdir(parents=True, exist_ok=True)
        (folder / "val" / "images" / name).rename(target / name)


WNIDS = ("n01440764", "n02119789", "n02100735")


def make_imagenet(root: Path, train=3, val=2, flat=True) -> list[str]:
    """ImageNet with photographs of different sizes; returns the class of each validation image, in order."""
    seed = 0
    for wnid in WNIDS:
        for number in range(train):
            seed += 1
            save(root / "train" / wnid / f"{wnid}_{number}.JPEG", picture(seed, 60 + 7 * number, 80))
    truth = [WNIDS[number % len(WNIDS)] for number in range(val * len(WNIDS))]
    for number, wnid in enumerate(truth, start=1):
        name = f"ILSVRC2012_val_{number:08d}.JPEG"
        save(root / "val" / name if flat else root / "val" / wnid / name, picture(500 + number, 70, 90))
    return truth


def make_cifar10(root: Path, train=20, test=10) -> Path:
    """CIFAR-10's archive with `train` images in each of its five batches; all images of a file have its number as grey.

    `cifar10.LAYOUT.images` has to be told of these counts.
    """
    folder = root / cifar10.LAYOUT.folder
    folder.mkdir(parents=True)
    for number, (name, count) in enumerate([*((f"data_batch_{n}", train) for n in range(1, 6)), ("test_batch", test)]):
        content = {"data": np.full((count, 3072), number, np.uint8), "labels": [i % 10 for i in range(count)]}
        (folder / name).write_bytes(pickle.dumps({key.encode(): value for key, value in content.items()}))
    return folder
