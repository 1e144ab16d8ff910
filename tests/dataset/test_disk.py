"""The loader of images that stay on disk: what an epoch depends on, its views, and what wraps it."""

import os
import signal

import numpy as np
import pytest
import torch
from image_trees import make_folder, picture
from PIL import Image
from torchvision.transforms import functional

from dataset import ContrastLoader, ContrastSampler, DataError, DiskLoader, MemoryLoader, StrongLoader
from dataset import folder as folder_set
from dataset.augment import Augmenter
from dataset.disk import _Reader
from dataset.images import fit_to
from dataset.loader import ImageData
from helper.errors import Interrupted, run_command

CPU = torch.device("cpu")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """18 small pictures of 3 classes."""
    return folder_set.splits(make_folder(tmp_path_factory.mktemp("small")))[0]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """9 photographs of 3 classes."""
    root = make_folder(tmp_path_factory.mktemp("large"), train=3, side=(100, 140), ending=".jpg")
    return folder_set.splits(root)[0]


def loader(files, side=(16, 16), train=True, workers=0, seed=0, batch_size=4):
    return DiskLoader(files, side, MEAN, STD, batch_size, CPU, train, seed, workers)


def walk(loading, epoch):
    loading.set_epoch(epoch)
    return [(batch.index, batch.images) for batch in loading]


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)
    )


def test_an_epoch_depends_on_seed_and_epoch_alone_and_not_on_the_workers(files):
    again = loader(files, workers=2, seed=1)
    walked = [walk(again, epoch) for epoch in (1, 2, 3)]
    for epoch in (3, 1):
        assert same(walked[epoch - 1], walk(loader(files, seed=1), epoch))
    assert not same(walked[0], walked[1])
    assert not same(walked[0], walk(loader(files, seed=2), 1))


def test_a_stopped_epoch_leaves_no_trace(files):
    for workers in (0, 1):
        stopped = loader(files, workers=workers)
        next(iter(stopped))
        assert same(walk(stopped, 2), walk(loader(files), 2))


def test_rotations_take_the_place_of_shifts(files):
    turned = loader(files)
    turned.augment(Augmenter(0, 0, turned.normalise, 0, rotation=1e-6))
    (whole,) = [batch.images for batch in loader(files, train=False, batch_size=len(files))]
    flips = 0
    for index, images in walk(turned, 1):
        for position, image in zip(index, images, strict=True):
            flipped = torch.equal(image, whole[position].flip(2))
            assert flipped or torch.equal(image, whole[position])
            flips += flipped
    assert 0 < flips < len(files)


def test_random_numbers_of_the_process_are_left_alone(files):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(loader(files))
    assert torch.equal(torch.rand(1), expected)


def test_an_epoch_meets_every_image_once_and_keeps_the_short_batch(files):
    training = loader(files)
    batches = list(training)
    assert [len(batch.target) for batch in batches] == [4, 4, 4, 4, 2]
    assert len(training) == 5
    index = torch.cat([batch.index for batch in batches])
    assert torch.equal(index.sort().values, torch.arange(18))
    assert torch.equal(torch.cat([batch.target for batch in batches]), training.labels[index])
    assert torch.equal(torch.cat([batch.entry for batch in batches]), index)
    assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in batches)


def test_order_is_that_of_the_memory_loader(files):
    data = ImageData(np.zeros((18, 16, 16, 3), np.uint8), files.labels)
    memory = MemoryLoader(data, MEAN, STD, 4, CPU, train=True, seed=5)
    memory.set_epoch(3)
    disk = walk(loader(files, seed=5), 3)
    assert all(torch.equal(batch.index, index) for batch, (index, _) in zip(memory, disk, strict=True))


@pytest.mark.parametrize("world", [2, 3, 5])
def test_shards_are_the_parts_of_the_batches(files, world):
    """A process that has none of a last batch still gets an image of it, which has no label."""
    shards = [loader(files, workers=rank % 2) for rank in range(world)]
    for rank, part in enumerate(shards):
        part.shard(rank, world)
        part.set_epoch(2)
    for (index, images), *batches in zip(walk(loader(files), 2), *shards, strict=True):
        assert torch.equal(torch.cat([batch.index for batch in batches]), index)
        assert torch.equal(torch.cat([batch.images[: len(batch.target)] for batch in batches]), images)
        assert [len(batch.target) for batch in batches] == [len(part) for part in index.tensor_split(world)]
        assert all(len(batch.images) and torch.equal(batch.whole, index) for batch in batches)


