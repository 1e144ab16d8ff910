"""CIFAR-10: 50,000 training images in five files and 10,000 test images of 32×32 in 10 classes."""

from __future__ import annotations

from pathlib import Path

from .cifar import Cifar
from .loader import ImageData

# of all pixels of the training images; the deviations that some codebases use, 0.2023 and so on, are means over images
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
CLASSES = 10
LAYOUT = Cifar(
    name="CIFAR-10",
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    classes=CLASSES,
    key="labels",
    files={
        "train": {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
    },
    images={"train": 10_000, "test": 10_000},
    torchvision="CIFAR10",
)


def load(root: Path) -> tuple[ImageData, ImageData, list[str]]:
    """See `Cifar.load`."""
    return LAYOUT.load(root)
