"""The in-memory loader against torchvision's transforms, what an epoch depends on, what loaders send to a device."""

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from device_copies import META, copies_to_meta
from image_trees import make_folder
from torchvision.transforms import functional

from dataset import Batch, DiskLoader, StrongLoader, folder
from dataset.augment import Augmenter
from dataset.cifar100 import MEAN, STD
from dataset.loader import VIEWS, ImageData, MemoryLoader, epoch_generator, fetch, send
from distiller_zoo import Needs
from helper.precision import Precision
from helper.teacher import Teacher
from helper.teacher_cache import LogitCache, cache_facts
from models import model_dict

CPU = torch.device("cpu")


def copies_by_batch(batches: Iterable[Batch]) -> list[list[bool]]:
    """What `copies_to_meta` records of each batch, that before the first among the first's."""
    found, seen = [], 0
    with copies_to_meta() as copies:
        for _ in batches:
            found.append(copies[seen:])
            seen = len(copies)
    return found


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


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("world", [1, 3])
def test_what_an_epoch_needs_is_sent_before_its_first_batch(train: bool, world: int):
    resident = MemoryLoader(some_images(), MEAN, STD, 8, META, train)
    resident.shard(0, world)
    for _ in range(2):
        first, *later = copies_by_batch(resident)
        assert first == [True] * 4  # positions, views, beginnings of crops, flips
        assert later == [[]] * (6 if train or world == 1 else 2)


@pytest.mark.parametrize("world", [1, 3])
def test_of_batches_from_disk_the_pixels_alone_are_sent(tmp_path: Path, world: int):
    reading = DiskLoader(folder.splits(make_folder(tmp_path))[0], (16, 16), MEAN, STD, 4, META, train=True)
    reading.shard(0, world)
    assert copies_by_batch(reading) == [[True, True], [True], [True], [True], [True]]


def changed(kind: str) -> MemoryLoader | StrongLoader:
    """A loader whose images are changed by numbers that are drawn on the CPU."""
    resident = MemoryLoader(some_images(), MEAN, STD, 16, META, train=True)
    if kind == "strong":
        return StrongLoader(resident)
    augmenter = Augmenter(9, 0, loader(some_images()).normalise, 0, rotation=15)  # it reads the mean
    augmenter.normalise = resident.normalise
    resident.augment(augmenter)
    return resident


@pytest.mark.parametrize("kind", ["strong", "augmented"])
def test_what_is_drawn_for_a_batch_is_not_waited_for(kind: str):
    for copies in copies_by_batch(changed(kind)):
        assert copies
        assert all(copies)


def test_pinned_memory_is_what_is_sent_to_cuda(monkeypatch: pytest.MonkeyPatch):
    """Without CUDA: what the tensor is asked for."""
    asked = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: asked.append("pinned") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, **how: asked.append((device, how)) or self)
    values = torch.arange(3)
    for device in (torch.device("cuda"), CPU):
        assert send(values, device) is values
    how = {"non_blocking": True}
    assert asked == ["pinned", (torch.device("cuda"), how), (CPU, how)]


def test_what_is_fetched_from_cuda_is_waited_for_when_it_is_used(monkeypatch: pytest.MonkeyPatch):
    """Without CUDA: tensors and events that write down what happens to them."""
    happened = []
    copy = SimpleNamespace(copy_=lambda values, **how: happened.append(("copy", values, how)) or copy)
    event = SimpleNamespace(
        record=lambda stream: happened.append(("record", stream)), synchronize=lambda: happened.append("wait")
    )
    monkeypatch.setattr(
        torch, "empty", lambda shape, dtype, pin_memory: happened.append((shape, dtype, pin_memory)) or copy
    )
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: device.index)
    values = SimpleNamespace(device=torch.device("cuda:1"), shape=(2, 3), dtype=torch.float16)
    arrived = fetch(values)
    assert happened == [((2, 3), torch.float16, True), ("copy", values, {"non_blocking": True}), ("record", 1)]
    assert arrived() is copy
    assert happened[3:] == ["wait"]
    assert torch.equal(fetch(torch.arange(3))(), torch.arange(3))


def test_precision_and_cache_leave_the_images_and_their_order_alone(tmp_path: Path):
    torch.manual_seed(0)
    network, data = model_dict["resnet8"](num_classes=5), some_images()

    def places(batches: Iterable[Batch]) -> list[list[list[int]]]:
        return [[part.tolist() for part in (batch.index, batch.view, batch.entry)] for batch in batches]

    def epochs(dtype: torch.dtype, cached: bool) -> list[list[list[int]]]:
        training, precision = loader(data, batch_size=4), Precision(CPU, dtype)
        facts = cache_facts(network, training, precision)
        cache = LogitCache(tmp_path, facts, training.samples, VIEWS, 5) if cached else None
        teacher, found = Teacher(network, Needs(), precision, cache=cache), []
        for epoch in (1, 2, 1):
            training.set_epoch(epoch)
            found += places(batch for batch, _ in teacher.answers(training))
        return found

    expected = epochs(torch.float32, cached=False)
    assert len(expected) == 3 * 13
    assert expected[:13] == expected[26:] == places(loader(data, batch_size=4))
    assert expected[:13] != expected[13:26]
    for dtype, cached in ((torch.float32, True), (torch.bfloat16, False), (torch.bfloat16, True)):
        assert epochs(dtype, cached) == expected


def test_generators_of_other_seeds_epochs_purposes_and_images_are_others():
    given = [(0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 1, 1), (1, 0, 1), (0, 0, 1)]
    seeds = {epoch_generator(*numbers).initial_seed() for numbers in given}
    seeds |= {epoch_generator(0, 1, 0, index=index).initial_seed() for index in (1, 2)}
    assert len(seeds) == len(given) + 2
    assert epoch_generator(3, 4, 5, index=6).initial_seed() == epoch_generator(3, 4, 5, index=6).initial_seed()
