"""Which image files a data set consists of: class folders listed as torchvision's ImageFolder lists them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .loader import DataError, Labelled

# what every Pillow reads that may be installed; .avif is not among them, which wheels have been able to since 11.3
ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif")
# ends of the names of what lies beside images and is no image: nothing is said of these files
COMPANIONS = (".txt", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".md", ".html", ".log", ".mat", ".ini", ".db")
COMPANIONS += ("readme", "license")


@dataclass
class ImageFiles(Labelled):
    """The files of one split.

    Attributes:
        root: folder that the names are relative to.
        names: (N,) names as the file system's bytes, which take less memory than text.
        stamps: (N, 2) int64, bytes and time of the last change (ns).
        labels: (N,) int64, 0 to C - 1.
        others: paths of files that were left out for their endings; a part of the split has none.
        loose: likewise of images beside the classes' folders.
    """

    root: Path
    names: np.ndarray
    stamps: np.ndarray
    labels: np.ndarray
    others: tuple[str, ...] = ()
    loose: tuple[str, ...] = ()

    @classmethod
    def of(cls, root: Path, found: Iterable[os.DirEntry], labels: Sequence[int]) -> ImageFiles:
        """From directory entries and their labels.

        Raises:
            DataError: an entry is a link to nowhere.
        """
        rows = [(os.fsencode(os.path.relpath(entry.path, root)), *_stamp(entry)) for entry in found]
        names = np.array([name for name, _, _ in rows], dtype=np.bytes_)
        stamps = np.array([stamp for _, *stamp in rows], np.int64)
        return cls(root, names, stamps, np.array(labels, np.int64))

    @classmethod
    def joined(cls, parts: Sequence[ImageFiles]) -> ImageFiles:
        """The files of several listings of one root."""
        arrays = zip(*((part.names, part.stamps, part.labels) for part in parts), strict=True)
        return cls(parts[0].root, *map(np.concatenate, arrays))

    def take(self, keep: np.ndarray) -> ImageFiles:
        """See `Labelled.take`."""
        return ImageFiles(self.root, self.names[keep], self.stamps[keep], self.labels[keep])

    def name(self, position: int) -> str:
        """Name of a file, relative to the root."""
        return os.fsdecode(self.names[position])

    def path(self, position: int) -> str:
        """Path of a file."""
        return os.path.join(self.root, self.name(position))

    def paths(self) -> list[str]:
        """Paths of all files."""
        return [self.path(position) for position in range(len(self))]

    def contents(self) -> str:
        """A digest of names, sizes in bytes and labels: the same one for a copy elsewhere."""
        return _digest(self.names, self.stamps[:, 0], self.labels)

    def fingerprint(self) -> str:
        """A digest of names, sizes and times: another one where a file was changed."""
        return _digest(self.names, self.stamps, self.labels)


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()[:32]


def entries(folder: Path | str) -> list[os.DirEntry]:
    """What is in a folder by name, but for hidden files.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            return sorted((e for e in found if not e.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror})") from None


def is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder or a link to one.

    Raises:
        DataError: it is a link to itself, or to what is closed.
    """
    try:
        return entry.is_dir()
    except OSError as error:
        raise DataError(f"{entry.path} cannot be read ({error.strerror})") from None


def folders(folder: Path | str) -> list[str]:
    """The names of the folders in a folder, sorted."""
    return [entry.name for entry in entries(folder) if is_folder(entry)]


def files_below(folder: Path | str, above: tuple[str, ...] = ()) -> Iterator[os.DirEntry]:
    """The files in a folder and below it by name, but for hidden ones.

    Args:
        folder: to be gone through.
        above: real paths of the folders on the way to it; empty where the way begins.

    Raises:
        DataError: a link leads back to a folder on the way, so that there is no end.
    """
    here = os.path.realpath(folder)
    above = above or (os.path.realpath(os.path.dirname(folder)),)
    if any(f"{path}{os.sep}".startswith(os.path.join(here, "")) for path in above):
        raise DataError(f"{folder} is a link that leads back to {here}, in which it lies; remove the link")
    for entry in entries(folder):
        if is_folder(entry):
            yield from files_below(entry.path, (*above, here))
        else:
            yield entry


def _is_image(entry: os.DirEntry) -> bool:
    return entry.name.lower().endswith(ENDINGS)


def images_below(folder: Path | str) -> Iterator[os.DirEntry]:
    """The files with an image's ending in a folder and below it, by name."""
    return filter(_is_image, files_below(folder))


