"""Images that belong to no class of a data set: drawn here, of another data set, or from a folder."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dataset import DataError, dataset_dict, read_arrays

from .checkpoint import nearest
from .errors import UserError

COARSE = 4  # points a side of what textures are interpolated from
NAMED = 3  # unreadable files that a note names

Side = tuple[int, int]


def _grid(side: Side) -> tuple[Tensor, Tensor]:
    """Row (H, 1) and column (1, W) of each pixel."""
    return torch.arange(side[0])[:, None].float(), torch.arange(side[1])[None, :].float()


def _draw(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    """Uniform numbers (N, 1, 1)."""
    return low + (high - low) * torch.rand(count, 1, 1, generator=generator)


def _two_colours(share: Tensor, generator: torch.Generator) -> Tensor:
    """Images (N, 3, H, W) that mix two colours, drawn for each, by the share (N, H, W) of the first."""
    first, second = torch.rand(2, len(share), 3, 1, 1, generator=generator)
    return share[:, None] * first + (1 - share[:, None]) * second


def _gaussian_noise(count: int, side: Side, generator: torch.Generator) -> Tensor:
    return 0.5 + 0.25 * torch.randn(count, 3, *side, generator=generator)


def _uniform_noise(count: int, side: Side, generator: torch.Generator) -> Tensor:
    return torch.rand(count, 3, *side, generator=generator)


def _checkerboards(count: int, side: Side, generator: torch.Generator) -> Tensor:
    """Squares of 1 to a quarter of the side, shifted by any amount."""
    cell = _draw(1, min(side) / 4 + 1, count, generator).floor()
    row, column = _grid(side)
    shifts = (_draw(0, 2, count, generator) for _ in range(2))
    down, right = (((place / cell) + shift).floor() for place, shift in zip((row, column), shifts, strict=True))
    return _two_colours((down + right) % 2, generator)


def _direction(count: int, side: Side, generator: torch.Generator) -> Tensor:
    """Distance in pixels (N, H, W) along a direction drawn for each image, from the image's centre."""
    angle = _draw(0, 2 * math.pi, count, generator)
    row, column = _grid(side)
    return (row - (side[0] - 1) / 2) * angle.sin() + (column - (side[1] - 1) / 2) * angle.cos()


def _stripes(count: int, side: Side, generator: torch.Generator) -> Tensor:
    """Bars in any direction, a pair of which takes 2 pixels to half the side."""
    period = _draw(2, min(side) / 2, count, generator)
    place = _direction(count, side, generator) / period + _draw(0, 1, count, generator)
    return _two_colours((place % 1 < 0.5).float(), generator)


def _gradients(count: int, side: Side, generator: torch.Generator) -> Tensor:
    """One colour turning into another, in any direction."""
    return _two_colours((0.5 + _direction(count, side, generator) / max(side)).clamp(0, 1), generator)


def _textures(count: int, side: Side, generator: torch.Generator) -> Tensor:
    """Low frequencies in all channels."""
    coarse = torch.rand(count, 3, COARSE, COARSE, generator=generator)
    return F.interpolate(coarse, side, mode="bicubic", align_corners=True)


FAR_OUT: dict[str, Callable[[int, Side, torch.Generator], Tensor]] = {
    "gaussian_noise": _gaussian_noise,
    "uniform_noise": _uniform_noise,
    "checkerboards": _checkerboards,
    "stripes": _stripes,
    "gradients": _gradients,
    "textures": _textures,
}


def far_out(count: int, side: Side, seed: int = 0) -> Tensor:
    """Noise and patterns that are far from any photograph or figure; the same arguments give the same images.

    Args:
        count: images of each kind in `FAR_OUT`.
        side: (H, W), each at least 4.
        seed: >= 0.

    Returns:
        (count · kinds, 3, H, W) uint8, kind by kind.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.cat([draw(count, side, generator) for draw in FAR_OUT.values()])
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def fit(pixels: Tensor, side: Side) -> Tensor:
    """Images (N, 3, H, W) uint8 in another size (height, width), bilinear and smoothed where it is smaller."""
    if pixels.shape[2:] == side:
        return pixels
    return F.interpolate(pixels.float(), side, mode="bilinear", antialias=True).round().to(torch.uint8)


def _read_image(path: Path, side: Side) -> np.ndarray | None:
    """An image file as (H, W, 3) uint8; None where it cannot be read, or is so large that it must be a trap."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about unusual palettes
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as image:
                return np.asarray(image.convert("RGB").resize(side[::-1], Image.Resampling.BILINEAR))
        except Exception:  # a damaged file can raise nearly anything
            return None


def read_images(files: Sequence[Path], side: Side, notes: list[str]) -> tuple[Tensor, list[int]]:
    """Read image files of any format of PIL's, as RGB, stretched to one size.

    Args:
        files: to be read.
        side: (H, W) of the result.
        notes: gets a line that counts and names unreadable files.

    Returns:
        (N, 3, H, W) uint8, and the positions in `files` of those that could be read.
    """
    images = [_read_image(path, side) for path in files]
    bad = [str(path) for path, image in zip(files, images, strict=True) if image is None]
    if bad:
        more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        notes.append(f"left out, being no readable images: {len(bad)} files, {', '.join(bad[:NAMED])}{more}")
    good = [position for position, image in enumerate(images) if image is not None]
    stack = np.stack([images[position] for position in good]) if good else np.empty((0, *side, 3), np.uint8)
    return torch.from_numpy(stack).permute(0, 3, 1, 2), good


def files_below(folder: Path) -> list[Path]:
    """All files below a folder in the order of their names, but for hidden ones and what is in hidden folders."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def check_source(flag: str, source: str) -> None:
    """Refuse what is neither the name of a data set nor a folder.

    Raises:
        UserError: it names the flag.
    """
    if source not in dataset_dict and not os.path.isdir(source):
        raise UserError(f"{flag} {source} is neither a folder nor a data set; {nearest(source, dataset_dict)}")


def outside_images(source: str, data_folder: str, side: Side, notes: list[str]) -> Tensor:
    """The images of `--ood`: the test split of a data set, or all images below a folder.

    Args:
        source: a key of `dataset_dict`, or a folder.
        data_folder: where data sets lie.
        side: (H, W) that they get.
        notes: gets remarks for the user.

    Returns:
        (N, 3, H, W) uint8, N > 0.

    Raises:
        UserError: the data set cannot be had, or the folder holds no readable image.
    """
    check_source("--ood", source)
    if source in dataset_dict:
        try:
            _, test, remarks = read_arrays(source, data_folder)
        except DataError as error:
            raise UserError(str(error)) from None
        notes += remarks
        return fit(torch.from_numpy(test.images).permute(0, 3, 1, 2), side)
    pixels, _ = read_images(files_below(Path(source)), side, notes)
    if not len(pixels):
        raise UserError(f"no readable image below {source} (--ood)")
    return pixels
