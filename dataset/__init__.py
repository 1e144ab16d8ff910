"""The data sets, one file each, and the loaders that serve them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from . import cifar10, cifar100, folder, imagenet, shapes100, tiny_imagenet
from .augment import Augmenter
from .contrast import ContrastLoader, ContrastSampler
from .disk import PHOTOGRAPH, DiskLoader
from .files import Layout, Splits, checked, choose_side, decoded, find_statistics, fits, note_left_out
from .listing import ImageFiles
from .loader import Batch, DataError, ImageData, Loader, MemoryLoader
from .remembered import Remembered
from .strong import StrongLoader

__all__ = [
    "Batch",
    "ContrastLoader",
    "ContrastSampler",
    "Data",
    "DataError",
    "Dataset",
    "DiskLoader",
    "Facts",
    "ImageData",
    "Loader",
    "MemoryLoader",
    "Reading",
    "StrongLoader",
    "TrainLoader",
    "dataset_dict",
    "get_dataset",
    "look",
    "read_arrays",
]

EVALUATION_BATCH = {"cpu": 100, "cuda": 1000}  # on a CPU, larger ones leave its caches
SPLIT_SEED = 0  # of what is held out: the same images in all runs, so that these compare
TrainLoader = Loader | ContrastLoader | StrongLoader
Arrays = tuple[ImageData, ImageData, list[str]]


@dataclass(frozen=True)
class Dataset:
    """A line of `dataset_dict`, with either `load` or `layout`.

    Attributes:
        load: reads both splits from the data folder into memory; also gives notes for the user.
        classes: number of classes C; None: as many as its folder tells.
        mean, std: per channel, in units of [0, 1]; None: those of the training images.
        recipe: defaults of training options; those of CIFAR-100 where it names none; None: those of CIFAR-100, or for
            photographs those of ImageNet.
        layout: how image files make the data set.
    """

    load: Callable[[Path], Arrays] | None = None
    classes: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    recipe: Mapping[str, Any] | None = field(default_factory=dict)
    layout: Layout | None = None


def _draw_shapes(_folder: Path) -> Arrays:
    return ImageData(*shapes100.draw(train=True)), ImageData(*shapes100.draw(train=False)), []


# a small teacher ships with the data set, so that nothing needs to be downloaded
SHAPES100_RECIPE = {
    "path_t": "save/models/resnet20_shapes100/ckpt_epoch_20.pth",
    "model_s": "resnet8",
    "epochs": 6,
    "lr_decay_epochs": (4, 5),
    "warmup_epochs": 0,
}


def _layout(module: ModuleType, side: tuple[int, int] | None, budget: float) -> Layout:
    return Layout(module.locate, module.classes, module.splits, side, budget)


dataset_dict: dict[str, Dataset] = {
    "cifar100": Dataset(cifar100.load, cifar100.CLASSES, cifar100.MEAN, cifar100.STD),
    "cifar10": Dataset(cifar10.load, cifar10.CLASSES, cifar10.MEAN, cifar10.STD),
    "tiny_imagenet": Dataset(
        mean=tiny_imagenet.MEAN,
        std=tiny_imagenet.STD,
        layout=_layout(tiny_imagenet, tiny_imagenet.SIDE, budget=2.0),
        recipe=tiny_imagenet.RECIPE,
    ),
    "imagenet": Dataset(
        mean=imagenet.MEAN,
        std=imagenet.STD,
        layout=_layout(imagenet, imagenet.SIDE, budget=0.0),
        recipe=imagenet.RECIPE,
    ),
    "folder": Dataset(layout=_layout(folder, None, budget=2.0), recipe=None),
    "shapes100": Dataset(_draw_shapes, len(shapes100.CLASSES), shapes100.MEAN, shapes100.STD, SHAPES100_RECIPE),
}


@dataclass(frozen=True)
class Facts:
    """What is known of a data set before an image is decoded.

    Attributes:
        classes: number of classes C.
        side: height and width of its images as networks get them; None: those of its arrays.
        recipe: defaults of training options.
    """

    classes: int
    side: tuple[int, int] | None
    recipe: Mapping[str, Any]


@contextmanager
def _readable(folder: str | Path) -> Iterator[None]:
    """Turn what the file system refuses into a DataError: a closed folder, a name that is too long."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}); see --data_folder") from None


