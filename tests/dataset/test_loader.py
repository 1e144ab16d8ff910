"""The in-memory loader against torchvision's transforms, and what an epoch depends on."""

import numpy as np
import pytest
import torch
from torchvision.transforms import functional

from dataset.cifar100 import MEAN, STD
from dataset.loader import VIEWS, ImageData, MemoryLoader

CPU = torch.device("cpu")


def some_images(count: int = 50, side: int = 32) -> ImageData:
    rng = np.random.Generator(np.random.PCG64(0))
    return ImageData(rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8), np.arange(count) % 5)


def loader(data: ImageData, train: bool = True, batch_size: int = 16, seed: int = 0) -> MemoryLoader:
    return MemoryLoader(data, MEAN, STD, batch_size, CPU, train, seed)


def torchvision_view(image: np.ndarray, view: int) -> torch.Tensor:
    """Crop, flip and normalisation of one image, each by torchvision."""
    shift, flip = divmod(view, 2)
    top, left = divmod(shift, 9)
    x = functional.crop(functional.pad(functional.to_pil_image(image), 4), top, left, *image.shape[:2])
    x = functional.hflip(x) if flip else x
    return functional.normalize(functional.to_tensor(x), MEAN, STD)


def test_training_batches_equal_torchvision_bit_for_bit():
    data = some_images()
    for batch in loader(data):
        for image, view, index in zip(batch.images, batch.view, batch.index, strict=True):
            assert torch.equal(image, torchvision_view(data.images[index], int(view)))


@pytest.mark.parametrize("view", [0, 1, 17, 80, 81, VIEWS - 2, VIEWS - 1])
def test_every_view_number(view):
    data = some_images(1)
    image = loader(data).batch(torch.tensor([0]), torch.tensor([view])).images[0]
    assert torch.equal(image, torchvision_view(data.images[0], view))


def test_views_are_uniform_over_all_162():
    data = ImageData(np.zeros((20_000, 1, 1, 3), np.uint8), np.zeros(20_000, np.int64))
    _, views = loader(data)._order_and_views()
    counts = torch.bincount(views, minlength=VIEWS)
    assert len(counts) == VIEWS
    # chi-squared with 161 degrees of freedom: 5 standard deviations
    expected = len(views) / VIEWS
    assert ((counts - expected) ** 2 / expected).sum() < VIEWS - 1 + 5 * (2 * (VIEWS - 1)) ** 0.5


def test_test_batches_are_in_order_and_unchanged():
    data = some_images()
    batches = list(loader(data, train=False))
    assert torch.equal(torch.cat([batch.index for batch in batches]), torch.arange(50))
    plain = [functional.normalize(functional.to_tensor(image), MEAN, STD) for image in data.images]
    assert torch.equal(torch.cat([batch.images for batch in batches]), torch.stack(plain))


def test_an_epoch_meets_every_image_once_and_keeps_the_short_batch():
    training = loader(some_images())
    batches = list(training)
    assert [len(batch.target) for batch in batches] == [16, 16, 16, 2]
    assert len(training) == 4
    index = torch.cat([batch.index for batch in batches])
    assert torch.equal(index.sort().values, torch.arange(50))
    assert torch.equal(torch.cat([batch.target for batch in batches]), training.labels[index])


def test_an_epoch_depends_on_seed_and_epoch_alone():
    def epoch(seed: int, number: int) -> torch.Tensor:
        training = loader(some_images(), seed=seed)
        training.set_epoch(number)
        return torch.cat([torch.stack([batch.index, batch.view]) for batch in training], dim=1)

    again = loader(some_images(), seed=1)
    for number in (1, 2, 3):
        again.set_epoch(number)
        walked = torch.cat([torch.stack([batch.index, batch.view]) for batch in again], dim=1)
        assert torch.equal(walked, epoch(1, number))
    assert not torch.equal(epoch(1, 1), epoch(1, 2))
    assert not torch.equal(epoch(1, 1), epoch(2, 1))


def test_images_are_channels_last():
    batch = next(iter(loader(some_images())))
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_subset_takes_the_first_of_each_class():
    data = ImageData(np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1), np.array([1, 0, 1, 1, 0, 2, 0, 1, 2, 0, 0, 1]))
    part = data.first_of_each_class(2)
    assert part.images.ravel().tolist() == [0, 1, 2, 4, 5, 8]
    assert part.labels.tolist() == [1, 0, 1, 0, 2, 2]
