"""Shapes100: a data set drawn in code, for trying knowledge distillation without a download.

100 classes in 20 families of 5. The classes of a family differ only in fine geometry (how many points a star has, how
long an ellipse is), so a network confuses them with one another far more than with other families, and a teacher's soft
labels say something that the hard labels do not. Everything else is nuisance, drawn independently of the class: place,
size, rotation, stretch, colours, shading, distractors, an occluding bar and noise. The labels are exact.

Every figure is symmetric about its own axis, which points anywhere from right over down to left with equal chances, so
a mirror image (a horizontal flip) is another picture of the same class.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Distance = Callable[[Array, Array, float], Array]

SIZE = 32
TRAIN_PER_CLASS = 100
TEST_PER_CLASS = 20
SEED_TRAIN = 20240
SEED_TEST = 20241

# Statistics of the training images, in [0, 1] units.
MEAN = (0.3663, 0.3655, 0.3655)
STD = (0.2152, 0.2156, 0.2161)


# Figures. Each takes points (x, y) in the figure's own frame, where it fills about the unit disc, and its parameter k,
# and returns an approximate signed distance to the outline, negative inside. All are even in y.


def _disc(x: Array, y: Array, radius: float) -> Array:
    return np.hypot(x, y) - radius


def _box(x: Array, y: Array, half_x: float, half_y: float) -> Array:
    return np.maximum(np.abs(x) - half_x, np.abs(y) - half_y)


def _fold(x: Array, y: Array, n: float) -> tuple[Array, Array]:
    """Maps the plane onto one of n equal sectors, around the x axis: what is drawn there appears n times."""
    radius, angle, step = np.hypot(x, y), np.arctan2(y, x), 2 * math.pi / n
    angle = angle - step * np.rint(angle / step)
    return radius * np.cos(angle), np.abs(radius * np.sin(angle))


def _repeat(x: Array, n: float, half: float) -> Array:
    """Maps [-half, half] onto n equal cells, each centred on 0; what lies outside continues the end cells."""
    cell = 2 * half / n
    index = np.clip(np.floor((x + half) / cell), 0, n - 1)
    return x - (index * cell + cell / 2 - half)


def _polygon(x: Array, y: Array, k: float) -> Array:
    return _fold(x, y, k)[0] - math.cos(math.pi / k)


def _star(x: Array, y: Array, k: float) -> Array:
    px, py = _fold(x, y, k)
    inner_x, inner_y = 0.5 * math.cos(math.pi / k), 0.5 * math.sin(math.pi / k)
    return ((px - 1) * inner_y + py * (1 - inner_x)) / math.hypot(inner_y, 1 - inner_x)


def _gear(x: Array, y: Array, k: float) -> Array:
    px, py = _fold(x, y, k)
    teeth = _box(px - 0.8, py, 0.2, 1.1 / k)
    return np.maximum(np.minimum(_disc(x, y, 0.7), teeth), -_disc(x, y, 0.3))


def _flower(x: Array, y: Array, k: float) -> Array:
    px, py = _fold(x, y, k)
    petals = (np.hypot((px - 0.58) / 0.42, py * k / 1.15) - 1) / k
    return np.minimum(petals, _disc(x, y, 0.2))


def _rays(x: Array, y: Array, k: float) -> Array:
    px, py = _fold(x, y, k)
    return _box(px - 0.65, py, 0.35, 0.085)


def _beads(x: Array, y: Array, k: float) -> Array:
    px, py = _fold(x, y, k)
    return _disc(px - 0.8, py, 0.2)


def _bitten(x: Array, y: Array, k: float) -> Array:
    px, py = _fold(x, y, k)
    return np.maximum(_disc(x, y, 0.95), -_disc(px - 0.95, py, 0.24))


def _stripes(x: Array, y: Array, k: float) -> Array:
    bars = np.abs(_repeat(x, k, 1.0)) - 0.5 / k
    return np.maximum(_disc(x, y, 1.0), bars)


def _target(x: Array, y: Array, k: float) -> Array:
    radius, step = np.hypot(x, y), 1 / (k + 0.25)
    nearest = step * np.minimum(np.rint(radius / step), k)
    return np.abs(radius - nearest) - step / 4


def _comb(x: Array, y: Array, k: float) -> Array:
    teeth = _box(x, _repeat(y, k, 0.9), 0.75, 0.42 / k)
    return np.minimum(teeth, _box(x + 0.6, y, 0.15, 0.9))


def _zigzag(x: Array, y: Array, k: float) -> Array:
    wave = np.abs(_repeat(y, k, 0.95)) * (k / 0.95) - 0.5
    slope = math.hypot(1, 0.7 * k / 0.95)
    line = np.abs(x - 0.7 * wave) / slope - 0.09
    return np.maximum(line, np.abs(y) - 0.95)


def _ladder(x: Array, y: Array, k: float) -> Array:
    rails = _box(np.abs(x) - 0.5, y, 0.1, 1.0)
    return np.minimum(rails, _box(x, _repeat(y, k, 0.95), 0.5, 0.1))


def _checker(x: Array, y: Array, k: float) -> Array:
    turns = math.pi * k / 1.6
    squares = -np.cos(turns * x) * np.cos(turns * y) / turns
    return np.maximum(_box(x, y, 0.8, 0.8), squares)


def _ellipse(x: Array, y: Array, k: float) -> Array:
    return (np.hypot(x, y * k) - 1) * (2 / (1 + k))


def _washer(x: Array, y: Array, k: float) -> Array:
    return np.maximum(_disc(x, y, 0.95), -_disc(x, y, k))


def _crescent(x: Array, y: Array, k: float) -> Array:
    return np.maximum(_disc(x, y, 0.95), -_disc(x - k, y, 0.75))


def _wedge(x: Array, y: Array, k: float) -> Array:
    half = math.radians(k / 2)
    mouth = np.abs(y) * math.cos(half) - x * math.sin(half)
    return np.maximum(_disc(x, y, 0.95), -mouth)


def _hands(x: Array, y: Array, k: float) -> Array:
    half = math.radians(k / 2)
    cos, sin = math.cos(half), math.sin(half)
    x, y = x + 0.5 * cos, np.abs(y)
    along, across = x * cos + y * sin, y * cos - x * sin
    return np.hypot(along - np.clip(along, 0, 1.2), across) - 0.13


def _cross(x: Array, y: Array, k: float) -> Array:
    return np.minimum(_box(x, y, 0.95, k), _box(x, y, k, 0.95))


def _eye(x: Array, y: Array, k: float) -> Array:
    return np.maximum(_disc(x, y, 0.95), -_disc(x - k, y, 0.3))


@dataclass(frozen=True)
class Family:
    """Five classes that share a figure: its name, its distance function, the name and value of each variant."""

    name: str
    distance: Distance
    variant: str
    values: tuple[float, ...]


FAMILIES = (
    Family("polygon", _polygon, "{:g} sides", (3, 4, 5, 6, 7)),
    Family("star", _star, "{:g} points", (4, 5, 6, 7, 8)),
    Family("gear", _gear, "{:g} teeth", (5, 6, 7, 8, 9)),
    Family("flower", _flower, "{:g} petals", (3, 4, 5, 6, 7)),
    Family("rays", _rays, "{:g} rays", (4, 5, 6, 7, 8)),
    Family("beads", _beads, "{:g} beads", (4, 5, 6, 7, 8)),
    Family("bitten", _bitten, "{:g} bites", (2, 3, 4, 5, 6)),
    Family("stripes", _stripes, "{:g} stripes", (2, 3, 4, 5, 6)),
    Family("target", _target, "{:g} rings", (1, 2, 3, 4, 5)),
    Family("comb", _comb, "{:g} teeth", (2, 3, 4, 5, 6)),
    Family("zigzag", _zigzag, "{:g} peaks", (2, 3, 4, 5, 6)),
    Family("ladder", _ladder, "{:g} rungs", (1, 2, 3, 4, 5)),
    Family("checker", _checker, "{:g} squares", (2, 3, 4, 5, 6)),
    Family("ellipse", _ellipse, "{:g} to 1", (1, 1.3, 1.7, 2.2, 3)),
    Family("washer", _washer, "hole {:g}", (0.2, 0.33, 0.46, 0.59, 0.72)),
    Family("crescent", _crescent, "bite {:g}", (0.3, 0.42, 0.54, 0.66, 0.78)),
    Family("wedge", _wedge, "{:g} degrees", (30, 60, 90, 120, 150)),
    Family("hands", _hands, "{:g} degrees", (30, 60, 90, 120, 150)),
    Family("cross", _cross, "arm {:g}", (0.1, 0.18, 0.27, 0.37, 0.48)),
    Family("eye", _eye, "pupil at {:g}", (0.14, 0.26, 0.38, 0.5, 0.62)),
)

CLASSES: list[str] = [f"{family.name}/{family.variant.format(k)}" for family in FAMILIES for k in family.values]


class _Scenes:
    """The nuisances of n pictures, all drawn at once; `paint` then draws a figure into a slice of them."""

    def __init__(self, rng: np.random.Generator, n: int):
        def uniform(low: float, high: float, *shape: int) -> Array:
            """Random numbers (n, *shape, 1, 1), ready to broadcast over the pixels."""
            return low + (high - low) * rng.random((n, *shape, 1, 1), dtype=np.float32)

        self.centre = uniform(-3.5, 3.5, 2)
        self.radius = np.exp(uniform(math.log(7.0), math.log(12.5)))
        self.turn = uniform(0, np.pi)  # a flip makes it pi - turn: any range must be symmetric about pi / 2
        self.stretch = np.exp(uniform(-0.1, 0.1))
        self.blob_centre = uniform(-SIZE / 2, SIZE / 2, 4, 2)
        self.blob_radius = uniform(1.0, 2.5, 4)
        self.bar_angle = uniform(0, 2 * np.pi)
        self.bar_offset = uniform(-9, 9)
        self.bar_half = uniform(-1.0, 1.2)  # below about -0.5 there is no bar to be seen
        self.slope = uniform(-0.012, 0.012, 2, 3)
        self.noise = uniform(0.02, 0.08, 1)
        # Anything goes for blobs and bar; figures tend to be brighter than grounds, but not in every channel.
        self.ground = uniform(0.05, 0.55, 3)
        self.colour = uniform(0.4, 0.95, 3)
        self.blob_colour, self.bar_colour = uniform(0.05, 0.95, 3), uniform(0.05, 0.95, 3)

    def paint(self, part: slice, distance: Distance, k: float, rng: np.random.Generator) -> Array:
        """Draws one figure into the pictures of a slice: uint8 (n, 32, 32, 3)."""
        grid = np.arange(SIZE, dtype=np.float32) + (0.5 - SIZE / 2)
        x, y = grid[None, None, :], grid[None, :, None]
        # Colour planes come first until the end: numpy is slow where the innermost dimension is as short as 3.
        image = self.ground[part] + x * self.slope[part, 0] + y * self.slope[part, 1]
        blobs = np.full(image[:, 0].shape, np.inf, np.float32)
        for i in range(self.blob_centre.shape[1]):
            blob = np.hypot(x - self.blob_centre[part, i, 0], y - self.blob_centre[part, i, 1])
            np.minimum(blobs, blob - self.blob_radius[part, i], out=blobs)
        _lay(image, self.blob_colour[part], blobs)
        _lay(image, self.colour[part], self._figure(part, x, y, distance, k))
        angle = self.bar_angle[part]
        bar = np.abs(x * np.cos(angle) + y * np.sin(angle) - self.bar_offset[part])
        _lay(image, self.bar_colour[part], bar - self.bar_half[part])
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        noise *= self.noise[part]
        image += noise
        image *= 255
        return np.clip(np.rint(image, out=image), 0, 255, out=image).astype(np.uint8).transpose(0, 2, 3, 1)

    def _figure(self, part: slice, x: Array, y: Array, distance: Distance, k: float) -> Array:
        """The figure's signed distance in pixels (n, 32, 32)."""
        centre, radius, stretch = self.centre[part], self.radius[part], self.stretch[part]
        u = (x - centre[:, 0]) / (radius * stretch)
        v = (y - centre[:, 1]) * stretch / radius
        cos, sin = np.cos(self.turn[part]), np.sin(self.turn[part])
        return distance(cos * u + sin * v, cos * v - sin * u, k) * radius


