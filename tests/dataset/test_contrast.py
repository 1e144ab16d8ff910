"""Positives and negatives of contrastive methods."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset import ContrastLoader, ContrastSampler, ImageData, MemoryLoader


@st.composite
def label_sets(draw):
    sizes = draw(st.lists(st.integers(1, 12), min_size=2, max_size=5))
    labels = torch.cat([torch.full((size,), c) for c, size in enumerate(sizes)])
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    return labels[torch.randperm(len(labels), generator=generator)]


@settings(deadline=None, max_examples=60)
@given(label_sets(), st.integers(1, 40), st.sampled_from(["exact", "relax"]), st.integers(0, 100))
def test_draws_are_of_the_right_classes(labels, k, positives, seed):
    sampler = ContrastSampler(labels, k, positives)
    index = torch.arange(len(labels))
    drawn = sampler.draw(index, labels, torch.Generator().manual_seed(seed))
    assert drawn.shape == (len(labels), 1 + k)
    assert (labels[drawn[:, 0]] == labels).all()
    assert (labels[drawn[:, 1:]] != labels[:, None]).all()
    if positives == "exact":
        assert torch.equal(drawn[:, 0], index)
    fewest = min(int((labels != c).sum()) for c in labels.unique())
    if k <= fewest:
        assert all(len(row.unique()) == k for row in drawn[:, 1:])


@pytest.mark.parametrize("k", [3, 9])
def test_every_other_image_is_equally_likely(k):
    """k = 3 draws without replacement from 4 to 6 others, k = 9 with replacement."""
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    sampler = ContrastSampler(labels, k)
    target = torch.zeros(4000, dtype=torch.int64)
    drawn = sampler.draw(target, target, torch.Generator().manual_seed(0))[:, 1:]
    counts = torch.bincount(drawn.flatten(), minlength=8)[4:].float()
    assert (counts / counts.mean() - 1).abs().max() < 0.05


def test_relaxed_positives_cover_the_class():
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    target = torch.ones(3000, dtype=torch.int64)
    drawn = ContrastSampler(labels, 1, "relax").draw(target, target, torch.Generator().manual_seed(0))[:, 0]
    counts = torch.bincount(drawn, minlength=6)
    assert counts[::2].sum() == 0
    assert (counts[1::2] / 1000 - 1).abs().max() < 0.1


def test_one_class_has_no_negatives():
    with pytest.raises(ValueError, match="one class"):
        ContrastSampler(torch.zeros(5, dtype=torch.int64), 2)


def test_the_loader_draws_from_seed_and_epoch_alone():
    data = ImageData(np.zeros((20, 4, 4, 3), np.uint8), np.arange(20) % 4)

    def epoch(number: int) -> torch.Tensor:
        inner = MemoryLoader(data, (0, 0, 0), (1, 1, 1), 8, torch.device("cpu"), train=True, seed=3)
        loader = ContrastLoader(inner, ContrastSampler(inner.labels, 5))
        loader.set_epoch(number)
        return torch.cat([batch.contrast_index for batch in loader])

    assert torch.equal(epoch(2), epoch(2))
    assert not torch.equal(epoch(1), epoch(2))
