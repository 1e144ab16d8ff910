"""The python-pickle layout of CIFAR-10 and CIFAR-100 (Krizhevsky, 2009)."""

from __future__ import annotations

import hashlib
import importlib
import pickle
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .loader import DataError, ImageData
from .locks import alone

URL = "https://www.cs.toronto.edu/~kriz"
SIDE = 32
UNFINISHED = ".tmp"


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


@dataclass(frozen=True)
class Cifar:
    """What distinguishes the two data sets.

    Attributes:
        name: the data set's.
        folder: that the archive unpacks to.
        archive: its file name.
        classes: number of classes C.
        key: of the labels in the pickled dictionaries.
        files: names of a split's files, with their MD5 in the official archive.
        images: number of images in each of its files.
        torchvision: name of the class that downloads it.
    """

    name: str
    folder: str
    archive: str
    classes: int
    key: str
    files: dict[str, dict[str, str]]
    images: dict[str, int]
    torchvision: str

    def _read_file(self, path: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Images (count, 3072) and labels (count,) of one file, checked."""
        try:
            with open(path, "rb") as file:
                content = _unpickle(file, path)
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror})") from None
        data = content.get("data")
        try:
            labels = np.asarray(content.get(self.key, []))
        except ValueError:  # lists of different lengths
            labels = np.empty(0)
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (count, 3 * SIDE * SIDE):
            found = f"{data.shape} {data.dtype}" if isinstance(data, np.ndarray) else "nothing"
            raise DataError(f"{path} should hold 'data' of ({count}, 3072) uint8 but holds {found}; fetch it again")
        if labels.dtype.kind != "i" or labels.shape != (count,) or labels.min() < 0 or labels.max() >= self.classes:
            raise DataError(f"{path} should hold {count} '{self.key}' from 0 to {self.classes - 1}; fetch it again")
        return data, labels

    def read_split(self, folder: Path, split: str) -> ImageData:
        """Read the files of a split and check what is in them.

        Args:
            folder: the unpacked archive.
            split: `train` or `test`.

        Returns:
            (N, 32, 32, 3) uint8 images and (N,) labels.

        Raises:
            DataError: a file is unreadable, or shapes, label range or class counts are not the data set's.
        """
        paths = [folder / name for name in self.files[split]]
        parts = [self._read_file(path, self.images[split]) for path in paths]
        data, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
        each = len(labels) // self.classes
        if set(np.bincount(labels, minlength=self.classes)) != {each}:
            files = paths[0] if len(paths) == 1 else f"{paths[0]} to {paths[-1].name}"
            raise DataError(f"{files} should hold {each} images of each class; fetch it again")
        images = data.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
        return ImageData(np.ascontiguousarray(images), labels.astype(np.int64))

    def _is_in(self, root: Path) -> bool:
        return all((root / self.folder / name).exists() for files in self.files.values() for name in files)

    def _download(self, root: Path) -> None:
        """Fetch and unpack the official archive with torchvision, which checks its MD5; an archive in `root` is used.

        Of several processes one fetches it, and the others wait.
        """
        try:
            datasets = importlib.import_module("torchvision.datasets")  # only here: reading runs without it
            root.mkdir(parents=True, exist_ok=True)
            with alone(root) as locked:
                # what is being unpacked is so in this block: what is there now was left by a process that was killed
                for remains in root.glob(f".{self.folder}.*{UNFINISHED}") if locked else ():
                    shutil.rmtree(remains, ignore_errors=True)
                if not self._is_in(root):
                    self._unpack(getattr(datasets, self.torchvision), root)
        except Exception as error:  # no network, no space, a bad archive: torchvision has no common class for them
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(
                f"{self.name} is not in {root / self.folder} and cannot be downloaded ({reason}); unpack "
                f"{self.archive} from {URL}/{self.archive} into {root}, or name its folder with --data_folder, or try "
                "--dataset shapes100"
            ) from None

    def _unpack(self, fetch: Callable[..., Any], root: Path) -> None:
        """Let torchvision work in another place, then move the files: whoever finds one, finds all of it."""
        with tempfile.TemporaryDirectory(prefix=f".{self.folder}.", suffix=UNFINISHED, dir=root) as place:
            archive, made = root / self.archive, Path(place) / self.folder
            if archive.exists():
                (Path(place) / self.archive).symlink_to(archive.absolute())
            fetch(place, download=True)
            (root / self.folder).mkdir(exist_ok=True)
            for file in made.iterdir():
                file.replace(root / self.folder / file.name)

    def load(self, root: Path) -> tuple[ImageData, ImageData, list[str]]:
        """Read both splits, downloading them first where they are absent.

        Args:
            root: the folder that holds, or will hold, the unpacked archive.

        Returns:
            Training split, test split, and notes for the user.

        Raises:
            DataError: absent and not downloadable, or malformed.
        """
        folder = root / self.folder
        sums = {folder / name: md5 for files in self.files.values() for name, md5 in files.items()}
        if not self._is_in(root):
            self._download(root)
        train, test = (self.read_split(folder, split) for split in self.files)
        notes = [
            f"{path} has not the official MD5; its shapes and labels are right"
            for path, md5 in sums.items()
            if hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != md5
        ]
        return train, test, notes