def _lay(image: Array, colour: Array, distance: Array) -> None:
    """Lays a colour over an image, in place, where the distance is negative, with an edge one pixel wide."""
    change = colour - image
    change *= np.clip(0.5 - distance, 0, 1)[:, None]
    image += change


def draw(train: bool) -> tuple[Array, Array]:
    """Draws one of the two splits, the same on every call.

    Args:
        train: the training split if true, else the test split.

    Returns:
        The images, uint8 (N, 32, 32, 3), and their labels, int64 (N,) in [0, 100), in a mixed order; N is 10,000 for
        the training split and 2,000 for the test split, with as many images of every class.
    """
    per_class = TRAIN_PER_CLASS if train else TEST_PER_CLASS
    rng = np.random.Generator(np.random.PCG64(SEED_TRAIN if train else SEED_TEST))
    figures = [(family.distance, k) for family in FAMILIES for k in family.values]
    scenes = _Scenes(rng, per_class * len(figures))
    images = np.empty((per_class * len(figures), SIZE, SIZE, 3), np.uint8)
    for label, (distance, k) in enumerate(figures):
        part = slice(label * per_class, (label + 1) * per_class)
        images[part] = scenes.paint(part, distance, k, rng)
    labels = np.repeat(np.arange(len(figures), dtype=np.int64), per_class)
    order = rng.permutation(len(labels))
    return images[order], labels[order]
