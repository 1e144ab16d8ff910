"""Positives and negatives for contrastive methods."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .loader import Batch, Loader, epoch_generator


class ContrastSampler:
    """Draws, for a whole batch at once, one positive and K negatives per sample.

    Negatives are images of other classes, without replacement where every class leaves at least K of them (as in
    RepDistiller's CIFAR100InstanceSample), with replacement otherwise. Classes may be of any size.

    Args:
        labels: (N,) labels of the training set, on the device where the numbers are to be drawn.
        negatives: K >= 1.
        positives: `exact`, the sample itself, or `relax`, any image of its class.

    Raises:
        ValueError: there is only one class.
    """

    def __init__(self, labels: Tensor, negatives: int, positives: str = "exact"):
        self.labels, self.negatives, self.positives = labels, negatives, positives
        # positions grouped by class: class c is by_class[start[c] : start[c] + size[c]]
        self.by_class = labels.argsort(stable=True)
        self.size = torch.bincount(labels)
        self.start = self.size.cumsum(0) - self.size
        fewest = len(labels) - int(self.size.max())
        if fewest == 0:
            raise ValueError("all training images are of one class, so there are no negatives")
        self.replacement = negatives > fewest

    def _negatives(self, target: Tensor, generator: torch.Generator) -> Tensor:
        count, device = len(self.labels), target.device
        if self.replacement:
            others = (count - self.size[target])[:, None]
            draw = torch.rand(len(target), self.negatives, generator=generator, device=device)
            place = (draw * others).long().clamp_(max=others - 1)
            place += torch.where(place >= self.start[target][:, None], self.size[target][:, None], 0)
            return self.by_class[place]
        # the K largest of independent keys are a uniform draw without replacement
        keys = torch.rand(len(target), count, generator=generator, device=device)
        keys.masked_fill_(self.labels == target[:, None], -1.0)
        return keys.topk(self.negatives, dim=1, sorted=False).indices

    def draw(self, index: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
        """Positions in the training set, (B, 1 + K), the positive in column 0.

        Args:
            index: positions of the samples (B,).
            target: their labels (B,).
            generator: on the device of the labels.
        """
        positive = index
        if self.positives == "relax":
            draw = torch.rand(len(target), generator=generator, device=target.device)
            offset = (draw * self.size[target]).long().clamp_(max=self.size[target] - 1)
            positive = self.by_class[self.start[target] + offset]
        return torch.cat([positive[:, None], self._negatives(target, generator)], dim=1)


class ContrastLoader:
    """A loader whose batches carry `contrast_index`, drawn from (seed, epoch) alone.

    Args:
        loader: the loader to wrap.
        sampler: what draws.
    """

    def __init__(self, loader: Loader, sampler: ContrastSampler):
        self.loader, self.sampler = loader, sampler
        self.samples, self.batch_size, self.device = loader.samples, loader.batch_size, loader.device

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 1, that the next iteration goes through."""
        self.loader.set_epoch(epoch)

    def shard(self, rank: int, world: int) -> None:
        """From now on give what process `rank` of `world` gets, see `Loader.shard`."""
        self.loader.shard(rank, world)

    def __iter__(self) -> Iterator[Batch]:
        generator = epoch_generator(self.loader.seed, self.loader.epoch, stream=1, device=self.device)
        for batch in self.loader:
            # for the whole batch, by every process alike
            batch.contrast_index = self.sampler.draw(batch.whole, self.sampler.labels[batch.whole], generator)
            yield batch
