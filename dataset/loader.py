"""Loaders that keep a whole data set in memory and augment a batch at a time on the device."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

CROP_PADDING = 4
SHIFTS = 2 * CROP_PADDING + 1
VIEWS = SHIFTS * SHIFTS * 2  # every offset of the crop, flipped or not


class DataError(Exception):
    """A data set that is absent or malformed; the text says which file and what to do."""


@dataclass
class Batch:
    """What the training loop gets, on the device.

    Attributes:
        images: (B, 3, H, W) float32, normalised, channels last in memory.
        target: (B,) labels.
        index: (B,) positions in the data set.
        view: (B,) number of the crop and flip, 0 to 161: (9·dy + dx)·2 + flip; the centre crop where nothing is drawn.
        entry: (B,) number of the pair of image and view, index·162 + view; on the CPU, where caches look it up.
        contrast_index: positions of a positive and K negatives (1 + K) for every image of `whole`, where a method asks
            for them.
        strong_images: (B, 3, H, W) strongly augmented views of the same images, like `images`, where it asks for them.
        whole: positions of all images of the step. Where several processes share these, the rest of the batch is this
            one's share (see `share_sizes`), which may be empty: then `images` and `strong_images` still have one image,
            which does not count. By default the batch is the whole.
    """

    images: Tensor
    target: Tensor
    index: Tensor
    view: Tensor
    entry: Tensor
    contrast_index: Tensor | None = None
    strong_images: Tensor | None = None
    whole: Tensor | None = None

    def __post_init__(self) -> None:
        if self.whole is None:
            self.whole = self.index


def share_sizes(count: int, processes: int) -> list[int]:
    """How many of `count` consecutive images each process gets, in their order, as `Tensor.tensor_split` cuts."""
    each, more = divmod(count, processes)
    return [each + (number < more) for number in range(processes)]


@dataclass
class ImageData:
    """One split of a data set, as read.

    Attributes:
        images: (N, H, W, 3) uint8.
        labels: (N,) int64, 0 to C - 1.
    """

    images: np.ndarray
    labels: np.ndarray

    def first_of_each_class(self, count: int) -> ImageData:
        """The first `count` images of each class, in their order."""
        order = np.argsort(self.labels, kind="stable")
        starts = np.searchsorted(self.labels[order], self.labels[order])
        keep = np.sort(order[np.arange(len(order)) - starts < count])
        return ImageData(self.images[keep], self.labels[keep])


def epoch_generator(seed: int, epoch: int, stream: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator that depends on nothing but its arguments, so that an epoch is the same in a resumed run.

    Args:
        seed: the run's seed, >= 0.
        epoch: from 1.
        stream: number that keeps the purposes of one epoch apart.
        device: where the numbers are to be drawn.
    """
    state = np.random.SeedSequence([seed, epoch, stream]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state) >> 1)