def _sorted_out(files: Iterable[os.DirEntry]) -> tuple[list[os.DirEntry], list[str]]:
    """The images among files, and the paths of what may be images that are not read."""
    images, others = [], []
    for entry in files:
        if _is_image(entry):
            images.append(entry)
        elif not entry.name.lower().endswith(COMPANIONS):
            others.append(entry.path)
    return images, others


def class_names(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted: classes 0 to C - 1.

    Raises:
        DataError: there are fewer than two.
    """
    names = folders(folder)
    if len(names) < 2:
        raise DataError(f"{folder} must hold a folder of images for each of at least two classes; it has {len(names)}")
    return names


def _check_classes(folder: Path, there: Iterable[str], classes: list[str]) -> None:
    missing, unknown = sorted({*classes} - {*there}), sorted({*there} - {*classes})
    if missing or unknown:
        parts = [f"lacks {missing[0]}" if missing else "", f"has {unknown[0]} besides" if unknown else ""]
        count = f"{len(missing)} missing, {len(unknown)} unknown"
        raise DataError(
            f"the classes of {folder} are not those of the training images: it {' and '.join(filter(None, parts))} "
            f"({count})"
        )


def list_classes(root: Path, split: str, classes: list[str], besides: Sequence[str] = ()) -> ImageFiles:
    """The images in `root/split/CLASS/` and below, class by class.

    Args:
        root: of the data set.
        split: folder below it.
        classes: names of the classes, in the order of their labels.
        besides: names of folders in it that are passed over.

    Raises:
        DataError: the folders are others than the classes, or one holds no image.
    """
    folder = root / split
    _check_classes(folder, [name for name in folders(folder) if name not in besides], classes)
    loose, others = _sorted_out(entry for entry in entries(folder) if not is_folder(entry))
    parts = []
    for label, name in enumerate(classes):
        found, left = _sorted_out(files_below(folder / name))
        if not found:
            raise DataError(f"{folder / name} holds no image ({' '.join(ENDINGS)}); remove the folder or fill it")
        parts.append(ImageFiles.of(root, found, [label] * len(found)))
        others += left
    files = ImageFiles.joined(parts)
    files.others, files.loose = tuple(others), tuple(entry.path for entry in loose)
    return files


def list_labelled(root: Path, split: str, label_of: Mapping[str, int], source: Path) -> ImageFiles:
    """The images in `root/split` whose labels stand in a file.

    Args:
        root: of the data set.
        split: folder below it that holds the images.
        label_of: label of each file's name.
        source: where the labels come from.

    Raises:
        DataError: images without a label, labels without an image, or no image at all.
    """
    found, others = _sorted_out(files_below(root / split))
    if not found:
        raise DataError(f"{root / split} holds no image ({' '.join(ENDINGS)})")
    lacking = [entry.name for entry in found if entry.name not in label_of]
    if lacking:
        raise DataError(f"{source} has no label for {len(lacking)} images of {root / split}, {lacking[0]} for instance")
    absent = sorted(label_of.keys() - {entry.name for entry in found})
    if absent:
        raise DataError(
            f"{root / split} lacks {len(absent)} images that {source} names, {absent[0]} for instance; unpack it again"
        )
    files = ImageFiles.of(root, found, [label_of[entry.name] for entry in found])
    files.others = tuple(others)
    return files


def _stamp(entry: os.DirEntry) -> tuple[int, int]:
    """Bytes and time of the last change (ns)."""
    try:
        status = entry.stat()
        return status.st_size, status.st_mtime_ns
    except OSError as error:  # a link to nowhere
        raise DataError(f"{entry.path} cannot be read ({error.strerror})") from None


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        DataError: it cannot be read, or is no text.
    """
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None
    except ValueError:
        raise DataError(f"{path} is not a text file; fetch it again") from None
