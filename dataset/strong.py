"""Strongly augmented second views, for methods that compare two views of each image.

RandAugment (Cubuk et al., 2020) as in ildoonet's pytorch-randaugment, the PIL version that is in wide use: its 16
operations, their ranges and its rule that a magnitude of m in 0 to 30 takes an operation m/30 of the way through its
range. Then Cutout (DeVries and Taylor, 2017): a square hole of the normalised image is 0.

What differs are the grey levels and pixels of `operations`. Like PIL's, turned, sheared and shifted images are sampled
without interpolation and black beside the image.

The ranges were made for images of 224 pixels and are kept: at m = 10 a shift is by 33 pixels, which leaves nothing of
an image of 32, and posterize keeps one bit. With two operations, 23 % of such images are shifted out of sight.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .contrast import ContrastLoader
from .loader import VIEWS, Batch, Loader, epoch_generator, send
from .operations import BLACK, Operation, apply_drawn, posterize, sharpen, solarize, solarize_add, transforms

MAGNITUDES = 30
RECTANGLE_COLOUR = (125, 123, 114)


def _rectangle(images: Tensor, value: float, place: Tensor) -> Tensor:
    """Fill a square of side `value` with grey.

    Args:
        images: (B, 3, H, W) uint8.
        value: side in pixels.
        place: (B, 2) position of the centre in height and width, 0 to 1.
    """
    covered = []
    for size, centre in zip(images.shape[-2:], place.T, strict=True):
        first = (centre * size - value / 2).clamp_(min=0).floor_()[:, None]
        pixel = torch.arange(size, device=images.device)
        # the far edge belongs to PIL's rectangles
        covered.append((pixel >= first) & (pixel <= first + value))
    colour = send(torch.tensor(RECTANGLE_COLOUR, dtype=images.dtype), images.device)[:, None, None]
    return torch.where((covered[0][:, :, None] & covered[1][:, None, :])[:, None], colour, images)


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": Operation(0, 1, lambda images, value, place: transforms().autocontrast(images)),
    "Equalize": Operation(0, 1, lambda images, value, place: transforms().equalize(images)),
    "Invert": Operation(0, 1, lambda images, value, place: transforms().invert(images)),
    "Rotate": Operation(0, 30, lambda images, value, place: BLACK.rotate(images, value), signed=True),
    "Posterize": Operation(0, 4, lambda images, value, place: posterize(images, max(1, int(value)))),
    "Solarize": Operation(0, 256, lambda images, value, place: solarize(images, value)),
    "SolarizeAdd": Operation(0, 110, lambda images, value, place: solarize_add(images, value)),
    "Color": Operation(0.1, 1.9, lambda images, value, place: transforms().adjust_saturation(images, value)),
    "Contrast": Operation(0.1, 1.9, lambda images, value, place: transforms().adjust_contrast(images, value)),
    "Brightness": Operation(0.1, 1.9, lambda images, value, place: transforms().adjust_brightness(images, value)),
    "Sharpness": Operation(0.1, 1.9, lambda images, value, place: sharpen(images, value)),
    "ShearX": Operation(0, 0.3, lambda images, value, place: BLACK.shear(images, x=value), signed=True),
    "ShearY": Operation(0, 0.3, lambda images, value, place: BLACK.shear(images, y=value), signed=True),
    "CutoutAbs": Operation(0, 40, _rectangle),
    "TranslateXabs": Operation(0, 100, lambda images, value, place: BLACK.shift(images, x=value), signed=True),
    "TranslateYabs": Operation(0, 100, lambda images, value, place: BLACK.shift(images, y=value), signed=True),
}


class Draws(NamedTuple):
    """What makes the strong views of N images, on the CPU.

    Attributes:
        view: (N,) number of the crop and flip, as in `Batch`.
        operation: (N, n) positions in OPERATIONS, in the order of their application.
        negative: (N, n) whether the value of a signed operation is negated.
        place: (N, n, 2) position of a grey square in height and width, 0 to 1.
        hole: (N, 2) row and column of the hole's centre.
    """

    view: Tensor
    operation: Tensor
    negative: Tensor
    place: Tensor
    hole: Tensor

    def of(self, index: Tensor) -> Draws:
        """Those of the images at positions (B,)."""
        return Draws(*(part[index] for part in self))


def draw(samples: int, count: int, side: tuple[int, int], generator: torch.Generator) -> Draws:
    """Draw everything for `samples` images; all is uniform, and operations may repeat.

    Args:
        samples: N.
        count: operations n of each image, >= 0.
        side: height and width of the images.
        generator: on the CPU, so that every device gets the same numbers.
    """
    return Draws(
        torch.randint(VIEWS, (samples,), generator=generator),
        torch.randint(len(OPERATIONS), (samples, count), generator=generator),
        torch.rand(samples, count, generator=generator) < 0.5,
        torch.rand(samples, count, 2, generator=generator),
        torch.stack([torch.randint(size, (samples,), generator=generator) for size in side], dim=1),
    )


def rand_augment(images: Tensor, draws: Draws, magnitude: float = 10) -> Tensor:
    """Apply to every image the operations that it drew.

    Args:
        images: (B, 3, H, W) uint8.
        draws: of these images.
        magnitude: 0 to 30.

    Returns:
        (B, 3, H, W) uint8.
    """
    values = [entry.value(magnitude / MAGNITUDES) for entry in OPERATIONS.values()]
    count = draws.operation.shape[1]
    return apply_drawn(
        images, list(OPERATIONS.values()), [values] * count, draws.operation, draws.negative, draws.place
    )


def cutout(images: Tensor, centre: Tensor, length: int) -> Tensor:
    """Set a square to 0, the mean of normalised images; what lies beyond the image's edge is lost.

    Args:
        images: (B, 3, H, W), changed in place.
        centre: (B, 2) row and column.
        length: of the square's sides, even, >= 0.

    Returns:
        The images.
    """
    inside = []
    for size, middle in zip(images.shape[-2:], send(centre, images.device).T, strict=True):
        offset = torch.arange(size, device=images.device) - middle[:, None]
        inside.append((offset >= -(length // 2)) & (offset < length // 2))
    return images.masked_fill_((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0.0)


class StrongLoader:
    """A loader whose batches carry `strong_images` (B, 3, H, W), float32, normalised, channels last in memory.

    The strong view is a crop and flip drawn as those of the first view but independently, RandAugment and Cutout. What
    is drawn for an image depends on (seed, epoch) and its position in the data set alone.

    Args:
        loader: the loader to wrap, a `Loader` or one around it.
        operations: of RandAugment for each image, n >= 0.
        magnitude: of the operations, 0 to 30.
        hole: side of Cutout's hole in pixels, even, 0 for none.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, loader: Loader | ContrastLoader, operations: int = 2, magnitude: float = 10, hole: int = 16):
        if not 0 <= magnitude <= MAGNITUDES:
            raise ValueError(f"a magnitude of {magnitude} is not between 0 and {MAGNITUDES}")
        if operations < 0 or hole < 0 or hole % 2:
            raise ValueError(f"{operations} operations and a hole of {hole} must not be negative, and the hole even")
        self.loader, self.operations, self.magnitude, self.hole = loader, operations, magnitude, hole
        self.source = loader
        while not isinstance(self.source, Loader):
            self.source = self.source.loader
        self.source.prepare_second_view()
        self.samples, self.batch_size, self.device = loader.samples, loader.batch_size, loader.device
        self.seed = self.source.seed

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration goes through."""
        return self.source.epoch

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 1, that the next iteration goes through."""
        self.loader.set_epoch(epoch)

    def shard(self, rank: int, world: int) -> None:
        """From now on give what process `rank` of `world` gets, see `Loader.shard`."""
        self.loader.shard(rank, world)

    def __iter__(self) -> Iterator[Batch]:
        generator = epoch_generator(self.seed, self.epoch, stream=3)
        drawn = draw(self.samples, self.operations, self.source.side, generator)
        for batch in self.loader:
            # taken from the entry, which is on the CPU like the draws: no wait for the device
            index = batch.entry // (self.source.views or 1)
            batch.strong_images = self._strong(batch, drawn.of(index)) if len(index) else batch.images
            yield batch

    def _strong(self, batch: Batch, draws: Draws) -> Tensor:
        pixels = self.source.second_view(batch, draws.view)
        return cutout(self.source.normalise(rand_augment(pixels, draws, self.magnitude)), draws.hole, self.hole)
