"""Loaders that keep a whole data set in memory and augment a batch at a time on the device."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing import Self  # of Python 3.11

    from .augment import Augmenter

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
            0 where the loader's views cannot be numbered.
        entry: (B,) number of the pair of image and view, index·V + view with the loader's number of views V, or the
            index where they cannot be numbered; on the CPU, where caches look it up.
        contrast_index: positions of a positive and K negatives (1 + K) for every image of `whole`, where a method asks
            for them.
        strong_images: (B, 3, H, W) strongly augmented views of the same images, like `images`, where it asks for them.
        second_pixels: (B, 3, H, W) uint8, a second crop and flip of the same images, from loaders that can give one
            only together with the first.
        whole: positions of all images of the step. Where several processes share these, the rest of the batch is this
            one's share (see `share_sizes`), which may be empty: then the images of each kind are still one, which does
            not count. By default the batch is the whole.
    """

    images: Tensor
    target: Tensor
    index: Tensor
    view: Tensor
    entry: Tensor
    contrast_index: Tensor | None = None
    strong_images: Tensor | None = None
    second_pixels: Tensor | None = None
    whole: Tensor | None = None

    def __post_init__(self) -> None:
        if self.whole is None:
            self.whole = self.index


@dataclass(frozen=True)
class Share:
    """What one of several processes runs of a step.

    Attributes:
        whole: positions of all images of the step, on the CPU.
        own: those of this process, which may be none.
        placed: `whole` on the device, where batches are made of the share.
    """

    whole: Tensor
    own: Tensor
    placed: Tensor | None = None

    @property
    def run(self) -> Tensor:
        """Positions of the images to make: one that does not count where this process has none."""
        return self.own if len(self.own) else self.whole[:1]

    @property
    def rows(self) -> slice:
        """Where the images `run`, which follow on each other, are in `whole`."""
        first = int((self.whole == self.run[0]).nonzero()[0])
        return slice(first, first + len(self.run))

    @property
    def index(self) -> Tensor:
        """The positions `run` on the device: a part of `placed`."""
        return self.placed if self.own is self.whole else self.placed[self.rows]

    def of(self, batch: Batch) -> Batch:
        """The batch of the images `run`, as a share of the whole one."""
        if self.own is self.whole:
            return batch
        rows = {name: getattr(batch, name)[: len(self.own)] for name in ("target", "index", "view", "entry")}
        return replace(batch, **rows, whole=self.placed)


def send(values: Tensor, device: torch.device) -> Tensor:
    """A copy on a device of a tensor on the CPU, which the host does not wait for; on the CPU, the tensor itself."""
    # CUDA copies while the host goes on from pinned memory alone, which torch keeps until the copy is done
    source = values.pin_memory() if device.type == "cuda" else values
    return source.to(device, non_blocking=True)


def fetch(values: Tensor) -> Callable[[], Tensor]:
    """Begin to copy a tensor to the CPU; the host goes on meanwhile.

    Returns:
        Waits for the copy and gives it.
    """
    if values.device.type != "cuda":
        return values.cpu
    copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(values.device))

    def arrived() -> Tensor:
        done.synchronize()
        return copy

    return arrived


def share_sizes(count: int, processes: int) -> list[int]:
    """How many of `count` consecutive images each process gets, in their order, as `Tensor.tensor_split` cuts."""
    each, more = divmod(count, processes)
    return [each + (number < more) for number in range(processes)]


