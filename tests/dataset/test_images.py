"""Image files of every kind as RGB, and what is said of those that are none."""

import contextlib
import io
import os
import struct
import threading
import zlib

import numpy as np
import pytest
from image_trees import picture, save
from PIL import Image

from dataset.images import BadImage, check_image, fit_to, over_files, read_pixels, read_rgb, upright_size

RGB = picture(1, 20, 30)
ORIENTATION = 0x0112


def pixels_of(path):
    return np.asarray(read_rgb(str(path)))


def test_rgb_png_is_read_as_it_is(tmp_path):
    assert np.array_equal(pixels_of(save(tmp_path / "x.png", RGB)), RGB)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".bmp", ".tif", ".webp", ".gif"])
def test_grey_becomes_three_equal_channels(tmp_path, ending):
    found = pixels_of(save(tmp_path / f"x{ending}", RGB[..., 0]))
    assert found.shape == (20, 30, 3)
    assert np.abs(found.astype(int) - RGB[..., :1]).max() < 40
    assert np.abs(np.diff(found.astype(int), axis=2)).max() < 12


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path):
    deep = (RGB[..., 0].astype(np.uint16) * 257)[..., None].repeat(3, axis=2)
    for ending in (".png", ".tif"):
        assert np.array_equal(pixels_of(save(tmp_path / f"x{ending}", deep[..., 0])), RGB[..., :1].repeat(3, axis=2))


def test_palette_with_transparency(tmp_path):
    image = Image.fromarray(RGB).quantize(16)
    expected = np.asarray(image.convert("RGB"))
    image.save(tmp_path / "x.png", transparency=bytes([0, 128] + [255] * 14))
    assert np.array_equal(pixels_of(tmp_path / "x.png"), expected)


def test_transparency_is_dropped(tmp_path):
    alpha = np.arange(600, dtype=np.uint8).reshape(20, 30, 1)
    assert np.array_equal(pixels_of(save(tmp_path / "x.png", np.concatenate([RGB, alpha], axis=2))), RGB)
    two = np.concatenate([RGB[..., :1], alpha], axis=2)
    assert np.array_equal(pixels_of(save(tmp_path / "y.png", two)), RGB[..., :1].repeat(3, axis=2))


def test_cmyk_jpeg(tmp_path):
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "x.jpg", quality=95)
    assert np.abs(pixels_of(tmp_path / "x.jpg").astype(int) - RGB).mean() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_carried_out(tmp_path, orientation):
    turn = {3: 2, 6: 1, 8: 3}.get(orientation)  # quarter turns that were made before storing
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = RGB if turn is None else np.rot90(RGB, turn)
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "x.png", exif=exif)
    found = pixels_of(tmp_path / "x.png")
    assert upright_size(str(tmp_path / "x.png")) == found.shape[:2]
    assert found.shape == ((30, 20, 3) if orientation in (5, 7) else (20, 30, 3))
    if turn is not None or orientation == 1:
        assert np.array_equal(found, RGB)


def encoded(kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(2, 64, 64)).save(buffer, kind, **options)
    return buffer.getvalue()


def claimed(width: int, height: int) -> bytes:
    """A PNG file whose header tells another size."""
    whole = encoded("PNG")
    header = b"IHDR" + struct.pack(">II", width, height) + whole[24:29]
    return whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]


BAD = {
    "empty": (b"", "is empty"),
    "text": (b"<html>not found</html>", "is not an image"),
    "jpeg": (encoded("JPEG")[:700], "is truncated"),
    "last": (encoded("JPEG")[:-40], "is truncated"),
    "progressive": (encoded("JPEG", progressive=True)[:700], "is truncated"),
    "png": (encoded("PNG")[:2000], "is "),
    "header": (encoded("PNG")[:20], "is truncated"),
    "float": (None, "floating-point"),
    "small": (None, "smaller than 8×8"),
    "large": (None, "more than 100 million"),
    "bomb": (claimed(20_000, 20_000), "has more than 100 million pixels"),  # beyond Pillow's own limit
}


@pytest.fixture
def bad_file(tmp_path, monkeypatch):
    def make(name):
        path, data = tmp_path / "x.jpg", BAD[name][0]
        if data is not None:
            path.write_bytes(data)
        elif name == "float":
            Image.fromarray(RGB[..., 0].astype(np.float32)).save(path, "TIFF")
        else:
            save(path, RGB[:4] if name == "small" else RGB)
        if name == "large":
            monkeypatch.setattr("dataset.images.MOST_PIXELS", 100)
        return str(path)

    return make


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("read", [read_rgb, check_image])
def test_what_is_wrong_is_said(bad_file, name, read):
    expected = BAD[name][1].replace("100 million", "0 million") if name == "large" else BAD[name][1]
    with pytest.raises(BadImage, match=expected):
        read(bad_file(name))


def test_a_file_that_is_gone_or_closed(tmp_path):
    with pytest.raises(BadImage, match="No such file"):
        read_rgb(str(tmp_path / "x.png"))
    (tmp_path / "y.png").mkdir()
    with pytest.raises(BadImage, match="Is a directory"):
        read_rgb(str(tmp_path / "y.png"))
    closed = save(tmp_path / "z.png", RGB)
    closed.chmod(0)
    if not os.access(closed, os.R_OK):  # root may read everything
        with pytest.raises(BadImage, match="Permission denied"):
            read_rgb(str(closed))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_every_truncation_and_damage_is_a_bad_image_or_an_image(tmp_path, kind):
    whole, path = encoded(kind), tmp_path / "x"
    rng = np.random.default_rng(0)
    damaged = [whole[:length] for length in range(0, len(whole), max(1, len(whole) // 60))]
    damaged += [whole[:place] + b"\xa5" + whole[place + 3 :] for place in rng.integers(0, len(whole), 60)]
    for data in damaged:
        path.write_bytes(data)
        for read in (read_rgb, check_image):
            with contextlib.suppress(BadImage):
                read(str(path))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (40, 20), (20, 40), (10, 100), (8, 8)])
def test_fitted_images_are_the_middle(height, width):
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[height // 2 - 1 : height // 2 + 1, width // 2 - 1 : width // 2 + 1] = 255
    image = fit_to(Image.fromarray(pixels), (16, 16))
    assert image.size == (16, 16)
    mass = np.asarray(image)[..., 0].astype(float)
    centre = (mass.sum(1) @ np.arange(16) / mass.sum(), mass.sum(0) @ np.arange(16) / mass.sum())
    assert np.allclose(centre, 7.5, atol=1)


def test_read_pixels_tells_bad_and_resized_ones(tmp_path):
    paths = [save(tmp_path / f"{i}.png", picture(i, *((16, 16) if i % 50 else (32, 24)))) for i in range(150)]
    paths[70].write_bytes(b"")
    for threads in (1, 3):
        pixels, bad, resized = read_pixels(list(map(str, paths)), (16, 16), threads)
        assert bad == [(70, "is empty")]
        assert resized == 3
        assert not pixels[70].any()
        assert np.array_equal(pixels[71], picture(71))


def test_files_are_worked_on_in_order_and_errors_come_through():
    found = list(over_files([str(i) for i in range(1000)], int, 2, "x"))
    assert found == [(i, i) for i in range(1000)]
    before = threading.active_count()
    with pytest.raises(ValueError, match="invalid"):
        list(over_files(["1", "x"], int, 2, "x"))
    assert threading.active_count() == before
