"""Corrupted images at five severities, in the manner of CIFAR-10-C.

Source: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR
2019. The kinds here are seven of its fifteen, with parameters after those of its authors for images of 32 pixels; these
were not compared with the published code, so that figures are not those of the published CIFAR-10-C.

Deviations: results are rounded to whole grey levels, where the published code cuts the fraction off; the noise is
another, since it comes from torch; the published blur kernel has 17 pixels a side, of which these radii reach 5.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SEVERITIES = 5
BLOCK = 1000  # images at a time; the noise depends on it
KERNEL = 5


def _gaussian_noise(images: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    return images + scale * torch.randn(images.shape, generator=generator)


def _shot_noise(images: Tensor, photons: float, generator: torch.Generator) -> Tensor:
    return torch.poisson(images * photons, generator=generator) / photons


def _impulse_noise(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Salt and pepper, on each channel of a pixel by itself."""
    hit, is_salt = (torch.rand(images.shape, generator=generator) for _ in range(2))
    return torch.where(hit < share, (is_salt < 0.5).float(), images)


def disc_kernel(radius: float, softness: float) -> Tensor:
    """The kernel of a defocused lens: a disc, softened by a Gaussian of 3 × 3 pixels.

    Args:
        radius: in pixels, at most 1.5.
        softness: standard deviation of the Gaussian in pixels.

    Returns:
        (5, 5) with the sum 1.
    """
    place = torch.arange(KERNEL) - KERNEL // 2
    disc = (place[:, None] ** 2 + place**2 <= radius**2).float()
    bell = (-(torch.arange(-1, 2) ** 2) / (2 * softness**2)).exp()
    bell = bell / bell.sum()
    kernel = F.conv2d(disc[None, None], torch.outer(bell, bell)[None, None], padding=1)[0, 0]
    return kernel / kernel.sum()


def _defocus_blur(images: Tensor, shape: tuple[float, float], _generator: torch.Generator) -> Tensor:
    channels = F.pad(images, [KERNEL // 2] * 4, mode="reflect").flatten(0, 1).unsqueeze(1)
    return F.conv2d(channels, disc_kernel(*shape)[None, None]).view(images.shape)


def _brightness(images: Tensor, added: float, _generator: torch.Generator) -> Tensor:
    """Raise the value of the HSV colour; hue and saturation stay."""
    value = images.amax(1, keepdim=True)
    brighter = (value + added).clamp(max=1)
    return torch.where(value > 0, images * (brighter / value), brighter)


def _contrast(images: Tensor, factor: float, _generator: torch.Generator) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * factor + mean


def _jpeg(images: Tensor, quality: int, _generator: torch.Generator) -> Tensor:
    """Through PIL, image by image."""
    from PIL import Image

    def compress(pixels: np.ndarray) -> np.ndarray:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
        return np.asarray(Image.open(buffer))

    rows = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    compressed = torch.from_numpy(np.stack([compress(pixels) for pixels in rows]))
    return compressed.permute(0, 3, 1, 2).float() / 255


# name -> what is done to images (B, 3, H, W) in [0, 1], and its parameter at each severity
KINDS: dict[str, tuple[Callable[..., Tensor], tuple]] = {
    "gaussian_noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (_shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": (_defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "jpeg": (_jpeg, (80, 65, 58, 50, 40)),
}


def corrupt(pixels: Tensor, kind: str, severity: int, seed: int = 0) -> Tensor:
    """Corrupt images; the same arguments give the same result.

    Args:
        pixels: (N, 3, H, W) uint8 on the CPU, H and W at least 3.
        kind: a key of `KINDS`.
        severity: 1 to `SEVERITIES`.
        seed: of the noise, >= 0; kinds and severities draw theirs independently.

    Returns:
        (N, 3, H, W) uint8.
    """
    change, parameters = KINDS[kind]
    state = np.random.SeedSequence([seed, list(KINDS).index(kind), severity]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state) >> 1)
    blocks = []
    for block in pixels.split(BLOCK):
        images = change(block.contiguous().float() / 255, parameters[severity - 1], generator)
        blocks.append((images.clamp(0, 1) * 255).round().to(torch.uint8))
    return torch.cat(blocks)