class Labelled:
    """A split of a data set of which parts can be taken.

    Attributes:
        labels: (N,) int64, 0 to C - 1.
    """

    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, keep: np.ndarray) -> Self:
        """The part at positions (M,), in their order."""
        raise NotImplementedError

    def _rank_in_class(self, key: np.ndarray) -> np.ndarray:
        """How many images of its class come before each image by a key (N,)."""
        order = np.lexsort((key, self.labels))
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order)) - np.searchsorted(self.labels[order], self.labels[order])
        return rank

    def first_of_each_class(self, count: int) -> Self:
        """The first `count` images of each class, in their order."""
        return self.take(np.flatnonzero(self._rank_in_class(np.arange(len(self))) < count))

    def hold_out(self, share: float, seed: int) -> tuple[Self, Self]:
        """Divide the split at random into what remains and what is held out, the same share of each class.

        Args:
            share: of each class that is held out, above 0 and below 1; rounded, but at least one image.
            seed: of the draw; the same arguments give the same parts.

        Raises:
            DataError: a class has fewer than two images.
        """
        sizes = np.bincount(self.labels)
        if (sizes == 1).any():
            raise DataError(f"class {int((sizes == 1).argmax())} has one training image, of which none can be held out")
        rank = self._rank_in_class(np.random.Generator(np.random.PCG64(seed)).random(len(self)))
        held = rank < np.clip(np.rint(share * sizes), 1, sizes - 1)[self.labels]
        return self.take(np.flatnonzero(~held)), self.take(np.flatnonzero(held))


@dataclass
class ImageData(Labelled):
    """One split of a data set, as read.

    Attributes:
        images: (N, H, W, 3) uint8.
        labels: (N,) int64, 0 to C - 1.
    """

    images: np.ndarray
    labels: np.ndarray

    def take(self, keep: np.ndarray) -> ImageData:
        """See `Labelled.take`."""
        return ImageData(self.images[keep], self.labels[keep])


def epoch_generator(
    seed: int, epoch: int, stream: int, device: str | torch.device = "cpu", index: int | None = None
) -> torch.Generator:
    """A generator that depends on nothing but its arguments, so that an epoch is the same in a resumed run.

    Args:
        seed: the run's seed, >= 0.
        epoch: from 1.
        stream: number that keeps the purposes of one epoch apart.
        device: where the numbers are to be drawn.
        index: position of an image, for draws of its own.
    """
    entropy = [seed, epoch, stream, *([] if index is None else [index])]
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state) >> 1)


