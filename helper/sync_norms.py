"""Batch norms over the whole batch of all processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .distributed import total


class SynchronisedNorms(TorchFunctionMode):
    """A context in which batch norms in training mode take their statistics over the batches of all processes.

    `torch.nn.SyncBatchNorm` runs on GPUs only. This one runs everywhere, with any network whose norms come down to
    `torch.nn.functional.batch_norm`, and leaves the network's modules as they are; on a GPU it is the slower of the
    two. Numbers are those of one process with the whole batch.

    Args:
        rows: images of this process's batch that count; the others, which stand in for none, do not.
    """

    def __init__(self, rows: int):
        super().__init__()
        self.rows = rows

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of torch, or what takes its place."""
        if func is F.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        dims, shape = [0, *range(2, x.dim())], (1, -1, *[1] * (x.dim() - 2))
        counted = values[: self.rows]
        per_channel = counted.numel() // x.shape[1]
        sums = total(torch.cat([counted.sum(dims), counted.new_tensor([per_channel])]))
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()
        centred = values - mean.view(shape)
        variance = total(centred[: self.rows].square().sum(dims)) / count
        if running_mean is not None:
            with torch.no_grad():
                unbiased = variance * count / (count - 1).clamp(min=1)
                running_mean.lerp_(mean.to(running_mean), momentum)
                running_var.lerp_(unbiased.to(running_var), momentum)
        scale = (variance + eps).rsqrt()
        scale = scale if weight is None else scale * weight
        normed = centred * scale.view(shape)
        return (normed if bias is None else normed + bias.view(shape)).to(x.dtype)
