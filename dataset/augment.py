"""Changes to training images beyond crop and flip: rotations, and RandAugment and random erasing as in timm's recipes.

RandAugment is timm's `rand-mM-mstd0.5-inc1` (Cubuk et al., 2020): of 15 operations an image draws two, each of which is
left out half of the time; the magnitude is normal about M with a deviation of 0.5, 0 to 10, and a larger one always
changes more. Random erasing (Zhong et al., 2020) is its mode `pixel`: a rectangle of 2 to 33 % of the normalised image
becomes noise of deviation 1.

What differs: the images of a step that drew the same operation share its magnitude, since one call serves them all; the
images are changed at the size of the data set, before a network brings them to its own; turned, sheared and shifted
ones are sampled bilinearly, where timm has bicubic, and its grey levels may be 1 away (see `operations`).

Rotations are those of torchvision's RandomRotation: by an angle that is uniform between -D and D degrees, the nearest
pixel, black beside the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .loader import Normaliser, Share, epoch_generator, send
from .operations import BLACK, Beside, Operation, apply_drawn, posterize, sharpen, solarize, transforms

MAGNITUDES = 10
LARGEST_ROTATION = 180  # degrees
DEVIATION = 0.5  # of the magnitude
OPERATIONS_EACH = 2
KEPT = 0.5  # probability that an operation that was drawn is applied
SMALLEST_FACTOR = 0.1  # of colour, contrast, brightness and sharpness
AREA = (0.02, 1 / 3)  # of what is erased, of the image
ASPECT = (0.3, 1 / 0.3)  # its height by its width
ATTEMPTS = 10  # at a rectangle that is smaller than the image


def _enhance(mixed: Callable[[Tensor, float], Tensor]) -> Operation:
    """A mixture of images with changed ones: by a factor of 1 for no change."""

    def apply(images: Tensor, value: float, _place: Tensor) -> Tensor:
        return mixed(images, max(SMALLEST_FACTOR, 1 + value))

    return Operation(0, 0.9, apply, signed=True)


def _brighten(images: Tensor, value: float, _place: Tensor) -> Tensor:
    """Add to the darker half of the grey levels: unlike the original SolarizeAdd, timm's inverts nothing."""
    # no level below 128 leaves the range of a byte
    return torch.where(images < 128, images + int(value), images)


def operations(beside: Beside) -> dict[str, Operation]:
    """The operations by timm's names; values at magnitudes 0 and 10.

    Args:
        beside: what turned, sheared and shifted images become.
    """
    return {
        "AutoContrast": Operation(0, 0, lambda images, value, place: transforms().autocontrast(images)),
        "Equalize": Operation(0, 0, lambda images, value, place: transforms().equalize(images)),
        "Invert": Operation(0, 0, lambda images, value, place: transforms().invert(images)),
        "Rotate": Operation(0, 30, lambda images, value, place: beside.rotate(images, value), signed=True),
        # at 10, timm asks for 0 bits, which PIL refuses
        "PosterizeIncreasing": Operation(0, 4, lambda images, value, place: posterize(images, max(1, 4 - int(value)))),
        "SolarizeIncreasing": Operation(0, 256, lambda images, value, place: solarize(images, 256 - int(value))),
        "SolarizeAdd": Operation(0, 110, _brighten),
        "ColorIncreasing": _enhance(lambda images, factor: transforms().adjust_saturation(images, factor)),
        "ContrastIncreasing": _enhance(lambda images, factor: transforms().adjust_contrast(images, factor)),
        "BrightnessIncreasing": _enhance(lambda images, factor: transforms().adjust_brightness(images, factor)),
        "SharpnessIncreasing": _enhance(sharpen),
        "ShearX": Operation(0, 0.3, lambda images, value, place: beside.shear(images, x=value), signed=True),
        "ShearY": Operation(0, 0.3, lambda images, value, place: beside.shear(images, y=value), signed=True),
        "TranslateXRel": Operation(
            0, 0.45, lambda images, value, place: beside.shift(images, x=value * images.shape[3]), signed=True
        ),
        "TranslateYRel": Operation(
            0, 0.45, lambda images, value, place: beside.shift(images, y=value * images.shape[2]), signed=True
        ),
    }