def look(name: str, folder: str | Path, image_size: tuple[int, int] | None = None) -> Facts:
    """Find out what other things depend on, without reading images.

    Args:
        name: a key of `dataset_dict`.
        folder: where data sets lie.
        image_size: height and width that images get; None: the data set's own.

    Raises:
        DataError: a data set of image files is absent or malformed.
    """
    entry = dataset_dict[name]
    if entry.layout is None:
        return Facts(entry.classes, None, entry.recipe)
    with _readable(folder):
        root = entry.layout.locate(Path(folder))
        classes = entry.layout.classes(root)
        side = image_size or entry.layout.side or choose_side(root, classes)
    recipe = entry.recipe
    if recipe is None:
        recipe = imagenet.RECIPE if max(side) > PHOTOGRAPH else {}
    return Facts(len(classes), side, recipe)


@dataclass(frozen=True)
class Reading:
    """How a data set is read.

    Attributes:
        image_size: height and width that images from files get; None: the data set's own.
        mean, std: per channel, in units of [0, 1]; None: the data set's own.
        memory_budget: GiB up to which decoded files are kept in memory; None: the data set's own.
        skip_bad_images: leave out files that cannot be decoded.
        val_split: share of the training images that is held out; None for none.
        rand_augment: magnitude of RandAugment on training images, 0 to 10; 0 for none.
        random_erasing: probability that a part of a training image is erased.
        rotation: training images are turned by up to so many degrees, and not cropped at random places; 0 for none.
        workers: processes of a DiskLoader, and threads that decode.
        fallback: file in which findings are kept where the data set's folder cannot be written.
    """

    image_size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    memory_budget: float | None = None
    skip_bad_images: bool = False
    val_split: float | None = None
    rand_augment: float = 0.0
    random_erasing: float = 0.0
    rotation: float = 0.0
    workers: int = 0
    fallback: Path | None = None


@dataclass
class Data:
    """A data set ready for training.

    Attributes:
        train, test: the loaders.
        val: of what is held out of the training images; None where nothing is.
        classes: number of classes C.
        notes: what the user should know about the files.
        mean, std: by which images are normalised.
        identity: tells the test images and their normalisation from others of the same name; empty where there are no
            others.
        contents: likewise of all files, by their names, sizes and classes, wherever they lie; in words.
    """

    train: Loader
    test: Loader
    classes: int
    notes: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    val: Loader | None = None
    identity: str = ""
    contents: str = ""

    @property
    def held(self) -> Loader:
        """What every epoch is measured on."""
        return self.test if self.val is None else self.val


def get_dataset(
    name: str,
    folder: str | Path,
    batch_size: int,
    device: torch.device,
    seed: int = 0,
    subset: int | None = None,
    reading: Reading | None = None,
) -> Data:
    """Load a data set and make its loaders.

    Args:
        name: a key of `dataset_dict`.
        folder: where data sets lie; CIFAR-10 and CIFAR-100 are downloaded into it where they are absent.
        batch_size: training images per batch.
        device: where the images are augmented, and kept where they fit.
        seed: of the training order and views.
        subset: keep the first so many training images of each class, None for all.
        reading: the rest.

    Raises:
        DataError: the data set is absent and cannot be had, or malformed.
    """
    reading = reading or Reading()
    entry = dataset_dict[name]
    if entry.layout is None:
        with _readable(folder):
            train, test, notes = entry.load(Path(folder))
        splits = _divide(Splits(train, test, notes=notes), subset, reading.val_split)
        facts, look_of, identity = look(name, folder), (reading.mean or entry.mean, reading.std or entry.std), ""
        contents = ""
    else:
        facts = look(name, folder, reading.image_size)
        with _readable(folder):
            splits, look_of, identity, contents = _from_files(entry, Path(folder), facts.side, subset, reading)

    def loader(part: Any, train: bool) -> Loader:
        """The loader of a split, from memory or from disk."""
        size = batch_size if train else EVALUATION_BATCH[device.type]
        if isinstance(part, ImageFiles):
            return DiskLoader(part, facts.side, *look_of, size, device, train, seed, reading.workers)
        return MemoryLoader(part, *look_of, size, device, train, seed)

    val = None if splits.val is None else loader(splits.val, train=False)
    if reading.mean or reading.std:
        identity += f" {look_of}"
    train, test = loader(splits.train, train=True), loader(splits.test, train=False)
    if reading.rand_augment or reading.random_erasing or reading.rotation:
        changes = (reading.rand_augment, reading.random_erasing, train.normalise, seed, reading.rotation)
        train.augment(Augmenter(*changes))
    return Data(train, test, facts.classes, splits.notes, *look_of, val, identity, contents)


