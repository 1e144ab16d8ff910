"""From a listing of image files to what a loader takes: checked, decoded where they fit into memory, normalised."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .images import BadImage, Side, check_image, in_short, over_files, read_pixels, upright_size
from .listing import ImageFiles, images_below
from .loader import CROP_PADDING, DataError, ImageData
from .remembered import Remembered

GIB = 2**30
PEEKED = 200  # classes of which a file's header is read to find the size of all
TRIED = 20  # files of such a class, until one is good
STEP, LARGEST = 32, 224  # of sizes that are chosen here
STATISTICS_PIXELS = 2**26  # all images of CIFAR-100, or 1,337 of 224×224
ROUNDED = 4  # decimals of means and deviations, as the field quotes them

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Layout:
    """How image files make a data set.

    Attributes:
        locate: finds the data set's own folder in or at the data folder.
        classes: names of the classes in the order of their labels; costs no look at images.
        splits: training and test files.
        side: height and width of the images that networks get; None: from the images.
        budget: GiB of decoded images up to which they are kept in memory.
    """

    locate: Callable[[Path], Path]
    classes: Callable[[Path], list[str]]
    splits: Callable[[Path], tuple[ImageFiles, ImageFiles]]
    side: Side | None
    budget: float


@dataclass
class Splits:
    """The parts of a data set, files or decoded.

    Attributes:
        train, test: the parts.
        val: what is held out of the training images; None for nothing.
        notes: remarks for the user.
    """

    train: Any
    test: Any
    val: Any = None
    notes: list[str] = field(default_factory=list)

    def parts(self) -> Mapping[str, Any]:
        """Those that there are, by name."""
        return {name: part for name in ("train", "test", "val") if (part := getattr(self, name)) is not None}


def choose_side(root: Path, classes: list[str]) -> Side:
    """The size of a folder's images, from the headers of the first good image of up to 200 classes.

    Where these are equal and no longer than 224, it is theirs. Else it is a square of the median shorter side, rounded
    down to a multiple of 32, from 32 to 224.

    Args:
        root: the folder with `train/`.
        classes: names of the classes.

    Raises:
        DataError: none of them can be read.
    """
    sizes, bad = [], []
    for name in classes[:: -(-len(classes) // PEEKED)]:
        for entry in itertools.islice(images_below(root / "train" / name), TRIED):
            try:
                sizes.append(upright_size(entry.path))
                break
            except BadImage as reason:
                bad.append(f"{entry.path} {reason}")
    if not sizes:
        problem = in_short(bad) or f"the folders in {root / 'train'} are empty"
        raise DataError(f"of each class, none of the first {TRIED} images can be read: {problem}")
    if len(set(sizes)) == 1 and max(sizes[0]) <= LARGEST:
        return sizes[0]
    median = int(np.median([min(size) for size in sizes]))
    return (min(LARGEST, max(STEP, median // STEP * STEP)),) * 2


def statistics(files: ImageFiles, side: Side, threads: int) -> Statistics:
    """Mean and standard deviation of each channel over all pixels, in units of [0, 1].

    Args:
        files: of which as many are read, evenly spaced, as have 67 million pixels; bad ones are left out.
        side: of the images as networks get them.
        threads: that read.

    Raises:
        DataError: no image can be read, or all are of one colour.
    """
    few = np.linspace(0, len(files) - 1, min(len(files), STATISTICS_PIXELS // (side[0] * side[1]) or 1)).astype(int)
    pixels, bad, _ = read_pixels(files.take(few).paths(), side, threads)
    good = np.delete(pixels, [position for position, _ in bad], axis=0)
    if not len(good):
        raise DataError(f"no image of {files.root} can be read, {files.name(few[0])} {bad[0][1]} for instance")
    level = np.arange(256) / 255
    counts = [np.bincount(good[..., channel].ravel(), minlength=256) / good[..., 0].size for channel in range(3)]
    mean = [float(count @ level) for count in counts]
    std = [float(count @ (level - m) ** 2) ** 0.5 for count, m in zip(counts, mean, strict=True)]
    if min(std) < 10**-ROUNDED:
        raise DataError(f"the images of {files.root} are of one colour; there is nothing to learn")
    return tuple(round(m, ROUNDED) for m in mean), tuple(round(s, ROUNDED) for s in std)


def find_statistics(files: ImageFiles, side: Side, threads: int, kept: Remembered) -> Statistics:
    """What `statistics` gives, to be remembered."""
    key = f"statistics {side[0]}x{side[1]} {files.fingerprint()}"
    known = kept.get(key)
    try:
        mean, std = (tuple(float(value) for value in known[name]) for name in ("mean", "std"))
        if len(mean) == len(std) == 3 and min(std) > 0:
            return mean, std
    except (TypeError, KeyError, ValueError):  # nothing is known, or a user has edited it
        pass
    mean, std = statistics(files, side, threads)
    kept.put(key, {"mean": mean, "std": std}, "mean and deviation of the training images")
    return mean, std


def note_left_out(parts: Sequence[ImageFiles], notes: list[str]) -> None:
    """Count and name the files of a data set that look like images of it and were not listed.

    Args:
        parts: listings of its splits.
        notes: gets a line for files with other endings, and one for images that belong to no class.
    """
    others, loose = ([path for part in parts for path in getattr(part, kind)] for kind in ("others", "loose"))
    if others:
        endings = sorted({os.path.splitext(path)[1].lower() or "none" for path in others})
        notes.append(f"left out are {len(others)} files with other endings ({in_short(endings)}): {in_short(others)}")
    if loose:
        notes.append(f"left out are {len(loose)} images beside the classes' folders: {in_short(loose)}")


def decoded(splits: Splits, side: Side, threads: int, skip: bool) -> Splits:
    """Read all files into memory.

    Args:
        splits: of files.
        side: height and width that the images get.
        threads: that read.
        skip: leave out bad files instead of refusing them.

    Raises:
        DataError: there are bad files, or all of a class are.
    """
    done, problems, changed, total = Splits(None, None, notes=splits.notes), [], 0, 0
    for name, files in splits.parts().items():
        pixels, bad, resized = read_pixels(files.paths(), side, threads)
        problems += [f"{files.path(position)} {reason}" for position, reason in bad]
        changed, total, data = changed + resized, total + len(files), ImageData(pixels, files.labels)
        setattr(done, name, data.take(_others(bad, files)) if bad and skip else data)
    _settle_bad(problems, total, skip, splits.notes)
    if changed:
        size = f"{side[1]}×{side[0]}"
        splits.notes.append(f"{changed} of {total} images have another size than {size}: scaled, and cut at the centre")
    return done


def checked(splits: Splits, threads: int, skip: bool, kept: Remembered) -> Splits:
    """Decode all files once, unless that is remembered, for nothing but to know that it can be done.

    Args:
        splits: of files.
        threads: that read.
        skip: leave out bad files instead of refusing them.
        kept: gets the result.

    Raises:
        DataError: there are bad files, or all of a class are.
    """
    done, problems, total = Splits(None, None, notes=splits.notes), [], 0
    for name, files in splits.parts().items():
        key = f"checked {files.fingerprint()}"
        bad = kept.get(key)
        if not _is_list_of_bad(bad, len(files)):
            found = over_files(files.paths(), check_image, threads, f"checking {name} images")
            bad = [(position, str(result)) for position, result in found if isinstance(result, BadImage)]
            kept.put(key, bad, f"the results of checking the {name} images")
        problems += [f"{files.path(position)} {reason}" for position, reason in bad]
        total += len(files)
        setattr(done, name, files.take(_others(bad, files)) if bad and skip else files)
    _settle_bad(problems, total, skip, splits.notes)
    return done


def _is_list_of_bad(value: Any, count: int) -> bool:
    pairs = isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
    return pairs and all(type(place) is int and 0 <= place < count for place, _ in value)


def _others(bad: list[tuple[int, str]], files: ImageFiles) -> np.ndarray:
    """Positions of the files that are not bad.

    Raises:
        DataError: a class would be empty.
    """
    keep = np.delete(np.arange(len(files)), [position for position, _ in bad])
    left = set(files.labels[keep].tolist())
    lost = [files.name(position) for position, _ in bad if files.labels[position] not in left]
    if lost:
        raise DataError(f"no image of the class of {lost[0]} can be used; mend its images or remove the class")
    return keep


def _settle_bad(problems: list[str], total: int, skip: bool, notes: list[str]) -> None:
    if problems and not skip:
        raise DataError(
            f"{len(problems)} of {total} images cannot be used: {in_short(problems)}; mend or remove them, or leave "
            "them out with --skip_bad_images"
        )
    if problems:
        notes.append(f"left out are {len(problems)} of {total} images: {in_short(problems)}")


def fits(splits: Splits, side: Side, budget: float) -> bool:
    """Whether the decoded images take no more than a budget in GiB."""
    count = sum(len(part) for part in splits.parts().values())
    return count * (side[0] + 2 * CROP_PADDING) * (side[1] + 2 * CROP_PADDING) * 3 <= budget * GIB