class Augmenter:
    """Changes the images of a step, and normalises them.

    What is drawn depends on (seed, epoch, step) and an image's place in the step alone, and not on the number of
    processes that share it.

    Args:
        magnitude: M of RandAugment, 0 to 10; 0 for none.
        erasing: probability that a part of an image is erased, 0 to 1.
        normalise: what turns pixels into a network's input; its mean is the colour beside turned images.
        seed: the run's.
        rotation: D in degrees, 0 to 180; 0 for none. Loaders then leave out the shifts of their crops.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, magnitude: float, erasing: float, normalise: Normaliser, seed: int, rotation: float = 0.0):
        if not 0 <= magnitude <= MAGNITUDES:
            raise ValueError(f"a magnitude of {magnitude} is not between 0 and {MAGNITUDES}")
        if not 0 <= erasing <= 1:
            raise ValueError(f"a probability of {erasing} is not between 0 and 1")
        if not 0 <= rotation <= LARGEST_ROTATION:
            raise ValueError(f"a rotation of {rotation} is not between 0 and {LARGEST_ROTATION} degrees")
        self.magnitude, self.erasing, self.normalise, self.seed = magnitude, erasing, normalise, seed
        self.rotation = rotation
        colour = tuple((255 * normalise.mean).round().tolist())
        unchanged = Operation(0, 0, lambda images, value, place: images)
        self.table = [*operations(Beside(colour, "bilinear")).values(), unchanged]

    def __call__(self, pixels: Tensor, share: Share, epoch: int, step: int) -> Tensor:
        """A network's input of the pixels of a process's share of a step.

        Args:
            pixels: (B, 3, H, W) uint8, of the images `share.run`.
            share: which of the step's images these are.
            epoch: from 1.
            step: from 0.

        Returns:
            (B, 3, H, W) float32, normalised.
        """
        generator = epoch_generator(self.seed, epoch, 5, index=step)
        if self.rotation:
            angles = self.rotation * (2 * torch.rand(len(share.whole), generator=generator) - 1)
            pixels = BLACK.rotate(pixels, angles[share.rows])
        if self.magnitude:
            pixels = self._rand_augment(pixels, share, generator)
        images = self.normalise(pixels)
        if not self.erasing:
            return images
        hole = rectangles(len(share.whole), images.shape[2:], self.erasing, generator)[share.rows]
        noise = epoch_generator(self.seed, epoch, 6, images.device, index=step)
        # as much as all processes have together, so that every image gets its own whoever has it
        values = torch.randn(len(share.whole), *images.shape[1:], generator=noise, device=images.device)
        values = values[share.rows].contiguous(memory_format=torch.channels_last)
        return torch.where(send(hole, images.device)[:, None], values, images)

    def _rand_augment(self, pixels: Tensor, share: Share, generator: torch.Generator) -> Tensor:
        count, known = len(share.whole), len(self.table) - 1
        size = (count, OPERATIONS_EACH)
        operation = torch.randint(known, size, generator=generator)
        operation[torch.rand(size, generator=generator) >= KEPT] = known
        negative = torch.rand(size, generator=generator) < 0.5
        normal = torch.randn(OPERATIONS_EACH, len(self.table), generator=generator)
        levels = (self.magnitude + DEVIATION * normal).clamp_(0, MAGNITUDES) / MAGNITUDES
        values = [[op.value(level) for op, level in zip(self.table, row, strict=True)] for row in levels.tolist()]
        drawn = (operation[share.rows], negative[share.rows])
        return apply_drawn(pixels, self.table, values, *drawn, torch.zeros(len(drawn[0]), OPERATIONS_EACH, 2))


def rectangles(count: int, side: torch.Size, probability: float, generator: torch.Generator) -> Tensor:
    """Which pixels of each image are erased.

    Args:
        count: number of images B.
        side: their height H and width W.
        probability: that anything of an image is erased.
        generator: on the CPU.

    Returns:
        (B, H, W) bool, on the CPU: a rectangle of every image that drew one; none where no attempt fitted into it.
    """
    chosen = torch.rand(count, generator=generator) < probability
    area = torch.empty(count, ATTEMPTS).uniform_(*AREA, generator=generator) * side[0] * side[1]
    aspect = torch.empty(count, ATTEMPTS).uniform_(*map(math.log, ASPECT), generator=generator).exp_()
    sides = (area * aspect).sqrt_().round_(), (area / aspect).sqrt_().round_()
    fits = (sides[0] < side[0]) & (sides[1] < side[1])
    first = fits.int().argmax(1, keepdim=True)  # of several largest values, the first
    chosen &= fits.any(1)
    inside = []
    for size, lengths in zip(side, sides, strict=True):
        length = lengths.gather(1, first)
        start = (torch.rand(count, 1, generator=generator) * (size - length + 1)).floor_()
        pixel = torch.arange(size)
        inside.append((pixel >= start) & (pixel < start + length))
    return inside[0][:, :, None] & inside[1][:, None, :] & chosen[:, None, None]
