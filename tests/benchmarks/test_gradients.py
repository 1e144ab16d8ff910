"""What the comparison of gradients says of errors with and without a direction."""

import pytest
import torch

from benchmarks.gradients import Figures, Sums

BATCHES = 400


@pytest.mark.parametrize("factor", [1.0, 0.9])
def test_errors_with_and_without_a_direction(factor):
    draw = torch.Generator().manual_seed(0)
    gradient, sums = torch.randn(1000, generator=draw), Sums.zeros(torch.Size([1000]))
    for _ in range(BATCHES):
        of_batch = gradient + 2 * torch.randn(1000, generator=draw)
        error = 0.1 * of_batch.norm() / 1000**0.5 * torch.randn(1000, generator=draw)
        sums.add(factor * of_batch + error, of_batch)
    found = Figures.of(sums)
    assert found.slope == pytest.approx(factor, abs=0.01)
    assert found.batches == pytest.approx((4 / 5) ** 0.5, abs=0.02)
    assert found.rounding == pytest.approx((0.01 + (1 - factor) ** 2) ** 0.5, rel=0.05)
    assert found.left == pytest.approx(1.0, abs=0.1) if factor == 1 else found.left > 5
