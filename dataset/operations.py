"""Operations on uint8 images of which RandAugment (Cubuk et al., 2020) chooses some at random.

Each is applied once to all images of a batch that drew it. They are those of torchvision.transforms.v2.functional, but
for some whose numbers torchvision sends to the device while the host waits. Some grey levels come out 1 away from
PIL's, and pixels of turned images may come from a neighbour.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from .loader import send

SOLARIZE_ADD_THRESHOLD = 128


@functools.cache
def transforms() -> ModuleType:
    """The operations of torchvision, imported when they are first needed: it takes seconds, and most runs need none."""
    from torchvision.transforms.v2 import functional

    return functional


class Operation(NamedTuple):
    """An operation of RandAugment.

    Attributes:
        low, high: values at the least and the largest magnitude.
        apply: gives the images (B, 3, H, W), uint8, from such images, the value and places (B, 2) between 0 and 1.
        signed: the value is negated for half of the images.
    """

    low: float
    high: float
    apply: Callable[[Tensor, float, Tensor], Tensor]
    signed: bool = False

    def value(self, share: float) -> float:
        """That at a share, 0 to 1, of the largest magnitude."""
        return self.low + share * (self.high - self.low)


class Beside(NamedTuple):
    """What turned, sheared and shifted images become.

    Attributes:
        colour: (3,) 0 to 255, of what lies beside the image.
        interpolation: "nearest" or "bilinear".
    """

    colour: tuple[float, ...] = (0.0, 0.0, 0.0)
    interpolation: str = "nearest"

    def sample(self, images: Tensor, maps: Tensor) -> Tensor:
        """Images whose pixels come from other places of the given ones.

        Args:
            images: (B, 3, H, W) uint8.
            maps: (B, 2, 3) or, for all images, (1, 2, 3), on the CPU: from the result's places (x, y, 1) to the
                image's, in units of half a side from its centre.
        """
        places = torch.nn.functional.affine_grid(maps, [len(maps), *images.shape[1:]], align_corners=False)
        places = send(places, images.device).expand(len(images), -1, -1, -1)
        colour = send(torch.tensor(self.colour, dtype=torch.float32), images.device)[:, None, None]
        # less the colour, since what lies beside is 0
        found = torch.nn.functional.grid_sample(images - colour, places, self.interpolation, align_corners=False)
        return found.add_(colour).round_().to(torch.uint8)

    def rotate(self, images: Tensor, degrees: float | Tensor) -> Tensor:
        """Turn counterclockwise about the centre, all images alike or each by its own angle (B,)."""
        height, width = images.shape[2:]
        angles = torch.as_tensor(degrees, dtype=torch.float64).reshape(-1).deg2rad()
        cos, sin, nothing = angles.cos(), angles.sin(), torch.zeros_like(angles)
        across = torch.stack([cos, -sin * height / width, nothing], 1)
        down = torch.stack([sin * width / height, cos, nothing], 1)
        return self.sample(images, torch.stack([across, down], 1).float())

    def shear(self, images: Tensor, x: float = 0.0, y: float = 0.0) -> Tensor:
        """Shear by slopes about the upper left corner, as PIL's affine transform does."""
        height, width = images.shape[2:]
        x, y = x * height / width, y * width / height
        return self.sample(images, torch.tensor([[[1, x, x], [y, 1, y]]]))

    def shift(self, images: Tensor, x: float = 0.0, y: float = 0.0) -> Tensor:
        """Shift by pixels to the left and up, as PIL's affine transform does."""
        height, width = images.shape[2:]
        return self.sample(images, torch.tensor([[[1, 0, 2 * x / width], [0, 1, 2 * y / height]]]))


BLACK = Beside()


def sharpen(images: Tensor, factor: float) -> Tensor:
    """Mix images (B, 3, H, W), uint8, with their smoothed version: 0 gives that, 1 the image, and more sharpens.

    As PIL does it: smoothed are the inner pixels, each with a weight of 5 to its neighbours' 1.
    """
    if min(images.shape[2:]) < 3:
        return images
    inner, sums = images[..., 1:-1, 1:-1].float(), images.float()
    for rows_or_columns in (2, 3):
        length = sums.shape[rows_or_columns] - 2
        sums = sum(sums.narrow(rows_or_columns, first, length) for first in range(3))
    smooth = ((sums + 4 * inner) / 13).round_()
    mixed = images.clone()
    mixed[..., 1:-1, 1:-1] = inner.add_(smooth - inner, alpha=1 - factor).clamp_(0, 255).to(torch.uint8)
    return mixed


def posterize(images: Tensor, bits: int) -> Tensor:
    """Keep the highest bits, 1 to 8."""
    return images & (256 - 2 ** (8 - bits))


def solarize(images: Tensor, threshold: float) -> Tensor:
    """Invert what is at or above a threshold."""
    # no pixel reaches a higher one, and torchvision refuses it
    return transforms().solarize(images, threshold) if threshold <= 255 else images


def solarize_add(images: Tensor, value: float) -> Tensor:
    """Add to every pixel, then invert the upper half."""
    return transforms().solarize((images + value).clamp_(max=255).to(torch.uint8), SOLARIZE_ADD_THRESHOLD)


def apply_drawn(
    images: Tensor,
    table: Sequence[Operation],
    values: Sequence[Sequence[float]],
    operation: Tensor,
    negative: Tensor,
    place: Tensor,
) -> Tensor:
    """Apply to every image the n operations that it drew, in their order.

    Args:
        images: (B, 3, H, W) uint8.
        table: the operations.
        values: of each operation, for the first of the n, the second, ...
        operation: (B, n) positions in the table, on the CPU, as what follows.
        negative: (B, n) whether the value of a signed operation is negated.
        place: (B, n, 2) between 0 and 1.

    Returns:
        (B, 3, H, W) uint8.
    """
    signed = torch.tensor([entry.signed for entry in table])
    for level, drawn, minus, where in zip(values, operation.T, negative.T, place.unbind(1), strict=True):
        # images of one operation and sign are brought together, so that one call serves them all
        group = 2 * drawn + (minus & signed[drawn])
        order = group.argsort()
        sizes = torch.bincount(group, minlength=2 * len(table)).tolist()
        parts = images[send(order, images.device)].split(sizes)
        places = send(where[order], images.device).split(sizes)
        done = [
            table[number // 2].apply(part, -level[number // 2] if number % 2 else level[number // 2], spot)
            for number, (part, spot) in enumerate(zip(parts, places, strict=True))
            if len(part)
        ]
        images = torch.cat(done)[send(order.argsort(), images.device)]
    return images
