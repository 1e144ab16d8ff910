"""RandAugment, erasing, rotation: every operation against timm's, what is drawn, what an epoch depends on."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import auto_augment
from torchvision.transforms import functional

from dataset import ContrastLoader, ContrastSampler, ImageData, MemoryLoader, StrongLoader, augment
from dataset.augment import Augmenter, operations, rectangles
from dataset.loader import Share
from dataset.operations import Beside

CPU = torch.device("cpu")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
COLOUR = (102, 128, 153)
TABLE = operations(Beside(COLOUR, "bilinear"))
GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")


def some_images(count: int = 24, side: tuple[int, int] = (32, 32)) -> np.ndarray:
    """Smooth pictures, a few with a narrow range of grey levels."""
    rng = np.random.Generator(np.random.PCG64(0))
    wide = torch.from_numpy(rng.integers(0, 256, (count, 3, 4, 4), dtype=np.uint8)).float()
    smooth = torch.nn.functional.interpolate(wide, side, mode="bilinear").byte().numpy().transpose(0, 2, 3, 1).copy()
    smooth[1::4] = smooth[1::4] // 5 + 90
    return smooth


def by_timm(name: str, magnitude: float, sign: int, image: Image.Image, monkeypatch) -> torch.Tensor:
    if name == "PosterizeIncreasing":
        magnitude = min(magnitude, 9.9)  # 10 means 0 bits, which PIL refuses
    monkeypatch.setattr(auto_augment, "_randomly_negate", lambda value: sign * value)
    level = auto_augment.LEVEL_TO_ARG[name]
    hparams = {"translate_pct": 0.45}
    arguments = level(magnitude, hparams) if level else ()
    changed = auto_augment.NAME_TO_OP[name](image, *arguments, fillcolor=COLOUR, resample=Image.Resampling.BILINEAR)
    return functional.pil_to_tensor(changed)


@pytest.mark.parametrize("side", [(32, 32), (24, 40)])
@pytest.mark.parametrize("magnitude", [0, 4.3, 8.6, 9, 10])
@pytest.mark.parametrize("name", list(TABLE))
def test_operation_equals_timms(name, magnitude, side, monkeypatch):
    images, entry = torch.from_numpy(some_images(side=side)).permute(0, 3, 1, 2), TABLE[name]
    value = entry.value(magnitude / augment.MAGNITUDES)
    for sign in (1, -1) if entry.signed else (1,):
        found = entry.apply(images, sign * value, torch.zeros(len(images), 2))
        assert found.dtype == torch.uint8
        for image, got in zip(images, found, strict=True):
            expected = by_timm(name, magnitude, sign, functional.to_pil_image(image), monkeypatch)
            difference = (got.int() - expected.int()).abs()
            if name in GEOMETRIC:  # pixels at the edge are mixed with what is beside the image, or not
                assert (difference.amax(0) > 3).float().mean() <= 0.12
            else:
                assert difference.max() <= 1


def test_the_operations_are_those_of_timms_recipe():
    assert list(TABLE) == auto_augment._RAND_INCREASING_TRANSFORMS
    recipe = auto_augment.rand_augment_transform("rand-m9-mstd0.5-inc1", {})
    assert {op.magnitude_std for op in recipe.ops} == {augment.DEVIATION}
    assert {op.prob for op in recipe.ops} == {augment.KEPT}
    assert recipe.num_layers == augment.OPERATIONS_EACH


def training(magnitude=9.0, erasing=0.25, samples: int = 40, batch_size: int = 16, seed: int = 0, rotation=0.0):
    data = ImageData(some_images(samples), np.arange(samples) % 5)
    loader = MemoryLoader(data, MEAN, STD, batch_size, CPU, train=True, seed=seed)
    if magnitude or erasing or rotation:
        loader.augment(Augmenter(magnitude, erasing, loader.normalise, seed, rotation))
    return loader


def epoch(loader, number: int = 1) -> torch.Tensor:
    loader.set_epoch(number)
    return torch.cat([batch.images for batch in loader])


def test_an_epoch_depends_on_seed_and_epoch_alone():
    loader = training()
    first, second = epoch(loader, 1), epoch(loader, 2)
    assert not torch.equal(first, second)
    assert torch.equal(epoch(loader, 1), first)
    assert torch.equal(epoch(training(), 2), second)
    assert not torch.equal(epoch(training(seed=1)), first)


@pytest.mark.parametrize("world", [2, 3, 5])
def test_an_image_is_changed_alike_whoever_has_it(world):
    shares = [training() for _ in range(world)]
    for rank, loader in enumerate(shares):
        loader.shard(rank, world)
    for whole, *parts in zip(training(), *shares, strict=True):
        assert torch.equal(torch.cat([part.images[: len(part.index)] for part in parts]), whole.images)


def test_each_part_is_its_own_and_the_rest_stays():
    plain, both = epoch(training(0, 0)), epoch(training())
    turned, erased = epoch(training(erasing=0)), epoch(training(magnitude=0, erasing=1))
    changed = [(images != plain).flatten(1).any(1).float().mean() for images in (turned, erased)]
    assert 0.5 < changed[0] < 0.95  # 3 of 4 draw an operation
    assert changed[1] == 1
    kept = (erased == plain).all(1).float().mean((1, 2))
    assert 0.6 <= kept.min() <= kept.max() < 1
    noise = erased[(erased != plain)]
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05
    assert not torch.equal(both, turned)
    assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in training(erasing=1))


def test_order_labels_and_test_images_are_not_changed():
    changed, plain = training(), training(0, 0)
    for one, other in zip(changed, plain, strict=True):
        assert torch.equal(one.index, other.index)
        assert torch.equal(one.target, other.target)
    assert (changed.views, plain.views) == (None, 162)
    assert torch.equal(epoch(changed.plain()), epoch(plain.plain()))


def test_strong_and_contrastive_views_stay_as_they_are():
    def wrapped(loader):
        return StrongLoader(ContrastLoader(loader, ContrastSampler(loader.labels, 6)))

    for one, other in zip(wrapped(training()), wrapped(training(0, 0)), strict=True):
        assert torch.equal(one.strong_images, other.strong_images)
        assert torch.equal(one.contrast_index, other.contrast_index)


def test_what_is_drawn():
    """Shares of each operation, of both signs, of none, and the spread of the magnitude."""
    augmenter = Augmenter(9, 0, training().normalise, 0)
    seen, calls = [], []

    def note(number, entry):
        def apply(images, value, place):
            seen.extend([number] * len(images))
            calls.append((number, value))
            return images

        return entry._replace(apply=apply)

    augmenter.table = [note(number, entry) for number, entry in enumerate(augmenter.table)]
    pixels, index = torch.zeros(400, 3, 1, 1, dtype=torch.uint8), torch.arange(400)
    for step in range(60):
        augmenter._rand_augment(pixels, Share(index, index), augment.epoch_generator(0, 1, 5, index=step))
    share = torch.bincount(torch.tensor(seen), minlength=16) / len(seen)
    assert abs(share[15] - 0.5) < 0.01
    assert (abs(share[:15] - 0.5 / 15) < 0.005).all()
    rotate = list(TABLE).index("Rotate")
    angles = torch.tensor([value for number, value in calls if number == rotate])
    assert abs((angles > 0).float().mean() - 0.5) < 0.01  # a call for either sign in every layer
    assert abs(angles.abs().mean() - 27) < 0.5
    assert 0.8 < angles.abs().std() < 1.6
    assert angles.abs().max() <= 30


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 1000))
def test_what_is_erased_is_one_rectangle_of_a_size_in_range(height, width, seed):
    holes = rectangles(50, torch.Size([height, width]), 1.0, torch.Generator().manual_seed(seed))
    for hole in holes:
        rows, columns = hole.any(1), hole.any(0)
        assert torch.equal(hole, rows[:, None] & columns[None, :])
        assert rows.sum() < height
        assert columns.sum() < width
        for line in (rows, columns):  # in one piece
            assert (line.int().diff().abs().sum() + line[0] + line[-1]) in (0, 2)


def test_the_share_of_erased_images_and_pixels():
    holes = rectangles(4000, torch.Size([32, 32]), 0.25, torch.Generator().manual_seed(0))
    assert holes.any(0).all()  # up to the edges
    chosen = holes.flatten(1).any(1)
    assert abs(chosen.float().mean() - 0.25) < 0.02
    areas = holes[chosen].float().mean((1, 2))
    assert areas.min() > 0.015
    assert areas.max() < 0.36
    assert abs(areas.mean() - (0.02 + 1 / 3) / 2) < 0.02
    assert abs(holes[chosen].float().mean(0)[4:28, 4:28].std()) < 0.1
    assert not rectangles(10, torch.Size([1, 1]), 1.0, torch.Generator().manual_seed(0)).any()


@pytest.mark.parametrize(("magnitude", "erasing"), [(-1, 0), (10.5, 0), (9, -0.1), (9, 1.1)])
def test_arguments_out_of_range_are_refused(magnitude, erasing):
    with pytest.raises(ValueError, match="is not between 0 and"):
        Augmenter(magnitude, erasing, training().normalise, 0)


@pytest.mark.parametrize("side", [(32, 32), (24, 40)])
def test_each_image_is_turned_as_torchvision_turns_one(side):
    images = torch.from_numpy(some_images(side=side)).permute(0, 3, 1, 2)
    degrees = torch.linspace(-180, 180, len(images))
    for image, angle, found in zip(images, degrees.tolist(), Beside().rotate(images, degrees), strict=True):
        other = (found != functional.rotate(image, angle)).any(0)
        assert other.float().mean() < 0.01  # where two pixels are equally near


def test_rotations_take_the_place_of_shifts():
    loader = training(0, 0, samples=16, rotation=1e-6)
    loader.set_epoch(1)
    (batch,) = loader
    whole = loader.plain()
    plain = next(iter(whole)).images[batch.index]
    flipped = (batch.view % 2).bool()[:, None, None, None]
    assert 0 < flipped.sum() < len(flipped)
    assert torch.equal(batch.images, torch.where(flipped, plain.flip(3), plain))
    assert loader.views is None


def test_angles_are_uniform_up_to_the_largest(monkeypatch):
    drawn = []
    monkeypatch.setattr(Beside, "rotate", lambda self, images, degrees: drawn.append(degrees) or images)
    epoch(training(0, 0, samples=2000, rotation=20.0))
    angles = torch.cat(drawn)
    assert 19 < angles.max() <= 20
    assert -20 <= angles.min() < -19
    assert abs(angles.mean()) < 1.5
    assert angles.std() == pytest.approx(40 / 12**0.5, rel=0.05)