class MemoryLoader:
    """Batches of a data set that lies on the device as uint8.

    Training batches follow torchvision's RandomCrop(H, padding=4), RandomHorizontalFlip, ToTensor and Normalize, with
    the same values; order and views of an epoch are drawn from (seed, epoch) alone. The last, short batch is kept.

    Args:
        data: the split.
        mean, std: per channel, in units of [0, 1].
        batch_size: images per batch, >= 1.
        device: where the images lie and the batches are made.
        train: shuffle and augment; otherwise the images come in order and unchanged.
        seed: of order and views.
    """

    def __init__(
        self,
        data: ImageData,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        batch_size: int,
        device: torch.device,
        train: bool,
        seed: int = 0,
    ):
        images = torch.from_numpy(data.images)
        self.labels = torch.from_numpy(data.labels).to(device)
        self.padding = CROP_PADDING if train else 0
        margin = (0, 0, self.padding, self.padding, self.padding, self.padding)
        self.images = torch.nn.functional.pad(images, margin).to(device)
        self.side = height, width = images.shape[1:3]
        # the crop (H, 3·W) that begins at each pixel of the padded images, as a view: whole rows are copied
        image, row, column, _ = self.images.stride()
        beginnings = (self.images.numel() - (height - 1) * row) // column - width + 1
        self.crops = self.images.as_strided((beginnings, height, column * width), (column, row, 1))
        self.strides = tuple(stride // column for stride in (image, row))
        self.mean, self.std = (torch.tensor(v, dtype=torch.float32, device=device) for v in (mean, std))
        # one value per number of an image: operations on short inner dimensions are slow
        self.mean_row, self.std_row = (v.repeat(height * width) for v in (self.mean, self.std))
        self.batch_size, self.device, self.train, self.seed = batch_size, device, train, seed
        self.epoch = 1
        self.shard(0, 1)

    def shard(self, rank: int, world: int) -> None:
        """From now on give what process `rank`, from 0, of `world` gets.

        Training batches are cut: all processes take the same steps, and their shares in order are the batch of one
        process. Other images are cut once, into a part for each process, which has its own batches.
        """
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    @property
    def samples(self) -> int:
        """Number of images N."""
        return len(self.labels)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 1, that the next iteration goes through."""
        self.epoch = epoch

    def plain(self) -> MemoryLoader:
        """A loader of all the same images, in order and unaugmented."""
        loader = copy.copy(self)
        loader.train = False
        loader.shard(0, 1)
        return loader

    def _order_and_views(self) -> tuple[Tensor, Tensor]:
        """Positions in the order of the epoch, and the view of every image by position, (N,) each."""
        if not self.train:
            centre = (self.padding * SHIFTS + self.padding) * 2
            return torch.arange(self.samples), torch.full((self.samples,), centre)
        generator = epoch_generator(self.seed, self.epoch, stream=0)
        order = torch.randperm(self.samples, generator=generator)
        return order, torch.randint(VIEWS, (self.samples,), generator=generator)

    def facts(self) -> dict[str, Any]:
        """What the images of an (index, view) depend on; plain data."""
        content = hashlib.sha256(self.images.cpu().numpy().tobytes()).hexdigest()
        look = {"mean": self.mean.tolist(), "std": self.std.tolist()}
        return {"images": content, "shape": list(self.images.shape), "padding": self.padding, **look}

    def batch(self, index: Tensor, view: Tensor) -> Batch:
        """The batch of the given positions (B,) and views (B,), both on the CPU."""
        images = self.normalise(self.raw(index, view))
        entry = index * VIEWS + view
        index = index.to(self.device)
        return Batch(images, self.labels[index], index, view.to(self.device), entry)

    def raw(self, index: Tensor, view: Tensor) -> Tensor:
        """The views (B,) of the images at positions (B,), both on the CPU: (B, 3, H, W) uint8, channels last."""
        shift, flipped = view // 2, (view % 2).nonzero().squeeze(1).to(self.device)
        image, row = self.strides
        beginning = index * image + shift // SHIFTS * row + shift % SHIFTS
        # index_select and index_copy_ copy blocks, several times as fast as indexing by tensors does
        pixels = self.crops.index_select(0, beginning.to(self.device)).unflatten(2, (-1, 3))
        pixels.index_copy_(0, flipped, pixels.index_select(0, flipped).flip(2))
        return pixels.permute(0, 3, 1, 2)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Images (B, 3, H, W), float32, channels last in memory, of uint8 pixels of this loader's size."""
        rows = pixels.permute(0, 2, 3, 1)
        # divided and not multiplied by reciprocals: bit for bit what ToTensor and Normalize give
        images = rows.flatten(1).to(torch.float32).div_(255).sub_(self.mean_row).div_(self.std_row)
        return images.view(rows.shape).permute(0, 3, 1, 2)

    def __iter__(self) -> Iterator[Batch]:
        order, views = self._order_and_views()
        if not self.train:
            order = order.tensor_split(self.world)[self.rank]
        for whole in order.split(self.batch_size):
            yield self._share(whole, views) if self.train and self.world > 1 else self.batch(whole, views[whole])

    def _share(self, whole: Tensor, views: Tensor) -> Batch:
        """This process's share of the batch at positions `whole`."""
        index = whole.tensor_split(self.world)[self.rank]
        ran = index if len(index) else whole[:1]
        batch = self.batch(ran, views[ran])
        if not len(index):
            batch = Batch(batch.images, batch.target[:0], batch.index[:0], batch.view[:0], batch.entry[:0])
        batch.whole = whole.to(self.device)
        return batch
