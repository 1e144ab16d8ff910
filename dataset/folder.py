"""Any folder of images: `train/CLASS/*.jpg` and `val/CLASS/*.jpg`, or `test/CLASS/` in place of the latter."""

from __future__ import annotations

from pathlib import Path

from .listing import ImageFiles, class_names, list_classes
from .loader import DataError

LAYOUT = "train/CLASS/*.jpg and val/CLASS/*.jpg (or test/CLASS/*.jpg)"


def locate(root: Path) -> Path:
    """The folder with `train/`: the one that is given.

    Raises:
        DataError: it is absent, no folder, or has no such part.
    """
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"{root} {what}; --data_folder must hold {LAYOUT}")
    if not (root / "train").is_dir():
        raise DataError(f"{root} has no folder train; --data_folder must hold {LAYOUT}")
    return root


def classes(root: Path) -> list[str]:
    """Names of the classes, from the folders in `train/`."""
    return class_names(root / "train")


def splits(root: Path) -> tuple[ImageFiles, ImageFiles]:
    """Training and test files; those of `val/` are the test set, or of `test/` where there is no `val/`.

    Raises:
        DataError: a split is absent, its classes differ, or a class is empty.
    """
    names = classes(root)
    held = next((name for name in ("val", "test") if (root / name).is_dir()), None)
    if held is None:
        raise DataError(f"{root} has neither val nor test; --data_folder must hold {LAYOUT}")
    return list_classes(root, "train", names), list_classes(root, held, names)
