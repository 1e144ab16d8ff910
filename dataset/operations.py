"""Operations on uint8 images of which RandAugment (Cubuk et al., 2020) chooses some at random.

They are those of torchvision.transforms.v2.functional, each applied once to all images of a batch that drew it. Some
grey levels come out 1 away from PIL's, and pixels of turned images may come from a neighbour.
"""

from __future__ import annotations

import functools
import math
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

    def _sampled(self) -> dict[str, object]:
        from torchvision.transforms import InterpolationMode

        return {"interpolation": InterpolationMode(self.interpolation), "fill": list(self.colour)}

    def _affine(self, images: Tensor, **change: object) -> Tensor:
        parts = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], **change}
        return transforms().affine(images, **parts, **self._sampled())

    def rotate(self, images: Tensor, degrees: float) -> Tensor:
        """Turn counterclockwise about the centre."""
        return transforms().rotate(images, degrees, **self._sampled())

    def shear(self, images: Tensor, x: float = 0.0, y: float = 0.0) -> Tensor:
        """Shear by slopes about the upper left corner, as PIL's affine transform does."""
        degrees = [math.degrees(math.atan(slope)) for slope in (x, y)]
        return self._affine(images, shear=degrees, center=[0, 0])

    def shift(self, images: Tensor, x: float = 0.0, y: float = 0.0) -> Tensor:
        """Shift by pixels to the left and up, as PIL's affine transform does."""
        return self._affine(images, translate=[-x, -y])


def turn_each(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn every image counterclockwise about its centre; what lies beside it is black, a pixel is its nearest one.

    Args:
        images: (B, 3, H, W) uint8.
        degrees: (B,) its own angle.
    """
    height, width = images.shape[2:]
    cos, sin = (function(torch.deg2rad(degrees)) for function in (torch.cos, torch.sin))
    nothing = torch.zeros_like(cos)
    # from the result's places to the image's, both in units of half a side
    across = torch.stack([cos, -sin * height / width, nothing], 1)
    down = torch.stack([sin * width / height, cos, nothing], 1)
    places = torch.nn.functional.affine_grid(torch.stack([across, down], 1), list(images.shape), align_corners=False)
    places = send(places, images.device)
    return torch.nn.functional.grid_sample(images.float(), places, "nearest", align_corners=False).to(torch.uint8)


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