class Normaliser:
    """Turns uint8 pixels of one size into a network's input, bit for bit as ToTensor and Normalize do.

    Args:
        mean, std: per channel, in units of [0, 1].
        side: height and width of the images.
        device: where they are.
    """

    def __init__(
        self, mean: tuple[float, ...], std: tuple[float, ...], side: tuple[int, int], device: torch.device
    ) -> None:
        self.mean, self.std = (torch.tensor(v, dtype=torch.float32, device=device) for v in (mean, std))
        # one value per number of an image: operations on short inner dimensions are slow
        self.mean_row, self.std_row = (v.repeat(side[0] * side[1]) for v in (self.mean, self.std))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Images (B, 3, H, W), float32, channels last in memory, of uint8 pixels (B, 3, H, W)."""
        rows = pixels.permute(0, 2, 3, 1)
        # divided and not multiplied by reciprocals, for the sake of the last bit
        images = rows.flatten(1).to(torch.float32).div_(255).sub_(self.mean_row).div_(self.std_row)
        return images.view(rows.shape).permute(0, 3, 1, 2)


class Loader:
    """What loaders of images share; the order of an epoch is drawn from (seed, epoch) alone.

    Args:
        labels: (N,) int64.
        side: height and width of the images that it gives.
        mean, std: per channel, in units of [0, 1].
        batch_size: images per batch of all processes together, >= 1.
        device: where the batches are made.
        train: shuffle and augment; otherwise the images come in order and unchanged.
        seed: of order and views.

    Attributes:
        views: number of views V that an image has; None where they cannot be numbered.
        augmenter: see `augment`.
        rank, world: see `shard`.
    """

    views: int | None = None
    augmenter: Augmenter | None = None

    def __init__(
        self,
        labels: np.ndarray,
        side: tuple[int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        batch_size: int,
        device: torch.device,
        train: bool,
        seed: int = 0,
    ):
        self.labels, self.side = torch.from_numpy(labels).to(device), side
        self.normalise = Normaliser(mean, std, side, device)
        self.batch_size, self.device, self.train, self.seed = batch_size, device, train, seed
        self.epoch = 1
        self.rank, self.world = 0, 1

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    @property
    def samples(self) -> int:
        """Number of images N."""
        return len(self.labels)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 1, that the next iteration goes through."""
        self.epoch = epoch

    def shard(self, rank: int, world: int) -> None:
        """From now on give what process `rank`, from 0, of `world` gets.

        Training batches are cut: all processes take the same steps, and their shares in order are the batch of one
        process. Other images are cut once, into a part for each process, which has its own batches.
        """
        self.rank, self.world = rank, world

    def _steps(self, order: Tensor) -> list[Share]:
        """The steps through positions (N,) in the order of one process, which are sent to the device all at once."""
        if not self.train:
            order = order.tensor_split(self.world)[self.rank]
        whole, placed = (positions.split(self.batch_size) for positions in (order, send(order, self.device)))
        shared = self.train and self.world > 1
        own = [step.tensor_split(self.world)[self.rank] for step in whole] if shared else whole
        return [Share(*step) for step in zip(whole, own, placed, strict=True)]

    def augment(self, augmenter: Augmenter) -> None:
        """From now on change training images also by this; their views can then no longer be numbered."""
        self.augmenter, self.views = augmenter, None

    @property
    def shifts(self) -> bool:
        """Whether the crops of small training images begin at random places; rotations take the place of that."""
        return self.augmenter is None or not self.augmenter.rotation

    def _input(self, pixels: Tensor, share: Share, step: int) -> Tensor:
        """The network's input (B, 3, H, W) of uint8 pixels (B, 3, H, W) of a share of the epoch's step."""
        if self.augmenter is None or not self.train:
            return self.normalise(pixels)
        return self.augmenter(pixels, share, self.epoch, step)

    def prepare_second_view(self) -> None:
        """Be told, before the first batch, that a second view of its images will be asked for."""

    def second_view(self, batch: Batch, view: Tensor) -> Tensor:
        """A further crop and flip of the images of a batch.

        Args:
            batch: of this loader.
            view: (B,) their numbers, on the CPU; of use where views can be numbered.

        Returns:
            (B, 3, H, W) uint8 on the device.
        """
        raise NotImplementedError

    def plain(self) -> Self:
        """A loader of all the same images, in order and unaugmented."""
        loader = copy.copy(self)
        loader.train = False
        loader.shard(0, 1)
        return loader


class _Cut(NamedTuple):
    """How the images of a batch are cut out; on the device but for the entries.

    Attributes:
        view, entry: (B,) as in `Batch`.
        beginning: (B,) positions in `MemoryLoader.crops`.
        flipped: (F,) places in the batch of the images that are flipped.
    """

    view: Tensor
    entry: Tensor
    beginning: Tensor
    flipped: Tensor


