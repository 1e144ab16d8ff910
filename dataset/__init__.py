"""The data sets, one file each, and the loaders that serve them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import cifar100, shapes100
from .contrast import ContrastLoader, ContrastSampler
from .loader import Batch, DataError, ImageData, MemoryLoader
from .strong import StrongLoader

__all__ = [
    "Batch",
    "ContrastLoader",
    "ContrastSampler",
    "Data",
    "DataError",
    "Dataset",
    "ImageData",
    "MemoryLoader",
    "StrongLoader",
    "TrainLoader",
    "dataset_dict",
    "get_dataset",
]

EVALUATION_BATCH = {"cpu": 200, "cuda": 1000}  # on a CPU, larger ones leave its caches
TrainLoader = MemoryLoader | ContrastLoader | StrongLoader


@dataclass(frozen=True)
class Dataset:
    """A line of `dataset_dict`.

    Attributes:
        load: reads both splits from the data folder; also gives notes for the user.
        classes: number of classes C.
        mean, std: per channel, in units of [0, 1].
        recipe: defaults of training options; those of CIFAR-100 where it names none.
    """

    load: Callable[[Path], tuple[ImageData, ImageData, list[str]]]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    recipe: Mapping[str, Any] = field(default_factory=dict)


def _draw_shapes(_folder: Path) -> tuple[ImageData, ImageData, list[str]]:
    return ImageData(*shapes100.draw(train=True)), ImageData(*shapes100.draw(train=False)), []


# a small teacher ships with the data set, so that nothing needs to be downloaded
SHAPES100_RECIPE = {
    "path_t": "save/models/resnet20_shapes100/ckpt_epoch_20.pth",
    "model_s": "resnet8",
    "epochs": 6,
    "lr_decay_epochs": (4, 5),
    "warmup_epochs": 0,
}

dataset_dict: dict[str, Dataset] = {
    "cifar100": Dataset(cifar100.load, cifar100.CLASSES, cifar100.MEAN, cifar100.STD),
    "shapes100": Dataset(_draw_shapes, len(shapes100.CLASSES), shapes100.MEAN, shapes100.STD, SHAPES100_RECIPE),
}


@dataclass
class Data:
    """A data set ready for training.

    Attributes:
        train, test: the loaders.
        classes: number of classes C.
        notes: what the user should know about the files.
    """

    train: MemoryLoader
    test: MemoryLoader
    classes: int
    notes: list[str]


def get_dataset(
    name: str, folder: str | Path, batch_size: int, device: torch.device, seed: int = 0, subset: int | None = None
) -> Data:
    """Load a data set and make its training and test loader.

    Args:
        name: a key of `dataset_dict`.
        folder: where data sets lie; CIFAR-100 is downloaded into it where it is absent.
        batch_size: training images per batch.
        device: where the images are kept and augmented.
        seed: of the training order and views.
        subset: keep the first so many training images of each class, None for all.

    Raises:
        DataError: the data set is absent and cannot be had, or malformed.
    """
    entry = dataset_dict[name]
    train, test, notes = entry.load(Path(folder))
    if subset is not None:
        train = train.first_of_each_class(subset)
    look = (entry.mean, entry.std)
    return Data(
        MemoryLoader(train, *look, batch_size, device, train=True, seed=seed),
        MemoryLoader(test, *look, EVALUATION_BATCH[device.type], device, train=False),
        entry.classes,
        notes,
    )
