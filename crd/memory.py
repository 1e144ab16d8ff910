"""The memory bank of CRD (Tian, Krishnan and Isola, ICLR 2020, arXiv 1910.10699, section 3 and appendix)."""

from __future__ import annotations

import math
import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def machine_memory() -> int | None:
    """Bytes of the machine's memory, None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not a POSIX system
        return None


class ContrastMemory(nn.Module):
    """One embedding of every training image per network, and the scores of new embeddings against them.

    The normalising constants Z are fixed by the first batch: Z = n_data · mean(exp(score/T)).

    Args:
        feat_dim: length D of an embedding.
        n_data: number of training images N.
        temperature: T of the scores, > 0.
        momentum: share of the old embedding in an update, in [0, 1].

    Raises:
        ValueError: the embeddings, two of 4·n_data·feat_dim bytes, do not fit the machine's memory.
    """

    def __init__(self, feat_dim: int, n_data: int, temperature: float = 0.07, momentum: float = 0.5):
        super().__init__()
        self.temperature, self.momentum = temperature, momentum
        size, limit = 2 * n_data * feat_dim * torch.finfo(torch.float32).bits // 8, machine_memory()
        if limit is not None and size > limit:
            raise ValueError(
                f"the memory of {n_data} images takes {size / 2**30:.1f} GiB, but this machine has "
                f"{limit / 2**30:.1f} GiB: lower --feat_dim or train on fewer images"
            )
        bound = 1.0 / math.sqrt(feat_dim / 3)
        self.register_buffer("memory_v1", torch.empty(n_data, feat_dim).uniform_(-bound, bound))
        self.register_buffer("memory_v2", torch.empty(n_data, feat_dim).uniform_(-bound, bound))
        # negative: not fixed yet
        self.register_buffer("Z_v1", torch.tensor(-1.0))
        self.register_buffer("Z_v2", torch.tensor(-1.0))

    def _score(self, v: Tensor, memory: Tensor, Z: Tensor, contrast_idx: Tensor) -> Tensor:
        # One product with the whole memory and a gather of B·(K+1) numbers: the B·(K+1) rows of D numbers, which
        # RepDistiller gathers first, would be a gigabyte per step at its settings.
        score = torch.exp((v @ memory.T).gather(1, contrast_idx) / self.temperature)
        fixed = torch.where(Z < 0, score.detach().mean() * len(memory), Z)
        Z.copy_(fixed)
        return (score / fixed).unsqueeze(2)

    @torch.no_grad()
    def _update(self, memory: Tensor, v: Tensor, idx: Tensor) -> None:
        memory[idx] = F.normalize(self.momentum * memory[idx] + (1 - self.momentum) * v)

    def forward(self, v1: Tensor, v2: Tensor, idx: Tensor, contrast_idx: Tensor) -> tuple[Tensor, Tensor]:
        """Score a batch, then store it.

        Args:
            v1, v2: normalised student and teacher embeddings (B, D).
            idx: positions of the samples in the training set (B,).
            contrast_idx: positions of the positive, in column 0, and of the K negatives (B, K+1).

        Returns:
            exp(score/T)/Z of the student's embeddings against the teacher's memory and of the teacher's against the
            student's, (B, K+1, 1) each.
        """
        # scored on clones, since the update below changes the memory that the backward pass needs
        out_v1 = self._score(v1, self.memory_v2.clone(), self.Z_v1, contrast_idx)
        out_v2 = self._score(v2, self.memory_v1.clone(), self.Z_v2, contrast_idx)
        self._update(self.memory_v1, v1.detach(), idx)
        self._update(self.memory_v2, v2.detach(), idx)
        return out_v1, out_v2