class MemoryLoader(Loader):
    """Batches of a data set that lies on the device as uint8.

    Training batches follow torchvision's RandomCrop(H, padding=4), RandomHorizontalFlip, ToTensor and Normalize, with
    the same values; order and views of an epoch are drawn from (seed, epoch) alone. The last, short batch is kept.
    What an epoch has drawn is sent to the device before its first batch: no batch waits for a copy.

    Args:
        data: the split.
        mean, std: per channel, in units of [0, 1].
        batch_size: images per batch, >= 1.
        device: where the images lie and the batches are made.
        train: shuffle and augment; otherwise the images come in order and unchanged.
        seed: of order and views.
    """

    views = VIEWS

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
        height, width = images.shape[1:3]
        super().__init__(data.labels, (height, width), mean, std, batch_size, device, train, seed)
        self.padding = CROP_PADDING if train else 0
        margin = (0, 0, self.padding, self.padding, self.padding, self.padding)
        self.images = torch.nn.functional.pad(images, margin).to(device)
        # the crop (H, 3·W) that begins at each pixel of the padded images, as a view: whole rows are copied
        image, row, column, _ = self.images.stride()
        beginnings = (self.images.numel() - (height - 1) * row) // column - width + 1
        self.crops = self.images.as_strided((beginnings, height, column * width), (column, row, 1))
        self.strides = tuple(stride // column for stride in (image, row))

    def _order_and_views(self) -> tuple[Tensor, Tensor]:
        """Positions in the order of the epoch, and the view of every image by position, (N,) each."""
        centre = (self.padding * SHIFTS + self.padding) * 2
        if not self.train:
            return torch.arange(self.samples), torch.full((self.samples,), centre)
        generator = epoch_generator(self.seed, self.epoch, stream=0)
        order = torch.randperm(self.samples, generator=generator)
        views = torch.randint(VIEWS, (self.samples,), generator=generator)
        return order, views if self.shifts else centre + views % 2

    def facts(self) -> dict[str, Any]:
        """What the images of an (index, view) depend on; plain data."""
        content = hashlib.sha256(self.images.cpu().numpy().tobytes()).hexdigest()
        look = {"mean": self.normalise.mean.tolist(), "std": self.normalise.std.tolist()}
        return {"images": content, "shape": list(self.images.shape), "padding": self.padding, **look}

    def batch(self, index: Tensor, view: Tensor) -> Batch:
        """The batch of the given positions (B,) and views (B,), both on the CPU."""
        (cut,) = self._cuts(index, view, [len(index)])
        return self._batch(send(index, self.device), cut, self.normalise(self._pixels(cut)))

    def _batch(self, index: Tensor, cut: _Cut, images: Tensor) -> Batch:
        """The batch of positions (B,), on the device, with what has been made of them."""
        return Batch(images, self.labels[index], index, cut.view, cut.entry)

    def _cuts(self, index: Tensor, view: Tensor, sizes: list[int]) -> Iterator[_Cut]:
        """What batches that follow on each other need, sent to the device together.

        Args:
            index, view: (M,) positions and views of the images of all batches, on the CPU.
            sizes: images of each batch, M in sum.
        """
        image, row = self.strides
        shift = view // 2
        beginning = index * image + shift // SHIFTS * row + shift % SHIFTS
        entry = index * self.views + view if self.views else index
        # found on the CPU: to learn from the device how many they are is to wait for it
        flipped = [part.nonzero().squeeze(1) for part in (view % 2).split(sizes)]
        view, beginning, flips = (send(part, self.device) for part in (view, beginning, torch.cat(flipped)))
        parts = [part.split(sizes) for part in (view, entry, beginning)]
        return map(_Cut, *parts, flips.split([len(part) for part in flipped]))

    def raw(self, index: Tensor, view: Tensor) -> Tensor:
        """The views (B,) of the images at positions (B,), both on the CPU: (B, 3, H, W) uint8, channels last."""
        (cut,) = self._cuts(index, view, [len(index)])
        return self._pixels(cut)

    def _pixels(self, cut: _Cut) -> Tensor:
        """The images of a batch, (B, 3, H, W) uint8, channels last."""
        # index_select and index_copy_ copy blocks, several times as fast as indexing by tensors does
        pixels = self.crops.index_select(0, cut.beginning).unflatten(2, (-1, 3))
        pixels.index_copy_(0, cut.flipped, pixels.index_select(0, cut.flipped).flip(2))
        return pixels.permute(0, 3, 1, 2)

    def second_view(self, batch: Batch, view: Tensor) -> Tensor:
        """See `Loader.second_view`."""
        return self.raw(batch.entry // (self.views or 1), view)

    def pixels(self) -> Tensor:
        """All images of a loader that does not train, (N, 3, H, W) uint8."""
        height, width = (slice(self.padding, self.padding + side) for side in self.side)
        return self.images[:, height, width].permute(0, 3, 1, 2)

    def __iter__(self) -> Iterator[Batch]:
        order, views = self._order_and_views()
        steps = self._steps(order)
        index = torch.cat([step.run for step in steps])
        cuts = self._cuts(index, views[index], [len(step.run) for step in steps])
        for number, (step, cut) in enumerate(zip(steps, cuts, strict=True)):
            images = self._input(self._pixels(cut), step, number)
            yield step.of(self._batch(step.index, cut, images))
