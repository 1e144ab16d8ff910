"""A loader for images that stay on disk: worker processes read, cut and flip them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .images import BadImage, Side, fit_to, read_rgb
from .listing import ImageFiles
from .loader import CROP_PADDING, Batch, DataError, Loader, Share, epoch_generator

PHOTOGRAPH = 64  # pixels: a longer side makes images photographs, which are cut and scaled at random
MARGIN = 256 / 224  # of a photograph before the centre is cut out, to what is cut out

Job = tuple[int, Tensor]  # epoch and positions


class _Reader(torch.utils.data.Dataset):
    """Reads whole batches, in worker processes.

    Args:
        files: the split.
        side: height and width of the images that it gives.
        train: draw views; otherwise the centre is cut out.
        seed: of the views.
        second: give a second view of each image, too.
        shifts: crop small images at random places.
    """

    def __init__(self, files: ImageFiles, side: Side, train: bool, seed: int, second: bool, shifts: bool):
        # only here: what is kept in memory runs without it
        from torchvision.transforms import v2

        self.files, self.side, self.train, self.seed, self.second = files, side, train, seed, second
        photograph = max(side) > PHOTOGRAPH
        small = [v2.RandomCrop(side, padding=CROP_PADDING)] if shifts else []
        crop = [v2.RandomResizedCrop(side, antialias=True)] if photograph else small
        self.conform = not photograph or not train
        self.margin = MARGIN if photograph else 1.0
        self.views = v2.Compose([*crop, v2.RandomHorizontalFlip()])

    def _cut(self, image: Any) -> Any:
        """The centre of an image, without the margin."""
        height, width = self.side
        outer = (round(height * self.margin), round(width * self.margin))
        image = fit_to(image, outer)
        top, left = ((long - short) // 2 for long, short in zip(outer, self.side, strict=True))
        return image.crop((left, top, left + width, top + height))

    def _pixels(self, epoch: int, position: int) -> list[np.ndarray]:
        path = self.files.path(position)
        try:
            image = read_rgb(path)
        except BadImage as bad:
            raise DataError(f"{path} {bad}; it was changed since the run began") from None
        if self.conform:
            image = self._cut(image)
        if not self.train:
            return [np.asarray(image)]
        # transforms draw from torch's own generator, which is the main process's where there are no workers
        with torch.random.fork_rng(devices=[]):
            state = epoch_generator(self.seed, epoch, 4, index=position).initial_seed()
            torch.default_generator.manual_seed(state)
            return [np.asarray(self.views(image)) for _ in range(1 + self.second)]

    def __getitem__(self, job: Job) -> list[Tensor] | str:
        """The views of the images of a job, (B, H, W, 3) uint8 each; the text of what is wrong with a file."""
        epoch, index = job
        try:
            rows = [self._pixels(epoch, position) for position in index.tolist()]
        except DataError as error:  # as text: an exception of a worker arrives with its traceback
            return str(error)
        shape = (0, *self.side, 3)
        views = zip(*rows, strict=True) if rows else [()] * (1 + self.second)
        return [torch.from_numpy(np.stack(view) if view else np.empty(shape, np.uint8)) for view in views]


def _begin_worker(_number: int) -> None:
    """Leave signals to the main process, whose end ends the workers."""
    os.setpgid(0, 0)  # what is sent to the group, by Ctrl-C for instance, does not arrive here
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)


class DiskLoader(Loader):
    """Batches of images that are read from their files as they are needed.

    Photographs, of more than 64 pixels a side, are trained on as is usual on ImageNet: RandomResizedCrop and flip; the
    test takes the centre after scaling to 256/224 of the size. Smaller ones are scaled to the size, padded by 4 and
    cropped, and flipped. What is drawn for an image depends on (seed, epoch, position) alone, whatever the number of
    workers. The views are not of a finite number: `Batch.view` is 0.

    Args:
        files: the split; every file can be read.
        side: height and width of the images that it gives.
        mean, std, batch_size, device, train, seed: see `Loader`.
        workers: processes that read; with 0, this one does.
    """

    def __init__(
        self,
        files: ImageFiles,
        side: Side,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        batch_size: int,
        device: torch.device,
        train: bool,
        seed: int = 0,
        workers: int = 0,
    ):
        super().__init__(files.labels, side, mean, std, batch_size, device, train, seed)
        self.files, self.workers, self.second = files, workers, False
        self.reading: torch.utils.data.DataLoader | None = None

    def plain(self) -> DiskLoader:
        """See `Loader.plain`; it has workers of its own while it is gone through."""
        loader = super().plain()
        loader.reading, loader.second = None, False
        return loader

    def prepare_second_view(self) -> None:
        """See `Loader.prepare_second_view`."""
        self.second, self.reading = True, None

    def second_view(self, batch: Batch, view: Tensor) -> Tensor:
        """See `Loader.second_view`; it was drawn together with the first."""
        return batch.second_pixels

    def pixels(self) -> Tensor:
        """All images of a loader that does not train, (N, 3, H, W) uint8, on the CPU: they must fit into memory."""
        return torch.cat([views[0] for _, views in self._read()]).permute(0, 3, 1, 2)

    def _shares(self) -> list[Share]:
        order = torch.arange(self.samples)
        if self.train:
            generator = epoch_generator(self.seed, self.epoch, stream=0)
            order = torch.randperm(self.samples, generator=generator)
        return self._steps(order)

    def _read(self) -> Iterator[tuple[Share, list[Tensor]]]:
        """Positions and views of the epoch's batches.

        Raises:
            DataError: a file cannot be read, or a worker has died.
        """
        shares = self._shares()
        if self.reading is None:
            self.reading = torch.utils.data.DataLoader(
                _Reader(self.files, self.side, self.train, self.seed, self.second, self.shifts),
                batch_size=None,  # a job is a batch
                sampler=_Jobs(),
                num_workers=self.workers,
                pin_memory=self.device.type == "cuda",
                persistent_workers=self.workers > 0,
                worker_init_fn=_begin_worker,
                generator=torch.Generator(),  # else it takes a number of torch's own
            )
        self.reading.sampler.jobs = [(self.epoch, share.run) for share in shares]
        batches = iter(self.reading)
        for share in shares:
            try:
                views = next(batches)
            except RuntimeError as error:  # of torch: a worker was killed
                raise DataError(f"reading images failed ({str(error).splitlines()[0]}); see --num_workers") from None
            if isinstance(views, str):
                raise DataError(views)
            yield share, views

    def __iter__(self) -> Iterator[Batch]:
        for step, (share, views) in enumerate(self._read()):
            # as bytes to the device: a quarter of what floating-point numbers take
            first, *second = (view.to(self.device, non_blocking=True).permute(0, 3, 1, 2) for view in views)
            place = share.index
            batch = Batch(
                self._input(first, share, step), self.labels[place], place, torch.zeros_like(place), share.run
            )
            batch.second_pixels = second[0] if second else None
            yield share.of(batch)


class _Jobs:
    """The sampler of an epoch: what the main process tells it."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def __iter__(self) -> Iterator[Job]:
        return iter(self.jobs)

    def __len__(self) -> int:
        return len(self.jobs)
