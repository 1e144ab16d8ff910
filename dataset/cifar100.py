"""CIFAR-100: 50,000 training and 10,000 test images of 32×32 in 100 classes."""

from __future__ import annotations

from pathlib import Path

from .cifar import Cifar
from .loader import ImageData

MEAN = (0.5071, 0.4867, 0.4408)
STD = (0.2675, 0.2565, 0.2761)
CLASSES = 100
LAYOUT = Cifar(
    name="CIFAR-100",
    folder="cifar-100-python",
    archive="cifar-100-python.tar.gz",
    classes=CLASSES,
    key="fine_labels",
    files={
        "train": {"train": "16019d7e3df5f24257cddd939b257f8d"},
        "test": {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    },
    images={"train": 50_000, "test": 10_000},
    torchvision="CIFAR100",
)


def load(root: Path) -> tuple[ImageData, ImageData, list[str]]:
    """See `Cifar.load`; the labels are the fine ones."""
    return LAYOUT.load(root)
