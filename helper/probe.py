"""Linear probe: how well a frozen network's pooled features serve another data set.

Source: the transfer experiment of Tian, Krishnan and Isola, Contrastive Representation Distillation, ICLR 2020, which
trains a linear classifier on a student's frozen features, on STL-10 and TinyImageNet resized to 32 × 32.

The recipe is chosen here: 100 epochs of SGD with momentum 0.9 and no weight decay on batches of 256, learning rate
0.05, a tenth of it after 30, 60 and 90 % of the epochs, weights that begin at 0, images that are not augmented, so that
the network sees each one once. The figure is that of the last epoch.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset import DataError, ImageData, MemoryLoader, dataset_dict, look, read_arrays

from .errors import RunError, UserError
from .outliers import Side, check_source, files_below, fit, read_images
from .precision import Precision

EPOCHS, LEARNING_RATE = 100, 0.05
BATCH, MOMENTUM, DROPS, DROP = 256, 0.9, (0.3, 0.6, 0.9), 0.1


class Split(NamedTuple):
    """Images (N, 3, H, W) uint8 and labels (N,) int64."""

    pixels: Tensor
    labels: Tensor


class Task(NamedTuple):
    """What is to be learned from features: two splits and the number of classes C."""

    train: Split
    test: Split
    classes: int


def _from_arrays(data: ImageData, side: Side) -> Split:
    return Split(fit(torch.from_numpy(data.images).permute(0, 3, 1, 2), side), torch.from_numpy(data.labels))


def _class_folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise UserError(
            f"{folder} (--probe) cannot be read ({error.strerror}); expected are images in train/CLASS/ and val/CLASS/"
        ) from None


def _read_split(folder: Path, classes: list[str], side: Side, notes: list[str]) -> Split:
    """The images of `folder`/CLASS/ with the positions of their classes in `classes`."""
    found = [(path, classes.index(below.name)) for below in _class_folders(folder) for path in files_below(below)]
    pixels, good = read_images([path for path, _ in found], side, notes)
    if not good:
        raise UserError(f"no readable image below {folder} (--probe)")
    return Split(pixels, torch.tensor([found[position][1] for position in good]))


def read_task(source: str, data_folder: str, side: Side, notes: list[str]) -> Task:
    """The data of `--probe`: a data set's two splits, or a folder with train/CLASS/ and val/CLASS/.

    Args:
        source: a key of `dataset_dict`, or a folder.
        data_folder: where data sets lie.
        side: (H, W) that the images get.
        notes: gets remarks for the user.

    Raises:
        UserError: the data set cannot be had; the folder lacks a split, has fewer than two classes, no readable image
            in a split, or a class in val/ that is not in train/.
    """
    check_source("--probe", source)
    if source in dataset_dict:
        try:
            classes = look(source, data_folder).classes
            train, test, remarks = read_arrays(source, data_folder)
        except DataError as error:
            raise UserError(str(error)) from None
        notes += remarks
        return Task(_from_arrays(train, side), _from_arrays(test, side), classes)
    folder = Path(source)
    classes = [path.name for path in _class_folders(folder / "train")]
    if len(classes) < 2:
        raise UserError(f"{folder / 'train'} (--probe) must hold a folder for each of at least two classes")
    unknown = [path.name for path in _class_folders(folder / "val") if path.name not in classes]
    if unknown:
        raise UserError(f"{folder / 'val' / unknown[0]} (--probe) is a class that is not in {folder / 'train'}")
    train, test = (_read_split(folder / name, classes, side, notes) for name in ("train", "val"))
    return Task(train, test, len(classes))


@torch.no_grad()
def pooled_features(network: nn.Module, pixels: Tensor, loader: MemoryLoader, precision: Precision) -> Tensor:
    """What a network's classifier takes.

    Args:
        network: of `models/`, in evaluation mode on the precision's device.
        pixels: (N, 3, H, W) uint8, of the loader's size.
        loader: normalises them as the network's own images, and gives batch size and device.
        precision: device and number format.

    Returns:
        (N, D) float32 on the device.
    """
    found = []
    with precision.autocast():
        for block in pixels.split(loader.batch_size):
            features, _ = network(loader.normalise(block.to(loader.device)), is_feat=True)
            found.append(features[-1].float())
    return torch.cat(found)


def train_linear(
    features: Tensor, labels: Tensor, classes: int, epochs: int = EPOCHS, lr: float = LEARNING_RATE, seed: int = 0
) -> nn.Linear:
    """Train a linear classifier by the recipe of this module.

    Args:
        features: (N, D) float32.
        labels: (N,) int64 on the same device.
        classes: C.
        epochs: passes over the features, from 1.
        lr: initial learning rate, above 0.
        seed: of the order.

    Raises:
        RunError: the weights are not finite in the end.
    """
    linear = nn.Linear(features.shape[1], classes, device=features.device)
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)
    sgd = torch.optim.SGD(linear.parameters(), lr=lr, momentum=MOMENTUM, fused=True)
    drops = [max(1, round(share * epochs)) for share in DROPS]
    schedule = torch.optim.lr_scheduler.MultiStepLR(sgd, drops, DROP)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for index in torch.randperm(len(labels), generator=generator).to(labels.device).split(BATCH):
            sgd.zero_grad()
            F.cross_entropy(linear(features[index]), labels[index]).backward()
            sgd.step()
        schedule.step()
    if not linear.weight.isfinite().all():
        raise RunError("the linear probe diverged; lower --probe_lr")
    return linear


def probe_accuracy(
    network: nn.Module,
    task: Task,
    loader: MemoryLoader,
    precision: Precision,
    epochs: int = EPOCHS,
    lr: float = LEARNING_RATE,
    seed: int = 0,
) -> float:
    """Top-1 accuracy in [0, 1] on the task's test split of a linear classifier on a frozen network's features.

    Args:
        network, loader, precision: see `pooled_features`.
        task: its images have the loader's size.
        epochs, lr, seed: see `train_linear`.

    Raises:
        RunError: the training diverged.
    """
    train, test = (pooled_features(network, split.pixels, loader, precision) for split in (task.train, task.test))
    linear = train_linear(train, task.train.labels.to(train.device), task.classes, epochs, lr, seed)
    with torch.no_grad():
        right = linear(test).argmax(1) == task.test.labels.to(test.device)
    return right.double().mean().item()
