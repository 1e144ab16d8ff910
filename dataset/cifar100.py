"""CIFAR-100 (Krizhevsky, 2009) in its python-pickle layout."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .loader import DataError, ImageData

MEAN = (0.5071, 0.4867, 0.4408)
STD = (0.2675, 0.2565, 0.2761)
FOLDER = "cifar-100-python"
CLASSES = 100
URL, ARCHIVE = "https://www.cs.toronto.edu/~kriz", "cifar-100-python.tar.gz"
# file -> (images, MD5 in the official archive)
FILES = {"train": (50_000, "16019d7e3df5f24257cddd939b257f8d"), "test": (10_000, "f0ef6b0ae62326f3e7ffdfab6717acfc")}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of plain containers and numpy arrays, and nothing that could run code."""

    ALLOWED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """Resolve only what an array of numbers needs."""
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"refers to {module}.{name}")
        return super().find_class(module, name)


def _unpickle(file: BinaryIO, path: Path) -> dict[str, Any]:
    try:
        content = _ArrayUnpickler(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DataError(f"{path} is truncated or malformed ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is malformed (no dictionary); fetch it again")
    return {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}


def read_split(folder: Path, split: str) -> ImageData:
    """Read `folder/train` or `folder/test` and check what is in it.

    Args:
        folder: the `cifar-100-python` folder.
        split: `train` or `test`.

    Returns:
        (N, 32, 32, 3) uint8 images and (N,) fine labels, N = 50,000 or 10,000.

    Raises:
        DataError: the file is unreadable, or shapes, label range or class counts are not CIFAR-100's.
    """
    path, count = folder / split, FILES[split][0]
    try:
        with open(path, "rb") as file:
            content = _unpickle(file, path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None
    data = content.get("data")
    try:
        labels = np.asarray(content.get("fine_labels", []))
    except ValueError:  # lists of different lengths
        labels = np.empty(0)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (count, 3072):
        found = f"{data.shape} {data.dtype}" if isinstance(data, np.ndarray) else "nothing"
        raise DataError(f"{path} should hold 'data' of ({count}, 3072) uint8 but holds {found}; fetch it again")
    if labels.dtype.kind != "i" or labels.shape != (count,) or labels.min() < 0 or labels.max() >= CLASSES:
        raise DataError(f"{path} should hold {count} 'fine_labels' from 0 to {CLASSES - 1}; fetch it again")
    if set(np.bincount(labels, minlength=CLASSES)) != {count // CLASSES}:
        raise DataError(f"{path} should hold {count // CLASSES} images of each class; fetch it again")
    images = data.reshape(count, 3, 32, 32).transpose(0, 2, 3, 1)
    return ImageData(np.ascontiguousarray(images), labels.astype(np.int64))


def _download(root: Path) -> None:
    """Fetch and unpack the official archive with torchvision, which checks its MD5."""
    try:
        from torchvision.datasets import CIFAR100  # only here: everything else runs without torchvision

        CIFAR100(str(root), download=True)
    except Exception as error:  # no network, no space, a bad archive: torchvision has no common class for them
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"CIFAR-100 is not in {root / FOLDER} and cannot be downloaded ({reason}); unpack {ARCHIVE} from "
            f"{URL}/{ARCHIVE} into {root}, or name its folder with --data_folder, or try --dataset shapes100"
        ) from None


def load(root: Path) -> tuple[ImageData, ImageData, list[str]]:
    """Read CIFAR-100, downloading it first where it is absent.

    Args:
        root: the folder that holds, or will hold, `cifar-100-python`.

    Returns:
        Training split, test split, and notes for the user.

    Raises:
        DataError: absent and not downloadable, or malformed.
    """
    folder = root / FOLDER
    if not all((folder / split).exists() for split in FILES):
        _download(root)
    train, test = (read_split(folder, split) for split in FILES)
    notes = []
    for split, (_, md5) in FILES.items():
        if hashlib.md5((folder / split).read_bytes(), usedforsecurity=False).hexdigest() != md5:
            notes.append(f"{folder / split} has not the official MD5; its shapes and labels are right")
    return train, test, notes