@pytest.mark.parametrize("world", [2, 3])
def test_test_images_are_cut_once(files, world):
    shards = [loader(files).plain() for _ in range(world)]
    found = []
    for rank, part in enumerate(shards):
        part.shard(rank, world)
        found += [batch.index for batch in part]
    assert torch.equal(torch.cat(found), torch.arange(shards[0].samples))


def test_small_pictures_are_padded_cropped_and_flipped(files):
    for batch in loader(files):
        for image, position in zip(batch.images, batch.index.tolist(), strict=True):
            padded = functional.pad(Image.fromarray(picture(position + 1)), 4)
            views = [functional.crop(padded, top, left, 16, 16) for top in range(9) for left in range(9)]
            views += [functional.hflip(view) for view in views]
            expected = (functional.normalize(functional.to_tensor(view), MEAN, STD) for view in views)
            assert any(torch.equal(image, view) for view in expected)


def test_photographs_are_cut_at_random_and_tested_at_their_centre(photographs):
    train = torch.cat([batch.images for batch in loader(photographs, (70, 70))])
    again = torch.cat([images for _, images in walk(loader(photographs, (70, 70)), 2)])
    assert train.shape == (9, 3, 70, 70)
    assert not torch.equal(train, again)
    plain = loader(photographs, (70, 70)).plain()
    assert not plain.train
    found = torch.cat([batch.images for batch in plain])
    for position, image in enumerate(found):
        with Image.open(photographs.path(position)) as stored:
            outer = fit_to(stored, (80, 80))  # 70 · 256 / 224
        expected = functional.center_crop(outer, 70)
        assert torch.equal(image, functional.normalize(functional.to_tensor(expected), MEAN, STD))
    assert torch.equal(plain.normalise(plain.pixels()), found)


def test_strong_views_are_of_the_same_images_and_drawn_alike_by_workers(files):
    def epoch(workers):
        strong = StrongLoader(loader(files, workers=workers), operations=0, hole=0)
        strong.set_epoch(2)
        return list(strong)

    first, second = epoch(0), epoch(2)
    plain = walk(loader(files), 2)
    for one, other, (_, images) in zip(first, second, plain, strict=True):
        assert torch.equal(one.strong_images, other.strong_images)
        assert torch.equal(one.images, images)  # the first view is what it is without a second one
        assert not torch.equal(one.images, one.strong_images)
        assert one.strong_images.is_contiguous(memory_format=torch.channels_last)
    # another crop of the same picture: the middle that nearly all crops share has about the same colours
    for batch in first:
        colours = [view[..., 4:12, 4:12].mean((2, 3)) for view in (batch.images, batch.strong_images)]
        assert (colours[0] - colours[1]).abs().mean() < 0.5


def test_strong_and_contrastive_views_go_together(files):
    training = loader(files, workers=1)
    wrapped = StrongLoader(ContrastLoader(training, ContrastSampler(training.labels, 5)))
    batch = next(iter(wrapped))
    assert batch.contrast_index.shape == (4, 6)
    assert (training.labels[batch.contrast_index[:, 1:]] != batch.target[:, None]).all()
    assert batch.strong_images.shape == (4, 3, 16, 16)
    assert batch.strong_images.isfinite().all()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_is_changed_meanwhile_stops_the_run(tmp_path, workers):
    files = folder_set.splits(make_folder(tmp_path))[0]
    (tmp_path / "train" / "bee" / "003.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"003\.png is empty; it was changed since the run began"):
        list(loader(files, workers=workers))


@pytest.mark.parametrize("interrupted", [True, False])
def test_a_signal_to_main_process_and_workers_is_one_line(interrupted, capsys):
    def main():
        try:
            raise Interrupted(signal.SIGTERM) if interrupted else KeyError
        except BaseException:
            raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")  # noqa: B904

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    code = run_command(main)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert code == (143 if interrupted else 3)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("stopped by SIGTERM" if interrupted else "error: DataLoader worker")


def test_a_killed_worker_stops_the_run(files, monkeypatch):
    monkeypatch.setattr(_Reader, "__getitem__", lambda self, job: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(DataError, match=r"reading images failed .*--num_workers"):
        list(loader(files, workers=1))
