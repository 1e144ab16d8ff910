"""helper.outliers: what is drawn, and what is read."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image

import helper.outliers
from dataset import ImageData
from helper.errors import UserError
from helper.outliers import FAR_OUT, far_out, files_below, fit, outside_images, read_images

COUNT = 8


@pytest.fixture(scope="module")
def drawn():
    """Images of each kind by name, (COUNT, 3, 32, 32) float32."""
    return dict(zip(FAR_OUT, far_out(COUNT, (32, 32)).float().split(COUNT), strict=True))


@pytest.mark.parametrize("side", [(32, 32), (16, 24), (4, 4)])
def test_drawn_from_the_seed_alone(side):
    first, second, other = (far_out(3, side, seed) for seed in (0, 0, 1))
    assert first.shape == (3 * len(FAR_OUT), 3, *side)
    assert first.dtype == torch.uint8
    assert torch.equal(first, second)
    assert not (first == other).flatten(1).all(1).any()


@pytest.mark.parametrize("kind", ["checkerboards", "stripes"])
def test_patterns_have_two_colours(drawn, kind):
    colours = [len(image.flatten(1).unique(dim=1).T) for image in drawn[kind]]
    assert set(colours) == {2}


@pytest.mark.parametrize("kind", ["gradients", "textures"])
def test_smooth_images_are_smooth_and_not_flat(drawn, kind):
    steps = drawn[kind].diff(dim=3).abs().amax((1, 2, 3))
    assert (steps < 40).all()
    assert (drawn[kind].amax((2, 3)) - drawn[kind].amin((2, 3)) > 10).any(1).all()


def test_noise_has_its_distribution(drawn):
    uniform, gaussian = drawn["uniform_noise"], drawn["gaussian_noise"]
    assert uniform.std().item() == pytest.approx(255 / 12**0.5, rel=0.02)
    assert ((gaussian > 0) & (gaussian < 255)).float().mean().item() == pytest.approx(0.9545, abs=0.01)


def test_fit_changes_only_the_size():
    flat = torch.full((2, 3, 64, 48), 99, dtype=torch.uint8)
    assert torch.equal(fit(flat, (32, 32)), torch.full((2, 3, 32, 32), 99, dtype=torch.uint8))
    assert fit(flat, (64, 48)) is flat


@pytest.fixture
def folder(tmp_path):
    """Readable images of several modes, and what is none."""
    base = tmp_path / "images"
    (base / "deep").mkdir(parents=True)
    (base / ".hidden").mkdir()
    Image.new("L", (40, 20), 7).save(base / "a_grey.png")
    Image.new("RGBA", (8, 8), (10, 20, 30, 0)).save(base / "b_alpha.png")
    Image.new("P", (5, 5), 0).save(base / "c_palette.gif")
    Image.new("RGB", (100, 100), (200, 0, 0)).save(base / "deep" / "d.jpg")
    (base / ".hidden" / "x.png").write_bytes(b"")
    (base / ".DS_Store").write_bytes(b"")
    return base


def test_images_of_a_folder(folder):
    notes = []
    pixels = outside_images(str(folder), "", (16, 12), notes)
    assert pixels.shape == (4, 3, 16, 12)
    assert pixels.dtype == torch.uint8
    assert [image[:, 5, 5].tolist() for image in pixels[:2]] == [[7, 7, 7], [10, 20, 30]]
    assert (pixels[3, 0] > 190).all()
    assert notes == []


def bomb():
    """The head of a PNG that claims 60,000 × 60,000 pixels."""
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBBI", 13, b"IHDR", 60000, 60000, 8, 2, 0, 0, 0, 0)


def test_unreadable_files_are_counted_and_named_in_one_line(folder):
    whole = (folder / "deep" / "d.jpg").read_bytes()
    for name, data in {"e": whole[:200], "f": b"text", "g": b"", "h": bomb()}.items():
        (folder / name).write_bytes(data)
    notes = []
    pixels, good = read_images(files_below(folder), (8, 8), notes)
    assert good == [0, 1, 2, 3]
    assert len(pixels) == 4
    (note,) = notes
    assert "4 files" in note
    assert all(str(folder / name) in note for name in "efg")
    assert note.endswith("and 1 more")


def test_folder_without_images(tmp_path):
    with pytest.raises(UserError, match="no readable image"):
        outside_images(str(tmp_path), "", (8, 8), [])


def test_named_set_gets_the_size(monkeypatch):
    images = np.full((3, 16, 16, 3), 50, np.uint8)
    entry = helper.outliers.dataset_dict["shapes100"].__class__(
        lambda _: (None, ImageData(images, np.zeros(3, np.int64)), ["a remark"]), 2, (0.5,) * 3, (0.5,) * 3
    )
    monkeypatch.setitem(helper.outliers.dataset_dict, "small", entry)
    notes = []
    pixels = outside_images("small", "", (32, 32), notes)
    assert torch.equal(pixels, torch.full((3, 3, 32, 32), 50, dtype=torch.uint8))
    assert notes == ["a remark"]
