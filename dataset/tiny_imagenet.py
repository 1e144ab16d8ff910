"""Tiny-ImageNet: 200 classes of 500 training and 50 validation images of 64×64, in the layout of its archive.

It has `wnids.txt`, `train/WNID/images/*.JPEG`, `val/images/*.JPEG` and `val/val_annotations.txt`, whose lines begin
with the name of a file and its class, separated by a tab. The validation images are the test set, as everywhere in the
field: those in `test/` have no labels.

The recipe is DOT's: rotations by up to 20° and flips, and no crops. With `--rotation 0` the images are padded by 4,
cropped and flipped, as those of CIFAR-100 are; they then have a finite number of views, and a teacher's logits can be
kept.
"""

from __future__ import annotations

from pathlib import Path

from .listing import ImageFiles, list_classes, list_labelled, read_lines
from .loader import DataError

MEAN = (0.4802, 0.4481, 0.3975)
STD = (0.2302, 0.2265, 0.2262)
SIDE = (64, 64)
FOLDER = "tiny-imagenet-200"
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
# Zhao et al., DOT: A Distillation-Oriented Trainer, ICCV 2023
RECIPE = {
    "epochs": 200,
    "batch_size": 256,
    "learning_rate": 0.2,
    "lr_decay_epochs": (60, 120, 160),
    "lr_decay_rate": 0.1,
    "weight_decay": 5e-4,
    "rotation": 20.0,
}


def locate(root: Path) -> Path:
    """The unpacked archive: `root` itself, or the archive's folder in it.

    Raises:
        DataError: it is neither.
    """
    found = next((folder for folder in (root, root / FOLDER) if (folder / "wnids.txt").is_file()), None)
    if found is None:
        raise DataError(
            f"Tiny-ImageNet is not in {root / FOLDER} (no wnids.txt); unpack {URL} into {root}, or name its folder "
            "with --data_folder"
        )
    return found


def classes(root: Path) -> list[str]:
    """The classes' WordNet numbers, sorted.

    Raises:
        DataError: `wnids.txt` is no list of names.
    """
    names = sorted(line.strip() for line in read_lines(root / "wnids.txt"))
    if len(names) < 2 or len(set(names)) < len(names) or any(len(name.split()) > 1 for name in names):
        raise DataError(f"{root / 'wnids.txt'} should name a class on each line, each one once; fetch it again")
    return names


def splits(root: Path) -> tuple[ImageFiles, ImageFiles]:
    """Training and test files.

    Raises:
        DataError: a part is absent or malformed.
    """
    names = classes(root)
    label_of = {name: label for label, name in enumerate(names)}
    path, labels = root / "val" / "val_annotations.txt", {}
    if not path.is_file():
        raise DataError(f"{path} is missing, which tells the classes of the validation images; unpack {URL} again")
    for number, line in enumerate(read_lines(path), start=1):
        words = line.split("\t")
        if len(words) < 2 or words[1].strip() not in label_of:
            raise DataError(f"{path}, line {number}, is not a file's name, a tab and a class of wnids.txt")
        labels[words[0]] = label_of[words[1].strip()]
    return list_classes(root, "train", names), list_labelled(root, "val/images", labels, path)
