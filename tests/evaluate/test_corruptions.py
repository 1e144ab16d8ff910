"""helper.corruptions: parameters by their effect, and each kind against a literal version."""

import colorsys
import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from dataset import shapes100
from helper import corruptions
from helper.corruptions import KINDS, SEVERITIES, corrupt, disc_kernel

NOISY = ("gaussian_noise", "shot_noise", "impulse_noise")


@pytest.fixture(scope="module")
def pixels():
    """Twenty drawn figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes100, "TEST_PER_CLASS", 1)
        images, _ = shapes100.draw(train=False)
    return torch.from_numpy(images[::5]).permute(0, 3, 1, 2)


def grey(value, count=20):
    return torch.full((count, 3, 32, 32), value, dtype=torch.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_same_arguments_same_images(pixels, kind):
    before = pixels.clone()
    first, second, other = (corrupt(pixels, kind, 3, seed) for seed in (0, 0, 1))
    assert first.shape == pixels.shape
    assert first.dtype == torch.uint8
    assert torch.equal(first, second)
    assert torch.equal(first, other) == (kind not in NOISY)
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_grows_with_severity(pixels, kind):
    results = [corrupt(pixels, kind, severity).float() for severity in range(1, SEVERITIES + 1)]
    damage = [(result - pixels).square().mean().item() for result in results]
    assert damage[0] > 0
    assert all(early < late for early, late in itertools.pairwise(damage))
    assert len(KINDS[kind][1]) == SEVERITIES


def test_kinds_and_severities_draw_their_own_noise():
    first, second = (corrupt(grey(128), "gaussian_noise", severity).float() - 128 for severity in (1, 2))
    correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
    assert abs(correlation) < 0.02


def test_blocks_have_noise_of_their_own(monkeypatch):
    monkeypatch.setattr(corruptions, "BLOCK", 2)
    images = corrupt(grey(128, 5), "gaussian_noise", 1)
    assert len(images) == 5
    assert not torch.equal(images[:2], images[2:4])


@pytest.mark.parametrize("severity", [1, 5])
def test_noise_has_the_published_size(severity):
    gaussian = corrupt(grey(128), "gaussian_noise", severity).float()
    assert gaussian.std().item() == pytest.approx(255 * (0.04, 0.10)[severity // 5], rel=0.02)
    shot = corrupt(grey(51), "shot_noise", severity).float()
    # a Poisson number of photons with mean 0.2·P, in units of 1/P
    assert shot.std().item() == pytest.approx(255 * (0.2 / (500, 50)[severity // 5]) ** 0.5, rel=0.05)
    assert shot.mean().item() == pytest.approx(51, rel=0.02)
    impulse = corrupt(grey(128), "impulse_noise", severity)
    hit = impulse != 128
    assert hit.float().mean().item() == pytest.approx((0.01, 0.07)[severity // 5], rel=0.1)
    assert set(impulse[hit].tolist()) == {0, 255}
    assert (impulse[hit] == 255).float().mean().item() == pytest.approx(0.5, abs=0.05)


def literal_kernel(radius, softness):
    """The published one: a disc on 17 × 17 points, then OpenCV's Gaussian of 3 × 3."""
    x, y = np.meshgrid(np.arange(-8, 9), np.arange(-8, 9))
    disc = np.array((x**2 + y**2) <= radius**2, dtype=np.float64)
    disc /= disc.sum()
    bell = np.exp(-np.array([1.0, 0.0, 1.0]) / (2 * softness**2))
    bell /= bell.sum()
    result = np.zeros_like(disc)
    for i, j in np.ndindex(3, 3):
        result += bell[i] * bell[j] * np.roll(disc, (i - 1, j - 1), axis=(0, 1))
    return result


@pytest.mark.parametrize("shape", KINDS["defocus_blur"][1])
def test_kernel_is_the_published_one(shape):
    expected = literal_kernel(*shape)
    np.testing.assert_allclose(disc_kernel(*shape), expected[6:11, 6:11], atol=1e-6)
    assert expected[6:11, 6:11].sum() == pytest.approx(1)


def test_blur_of_a_point_is_the_kernel_and_leaves_flat_images():
    point = grey(0, 1)
    point[0, :, 10, 20] = 255
    blurred = corrupt(point, "defocus_blur", 4)[0, 1, 8:13, 18:23]
    assert torch.equal(blurred, (255 * disc_kernel(1.0, 0.2)).round().to(torch.uint8))
    assert torch.equal(corrupt(grey(77, 1), "defocus_blur", 5), grey(77, 1))


def test_brightness_raises_the_value_of_hsv():
    colours = torch.tensor([[0, 0, 0], [10, 200, 30], [255, 255, 255], [250, 0, 0], [90, 90, 91]], dtype=torch.uint8)
    images = colours.T[None, :, :, None].expand(1, 3, 5, 3).contiguous()
    found = corrupt(images, "brightness", 5)[0, :, :, 0].T
    for colour, brighter in zip(colours.tolist(), found.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in colour))
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.3, 1))
        assert brighter == pytest.approx([255 * c for c in expected], abs=0.51)


def test_contrast_by_hand():
    images = grey(100, 1)
    images[:, :, :16] = 200
    assert set(corrupt(images, "contrast", 2).flatten().tolist()) == {125, 175}


def test_jpeg_is_that_of_pil(pixels):
    array = pixels[3].permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=58)
    expected = np.asarray(Image.open(buffer))
    np.testing.assert_array_equal(corrupt(pixels, "jpeg", 3)[3].permute(1, 2, 0), expected)
