"""The contrastive criterion of CRD (Tian, Krishnan and Isola, ICLR 2020, arXiv 1910.10699, equation 18)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .memory import ContrastMemory

EPS = 1e-7


class ContrastLoss(nn.Module):
    """Noise-contrastive estimation with the noise distribution 1/n_data.

    Args:
        n_data: number of training images.
    """

    def __init__(self, n_data: int):
        super().__init__()
        self.n_data = n_data

    def forward(self, x: Tensor) -> Tensor:
        """Loss of scores (B, K+1, 1), already exponentiated and divided by Z, the positive in column 0; a scalar."""
        noise = (x.shape[1] - 1) / self.n_data
        positive, negative = x[:, :1], x[:, 1:]
        log_hit = torch.log(positive / (positive + noise + EPS)).sum()
        log_miss = torch.log(noise / (negative + noise + EPS)).sum()
        return -(log_hit + log_miss) / len(x)


class Embed(nn.Module):
    """Linear layer onto the unit sphere.

    Args:
        dim_in: length of a pooled feature.
        dim_out: length of an embedding.
    """

    def __init__(self, dim_in: int, dim_out: int = 128):
        super().__init__()
        self.linear = nn.Linear(dim_in, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """Embed features (B, dim_in), or maps flattened to that, as unit vectors (B, dim_out)."""
        return F.normalize(self.linear(x.flatten(1)))


class CRDLoss(nn.Module):
    """Both directions of the contrast: the student against the teacher's memory and the reverse.

    Args:
        opt: anything with the attributes s_dim, t_dim (lengths of the pooled features), feat_dim, n_data, nce_t
            (temperature) and nce_m (momentum of the memory).
    """

    def __init__(self, opt: Any):
        super().__init__()
        self.embed_s = Embed(opt.s_dim, opt.feat_dim)
        self.embed_t = Embed(opt.t_dim, opt.feat_dim)
        self.contrast = ContrastMemory(opt.feat_dim, opt.n_data, opt.nce_t, opt.nce_m)
        self.criterion = ContrastLoss(opt.n_data)

    def forward(self, f_s: Tensor, f_t: Tensor, idx: Tensor, contrast_idx: Tensor) -> Tensor:
        """Loss of pooled features.

        Args:
            f_s, f_t: student (B, s_dim) and teacher (B, t_dim).
            idx: positions of the samples in the training set (B,).
            contrast_idx: positions of the positive and the negatives (B, K+1).

        Returns:
            A scalar.
        """
        out_s, out_t = self.contrast(self.embed_s(f_s), self.embed_t(f_t), idx, contrast_idx)
        return self.criterion(out_s) + self.criterion(out_t)
