"""Strong views: every operation against PIL's, what is drawn, and what an epoch depends on."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torchvision.transforms import functional

from dataset import ContrastLoader, ContrastSampler, ImageData, MemoryLoader, strong
from dataset.cifar100 import MEAN, STD
from dataset.loader import VIEWS
from dataset.strong import OPERATIONS, Draws, StrongLoader, cutout, draw, rand_augment

CPU = torch.device("cpu")


def some_images(count: int = 40) -> ImageData:
    """Smooth pictures and noise, a few with a narrow range of grey levels."""
    rng = np.random.Generator(np.random.PCG64(0))
    wide = rng.integers(0, 256, (count, 3, 4, 4), dtype=np.uint8)
    smooth = torch.nn.functional.interpolate(torch.from_numpy(wide).float(), 32, mode="bilinear").byte().numpy()
    images = smooth.transpose(0, 2, 3, 1).copy()
    images[::4] = rng.integers(0, 256, images[::4].shape, dtype=np.uint8)
    images[1::4] = images[1::4] // 5 + 90
    return ImageData(images, np.arange(count) % 5)


def batch_of(count: int) -> torch.Tensor:
    return torch.from_numpy(some_images(count).images).permute(0, 3, 1, 2)


def training(batch_size: int = 16, seed: int = 0) -> MemoryLoader:
    return MemoryLoader(some_images(), MEAN, STD, batch_size, CPU, train=True, seed=seed)


def some_draws(count: int, operations: int = 2, seed: int = 0) -> Draws:
    return draw(count, operations, (32, 32), torch.Generator().manual_seed(seed))


def solarize_add(image: Image.Image, value: float) -> Image.Image:
    pixels = np.clip(np.array(image).astype(int) + value, 0, 255).astype(np.uint8)
    return ImageOps.solarize(Image.fromarray(pixels), 128)


def grey_square(image: Image.Image, value: float, place: tuple[float, float]) -> Image.Image:
    top, left = (int(max(0, where * 32 - value / 2)) for where in place)
    image = image.copy()
    ImageDraw.Draw(image).rectangle((left, top, min(32, left + value), min(32, top + value)), (125, 123, 114))
    return image


def affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


# (image, value, place) -> image, as pytorch-randaugment has them
WITH_PIL = {
    "AutoContrast": lambda image, v, place: ImageOps.autocontrast(image),
    "Equalize": lambda image, v, place: ImageOps.equalize(image),
    "Invert": lambda image, v, place: ImageOps.invert(image),
    "Rotate": lambda image, v, place: image.rotate(v),
    "Posterize": lambda image, v, place: ImageOps.posterize(image, max(1, int(v))),
    "Solarize": lambda image, v, place: ImageOps.solarize(image, v),
    "SolarizeAdd": lambda image, v, place: solarize_add(image, v),
    "Color": lambda image, v, place: ImageEnhance.Color(image).enhance(v),
    "Contrast": lambda image, v, place: ImageEnhance.Contrast(image).enhance(v),
    "Brightness": lambda image, v, place: ImageEnhance.Brightness(image).enhance(v),
    "Sharpness": lambda image, v, place: ImageEnhance.Sharpness(image).enhance(v),
    "ShearX": lambda image, v, place: affine(image, 1, v, 0, 0, 1, 0),
    "ShearY": lambda image, v, place: affine(image, 1, 0, 0, v, 1, 0),
    "CutoutAbs": grey_square,
    "TranslateXabs": lambda image, v, place: affine(image, 1, 0, v, 0, 1, 0),
    "TranslateYabs": lambda image, v, place: affine(image, 1, 0, 0, 0, 1, v),
}
# grey levels that may differ: torchvision divides and mixes in floating point where PIL rounds to whole levels
LEVELS = {"AutoContrast": 1, "Color": 1, "Contrast": 1}
# pixels that may come from another neighbour, where the source lies halfway between two; of a shear, in a whole row
HALFWAY = {"Rotate": 4, "ShearX": 32, "ShearY": 32}


@pytest.mark.parametrize("magnitude", [0, 4, 10, 23, 30])
@pytest.mark.parametrize("name", list(OPERATIONS))
def test_operation_equals_pil(name, magnitude):
    images, entry = batch_of(24), OPERATIONS[name]
    places = some_draws(len(images)).place[:, 0]
    value = magnitude / 30 * (entry.high - entry.low) + entry.low
    for signed in (value, -value) if entry.signed else (value,):
        found = entry.apply(images, signed, places)
        assert found.dtype == torch.uint8
        for image, got, place in zip(images, found, places.tolist(), strict=True):
            expected = functional.pil_to_tensor(WITH_PIL[name](functional.to_pil_image(image), signed, place))
            differing = (got.int() - expected.int()).abs() > LEVELS.get(name, 0)
            assert differing.any(0).sum() <= (0 if magnitude == 10 else HALFWAY.get(name, 0))


def test_ranges_are_those_of_the_pil_version():
    low_high = {name: (entry.low, entry.high) for name, entry in OPERATIONS.items()}
    enhance = dict.fromkeys(("Color", "Contrast", "Brightness", "Sharpness"), (0.1, 1.9))
    tables = dict.fromkeys(("AutoContrast", "Equalize", "Invert"), (0, 1))
    shifts = dict.fromkeys(("TranslateXabs", "TranslateYabs"), (0, 100))
    levels = {"Posterize": (0, 4), "Solarize": (0, 256), "SolarizeAdd": (0, 110)}
    shapes = {"Rotate": (0, 30), "ShearX": (0, 0.3), "ShearY": (0, 0.3), "CutoutAbs": (0, 40)}
    assert low_high == {**enhance, **tables, **shifts, **levels, **shapes}
    assert [name for name, entry in OPERATIONS.items() if entry.signed] == [
        "Rotate",
        "ShearX",
        "ShearY",
        "TranslateXabs",
        "TranslateYabs",
    ]


def literal_rand_augment(image: torch.Tensor, draws: Draws, magnitude: float) -> torch.Tensor:
    """The operations that one image (3, H, W) drew, one after the other; its draws are those of a batch of one."""
    for number, negative, place in zip(draws.operation[0], draws.negative[0], draws.place[0], strict=True):
        entry = list(OPERATIONS.values())[number]
        value = magnitude / 30 * (entry.high - entry.low) + entry.low
        image = entry.apply(image[None], -value if negative and entry.signed else value, place[None])[0]
    return image


@settings(deadline=None, max_examples=12)
@given(st.integers(1, 40), st.integers(0, 3), st.sampled_from([0, 5, 10, 30]), st.integers(0, 1000))
def test_every_image_gets_what_it_drew(batch, operations, magnitude, seed):
    images, draws = batch_of(batch), some_draws(batch, operations, seed)
    found = rand_augment(images, draws, magnitude)
    assert found.dtype == torch.uint8
    for i, image in enumerate(images):
        alone = draws.of(torch.tensor([i]))
        assert torch.equal(found[i], literal_rand_augment(image, alone, magnitude))
        assert torch.equal(found[i], rand_augment(images[i : i + 1], alone, magnitude)[0])


def test_an_operation_is_called_once_for_all_images_that_drew_it(monkeypatch):
    calls: list[tuple[str, float]] = []
    served: list[int] = []

    def spied(name: str, entry: strong.Operation) -> strong.Operation:
        def apply(images, value, place):
            calls.append((name, value))
            served.append(len(images))
            return entry.apply(images, value, place)

        return entry._replace(apply=apply)

    monkeypatch.setattr(strong, "OPERATIONS", {name: spied(name, entry) for name, entry in OPERATIONS.items()})
    rand_augment(batch_of(500), some_draws(500, 1))
    assert len(calls) == len(set(calls)) == 16 + 5
    assert sum(served) == 500


def test_draws_are_uniform():
    draws = some_draws(20_000)
    parts = [(draws.view, VIEWS), (draws.operation, 16), (draws.negative.long(), 2), (draws.hole, 32)]
    for drawn, kinds in parts:
        counts = torch.bincount(drawn.flatten(), minlength=kinds)
        assert len(counts) == kinds
        # chi-squared: 5 standard deviations
        expected = drawn.numel() / kinds
        assert ((counts - expected) ** 2 / expected).sum() < kinds - 1 + 5 * (2 * (kinds - 1)) ** 0.5
    assert draws.place.min() >= 0
    assert draws.place.max() < 1
    assert draws.place.mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("length", [0, 8, 16])
def test_cutout_is_a_square_around_its_centre(length):
    centre = torch.cartesian_prod(torch.tensor([0, 7, 16, 31]), torch.tensor([0, 20, 31]))
    found = cutout(torch.ones(len(centre), 3, 32, 32), centre, length)
    expected = torch.ones_like(found)
    for image, (y, x) in zip(expected, centre.tolist(), strict=True):
        half = length // 2
        image[:, max(0, y - half) : max(0, y + half), max(0, x - half) : max(0, x + half)] = 0
    assert torch.equal(found, expected)


def epoch(loader: StrongLoader | ContrastLoader, number: int = 1) -> dict[str, torch.Tensor]:
    """Weak and strong views of an epoch, in the order of the data set."""
    loader.set_epoch(number)
    batches = list(loader)
    order = torch.cat([batch.index for batch in batches]).argsort()
    return {name: torch.cat([getattr(b, name) for b in batches])[order] for name in ("images", "strong_images", "view")}


def test_an_epoch_depends_on_seed_and_epoch_alone():
    walked = StrongLoader(training(seed=1))
    for number in (1, 2, 3):
        images = epoch(walked, number)["strong_images"]
        assert torch.equal(images, epoch(StrongLoader(training(batch_size=7, seed=1)), number)["strong_images"])
    first = epoch(walked, 1)["strong_images"]
    assert not torch.equal(first, epoch(walked, 2)["strong_images"])
    assert not torch.equal(first, epoch(StrongLoader(training(seed=2)), 1)["strong_images"])


def test_weak_views_stay_as_they_are():
    found = epoch(StrongLoader(training()))
    plain = sorted(((int(i), image) for b in training() for i, image in zip(b.index, b.images, strict=True)))
    assert torch.equal(found["images"], torch.stack([image for _, image in plain]))


def test_crops_and_flips_are_drawn_independently_of_the_weak_view():
    found = epoch(StrongLoader(training(), operations=0, hole=0))
    views = StrongLoader(training()).source.raw
    drawn = draw(40, 0, (32, 32), strong.epoch_generator(0, 1, stream=3)).view
    assert torch.equal(found["strong_images"], training().normalise(views(torch.arange(40), drawn)))
    assert (drawn == found["view"]).sum() < 4


def test_strong_images_look_like_images():
    loader = StrongLoader(training())
    assert len(loader) == 3
    lowest, highest = ((bound - torch.tensor(MEAN)) / torch.tensor(STD) for bound in (0.0, 1.0))
    for batch, size in zip(loader, (16, 16, 8), strict=True):
        images = batch.strong_images
        assert images.shape == (size, 3, 32, 32)
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert (images.amin((0, 2, 3)) >= lowest - 1e-6).all()
        assert (images.amax((0, 2, 3)) <= highest + 1e-6).all()
        assert (images != batch.images).flatten(1).any(1).all()


def test_wrappers_compose_in_either_order():
    def contrast(loader: MemoryLoader | StrongLoader) -> ContrastLoader:
        return ContrastLoader(loader, ContrastSampler(torch.arange(40) % 5, 3))

    chains = [contrast(StrongLoader(training())), StrongLoader(contrast(training()))]
    found = [epoch(chain, 2) for chain in chains]
    assert torch.equal(found[0]["strong_images"], found[1]["strong_images"])
    drawn = [torch.cat([batch.contrast_index for batch in chain]) for chain in chains]
    assert torch.equal(*drawn)
    assert chains[1].epoch == 2


@pytest.mark.parametrize("wrong", [{"magnitude": -1}, {"magnitude": 31}, {"operations": -1}, {"hole": 7}, {"hole": -2}])
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        StrongLoader(training(), **wrong)
