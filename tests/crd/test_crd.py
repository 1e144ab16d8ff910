"""CRD's memory against RepDistiller's way of scoring, written out."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from crd import ContrastMemory, CRDLoss
from crd.memory import machine_memory


def some_memory(seed: int = 0, n_data: int = 40, dim: int = 8) -> ContrastMemory:
    torch.manual_seed(seed)
    return ContrastMemory(dim, n_data, temperature=0.1, momentum=0.5).double()


def some_batch(memory: ContrastMemory, batch: int = 6, negatives: int = 9):
    n_data, dim = memory.memory_v1.shape
    v1, v2 = (F.normalize(torch.randn(batch, dim, dtype=torch.float64)) for _ in "12")
    idx = torch.randperm(n_data)[:batch]
    contrast = torch.cat([idx[:, None], torch.randint(n_data, (batch, negatives))], dim=1)
    return v1, v2, idx, contrast


def test_scores_by_loops_and_z_from_the_first_batch():
    memory = some_memory()
    before = memory.memory_v2.clone()
    v1, v2, idx, contrast = some_batch(memory)
    literal = torch.tensor(
        [[float(torch.exp(v @ before[j] / 0.1)) for j in row] for v, row in zip(v1, contrast, strict=True)],
        dtype=torch.float64,
    )
    Z = literal.mean() * len(before)
    out, _ = memory(v1, v2, idx, contrast)
    assert torch.allclose(out[..., 0], literal / Z)
    assert torch.isclose(memory.Z_v1, Z)
    memory(*some_batch(memory))
    assert torch.isclose(memory.Z_v1, Z), "Z stays what the first batch made it"


def test_only_the_batch_moves_and_stays_on_the_sphere():
    memory = some_memory()
    before = memory.memory_v1.clone()
    v1, v2, idx, contrast = some_batch(memory)
    memory(v1, v2, idx, contrast)
    others = torch.ones(len(before), dtype=torch.bool)
    others[idx] = False
    assert torch.equal(memory.memory_v1[others], before[others])
    for v, row, old in zip(v1, idx, before[idx], strict=True):
        mixed = 0.5 * old + 0.5 * v
        assert torch.allclose(memory.memory_v1[row], mixed / mixed.norm())


def test_memory_starts_in_the_published_range_and_is_part_of_the_state():
    memory = some_memory(n_data=500)
    bound = (3 / 8) ** 0.5
    assert memory.memory_v1.abs().max() <= bound
    assert memory.memory_v1.abs().max() > 0.99 * bound
    assert set(memory.state_dict()) == {"memory_v1", "memory_v2", "Z_v1", "Z_v2"}


def test_a_data_set_that_does_not_fit_is_refused_with_its_size(monkeypatch):
    monkeypatch.setattr("crd.memory.machine_memory", lambda: 2**30)
    with pytest.raises(ValueError, match=r"memory of 2000000 images takes 1.9 GiB, but this machine has 1.0 GiB"):
        ContrastMemory(128, 2_000_000)
    assert machine_memory() is None or machine_memory() > 2**20


def test_loss_takes_maps_flattened():
    opt = SimpleNamespace(s_dim=12, t_dim=6, feat_dim=4, n_data=20, nce_t=0.07, nce_m=0.5)
    loss = CRDLoss(opt)
    f_s = torch.randn(3, 3, 2, 2, requires_grad=True)
    value = loss(f_s, torch.randn(3, 6), torch.tensor([0, 5, 7]), torch.randint(20, (3, 8)))
    value.backward()
    assert value.isfinite()
    assert f_s.grad.abs().sum() > 0