def _divide(splits: Splits, subset: int | None, share: float | None) -> Splits:
    """Apply `--subset`, then `--val_split`."""
    if subset is not None:
        splits.train = splits.train.first_of_each_class(subset)
    if share:
        splits.train, splits.val = splits.train.hold_out(share, SPLIT_SEED)
    return splits


def _from_files(
    entry: Dataset, folder: Path, side: tuple[int, int], subset: int | None, reading: Reading
) -> tuple[Splits, tuple[tuple[float, ...], tuple[float, ...]], str, str]:
    """Read what a layout lists; gives the parts, mean and deviation, and `identity` and `contents` of `Data`."""
    root, threads, notes = entry.layout.locate(folder), max(1, reading.workers), []
    train, test = entry.layout.splits(root)
    note_left_out((train, test), notes)
    kept = Remembered(root, reading.fallback)
    mean, std = reading.mean or entry.mean, reading.std or entry.std
    if mean is None or std is None:  # of all training images, so that a teacher and students on a part agree
        found = find_statistics(train, side, threads, kept)
        mean, std = mean or found[0], std or found[1]
    identity = f"{test.fingerprint()} {side} {mean} {std}"
    digest = hashlib.sha256((train.contents() + test.contents()).encode()).hexdigest()[:8]
    contents = f"{len(train)} + {len(test)} images, {digest}"
    splits = _divide(Splits(train, test, notes=notes), subset, reading.val_split)
    budget = entry.layout.budget if reading.memory_budget is None else reading.memory_budget
    if fits(splits, side, budget):
        if max(side) > PHOTOGRAPH:
            notes.append(
                "photographs that are kept in memory are cropped with a padding of 4, and not at random sizes as is "
                "usual; --memory_budget 0 reads them from disk"
            )
        splits = decoded(splits, side, threads, reading.skip_bad_images)
    else:
        splits = checked(splits, threads, reading.skip_bad_images, kept)
    notes += kept.write()  # only now: what is refused is left as it was
    return splits, (mean, std), identity, contents


def read_arrays(name: str, folder: str | Path, workers: int = 1) -> Arrays:
    """Both splits of a data set in memory, and notes for the user.

    Args:
        name: a key of `dataset_dict`.
        folder: where data sets lie.
        workers: threads that decode image files.

    Raises:
        DataError: the data set is absent and cannot be had, or malformed.
    """
    entry = dataset_dict[name]
    with _readable(folder):
        if entry.layout is None:
            return entry.load(Path(folder))
        splits, side = Splits(*entry.layout.splits(entry.layout.locate(Path(folder)))), look(name, folder).side
    if not fits(splits, side, entry.layout.budget):
        raise DataError(
            f"{name} takes more than {entry.layout.budget:g} GiB of memory; name a folder with fewer images"
        )
    note_left_out((splits.train, splits.test), splits.notes)
    splits = decoded(splits, side, workers, skip=False)
    return splits.train, splits.test, splits.notes
