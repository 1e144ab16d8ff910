"""Tiny-ImageNet: 200 classes of 500 training and 50 validation images of 64×64, in the layout of its archive.

It has `wnids.txt`, `train/WNID/images/*.JPEG`, `val/images/*.JPEG` and `val/val_annotations.txt`, whose lines begin
with the name of a file and its class, separated by a tab. Many have sorted the validation images into
`val/WNID/*.JPEG` or `val/WNID/images/*.JPEG`, as mdistiller needs them; this is read as well, with or without the
annotations. The validation images are the test set, as everywhere in the field: those in `test/` have no labels.

The recipe is DOT's: rotations by up to 20° and flips, and no crops. With `--rotation 0` the images are padded by 4,
cropped and flipped, as those of CIFAR-100 are; they then have a finite number of views, and a teacher's logits can be
kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .listing import ImageFiles, folders, images_below, list_classes, list_labelled, read_lines
from .loader import DataError

MEAN = (0.4802, 0.4481, 0.3975)
STD = (0.2302, 0.2265, 0.2262)
SIDE = (64, 64)
FOLDER = "tiny-imagenet-200"
IMAGES = "images"  # the folder in val/ of the archive's layout
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
    return list_classes(root, "train", names), _validation_files(root, names)


def _validation_files(root: Path, names: list[str]) -> ImageFiles:
    """The images of the classes' folders in `val/` where it has these, else of `val/images`."""
    val, path = root / "val", root / "val" / "val_annotations.txt"
    there = folders(val) if val.is_dir() else []
    if not there or (IMAGES in there and not {*names} & {*there}):
        return list_labelled(root, f"val/{IMAGES}", _annotations(path, names), path)
    unsorted = list(images_below(val / IMAGES)) if IMAGES in there else []
    if unsorted:
        # copied into the classes' folders, or to be: all that is in the archive is still where it was
        if path.is_file() and (labels := _annotations(path, names)).keys() == {entry.name for entry in unsorted}:
            return list_labelled(root, f"val/{IMAGES}", labels, path)
        raise _half_sorted(val, [entry.path for entry in unsorted])
    test = list_classes(root, "val", names, besides=(IMAGES,))
    if test.loose:
        raise _half_sorted(val, test.loose)
    return test


def _half_sorted(val: Path, outside: Sequence[str]) -> DataError:
    return DataError(
        f"{val} is sorted into the classes' folders by half: {len(outside)} images lie outside them, {outside[0]} for "
        f"instance; move these, too, or unpack {URL} again"
    )


def _annotations(path: Path, names: list[str]) -> dict[str, int]:
    """Label of each validation image by its name.

    Raises:
        DataError: the file is absent or malformed.
    """
    label_of, labels = {name: label for label, name in enumerate(names)}, {}
    if not path.is_file():
        raise DataError(f"{path} is missing, which tells the classes of the validation images; unpack {URL} again")
    for number, line in enumerate(read_lines(path), start=1):
        words = line.split("\t")
        if len(words) < 2 or words[1].strip() not in label_of:
            raise DataError(f"{path}, line {number}, is not a file's name, a tab and a class of wnids.txt")
        labels[words[0]] = label_of[words[1].strip()]
    return labels
